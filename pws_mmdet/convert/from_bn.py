"""Networks with batch normalization, and plain ones, into norm-free ones."""

import copy
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from mmcv.cnn.bricks.wrappers import Conv2d as MMCVConv2d
from mmengine.model import is_model_wrapper
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..layers import PWSConv2d
from ..layers.reparam_conv import ReparamConv2d
from .calibrate import ConvertedLayer, Layer, center_network, run_model
from .equalize import MAX_SCALE
from .fuse import conv_like

# These heads see a network's proposals: the converted network has others.
UNALIGNED = (r'(^|\.)roi_head\.',)


def fold_bn(
    weight: Tensor, bias: Tensor | None, bn: Mapping[str, Tensor], eps: float = 1e-5
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A convolution with the BN that follows it.

    Args:
        weight: Shape (O, ...).
        bias: Shape (O,) or None.
        bn: BN's ``running_mean`` and ``running_var`` and, if it has them, its
            ``weight`` and ``bias``, each (O,).
        eps: BN's.

    Returns:
        Filters, bias, and the mean and standard deviation of what the filters put
        out, in fp64.
    """
    std = (bn['running_var'].double() + eps).sqrt()
    gain = 1 / std
    if bn.get('weight') is not None:
        gain = gain * bn['weight'].double()
    mean = bn['running_mean'].double()
    if bias is not None:
        mean = mean - bias.double()
    mean = mean * gain
    folded = -mean
    if bn.get('bias') is not None:
        folded = folded + bn['bias'].double()
    std = std * gain.abs()
    gain = gain.reshape(-1, *[1] * (weight.dim() - 1))
    return weight.double() * gain, folded, mean, std


@torch.no_grad()
def set_filters(conv: PWSConv2d, filters: Tensor, bias: Tensor) -> None:
    """Make a PWS convolution compute what given filters do.

    W gets He variance, 2 / n, so that gamma and the learning rate mean what they
    mean for a network that starts from scratch, and alpha what the filters need for
    that, exactly.

    Args:
        conv: With an alpha per channel and with beta.
        filters: Of zero mean, (O, c_in / groups, k, k).
        bias: (O,).

    Raises:
        ValueError: If the layer's alpha or beta cannot hold them.
    """
    if conv.alpha is None or conv.alpha.numel() != conv.out_channels:
        raise ValueError(
            f"alpha must be 'channel' to hold given filters, not {conv.alpha_mode!r}"
        )
    if conv.bias is None:
        raise ValueError('beta must be True to hold given filters')
    n = filters[0].numel()
    std = filters.flatten(1).std(1, correction=0)
    he = 2 / n
    alive = std > 0
    # a filter of zeros keeps the random W it has, with an alpha of 0
    w = filters * (he**0.5 / std.where(alive, 1)).reshape(-1, 1, 1, 1)
    keep = alive.reshape(-1, 1, 1, 1)
    conv.weight.copy_(torch.where(keep, w.to(conv.weight), conv.weight))
    gain = (he + conv.gamma) ** 0.5 / (he**0.5 if conv.scale else 1) / he**0.5
    conv.alpha.copy_(std * gain)
    conv.bias.copy_(bias)


def _is_plain_conv(module: nn.Module) -> bool:
    return type(module) in (nn.Conv2d, MMCVConv2d)


def _pairs(model: nn.Module) -> dict[str, list[str]]:
    """Names of the plain convolutions, and of the BN layers written after each."""
    names: dict[nn.Module, str] = {}
    pairs: dict[str, list[str]] = {}
    for prefix, parent in model.named_modules():
        last = None
        for name, child in parent._modules.items():
            if child is None:
                continue
            name = names.setdefault(child, f'{prefix}.{name}' if prefix else name)
            if _is_plain_conv(child):
                last = child
                pairs.setdefault(name, [])
            elif isinstance(child, _BatchNorm):
                if last is not None and child.num_features == last.out_channels:
                    bns = pairs[names[last]]
                    bns.extend([name] if name not in bns else [])
                last = None
            elif isinstance(child, nn.Conv2d) or any(child.children()):
                last = None
    return pairs


def _replace(model: nn.Module, name: str, new: nn.Module) -> None:
    """Replace a module everywhere where a network has it."""
    old = model.get_submodule(name)
    for module in list(model.modules()):
        for key, child in module._modules.items():
            if child is old:
                module._modules[key] = new


def _plain_conv(conv: nn.Conv2d, weight: Tensor, bias: Tensor | None) -> nn.Conv2d:
    new = copy.deepcopy(conv)
    new.weight.copy_(weight)
    if bias is None:
        bias = weight.new_zeros(len(weight))
    new.bias = nn.Parameter(bias.to(conv.weight), conv.weight.requires_grad)
    return new


@torch.no_grad()
def fold_batch_norm(
    model: nn.Module, exclude: Sequence[str] = ()
) -> tuple[nn.Module, list[Layer]]:
    """A copy of a network whose BN layers are part of its convolutions.

    Args:
        model: The network.
        exclude: Regular expressions, searched in the names of convolutions that are
            not to be converted.

    Returns:
        The copy, in evaluation mode: its convolutions have a bias, and its BN layers
        that follow one are ``nn.Identity``; and its convolutions.
    """
    pairs = _pairs(model)
    model = copy.deepcopy(model)
    model.eval()
    layers = []
    for name, bns in pairs.items():
        conv = model.get_submodule(name)
        layer = Layer(name)
        layers.append(layer)
        if any(re.search(pattern, name) for pattern in exclude):
            layer.kept = 'excluded'
        if conv.weight[0].numel() < 2:
            layer.kept = 'its filters have a single weight, and no variance'
        if len(bns) > 1:
            layer.kept = f'its outputs go to {len(bns)} BN layers'
            continue
        weight, bias = conv.weight, conv.bias
        if bns:
            bn = model.get_submodule(bns[0])
            if bn.running_mean is None:
                layer.kept = 'its BN has no running statistics'
                continue
            state = {**dict(bn.named_parameters()), **dict(bn.named_buffers())}
            weight, bias, *moments = fold_bn(weight, bias, state, bn.eps)
            layer.mean, layer.std = moments
            _replace(model, bns[0], nn.Identity().eval())
        _replace(model, name, _plain_conv(conv, weight, bias))
    return model, layers


@torch.no_grad()
def convert_to_pws(
    model: nn.Module,
    calibration_batches: Iterable[Any] | None = None,
    exclude: Sequence[str] = (),
    *,
    gamma: float = 1e-4,
    relative_gamma: bool = False,
    forward: Callable[[nn.Module, Any], Any] = run_model,
    max_scale: float = MAX_SCALE,
    max_positions: int = 2**15,
    unaligned: Sequence[str] = UNALIGNED,
    seed: int = 0,
    progress: bool = True,
) -> tuple[nn.Module, list[ConvertedLayer]]:
    """Turn a trained network with BN, or without any norm, into one with PWS.

    Every pair of an ``nn.Conv2d`` and a BN layer, and every lone ``nn.Conv2d``,
    becomes a PWSConv2d, and the BN layers that were absorbed become ``nn.Identity``.
    PWS filters have zero mean, so a network cannot be converted exactly. With
    pictures, each layer's filters are fitted in the order of execution by least
    squares, from what the network converted so far feeds it to what the original
    layer put out. Without any, each filter loses its sum, and beta takes up what BN's
    statistics say that it contributed. Before either, the network's channels are
    scaled such that little is lost: see :mod:`pws_mmdet.convert.equalize`. What
    intermediate layers put out is therefore scaled, too.

    Args:
        model: The trained network. It is not changed.
        calibration_batches: Batches as ``forward`` takes them, of pictures as the
            network was trained on; some dozens of pictures will do. They are kept in
            memory. None converts without data, which loses much more.
        exclude: Regular expressions, searched in the names of convolutions that are
            to stay plain, with their BN in them.
        gamma, relative_gamma: As of :class:`PWSConv2d`. The outputs do not depend
            on them.
        forward: Calls a network with a batch. The default takes ``test_step`` of
            MMEngine's models and ``model(batch)`` of others.
        max_scale: Bound of the factors, and of their inverses, by which the channels
            of the network are scaled first. A larger one, such as 10, loses less if
            the network is not to be trained any more; if it is, it calls for a small
            learning rate. 1 scales nothing.
        max_positions: Output positions, at most, that a layer is fitted to.
        unaligned: Regular expressions for the names of layers whose inputs in the
            two networks do not correspond, as in heads that see proposals: the best
            zero-mean filters for the inputs that they get are taken.
        seed: Of the choice of positions.
        progress: Show a progress bar.

    Returns:
        The converted network in evaluation mode, in the precision and on the device
        of ``model``, and what became of each convolution, in the order of
        conversion. Parameters of frozen layers are frozen.

    Raises:
        ValueError: If there is nothing to convert, a weight is not finite,
            ``max_scale`` is below 1, or the pictures are none, or reach no layer.

    Source: no paper's; the network is approximated layer by layer.
    """
    while is_model_wrapper(model):
        model = model.module
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not value.isfinite().all():
            raise ValueError(f'The weight {name} has values that are not finite')
    if not max_scale >= 1:
        raise ValueError(f'max_scale must be 1 or more, got {max_scale}')
    if calibration_batches is not None:
        calibration_batches = list(calibration_batches)
        if not calibration_batches:
            raise ValueError('There are no calibration pictures: give some, or None')
    plain, layers = fold_batch_norm(model, exclude)
    if all(layer.kept for layer in layers):
        already = any(isinstance(m, ReparamConv2d) for m in model.modules())
        reasons = {layer.kept for layer in layers}
        raise ValueError(
            'There is nothing to convert: '
            + ('; '.join(sorted(reasons)) or 'the network has no nn.Conv2d')
            + (', but has PWS convolutions already' if already else '')
        )
    filters, report = center_network(
        plain,
        layers,
        calibration_batches,
        forward=forward,
        max_scale=max_scale,
        max_positions=max_positions,
        unaligned=unaligned,
        seed=seed,
        progress=progress,
    )
    for name, (weight, bias) in filters.items():
        conv = plain.get_submodule(name)
        pws = conv_like(conv, PWSConv2d, gamma=gamma, relative_gamma=relative_gamma)
        set_filters(pws, weight, bias)
        _replace(plain, name, pws.eval().requires_grad_(conv.weight.requires_grad))
    return plain, report
