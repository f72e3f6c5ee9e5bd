import copy

import pytest
import torch
from mmcv.cnn import ConvAWS2d, ConvModule
from mmdet.models.backbones import ResNet
from mmengine.model import BaseModule
from torch import nn

from pws_mmdet import PWSConv2d, convert_to_pws
from pws_mmdet.checkpoint.read import weights_of
from pws_mmdet.convert.pretrained import load_bn_weights
from pws_mmdet.engine import PWSAlphaInitHook
from pws_mmdet.models import PWSResNet

SMALL = dict(depth=18, base_channels=8, stem_channels=8)


@pytest.fixture
def bn_net():
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
    init_cfg = checkpoint and dict(type='PWSPretrained', checkpoint=str(checkpoint))
    options = dict(pre_activation=False, stem_norm_cfg=None, init_cfg=init_cfg)
    return PWSResNet(**{**SMALL, **options, **kwargs})


@pytest.fixture
def save(tmp_path):
    def save(content, name='bn.pth'):
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return save


PLAIN_STEM = dict(stem_conv_cfg=dict(type='BiasConv2d'))


@pytest.mark.parametrize('options, exclude', [({}, ()), (PLAIN_STEM, ['^conv1$'])])
def test_by_name_is_what_the_network_itself_gives(bn_net, options, exclude):
    """One conversion knows the layers by their modules, the other by their names."""
    x = torch.randn(2, 3, 64, 64)
    for batches in (None, [torch.randn(4, 3, 64, 64)]):
        by_module, _ = convert_to_pws(bn_net, batches, exclude, progress=False)
        by_name = pws_net(**options)
        report, unused = load_bn_weights(
            by_name, bn_net.state_dict(), batches, progress=False
        )
        by_name.eval()
        assert len(report) == 20 and not unused
        for y, expected in zip(by_name(x), by_module(x), strict=True):
            torch.testing.assert_close(y, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('prefix', [None, 'backbone.'])
def test_init_cfg_converts_bn(bn_net, save, messages, prefix):
    weights = {(prefix or '') + k: v for k, v in bn_net.state_dict().items()}
    weights['head.fc.weight'] = torch.zeros(10, 64)
    net = pws_net(save(dict(state_dict=weights)))
    if prefix:
        net.init_cfg['prefix'] = prefix
    net.init_weights()
    net.eval()
    expected, _ = convert_to_pws(bn_net, progress=False)
    x = torch.randn(2, 3, 64, 64)
    for y, e in zip(net(x), expected(x), strict=True):
        torch.testing.assert_close(y, e, rtol=1e-3, atol=1e-3)
    assert any('bn_to_pws.py' in text for text in messages)


def test_init_cfg_loads_pws(save):
    source = pws_net()
    for module in source.modules():
        if isinstance(module, PWSConv2d):
            nn.init.uniform_(module.alpha)
    net = pws_net(save(source.state_dict()))
    net.init_weights()
    for key, value in net.state_dict().items():
        assert torch.equal(value, source.state_dict()[key]), key


def test_in_a_detector_nothing_overwrites_it(bn_net, save):
    class Detector(BaseModule):
        def __init__(self, backbone):
            super().__init__()
            self.backbone = backbone
            self.conv = nn.Conv2d(3, 3, 1)

    path = save(bn_net.state_dict())
    detector = Detector(pws_net(path))
    detector.init_weights()
    alone = pws_net(path)
    alone.init_weights()
    for key, value in alone.state_dict().items():
        assert torch.equal(value, detector.backbone.state_dict()[key]), key


def test_alpha_that_was_converted_is_not_initialized_from_data(bn_net, make_runner):
    hook = PWSAlphaInitHook()
    net = pws_net()
    runner = type('Runner', (), dict(model=net))
    hook.before_run(runner)
    load_bn_weights(net, bn_net.state_dict(), progress=False)
    assert hook.loaded == {m for m in net.modules() if isinstance(m, PWSConv2d)}


def test_the_eps_of_bn(bn_net, save):
    for module in bn_net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.1
    expected, _ = convert_to_pws(bn_net, progress=False)
    net = pws_net(save(bn_net.state_dict()))
    net.init_cfg['bn_eps'] = 0.1
    net.init_weights()
    net.eval()
    x = torch.randn(2, 3, 64, 64)
    for y, e in zip(net(x), expected(x), strict=True):
        torch.testing.assert_close(y, e, rtol=1e-3, atol=1e-3)
    weights = bn_net.state_dict()
    other = pws_net()
    load_bn_weights(other, weights, progress=False)
    other.eval()
    assert (other(x)[-1] - y).abs().max() > 0.01 * y.abs().max()
    for eps in (-1, float('nan')):
        refuse(pws_net(), weights, 'the eps of BN must be finite', bn_eps=eps)


def test_bn_layers_of_unknown_names(bn_net):
    weights = {k.replace('bn1', 'post'): v for k, v in bn_net.state_dict().items()}
    last = sorted(weights, key=lambda key: 'post' in key)
    weights = {key: weights[key] for key in last}
    refuse(pws_net(), weights, 'not known which convolution .*layer1.0.post')


@pytest.mark.parametrize('names', [('bn1', 'norm_a'), ('bn2', 'after')])
def test_bn_that_is_written_next_to_its_convolution(bn_net, names):
    expected, net = pws_net(), pws_net()
    net.load_state_dict(expected.state_dict())
    load_bn_weights(expected, bn_net.state_dict(), progress=False)
    weights = {k.replace(*names): v for k, v in bn_net.state_dict().items()}
    load_bn_weights(net, weights, progress=False)
    for key, value in net.state_dict().items():
        assert torch.equal(value, expected.state_dict()[key]), key


def test_checkpoints_of_the_other_kind_or_size(save):
    plain = pws_net().state_dict()
    path = save({k: v for k, v in plain.items() if 'layer1.0.conv1.alpha' != k})
    with pytest.raises(ValueError, match='bn.pth: these are .*layer1.0.conv1'):
        pws_net(path).init_weights()
    path = save(pws_net(base_channels=4, stem_channels=4).state_dict())
    message = r'bn.pth: the weights do not fit the network: size mismatch for conv1'
    with pytest.raises(ValueError, match=message):
        pws_net(path).init_weights()


def refuse(net, weights, message, **options):
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match=message):
        load_bn_weights(net, weights, progress=False, **options)
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key])


