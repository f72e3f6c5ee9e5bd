"""Small detectors, and comparisons of detections, for the tests of the export."""

from importlib.util import find_spec
from pathlib import Path

import mmcv
import numpy as np
import pytest
import torch
from conftest import load_config
from mmdet.registry import MODELS
from mmdet.structures.bbox import bbox_overlaps
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import nn

if not hasattr(torch.library, 'custom_op'):
    pytest.skip('pws_mmdet.deploy needs torch 2.4', allow_module_level=True)
from pws_mmdet.deploy.check import predict

needs_onnx = pytest.mark.skipif(
    not all(map(find_spec, ('onnx', 'onnxscript', 'onnxruntime'))),
    reason='the extra `onnx` is not installed',
)

ANCHORS = dict(
    type='AnchorGenerator',
    octave_base_scale=4,
    scales_per_octave=2,
    ratios=[0.5, 1.0, 2.0],
    strides=[8, 16],
)
ONE_ANCHOR = {**ANCHORS, 'scales_per_octave': 1, 'ratios': [1.0]}
CODER = dict(type='DeltaXYWHBBoxCoder', target_stds=[0.1, 0.1, 0.2, 0.2])
PWS = dict(type='PWS', gamma=1e-3)


def small_config(**head):
    """A detector with two levels and 32-pixel padding. Its scores exceed score_thr."""
    head = {
        **dict(
            type='RetinaHead',
            num_classes=3,
            in_channels=8,
            feat_channels=8,
            stacked_convs=1,
            conv_cfg=PWS,
            anchor_generator=ANCHORS,
            bbox_coder=CODER,
        ),
        **head,
    }
    model = dict(
        type='SingleStageDetector',
        data_preprocessor=dict(
            type='DetDataPreprocessor',
            mean=[123.675, 116.28, 103.53],
            std=[58.395, 57.12, 57.375],
            bgr_to_rgb=True,
            pad_size_divisor=32,
        ),
        backbone=dict(
            type='PWSResNet',
            depth=18,
            base_channels=8,
            out_indices=(1, 2),
            stem_norm_cfg=None,
            conv_cfg=PWS,
        ),
        neck=dict(
            type='FPN', in_channels=[16, 32], out_channels=8, num_outs=2, conv_cfg=PWS
        ),
        bbox_head=head,
        test_cfg=dict(
            nms_pre=60,
            min_bbox_size=0,
            score_thr=0.009,
            nms=dict(type='nms', iou_threshold=0.5),
            max_per_img=40,
        ),
    )
    return Config(dict(model=model))


def ssd_config():
    """The SSD of digits with three levels. A high score_thr leaves few detections."""
    cfg = load_config('configs/mini/ssd96_vgg16_pws_digits.py')
    cfg.model.backbone.update(depth=11, width=0.125)
    cfg.model.backbone.conv_cfg.keep_mean = True
    cfg.model.neck.update(
        in_channels=(64, 128),
        out_channels=(64, 128, 32),
        level_strides=(2,),
        level_paddings=(1,),
    )
    cfg.model.bbox_head.in_channels = (64, 128, 32)
    cfg.model.bbox_head.anchor_generator.strides = [8, 16, 32]
    cfg.model.test_cfg.update(nms_pre=100, max_per_img=60, score_thr=0.1)
    return cfg


def mask_rcnn_config():
    cfg = load_config('configs/mini/mask_rcnn_r18_fpn_pws_digits.py')
    cfg.model.backbone.base_channels = 8
    cfg.model.neck.update(in_channels=[8, 16, 32, 64], out_channels=16)
    cfg.model.rpn_head.update(in_channels=16, feat_channels=16)
    roi_head = cfg.model.roi_head
    roi_head.bbox_roi_extractor.out_channels = 16
    roi_head.mask_roi_extractor.out_channels = 16
    roi_head.bbox_head.update(in_channels=16, fc_out_channels=32)
    roi_head.mask_head.update(in_channels=16, conv_out_channels=16)
    cfg.model.test_cfg.rpn.update(nms_pre=50, max_per_img=30)
    cfg.model.test_cfg.rcnn.update(score_thr=0.05, max_per_img=20)
    return cfg


def regions_config(**layer):
    cfg = mask_rcnn_config()
    for name in ('bbox_roi_extractor', 'mask_roi_extractor'):
        old = cfg.model.roi_head[name].roi_layer
        if layer.get('type') == 'RoIPool':  # it has no sampling_ratio
            del old.sampling_ratio
        old.update(layer)
    return cfg


def changed(cfg, **test_cfg):
    cfg.model.test_cfg.update(test_cfg)
    return cfg


def random_model(cfg):
    """A model with random weights of the usual sizes, so that no score is saturated."""
    init_default_scope('mmdet')
    torch.manual_seed(0)
    model = MODELS.build(cfg.model).eval()
    model.init_weights()
    for name, p in model.named_parameters():
        if name.endswith('bias'):
            nn.init.normal_(p, std=0.1)
        elif name.endswith('conv3.alpha'):  # else the sums grow with every block
            nn.init.constant_(p, 0.1)
    for name, mean in model.named_buffers():
        if name.endswith('conv.mean'):  # of PWS with keep_mean
            nn.init.normal_(mean, std=0.001)
    return model


def write(cfg, folder):
    """Write a config and random weights; return both paths and the model."""
    model = random_model(cfg)
    config, checkpoint = folder / 'config.py', folder / 'epoch_1.pth'
    cfg.dump(config)
    torch.save(dict(meta={}, state_dict=model.state_dict()), checkpoint)
    return config, checkpoint, model


def images_of(folder, size):
    """The first images of a folder, resized to (H, W): uint8, (N, H, W, 3), BGR."""
    files = sorted(Path(folder).rglob('*.[jp][pn]g'))
    assert files, f'no images in {folder}'
    return np.stack([mmcv.imresize(mmcv.imread(f), size[::-1]) for f in files[:4]])


def assert_same_detections(outputs, expected):
    """Each detection has a partner: the same label, IoU > 0.99, scores within 1e-3."""
    boxes, scores, labels = (torch.as_tensor(o) for o in outputs[:3])
    found = labels >= 0
    assert (
        found.sort(descending=True)[0] == found
    ).all()  # detections come before the filling
    assert not scores[~found].any() and not boxes[~found].any()
    assert (scores.diff() <= 0).all()
    boxes, scores, labels = boxes[found], scores[found], labels[found]
    assert len(boxes) == len(expected)
    same = bbox_overlaps(boxes, expected.bboxes) > 0.99
    same &= (scores[:, None] - expected.scores).abs() < 1e-3
    same &= labels[:, None] == expected.labels
    for row in same:
        assert row.any()
        same[:, row.nonzero()[0]] = False


def onnx_session(path):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(
        str(path), options, providers=['CPUExecutionProvider']
    )


def assert_onnx_detects_the_same(session, model, batch):
    images = batch.transpose(0, 3, 1, 2).astype(np.float32)
    outputs = session.run(None, dict(images=images))
    expected = predict(model, batch)
    assert sum(map(len, expected)) > len(batch)
    for n, instances in enumerate(expected):
        assert_same_detections([o[n] for o in outputs], instances)
