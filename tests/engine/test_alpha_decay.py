import copy

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from torch import nn

from pws_mmdet import PWSConv2d
from pws_mmdet.engine.alpha_decay import REMEDY


def model():
    return nn.Sequential(PWSConv2d(3, 4, 3), PWSConv2d(4, 4, 3), nn.Conv2d(4, 2, 1))


def steps(net, optimizer, count=2):
    for _ in range(count):
        net(torch.randn(1, 3, 9, 9)).sum().backward()
        optimizer.step()


def build(net, **optim_wrapper):
    optimizer = dict(type='SGD', lr=1e-2, weight_decay=1e-4)
    return build_optim_wrapper(net, dict(optimizer=optimizer, **optim_wrapper))


def test_one_warning_names_the_remedy(messages):
    net = model()
    steps(net, build(net), count=3)
    assert len(messages) == 1
    assert 'alpha of 2 PWS layers' in messages[0] and messages[0].endswith(REMEDY)


def test_the_remedy_works(messages):
    scope = {}
    exec(REMEDY.replace('optim_wrapper.', ''), {'dict': dict}, scope)
    net = model()
    wrapper = build(net, paramwise_cfg=scope['paramwise_cfg'])
    steps(net, wrapper)
    assert not messages
    decays = {id(g['params'][0]): g['weight_decay'] for g in wrapper.param_groups}
    for name, p in net.named_parameters():
        assert decays[id(p)] == (0 if name.endswith('alpha') else 1e-4), name


def test_a_longer_key_takes_the_full_names(messages):
    """'.alpha' has no effect beside 'backbone'; the names that are advised have."""
    net = nn.ModuleDict(dict(backbone=nn.ModuleDict(dict(conv1=PWSConv2d(3, 4, 3)))))
    keys = {'backbone': dict(lr_mult=0.1), '.alpha': dict(decay_mult=0.0)}
    full_name = "'backbone.conv1.alpha', with its lr_mult and decay_mult=0"
    for _ in range(2):
        wrapper = build(net, paramwise_cfg=dict(custom_keys=keys))
        net.backbone.conv1(torch.randn(1, 3, 9, 9)).sum().backward()
        wrapper.step()
        assert len(messages) == 1
        assert full_name in messages[0]
        keys['backbone.conv1.alpha'] = dict(lr_mult=0.1, decay_mult=0.0)
    assert {group['lr'] for group in wrapper.optimizer.param_groups} == {1e-3}


def test_optimizers_of_torch_and_copied_models(messages):
    net = copy.deepcopy(model())
    steps(net, torch.optim.AdamW(net.parameters(), weight_decay=0.05))
    assert len(messages) == 1


@pytest.mark.parametrize('optimizer', [torch.optim.SGD, torch.optim.Adam])
def test_silent_without_decay_or_alpha(optimizer, messages):
    net = model()
    steps(net, optimizer(net.parameters(), lr=1e-2))
    plain = nn.Conv2d(3, 4, 3)
    steps(plain, optimizer(plain.parameters(), lr=1e-2, weight_decay=1e-4))
    fixed = PWSConv2d(3, 4, 3, alpha='fixed')
    steps(fixed, optimizer(fixed.parameters(), lr=1e-2, weight_decay=1e-4))
    assert not messages
