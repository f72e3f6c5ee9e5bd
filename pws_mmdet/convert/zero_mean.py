"""Find zero-mean filters without images, from the running statistics of BN."""

import functools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from .equalize import (
    ChannelFinder,
    Channels,
    Reader,
    least_used_direction,
    scale_channels,
)
from .forward import Forward, noise_for
from .layer import Filters, Layer

# Sums of weights that are smaller than this, as a fraction of the sum of their absolute
# values, are rounding errors of zero.
ROUNDING = 2e-6


def sums_of(
    weight: Tensor, axes: tuple[int, ...], rounding: float = ROUNDING
) -> Tensor:
    """Sum weights, with exact zeros in place of sums that are rounding errors."""
    total = weight.sum(axes)
    return total.where(total.abs() > rounding * weight.abs().sum(axes), 0)


def mean_of_inputs(
    weight: Tensor,
    mean_of_outputs: Tensor,
    guess: Tensor | None = None,
    rounding: float = ROUNDING,
) -> Tensor:
    """Estimate the mean of each input channel of a convolution.

    The mean of an output is the sum over the filter of weight times mean of the input.
    Each filter of the group gives one such equation. If the equations have several
    solutions, the one nearest to ``guess`` is taken.

    Args:
        weight: Filters of one group, (O, c_in, k, k), fp64.
        mean_of_outputs: Means of the outputs without the bias, (O,), fp64.
        guess: First guess of the means, (c_in,). By default all channels have the
            same mean, or the mean zero if all filters sum to zero.
        rounding: Smaller sums of weights, relative to those of absolute values, count
            as zero. Filters that sum to zero tell nothing of the mean.

    Returns:
        The means, (c_in,).
    """
    a = sums_of(weight, (2, 3), rounding)
    if guess is None:
        ones = sums_of(weight, (1, 2, 3), rounding)
        equal = (ones @ mean_of_outputs) / ones.square().sum().clamp(min=1e-30)
        guess = equal.expand(a.shape[1])
    # The means of the outputs are estimates, so the equations are solved with a ridge.
    ridge = 1e-3 * a.square().sum(1).mean().clamp(min=1e-30)
    gram = a @ a.T + ridge * torch.eye(len(a), dtype=a.dtype, device=a.device)
    return guess + a.T @ torch.linalg.solve(gram, mean_of_outputs - a @ guess)


def center_filters(
    weight: Tensor,
    bias: Tensor,
    mean_of_outputs: Tensor | None = None,
    groups: int = 1,
    inputs: tuple[Tensor, Tensor] | None = None,
) -> Filters:
    """Make the filters of a convolution zero-mean, without data.

    The sum of each filter is subtracted from its weights. If the variances of the
    inputs are known, weights of inputs with a small variance take more of it. The bias
    gains the mean of what the subtracted part contributed.

    Args:
        weight: Filters, (O, c_in / groups, k, k).
        bias: Bias, (O,).
        mean_of_outputs: Means of the outputs without the bias, (O,). Without them the
            bias stays as it is.
        groups: Groups of the convolution.
        inputs: Estimates of the means and the variances of the inputs, (c_in,) each.

    Returns:
        Filters and bias in fp64.
    """
    rounding = max(ROUNDING, torch.finfo(weight.dtype).eps / 2)
    weight, bias = weight.double(), bias.double()
    parts = weight.chunk(groups)
    guesses: Sequence[Tensor | None]
    if inputs is None:
        guesses, shares = [None] * groups, [torch.ones_like(w[0]) for w in parts]
    else:
        guesses = inputs[0].chunk(groups)
        shares = [
            (1 / v).reshape(-1, 1, 1).expand_as(parts[0][0])
            for v in inputs[1].chunk(groups)
        ]
    lost = [
        w.sum((1, 2, 3)).reshape(-1, 1, 1, 1) * share / share.sum()
        for w, share in zip(parts, shares, strict=True)
    ]
    if mean_of_outputs is not None:
        means = mean_of_outputs.double().chunk(groups)
        found = zip(lost, parts, means, guesses, strict=True)
        gain = [
            part.sum((2, 3)) @ mean_of_inputs(w, m, g, rounding)
            for part, w, m, g in found
        ]
        bias = bias + torch.cat(gain)
    return weight - torch.cat(lost), bias


def relu_moments(mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance of ReLU(x) for Gaussian x, in the shape of ``mean``."""
    normal = torch.distributions.Normal(0.0, 1.0)
    z = mean / std.clamp(min=1e-30)
    passed, density = normal.cdf(z), normal.log_prob(z).exp()
    first = mean * passed + std * density
    second = (mean.square() + std.square()) * passed + mean * std * density
    return first, (second - first.square()).clamp(min=0)


def _readers(model: nn.Module, channels: Channels, variance: Tensor) -> list[Reader]:
    """Describe the convolutions that read some channels, one entry for each group."""
    readers = []
    for name in channels.consumers:
        conv = model.get_submodule(name)
        weight = conv.weight.double().unflatten(0, (conv.groups, -1))
        variances = variance.chunk(conv.groups)
        for g, (w, v) in enumerate(zip(weight, variances, strict=True)):
            readers.append(
                Reader(
                    slice(g * len(v), (g + 1) * len(v)),
                    w.flatten(2).sum(2).T,
                    torch.diag(w[0, 0].numel() / v),
                    (w.square().sum((0, 2, 3)) @ v).item() + 1e-30,
                )
            )
    return readers


@torch.no_grad()
def equalize_by_statistics(
    model: nn.Module,
    layers: Mapping[str, Layer],
    forward: Forward,
    max_scale: float,
) -> dict[str, tuple[Tensor, Tensor]]:
    """Scale the channels of a network in place, using BN's statistics only.

    Channels are treated as independent Gaussians that pass a ReLU. Which channels can
    be scaled is tested on an image of noise. If the network raises an error on noise,
    nothing is scaled.

    Args:
        model: A network of plain convolutions with a bias, in evaluation mode.
        layers: The layers whose channels may be scaled, by name. Their ``mean`` and
            ``std`` are scaled, too.
        forward: Calls the network with an image.
        max_scale: Bound of the scales.

    Returns:
        For each layer that reads such channels, the means and the variances of its
        inputs, (c_in,) each.
    """
    names = [name for name, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    try:
        groups = ChannelFinder(model, names, forward, noise_for(model)).find()
    except Exception:  # a network that needs other inputs may raise anything
        return {}
    inputs = {}
    for channels in groups:
        if not {*channels.producers, *channels.consumers} <= layers.keys():
            continue
        makers = [layers[name] for name in channels.producers]
        stds = [layer.std for layer in makers if layer.std is not None]
        if len(stds) < len(makers):
            continue
        mean = sum(
            layer.mean + model.get_submodule(layer.name).bias for layer in makers
        )
        std = functools.reduce(torch.add, [std.square() for std in stds]).sqrt()
        mean, variance = relu_moments(mean, std)
        variance = variance.clamp(min=1e-4 * variance.mean().item() + 1e-30)
        u = least_used_direction(_readers(model, channels, variance), max_scale)
        scale_channels(model, channels, 1 / u)
        for layer in makers:
            layer.divide(u)
        for name in channels.consumers:
            inputs[name] = mean / u, variance / u.square()
    return inputs
