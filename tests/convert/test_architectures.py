"""Tests: networks of many kinds are converted whole, and exactly."""

import pytest
import torch
import torch.nn.functional as F
from bn_networks import check_same, images, settle
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


@pytest.mark.parametrize('kind', MIDDLES)
def test_the_network_computes_the_same(kind):
    net = nn.Sequential(block(3), MIDDLES[kind](), nn.Conv2d(8, 5, 1))
    settle(net, images(8, 16))
    x = images(3, 16)
    for batches in (None, [images(2, 16)]):
        new, report = convert_to_pws(net, batches)
        convs = {n: m for n, m in new.named_modules() if isinstance(m, nn.Conv2d)}
        assert all(type(conv) is PWSConv2d for conv in convs.values())
        assert sorted(map(str, report)) == sorted(f'{n}: converted' for n in convs)
        assert not any(isinstance(m, nn.BatchNorm2d) for m in new.modules())
        check_same(new, net, x)
