"""Turn PWS and other weight-standardized convolutions into plain ones."""

import copy
import inspect
from typing import Any, TypeVar

import torch
from mmcv.cnn.bricks.conv_ws import ConvAWS2d, ConvWS2d
from mmdet.models.dense_heads.tood_head import TaskDecomposition
from torch import Tensor, nn

from ..layers.observer import Observer
from ..layers.reparam_conv import (
    ReparamConv2d,
    conv_like,
    makes_parameter,
    own_forward,
)
from ..layers.standardize import standardize_as_mmcv
from ..utils.model import unwrap_model

Network = TypeVar('Network', bound=nn.Module)


def convs_read_directly(model: nn.Module) -> set[nn.Module]:
    """Find the convolutions whose weight a network reads without calling the layer.

    In MMDetection TOODHead does so.
    """
    return {
        module.reduction_conv.conv
        for module in model.modules()
        if isinstance(module, TaskDecomposition)
    }


def reason_against_fusing(conv: ReparamConv2d) -> str | None:
    """Tell why a plain convolution cannot replace a layer.

    Pruning, torch's parametrizations and filters of its own are no reason.

    Returns:
        The reason: the layer has its own forward pass, or hooks, which may change what
        it computes. None if it only convolves.
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


def computed_filters(conv: nn.Conv2d) -> Tensor:
    """Return the filters that a PWS, WN, ConvWS or ConvAWS convolution computes.

    Raises:
        TypeError: If it is of another class, which may compute something else.
    """
    is_usual = type(conv).forward is ReparamConv2d.forward
    if isinstance(conv, ReparamConv2d) and is_usual:
        return conv.effective_weight()
    if type(conv) is ConvAWS2d:
        return conv._get_weight(conv.weight)
    if type(conv) is ConvWS2d:
        return standardize_as_mmcv(conv.weight, conv.eps)
    raise TypeError(f'BN cannot be folded into a {type(conv).__name__}')


@torch.no_grad()
def plain_like(conv: nn.Conv2d) -> nn.Conv2d:
    """Return the plain convolution that a PWS, WN, ConvWS or ConvAWS one computes.

    Raises:
        TypeError: If it is of another class.
    """
    if isinstance(conv, ReparamConv2d):
        return to_conv2d(conv)
    plain = conv_like(conv, bias=conv.bias is not None)
    plain.weight.copy_(computed_filters(conv))
    if conv.bias is not None:
        plain.bias.copy_(conv.bias)
    return plain.train(conv.training)


@torch.no_grad()
def to_conv2d(conv: ReparamConv2d, keep_weight: bool = False) -> nn.Conv2d:
    """Return the plain convolution that computes the same as a PWS (or WN) one.

    Args:
        conv: The convolution. Its hooks are dropped. ``reason_against_fusing``
            tells whether they matter.
        keep_weight: Copy ``conv.weight`` itself, not the filters computed from it.

    Raises:
        TypeError: If its forward pass is not the usual one, see ``own_forward``.
    """
    plain = conv.fuse()
    if keep_weight:
        plain.weight.copy_(conv.weight)
    return plain


def _uncompiled(value: Any, memo: dict[int, Any]) -> Any:
    """Bind a compiled method of a copied network to the copy, uncompiled."""
    if not hasattr(value, '_torchdynamo_orig_callable'):
        return value
    method = inspect.unwrap(value)
    return copy.deepcopy(method, memo) if inspect.ismethod(method) else value


def _check_only_convolves(model: nn.Module, reasons: dict[str, str]) -> None:
    if reasons:
        name, reason = next(iter(reasons.items()))
        more = f', and {len(reasons) - 1} more such layers' if len(reasons) > 1 else ''
        raise ValueError(
            f'{name or type(model).__name__} has {reason}{more}, which a plain '
            'convolution in its place would drop. Remove it, or leave such layers as '
            'they are: fuse_pws(model, strict=False)'
        )


def fuse_pws(
    model: Network, inplace: bool = False, strict: bool = True
) -> Network | nn.Conv2d:
    """Replace all PWS (and WN) convolutions of a network by plain ones.

    The result computes the same, in the time that plain convolutions take. It shares no
    weights with the model. Modules that are shared in the model are shared in the
    result.

    Args:
        model: Any module. A wrapper for training (DDP) is removed. An averaged model
            (EMA) stays one.
        inplace: Replace the layers in ``model`` itself. An optimizer that was built
            before then has parameters that the model does not use any more.
        strict: Raise an error if a layer does more than a convolution: if it or its
            subclass has its own ``forward``, or it has hooks. False leaves such layers
            as they are.

    Returns:
        The network. Without ``inplace`` it is a deep copy, whose methods are not
        compiled.

    Raises:
        ValueError: If ``strict``, and a layer does more than a convolution.
    """
    model = unwrap_model(model, keep_tta=True)
    convs = {n: m for n, m in model.named_modules() if isinstance(m, ReparamConv2d)}
    reasons = {
        name: reason
        for name, conv in convs.items()
        if (reason := reason_against_fusing(conv))
    }
    if strict:
        _check_only_convolves(model, reasons)
    read_directly = convs_read_directly(model)
    plain = {
        id(conv): to_conv2d(conv, keep_weight=conv in read_directly)
        for name, conv in convs.items()
        if name not in reasons
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
            # A compiled module calls the layer it was given until its state is set.
            module.__setstate__(module.__getstate__())
    return model
