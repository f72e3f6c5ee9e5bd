"""Tests of load_bn_weights: convert weights by the names of layers."""

import functools

import pytest
import torch
from bn_networks import check_same
from bn_resnet import SMALL, make_bn_net, pws_net, refuse
from mmcv.cnn import ConvAWS2d, ConvModule
from mmcv.ops import ModulatedDeformConv2d
from mmdet.models.backbones import ResNet
from torch import nn

from pws_mmdet import PWSConv2d, convert_to_pws
from pws_mmdet.convert import load_bn_weights
from pws_mmdet.engine import PWSAlphaInitHook


@pytest.fixture
def bn_net():
    return make_bn_net()


def test_the_network_computes_the_same(bn_net):
    net = pws_net()
    report, unused = load_bn_weights(net, bn_net.state_dict())
    convs = [n for n, m in net.named_modules() if isinstance(m, nn.Conv2d)]
    assert sorted(map(str, report)) == sorted(f'{name}: converted' for name in convs)
    assert not unused and all(type(net.get_submodule(n)) is PWSConv2d for n in convs)
    net.eval()
    check_same(net, bn_net, torch.randn(2, 3, 64, 64))


def test_conversion_by_names_equals_conversion_by_modules(bn_net):
    """convert_to_pws sees the modules, load_bn_weights only the names of weights."""
    by_module, _ = convert_to_pws(bn_net)
    by_name = pws_net()
    load_bn_weights(by_name, bn_net.state_dict())
    for key, value in by_name.state_dict().items():
        made = by_module.state_dict()[key]
        torch.testing.assert_close(made, value, rtol=1e-4, atol=1e-6, msg=key)


def test_a_plain_convolution_takes_in_the_bn_that_the_network_lacks(bn_net):
    net = pws_net()
    net.conv1 = nn.Conv2d(3, 8, 7, 2, 3)
    report, unused = load_bn_weights(net, bn_net.state_dict())
    assert [layer.name for layer in report if layer.kept] == ['conv1'] and not unused
    assert 'is a plain convolution in the network' in report[0].kept
    net.eval()
    check_same(net, bn_net, torch.randn(2, 3, 64, 64))


def test_alpha_init_hook_keeps_converted_layers(bn_net, make_runner):
    hook = PWSAlphaInitHook()
    net = pws_net()
    runner = type('Runner', (), dict(model=net))
    hook.before_run(runner)
    load_bn_weights(net, bn_net.state_dict())
    assert hook.loaded == {m for m in net.modules() if isinstance(m, PWSConv2d)}


def test_bn_layers_with_unknown_names_are_refused(bn_net):
    weights = {k.replace('bn1', 'post'): v for k, v in bn_net.state_dict().items()}
    last = sorted(weights, key=lambda key: 'post' in key)
    weights = {key: weights[key] for key in last}
    refuse(pws_net(), weights, 'not known which convolution .*layer1.0.post')


@pytest.mark.parametrize('names', [('bn1', 'norm_a'), ('bn2', 'after')])
def test_bn_next_to_its_convolution_may_have_any_name(bn_net, names):
    expected, net = pws_net(), pws_net()
    net.load_state_dict(expected.state_dict())
    load_bn_weights(expected, bn_net.state_dict())
    weights = {k.replace(*names): v for k, v in bn_net.state_dict().items()}
    load_bn_weights(net, weights)
    for key, value in net.state_dict().items():
        assert torch.equal(value, expected.state_dict()[key]), key


def test_bad_weights(bn_net):
    weights = bn_net.state_dict()
    some = {k: v for k, v in weights.items() if not k.startswith('layer2')}
    refuse(pws_net(), some, 'they lack layer2.0.conv1.weight, layer2.0.conv2')
    narrow = ResNet(**{**SMALL, 'base_channels': 4, 'stem_channels': 4}).state_dict()
    refuse(pws_net(), narrow, r'conv1.weight is \(4, 3, 7, 7\), not \(8, 3, 7, 7\)')
    stem = {k: narrow[k] if '1.' in k[:6] else v for k, v in weights.items()}
    net = pws_net()
    net.conv1 = nn.Conv2d(3, 8, 7, 2, 3)  # plain
    refuse(net, stem, r'conv1.weight is \(4, 3, 7, 7\), not \(8, 3, 7, 7\)')
    refuse(pws_net(), pws_net().state_dict(), 'with PWS already')
    nan = {**weights, 'conv1.weight': weights['conv1.weight'] * float('nan')}
    refuse(pws_net(), nan, 'NaN or infinity in conv1.weight')
    refuse(pws_net(conv_cfg=None, norm_cfg=dict(type='BN')), weights, 'no PWS')


