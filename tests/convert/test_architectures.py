"""Tests: networks of many kinds convert correctly, with and without images."""

import pytest
import torch
import torch.nn.functional as F
from bn_networks import images, relative_error, settle
from torch import nn

from pws_mmdet import PWSConv2d, convert_to_pws


def block(c_in=8, c_out=8, kernel=3, activation=nn.ReLU, **options):
    """Convolution, BN and activation. By default the size stays the same."""
    padding = options.pop('padding', kernel // 2)
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, kernel, padding=padding, bias=False, **options),
        nn.BatchNorm2d(c_out),
        activation(),
    )


class SqueezeExcitation(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)

    def forward(self, x):
        gate = self.up(F.relu(self.down(x.mean((2, 3), keepdim=True))))
        return x * gate.sigmoid()


class Concatenation(nn.Module):
    """As in DenseNet: later layers read the channels of all before."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = block(), block(16), block(24)

    def forward(self, x):
        x = torch.cat([x, self.a(x)], 1)
        return self.c(torch.cat([x, self.b(x)], 1))


class Shuffle(nn.Module):
    """As in ShuffleNet: half of the channels pass a branch, then all are shuffled."""

    def __init__(self):
        super().__init__()
        self.branch = nn.Sequential(block(4, 4, 1), block(4, 4), block(4, 4, 1))

    def forward(self, x):
        kept, x = x.chunk(2, 1)
        x = torch.cat([kept, self.branch(x)], 1)
        return x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)


class Split(nn.Module):
    """As in Res2Net: parts of the channels pass different layers, with sums between."""

    def __init__(self):
        super().__init__()
        self.a, self.b = block(3, 3), block(3, 3)

    def forward(self, x):
        a, b, c = x.split([3, 3, 2], 1)
        a = self.a(a)
        return torch.cat([a, self.b(a + b), c], 1)


def prelu():
    layer = nn.PReLU(8)
    nn.init.uniform_(layer.weight, -0.5, 0.5)
    return layer


def activated(activation):
    return lambda: nn.Sequential(block(activation=activation), block())


MIDDLES = {
    'ReLU6': activated(nn.ReLU6),
    'hard-swish': activated(nn.Hardswish),
    'SiLU': activated(nn.SiLU),
    'PReLU': activated(prelu),
    'LeakyReLU': activated(nn.LeakyReLU),
    'squeeze-and-excitation': SqueezeExcitation,
    'concatenation': Concatenation,
    'channel shuffle': Shuffle,
    'split': Split,
    'depthwise': lambda: nn.Sequential(block(groups=8), block(kernel=1)),
    'dilated': lambda: block(padding=2, dilation=2),
    'padding layer': lambda: nn.Sequential(
        nn.ZeroPad2d((0, 1, 0, 1)), block(stride=2, padding=0)
    ),
    'nonzero padding layer': lambda: nn.Sequential(
        nn.ConstantPad2d((0, 1, 0, 1), 1.5), block(stride=2, padding=0)
    ),
}


# The most that a conversion of all layers but the first one may lose. The filters of
# depthwise convolutions have few weights, and lose much if they lose their mean.
BOUNDS = {'depthwise': 1.2, 'channel shuffle': 1, 'split': 1}


@pytest.fixture(params=MIDDLES)
def kind(request):
    return request.param


def network(kind):
    return nn.Sequential(block(3), MIDDLES[kind](), nn.Conv2d(8, 5, 1))


def check_report(net, new, report):
    convs = {n: m for n, m in new.named_modules() if isinstance(m, nn.Conv2d)}
    methods = {line.name: line.method for line in report}
    assert sorted(methods) == sorted(convs)
    for name, conv in convs.items():
        assert (methods[name] == 'kept') == (type(conv) is nn.Conv2d)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in new.modules())


@torch.no_grad()
def test_images(kind):
    net, x = settle(network(kind), images(16, 16)), images(8, 16)
    batches = [images(8, 16) for _ in range(2)]
    new, report = convert_to_pws(net, batches, ['^0.0$'], progress=False)
    check_report(net, new, report)
    assert sum(isinstance(m, PWSConv2d) for m in new.modules()) == len(report) - 1
    assert relative_error(new(x), net(x)) < BOUNDS.get(kind, 0.8)


@torch.no_grad()
def test_images_and_the_default_choice_of_layers(kind):
    net, x = settle(network(kind), images(16, 16)), images(8, 16)
    new, report = convert_to_pws(net, [images(8, 16)], progress=False)
    check_report(net, new, report)
    assert relative_error(new(x), net(x)) < 0.2


@torch.no_grad()
def test_zero_mean_filters_are_converted_exactly(kind):
    """Nothing is lost, so that all that differs is an error."""
    net = network(kind)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.weight -= module.weight.mean((1, 2, 3), keepdim=True)
    settle(net, images(16, 16))
    x = images(8, 16)
    for batches in (None, [images(8, 16)]):
        new, report = convert_to_pws(net, batches, (), progress=False)
        check_report(net, new, report)
        assert {line.method for line in report} & {'kept', 'mean'} <= {'mean'}
        assert relative_error(new(x), net(x)) < 0.02
