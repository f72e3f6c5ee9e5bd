"""Multiply-adds of each layer in a forward pass."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmdet.structures import DetDataSample
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

# What a model is measured with: an input, the keyword arguments of forward, or the
# height and width of an image
Inputs = Tensor | Mapping[str, Any] | Sequence[int]


def measure_macs(
    model: nn.Module, layers: Iterable[nn.Module], inputs: Inputs
) -> Counter[nn.Module | None]:
    """Count the multiply-adds of a forward pass in eval mode.

    The modes of the model and PyTorch's random numbers are the same afterwards.

    Args:
        model: Any module.
        layers: Modules of the model to count for.
        inputs: As of ``pws_mmdet.summarize_model``.

    Returns:
        The multiply-adds of each layer; under None, those outside of all layers. A
        layer within another one counts for itself alone.

    Raises:
        Exception: Whatever the forward pass raises.
    """
    macs: Counter[nn.Module | None] = Counter()
    running: list[nn.Module | None] = [None]
    # mmcv's deformable convolutions multiply matrices in place.
    in_place = {torch.ops.aten.addmm_: lambda _, a, b, **kw: 2 * a[0] * a[1] * b[1]}
    counter = FlopCounterMode(display=False, custom_mapping=in_place)

    def attribute(*_) -> None:
        # FlopCounterMode counts a multiplication and an addition as two.
        done = counter.get_total_flops() // 2
        macs[running[-1]] += done - macs.total()

    def enter(layer: nn.Module, *_) -> None:
        attribute()
        running.append(layer)

    def leave(*_) -> None:
        attribute()
        running.pop()

    gpus = {p.device.index for p in model.parameters() if p.is_cuda}
    handles = []
    try:
        for layer in layers:
            handles.append(layer.register_forward_pre_hook(enter))
            handles.append(layer.register_forward_hook(leave))
        with _eval_mode(model), torch.random.fork_rng(gpus), torch.no_grad(), counter:
            _forward(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    attribute()
    return macs


def describe_inputs(inputs: Inputs) -> str:
    """Name the inputs of a measurement for a message."""
    if isinstance(inputs, (Tensor, Mapping)):
        return 'the given input'
    return 'a random image of {} x {} pixels'.format(*inputs)


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """Put every module in eval mode, and restore the mode of each one afterwards.

    ``model.eval()`` is not called: a model may override it.
    """
    modes = {module: module.training for module in model.modules()}
    try:
        for module in modes:
            module.training = False
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _forward(model: nn.Module, inputs: Inputs) -> None:
    if isinstance(inputs, Tensor):
        model(inputs)
    elif isinstance(inputs, Mapping):
        model(**inputs)
    else:
        size = tuple(inputs)
        seeded = torch.Generator().manual_seed(0)
        image = torch.randint(256, (3, *size), generator=seeded, dtype=torch.uint8)
        meta = dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0))
        batch = dict(inputs=[image], data_samples=[DetDataSample(metainfo=meta)])
        model(**model.data_preprocessor(batch, False), mode='tensor')
