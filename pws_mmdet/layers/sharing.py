"""Filters that are computed once where a layer is applied several times."""

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
    """Let layers that are applied several times compute their filters once.

    A layer whose parameters are replaced, or changed in place, computes its filters
    again. A change through ``.data`` is not seen, because torch does not count it.
    At the end of the context everything is forgotten, and inside of it another one
    starts afresh.
    """
    token = _store.set({})
    try:
        yield
    finally:
        _store.reset(token)


def filters_of(conv: nn.Conv2d, compute: Callable[[], Tensor]) -> Tensor:
    """The filters of a layer, computed unless :func:`shared_filters` has them.

    Those of other parameters (functional_call, parametrizations) and those without
    gradients are told apart. Inside of a region that is computed again in the
    backward pass (checkpointing), everything is computed, and then again.
    """
    # is_compiling() comes first: torch.compile cannot trace a look into the store, and
    # finds repeated filters itself.
    if is_compiling() or (store := _store.get()) is None:
        return compute()
    if saves_tensors_by_hooks():
        return compute()
    # Not -1 in a backward pass. The function is private; in torch 2.1 to 2.15.
    if torch._C._current_graph_task_id() != -1:
        return compute()
    # Parametrizations are modules of the layer: their parameters count, too.
    parameters = [p for m in conv.modules() for p in m._parameters.values()]
    # Whoever changes a parameter in place raises its version.
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
    """The forward pass of :func:`share_filters`, put before that of a class.

    A class and no hook: hooks after the forward pass do not run on
    KeyboardInterrupt. A class and no attribute of the module: copies and replicas
    of the module, shallow ones too, then run their own layers.
    """

    def forward(self, *args, **kwargs) -> Any:
        if is_compiling():
            return super().forward(*args, **kwargs)
        with shared_filters():
            return super().forward(*args, **kwargs)

    def __reduce_ex__(self, protocol: int) -> tuple:
        # No module holds the class by its name, so pickles name the one below it.
        function, args, *state = super().__reduce_ex__(max(protocol, 2))
        if function is copyreg.__newobj__:
            cls, *rest = args
            function, args = _new, (cls.__bases__[-1], *rest)
        return function, args, *state


@cache
def _sharing(cls: type[nn.Module]) -> type[nn.Module]:
    names = ('__module__', '__qualname__', '__doc__')
    own = {name: getattr(cls, name) for name in names}
    return new_class(
        cls.__name__, (_SharesFilters, cls), exec_body=lambda body: body.update(own)
    )


def _new(cls: type[nn.Module], *args: Any) -> nn.Module:
    cls = _sharing(cls)
    return cls.__new__(cls, *args)


def share_filters(module: Module) -> Module:
    """Make every forward pass of a module a context of :func:`shared_filters`.

    For modules that apply a layer several times, such as a head to the maps of all
    levels. It costs nothing elsewhere, and the outputs and gradients stay the same.
    A ``forward`` that was set on the module itself shares nothing.

    Args:
        module: It is changed in place: its class becomes a subclass of its class, of
            the same name. A second time changes nothing.

    Returns:
        The module.
    """
    if not isinstance(module, _SharesFilters):
        module.__class__ = _sharing(type(module))
    return module


def share_filters_of_heads(model: nn.Module) -> None:
    """:func:`share_filters` for each head that sees the maps of several levels.

    They are known by ``forward_single``, MMDetection's name for what such a head
    does to one map.
    """
    for module in model.modules():
        if hasattr(module, 'forward_single'):
            share_filters(module)
