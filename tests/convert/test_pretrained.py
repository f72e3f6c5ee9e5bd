"""Tests of init_cfg=dict(type='PWSPretrained', ...)."""

import pytest
import torch
from bn_networks import check_same
from bn_resnet import SMALL, make_bn_net, pws_net, refuse
from mmdet.models.backbones import ResNet
from mmengine.model import BaseModule
from torch import nn

from pws_mmdet import PWSConv2d
from pws_mmdet.convert import load_bn_weights


@pytest.fixture
def bn_net():
    return make_bn_net()


@pytest.fixture
def save(tmp_path):
    def save(content, name='bn.pth'):
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return save


@pytest.mark.parametrize('prefix', [None, 'backbone.'])
def test_weights_with_bn_are_converted(bn_net, save, prefix):
    weights = {(prefix or '') + k: v for k, v in bn_net.state_dict().items()}
    weights['head.fc.weight'] = torch.zeros(10, 64)
    net = pws_net(save(dict(state_dict=weights)))
    if prefix:
        net.init_cfg['prefix'] = prefix
    net.init_weights()
    net.eval()
    check_same(net, bn_net, torch.randn(2, 3, 64, 64))


def test_the_detector_is_not_copied_with_each_layer(bn_net, save, monkeypatch):
    """MMEngine lets each module refer to all parameters while it initializes them."""

    class Detector(BaseModule):
        def __init__(self):
            super().__init__()
            self.backbone = pws_net(save(bn_net.state_dict()))
            self.head = nn.Linear(7, 7)

    copied = []
    copy_parameter = nn.Parameter.__deepcopy__

    def count(parameter, memo):
        copied.append(tuple(parameter.shape))
        return copy_parameter(parameter, memo)

    detector = Detector()
    monkeypatch.setattr(nn.Parameter, '__deepcopy__', count)
    detector.init_weights()
    assert (7, 7) not in copied
    assert len(copied) < 8 * len(list(detector.backbone.parameters()))


FROM_SCRATCH = dict(conv_cfg=dict(type='PWS'))


@pytest.mark.parametrize('options', [{}, FROM_SCRATCH])
def test_weights_with_pws_are_loaded(save, options):
    """Also those of a network from scratch, which have no means."""
    source = pws_net(**options)
    for module in source.modules():
        if isinstance(module, PWSConv2d):
            nn.init.uniform_(module.alpha)
            if module.mean is not None:
                nn.init.normal_(module.mean)
    weights = source.state_dict()
    net = pws_net(save(weights))
    nn.init.ones_(net.conv1.mean)
    net.init_weights()
    for key, value in net.state_dict().items():
        expected = weights.get(key, torch.zeros_like(value))
        assert torch.equal(value, expected), key


def test_means_are_not_dropped(save):
    net = pws_net(save(pws_net().state_dict()), **FROM_SCRATCH)
    with pytest.raises(ValueError, match='bn.pth: the filters of conv1 keep .*=True'):
        net.init_weights()


def test_a_detector_does_not_initialize_its_backbone_again(bn_net, save):
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


def test_the_eps_of_bn_is_used(bn_net, save):
    for module in bn_net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.1
    net = pws_net(save(bn_net.state_dict()))
    net.init_cfg['bn_eps'] = 0.1
    net.init_weights()
    net.eval()
    x = torch.randn(2, 3, 64, 64)
    check_same(net, bn_net, x)
    weights = bn_net.state_dict()
    other = pws_net()
    load_bn_weights(other, weights)
    other.eval()
    y = bn_net(x)[-1]
    assert (other(x)[-1] - y).abs().max() > 0.01 * y.abs().max()
    for eps in (-1, float('nan')):
        refuse(pws_net(), weights, 'the eps of BN must be finite', bn_eps=eps)


def test_weights_that_do_not_fit_are_refused(save):
    plain = pws_net().state_dict()
    path = save({k: v for k, v in plain.items() if 'layer1.0.conv1.alpha' != k})
    with pytest.raises(ValueError, match='bn.pth: these are .*layer1.0.conv1'):
        pws_net(path).init_weights()
    path = save(pws_net(base_channels=4, stem_channels=4).state_dict())
    message = r'bn.pth: the weights do not fit the network: size mismatch for conv1'
    with pytest.raises(ValueError, match=message):
        pws_net(path).init_weights()


@pytest.mark.parametrize('norm', ['GN', 'IN', 'BN'])
def test_norms_without_statistics_are_refused(save, norm):
    """BN with track_running_stats=False has none, either."""
    name = f'{norm.lower()}1'
    source = ResNet(**SMALL).state_dict()
    source = {
        k.replace('bn1', name): v for k, v in source.items() if 'running' not in k
    }
    message = f'lacks their norm layers {name}, .*with BN, or train it from scratch'
    refuse(pws_net(), source, message)
    with pytest.raises(ValueError, match=f'bn.pth: .*{message}'):
        pws_net(save(source)).init_weights()


def test_weights_of_another_network_are_refused(save):
    path = save(dict(state_dict={'fc.weight': torch.zeros(2, 2)}))
    with pytest.raises(ValueError, match='bn.pth: the weights do not fit'):
        pws_net(path).init_weights()
