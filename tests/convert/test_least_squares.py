"""Tests of the fit by least squares."""

import functools

import pytest
import torch
from torch import nn

from pws_mmdet.convert.least_squares import (
    Moments,
    fit_filters,
    sum_of,
)
from pws_mmdet.convert.sampling import sample_patches


def test_patches_times_filters_are_the_outputs():
    for conv in (
        nn.Conv2d(4, 6, 3, 2, 1, 2, groups=2),
        nn.Conv2d(4, 6, (1, 3), padding='same', padding_mode='circular'),
        nn.Conv2d(4, 6, 1, 2),
    ):
        x = torch.randn(2, 4, 9, 7)
        y = conv(x).movedim(1, -1).flatten(0, 2)
        index = torch.randperm(len(y))[:11]
        patches = sample_patches(conv, x, index)
        w = conv.weight.reshape(conv.groups, 6 // conv.groups, -1)
        made = torch.einsum('pgn,gon->pgo', patches, w).flatten(1) + conv.bias
        torch.testing.assert_close(made, y[index])


def moments_of(x, y):
    moments = Moments(x.shape[1], x.shape[2], y.shape[2])
    moments.add(x, y)
    return moments


def test_moments_are_means_and_covariances(monkeypatch):
    """Also if the mean is far larger than the deviation, and differs between parts."""
    monkeypatch.setattr(Moments, 'block', 40)
    x, y = 30 + torch.randn(300, 2, 5), 5 * torch.randn(300, 2, 3) - 70
    x[100:] += 10
    parts = [moments_of(x[:100], y[:100]), moments_of(x[100:], y[100:])]
    empty = moments_of(x[:0], y[:0])
    found = sum_of([empty, *parts, empty]).center()
    for g in range(2):
        both = torch.cat([x[:, g], y[:, g]], 1).double()
        covariance = both.T.cov(correction=0)
        close = functools.partial(torch.testing.assert_close, rtol=1e-5, atol=1e-4)
        close(torch.cat([found.x[g], found.y[g]]), both.mean(0))
        close(found.xx[g], covariance[:5, :5])
        close(found.xy[g], covariance[:5, 5:])
        close(found.yy[g], covariance[5:, 5:].diagonal())


def test_the_covariance_of_a_constant_is_zero():
    x, y = torch.rand(1, 3, 7).expand(5000, -1, -1), torch.rand(5000, 3, 2)
    x = x.clone()
    x[..., 4] = torch.randn(5000, 3)  # one of the inputs varies
    found = sum_of([moments_of(x[:1777], y[:1777]), moments_of(x[1777:], y[1777:])])
    xx = found.center().xx
    assert (xx[:, 4, 4] > 0.9).all()
    xx[:, 4, 4] = 0
    assert not xx[:, [0, 1, 2, 3, 5, 6]][:, :, [0, 1, 2, 3, 5, 6]].any()


@pytest.mark.parametrize(
    'spoil',
    [
        lambda x, y: (x[:1], y[:1]),
        lambda x, y: (x[:1].expand_as(x), y[:1].expand_as(y)),
        lambda x, y: (x[:1].expand_as(x), y),
        lambda x, y: (x, y[:1].expand_as(y)),
        lambda x, y: (0 * x, 0 * y),
        lambda x, y: (x * torch.tensor([0, 1, 1, 0.0]), y),
        lambda x, y: (x * torch.tensor([1, 0, 0, 1.0]) + 1e4, y),
        lambda x, y: (1000 + 1e-4 * x, y),
        lambda x, y: (x[..., :1].expand_as(x), y),
        lambda x, y: (x[:2], y[:2]),
    ],
)
def test_inputs_without_full_rank_give_finite_filters(spoil):
    x, y, prior = torch.rand(50, 3, 4), torch.rand(50, 3, 2), torch.randn(3, 4, 2)
    for halves in ([(x, y)], [(x, y), spoil(x, y)], [spoil(x, y), spoil(x + 1, y)]):
        halves = [moments_of(*half) for half in halves]
        (w, b, error), _ = fit_filters(halves, prior.double())
        assert w.isfinite().all() and b.isfinite().all() and 0 <= error < 1e3
        torch.testing.assert_close(w.sum(1), torch.zeros(3, 2).double())
        assert w.abs().max() < 1e3


def test_filters_of_constant_inputs_lose_their_mean_only():
    """Nothing is known of the inputs, so that the filters stay near the original."""
    x, y, prior = torch.rand(1, 3, 4), torch.rand(1, 3, 2), torch.randn(3, 4, 2)
    halves = [moments_of(x.expand(n, -1, -1), y.expand(n, -1, -1)) for n in (31, 30)]
    (w, b, error), _ = fit_filters(halves, prior.double())
    centered = (prior - prior.mean(1, keepdim=True)).double()
    torch.testing.assert_close(w, centered)
    made = torch.einsum('pgn,gno->pgo', x.double(), w) + b
    torch.testing.assert_close(made, y.double())
    assert error < 1e-6


def test_an_indefinite_covariance_is_replaced_by_a_definite_one():
    """Products in low precision can give one."""
    moments = moments_of(torch.randn(50, 1, 4), torch.randn(50, 1, 2)).center()
    moments.xx -= torch.eye(4)
    assert torch.linalg.eigvalsh(moments.xx).min() < -0.1
    (w, b), _ = moments.solve(torch.randn(1, 4, 2).double(), 1e-3)
    assert w.isfinite().all() and b.isfinite().all()