def test_bad_weights(bn_net):
    weights = bn_net.state_dict()
    some = {k: v for k, v in weights.items() if not k.startswith('layer4')}
    refuse(pws_net(), some, 'they lack layer4.0.conv1.weight, layer4.0.conv2')
    narrow = ResNet(18, base_channels=4, stem_channels=4).state_dict()
    refuse(pws_net(), narrow, r'conv1.weight is \(4, 3, 7, 7\), not \(8, 3, 7, 7\)')
    stem = {k: narrow[k] if '1.' in k[:6] else v for k, v in weights.items()}
    shapes = r'conv1.weight is \(4, 3, 7, 7\), not \(8, 3, 7, 7\)'
    refuse(pws_net(**PLAIN_STEM), stem, shapes)
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


def test_weights_that_are_standardized_are_what_the_network_computes(bn_net):
    """Those of MMCV's ConvWS are told by a flag, of ConvAWS by their names."""
    for kind in ('ConvWS', 'ConvAWS'):
        original = ResNet(**SMALL, conv_cfg=dict(type=kind))
        original.load_state_dict(bn_net.state_dict(), strict=False)
        for module in original.modules():
            if isinstance(module, ConvAWS2d):
                nn.init.uniform_(module.weight_gamma, 0.5, 1.5)
                nn.init.normal_(module.weight_beta, 0, 0.1)
        original.eval()
        by_module, report = convert_to_pws(original, progress=False)
        assert len(report) == 20
        by_name = pws_net()
        load_bn_weights(
            by_name, original.state_dict(), conv_ws=kind == 'ConvWS', progress=False
        )
        x = torch.randn(2, 3, 64, 64)
        by_name.eval()
        for y, expected in zip(by_name(x), by_module(x), strict=True):
            torch.testing.assert_close(y, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('norm', ['GN', 'IN', 'BN'])
def test_norms_without_statistics_cannot_be_converted(save, norm):
    """BN with track_running_stats=False is one, too."""
    name = f'{norm.lower()}1'
    source = ResNet(**SMALL).state_dict()
    source = {
        k.replace('bn1', name): v for k, v in source.items() if 'running' not in k
    }
    message = f'lacks their norm layers {name}, .*with BN, or train it from scratch'
    refuse(pws_net(), source, message)
    with pytest.raises(ValueError, match=f'bn.pth: .*{message}'):
        pws_net(save(source)).init_weights()


def test_several_bn_layers_behind_one_convolution():
    """As in the head of RTMDet: what they make of it is not the same filters."""

    def net(**options):
        convs = nn.Sequential(*(ConvModule(4, 4, 3, **options) for _ in range(2)))
        convs[1].conv = convs[0].conv
        return convs

    weights = net(norm_cfg=dict(type='BN')).state_dict()
    refuse(net(conv_cfg=dict(type='PWS')), weights, 'shares some, .*share_conv=False')
    shared = net(conv_cfg=dict(type='PWS'))
    report, unused = load_bn_weights(shared, net().state_dict(), progress=False)
    assert len(report) == 1 and not unused
    assert shared[0].conv is shared[1].conv


def test_what_cannot_hold_the_filters_is_told_first(bn_net, monkeypatch):
    monkeypatch.setattr('pws_mmdet.convert.pretrained.center_network', None)
    for options in (dict(alpha='layer'), dict(beta=False)):
        net = pws_net(conv_cfg=dict(type='PWS', **options))
        refuse(net, bn_net.state_dict(), 'conv1: (alpha|beta) must be')


def test_checkpoints(bn_net, save):
    assert 'conv1.weight' in weights_of({'module.conv1.weight': torch.zeros(1)})
    for content in ({}, [1], dict(state_dict={}), dict(epoch=1)):
        with pytest.raises(ValueError, match='no weights'):
            weights_of(content)
    with pytest.raises(ValueError, match=r'named backbone.*, but conv1'):
        weights_of(dict(state_dict={'conv1.weight': torch.zeros(1)}), 'backbone')
    path = save(dict(state_dict={'fc.weight': torch.zeros(2, 2)}))
    with pytest.raises(ValueError, match='bn.pth: the weights do not fit'):
        pws_net(path).init_weights()
