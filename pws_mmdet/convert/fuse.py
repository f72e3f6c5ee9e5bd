"""Convolutions that compute their filters into plain ones."""

import copy
import inspect
from typing import Any, TypeVar

import torch
from mmdet.models.dense_heads.tood_head import TaskDecomposition
from mmengine.model import is_model_wrapper
from torch import nn

from ..layers.observer import Observer
from ..layers.reparam_conv import ReparamConv2d

Network = TypeVar('Network', bound=nn.Module)
Convolution = TypeVar('Convolution', bound=nn.Conv2d)


def conv_like(
    conv: nn.Conv2d, of_type: type[Convolution] = nn.Conv2d, **options: Any
) -> Convolution:
    """A convolution of another type, of the same geometry, device and dtype.

    Args:
        conv: The convolution.
        of_type: Takes the arguments of ``nn.Conv2d``.
        **options: More of its arguments.
    """
    options.setdefault('device', conv.weight.device)
    return of_type(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        conv.stride,
        conv.padding,
        conv.dilation,
        conv.groups,
        padding_mode=conv.padding_mode,
        dtype=conv.weight.dtype,
        **options,
    )


def read_past(model: nn.Module) -> set[nn.Module]:
    """The convolutions whose weight a network reads itself, and does not call them.

    In MMDetection TOODHead does so.
    """
    return {
        module.reduction_conv.conv
        for module in model.modules()
        if isinstance(module, TaskDecomposition)
    }


def own_forward(conv: ReparamConv2d) -> str | None:
    """Tell that a subclass or the layer itself computes something of its own.

    Returns:
        Which method is not the usual one; None if there is none. Filters of its own
        do not count.
    """
    for name, usual in (
        ('forward', ReparamConv2d.forward),
        ('_conv_forward', nn.Conv2d._conv_forward),
        ('__call__', nn.Module.__call__),
    ):
        ours = vars(conv).get(name, getattr(type(conv), name))
        while hasattr(ours, '_torchdynamo_orig_callable'):  # compiled
            ours = ours._torchdynamo_orig_callable
        is_usual = getattr(ours, '__func__', ours) is usual
        if not is_usual or getattr(ours, '__self__', conv) is not conv:
            return f'a {name} of its own'
    return None


def what_it_does_besides(conv: ReparamConv2d) -> str | None:
    """Tell what keeps a layer from being replaced by a plain convolution.

    Returns:
        That it has a forward pass of its own, or hooks around it, either of which may
        change what it computes; None if it is no more than a convolution. Filters of
        its own, pruning and the parametrizations of torch do not count.
    """
    if reason := own_forward(conv):
        return reason
    pre_hooks = [h for h in conv._forward_pre_hooks.values() if not _makes_parameter(h)]
    hooks = [h for h in conv._forward_hooks.values() if not isinstance(h, Observer)]
    if pre_hooks or hooks:
        return 'a forward hook'
    if conv._backward_hooks or conv._backward_pre_hooks:
        return 'a backward hook'
    return None


def _makes_parameter(hook: Any) -> bool:
    """Whether it is a hook of torch.nn.utils.prune or weight_norm."""
    return hasattr(hook, 'apply_mask') or hasattr(hook, 'compute_weight')


@torch.no_grad()
def to_conv2d(conv: ReparamConv2d, keep_weight: bool = False) -> nn.Conv2d:
    """The plain convolution that computes what a PWS (or WN) convolution does.

    Args:
        conv: Its filters, with alpha, and its beta become weight and bias, of the
            same dtype, on the same device.
        keep_weight: Its weight becomes the weight as it is, instead.

    Returns:
        An ``nn.Conv2d`` without a gradient history. Its weight requires a gradient
        if one of W and alpha does, its bias if beta does. Hooks are not taken over;
        :func:`what_it_does_besides` tells of them.

    Raises:
        TypeError: If its forward pass is not the usual one, see :func:`own_forward`.
    """
    if reason := own_forward(conv):
        raise TypeError(
            f'a {type(conv).__name__} with {reason} is no plain convolution'
        )
    for hook in conv._forward_pre_hooks.values():
        if _makes_parameter(hook):
            # Until then, the parameter is that of the last forward pass.
            hook(conv, ())
    # on the meta device no random numbers are drawn
    plain = conv_like(conv, bias=conv.bias is not None, device='meta')
    # bias_orig, where it is pruned
    trained = [name for name, p in conv.named_parameters() if p.requires_grad]
    filters = torch.empty_like(conv.weight)  # channels_last, if it is
    filters.copy_(conv.weight if keep_weight else conv.standardized_weight())
    plain.weight = nn.Parameter(filters, any('bias' not in name for name in trained))
    if conv.bias is not None:
        bias = conv.expanded_bias().clone()
        plain.bias = nn.Parameter(bias, any('bias' in name for name in trained))
    return plain.train(conv.training)


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
