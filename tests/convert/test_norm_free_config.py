"""Tests of make_norm_free: norm-free variants of MMDetection's configs."""

from pathlib import Path

import pytest
import torch
from mmcv.ops import DeformConv2d
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS
from mmengine.utils import get_installed_path
from torch import nn

from pws_mmdet import PWSConv2d, summarize_model
from pws_mmdet.analysis.layer_kinds import NORM
from pws_mmdet.convert import make_norm_free, norm_free_model
from pws_mmdet.convert.norm_free_config import (
    HEAD_CONV_CFG,
    HOOKS,
    bn_eps_of,
    changes_of,
)

FCOS = 'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py'


def test_a_config_that_inherits(tmp_path):
    """It holds what differs, and builds the norm-free model."""
    out = tmp_path / 'new/fcos_pws.py'
    made = make_norm_free(FCOS, out)
    assert made.path == out and not made.notes
    cfg = Config.fromfile(out)
    base = Config.fromstring(f'_base_ = {FCOS!r}', '.py')
    assert cfg.custom_imports.imports == ['pws_mmdet']
    assert cfg.train_dataloader == base.train_dataloader
    assert cfg.optim_wrapper.constructor == 'PWSOptimWrapperConstructor'
    assert cfg.optim_wrapper.paramwise_cfg.bias_lr_mult == 2  # the base's
    assert cfg.optim_wrapper.clip_grad == base.optim_wrapper.clip_grad
    assert cfg.custom_hooks == HOOKS
    backbone = cfg.model.backbone
    assert backbone.type == 'PWSResNet' and not backbone.pre_activation
    assert backbone.frozen_stages == 1 and 'norm_cfg' not in backbone
    assert backbone.init_cfg.type == 'PWSPretrained'
    assert backbone.init_cfg.checkpoint == base.model.backbone.init_cfg.checkpoint
    assert cfg.model.bbox_head.loss_cls == base.model.bbox_head.loss_cls
    model = MODELS.build(cfg.model)
    for conv in (model.neck.fpn_convs[0].conv, model.bbox_head.cls_convs[0].conv):
        assert isinstance(conv, PWSConv2d)
    # so that it can take over weights that were trained with BN
    convs = [m for m in model.modules() if isinstance(m, PWSConv2d)]
    assert all(conv.mean is not None for conv in convs)
    assert 'keep_mean' in out.read_text()
    assert not any(layer.kind == NORM for layer in summarize_model(model).layers)


def test_a_config_file_with_imports_and_hooks_of_its_own(tmp_path):
    base = tmp_path / 'base.py'
    base.write_text(
        "_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'\n"
        "custom_imports = dict(imports='mmdet.models')\n"
        "custom_hooks = [dict(type='NumClassCheckHook')]\n"
    )
    out = tmp_path / 'deeper' / 'pws.py'
    make_norm_free(str(base), str(out))
    assert "_base_ = '../base.py'" in out.read_text()
    cfg = Config.fromfile(out)
    assert cfg.custom_imports.imports == ['mmdet.models', 'pws_mmdet']
    hooks = [hook.type for hook in cfg.custom_hooks]
    assert hooks == ['NumClassCheckHook', 'PWSAlphaInitHook']


def test_a_note_names_each_part_that_stays(tmp_path):
    config = 'mmdet::dcn/faster-rcnn_r50-dconv-c3-c5_fpn_1x_coco.py'
    made = make_norm_free(config, tmp_path / 'dcn.py')
    [note] = made.notes
    assert note.startswith('backbone (ResNet): its deformable convolutions exclude')
    norms = [x for x in summarize_model(made.model).layers if x.kind == NORM]
    assert len(norms) == 53


