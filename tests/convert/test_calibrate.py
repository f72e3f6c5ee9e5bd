"""Tests of fitting a network on calibration images."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pws_mmdet.convert import ConversionOptions
from pws_mmdet.convert.calibrate import Calibration, fit_network
from pws_mmdet.convert.forward import run_model
from pws_mmdet.convert.inputs import (
    equalize_by_inputs,
    look_at_first_batch,
    look_at_inputs,
)
from pws_mmdet.convert.layer import Layer
from pws_mmdet.convert.least_squares import Moments
from pws_mmdet.convert.memory import LivingTensors
from pws_mmdet.convert.observe import watch


class Levels(nn.Module):
    """A head on three levels, and a head on three regions of each image."""

    def __init__(self):
        super().__init__()
        self.head, self.of_regions = nn.Conv2d(1, 2, 3), nn.Conv2d(1, 2, 3)

    def forward(self, x):
        for size in (12, 9, 6):
            self.head(x[..., :size, :size])
        if len(x) != 4:  # no proposals
            self.of_regions(x.repeat_interleave(3, 0))


@pytest.mark.parametrize('sizes', [[3, 3, 3], [5], [1, 1], [4, 3, 4, 2], [1, 2, 3]])
def test_the_halves_share_no_image(monkeypatch, sizes):
    seen = {}

    original = Moments.add

    def add(moments, x, y):
        original(moments, x, y)
        if x.shape[2]:  # those of the fit
            values = seen.setdefault(len(seen), set())
            values |= set(x.unique().tolist())

    batches = list(torch.arange(1.0, 1 + sum(sizes)).view(-1, 1, 1, 1).split(sizes))
    batches = [x.expand(-1, 1, 12, 12).contiguous() for x in batches]
    net = Levels()
    monkeypatch.setattr(Moments, 'add', add)
    options = ConversionOptions(progress=False)
    names = ['head', 'of_regions']
    first = look_at_first_batch(net, batches[0], names, run_model)
    calls = look_at_inputs(net, batches, names, first, options).calls
    calibration = Calibration(net, net, batches, calls, options)
    for name in calls:

        def pairs(i, in_original, name=name):
            number = calls[name].per_batch[i]
            return [(c, c) for c in watch(net, batches[i], run_model, name, number)]

        seen.clear()
        calibration.moments(name, pairs, None)
        halves = [set().union(*(seen[i] for i in seen if i % 2 == k)) for k in (0, 1)]
        # The regions of a single batch are split in the middle.
        shared = 1 if name == 'of_regions' and len(sizes) == 1 else 0
        assert all(halves) and len(halves[0] & halves[1]) <= shared


@pytest.mark.parametrize('limit', [0.02, 0.04, None])
def test_memory_has_a_limit(messages, limit):
    """The tensors that wait in lock step take no more than is allowed."""
    living, seen = LivingTensors(), set()

    def forward(model, x):
        seen.add(int(x[0, 0, 0, 0]))
        with living:
            return model(x)

    layers = [nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()] * 3
    net = nn.Sequential(*copy.deepcopy(layers)).eval()
    batches = [torch.full((2, 8, 128, 128), float(i)) for i in range(12)]
    options = ConversionOptions(forward=forward, max_memory=limit, progress=False)
    fit_network(net, [Layer('0'), Layer('2'), Layer('4')], batches, options)
    if limit is None:
        assert len(seen) == 12
    else:
        assert 1 < len(seen) < 12
        assert 0.1 * limit < living.peak / 2**30 < limit
        assert f'takes the first {len(seen)} of 12 batches' in messages[0]


class SometimesTwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)
        self.fc = nn.Linear(8, 2)

    def forward(self, x):
        features = F.relu(self.a(x))
        y = self.b(features)
        # The second head is like a head that runs only if there are proposals.
        if x.max() < 9:
            return y
        return y, self.fc(features.mean((2, 3)))


@torch.no_grad()
def test_channels_are_scaled_only_if_one_batch_reaches_all_readers():
    common, rare = torch.rand(2, 2, 3, 8, 8)
    rare[1] += 9
    for batches in ([common], [common, rare], [rare]):
        net = SometimesTwoHeads()
        expected = copy.deepcopy(net)
        options = ConversionOptions(progress=False)
        first = look_at_first_batch(net, batches[0], ['a', 'b'], run_model)
        look = look_at_inputs(net, batches, ['a', 'b'], first, options)
        equalize_by_inputs(net, look, (), batches, options)
        same = torch.equal(net.a.weight, expected.a.weight)
        assert same == (batches[-1] is rare)  # a linear layer reads the channels of a
        for x in batches:
            for y, z in zip(net(x), expected(x), strict=True):
                torch.testing.assert_close(y, z)
