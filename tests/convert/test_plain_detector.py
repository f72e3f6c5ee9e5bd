"""Tests of fuse_detector: the config and the network of plain convolutions."""

import copy
import functools
import re

import pytest
import torch
from conftest import load_config
from detectors import MASK_RCNN, SSD, STOCK_ORDER, build, randomized, write_detector
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn

from pws_mmdet.convert import fuse_detector
from pws_mmdet.layers import NoNorm, ReparamConv2d
from pws_mmdet.models import PWSVGG


@pytest.fixture
def detector(tmp_path, digits):
    return functools.partial(write_detector, tmp_path, digits)


def test_the_norm_layers_of_a_stock_backbone_only_add_beta(detector):
    config, _, model = detector(MASK_RCNN, changes=STOCK_ORDER)
    cfg, plain = fuse_detector(Config.fromfile(config), model.state_dict())
    assert cfg.model.backbone.type == 'mmdet.ResNet'
    assert cfg.model.neck.conv_cfg is None
    assert cfg.model.roi_head.mask_head.conv_cfg is None
    assert plain.backbone.norm_eval, 'or training would change what they compute'
    for name, conv in model.named_modules():
        if name.startswith('backbone') and isinstance(conv, ReparamConv2d):
            norm = name.replace('conv', 'bn').replace('downsample.0', 'downsample.1')
            norm = plain.get_submodule(norm)
            torch.testing.assert_close(norm.bias, conv.bias)
            assert not norm.bias.requires_grad
            assert torch.equal(norm.weight, torch.ones_like(norm.weight))
            assert not norm.running_mean.any()
            gain = (norm.running_var + norm.eps).rsqrt()
            torch.testing.assert_close(gain, torch.ones_like(gain), rtol=1e-6, atol=0)


GN = dict(type='GN', num_groups=2)


BN = dict(type='BN')


PWS = dict(type='PWS')


BACKBONES = {
    # changes to configs/mini/ssd96_r18_pws_digits.py, and the type in the new config
    'authors order': (dict(), 'PWSResNet'),
    'stem norm': (dict(pre_activation=False, stem_norm_cfg=GN), 'PWSResNet'),
    'stock order': (dict(pre_activation=False), 'mmdet.ResNet'),
    'deep stem': (
        dict(pre_activation=False, deep_stem=True, avg_down=True),
        'mmdet.ResNet',
    ),
    'bottlenecks': (
        dict(pre_activation=False, depth=50, style='caffe'),
        'mmdet.ResNet',
    ),
    'groups': (
        dict(pre_activation=False, depth=50, groups=2, base_width=8),
        'mmdet.ResNeXt',
    ),
    'BN after PWS': (dict(pre_activation=False, norm_cfg=BN), 'mmdet.ResNet'),
    'GN after PWS': (dict(pre_activation=False, norm_cfg=GN), 'PWSResNet'),
    'BN, authors order': (dict(norm_cfg=BN), 'PWSResNet'),
    'WN': (dict(pre_activation=False, conv_cfg=dict(type='WN')), 'mmdet.ResNet'),
    'no beta': (
        dict(pre_activation=False, conv_cfg=dict(type='PWS', beta=False)),
        'mmdet.ResNet',
    ),
    'kept means': (
        dict(pre_activation=False, conv_cfg=dict(type='PWS', keep_mean=True)),
        'mmdet.ResNet',
    ),
    'default': (dict(pre_activation=False, conv_cfg=...), 'mmdet.ResNet'),
}


@pytest.mark.parametrize('name', BACKBONES)
@torch.no_grad()
def test_backbones(name):
    changes, expected = BACKBONES[name]
    cfg = load_config('configs/mini/ssd96_r18_pws_digits.py')
    cfg.model.backbone.update(base_channels=8)
    for key, value in changes.items():
        cfg.model.backbone[key] = value  # update() would merge dicts
    if cfg.model.backbone.conv_cfg is ...:
        del cfg.model.backbone.conv_cfg  # PWSResNet has a default
    levels = [64, 128, 256] if cfg.model.backbone.depth == 50 else [16, 32, 64]
    cfg.model.neck.update(in_channels=levels, out_channels=[*levels, 64])
    cfg.model.bbox_head.in_channels = [*levels, 64]
    model = randomized(build(cfg))
    before = copy.deepcopy(cfg.to_dict())
    plain_cfg, plain = fuse_detector(cfg, model.state_dict())
    assert cfg.to_dict() == before
    assert plain_cfg.model.backbone.type == expected
    # The convolutions have a bias only if no norm layer can hold it.
    has_norm = expected != 'PWSResNet' or name == 'BN, authors order'
    conv_cfg = plain_cfg.model.backbone.conv_cfg
    assert conv_cfg == (None if has_norm else dict(type='BiasConv2d'))
    assert plain_cfg.model.neck.conv_cfg is None
    # 50 layers amplify a rounding error of 1e-7 to this size.
    tolerance = 1e-4 if cfg.model.backbone.depth == 50 else 1e-5
    check_same_network(model, plain, tolerance)
    rebuilt = build(plain_cfg).eval()
    rebuilt.load_state_dict(plain.state_dict())
    check_same_network(model, rebuilt, tolerance)


def check_same_network(model, plain, tolerance=1e-5):
    convs = [m for m in plain.modules() if isinstance(m, nn.Conv2d)]
    assert not any(isinstance(m, ReparamConv2d) for m in convs)
    x = torch.randn(1, 3, 96, 96)
    outputs = zip(flatten(model.eval()(x)), flatten(plain.eval()(x)), strict=True)
    for theirs, ours in outputs:
        error = (ours - theirs).abs().max() / theirs.abs().max()
        assert error <= tolerance, error.item()


