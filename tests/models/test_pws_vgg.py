import pytest
import torch
from mmcv.cnn import ConvModule
from torch import nn

from pws_mmdet import PWSConv2d
from pws_mmdet.models import PWSVGG


def test_layout_of_vgg16_for_320():
    net = PWSVGG()
    convs = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert all(isinstance(m, PWSConv2d) for m in convs)
    widths = [64] * 2 + [128] * 2 + [256] * 3 + [512] * 6 + [1024] * 2
    assert [m.out_channels for m in convs] == widths
    assert [m.kernel_size for m in convs] == [(3, 3)] * 14 + [(1, 1)]
    assert all(m.dilation == (1, 1) for m in convs)


@pytest.mark.parametrize(
    'size, outs', [(320, (40, 20)), (300, (38, 19)), (96, (12, 6))]
)
def test_output_sizes(size, outs):
    with torch.no_grad():
        maps = PWSVGG(width=0.125)(torch.randn(1, 3, size, size))
    assert [tuple(m.shape) for m in maps] == [
        (1, 64, outs[0], outs[0]),
        (1, 128, outs[1], outs[1]),
    ]


@pytest.mark.parametrize('depth, num_convs', [(11, 10), (13, 12), (16, 15), (19, 18)])
def test_depths(depth, num_convs):
    net = PWSVGG(depth, width=0.125)
    assert sum(isinstance(m, PWSConv2d) for m in net.modules()) == num_convs


@pytest.mark.parametrize(
    'norm_cfg', [None, dict(type='BN'), dict(type='GN', num_groups=8)]
)
def test_controls(norm_cfg):
    net = PWSVGG(width=0.125, conv_cfg=None, norm_cfg=norm_cfg)
    net.init_weights()
    assert not any(isinstance(m, PWSConv2d) for m in net.modules())
    modules = [m for m in net.modules() if isinstance(m, ConvModule)]
    assert all(m.with_norm == (norm_cfg is not None) for m in modules)
    # without a norm the convolution keeps its bias
    assert all((m.conv.bias is None) == m.with_norm for m in modules)
    sum(m.sum() for m in net(torch.randn(2, 3, 96, 96))).backward()
    assert all(p.grad is not None for p in net.parameters())


def test_variance_is_transmitted():
    """Zero-mean filters do not see the mean of their input, which ReLU makes.

    Half a normal distribution has 1 - 1/pi of its mean square as variance, so
    this is what a layer passes on where alpha is 1.
    """
    net = PWSVGG(width=0.5, conv_cfg=dict(type='PWS', gamma=1e-9))
    net.init_weights()
    with torch.no_grad():
        x = net.stages[0](torch.randn(2, 3, 64, 64))
        y = net.stages[1][0].conv(x)
    assert y.var().item() == pytest.approx(2 * x.var().item(), rel=0.15)
    assert 2 * x.var().item() < 0.75 * 2 * x.square().mean().item()


@pytest.mark.parametrize(
    'kwargs, message',
    [(dict(depth=12), 'depth must be one of .* got 12'), (dict(width=0.01), 'width')],
)
def test_bad_input(kwargs, message):
    with pytest.raises(ValueError, match=message):
        PWSVGG(**kwargs)


def test_plain_convolutions_start_from_he_normal():
    net = PWSVGG(width=0.25, conv_cfg=None)
    net.init_weights()
    for name, conv in net.named_modules():
        if isinstance(conv, nn.Conv2d) and conv.in_channels > 3:
            expected = (2 / conv.weight[0].numel()) ** 0.5
            assert conv.weight.std().item() == pytest.approx(expected, rel=0.05), name
