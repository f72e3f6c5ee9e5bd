"""The kinds of layers that a summary of a model counts."""

from collections.abc import Iterator

from mmcv.cnn import ConvAWS2d, ConvWS2d, is_norm
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized

from ..layers import NoNorm, PWSConv2d
from ..layers.reparam_conv import ReparamConv2d

PWS = 'PWS convolutions'
REPARAMETRIZED = 'other reparametrized convolutions'
PLAIN = 'plain convolutions'
LINEAR = 'linear layers'
NORM = 'layers that normalize'
REST = 'the rest'
KINDS = (PWS, REPARAMETRIZED, PLAIN, LINEAR, NORM, REST)


def find_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules that hold parameters of their own, or normalize, by name.

    A module that computes the weight of a layer (torch's parametrizations) is a part
    of that layer, so it is left out.
    """
    inner = {
        part
        for module in model.modules()
        if isinstance(module, ParametrizationList)
        for part in module.modules()
    }
    return {
        name: module
        for name, module in model.named_modules()
        if module not in inner and kind_of(module) is not None
    }


def kind_of(module: nn.Module) -> str | None:
    """Return one of ``KINDS``, or None for a module that is no layer.

    A layer holds parameters of its own, or normalizes.
    """
    if isinstance(module, ReparamConv2d) and module.deployed:
        return PLAIN
    if isinstance(module, PWSConv2d):
        return PWS
    if isinstance(module, (ReparamConv2d, ConvWS2d, ConvAWS2d)):
        return REPARAMETRIZED
    if isinstance(module, _ConvNd):
        # torch's weight_norm and similar functions remove the parameter `weight`.
        return PLAIN if 'weight' in module._parameters else REPARAMETRIZED
    if isinstance(module, nn.Linear):
        return LINEAR
    holds_parameters = any(True for _ in module.parameters(recurse=False))
    if holds_parameters and hasattr(module, 'kernel_size'):
        return PLAIN  # a deformable convolution of mmcv
    is_leaf = not any(True for _ in module.children())
    is_named_norm = is_leaf and 'Norm' in type(module).__name__
    if is_norm(module) or (is_named_norm and not isinstance(module, NoNorm)):
        return NORM
    return REST if holds_parameters else None


def class_name(module: nn.Module) -> str:
    """Return the name of a layer's class.

    torch gives a parametrized layer a class of its own. The name is then that of the
    class which the layer had before.
    """
    bases = type(module).__mro__
    return bases[1 if is_parametrized(module) else 0].__name__


def parameters_of(layer: nn.Module) -> Iterator[nn.Parameter]:
    """Yield the parameters of a layer, those of its parametrizations included."""
    yield from layer.parameters(recurse=False)
    if is_parametrized(layer):
        yield from layer.parametrizations.parameters()
