"""Tests: norm-free variants of MMDetection's backbones start from weights with BN."""

import copy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from bn_networks import check_same
from mmdet.engine.hooks import MeanTeacherHook
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.utils import get_installed_path
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pws_mmdet import PWSConv2d
from pws_mmdet.convert import norm_free_model
from pws_mmdet.convert.norm_free_config import CONV_CFG, HEAD_CONV_CFG
from pws_mmdet.engine import PWSAlphaInitHook

CONFIGS = Path(get_installed_path('mmdet'), '.mim/configs')
# For each family: a config, changes that make its backbone small, the number of PWS
# convolutions
FAMILIES = {
    'RTMDet': (
        'rtmdet/rtmdet_tiny_8xb32-300e_coco.py',
        dict(deepen_factor=0.167, widen_factor=0.125),
        26,
    ),
    'YOLOX': (
        'yolox/yolox_tiny_8xb8-300e_coco.py',
        dict(deepen_factor=0.33, widen_factor=0.125),
        35,
    ),
    'Res2Net': (
        'res2net/faster-rcnn_res2net-101_fpn_2x_coco.py',
        dict(depth=50, base_channels=16, stem_channels=16),
        87,
    ),
    'ResNeSt': (
        'resnest/faster-rcnn_s50_fpn_syncbn-backbone+head_ms-range-1x_coco.py',
        dict(base_channels=8, stem_channels=8),
        55,
    ),
    'RegNet': (
        'regnet/mask-rcnn_regnetx-400MF_fpn_ms-poly-3x_coco.py',
        {},
        71,
    ),
    'MobileNetV2': (
        'yolo/yolov3_mobilenetv2_8xb24-320-300e_coco.py',
        dict(widen_factor=0.25),
        52,
    ),
    'SSDLite': (
        'ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco.py',
        dict(widen_factor=0.25),
        52,
    ),
    'SSD': ('ssd/ssd300_coco.py', {}, 15),
    'ResNet with ConvWS': (
        'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
        dict(depth=18, base_channels=8, stem_channels=8, conv_cfg=dict(type='ConvWS')),
        20,
    ),
}


@torch.no_grad()
def settle(net, x):
    """Give BN statistics, gains and biases. Filters are small: eps of BN matters."""
    for module in net.modules():
        if type(module) is nn.Conv2d and module.bias is None:
            module.weight *= 0.03
        elif isinstance(module, _BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, 0, 0.2)
            module.momentum = 1.0
            module.train()
    net(x)
    net.eval()  # some backbones of MMDetection return None here
    return net


@pytest.mark.parametrize('family', FAMILIES)
def test_a_backbone_computes_the_same_and_trains(family, tmp_path):
    config, small, count = FAMILIES[family]
    model = Config.fromfile(CONFIGS / config).model
    original = model.backbone
    original.update(small)
    init_cfg = copy.deepcopy(original.get('init_cfg'))
    if not init_cfg or init_cfg.type != 'Pretrained':
        init_cfg = dict(type='Pretrained')
    init_cfg['checkpoint'] = path = str(tmp_path / 'bn.pth')
    original.init_cfg = init_cfg
    # SyncBN needs several processes; BN has the same weights.
    bn = copy.deepcopy({**original, 'init_cfg': None})
    if bn.get('norm_cfg', {}).get('type') == 'SyncBN':
        bn['norm_cfg']['type'] = 'BN'
    x = torch.randn(2, 3, 64, 64)
    bn = settle(MODELS.build(bn), x).double()  # in which no rounding error grows
    weights = {
        init_cfg.get('prefix', '') + key: value
        for key, value in [*bn.state_dict().items(), ('fc.weight', torch.ones(2, 2))]
    }
    torch.save(dict(state_dict=weights), path)

    variant, _ = norm_free_model(model, CONV_CFG, HEAD_CONV_CFG)
    net = MODELS.build(variant.backbone).double()
    net.init_weights()
    assert not any(isinstance(m, _BatchNorm) for m in net.modules())
    convs = [m for m in net.modules() if isinstance(m, PWSConv2d)]
    assert len(convs) == count
    net.eval()
    x = x.double()
    check_same(net, bn, x, tolerance=1e-8)

    net.train()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    sum(y.square().mean() for y in net(x)).backward()
    learned = [w.grad for w in (conv.weight for conv in convs) if w.grad is not None]
    # Some stages are frozen, and some backbones have stages that are not used.
    assert len(learned) >= 0.7 * count
    assert all(grad.isfinite().all() and grad.any() for grad in learned)
    optimizer.step()
    assert all(p.isfinite().all() for p in net.parameters())


def test_soft_teacher(tmp_path):
    """Student and teacher start from the same weights, and both losses are there."""
    name = 'soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco.py'
    model = Config.fromfile(CONFIGS / 'soft_teacher' / name).model
    detector = model.detector
    detector.backbone.update(depth=18, base_channels=8, stem_channels=8)
    detector.neck.update(in_channels=[8, 16, 32, 64], out_channels=16)
    detector.rpn_head.update(in_channels=16, feat_channels=16)
    detector.roi_head.bbox_roi_extractor.out_channels = 16
    detector.roi_head.bbox_head.update(in_channels=16, fc_out_channels=32)
    bn = settle(
        MODELS.build({**detector.backbone, 'init_cfg': None}), torch.randn(2, 3, 64, 64)
    )
    detector.backbone.init_cfg.checkpoint = path = str(tmp_path / 'bn.pth')
    torch.save(bn.state_dict(), path)

    variant, notes = norm_free_model(model, CONV_CFG, HEAD_CONV_CFG)
    assert not notes
    net = MODELS.build(variant)
    net.init_weights()
    layers = dict(net.student.named_modules())
    convs = {n: m for n, m in layers.items() if isinstance(m, PWSConv2d)}
    assert len(convs) == 28  # an RPN takes no conv_cfg
    assert not any(isinstance(m, _BatchNorm) for m in net.modules())
    net.eval()
    check_same(net.student.backbone, bn, torch.randn(1, 3, 64, 64))

    batches = [
        demo_mm_inputs(1, [[3, 128, 128]], num_items=[3], num_classes=4)
        for _ in range(3)
    ]
    branches = ('sup', 'unsup_teacher', 'unsup_student')
    for batch in batches[1:]:
        batch['data_samples'][0].set_metainfo(
            dict(homography_matrix=np.eye(3, dtype=np.float32))
        )
    batch = {
        key: dict(zip(branches, (b[key] for b in batches), strict=True))
        for key in ('inputs', 'data_samples')
    }
    wrapper = OptimWrapper(torch.optim.SGD(net.student.parameters(), lr=1e-3))
    runner = SimpleNamespace(model=net, optim_wrapper=wrapper, iter=0)
    MeanTeacherHook().before_train(runner)
    PWSAlphaInitHook().before_train_iter(runner, 0, batch)
    for name, conv in convs.items():
        teacher = net.teacher.get_submodule(name)
        assert torch.equal(teacher.alpha, conv.alpha)
        assert torch.equal(teacher.mean, conv.mean)
    logs = net.train_step(batch, wrapper)
    assert {'sup_loss_cls', 'unsup_loss_cls'} <= set(logs)
    assert all(p.isfinite().all() for p in net.parameters())