def test_a_head_that_reads_a_weight_itself_stays(tmp_path):
    config = 'mmdet::tood/tood_r50_fpn_1x_coco.py'
    notes = '; '.join(make_norm_free(config, tmp_path / 'tood.py').notes)
    assert 'bbox_head (TOODHead): it reads the weight of a convolution' in notes
    model = MODELS.build(Config.fromfile(tmp_path / 'tood.py').model)
    assert isinstance(model.neck.fpn_convs[0].conv, PWSConv2d)
    assert not any(isinstance(m, PWSConv2d) for m in model.bbox_head.modules())


@pytest.mark.slow
def test_pretrained_weights_are_converted_in_every_backbone(tmp_path):
    config = 'mmdet::hrnet/fcos_hrnetv2p-w18-gn-head_4xb4-1x_coco.py'
    make_norm_free(config, tmp_path / 'hrnet.py')
    backbone = Config.fromfile(tmp_path / 'hrnet.py').model.backbone
    assert backbone.type == 'HRNet' and backbone.init_cfg.type == 'PWSPretrained'
    stock = Config.fromstring(f'_base_ = {config!r}', '.py').model.backbone
    stock.init_cfg = None
    for net in (backbone, stock):  # one module a stage, one block a branch
        for stage in net.extra.values():
            stage.num_modules = 1
            stage.num_blocks = [1] * stage.num_branches
    path = tmp_path / 'hrnet.pth'
    torch.save(MODELS.build(stock).state_dict(), path)
    backbone.init_cfg.checkpoint = str(path)
    MODELS.build(backbone).init_weights()


@pytest.mark.parametrize(
    'config',
    [
        'mmdet::detr/detr_r50_8xb2-150e_coco.py',
        'mmdet::yolof/yolof_r50-c5_8xb8-1x_coco.py',
    ],
)
def test_no_alpha_is_decayed_whatever_keys_the_config_has(tmp_path, config):
    out = tmp_path / 'out.py'
    make_norm_free(config, out)
    cfg = Config.fromfile(out)
    cfg.model.backbone.init_cfg = None
    model = MODELS.build(cfg.model)
    groups = build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups
    by_id = {id(p): group for group in groups for p in group['params']}
    lr, decay = (cfg.optim_wrapper.optimizer[key] for key in ('lr', 'weight_decay'))
    mult = cfg.optim_wrapper.paramwise_cfg.custom_keys.backbone.lr_mult
    convs = {n: m for n, m in model.named_modules() if isinstance(m, PWSConv2d)}
    trained = {n: m for n, m in convs.items() if m.alpha.requires_grad}
    assert len(trained) >= 42
    for name, conv in trained.items():
        group = by_id[id(conv.alpha)]
        assert group['weight_decay'] == 0
        assert group['lr'] == by_id[id(conv.weight)]['lr']
        if name.startswith('backbone.'):
            assert group['lr'] == pytest.approx(lr * mult)
        assert by_id[id(conv.weight)]['weight_decay'] == decay


def test_a_part_whose_conv_cfg_is_none_in_the_base(tmp_path):
    out = tmp_path / 'out.py'
    make_norm_free('mmdet::panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py', out)
    head = Config.fromfile(out).model.semantic_head
    assert head.conv_cfg.to_dict() == HEAD_CONV_CFG
    base = tmp_path / 'base.py'
    base.write_text(
        f'_base_ = {FCOS!r}\n'
        "optim_wrapper = dict(_delete_=True, optimizer=dict(type='SGD', lr=0.1), "
        'paramwise_cfg=None)\n'
    )
    make_norm_free(str(base), str(tmp_path / 'none.py'))
    optim_wrapper = Config.fromfile(tmp_path / 'none.py').optim_wrapper
    assert optim_wrapper.clip_grad == dict(max_norm=10, norm_type=2)
    assert optim_wrapper.constructor == 'PWSOptimWrapperConstructor'
    assert optim_wrapper.paramwise_cfg is None


def variant(config, **backbone):
    """Return the model of one of MMDetection's configs, its variant, and the notes."""
    path = Path(get_installed_path('mmdet'), '.mim/configs', config)
    model = Config.fromfile(path).model
    model.get('backbone', {}).update(backbone)
    conv, head = dict(type='PWS'), dict(type='PWS', gamma=1.0)
    return model, *norm_free_model(model, conv, head)


