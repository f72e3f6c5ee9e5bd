"""Subclasses of ``nn.Conv2d`` that only convolve, such as those that pad their inputs.

timm's Conv2dSame, MMCV's Conv2dAdaptivePadding and others pad as TensorFlow does. No
list of classes could be complete, so each layer is tried on random inputs and weights.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ..layers.reparam_conv import ReparamConv2d


@torch.no_grad()
def only_convolves(conv: nn.Module) -> bool:
    """Tell whether a layer convolves its input, padded in some way, with its weight.

    BN can then be folded into its weight and bias, and its channels can be scaled.
    """
    probe = _probe_of(conv)
    if probe is None:
        return False
    outputs, width = probe.out_channels, probe.in_channels
    gain, shift = _random(2, outputs)  # negative ones, too
    scale = 0.5 + _random(width).abs()
    try:
        for x in _inputs_for(probe):
            y = probe(x)
            other = copy.deepcopy(probe)
            of_group = scale.reshape(probe.groups, 1, -1, 1, 1)
            weight = probe.weight.unflatten(0, (probe.groups, -1)) / of_group.to(x)
            gains = gain.to(x).view(-1, 1, 1, 1)
            other.weight.copy_(weight.flatten(0, 1) * gains)
            other.get_parameter('bias').mul_(gain.to(x)).add_(shift.to(x))
            made = other(x * scale.to(x).view(-1, 1, 1))
            expected = y * gains[:, 0] + shift.to(x).view(-1, 1, 1)
            if not _same(made, expected):
                return False
    except Exception:  # a layer that takes other inputs may raise anything
        return False
    return True


@torch.no_grad()
def plain_equivalent(conv: nn.Module) -> nn.Conv2d | None:
    """Find the ``nn.Conv2d`` that computes the same as a layer of a subclass.

    Its padding is that of the layer, or the one that keeps the size of the image.

    Args:
        conv: Any layer.

    Returns:
        A layer with the same parameters. None if there is none, or if the layer has
        hooks, which would get lost.
    """
    probe = _probe_of(conv)
    if probe is None or not isinstance(conv, nn.Conv2d) or _has_hooks(conv):
        return None
    same = tuple(
        d * (k - 1) // 2 for d, k in zip(conv.dilation, conv.kernel_size, strict=True)
    )
    for padding in (conv.padding, same):
        arguments: Any = (
            *(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride),
            *(padding, conv.dilation, conv.groups, True, conv.padding_mode, 'meta'),
        )
        plain = nn.Conv2d(*arguments)
        plain.weight, plain.bias = probe.weight, probe.bias
        try:
            same_outputs = all(_same(probe(x), plain(x)) for x in _inputs_for(probe))
        except Exception:  # a layer that takes other inputs may raise anything
            return None
        if same_outputs:
            plain.weight, plain.bias = conv.weight, conv.bias
            return plain.train(conv.training)
    return None


def _probe_of(conv: nn.Module) -> nn.Conv2d | None:
    """Copy a layer, in fp64 and evaluation mode, with random weights and a bias.

    Returns:
        None for a layer that cannot be tried, and for those that are known to compute
        their filters.
    """
    computed = isinstance(conv, ReparamConv2d) or 'weight' not in conv._parameters
    if computed or not isinstance(conv, nn.Conv2d):
        return None
    try:
        probe = copy.deepcopy(conv).double().eval()
        probe.weight.copy_(_random(*probe.weight.shape))
        bias = _random(probe.out_channels).to(probe.weight)
        probe.bias = nn.Parameter(bias)
    except Exception:  # such as a layer without weights yet
        return None
    return probe


def _inputs_for(conv: nn.Conv2d) -> list[Tensor]:
    """Return images, (1, c_in, H, W), of all sizes that padding may depend on."""
    high, wide = (
        d * (k - 1) + 1 for d, k in zip(conv.dilation, conv.kernel_size, strict=True)
    )
    sizes = [(high + i, wide + i + 1) for i in range(max(conv.stride) + 1)]
    return [_random(1, conv.in_channels, *size).to(conv.weight) for size in sizes]


def _random(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-6, atol=1e-6)


def _has_hooks(module: nn.Module) -> bool:
    return any(
        (
            module._forward_hooks,
            module._forward_pre_hooks,
            module._backward_hooks,
            module._backward_pre_hooks,
        )
    )
