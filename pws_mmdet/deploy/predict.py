"""The steps of MMDetection's ``predict``, in tensors of fixed size.

Each step works on a whole batch. ``predict`` drops a candidate; these functions set
its score to 0 instead, so that the sizes of the tensors do not depend on the images.
"""

from typing import Any

import torch
import torch.nn.functional as F
from mmdet.models.dense_heads import RPNHead
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmdet.structures.bbox import get_box_tensor
from mmengine.config import ConfigDict
from torch import Tensor, nn

from .operators import aligned_rois, nms_mask


def threshold(head: nn.Module) -> float:
    """The score that a candidate must exceed. It is 0 for an RPN, which has none."""
    return 0 if isinstance(head, RPNHead) else head.test_cfg.get('score_thr', 0)


def dense_detections(
    head: BaseDenseHead,
    maps: tuple[Tensor, ...],
    size: tuple[int, int],
    least_score: float | Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes, scores and labels of a head that predicts at every point of its maps.

    Args:
        head: The head. The label of an RPN's boxes is 0.
        maps: Feature maps, one for each level, (N, C, h, w).
        size: Height and width of the images. Boxes are clipped to them.
        least_score: Only candidates with a higher score count.

    Returns:
        (N, D, 4), (N, D), (N, D), as of ``DeployedDetector``.
    """
    cfg = head.test_cfg
    outputs = head(maps)
    priors = head.prior_generator.grid_priors(
        [scores.shape[-2:] for scores in outputs[0]],
        dtype=maps[0].dtype,
        device=maps[0].device,
    )
    levels = [
        level_candidates(head, level, least_score, *tensors)
        for level, tensors in enumerate(zip(priors, *outputs, strict=True))
    ]
    anchors, deltas, scores, labels, groups = (
        torch.cat(parts, dim=1) for parts in zip(*levels, strict=True)
    )
    boxes = head.bbox_coder.decode(
        anchors.flatten(0, 1), deltas.flatten(0, 1), max_shape=size
    )
    boxes = get_box_tensor(boxes).view(*scores.shape, 4)
    if cfg.get('min_bbox_size', -1) >= 0:
        large = (boxes[..., 2:] - boxes[..., :2] > cfg.min_bbox_size).all(-1)
        scores = scores * large
    return best(boxes, scores, labels, groups, cfg)


def level_candidates(
    head: BaseDenseHead,
    level: int,
    least_score: float | Tensor,
    priors: Tensor,
    scores: Tensor,
    deltas: Tensor,
    factors: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """The ``nms_pre`` pairs of prior and class with the highest scores of a level.

    Args:
        head: Its ``test_cfg`` has ``nms_pre``.
        level: The index of the level.
        least_score: Only candidates with a higher score count.
        priors: (P, 4) or (P, 2).
        scores: Logits, (N, A * classes, h, w).
        deltas: (N, A * 4, h, w).
        factors: Logits of the factors of the scores (centerness), (N, A, h, w).

    Returns:
        Priors, deltas, scores, labels and groups, each of shape (N, nms_pre, ...).
        Boxes suppress each other only within a group. The group is the label; of an
        RPN it is the level.
    """
    cfg = head.test_cfg
    classes = head.cls_out_channels
    scores = by_prior(scores, classes)
    if head.use_sigmoid_cls:
        scores = scores.sigmoid()
    else:
        scores = scores.softmax(-1)[..., :-1]
        classes = classes - 1
    # Pad with scores of 0: a small map may have fewer than nms_pre candidates.
    scores = F.pad(scores.flatten(1), (0, cfg.nms_pre))
    scores, pairs = scores.topk(cfg.nms_pre)
    scores = scores * (scores > least_score)
    pairs = pairs * (scores > 0)  # the index of a padded score has no prior
    index, labels = pairs // classes, pairs % classes
    deltas = by_prior(deltas, head.bbox_coder.encode_size)
    deltas = take(deltas, index)
    if factors is not None:
        scores = scores * by_prior(factors, 1)[..., 0].gather(1, index).sigmoid()
    groups = torch.full_like(labels, level) if isinstance(head, RPNHead) else labels
    return priors[index], deltas, scores, labels, groups


def by_prior(values: Tensor, channels: int) -> Tensor:
    """Turn (N, A * channels, h, w) into (N, h * w * A, channels), a row a prior."""
    return values.permute(0, 2, 3, 1).reshape(values.shape[0], -1, channels)


def take(values: Tensor, index: Tensor) -> Tensor:
    """Take the rows ``index``, (N, K), of ``values``, (N, P, c): (N, K, c)."""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[-1]))


def best(
    boxes: Tensor, scores: Tensor, labels: Tensor, groups: Tensor, cfg: ConfigDict
) -> tuple[Tensor, Tensor, Tensor]:
    """Suppress overlapping boxes within each group, and keep the best of the rest.

    Args:
        boxes: (N, K, 4).
        scores: (N, K). A score of 0 means that there is no candidate.
        labels, groups: int64, (N, K).
        cfg: Has ``nms`` and ``max_per_img``.
    """
    limit = min(cfg.max_per_img, scores.shape[1])
    # MMCV shifts each group by another offset and then runs one suppression. Do the
    # same: the shift rounds the coordinates, and close decisions depend on that.
    shifted = boxes
    if not cfg.nms.get('class_agnostic', False):
        largest = (boxes * (scores > 0)[..., None]).amax((1, 2), keepdim=True)
        shifted = boxes + groups.to(boxes)[..., None] * (largest + 1)
    scores = scores * nms_mask(shifted, scores, cfg.nms.iou_threshold, limit)
    scores, index = scores.topk(limit)
    found = scores > 0
    boxes = take(boxes, index) * found[..., None]
    return boxes, scores, torch.where(found, labels.gather(1, index), -1)


def roi_features(
    extractor: SingleRoIExtractor, maps: tuple[Tensor, ...], boxes: Tensor
) -> Tensor:
    """Extract the features of boxes, each from the map that fits its size.

    Args:
        extractor: Has RoIAlign layers, one for each map.
        maps: Feature maps, (N, C, h, w).
        boxes: (N, R, 4), in pixels of the images.

    Returns:
        (N * R, C, height, width).
    """
    images = torch.arange(boxes.shape[0])[:, None].expand(boxes.shape[:2]).flatten()
    boxes = boxes.flatten(0, 1)
    maps = maps[: extractor.num_inputs]
    levels = extractor.map_roi_levels(F.pad(boxes, (1, 0)), len(maps))
    result: Any = 0
    for level, (layer, features) in enumerate(
        zip(extractor.roi_layers, maps, strict=True)
    ):
        on_level = levels == level
        # Every layer sees all boxes, because the number of boxes must be fixed. Boxes
        # of other levels are made empty first: with sampling_ratio=0 an empty box has
        # no samples and costs no time. In other modes an empty box has samples, so
        # its features are multiplied by 0 below.
        regions = aligned_rois(
            features,
            boxes * on_level[:, None],
            images,
            *layer.output_size,
            layer.spatial_scale,
            max(layer.sampling_ratio, 0),
            layer.aligned,
        )
        result = result + regions * on_level[:, None, None, None]
    return result
