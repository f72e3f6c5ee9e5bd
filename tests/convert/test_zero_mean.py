"""Tests of zero-mean filters without images."""

import torch
import torch.nn.functional as F
from torch import nn

from pws_mmdet.convert.zero_mean import center_filters, relu_moments


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
