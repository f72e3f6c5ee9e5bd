import copy

import torch
import torch.nn.functional as F
from mmdet.models.backbones import ResNet
from torch import nn

from pws_mmdet.convert.calibrate import (
    Calibration,
    Layer,
    _trace,
    first_image,
    images_in,
    run_model,
)
from pws_mmdet.convert.convert import fold_batch_norm
from pws_mmdet.convert.equalize import (
    ChannelFinder,
    Channels,
    Reader,
    least_used_direction,
    scale_channels,
)


class Net(nn.Module):
    """A chain with pooling, a sum, a sigmoid, a linear layer, a grouped reader."""

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
        x = F.relu(self.b(x) + self.c(x))  # reads what a makes, twice
        x = torch.sigmoid(self.d(x))
        return self.fc(F.relu(self.e(x)).mean((2, 3)))


def finder(model, x):
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    model.eval()
    return ChannelFinder(model, names, run_model, x)


@torch.no_grad()
def test_channels_are_found_where_scaling_them_changes_nothing():
    found = finder(Net(), torch.randn(2, 3, 16, 16)).find()
    # neither d, whose sigmoid is no ReLU, nor e, which a linear layer reads
    assert found == [Channels(['a'], ['b', 'c']), Channels(['b', 'c'], ['d'])]


@torch.no_grad()
def test_a_bound_that_the_images_do_not_reach_is_found():
    a, b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)
    x = 0.5 * torch.randn(2, 3, 16, 16)
    assert a(x).max() < 6
    assert finder(nn.Sequential(a, nn.ReLU(), b), x).find()
    for activation in (nn.ReLU6(), nn.Hardswish(), nn.Hardtanh(-6, 6)):
        assert finder(nn.Sequential(a, activation, b), x).find() == []


class SometimesTwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)
        self.fc = nn.Linear(8, 2)

    def forward(self, x):
        features = F.relu(self.a(x))
        y = self.b(features)
        # as a head that sees proposals, if there are any
        if x.max() < 9:
            return y
        return y, self.fc(features.mean((2, 3)))


@torch.no_grad()
def test_who_reads_is_not_told_by_images_that_do_not_reach_them():
    common, rare = torch.rand(2, 2, 3, 8, 8)
    rare[1] += 9
    for batches in ([common], [common, rare], [rare]):
        net = SometimesTwoHeads()
        expected = copy.deepcopy(net)
        calibration = Calibration(net, batches, run_model, 2**15, 0)
        calls, reached = _trace(net, batches, run_model, [Layer('a'), Layer('b')])
        calibration.equalize(calls, (), reached, 3.0, False)
        same = torch.equal(net.a.weight, expected.a.weight)
        assert same == (batches[-1] is rare)  # a linear layer reads a
        for x in batches:
            for y, z in zip(net(x), expected(x), strict=True):
                torch.testing.assert_close(y, z)


@torch.no_grad()
def test_scaling_and_undoing_it_is_the_identity():
    net, x = Net(), torch.randn(2, 3, 16, 16)
    expected = net(x)
    for channels in finder(net, x).find():
        before = copy.deepcopy(net.state_dict())
        scale_channels(net, channels, torch.rand(8) + 0.5)
        assert not torch.equal(net.state_dict()['b.weight'], before['b.weight'])
        torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_residual_streams():
    """What blocks add up is scaled in all of them, unless it is an output."""
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


def test_the_direction_is_one_that_no_filter_uses():
    """Filters that are orthogonal to u already lose nothing by it."""
    u = torch.rand(6, dtype=torch.float64) * 3 + 0.3
    filters = torch.randn(6, 20, dtype=torch.float64)
    filters -= torch.outer(u, u @ filters) / (u @ u)
    reader = Reader(slice(0, 6), filters, torch.eye(6, dtype=torch.float64), 1.0)
    found = least_used_direction([reader], max_scale=10, steps=2000)
    torch.testing.assert_close(found / found.norm(), u / u.norm(), rtol=0.02, atol=0.02)


def test_a_channel_that_nobody_uses_takes_it_all():
    filters = torch.randn(4, 9, dtype=torch.float64)
    filters[2] = 0
    reader = Reader(slice(0, 4), filters, torch.eye(4, dtype=torch.float64), 1.0)
    found = least_used_direction([reader], max_scale=10)
    assert found[2] > 10 * found[[0, 1, 3]].max()
    assert found.max() / found.min() < 101
    assert (least_used_direction([reader], max_scale=1) == 1).all()


def test_a_single_image_of_a_batch():
    x = torch.randn(3, 3, 8, 8)
    for batch, number in [
        (x, 3),
        (dict(inputs=x), 3),
        (dict(inputs=list(x), data_samples=[1, 2, 3]), 3),
        (dict(inputs=[x[0], x[0, :, :4]], data_samples=[1, 2]), 2),
    ]:
        assert images_in(batch) == number
        one = first_image(batch)
        assert images_in(one) == 1
        if isinstance(batch, dict):
            assert {len(value) for value in one.values()} == {1}
    for batch in ((x, x[0]), dict(inputs=x, rescale=True), 'anything'):
        assert first_image(batch) is batch
    assert images_in((x, 2)) == 3 and images_in('anything') is None
