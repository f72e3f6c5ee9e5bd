"""Name the layers of a network that a conversion passes over."""

from collections.abc import Collection

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from ..layers import PWSConv2d
from .batch_norm import is_plain_conv
from .layer import ConvertedLayer
from .subclasses import only_convolves


def other_convolutions(
    model: nn.Module, known: Collection[str]
) -> list[ConvertedLayer]:
    """Return a record of each convolution that a conversion passed over.

    Args:
        model: The converted network, or the one that takes converted weights.
        known: Names of the convolutions that are in the report already.

    Returns:
        Records with the reason.
    """
    return [
        ConvertedLayer(name, reason_to_stay(module))
        for name, module in model.named_modules()
        if name not in known and _is_conv(module) and not isinstance(module, PWSConv2d)
    ]


def remaining_norms(model: nn.Module) -> list[str]:
    """Return the layers that normalize, each as 'NAME (CLASS)'."""
    kinds = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm)
    return [
        f'{name} ({type(module).__name__})'
        for name, module in model.named_modules()
        if isinstance(module, kinds)
    ]


def _is_conv(module: nn.Module) -> bool:
    # By its attributes: deformable convolutions are no subclass of torch's.
    weight = getattr(module, 'weight', None)
    is_filter = isinstance(weight, Tensor) and weight.dim() >= 3
    return is_filter and hasattr(module, 'kernel_size')


def reason_to_stay(conv: nn.Module) -> str:
    """Tell why a convolution is not converted, and what to do about it."""
    kind = type(conv).__name__
    if is_plain_conv(conv):
        return 'it is a plain convolution in the network that takes the weights'
    if not isinstance(conv, nn.Conv2d):
        return f'it is a {kind}, and PWS can replace an nn.Conv2d only'
    if 'weight' not in conv._parameters:
        return (
            'its weight is computed in each forward pass: remove spectral norm, weight '
            'norm, pruning or the parametrization first'
        )
    if only_convolves(conv):
        return (
            f'it is a {kind}, which pads its inputs by itself: a padding layer and an '
            'nn.Conv2d in its place can be converted'
        )
    return (
        f'it is a {kind}, which computes something else than a convolution with its '
        'weight: put an nn.Conv2d in its place'
    )
