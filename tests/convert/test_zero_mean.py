"""Tests of zero-mean filters without images."""

import pytest
import torch
import torch.nn.functional as F
from bn_networks import relative_error, settle
from torch import nn

from pws_mmdet import convert_to_pws
from pws_mmdet.convert.zero_mean import center_filters, relu_moments
from pws_mmdet.layers.standardize import standardize_as_mmcv


def test_the_bias_keeps_the_means_of_the_outputs():
    """With enough filters and without padding, the means follow exactly."""
    conv = nn.Conv2d(6, 12, 3).double()
    x = torch.rand(64, 6, 8, 8, dtype=torch.float64) + torch.arange(6).view(6, 1, 1)
    mean = x.mean((0, 2, 3))
    outputs = (conv.weight.sum((2, 3)) * mean).sum(1)
    filters, bias = center_filters(conv.weight.detach(), conv.bias.detach(), outputs)
    made = F.conv2d(mean.view(1, 6, 1, 1).expand(1, 6, 3, 3), filters, bias)
    torch.testing.assert_close(
        made.flatten(), outputs + conv.bias, rtol=1e-2, atol=1e-2
    )


def test_moments_of_the_relu_of_a_gaussian():
    mean, std = torch.tensor([[0.0, 1.0, -2.0], [1.0, 0.5, 1.0]]).double()
    x = F.relu(mean + std * torch.randn(100_000, 3, dtype=torch.float64))
    first, variance = relu_moments(mean, std)
    torch.testing.assert_close(first, x.mean(0), rtol=0.05, atol=0.005)
    torch.testing.assert_close(variance, x.var(0), rtol=0.1, atol=0.005)


def test_the_sum_is_taken_from_inputs_with_a_small_variance():
    """A constant channel loses nothing, because the bias takes its part."""
    conv = nn.Conv2d(4, 9, 1).double()
    mean, variance = torch.rand(2, 4, dtype=torch.float64) + 0.5
    variance[2] = 1e-12
    x = mean + variance.sqrt() * torch.randn(1000, 4, dtype=torch.float64)
    x = x.view(-1, 4, 1, 1)
    outputs = (conv.weight.flatten(1) @ mean).detach()
    filters, bias = center_filters(
        conv.weight.detach(), conv.bias.detach(), outputs, inputs=(mean, variance)
    )
    torch.testing.assert_close(filters.sum((1, 2, 3)), torch.zeros(9).double())
    torch.testing.assert_close(F.conv2d(x, filters, bias), conv(x), rtol=0, atol=1e-2)


def standardized(*args, **kwargs):
    """Make a convolution whose filters sum to zero but for rounding errors."""
    conv = nn.Conv2d(*args, **kwargs)
    conv.weight.data.copy_(standardize_as_mmcv(0.3 + torch.randn_like(conv.weight)))
    return conv


def block(*args, activation, **kwargs):
    conv = standardized(*args, bias=False, **kwargs)
    return nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels), activation)


NETWORKS = {
    'resnet': lambda: nn.Sequential(
        block(3, 8, 3, padding=1, activation=nn.ReLU()),
        block(8, 12, 1, activation=nn.ReLU()),
        block(12, 8, 3, padding=1, groups=2, activation=nn.ReLU()),
    ),
    'without BN': lambda: nn.Sequential(
        standardized(3, 8, 3, padding=1), nn.ReLU(), standardized(8, 8, 3, padding=1)
    ),
    'depthwise': lambda: nn.Sequential(
        block(3, 8, 3, padding=1, activation=nn.SiLU()),
        block(8, 8, 5, padding=2, groups=8, activation=nn.SiLU()),
        block(8, 8, 1, activation=nn.Identity()),
        block(8, 8, 3, padding=1, groups=8, activation=nn.ReLU6()),
    ),
}


@pytest.mark.parametrize('max_scale', [1, 3])
@pytest.mark.parametrize('network', NETWORKS)
@torch.no_grad()
def test_filters_that_sum_to_nearly_zero_are_converted_exactly(network, max_scale):
    x = torch.rand(16, 3, 16, 16) + torch.rand(16, 3, 1, 1)
    net = settle(NETWORKS[network](), x)
    new, _ = convert_to_pws(net, max_scale=max_scale, progress=False)
    assert relative_error(new(x), net(x)) < 2e-5


def test_a_filter_that_sums_to_nearly_zero_says_nothing_of_the_mean():
    weight = standardized(4, 6, 3).weight.detach()
    weight[0] += 0.5  # this one says something
    outputs = weight.sum((1, 2, 3)) * 2 + torch.randn(6)
    filters, bias = center_filters(weight, torch.zeros(6), outputs)
    assert bias[1:].abs().max() < 1e-4
    torch.testing.assert_close(bias[0], outputs[0].double(), rtol=0.05, atol=0)
