"""Filters that are computed once where a layer is applied several times."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import MethodType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class _Entry(NamedTuple):
    parameters: list[Tensor | None]
    filters: Tensor


_Store = dict[tuple[int, bool], _Entry]
_store: ContextVar[_Store | None] = ContextVar('_store', default=None)


@contextmanager
def shared_filters() -> Iterator[None]:
    """Let layers that are applied several times compute their filters once.

    Between the applications their parameters may not be changed in place. At the end
    of the context everything is forgotten, and inside of it another one starts
    afresh.
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
    # the first: a compiler sees that itself, and cannot look into the store
    if torch.compiler.is_compiling() or (store := _store.get()) is None:
        return compute()
    if torch._C._autograd._top_saved_tensors_default_hooks(True) is not None:
        return compute()
    if torch._C._current_graph_task_id() != -1:  # in a backward pass
        return compute()
    # those of parametrizations, which are modules of the layer, too
    parameters = [p for m in conv.modules() for p in m._parameters.values()]
    key = id(conv), torch.is_grad_enabled()
    entry = store.get(key)
    if entry is None or any(
        a is not b for a, b in zip(entry.parameters, parameters, strict=True)
    ):
        entry = store[key] = _Entry(parameters, compute())
    return entry.filters


class _Sharing:
    """Makes the forward passes of a module those of :func:`share_filters`.

    Hooks would not do: of KeyboardInterrupt they hear nothing. The module keeps its
    own ``forward``, where :func:`fuse_pws` finds it if it is compiled.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def forward(self, *args, **kwargs) -> Any:
        if torch.compiler.is_compiling():
            return self.module._own_forward(*args, **kwargs)
        with shared_filters():
            return self.module._own_forward(*args, **kwargs)

    def replicate(self) -> nn.Module:
        """The copy that DataParallel asks for.

        As the stock one has it, its forward would be that of the module itself, with
        its parameters, which are on another device.
        """
        replica = type(self.module)._replicate_for_data_parallel(self.module)
        own = replica._own_forward
        if inspect.ismethod(own) and own.__self__ is self.module:
            own = MethodType(own.__func__, replica)
        del replica._own_forward
        replica.forward = own
        return share_filters(replica)


def share_filters(module: nn.Module) -> nn.Module:
    """Make every forward pass of a module a context of :func:`shared_filters`.

    For modules that apply a layer several times, such as a head to the maps of all
    levels. It costs nothing elsewhere, and the outputs and gradients stay the same.

    Args:
        module: It is changed in place; a second time changes nothing.

    Returns:
        The module.
    """
    if not hasattr(module, '_own_forward'):
        module._own_forward = module.forward
        # bound methods, which copies and pickles follow the module with
        sharing = _Sharing(module)
        module.forward = sharing.forward
        module._replicate_for_data_parallel = sharing.replicate
    return module


def share_filters_of_heads(model: nn.Module) -> None:
    """:func:`share_filters` for each head that sees the maps of several levels.

    They are known by ``forward_single``, MMDetection's name for what such a head
    does to one map.
    """
    for module in model.modules():
        if hasattr(module, 'forward_single'):
            share_filters(module)
