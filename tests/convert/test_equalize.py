"""Tests of scaling channels."""

import copy

import torch
import torch.nn.functional as F
from mmdet.models.backbones import ResNet
from torch import nn

from pws_mmdet.convert import fold_batch_norm
from pws_mmdet.convert.equalize import (
    ChannelFinder,
    Channels,
    Reader,
    least_used_direction,
    scale_channels,
)
from pws_mmdet.convert.forward import run_model


class Net(nn.Module):
    """A network with pooling, a sum, a sigmoid, a linear layer and groups."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.c = nn.Conv2d(8, 8, 1)
        self.d = nn.Conv2d(8, 8, 1)
        self.e = nn.Conv2d(8, 6, 1)
        self.fc = nn.Linear(6, 2)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.a(x)), 2)
        x = F.relu(self.b(x) + self.c(x))  # two readers of a
        x = torch.sigmoid(self.d(x))
        return self.fc(F.relu(self.e(x)).mean((2, 3)))


def finder(model, x):
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    model.eval()
    return ChannelFinder(model, names, run_model, x)


@torch.no_grad()
def test_channels_whose_scaling_changes_nothing_are_found():
    found = finder(Net(), torch.randn(2, 3, 16, 16)).find()
    # Not d, because of its sigmoid, nor e, because a linear layer reads it.
    assert found == [Channels(['a'], ['b', 'c']), Channels(['b', 'c'], ['d'])]


@torch.no_grad()
def test_activations_with_a_bound_are_recognized():
    a, b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)
    x = 0.5 * torch.randn(2, 3, 16, 16)
    assert a(x).max() < 6
    assert finder(nn.Sequential(a, nn.ReLU(), b), x).find()
    for activation in (nn.ReLU6(), nn.Hardswish(), nn.Hardtanh(-6, 6)):
        assert finder(nn.Sequential(a, activation, b), x).find() == []


@torch.no_grad()
def test_scaled_networks_compute_the_same():
    net, x = Net(), torch.randn(2, 3, 16, 16)
    expected = net(x)
    for channels in finder(net, x).find():
        before = copy.deepcopy(net.state_dict())
        scale_channels(net, channels, torch.rand(8) + 0.5)
        assert not torch.equal(net.state_dict()['b.weight'], before['b.weight'])
        torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_residual_streams():
    """All blocks that add to a stream are scaled together, except for the output."""
    net = ResNet(50, base_channels=4, stem_channels=4, out_indices=(3,))
    net.eval()
    net, _ = fold_batch_norm(net)
    x = torch.randn(1, 3, 64, 64)
    found = {c.producers[0]: c for c in finder(net, x).find()}
    assert found['layer1.1.conv2'].consumers == ['layer1.1.conv3']
    assert found['conv1'].consumers == ['layer1.0.conv1', 'layer1.0.downsample.0']
    stream = found['layer2.0.conv3']
    assert set(stream.producers) == {
        'layer2.0.downsample.0',
        *(f'layer2.{i}.conv3' for i in range(4)),
    }
    assert set(stream.consumers) == {
        *(f'layer2.{i}.conv1' for i in range(1, 4)),
        'layer3.0.conv1',
        'layer3.0.downsample.0',
    }
    assert not any(
        'layer4' in n and 'conv3' in n for c in found.values() for n in c.producers
    )
    expected = net(x)
    for channels in found.values():
        width = len(net.get_submodule(channels.producers[0]).weight)
        scale_channels(net, channels, torch.rand(width) + 0.5)
    torch.testing.assert_close(net(x), expected, rtol=1e-3, atol=1e-4)


def test_the_direction_is_orthogonal_to_all_filters():
    """Filters that are orthogonal to u lose nothing, so u is found."""
    u = torch.rand(6, dtype=torch.float64) * 3 + 0.3
    filters = torch.randn(6, 20, dtype=torch.float64)
    filters -= torch.outer(u, u @ filters) / (u @ u)
    reader = Reader(slice(0, 6), filters, torch.eye(6, dtype=torch.float64), 1.0)
    found = least_used_direction([reader], max_scale=10, steps=2000)
    torch.testing.assert_close(found / found.norm(), u / u.norm(), rtol=0.02, atol=0.02)


def test_an_unused_channel_gets_the_largest_weight():
    filters = torch.randn(4, 9, dtype=torch.float64)
    filters[2] = 0
    reader = Reader(slice(0, 4), filters, torch.eye(4, dtype=torch.float64), 1.0)
    found = least_used_direction([reader], max_scale=10)
    assert found[2] > 10 * found[[0, 1, 3]].max()
    assert found.max() / found.min() < 101
    assert (least_used_direction([reader], max_scale=1) == 1).all()
