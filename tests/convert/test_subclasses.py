"""Tests: subclasses of nn.Conv2d take part, or are named with a reason."""

import functools
import math

import pytest
import torch
import torch.nn.functional as F
from bn_networks import check_same, images, settle
from mmcv.cnn import ConvWS2d
from mmcv.cnn.bricks import Conv2dAdaptivePadding
from torch import nn
from torch.nn.utils import spectral_norm

from pws_mmdet import PWSConv2d, convert_to_pws
from pws_mmdet.convert import fold_batch_norm, load_bn_weights
from pws_mmdet.convert.subclasses import only_convolves, plain_equivalent


class Same(nn.Conv2d):
    """Pads as TensorFlow does, like timm's Conv2dSame."""

    def forward(self, x):
        padding = []
        for i in (1, 0):  # the width first
            size, stride = x.shape[2 + i], self.stride[i]
            span = self.dilation[i] * (self.kernel_size[i] - 1) + 1
            total = max((math.ceil(size / stride) - 1) * stride + span - size, 0)
            padding += [total // 2, total - total // 2]
        x = F.pad(x, padding)
        return F.conv2d(
            x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups
        )


class Static(nn.Conv2d):
    """Has a padding layer, like EfficientNet's Conv2dStaticSamePadding."""

    def __init__(self, *args, stride=1, **options):
        super().__init__(*args, stride, **options)
        k = self.kernel_size[0] - 1
        sides = (k // 2, k - k // 2) if stride == 1 else (0, k)
        self.static_padding = nn.ZeroPad2d(sides * 2)

    def forward(self, x):
        return super().forward(self.static_padding(x))


class Activated(nn.Conv2d):
    def forward(self, x):
        return F.relu(super().forward(x))


class Standardized(nn.Conv2d):
    def forward(self, x):
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / w.std((1, 2, 3), keepdim=True)
        return self._conv_forward(x, w, self.bias)


class BrightBorder(nn.Conv2d):
    """Scaling its input channels changes what it computes."""

    def forward(self, x):
        return super().forward(F.pad(x, [1] * 4, value=1.0))


class Unbiased(nn.Conv2d):
    def forward(self, x):
        return self._conv_forward(x, self.weight, None)


class Modulated(nn.Conv2d):
    def forward(self, x, mask):
        return super().forward(x * mask)


PADDING = [Same, Static, Conv2dAdaptivePadding]
OTHERS = [Activated, Standardized, BrightBorder, Unbiased, Modulated]


@pytest.mark.parametrize('kind', PADDING)
@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('options', [{}, dict(groups=4), dict(bias=False)])
def test_layers_that_only_pad(kind, stride, options):
    conv = kind(4, 8, 3, stride=stride, **options)
    assert only_convolves(conv)
    plain = plain_equivalent(conv)
    assert (plain is None) == (stride == 2)
    if plain is not None:
        assert type(plain) is nn.Conv2d and plain.padding == (1, 1)
        assert plain.weight is conv.weight and plain.bias is conv.bias
        x = torch.randn(2, 4, 9, 12)
        torch.testing.assert_close(plain(x), conv(x))


def test_equivalents_of_other_sizes():
    assert plain_equivalent(Same(4, 8, 1, stride=2)).padding == (0, 0)
    assert plain_equivalent(Same(4, 8, (1, 5), dilation=2)).padding == (0, 4)
    assert plain_equivalent(Same(4, 8, 2)) is None
    conv = Same(4, 8, 3)
    conv.register_forward_hook(lambda module, args, y: y)
    assert plain_equivalent(conv) is None and only_convolves(conv)
    conv.register_forward_hook(lambda module, args, y: y.relu())
    assert not only_convolves(conv)


@pytest.mark.parametrize('kind', [*OTHERS, ConvWS2d, PWSConv2d, nn.ConvTranspose2d])
def test_layers_that_compute_something_else(kind):
    conv = kind(4, 8, 3)
    assert not only_convolves(conv) and plain_equivalent(conv) is None


def network(kind, make=nn.Conv2d, norm=nn.BatchNorm2d):
    """Return a network whose first and third convolutions are of the kind."""
    return nn.Sequential(
        *(kind(3, 8, 3, stride=2), norm(8), nn.ReLU()),
        *(make(8, 8, 3, padding=1), norm(8), nn.ReLU()),
        *(kind(8, 8, 3), norm(8), nn.ReLU()),
        make(8, 5, 1),
    )


@torch.no_grad()
@pytest.mark.parametrize('kind', PADDING)
def test_a_network_of_layers_that_pad(kind):
    net, x = settle(network(kind), images(16)), images(4)
    folded, _ = fold_batch_norm(net)
    torch.testing.assert_close(folded(x), net(x), rtol=1e-4, atol=1e-4)
    for batches in (None, [images(8)]):
        new, report = convert_to_pws(net, batches)
        assert not any(isinstance(m, nn.BatchNorm2d) for m in new.modules())
        assert type(new[0]) is kind and type(new[6]) is PWSConv2d
        check_same(new, net, x)
        reasons = {line.name: line.kept for line in report}
        assert sorted(reasons) == ['0', '3', '6', '9']
        assert f'it is a {kind.__name__}, which pads' in reasons['0']
        assert reasons['3'] == reasons['6'] == reasons['9'] == ''


@torch.no_grad()
@pytest.mark.parametrize('kind', [Activated, Standardized, BrightBorder])
def test_a_network_of_layers_that_compute_something_else(kind):
    net, x = settle(network(kind), images(16)), images(4)
    new, report = convert_to_pws(net, [images(8)])
    reasons = {line.name: line.kept for line in report if line.kept}
    assert sorted(reasons) == ['0', '6']
    assert f'it is a {kind.__name__}, which computes something' in reasons['0']
    assert type(new[0]) is kind and type(new[1]) is nn.BatchNorm2d
    check_same(new, net, x)


def test_a_computed_weight_is_named():
    net = nn.Sequential(spectral_norm(nn.Conv2d(3, 4, 3)), nn.Conv2d(4, 4, 3))
    _, report = convert_to_pws(net)
    assert report[-1].name == '0' and 'remove spectral norm' in report[-1].kept


@torch.no_grad()
@pytest.mark.parametrize('kind', [nn.Conv2d, *PADDING])
def test_a_single_layer(kind):
    conv, x = kind(3, 8, 3), images(2)
    new, [line] = convert_to_pws(conv)
    assert type(new) is PWSConv2d and str(line) == '0: converted'
    check_same(new, conv, x)


@torch.no_grad()
@pytest.mark.parametrize('kind', PADDING)
def test_bn_in_weights_is_folded_into_layers_that_pad(kind):
    net, x = settle(network(kind), images(16)), images(4)
    make = functools.partial(PWSConv2d, keep_mean=True)
    target = network(kind, make, lambda channels: nn.Identity())
    report, unused = load_bn_weights(target, net.state_dict())
    assert not unused
    reasons = {line.name: line.kept for line in report if line.kept}
    assert sorted(reasons) == ['0', '6']
    assert all(f'is a {kind.__name__}, which pads' in r for r in reasons.values())
    check_same(target.eval(), net, x)
