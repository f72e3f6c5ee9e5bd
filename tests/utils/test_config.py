"""Configs are read, models are built from them, and their parts are found."""

import pytest
from conftest import ROOT
from mmdet.models import ResNet
from mmengine.config import Config, ConfigDict
from mmengine.model import PretrainedInit
from mmengine.registry import init_default_scope
from test_configs import CONFIGS
from torch import nn

from pws_mmdet import PWSConv2d
from pws_mmdet.convert import PWSPretrainedInit
from pws_mmdet.layers import NoNorm
from pws_mmdet.utils.config import (
    build_model,
    dict_at,
    drop_pretrained,
    registered,
    type_name,
    walk,
)


def test_a_layer_that_does_not_exist_is_named():
    cfg = Config.fromfile(ROOT / 'configs/mini/ssd96_vgg16_pws_digits.py')
    cfg.model.backbone.conv_cfg.type = 'PSW'
    cfg.model.neck.init_cfg = dict(type='Xavier', layer='Conv2d')  # no layer
    with pytest.raises(ValueError) as error:
        build_model('ssd', cfg)
    expected = "model.backbone.conv_cfg: there is no layer 'PSW'; did you mean 'PWS'?"
    assert expected in str(error.value)
    assert 'init_cfg' not in str(error.value)


@pytest.mark.parametrize('scope', ['', 'mmengine.'])
def test_types_are_found_by_name(scope):
    init_default_scope('mmdet')
    for name, cls in dict(NoNorm=NoNorm, PWS=PWSConv2d, BN=nn.BatchNorm2d).items():
        assert registered(dict(type=scope + name)) is cls
        assert type_name(dict(type=scope + name)) == name


def test_types_may_be_classes():
    assert registered(dict(type=NoNorm)) is NoNorm
    assert type_name(ConfigDict(type=NoNorm)) == 'NoNorm'


def test_a_dict_below_keys():
    cfg = Config(dict(a=dict(b=dict(c=1)), d=[dict(e=2)], f=None))
    assert dict_at(cfg, 'a', 'b') == dict(c=1)
    for keys in (('a', 'b', 'c'), ('d', 'e'), ('f', 'g'), ('x', 'y')):
        assert dict_at(cfg, *keys) is None


def test_a_part_without_a_type_has_no_class():
    for cfg in (None, {}, 3, [dict(type='BN')]):
        assert registered(cfg) is None
        assert type_name(cfg) == ''
    assert registered(dict(type='unknown')) is None
    assert type_name(dict(type='package.module.Class')) == 'Class'


@pytest.mark.parametrize(
    'type_',
    [
        'Pretrained',
        'mmengine.Pretrained',
        PretrainedInit,
        'PWSPretrained',
        PWSPretrainedInit,
    ],
)
def test_drop_pretrained_removes_all_checkpoints(type_):
    pretrained = dict(type=type_, checkpoint='nowhere.pth')
    normal = dict(type='Normal', layer='Conv2d')
    cfg = dict(
        backbone=dict(type='A', init_cfg=pretrained, depth=(1, 2)),
        heads=[dict(init_cfg=[normal, pretrained]), dict(init_cfg=normal)],
        neck=dict(init_cfg=None, pretrained='nowhere.pth'),
        teacher_ckpt='nowhere.pth',
    )
    before = repr(cfg)
    assert drop_pretrained(cfg) == dict(
        backbone=dict(type='A', depth=(1, 2)),
        heads=[dict(init_cfg=[normal]), dict(init_cfg=normal)],
        neck=dict(init_cfg=None),
    )
    assert repr(cfg) == before


@pytest.mark.parametrize('name', CONFIGS)
def test_drop_pretrained_removes_the_checkpoints_of_all_our_configs(name):
    model = Config.fromfile(ROOT / name).get('model')
    assert 'checkpoint' not in str(drop_pretrained(model)).replace('_checkpoint', '')


def test_build_model_does_not_load_the_weights_of_a_teacher(tmp_path):
    """MMDetection's localization distillation has a teacher."""
    cfg = Config.fromfile(f'{ROOT}/configs/mini/ssd96_vgg16_pws_digits.py')
    cfg.model = dict(
        type='mmdet.KnowledgeDistillationSingleStageDetector',
        teacher_config=dict(model=cfg.model),
        teacher_ckpt='nowhere.pth',
        **{k: v for k, v in cfg.model.items() if k not in ('type', 'init_cfg')},
    )
    build_model('distilled.py', cfg)


def test_build_model_takes_a_class_as_type():
    backbone = dict(type=ResNet, depth=18, init_cfg=dict(type=PretrainedInit))
    assert isinstance(build_model('x.py', Config(dict(model=backbone))), ResNet)


def test_walk_yields_each_part_before_those_in_it():
    cfg = dict(neck=[dict(type='A'), 3], test_cfg=dict(type='B'))
    assert list(walk(cfg, 'model', skip=['test_cfg'])) == [
        ('model', cfg),
        ('model.neck', cfg['neck']),
        ('model.neck.0', cfg['neck'][0]),
        ('model.neck.0.type', 'A'),
        ('model.neck.1', 3),
    ]
    names = []
    for name, part in walk(cfg):
        names.append(name)
        if part == dict(type='A'):
            part['new'] = 1
    assert 'neck.0.new' in names and 'test_cfg.type' in names
