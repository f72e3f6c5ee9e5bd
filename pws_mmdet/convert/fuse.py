"""Convolutions that compute their filters into plain ones."""

import copy
import inspect
from typing import Any, TypeVar

import torch
from mmdet.models.dense_heads.tood_head import TaskDecomposition
from mmengine.model import is_model_wrapper
from torch import nn

from ..layers.observer import Observer
from ..layers.reparam_conv import ReparamConv2d, makes_parameter, own_forward

Network = TypeVar('Network', bound=nn.Module)


def read_past(model: nn.Module) -> set[nn.Module]:
    """The convolutions whose weight a network reads itself, and does not call them.

    In MMDetection TOODHead does so.
    """
    return {
        module.reduction_conv.conv
        for module in model.modules()
        if isinstance(module, TaskDecomposition)
    }


def what_it_does_besides(conv: ReparamConv2d) -> str | None:
    """Tell what keeps a layer from being replaced by a plain convolution.

    Returns:
        That it has a forward pass of its own, or hooks around it, either of which may
        change what it computes; None if it is no more than a convolution. Filters of
        its own, pruning and the parametrizations of torch do not count.
    """
    if reason := own_forward(conv):
        return reason
    pre_hooks = [h for h in conv._forward_pre_hooks.values() if not makes_parameter(h)]
    hooks = [h for h in conv._forward_hooks.values() if not isinstance(h, Observer)]
    if pre_hooks or hooks:
        return 'a forward hook'
    if conv._backward_hooks or conv._backward_pre_hooks:
        return 'a backward hook'
    return None


@torch.no_grad()
def to_conv2d(conv: ReparamConv2d, keep_weight: bool = False) -> nn.Conv2d:
    """The plain convolution that computes what a PWS (or WN) convolution does.

    Args:
        conv: See :meth:`ReparamConv2d.fuse`. Hooks are not taken over;
            :func:`what_it_does_besides` tells of them.
        keep_weight: Its weight becomes the weight as it is, instead of its filters.

    Raises:
        TypeError: If its forward pass is not the usual one, see :func:`own_forward`.
    """
    plain = conv.fuse()
    if keep_weight:
        plain.weight.copy_(conv.weight)
    return plain


def _uncompiled(value: Any, memo: dict[int, Any]) -> Any:
    """For a compiled method, of the network that was copied, the copy's own one."""
    if not hasattr(value, '_torchdynamo_orig_callable'):
        return value
    method = inspect.unwrap(value)
    return copy.deepcopy(method, memo) if inspect.ismethod(method) else value


def fuse_pws(
    model: Network, inplace: bool = False, strict: bool = True
) -> Network | nn.Conv2d:
    """Make every PWS (and WN) convolution of a network a plain one.

    The result computes the same, at the cost of plain convolutions, and none of its
    weights follows the model's any more. Modules that are shared stay shared.

    Args:
        model: Any module. What wraps a network to train it (DDP) comes off; an
            averaged model (EMA) stays one.
        inplace: Replace the layers in ``model`` itself. An optimizer that was built
            before holds parameters that are then no longer the model's.
        strict: Raise an error if a layer computes more than its convolution: if its
            subclass or the layer itself has a ``forward`` of its own, or it has
            hooks. False leaves such layers as they are.

    Returns:
        The network; without ``inplace`` a deep copy of it, whose methods are not
        compiled any more.

    Raises:
        ValueError: If ``strict``, and a layer computes more than its convolution.
    """
    while is_model_wrapper(model):
        model = model.module
    convs = {n: m for n, m in model.named_modules() if isinstance(m, ReparamConv2d)}
    besides = {name: what_it_does_besides(conv) for name, conv in convs.items()}
    besides = {name: reason for name, reason in besides.items() if reason}
    if besides and strict:
        name, reason = next(iter(besides.items()))
        more = f', and {len(besides) - 1} more such layers' if len(besides) > 1 else ''
        raise ValueError(
            f'{name or type(model).__name__} has {reason}{more}, which a plain '
            'convolution in its place would drop. Remove it, or leave such layers as '
            'they are: fuse_pws(model, strict=False)'
        )
    past = read_past(model)
    plain = {
        id(conv): to_conv2d(conv, keep_weight=conv in past)
        for name, conv in convs.items()
        if name not in besides
    }
    if id(model) in plain:
        return plain[id(model)]
    if not inplace:
        memo: dict[int, Any] = dict(plain)
        model = copy.deepcopy(model, memo)
        for module in model.modules():
            for name, value in vars(module).items():
                vars(module)[name] = _uncompiled(value, memo)
        return model
    for module in list(model.modules()):
        for name, child in module._modules.items():
            module._modules[name] = plain.get(id(child), child)
        if hasattr(module, '_orig_mod'):
            # torch.compile, which goes on to call the layer that it was given
            module.__setstate__(module.__getstate__())
    return model
