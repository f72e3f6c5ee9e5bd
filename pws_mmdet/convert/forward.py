"""Call a network with a batch."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

Forward = Callable[[nn.Module, Any], Any]  # calls a network with a batch


def run_model(model: nn.Module, batch: Any) -> Any:
    """Call a network with a batch.

    Args:
        model: The network. For an MMEngine model, ``test_step`` is called; for any
            other network, the network itself.
        batch: A tensor is the only positional argument. A tuple or list holds the
            positional arguments, a dict the keyword arguments. MMEngine models take
            batches as their data loader gives them.

    Returns:
        What the call returns.
    """
    if isinstance(model, BaseModel) and not isinstance(batch, Tensor):
        return model.test_step(batch)
    if isinstance(batch, Tensor):
        return model(batch)
    return model(**batch) if isinstance(batch, dict) else model(*batch)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield all tensors of a batch or of a network's outputs, at any depth."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, BaseDataElement):
        yield from tensors_in(value.to_dict())
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)


def noise_for(model: nn.Module, channels: int | None = None) -> Tensor:
    """Return one image of noise, (1, C, 64, 64), as the network takes it.

    Args:
        model: The network.
        channels: C; None for that of its first convolution.
    """
    convs = (m for m in model.modules() if isinstance(m, nn.Conv2d))
    first = next(convs, nn.Conv2d(3, 1, 1))
    generator = torch.Generator().manual_seed(0)
    channels = channels or first.in_channels
    noise = torch.randn(1, channels, 64, 64, generator=generator)
    return noise.to(first.weight)
