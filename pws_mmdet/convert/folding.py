"""Functions of the host libraries that read a convolution's weights past it.

To fold a BN layer into a convolution they scale its ``weight``, which
standardization undoes without a word. They are given the plain convolution instead.
"""

import functools
import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Any

from torch import Tensor, nn

from ..layers.reparam_conv import ReparamConv2d
from .fuse import to_conv2d

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
    ('mmengine.model.efficient_conv_bn_eval', 'efficient_conv_bn_eval_forward'),
    ('mmengine.model.efficient_conv_bn_eval', 'efficient_conv_bn_eval_control'),
]


class _View:
    """A PWS convolution by its filters, through which gradients flow."""

    def __init__(self, conv: ReparamConv2d) -> None:
        self.weight = conv.standardized_weight()
        self.bias = conv.expanded_bias()
        self._conv = conv

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self._conv._conv_forward(x, weight, bias)


def _translate(function: Callable, view: Callable[[ReparamConv2d], Any]) -> Callable:
    signature = inspect.signature(function)

    @functools.wraps(function)
    def translated(*args: Any, **kwargs: Any) -> nn.Module | Tensor:
        call = signature.bind(*args, **kwargs)
        if isinstance(call.arguments['conv'], ReparamConv2d):
            call.arguments['conv'] = view(call.arguments['conv'])
        return function(*call.args, **call.kwargs)

    return translated


def fold_into_plain_convolutions() -> None:
    """Let the host libraries fold BN into PWS convolutions, and get it right."""
    for functions, view in ((FUSE, to_conv2d), (EVALUATE, _View)):
        for module_name, name in functions:
            try:
                module = import_module(module_name)
                function = getattr(module, name)
            except (ImportError, AttributeError):
                continue  # an older version, without it
            setattr(module, name, _translate(function, view))
