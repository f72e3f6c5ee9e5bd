"""Run a network on calibration batches, and watch single layers while it runs."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from tqdm import tqdm

from ..compat import tree_leaves

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


# --- calls of layers ---------------------------------------------------------------


@dataclass
class Calls:
    """How often one layer is called.

    Attributes:
        per_batch: The number of calls for each batch.
        positions: The number of output positions, N * H * W, of all calls together.
    """

    per_batch: list[int] = field(default_factory=list)
    positions: int = 0


def count_calls(
    model: nn.Module,
    batches: Sequence[Any],
    forward: Forward,
    names: Sequence[str],
    progress: bool = False,
) -> tuple[dict[str, Calls], list[set[str]]]:
    """Run the network on all batches, and count the calls of some layers.

    Args:
        model: The network.
        batches: As ``forward`` takes them.
        forward: Calls the network with a batch.
        names: Names of the layers to count.
        progress: Show a progress bar.

    Returns:
        The calls of each layer that was called, in the order of the first calls; and
        for each batch the names of all modules of :func:`readers_of` that it reached.
    """
    calls: dict[str, Calls] = {}
    reached: list[set[str]] = [set() for _ in batches]
    readers = readers_of(model)
    counted = {model.get_submodule(name): name for name in names}

    def count(module: nn.Module, y: Any, batch: int) -> None:
        reached[batch].add(readers[module])
        name = counted.get(module)
        if name is not None:
            of_layer = calls.setdefault(name, Calls([0] * len(batches)))
            of_layer.per_batch[batch] += 1
            of_layer.positions += y[:, 0].numel()

    for i, batch in enumerate(tqdm(batches, 'looking', disable=not progress)):
        hooks = [
            m.register_forward_hook(lambda m, x, y, i=i: count(m, y, i))
            for m in readers
        ]
        try:
            forward(model, batch)
        finally:
            for hook in hooks:
                hook.remove()
    return calls, reached


@dataclass
class Call:
    """One call of a convolution.

    Attributes:
        x: Its input.
        y: Its output.
        added: The tensor that the network adds to the output directly afterwards, as
            in a residual block; None if the next operation is another one.
    """

    x: Tensor
    y: Tensor
    added: Tensor | None = None


class _Stop(Exception):
    """Ends a forward pass early."""


class _Watcher(TorchDispatchMode):
    """Records the calls of one layer, then ends the forward pass with ``_Stop``.

    Args:
        number: The number of calls to record.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number
        self.calls: list[Call] = []
        self.unused: Tensor | None = None  # the last output, until it is first used

    def look(self, module: nn.Module, args: tuple, output: Tensor) -> None:
        # Clone: an in-place ReLU after the layer would overwrite its output.
        self.calls.append(Call(args[0].clone(), output.clone()))
        self.unused = output

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        y = self.unused
        if y is not None and any(x is y for x in tree_leaves((args, kwargs))):
            self.unused = None
            if func.overloadpacket in (torch.ops.aten.add, torch.ops.aten.add_):
                others = [x for x in args if isinstance(x, Tensor) and x is not y]
                if not kwargs and [x.shape for x in others] == [y.shape]:
                    self.calls[-1].added = others[0].clone()
            if len(self.calls) == self.number:
                raise _Stop
        return func(*args, **(kwargs or {}))


def watch(
    model: nn.Module, batch: Any, forward: Forward, name: str, number: int
) -> list[Call]:
    """Run a network on a batch, and record the calls of one layer.

    Args:
        model: The network.
        batch: As ``forward`` takes it.
        forward: Calls the network with a batch.
        name: Name of the layer, a convolution.
        number: The number of its calls. The forward pass ends after the last one.
    """
    watcher = _Watcher(number)
    hook = model.get_submodule(name).register_forward_hook(watcher.look)
    try:
        with watcher:
            forward(model, batch)
    except _Stop:
        pass
    finally:
        hook.remove()
    return watcher.calls