def test_networks_that_compute_something_else(bn_net):
    weights = bn_net.state_dict()
    refuse(pws_net(pre_activation=True), weights, 'pre_activation=False')
    stem = pws_net(stem_norm_cfg=dict(type='GN', num_groups=1))
    refuse(stem, weights, 'they lack gn1.weight, gn1.bias')
    fixed = pws_net(conv_cfg=dict(type='PWS', alpha='fixed'))
    refuse(fixed, weights, "conv1: alpha must be 'channel'")


def test_weights_of_conv_ws_and_conv_aws_are_standardized(bn_net):
    """A flag tells that weights are of ConvWS; names tell that they are of ConvAWS."""
    for kind in ('ConvWS', 'ConvAWS'):
        original = ResNet(**SMALL, conv_cfg=dict(type=kind))
        original.load_state_dict(bn_net.state_dict(), strict=False)
        for module in original.modules():
            if isinstance(module, ConvAWS2d):
                nn.init.uniform_(module.weight_gamma, 0.5, 1.5)
                nn.init.normal_(module.weight_beta, 0, 0.1)
        original.eval()
        by_module, report = convert_to_pws(original)
        assert len(report) == 10 and not any(layer.kept for layer in report)
        by_name = pws_net()
        load_bn_weights(by_name, original.state_dict(), conv_ws=kind == 'ConvWS')
        by_name.eval()
        for made in (by_name, by_module):
            check_same(made, original, torch.randn(2, 3, 64, 64))


def test_several_bn_layers_after_one_convolution_are_refused():
    """As in the head of RTMDet. Without BN, the shared convolution is converted."""

    def net(**options):
        convs = nn.Sequential(*(ConvModule(4, 4, 3, **options) for _ in range(2)))
        convs[1].conv = convs[0].conv
        return convs

    conv_cfg = dict(type='PWS', keep_mean=True)
    weights = net(norm_cfg=dict(type='BN')).state_dict()
    refuse(net(conv_cfg=conv_cfg), weights, 'shares some, .*share_conv=False')
    shared = net(conv_cfg=conv_cfg)
    report, unused = load_bn_weights(shared, net().state_dict())
    assert len(report) == 1 and not unused
    assert shared[0].conv is shared[1].conv


def test_layers_that_cannot_hold_filters_are_refused_first(bn_net, monkeypatch):
    monkeypatch.setattr('pws_mmdet.convert.bn_weights.convert_folded', None)
    for options in (dict(alpha='layer'), dict(beta=False)):
        net = pws_net(conv_cfg=dict(type='PWS', keep_mean=True, **options))
        refuse(net, bn_net.state_dict(), 'conv1: (alpha|beta) must be')
    net = pws_net(conv_cfg=dict(type='PWS'))
    refuse(net, bn_net.state_dict(), "conv1: .*type='PWS', keep_mean=True")


def test_the_report_names_convolutions_that_are_not_converted():
    def net(conv, norm):
        return nn.Sequential(
            *(conv(3, 4, 3), norm(4), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU()),
            *(nn.ConvTranspose2d(4, 4, 2), ConvAWS2d(4, 4, 3), nn.Linear(4, 4)),
            ModulatedDeformConv2d(4, 4, 3),
        )

    target = net(functools.partial(PWSConv2d, keep_mean=True), nn.Identity)
    original = net(nn.Conv2d, nn.BatchNorm2d)
    report, unused = load_bn_weights(target, original.state_dict())
    assert not unused and str(report[0]) == '0: converted'
    reasons = {line.name: line.kept for line in report if line.kept}
    assert list(reasons) == ['3', '5', '6', '8']
    words = ['plain conv', 'ConvTranspose2d, and', 'ConvAWS2d, which', 'Deform']
    for reason, word in zip(reasons.values(), words, strict=True):
        assert word in reason
    with torch.no_grad():
        converted, by_module = convert_to_pws(original)
    assert by_module[-1] == report[-1]
    assert type(converted[8]) is ModulatedDeformConv2d