def test_the_backbone_of_a_teacher_has_the_gamma_of_backbones():
    name = 'soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco.py'
    _, model, _ = variant(f'soft_teacher/{name}')
    assert model.detector.backbone.conv_cfg == dict(type='PWS')
    assert model.detector.neck.conv_cfg == dict(type='PWS', gamma=1.0)


@pytest.mark.parametrize(
    'config, part, kind',
    [
        (
            'point_rend/point-rend_r50-caffe_fpn_ms-1x_coco.py',
            'roi_head.point_head',
            'Conv1d',
        ),
        (
            'efficientnet/retinanet_effb3_fpn_8xb4-crop896-1x_coco.py',
            'backbone',
            'Conv2dAdaptivePadding',
        ),
        ('detectors/detectors_cascade-rcnn_r50_1x_coco.py', 'backbone', 'ConvAWS'),
    ],
)
def test_convolutions_of_another_kind_stay(config, part, kind):
    """This includes classes whose default is another kind."""
    old, new, notes = variant(config)
    assert any(
        note.startswith(part) and note.endswith(f'convolutions are of the type {kind}')
        for note in notes
    )
    for key in part.split('.'):
        old, new = old[key], new[key]
    assert old == new


@pytest.mark.parametrize('folder', ['gn', 'gn+ws'])
def test_weights_that_cannot_be_converted_are_not_named(folder):
    ws = '-ws' if '+' in folder else ''
    old, new, [note] = variant(f'{folder}/mask-rcnn_r50_fpn_gn{ws}-all_2x_coco.py')
    assert old.backbone.init_cfg.type == 'Pretrained'
    assert note.startswith('backbone (ResNet): weights with GN cannot be converted')
    assert new.backbone.init_cfg is None and new.backbone.frozen_stages == -1


def test_init_cfg_tells_eps_and_conv_ws_of_the_weights():
    init_cfg = dict(type='Pretrained', checkpoint='x.pth')
    r50 = 'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
    for config, backbone, expected in (
        (r50, {}, {}),
        (r50, dict(conv_cfg=dict(type='Conv')), {}),
        (r50, dict(conv_cfg=dict(type='ConvWS')), dict(conv_ws=True)),
        (r50, dict(norm_cfg=dict(type='SyncBN', eps=1e-3)), dict(bn_eps=1e-3)),
        ('yolox/yolox_tiny_8xb8-300e_coco.py', {}, dict(bn_eps=1e-3)),  # its default
    ):
        _, new, notes = variant(config, init_cfg=init_cfg, **backbone)
        expected = {'type': 'PWSPretrained', 'checkpoint': 'x.pth', **expected}
        assert new.backbone.init_cfg == expected and not notes


def test_the_eps_of_bn_is_known_where_no_weights_are_named(tmp_path):
    """Checkpoints of whole YOLOX detectors are converted with it."""
    out = tmp_path / 'yolox.py'
    make_norm_free('mmdet::yolox/yolox_tiny_8xb8-300e_coco.py', out)
    model = Config.fromfile(out).model
    assert bn_eps_of(model) == 1e-3
    assert model.bbox_head.norm_cfg == dict(type='NoNorm', eps=1e-3)
    model.backbone.init_cfg = dict(type='PWSPretrained', bn_eps=1e-2)
    assert bn_eps_of(model) == 1e-2
    for norm_cfg in (dict(type='GN', num_groups=2, eps=1e-3), dict(type='BN')):
        config = 'retinanet/retinanet_r50_fpn_1x_coco.py'
        old, _, _ = variant(config, init_cfg=None)
        old.neck.norm_cfg = norm_cfg
        new, _ = norm_free_model(old, dict(type='PWS'), dict(type='PWS'))
        assert bn_eps_of(new) == 1e-5 and new.neck.norm_cfg == dict(type='NoNorm')


