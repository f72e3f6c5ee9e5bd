"""Equation (12) of the paper: the only place that holds the formula."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .filter_kernel import can_use_kernel, standardize_by_kernel


def standardize_weight(
    weight: Tensor,
    alpha: Tensor | None = None,
    gamma: float = 1e-4,
    scale: bool = True,
    dtype: torch.dtype | None = None,
    mean: Tensor | None = None,
) -> Tensor:
    r"""Standardize every filter of a convolution.

    $$\alpha_o \hat W_o + \mu_o = \alpha_o \sqrt{2 / n}\,
    \frac{W_o - E[W_o]}{\sqrt{\mathrm{Var}[W_o] + \gamma}} + \mu_o$$

    with the biased variance and n the number of weights in one filter. The
    arithmetic is done in fp32 (fp64 for fp64 weights), also under autocast and
    for half-precision weights.

    Args:
        weight: Filters, shape (O, ...); n is the product of the other axes.
        alpha: Gain of each filter, shape (O,), or one gain for the layer,
            shape (1,). None is a gain of 1.
        gamma: Added to the variance of each filter, inside the root; > 0.
        scale: Multiply by sqrt(2 / n), which gives the filters He variance.
        dtype: Of the result; by default that of ``weight``.
        mean: Added to all weights of a filter, shape (O,). None is a mean of 0, as in
            the paper.

    Returns:
        The standardized filters, in the shape of ``weight``.

    Raises:
        ValueError: If a filter has a single weight (its variance is 0).

    Source: equation (12).
    """
    n = math.prod(weight.shape[1:])
    if n < 2:
        raise ValueError(
            'weight must have at least 2 values per filter to be standardized, '
            f'got the shape {tuple(weight.shape)}'
        )
    if can_use_kernel(weight, alpha):
        filters = standardize_by_kernel(
            weight, alpha, gamma, scale, dtype or weight.dtype, _by_group_norm
        )
        if mean is None:
            return filters
        return filters + mean.to(filters.dtype).reshape(-1, *[1] * (weight.dim() - 1))
    filters = _by_group_norm(weight, alpha, gamma, scale, mean)
    return filters if dtype is None else filters.to(dtype)


def _by_group_norm(
    weight: Tensor,
    alpha: Tensor | None,
    gamma: float,
    scale: bool,
    mean: Tensor | None = None,
) -> Tensor:
    out_channels = weight.shape[0]
    n = math.prod(weight.shape[1:])
    w = weight if weight.dtype == torch.float64 else weight.float()
    gain = w.new_ones(out_channels) if alpha is None else alpha.to(w.dtype)
    if scale:
        gain = gain * math.sqrt(2 / n)
    # Group norm of a batch of one "image" whose channels are the filters, with one
    # group for each filter, is exactly the formula. It runs in one fused kernel, and
    # so does its backward pass. Batch norm could do the same, but its kernel takes 2
    # to 4 times as long on a CPU.
    w = F.group_norm(
        w.reshape(1, out_channels, n),
        out_channels,
        gain.expand(out_channels),
        None if mean is None else mean.to(w.dtype),
        eps=gamma,
    )
    return w.view(weight.shape).to(weight.dtype)


def standardize_as_mmcv(weight: Tensor, eps: float = 1e-5) -> Tensor:
    """Compute the filters of MMCV's ConvWS2d, which has no gain.

    They differ from those of PWS: the variance is the unbiased one, it becomes 1, and
    eps is added to the standard deviation.

    Args:
        weight: Shape (O, ...).
        eps: As of ConvWS2d.

    Returns:
        The filters, in the shape and dtype of ``weight``.

    Source: mmcv.cnn.bricks.conv_ws.
    """
    flat = weight.flatten(1)
    centered = flat - flat.mean(1, keepdim=True)
    return (centered / (flat.std(1, keepdim=True) + eps)).view_as(weight)
