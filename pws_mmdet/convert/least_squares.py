"""Fit filters to given outputs by least squares, with and without zero mean."""

import copy
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .layer import Filters

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
NOISE = 1e-12  # the variance of rounding errors, as a fraction of the squared mean


class Moments:
    """Running means of patches X and wanted outputs Y, and sums of squares around them.

    The patches wait until there is a block of them. Each block is centered around its
    own mean before it is multiplied, in the precision of the patches. Blocks are merged
    in fp64. So nothing cancels: the covariance of a constant is zero, and no variance
    is negative.

    Args:
        groups: Groups of the convolution.
        n: Values of a patch in one group.
        outputs: Outputs of one group.
        device: Of the patches.

    Source: Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for
    computing sample variances", 1979.
    """

    block = 4096  # patches that are multiplied at once

    def __init__(
        self,
        groups: int,
        n: int,
        outputs: int,
        device: torch.device | str | None = None,
    ) -> None:
        zeros = functools.partial(
            torch.zeros, groups, dtype=torch.float64, device=device
        )
        self._waiting: list[tuple[Tensor, Tensor]] = []
        self.count = 0
        self.x = zeros(n)
        self.y = zeros(outputs)
        self.xx = zeros(n, n)
        self.xy = zeros(n, outputs)
        self.yy = zeros(outputs)

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add patches (P, groups, n) and their wanted outputs (P, groups, O / groups).

        Args:
            x: The patches.
            y: The outputs.
        """
        if not len(x):
            return
        self._waiting.append((x, y))
        if sum(len(x) for x, _ in self._waiting) >= self.block:
            self._flush()

    def _flush(self) -> None:
        if not self._waiting:
            return
        x, y = (torch.cat(parts) for parts in zip(*self._waiting, strict=True))
        self._waiting = []
        for a, b in zip(x.split(self.block), y.split(self.block), strict=True):
            a, mean_a = _center(a.transpose(0, 1))
            b, mean_b = _center(b.transpose(0, 1))
            across = a.transpose(1, 2)
            squares = b.square().sum(1, dtype=torch.float64)
            self._merge(a.shape[1], mean_a, mean_b, across @ a, across @ b, squares)

    def _merge(
        self, count: int, x: Tensor, y: Tensor, xx: Tensor, xy: Tensor, yy: Tensor
    ) -> None:
        total = self.count + count
        if not total:
            return
        dx, dy = x - self.x, y - self.y
        share = count / total
        weight = self.count * share
        self.xx += xx
        self.xy += xy
        self.yy += yy
        self.xx.baddbmm_(dx.unsqueeze(2), dx.unsqueeze(1), alpha=weight)
        self.xy.baddbmm_(dx.unsqueeze(2), dy.unsqueeze(1), alpha=weight)
        self.yy += weight * dy.square()
        self.x += share * dx
        self.y += share * dy
        self.count = total

    def is_empty(self) -> bool:
        """Tell whether nothing was added."""
        return not self.count and not self._waiting

    def __add__(self, other: 'Moments') -> 'Moments':
        self._flush()
        other._flush()
        both = copy.deepcopy(self)
        both._merge(other.count, other.x, other.y, other.xx, other.xy, other.yy)
        return both

    def center(self) -> 'Covariances':
        """Return means and covariances of all that was added."""
        self._flush()
        n = self.count
        return Covariances(self.x, self.y, self.xx / n, self.xy / n, self.yy / n)


def _center(x: Tensor) -> tuple[Tensor, Tensor]:
    """Subtract the mean over axis 1. Return also the mean, fp64."""
    mean = x.sum(1, dtype=torch.float64) / x.shape[1]
    rounded = mean.to(x.dtype)
    rest = (mean - rounded).to(x.dtype)
    return x - rounded.unsqueeze(1) - rest.unsqueeze(1), mean


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

    def solve(self, prior: Tensor, ridge: float) -> tuple[Filters, Filters]:
        """Return filters (groups, n, O / groups) and bias, zero-mean and free.

        :func:`fit_filters` states the problem that this solves.

        Args:
            prior: The original filters w0, in the shape of the result.
            ridge: r, as a fraction of the mean variance of X.
        """
        factor, r = self.factor(ridge)
        right = torch.cat([self.xy + r * prior, torch.ones_like(prior[..., :1])], 2)
        solution = torch.cholesky_solve(right, factor)
        free, ones = solution[..., :-1], solution[..., -1:]
        w = free - ones * (free.sum(1, keepdim=True) / ones.sum(1, keepdim=True))
        return self._with_bias(w), self._with_bias(free)

    def _with_bias(self, w: Tensor) -> Filters:
        return w, self.y - (w * self.x.unsqueeze(2)).sum(1)

    def factor(self, ridge: float) -> tuple[Tensor, Tensor]:
        """Return the Cholesky factor of the covariance of X with a ridge.

        The values that a network computes carry rounding errors. So that no filter is
        fitted to them, the ridge is at least the variance of an error of a millionth
        of the inputs' mean.

        Args:
            ridge: As a fraction of the mean variance of X; > 0.

        Returns:
            The lower factor, (groups, n, n); the ridge of each group, (groups, 1, 1).
        """
        diagonal = self.xx.diagonal(dim1=1, dim2=2).mean(1)
        r = ridge * diagonal.clamp(min=1e-30) + NOISE * self.x.square().mean(1)
        r = r[:, None, None]
        eye = torch.eye(self.xx.shape[1], dtype=r.dtype, device=r.device)
        factor, failed = torch.linalg.cholesky_ex(self.xx + r * eye)
        if failed.any():
            # Products in low precision, such as TF32, can make variances negative.
            values, vectors = torch.linalg.eigh(self.xx)
            xx = vectors * values.clamp(min=0).unsqueeze(1) @ vectors.transpose(1, 2)
            factor = torch.linalg.cholesky(xx + r * eye)
        return factor, r

    def error(self, w: Tensor, b: Tensor) -> float:
        """Return the mean squared error of filters, summed over the outputs.

        Args:
            w: Filters, (groups, n, O / groups).
            b: Bias, (groups, O / groups).
        """
        bias = self.y - (w * self.x.unsqueeze(2)).sum(1) - b
        rest = self.yy - 2 * (w * self.xy).sum(1) + (w * (self.xx @ w)).sum(1)
        rest = rest.clamp(min=0) + bias.square()
        return rest.sum().item()

    def variance(self) -> float:
        """Return the sum of the variances of Y, or of its rounding errors if larger."""
        noise = NOISE * self.y.square().sum().item() + 1e-30
        return max(self.yy.sum().item(), noise)


def sum_of(moments: Sequence[Moments]) -> Moments:
    """Return the moments of all data together."""
    return sum(moments[1:], moments[0])


class Fit(NamedTuple):
    """Filters that were fitted to wanted outputs.

    Attributes:
        weight: The filters, (groups, n, O / groups).
        bias: The bias, (groups, O / groups).
        error: The error as :class:`ConvertedLayer` defines it.
    """

    weight: Tensor
    bias: Tensor
    error: float


def fit_filters(
    halves: Sequence[Moments], prior: Tensor, ridges: Sequence[float] = RIDGES
) -> tuple[Fit, Fit]:
    """Fit filters to wanted outputs, zero-mean ones and free ones.

    The filters w and the bias b minimize E|y - w'x - b|^2 + r |w - w0|^2, where w0 are
    the original filters. Zero-mean filters are subject to 1'w = 0. r is chosen by
    cross-validation: filters are fitted to each half of the images, and r is the
    candidate with the smallest error on the other half.

    Args:
        halves: Moments of the patches and outputs of each half of the images.
        prior: The original filters w0, (groups, n, O / groups), fp64.
        ridges: Candidates for r, as fractions of the mean variance of the inputs;
            > 0.

    Returns:
        The zero-mean filters, and the free ones.
    """
    halves = [half for half in halves if not half.is_empty()]
    both = sum_of(halves).center()
    whole = both.variance()
    if len(halves) == 1:  # a single image
        found = both.solve(prior, max(ridges))
        fits = [Fit(w, b, math.sqrt(both.error(w, b) / whole)) for w, b in found]
        return fits[0], fits[1]
    one, two = (half.center() for half in halves)
    # The outputs of a half may be constant, as behind global pooling of one image.
    of_one, of_two = (
        own if (own := half.variance()) > 0.01 * whole else whole for half in (one, two)
    )
    errors = {}
    for r in ridges:
        on_one = [one.error(w, b) / of_one for w, b in two.solve(prior, r)]
        on_two = [two.error(w, b) / of_two for w, b in one.solve(prior, r)]
        errors[r] = [(a + b) / 2 for a, b in zip(on_one, on_two, strict=True)]
    fits = []
    for kind in range(2):
        best = min(errors, key=lambda r: errors[r][kind])  # noqa: B023
        w, b = both.solve(prior, best)[kind]
        fits.append(Fit(w, b, math.sqrt(errors[best][kind])))
    return fits[0], fits[1]
