"""Functions of the host libraries that read a convolution's weights past it.

To fold a BN layer into a convolution they scale its ``weight``, which
standardization undoes without a word. They are given the plain convolution instead.
"""

import functools
import inspect
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from mmcv.cnn.bricks.conv_ws import ConvAWS2d, ConvWS2d
from torch import Tensor, fx, nn

from ..layers.reparam_conv import ReparamConv2d, conv_like
from ..layers.standardize import standardize_as_mmcv
from .fuse import to_conv2d

EFFICIENT = 'mmengine.model.efficient_conv_bn_eval'
# They return the convolution with BN in it. (MMCV's package holds a function of the
# same name as the module, and so hides the module from getattr.)
FUSE = [
    ('mmcv.cnn.utils.fuse_conv_bn', '_fuse_conv_bn'),
    ('torch.nn.utils.fusion', 'fuse_conv_bn_eval'),
    ('torch.nn.utils', 'fuse_conv_bn_eval'),
]
# They compute the output of both.
EVALUATE = [
    ('mmcv.cnn.bricks.conv_module', 'efficient_conv_bn_eval_forward'),
    (EFFICIENT, 'efficient_conv_bn_eval_forward'),
    (EFFICIENT, 'efficient_conv_bn_eval_control'),
]


WEIGHT_STANDARDIZED = (ReparamConv2d, ConvWS2d, ConvAWS2d)


def _filters_of(conv: nn.Conv2d) -> Tensor:
    """The filters that a convolution computes from its weight.

    Raises:
        TypeError: If it is of a subclass that computes something else with them.
    """
    is_usual = type(conv).forward is ReparamConv2d.forward
    if isinstance(conv, ReparamConv2d) and is_usual:
        return conv.effective_weight()
    if type(conv) is ConvAWS2d:
        return conv._get_weight(conv.weight)
    if type(conv) is ConvWS2d:
        return standardize_as_mmcv(conv.weight, conv.eps)
    raise TypeError(f'BN cannot be folded into a {type(conv).__name__}')


class _View:
    """A convolution by its filters, through which gradients flow."""

    def __init__(self, conv: nn.Conv2d) -> None:
        self.weight = _filters_of(conv)
        is_pws = isinstance(conv, ReparamConv2d)
        self.bias = conv.expanded_bias() if is_pws else conv.bias
        self._conv = conv

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self._conv._conv_forward(x, weight, bias)


@torch.no_grad()
def plain_like(conv: nn.Conv2d) -> nn.Conv2d:
    """The plain convolution that a PWS, WN, ConvWS or ConvAWS one computes.

    Raises:
        TypeError: If it is another subclass.
    """
    if isinstance(conv, ReparamConv2d):
        return to_conv2d(conv)
    plain = conv_like(conv, bias=conv.bias is not None)
    plain.weight.copy_(_filters_of(conv))
    if conv.bias is not None:
        plain.bias.copy_(conv.bias)
    return plain.train(conv.training)


def _translate(function: Callable, view: Callable[[nn.Conv2d], Any]) -> Callable:
    signature = inspect.signature(function)

    @functools.wraps(function)
    def translated(*args: Any, **kwargs: Any) -> nn.Module | Tensor:
        call = signature.bind(*args, **kwargs)
        if isinstance(call.arguments['conv'], WEIGHT_STANDARDIZED):
            call.arguments['conv'] = view(call.arguments['conv'])
        return function(*call.args, **call.kwargs)

    translated.is_patched = True
    return translated


class _Tracer(fx.Tracer):
    """Does not look into convolutions, so that they are found before BN layers."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        is_conv = isinstance(module, WEIGHT_STANDARDIZED)
        return is_conv or super().is_leaf_module(module, name)


def _turn_on_efficient_conv_bn_eval(model: nn.Module) -> None:
    """MMEngine's function of this name, with our tracer."""
    traced = fx.GraphModule(model, _Tracer().trace(model))
    import_module(EFFICIENT).efficient_conv_bn_eval_graph_transform(traced)
    model.forward = traced.forward


class Patch:
    """Functions of the host libraries that were replaced; a context manager.

    ``undo()``, and leaving the context, puts them back.
    """

    def __init__(self) -> None:
        self._originals: list[tuple[Any, str, Any]] = []

    def replace(self, owner: Any, name: str, value: Any) -> None:
        self._originals.append((owner, name, vars(owner)[name]))
        setattr(owner, name, value)

    def undo(self) -> None:
        while self._originals:
            setattr(*self._originals.pop())

    def __enter__(self) -> 'Patch':
        return self

    def __exit__(self, *_: Any) -> None:
        self.undo()


def patch_fuse_conv_bn() -> Patch:
    """Let the host libraries fold BN into convolutions, and get it right.

    That is, into PWS, WN and MMCV's ConvWS and ConvAWS, whose ``weight`` they scale
    though the layer standardizes it: the numbers would be wrong without a word. This
    replaces ``fuse_conv_bn`` of MMCV, ``fuse_conv_bn_eval`` of torch, and
    ``efficient_conv_bn_eval`` of MMCV and MMEngine for the whole process, until it is
    undone. :class:`PWSRunner` does so while it runs. Layers of which
    ``switch_to_deploy()`` was called do not need it.

    Returns:
        A handle with ``undo()``, which is also a context manager.
    """
    patch = Patch()
    for functions, view in ((FUSE, plain_like), (EVALUATE, _View)):
        for module_name, name in functions:
            try:
                module = import_module(module_name)
                function = getattr(module, name)
            except (ImportError, AttributeError):
                continue  # an older version, without it
            if not hasattr(function, 'is_patched'):
                patch.replace(module, name, _translate(function, view))
    if find_spec(EFFICIENT):
        name = 'turn_on_efficient_conv_bn_eval_for_single_model'
        patch.replace(import_module(EFFICIENT), name, _turn_on_efficient_conv_bn_eval)
    return patch
