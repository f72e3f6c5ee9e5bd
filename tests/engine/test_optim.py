"""No alpha is decayed, and everything else is MMEngine's."""

import copy

import pytest
from mmengine.optim import build_optim_wrapper
from torch import nn
from torch.nn.utils import prune

from pws_mmdet import PWSConv2d

CUSTOM_KEYS = {
    'none': {},
    'backbone': {'backbone': dict(lr_mult=0.1, decay_mult=2.0)},
    'alpha': {'alpha': dict(lr_mult=0.5, decay_mult=3.0)},
}


@pytest.fixture
def model():
    backbone = nn.Sequential(
        PWSConv2d(3, 4, 3), PWSConv2d(4, 4, 3, alpha='layer'), nn.BatchNorm2d(4)
    )
    head = nn.Sequential(PWSConv2d(4, 4, 3, alpha='fixed'), nn.Conv2d(4, 2, 1))
    head[1].alpha = nn.Parameter(head[1].bias.detach().clone())  # other people's
    return nn.ModuleDict(dict(backbone=backbone, head=head))


def settings(model, constructor, optimizer='SGD', **cfg):
    """Return the options of the optimizer for each parameter, by name."""
    cfg['optimizer'] = dict(type=optimizer, lr=1e-2, weight_decay=1e-4)
    wrapper = build_optim_wrapper(model, dict(constructor=constructor, **cfg))
    names = {p: name for name, p in model.named_parameters()}
    groups = wrapper.optimizer.param_groups
    found = {
        names[p]: {k: v for k, v in group.items() if k != 'params'}
        for group in groups
        for p in group['params']
    }
    assert len(found) == sum(len(group['params']) for group in groups)
    return found


@pytest.mark.parametrize('keys', CUSTOM_KEYS)
@pytest.mark.parametrize('optimizer', ['SGD', 'AdamW'])
def test_only_alpha_is_not_decayed(model, keys, optimizer):
    cfg = dict(optimizer=optimizer)
    if keys != 'none':
        cfg['paramwise_cfg'] = dict(custom_keys=CUSTOM_KEYS[keys], norm_decay_mult=0)
    theirs = settings(model, 'DefaultOptimWrapperConstructor', **cfg)
    ours = settings(model, 'PWSOptimWrapperConstructor', **copy.deepcopy(cfg))
    for name in ('backbone.0.alpha', 'backbone.1.alpha'):
        assert theirs[name].pop('weight_decay') > 0
        assert ours[name].pop('weight_decay') == 0
    assert ours == theirs


def test_a_pruned_alpha_is_not_decayed(model):
    prune.l1_unstructured(model.backbone[0], 'alpha', amount=0.5)
    ours = settings(model, 'PWSOptimWrapperConstructor')
    assert ours['backbone.0.alpha_orig']['weight_decay'] == 0


def test_a_model_without_alpha_and_a_wrapped_model(model):
    plain = nn.Conv2d(3, 4, 3)
    assert settings(plain, 'PWSOptimWrapperConstructor') == settings(
        plain, 'DefaultOptimWrapperConstructor'
    )
    ours = settings(nn.DataParallel(model), 'PWSOptimWrapperConstructor')
    assert ours['module.backbone.0.alpha']['weight_decay'] == 0


def test_there_are_only_two_parameter_groups(model):
    """MMEngine logs a line for each group."""
    optimizer = dict(type='SGD', lr=1e-2, weight_decay=1e-4)
    cfg = dict(constructor='PWSOptimWrapperConstructor', optimizer=optimizer)
    groups = build_optim_wrapper(model, cfg).optimizer.param_groups
    assert [group['weight_decay'] for group in groups] == [1e-4, 0]
