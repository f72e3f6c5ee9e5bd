"""Tests of folding BN: which BN layers are folded, and that outputs stay the same."""

import pytest
import torch
import torch.nn.functional as F
from bn_networks import Net, check_same, images, settle
from mmcv.cnn import ConvModule
from torch import nn
from torch.nn.utils import spectral_norm

from pws_mmdet import convert_to_pws
from pws_mmdet.convert import fold_batch_norm


@pytest.fixture
def net():
    return settle(Net(), images())


def test_folding_is_exact(net):
    x = images(4)
    plain, layers = fold_batch_norm(net)
    names = {layer.name for layer in layers}
    assert names == {'conv1', 'left.0', 'right.0', 'shared', 'last'}
    assert not any(isinstance(m, nn.BatchNorm2d) for m in plain.modules())
    torch.testing.assert_close(plain(x), net(x), rtol=1e-5, atol=1e-5)


class Ordered(nn.Module):
    """Layers that are not called in the order of their assignment."""

    def __init__(self, bn_first):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(6)
        self.bn2 = nn.BatchNorm2d(6)
        self.bn_first = bn_first

    def forward(self, x):
        if self.bn_first:
            return self.conv2(F.relu(self.bn2(F.relu(self.bn1(self.conv1(x))))))
        return self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))


class PreActivation(nn.Module):
    """bn1 is assigned right after conv1, but called before it."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3)
        self.conv1 = nn.Conv2d(6, 6, 3)
        self.bn1 = nn.BatchNorm2d(6)

    def forward(self, x):
        x = F.relu(self.stem(x))
        return self.conv1(F.relu(self.bn1(x)))


class Tapped(nn.Module):
    """Something else than BN also reads the output of a convolution."""

    def __init__(self, tap):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.last, self.tap = nn.Conv2d(6, 4, 1), tap

    def forward(self, x):
        y = self.conv(x)
        return self.tap(self, y, self.last(F.relu(self.bn(y))))


class SharedBN(nn.Module):
    def __init__(self, outside=False):
        super().__init__()
        bn = nn.BatchNorm2d(6)
        self.a = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), bn)
        self.b = nn.Sequential(nn.Conv2d(3, 6, 1), bn)
        self.outside = outside

    def forward(self, x):
        y = F.relu(self.a(x)) + F.relu(self.b(x))
        return self.a[1](y) if self.outside else y


class Crossed(nn.Module):
    """bn1 reads two convolutions, and bn2 also reads one of them."""

    def __init__(self):
        super().__init__()
        self.a, self.b = conv(3), conv(3)
        self.bn1, self.bn2 = nn.BatchNorm2d(6), nn.BatchNorm2d(6)

    def forward(self, x):
        a, b = self.a(x), self.b(x)
        return F.relu(self.bn1(a)) + F.relu(self.bn1(b)) + F.relu(self.bn2(b))


class BNWithReLU(nn.BatchNorm2d):
    def forward(self, x):
        return F.relu(super().forward(x))


def conv(c_in=6, c_out=6):
    return nn.Conv2d(c_in, c_out, 3, padding=1)


def norm_first():
    order = ('norm', 'conv', 'act')
    block = ConvModule(6, 6, 3, norm_cfg=dict(type='BN'), order=order)
    return nn.Sequential(conv(3), nn.ReLU(), block)


def eval_at_once():
    block = ConvModule(3, 6, 3, norm_cfg=dict(type='BN'), efficient_conv_bn_eval=True)
    return nn.Sequential(block, conv())


ODD = [
    (lambda: nn.Sequential(conv(3), nn.BatchNorm2d(6), nn.ReLU(), conv()), 0),
    (lambda: nn.Sequential(conv(3), nn.ReLU(), nn.BatchNorm2d(6), conv()), 1),
    (lambda: nn.Sequential(conv(3), nn.ReLU(True), nn.BatchNorm2d(6), conv()), 1),
    (
        lambda: nn.Sequential(
            conv(3), nn.ReLU(), nn.ConvTranspose2d(6, 6, 3), nn.BatchNorm2d(6), conv()
        ),
        1,
    ),
    (lambda: nn.Sequential(conv(3), BNWithReLU(6), conv()), 1),
    (lambda: nn.Sequential(spectral_norm(conv(3)), nn.BatchNorm2d(6), conv()), 1),
    (lambda: Ordered(False), 0),
    (lambda: Ordered(True), 1),
    (PreActivation, 1),
    (norm_first, 1),
    (eval_at_once, 0),
    (SharedBN, 0),
    (lambda: SharedBN(True), 1),
    (Crossed, 2),
    (lambda: Tapped(lambda net, y, z: (z, y)), 1),
    (lambda: Tapped(lambda net, y, z: torch.cat([z, y], 1)), 1),
    (lambda: Tapped(lambda net, y, z: z + y.flatten(2).mean()), 1),
    (lambda: Tapped(lambda net, y, z: z + net.conv.weight.sum()), 1),
    (lambda: Tapped(lambda net, y, z: z + net.bn.bias.sum()), 1),
]


@pytest.mark.parametrize('make, left', ODD)
@torch.no_grad()
def test_bn_is_folded_if_it_alone_reads_a_convolution(make, left):
    x = torch.randn(32, 3, 16, 16)
    net = settle(make(), x)
    plain, _ = fold_batch_norm(net, runs=[lambda net: net(x)])
    with_images, _ = convert_to_pws(net, [x])
    without, _ = convert_to_pws(net)
    for new in (plain, with_images, without):
        assert sum(isinstance(m, nn.BatchNorm2d) for m in new.modules()) == left
        check_same(new, net, x)


def test_folding_that_changes_the_outputs_is_refused(net):
    def by_type(left, args, y):
        return y if isinstance(left[1], nn.BatchNorm2d) else 1.1 * y

    net.left.register_forward_hook(by_type)
    with pytest.raises(ValueError, match='changes the values at shared'):
        convert_to_pws(net, [images(4)])
    with pytest.raises(ValueError, match='changes the values at shared'):
        convert_to_pws(net)
    fold_batch_norm(net, unaligned=['shared'])
