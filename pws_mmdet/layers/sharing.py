"""Compute the filters of a layer once when it is applied several times."""

import copyreg
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from types import new_class
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from ..compat import is_compiling, saves_tensors_by_hooks
from .filter_kernel import autocast_dtype

Module = TypeVar('Module', bound=nn.Module)


class _Entry(NamedTuple):
    parameters: list[Tensor | None]
    versions: list[int | None]
    filters: Tensor


_Store = dict[tuple[int, bool, torch.dtype | None], _Entry]
_store: ContextVar[_Store | None] = ContextVar('_store', default=None)


@contextmanager
def shared_filters() -> Iterator[None]:
    """Let each layer compute its filters once in this context.

    A layer whose parameters are replaced, or changed in place, computes its filters
    again. A change through ``.data`` is not noticed, because torch does not count it.
    The filters are dropped at the end of the context. A context inside another one
    starts without filters.
    """
    token = _store.set({})
    try:
        yield
    finally:
        _store.reset(token)


def filters_of(conv: nn.Conv2d, compute: Callable[[], Tensor]) -> Tensor:
    """Compute the filters of a layer, unless ``shared_filters`` has them.

    Filters are shared only between calls with the same parameters and the same grad
    mode: ``functional_call`` and parametrizations replace the parameters. They are not
    shared where the forward pass runs again during the backward pass (activation
    checkpointing).

    Args:
        conv: The layer.
        compute: Returns the filters.
    """
    # Ask is_compiling() first: torch.compile cannot trace the access to the store. It
    # merges repeated computations by itself.
    if is_compiling() or (store := _store.get()) is None:
        return compute()
    if saves_tensors_by_hooks():
        return compute()
    # -1 outside of a backward pass. The function is private; seen in torch 2.1 to 2.15.
    if torch._C._current_graph_task_id() != -1:
        return compute()
    # A parametrization is a submodule of the layer: include its parameters.
    parameters = [
        p
        for m in conv.modules()
        for p in (*m._parameters.values(), *m._buffers.values())
    ]
    # Every change of a parameter in place raises its version.
    versions = [
        None if p is None or p.is_inference() else p._version for p in parameters
    ]
    # The dtype may be that of autocast.
    key = id(conv), torch.is_grad_enabled(), autocast_dtype()
    entry = store.get(key)
    if (
        entry is None
        or entry.versions != versions
        or any(a is not b for a, b in zip(entry.parameters, parameters, strict=True))
    ):
        entry = store[key] = _Entry(parameters, versions, compute())
    return entry.filters


class _SharesFilters:
    """The forward pass of ``share_filters``, as a mixin for the module's class.

    It is no forward hook, because these do not run after a KeyboardInterrupt. It is
    not set on the module itself, because then a copy or a replica of the module would
    run the layers of the original.
    """

    def forward(self, *args, **kwargs) -> Any:
        if is_compiling():
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        with shared_filters():
            return super().forward(*args, **kwargs)  # type: ignore[misc]

    def __reduce_ex__(self, protocol: Any) -> tuple:
        # Pickles name the original class: no module holds the new one by its name.
        reduced: Any = super().__reduce_ex__(max(protocol, 2))
        function, args, *state = reduced
        if function is copyreg.__newobj__:  # type: ignore[attr-defined]
            cls, *rest = args
            function, args = _new, (cls.__bases__[-1], *rest)
        return function, args, *state


@cache
def _sharing(cls: Any) -> type[nn.Module]:
    """Make the subclass of a class that shares filters."""
    names = ('__module__', '__qualname__', '__doc__')
    own = {name: getattr(cls, name) for name in names}
    return new_class(
        cls.__name__, (_SharesFilters, cls), exec_body=lambda body: body.update(own)
    )


def _new(cls: Any, *args: Any) -> nn.Module:
    """Make an instance of the sharing subclass, for unpickling."""
    cls = _sharing(cls)
    return cls.__new__(cls, *args)


def share_filters(module: Module) -> Module:
    """Run every forward pass of a module in a context of ``shared_filters``.

    It saves time in modules that apply a layer several times, such as a head that is
    applied to the feature maps of all levels. Outputs and gradients stay the same.
    A ``forward`` that was set on the module itself shares nothing.

    Args:
        module: It is changed in place: its class becomes a subclass of its class, with
            the same name. A second call changes nothing.

    Returns:
        The module.
    """
    if not isinstance(module, _SharesFilters):
        module.__class__ = _sharing(type(module))  # type: ignore[arg-type]
    return module


def share_filters_of_heads(model: nn.Module) -> None:
    """Apply ``share_filters`` to each head that takes the maps of several levels.

    Such heads have a method ``forward_single``, MMDetection's name for the forward pass
    of one level.
    """
    for module in model.modules():
        if hasattr(module, 'forward_single'):
            share_filters(module)
