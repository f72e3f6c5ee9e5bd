"""Convolutions that compute their filters into plain ones."""

import copy
import inspect
from typing import Any, TypeVar

import torch
from mmdet.models.dense_heads.tood_head import TaskDecomposition
from mmengine.model import is_model_wrapper
from torch import nn

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


@torch.no_grad()
def to_conv2d(conv: ReparamConv2d, keep_weight: bool = False) -> nn.Conv2d:
    """The plain convolution that computes what a PWS (or WN) convolution does.

    Args:
        conv: Its filters, with alpha, and its beta become weight and bias, of the
            same dtype, on the same device.
        keep_weight: Its weight becomes the weight as it is, instead.

    Returns:
        An ``nn.Conv2d`` without a gradient history. Its weight requires a gradient
        if one of W and alpha does, its bias if beta does. Forward hooks are not
        taken over.
    """
    for hook in conv._forward_pre_hooks.values():
        if hasattr(hook, 'apply_mask') or hasattr(hook, 'compute_weight'):
            # torch.nn.utils.prune and weight_norm: until then, what they make of the
            # parameters is that of the last forward pass
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


def fuse_pws(model: Network, inplace: bool = False) -> Network | nn.Conv2d:
    """Make every PWS (and WN) convolution of a network a plain one.

    The result computes the same, at the cost of plain convolutions, and none of its
    weights follows the model's any more. Modules that are shared stay shared.

    Args:
        model: Any module. What wraps a network to train it (DDP) comes off; an
            averaged model (EMA) stays one.
        inplace: Replace the layers in ``model`` itself. An optimizer that was built
            before holds parameters that are then no longer the model's.

    Returns:
        The network; without ``inplace`` a deep copy of it, whose methods are not
        compiled any more.
    """
    while is_model_wrapper(model):
        model = model.module
    past = read_past(model)
    plain = {
        id(module): to_conv2d(module, keep_weight=module in past)
        for module in model.modules()
        if isinstance(module, ReparamConv2d)
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
