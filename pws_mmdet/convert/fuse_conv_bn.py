"""Patch functions of other libraries that fold BN into a convolution.

These functions scale ``conv.weight``. A weight-standardized convolution standardizes
its weight afterwards, which removes the scale: the result would be wrong, without an
error. The patch gives the functions the equivalent plain convolution instead.
"""

import functools
import inspect
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from mmcv.cnn.bricks.conv_ws import ConvAWS2d, ConvWS2d
from torch import Tensor, fx, nn

from ..layers.reparam_conv import ReparamConv2d
from .fuse import computed_filters, plain_like

EFFICIENT = 'mmengine.model.efficient_conv_bn_eval'
# Functions that return the folded convolution. (The module of MMCV is imported by its
# name, because MMCV's package has a function of the same name, which hides it.)
FUSE = [
    ('mmcv.cnn.utils.fuse_conv_bn', '_fuse_conv_bn'),
    ('torch.nn.utils.fusion', 'fuse_conv_bn_eval'),
    ('torch.nn.utils', 'fuse_conv_bn_eval'),
]
# Functions that compute the output of a convolution and its BN.
EVALUATE = [
    ('mmcv.cnn.bricks.conv_module', 'efficient_conv_bn_eval_forward'),
    (EFFICIENT, 'efficient_conv_bn_eval_forward'),
    (EFFICIENT, 'efficient_conv_bn_eval_control'),
]


WEIGHT_STANDARDIZED = (ReparamConv2d, ConvWS2d, ConvAWS2d)


class _View:
    """A convolution whose ``weight`` holds its filters. Gradients flow to the layer."""

    def __init__(self, conv: nn.Conv2d) -> None:
        self.weight = computed_filters(conv)
        is_pws = isinstance(conv, ReparamConv2d)
        self.bias = conv.expanded_bias() if is_pws else conv.bias
        self._conv = conv

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self._conv._conv_forward(x, weight, bias)


def _translate(function: Callable, view: Callable[[nn.Conv2d], Any]) -> Callable:
    """Wrap a function, so that it gets ``view(conv)`` for its argument ``conv``."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def translated(*args: Any, **kwargs: Any) -> nn.Module | Tensor:
        call = signature.bind(*args, **kwargs)
        if isinstance(call.arguments['conv'], WEIGHT_STANDARDIZED):
            call.arguments['conv'] = view(call.arguments['conv'])
        return function(*call.args, **call.kwargs)

    vars(translated)['is_patched'] = True
    return translated


class _Tracer(fx.Tracer):
    """Traces weight-standardized convolutions as one node, as it does ``nn.Conv2d``."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        is_conv = isinstance(module, WEIGHT_STANDARDIZED)
        return is_conv or super().is_leaf_module(module, name)


def _turn_on_efficient_conv_bn_eval(model: nn.Module) -> None:
    """Replace MMEngine's function of this name: the same, with our tracer."""
    traced = fx.GraphModule(model, _Tracer().trace(model))
    import_module(EFFICIENT).efficient_conv_bn_eval_graph_transform(traced)
    model.forward = traced.forward


class Patch:
    """Functions that were replaced. ``undo()`` puts them back.

    As a context manager, it puts them back at the end of the context.
    """

    def __init__(self) -> None:
        self._originals: list[tuple[Any, str, Any]] = []

    def replace(self, owner: Any, name: str, value: Any) -> None:
        """Replace an attribute of a module, and remember the original.

        Args:
            owner: The module.
            name: Name of the attribute.
            value: The new value.
        """
        self._originals.append((owner, name, vars(owner)[name]))
        setattr(owner, name, value)

    def undo(self) -> None:
        """Put all originals back."""
        while self._originals:
            setattr(*self._originals.pop())

    def __enter__(self) -> 'Patch':
        return self

    def __exit__(self, *_: Any) -> None:
        self.undo()


def patch_fuse_conv_bn() -> Patch:
    """Make functions that fold BN correct for weight-standardized convolutions.

    These are PWS, WN, and MMCV's ConvWS and ConvAWS. Without the patch the functions
    scale ``conv.weight``, which the layer standardizes, so that the result is wrong
    without an error. The patch replaces ``fuse_conv_bn`` of MMCV, ``fuse_conv_bn_eval``
    of torch, and ``efficient_conv_bn_eval`` of MMCV and MMEngine for the whole process,
    until it is undone. ``PWSRunner`` applies it while it runs. A layer after
    ``switch_to_deploy()`` does not need it.

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
                continue  # an older version does not have it
            if not hasattr(function, 'is_patched'):
                patch.replace(module, name, _translate(function, view))
    if find_spec(EFFICIENT):
        name = 'turn_on_efficient_conv_bn_eval_for_single_model'
        patch.replace(import_module(EFFICIENT), name, _turn_on_efficient_conv_bn_eval)
    return patch