def flatten(outputs):
    if isinstance(outputs, torch.Tensor):
        return [outputs]
    return [t for part in outputs for t in flatten(part)]


@pytest.mark.parametrize(
    'name',
    [
        'mini/ssd96_vgg16_pws_digits',
        'mini/ssd96_vgg16_wn_digits',
        'retinanet_r50_fpn_pws_1x',
    ],
)
@torch.no_grad()
def test_configs(name):
    cfg = load_config(f'configs/{name}.py')
    if 'r50' in name:
        cfg.model.backbone.update(base_channels=8)
        cfg.model.neck.in_channels = [32, 64, 128, 256]
    model = randomized(build(cfg))
    plain_cfg, plain = fuse_detector(cfg, model.state_dict())
    check_same_network(model, plain)
    text = plain_cfg.pretty_text
    assert not re.search(r"'(PWS|WN)'|PWSRunner|AlphaInit|EpochSeed|Divergence", text)
    assert not re.search('Pretrained|resnet50_pws_in1k', text)
    assert plain_cfg.custom_imports.imports == ['pws_mmdet']
    assert plain_cfg.default_scope == 'mmdet'
    for key in ('test_dataloader', 'test_evaluator', 'test_cfg', 'visualizer'):
        assert plain_cfg[key] == cfg[key], key
    for key in ('conv_cfg', 'head_conv_cfg', 'train_dataloader', 'optim_wrapper'):
        assert key not in plain_cfg


def test_a_predictor_with_one_beta_gets_a_bias_per_channel():
    cfg = load_config(SSD)
    model = randomized(build(cfg))
    _, plain = fuse_detector(cfg, model.state_dict())
    for theirs, ours in zip(
        model.bbox_head.cls_convs, plain.bbox_head.cls_convs, strict=True
    ):
        assert theirs[0].bias.shape == (1,)
        assert torch.equal(ours[0].bias, theirs[0].bias.expand(len(ours[0].weight)))


def test_predictors_without_beta():
    """The plain predictors have a bias anyway."""
    cfg = load_config(SSD)
    cfg.model.bbox_head.conv_cfg.beta = False
    model = randomized(build(cfg))
    check_same_network(model, fuse_detector(cfg, model.state_dict())[1])


def test_the_bias_of_a_shared_convolution_goes_to_each_norm_layer():
    """The levels of RetinaSepBNHead share convolutions, but not norm layers."""
    cfg = load_config('configs/retinanet_r50_fpn_pws_1x.py')
    cfg.model.backbone.update(base_channels=8)
    cfg.model.neck.in_channels = [32, 64, 128, 256]
    cfg.model.neck.out_channels = cfg.model.bbox_head.in_channels = 8
    cfg.model.bbox_head.update(
        type='RetinaSepBNHead', num_ins=5, norm_cfg=BN, feat_channels=8
    )
    model = randomized(build(cfg))
    plain_cfg, plain = fuse_detector(cfg, model.state_dict())
    assert plain_cfg.model.bbox_head.conv_cfg is None
    first, second = (m[0] for m in plain.bbox_head.cls_convs[:2])
    assert first.conv is second.conv
    check_same_network(model, plain)


def test_no_norm_layer_is_left_in_a_neck():
    cfg = load_config(SSD)
    cfg.model.neck.norm_cfg = dict(type='NoNorm')
    model = randomized(build(cfg))
    plain_cfg, plain = fuse_detector(cfg, model.state_dict())
    assert not any(isinstance(m, NoNorm) for m in plain.modules())
    assert plain_cfg.model.neck.conv_cfg is None
    check_same_network(model, plain)


def test_no_norm_with_a_bias_keeps_it():
    cfg = load_config(SSD)
    cfg.model.neck.norm_cfg = dict(type='NoNorm', bias=True)
    model = randomized(build(cfg))
    plain_cfg, plain = fuse_detector(cfg, model.state_dict())
    assert plain_cfg.model.backbone.conv_cfg is None
    assert plain_cfg.model.neck.conv_cfg == dict(type='BiasConv2d')
    check_same_network(model, plain)


@MODELS.register_module(force=True)
class VGGOfItsOwn(PWSVGG):
    """It takes no conv_cfg, so no config can make its convolutions plain."""

    def __init__(self, **kwargs):
        super().__init__(conv_cfg=dict(type='PWS'), **kwargs)


def test_convolutions_that_no_config_names_are_an_error():
    cfg = load_config(SSD)
    cfg.model.backbone = dict(type='VGGOfItsOwn', width=0.25)
    model = build(cfg)
    message = r'not made from a conv_cfg.*: backbone\.stages\.0\.0\.conv, .*fuse_pws'
    with pytest.raises(RuntimeError, match=message):
        fuse_detector(cfg, model.state_dict())


def test_only_keys_that_a_test_needs_are_kept():
    cfg = load_config(MASK_RCNN)
    cfg.model.backbone.pre_activation = False
    cfg.custom_imports.imports += ['numpy']
    cfg.custom_hooks += [dict(type='EMAHook'), dict(type='NumClassCheckHook')]
    cfg.test_evaluator = [cfg.test_evaluator, dict(type='FMeasureMetric')]
    cfg.work_dir, cfg.load_from = 'work_dirs/mine', 'coco.pth'
    model = build(cfg)
    plain_cfg, _ = fuse_detector(cfg, model.state_dict())
    assert plain_cfg.custom_imports.imports == ['numpy']
    assert [hook.type for hook in plain_cfg.custom_hooks] == ['NumClassCheckHook']
    assert [one.type for one in plain_cfg.test_evaluator] == ['CocoMetric']
    assert not {'work_dir', 'load_from', 'runner_type'} & set(plain_cfg)
