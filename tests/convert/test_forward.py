"""Tests of how a conversion calls a network with a batch."""

import pytest
import torch
from torch import nn

from pws_mmdet.convert.forward import noise_for, run_model, tensors_in


class Sum(nn.Module):
    def forward(self, x, y=0):
        return x + y


@pytest.mark.parametrize(
    'batch, result',
    [
        (torch.tensor(1), 1),
        ((torch.tensor(1), 2), 3),
        ([torch.tensor(1), 2], 3),
        (dict(x=torch.tensor(1), y=3), 4),
    ],
)
def test_a_batch_holds_the_arguments(batch, result):
    assert run_model(Sum(), batch) == result


def test_tensors_at_any_depth():
    one, two, three = map(torch.tensor, (1, 2, 3))
    assert list(tensors_in(dict(a=[one, (two, 'b')], c=three, d=None))) == [1, 2, 3]


def test_noise_has_the_channels_and_dtype_of_the_network():
    net = nn.Sequential(nn.ReLU(), nn.Conv2d(5, 2, 3)).double()
    noise = noise_for(net)
    assert noise.shape == (1, 5, 64, 64) and noise.dtype == torch.float64
    assert torch.equal(noise, noise_for(net))
    assert noise_for(nn.Linear(2, 2)).shape == (1, 3, 64, 64)
