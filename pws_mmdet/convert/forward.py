"""Run a network on calibration batches."""

from collections.abc import Callable, Iterator, Sequence
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


def readers_of(model: nn.Module) -> dict[nn.Module, str]:
    """Find the modules whose output depends on the scale of their input.

    Returns:
        All 2D convolutions and all other leaf modules with parameters, each with its
        name.
    """
    return {
        module: name
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d)
        or (not any(module.children()) and any(True for _ in module.parameters()))
    }


# --- batches -----------------------------------------------------------------------


def _inputs_of(batch: Any) -> Any:
    return batch.get('inputs', batch) if isinstance(batch, dict) else batch


def images_in(batch: Any) -> int | None:
    """Return the number of images in a batch, or None if it is not clear."""
    inputs = _inputs_of(batch)
    if isinstance(batch, dict) and isinstance(inputs, (list, tuple)):
        return len(inputs)
    numbers = {len(x) for x in tensors_in(inputs) if x.dim() == 4}
    return numbers.pop() if len(numbers) == 1 else None


def first_image(batch: Any) -> Any:
    """Return a batch of the first image only, or the whole batch if it has no axis."""
    if isinstance(batch, Tensor) and batch.dim() == 4:
        return batch[:1]
    if isinstance(batch, dict) and 'inputs' in batch:
        number = images_in(batch)
        parts = batch.values()
        if all(
            isinstance(x, (list, tuple, Tensor)) and len(x) == number for x in parts
        ):
            return {key: value[:1] for key, value in batch.items()}
    return batch


def crop(batch: Any, size: int) -> Any:
    """Return a batch whose images are cut to ``size`` rows and columns at most."""
    if isinstance(batch, Tensor):
        return batch[..., :size, :size] if batch.dim() in (3, 4) else batch
    if type(batch) in (list, tuple):
        return type(batch)(crop(x, size) for x in batch)
    if isinstance(batch, dict) and 'inputs' in batch:
        return {**batch, 'inputs': crop(batch['inputs'], size)}
    return batch


def check_images(batches: Sequence[Any]) -> None:
    """Raise a ValueError if the images of a batch hold NaN or infinity."""
    for batch in batches:
        for x in tensors_in(_inputs_of(batch)):
            if not x.isfinite().all():
                raise ValueError(
                    'The calibration images have values that are not finite'
                )


def noise_for(model: nn.Module) -> Tensor:
    """Return one image of noise, (1, C, 64, 64), with the channels of the network."""
    convs = (m for m in model.modules() if isinstance(m, nn.Conv2d))
    first = next(convs, nn.Conv2d(3, 1, 1))
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, first.in_channels, 64, 64, generator=generator)
    return noise.to(first.weight)