def test_convolutions_that_conv_cfg_does_not_reach_have_a_bias():
    _, new, _ = variant('rtmdet/rtmdet_tiny_8xb32-300e_coco.py', init_cfg=None)
    assert new.backbone.norm_cfg is None
    backbone = MODELS.build(new.backbone)
    convs = [m for m in backbone.modules() if isinstance(m, nn.Conv2d)]
    plain = [conv for conv in convs if not isinstance(conv, PWSConv2d)]
    assert len(plain) >= 7 and all(conv.bias is not None for conv in plain)


def test_convolutions_that_cannot_have_a_bias():
    _, new, _ = variant('ddod/ddod_r50_fpn_1x_coco.py')
    head = MODELS.build(new.bbox_head)
    assert any(isinstance(m, DeformConv2d) for m in head.modules())
    assert any(isinstance(m, PWSConv2d) for m in head.modules())
    assert new.bbox_head.norm_cfg == dict(type='NoNorm')


@pytest.mark.parametrize('size', [300, 512])
def test_ssd_of_mmdetection(tmp_path, size):
    made = make_norm_free(f'mmdet::ssd/ssd{size}_coco.py', tmp_path / 'ssd.py')
    assert not any(x.kind == NORM for x in summarize_model(made.model).layers)
    model = Config.fromfile(tmp_path / 'ssd.py').model
    assert model.backbone.type == 'PWSSSDVGG'
    assert model.backbone.init_cfg.type == 'PWSPretrained'
    assert model.bbox_head.type == 'PWSSSDHead' and model.neck.l2_norm_scale is None


def test_parts_in_lists(tmp_path):
    config = 'mmdet::cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py'
    base = Config.fromstring(f'_base_ = {config!r}', '.py').model
    base.roi_head.bbox_head[1].update(type='Shared4Conv1FCBBoxHead')
    before = base.to_dict()
    conv, head = dict(type='PWS'), dict(type='PWS', gamma=1.0)
    model, kept = norm_free_model(base, conv, head)
    assert base.to_dict() == before and not kept
    assert [h.conv_cfg for h in model.roi_head.bbox_head] == 3 * [head]
    assert model.backbone.conv_cfg == conv
    assert set(changes_of(base, model)) == {'backbone', 'neck', 'roi_head'}
    assert changes_of(base, base) == {}


def test_bad_input(tmp_path):
    out = tmp_path / 'out.py'

    def error(*args):
        with pytest.raises((OSError, ValueError)) as info:
            make_norm_free(*args)
        return str(info.value)

    assert 'must end in .py' in error(FCOS, tmp_path / 'out')
    (tmp_path / 'link.py').symlink_to(tmp_path / 'nowhere.py')
    assert 'exists: move it away' in error(FCOS, tmp_path / 'link.py')
    assert 'no.py cannot be read' in error(tmp_path / 'no.py', out)
    existing = tmp_path / 'existing.py'
    existing.write_text("model = dict(type='Nothing')\n")
    assert 'exists: move it away' in error(FCOS, existing)
    assert 'has no norm-free variant: building it failed' in error(existing, out)
    (tmp_path / 'empty.py').write_text('a = 1\n')
    assert 'describes no model' in error(tmp_path / 'empty.py', out)
    odd = tmp_path / 'odd.py'
    model = Config.fromstring(f'_base_ = {FCOS!r}', '.py').model.to_dict()
    odd.write_text(f'model = {model!r}\noptim_wrapper = 3\n')
    assert 'holds what differs cannot be read: TypeError' in error(odd, out)
    swin = 'mmdet::maskformer/maskformer_swin-l-p4-w12_64xb1-ms-300e_coco.py'
    small = tmp_path / 'swin.py'
    small.write_text(
        f'_base_ = {swin!r}\n'
        "model = dict(_delete_=True, type='SwinTransformer', embed_dims=8, "
        'depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1))\n'
    )
    assert 'no part of the model takes PWS' in error(small, out)
    assert not out.exists()
