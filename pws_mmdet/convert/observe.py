"""Observe the calls of layers in a forward pass."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..compat import tree_leaves
from .forward import Forward


@dataclass
class Call:
    """One call of a convolution.

    Attributes:
        name: Name of the convolution.
        x: Its input.
        y: Its output.
        added: The tensor that the network adds to the output directly afterwards, as
            in a residual block; None if the next operation is another one.
    """

    name: str
    x: Tensor
    y: Tensor
    added: Tensor | None = None


class Observer(TorchDispatchMode):
    """Calls a function for each call of a layer, right before its output is used.

    At that moment it is known what the output is added to, and the function can still
    change the output in place.

    Args:
        on_use: The function. If the network never uses an output, :meth:`finish`
            calls it.
    """

    def __init__(self, on_use: Callable[[Call], None]) -> None:
        super().__init__()
        self.on_use = on_use
        self.unused: list[Call] = []

    def note(self, name: str, x: Tensor, y: Tensor) -> None:
        """Note a call of a layer; for its forward hook."""
        self.unused.append(Call(name, x, y))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if self.unused:
            self._look(func, args, kwargs)
        return func(*args, **(kwargs or {}))

    def _look(self, func: Any, args: tuple, kwargs: dict | None) -> None:
        values = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        for call in list(self.unused):
            if any(x is call.y for x in values):
                if func.overloadpacket in (torch.ops.aten.add, torch.ops.aten.add_):
                    others = [x for x in args if isinstance(x, Tensor)]
                    others = [x for x in others if x is not call.y]
                    if not kwargs and [x.shape for x in others] == [call.y.shape]:
                        call.added = others[0]
                self.unused.remove(call)
                self.on_use(call)
            elif func._schema.is_mutable and any(_share(x, call.x) for x in values):
                call.x = call.x.clone()  # an in-place operation may overwrite it

    def finish(self) -> None:
        """Call the function for the outputs that the network did not use."""
        while self.unused:
            self.on_use(self.unused.pop(0))


def _share(a: Tensor, b: Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


class _Stop(Exception):
    """Ends a forward pass early."""


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
    calls: list[Call] = []

    def keep(call: Call) -> None:
        # Clone: an in-place ReLU after the layer would overwrite its output.
        call.x, call.y = call.x.clone(), call.y.clone()
        call.added = None if call.added is None else call.added.clone()
        calls.append(call)
        if len(calls) == number:
            raise _Stop

    observer = Observer(keep)
    module = model.get_submodule(name)
    hook = module.register_forward_hook(lambda m, x, y: observer.note(name, x[0], y))
    try:
        with observer:
            forward(model, batch)
        observer.finish()
    except _Stop:
        pass
    finally:
        hook.remove()
    return calls
