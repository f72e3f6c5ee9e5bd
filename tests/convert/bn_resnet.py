"""A small ResNet with BN, and the same network with PWS."""

import copy

import pytest
import torch
from mmdet.models.backbones import ResNet
from torch import nn

from pws_mmdet.convert import load_bn_weights
from pws_mmdet.models import PWSResNet

SMALL = dict(
    depth=18,
    base_channels=8,
    stem_channels=8,
    num_stages=2,
    strides=(1, 2),
    dilations=(1, 1),
    out_indices=(0, 1),
)


def make_bn_net():
    """Return a ResNet whose BN has statistics, gains and biases as after a training."""
    net = ResNet(norm_eval=False, **SMALL)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
    net.train()
    with torch.no_grad():
        for _ in range(3):
            net(torch.randn(8, 3, 64, 64))
    net.eval()
    return net


def pws_net(checkpoint=None, **kwargs):
    """Return the network with PWS, whose filters keep their means.

    Args:
        checkpoint: Where its ``init_weights()`` takes weights from.
        **kwargs: Other arguments of PWSResNet.
    """
    init_cfg = checkpoint and dict(type='PWSPretrained', checkpoint=str(checkpoint))
    options = dict(pre_activation=False, stem_norm_cfg=None, init_cfg=init_cfg)
    options['conv_cfg'] = dict(type='PWS', keep_mean=True)
    return PWSResNet(**{**SMALL, **options, **kwargs})


def refuse(net, weights, message, **options):
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match=message):
        load_bn_weights(net, weights, **options)
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key])
