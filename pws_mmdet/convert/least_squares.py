"""Fit zero-mean filters to given outputs by least squares with a constraint."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..compat import unravel_index

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


def sample_patches(conv: nn.Conv2d, x: Tensor, index: Tensor) -> Tensor:
    """Return the input patches that a convolution multiplies with its filters.

    Args:
        conv: The convolution.
        x: Its input, (N, c_in, H, W).
        index: Output positions, (P,), as indices into the flattened (N, H', W').

    Returns:
        The patches at these positions, (P, groups, c_in / groups * k * k), in fp32,
        or in fp64 if the input is in fp64.
    """
    mode = 'constant' if conv.padding_mode == 'zeros' else conv.padding_mode
    x = F.pad(x, conv._reversed_padding_repeated_twice, mode)
    kernel, stride, dilation = conv.kernel_size, conv.stride, conv.dilation
    out = [
        (x.shape[2 + i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1
        for i in range(2)
    ]
    s = x.stride()
    patches = x.as_strided(
        (len(x), *out, x.shape[1], *kernel),
        (s[0], s[2] * stride[0], s[3] * stride[1], s[1])
        + (s[2] * dilation[0], s[3] * dilation[1]),
    )
    rows = patches[unravel_index(index, (len(x), *out))]
    rows = rows.reshape(len(index), conv.groups, -1)
    return rows if rows.dtype == torch.float64 else rows.float()


class Moments:
    """Running sums of patches X and wanted outputs Y, up to second order.

    The sums are in fp64. Products of patches are computed in the precision of the
    patches. Approximate means are subtracted first, so that large terms do not cancel.

    Args:
        x0: Approximate mean of X, (groups, n).
        y0: Approximate mean of Y, (groups, O / groups).
    """

    block = 4096  # patches that are multiplied at once

    def __init__(self, x0: Tensor, y0: Tensor) -> None:
        (g, n), o = x0.shape, y0.shape[1]
        zeros = functools.partial(torch.zeros, dtype=torch.float64, device=x0.device)
        self.x0, self.y0 = x0, y0
        self.count = 0
        self.x = zeros(g, n)
        self.y = zeros(g, o)
        self.xx = zeros(g, n, n)
        self.xy = zeros(g, n, o)
        self.yy = zeros(g, o)

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add patches (P, groups, n) and their wanted outputs (P, groups, O / groups).

        Args:
            x: The patches.
            y: The outputs.
        """
        x = (x - self.x0).transpose(0, 1)
        y = (y - self.y0).transpose(0, 1)
        for a, b in zip(x.split(self.block, 1), y.split(self.block, 1), strict=True):
            self.x += a.sum(1).double()
            self.y += b.sum(1).double()
            self.xx += a.transpose(1, 2) @ a
            self.xy += a.transpose(1, 2) @ b
            self.yy += b.square().sum(1).double()
        self.count += x.shape[1]

    def __add__(self, other: 'Moments') -> 'Moments':
        both = Moments(self.x0, self.y0)
        for name in ('count', 'x', 'y', 'xx', 'xy', 'yy'):
            setattr(both, name, getattr(self, name) + getattr(other, name))
        return both

    def center(self) -> 'Covariances':
        """Return means and covariances of all that was added."""
        x, y = self.x / self.count, self.y / self.count
        return Covariances(
            x + self.x0,
            y + self.y0,
            self.xx / self.count - x.unsqueeze(2) * x.unsqueeze(1),
            self.xy / self.count - x.unsqueeze(2) * y.unsqueeze(1),
            self.yy / self.count - y.square(),
        )


@dataclass
class Covariances:
    """Means and covariances of patches X and wanted outputs Y.

    Attributes:
        x: Mean of X, (groups, n).
        y: Mean of Y, (groups, O / groups).
        xx: Covariance of X, (groups, n, n).
        xy: Covariance of X and Y, (groups, n, O / groups).
        yy: Variance of Y, (groups, O / groups).
    """

    x: Tensor
    y: Tensor
    xx: Tensor
    xy: Tensor
    yy: Tensor

    def solve(self, prior: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
        """Return zero-mean filters (groups, n, O / groups) and the bias.

        :func:`fit_filters` states the problem that this solves.

        Args:
            prior: The original filters w0, in the shape of the result.
            ridge: r, as a fraction of the mean variance of X.
        """
        diagonal = self.xx.diagonal(dim1=1, dim2=2).mean(1)
        r = ridge * diagonal.clamp(min=1e-30)[:, None, None]
        eye = torch.eye(self.xx.shape[1], dtype=r.dtype, device=r.device)
        factor = torch.linalg.cholesky(self.xx + r * eye)
        right = torch.cat([self.xy + r * prior, torch.ones_like(prior[..., :1])], 2)
        solution = torch.cholesky_solve(right, factor)
        free, ones = solution[..., :-1], solution[..., -1:]
        w = free - ones * (free.sum(1, keepdim=True) / ones.sum(1, keepdim=True))
        return w, self.y - (w * self.x.unsqueeze(2)).sum(1)

    def error(self, w: Tensor, b: Tensor) -> float:
        """Return the mean squared error of filters, divided by the variance of Y.

        Args:
            w: Filters, (groups, n, O / groups).
            b: Bias, (groups, O / groups).
        """
        bias = self.y - (w * self.x.unsqueeze(2)).sum(1) - b
        rest = self.yy - 2 * (w * self.xy).sum(1) + (w * (self.xx @ w)).sum(1)
        rest = rest.clamp(min=0) + bias.square()
        return (rest.sum() / self.yy.sum().clamp(min=1e-30)).item()


def sum_of(moments: Sequence[Moments]) -> Moments:
    """Return the moments of all data together."""
    return sum(moments[1:], moments[0])


def fit_filters(
    halves: Sequence[Moments], prior: Tensor, ridges: Sequence[float] = RIDGES
) -> tuple[Tensor, Tensor, float]:
    """Fit zero-mean filters to wanted outputs.

    The filters w and the bias b minimize E|y - w'x - b|^2 + r |w - w0|^2 subject to
    1'w = 0, where w0 are the original filters. r is chosen by cross-validation:
    filters are fitted to each half of the images, and r is the candidate with the
    smallest error on the other half.

    Args:
        halves: Moments of the patches and outputs of each half of the images.
        prior: The original filters w0, (groups, n, O / groups), fp64.
        ridges: Candidates for r, as fractions of the mean variance of the inputs;
            > 0.

    Returns:
        Filters (groups, n, O / groups), bias (groups, O / groups), and the error as
        :class:`ConvertedLayer` defines it.
    """
    halves = [half for half in halves if half.count]
    both = sum_of(halves).center()
    if len(halves) == 1:  # a single image
        w, b = both.solve(prior, max(ridges))
        return w, b, math.sqrt(both.error(w, b))
    one, two = (half.center() for half in halves)
    errors = {
        r: (one.error(*two.solve(prior, r)) + two.error(*one.solve(prior, r))) / 2
        for r in ridges
    }
    best = min(errors, key=errors.__getitem__)
    return *both.solve(prior, best), math.sqrt(errors[best])
