"""How well the outputs of two networks agree."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmdet.structures.bbox import bbox_overlaps, get_box_tensor
from mmengine.structures import InstanceData
from torch import Tensor, nn

from .forward import Forward, tensors_in

MIN_IOU, MIN_SCORE = 0.5, 0.3  # of detections that agree
LEAST_SHARE = 0.1  # of detections that agree, in networks that have to do with another


@dataclass
class Agreement:
    """How well the outputs of a network agree with those of the original network.

    Attributes:
        error: Root mean squared difference of the outputs, over the standard deviation
            of the original ones. None for detectors.
        top1: The share of images with the same class, for a classifier; else None.
        detections: The F-measure of the detections, if those of the original network
            count as ground truth: same class, IoU of 0.5 or more, and a score of 0.3
            or more in one of the networks. None for networks that detect nothing.
    """

    error: float | None = None
    top1: float | None = None
    detections: float | None = None

    @property
    def is_lost(self) -> bool:
        """Whether the outputs have little to do with those of the original network."""
        if self.detections is not None:
            return self.detections < LEAST_SHARE
        return self.error is not None and not self.error < 1  # NaN is lost, too

    def __str__(self) -> str:
        if self.detections is not None:
            return f'{100 * self.detections:.0f} % of the detections agree'
        if self.error is None:
            return 'there are no outputs to compare'
        text = f'the outputs have a relative error of {self.error:.3f}'
        if self.top1 is not None:
            text = f'{100 * self.top1:.0f} % of the classes agree, {text}'
        return text


@torch.no_grad()
def compare_outputs(
    original: nn.Module, other: nn.Module, batches: Sequence[Any], forward: Forward
) -> Agreement:
    """Compare the outputs of two networks in evaluation mode.

    Args:
        original: The original network.
        other: The other one.
        batches: As ``forward`` takes them.
        forward: Calls a network with a batch.
    """
    squares, variances, same = [], [], []
    matched = number = 0
    for batch in batches:
        # A detector may write its results into the batch, so the first are kept.
        a, b = (_outputs_of(forward(net, batch)) for net in (original, other))
        for x, y in zip(a, b, strict=False):
            if isinstance(x, InstanceData) and isinstance(y, InstanceData):
                matched += _matches(x, y) + _matches(y, x)
                number += sum(int((z.scores >= MIN_SCORE).sum()) for z in (x, y))
            elif isinstance(x, Tensor) and isinstance(y, Tensor) and x.numel():
                if x.shape != y.shape:
                    continue
                squares.append((x - y).square().mean().item())
                variances.append(x.var(correction=0).item())
                if x.dim() == 2 and len(a) == 1:
                    same.append((x.argmax(1) == y.argmax(1)).double())
    if number:
        return Agreement(detections=matched / number)
    if not sum(variances):
        return Agreement()
    error = (sum(squares) / sum(variances)) ** 0.5
    return Agreement(error, torch.cat(same).mean().item() if same else None)


def _outputs_of(value: Any) -> list[Tensor | InstanceData]:
    """Return copies of the detections of all images, or of all outputs, in fp64."""
    samples = value if isinstance(value, (list, tuple)) else [value]
    found = [getattr(sample, 'pred_instances', None) for sample in samples]
    detections = [x for x in found if isinstance(x, InstanceData) and 'bboxes' in x]
    if len(detections) == len(samples):
        return [x.clone() for x in detections]
    return [x.double() for x in tensors_in(value) if x.is_floating_point()]


def _matches(a: InstanceData, b: InstanceData) -> int:
    """Count the confident detections of a that b has, too, with any score."""
    sure = a[a.scores >= MIN_SCORE]
    if not len(sure) or not len(b):
        return 0
    boxes, others = get_box_tensor(sure.bboxes), get_box_tensor(b.bboxes)
    near = bbox_overlaps(boxes, others) >= MIN_IOU
    return int((near & (sure.labels[:, None] == b.labels)).any(1).sum())
