"""Tests of fitting a network on calibration images."""

import copy
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from pws_mmdet.compat import tree_leaves
from pws_mmdet.convert import ConversionOptions
from pws_mmdet.convert.calibrate import Calibration, fit_network
from pws_mmdet.convert.forward import count_calls, run_model
from pws_mmdet.convert.layer import Layer
from pws_mmdet.convert.least_squares import Moments


class LivingTensors(TorchDispatchMode):
    """Counts the bytes of all tensors that operators return and that still exist."""

    def __init__(self):
        super().__init__()
        self.storages, self.bytes, self.peak = {}, 0, 0

    def forget(self, key):
        self.bytes -= self.storages.pop(key)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor):
                storage = x.untyped_storage()
                key = storage._cdata
                if key not in self.storages:
                    self.storages[key] = storage.nbytes()
                    self.bytes += storage.nbytes()
                    self.peak = max(self.peak, self.bytes)
                    weakref.finalize(storage, self.forget, key)
        return out


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

    def add(moments, x, y):
        values = seen.setdefault(len(seen), set())
        values |= set(x.unique().tolist())

    batches = list(torch.arange(1.0, 1 + sum(sizes)).view(-1, 1, 1, 1).split(sizes))
    batches = [x.expand(-1, 1, 12, 12).contiguous() for x in batches]
    net = Levels()
    monkeypatch.setattr(Moments, 'add', add)
    calibration = Calibration(net, batches, ConversionOptions(progress=False))
    calls, _ = count_calls(net, batches, run_model, ['head', 'of_regions'])
    for name in calls:
        seen.clear()
        calibration.moments(name, calls[name], net, None)
        halves = [set().union(*(seen[i] for i in seen if i % 2 == k)) for k in (0, 1)]
        # The regions of a single batch are split in the middle.
        shared = 1 if name == 'of_regions' and len(sizes) == 1 else 0
        assert all(halves) and len(halves[0] & halves[1]) <= shared


def test_memory_does_not_grow_with_the_number_of_images():
    """The fit needs a few matrices of n x n, for any number of images."""
    n = 64 * 9
    net = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.ReLU()).eval()
    peaks = {}
    for number in (2, 8):
        batches = [torch.randn(1, 64, 8, 8) for _ in range(number)]
        with LivingTensors() as living, torch.no_grad():
            options = ConversionOptions(progress=False)
            fit_network(net, [Layer('0')], batches, options)
        peaks[number] = living.peak
    assert peaks[8] < 1.05 * peaks[2]
    most = 16 if torch.__version__ >= '2.2' else 20  # matrices; torch 2.1 needs more
    assert 2 * n * n * 8 < peaks[2] < most * n * n * 8


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
        calibration = Calibration(net, batches, ConversionOptions(progress=False))
        calls, reached = count_calls(net, batches, run_model, ['a', 'b'])
        calibration.equalize(calls, (), reached)
        same = torch.equal(net.a.weight, expected.a.weight)
        assert same == (batches[-1] is rare)  # a linear layer reads the channels of a
        for x in batches:
            for y, z in zip(net(x), expected(x), strict=True):
                torch.testing.assert_close(y, z)
