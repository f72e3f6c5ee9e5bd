"""Tests of the export to ONNX.

Many detectors are compared with MMDetection in PyTorch. The export itself takes long,
so that it is tested for few of them.
"""

import re
import shutil
import sys
from pathlib import Path

import mmcv
import numpy as np
import pytest
import torch
from conftest import load_config
from mmcv.ops import RoIAlign
from mmdet.registry import MODELS
from mmdet.structures.bbox import bbox_overlaps
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import nn

from pws_mmdet import fuse_pws

if not hasattr(torch.library, 'custom_op'):
    pytest.skip('the export needs torch 2.7', allow_module_level=True)
from pws_mmdet.deploy import (
    TRANSLATIONS,
    DeployedDetector,
    export,
    export_onnx,
    write_onnx,
)
from pws_mmdet.deploy.check import detecting_score, images_to_verify, predict, verify
from pws_mmdet.deploy.onnx_file import set_least_score
from pws_mmdet.deploy.operators import aligned_rois, nms_mask

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


@pytest.fixture(scope='module')
def program(load_program):
    return load_program('tools/deployment/pws_to_onnx.py')


@pytest.fixture
def needs_onnx():
    for name in ('onnx', 'onnxscript', 'onnxruntime'):
        pytest.importorskip(name, reason='the extra `onnx` is not installed')


def small_config(**head):
    """A two-level detector, of 32-pixel padding, whose scores are above the least."""
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
    """The SSD of digits, with three levels, and few detections of a high score."""
    cfg = load_config('configs/mini/ssd96_vgg16_pws_digits.py')
    cfg.model.backbone.update(depth=11, width=0.125)
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


def stock_ssd_config():
    cfg = ssd_config()
    cfg.model.bbox_head.type = 'SSDHead'
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


def random_model(cfg):
    """Random weights of the usual sizes: saturated scores have no order."""
    init_default_scope('mmdet')
    torch.manual_seed(0)
    model = MODELS.build(cfg.model).eval()
    model.init_weights()
    for name, p in model.named_parameters():
        if name.endswith('bias'):
            nn.init.normal_(p, std=0.1)
        elif name.endswith('conv3.alpha'):  # or the sums of blocks grow without end
            nn.init.constant_(p, 0.1)
    return model


def write(cfg, folder):
    """A config and a checkpoint of random weights: their paths, and the model."""
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
    """One to one: the same label, IoU > 0.99, scores within 1e-3."""
    boxes, scores, labels = (torch.as_tensor(o) for o in outputs[:3])
    found = labels >= 0
    assert (found.sort(descending=True)[0] == found).all()  # they come first
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


def detectors():
    yield 'ssd', ssd_config()
    yield 'retinanet', small_config()
    yield 'softmax', small_config(loss_cls=dict(type='CrossEntropyLoss'))
    yield (
        'atss',
        small_config(
            type='ATSSHead',
            conv_cfg=None,
            norm_cfg=dict(type='GN', num_groups=2),
            anchor_generator=ONE_ANCHOR,
        ),
    )
    points = small_config(type='FCOSHead', strides=[8, 16])
    points.model.bbox_head.norm_cfg = None
    del points.model.bbox_head.anchor_generator, points.model.bbox_head.bbox_coder
    yield 'fcos', points
    yield 'mask_rcnn', mask_rcnn_config()
    agnostic = mask_rcnn_config()
    agnostic.model.roi_head.bbox_head.reg_class_agnostic = True
    agnostic.model.roi_head.mask_head.class_agnostic = True
    agnostic.model.test_cfg.rcnn.nms.class_agnostic = True
    yield 'class_agnostic', agnostic
    yield 'fixed_samples', regions_config(sampling_ratio=2)
    yield 'negative_samples', regions_config(sampling_ratio=-1)
    legacy = regions_config(sampling_ratio=2, aligned=False)
    legacy.model.rpn_head.bbox_coder.type = 'LegacyDeltaXYWHBBoxCoder'
    legacy.model.rpn_head.anchor_generator.update(
        type='LegacyAnchorGenerator', center_offset=0.5
    )
    legacy.model.roi_head.bbox_head.bbox_coder.type = 'LegacyDeltaXYWHBBoxCoder'
    yield 'legacy', legacy
    yield 'not_aligned', regions_config(aligned=False)
    rpn = mask_rcnn_config()
    rpn.model.test_cfg.rpn.score_thr = 0.5  # which an RPN does not look at
    yield 'rpn_score_thr', rpn
    yield 'tblr', tblr_config()


def regions_config(**layer):
    cfg = mask_rcnn_config()
    for name in ('bbox_roi_extractor', 'mask_roi_extractor'):
        old = cfg.model.roi_head[name].roi_layer
        if layer.get('type') == 'RoIPool':  # it has no sampling_ratio
            del old.sampling_ratio
        old.update(layer)
    return cfg


def tblr_config():
    return small_config(
        bbox_coder=dict(type='TBLRBBoxCoder', normalizer=4.0),
        anchor_generator=ONE_ANCHOR,
        reg_decoded_bbox=True,
    )


@pytest.mark.parametrize('cfg', [pytest.param(c, id=n) for n, c in detectors()])
def test_the_network_detects_what_mmdetection_does(digits, cfg):
    model = random_model(cfg)
    fused = DeployedDetector(fuse_pws(model))
    for size in ((96, 96), (70, 131)):
        batch = images_of(digits, size)
        images = torch.from_numpy(batch).permute(0, 3, 1, 2).float()
        with torch.no_grad():
            outputs = fused(images)
        expected = predict(model, batch)
        assert sum(map(len, expected)) > len(batch)
        for n, instances in enumerate(expected):
            assert_same_detections([o[n] for o in outputs], instances)


def test_masks_are_those_of_mmdetection(digits):
    model = random_model(mask_rcnn_config())
    head, cfg = model.roi_head.mask_head, model.test_cfg.rcnn
    batch = images_of(digits, (90, 96))
    images = torch.from_numpy(batch).permute(0, 3, 1, 2).float()
    with torch.no_grad():
        outputs = DeployedDetector(model)(images)
    for boxes, _, labels, masks, expected in zip(
        *outputs, predict(model, batch), strict=True
    ):
        n = len(expected)
        assert n > 1 and (labels[:n] == expected.labels).all()
        # it pastes logits of each class; one class is enough
        logits = masks[:n, None].logit().expand(-1, head.num_classes, -1, -1)
        pasted = head._predict_by_feat_single(
            logits,
            boxes[:n],
            labels[:n],
            dict(ori_shape=(90, 96), scale_factor=(1.0, 1.0)),
            cfg,
            rescale=True,
        )
        assert (pasted == expected.masks).float().mean() > 0.999


def test_nms_mask_keeps_the_best_of_each_image():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [20, 0, 30, 10]])
    boxes = boxes.expand(2, 3, 4)
    scores = torch.tensor([[0.5, 0.6, 0.4], [0.5, 0.0, 0.7]])
    kept = nms_mask(boxes, scores, 0.5, 5)
    assert kept.tolist() == [[False, True, True], [True, False, True]]
    kept = nms_mask(boxes, scores, 0.5, 1)
    assert kept.tolist() == [[False, True, False], [False, False, True]]
    assert not nms_mask(boxes, scores * 0, 0.5, 5).any()


class Regions(nn.Module):
    """RoIAlign of boxes on two images."""

    def __init__(self, sampling_ratio, aligned):
        super().__init__()
        self.options = sampling_ratio, aligned

    def forward(self, features, boxes, images):
        return aligned_rois(features, boxes, images, 3, 2, 0.25, *self.options)


@pytest.mark.parametrize('aligned', [True, False], ids=['half', 'whole'])
@pytest.mark.parametrize('sampling_ratio', [0, 1, 2, 3])
def test_regions_in_onnx(needs_onnx, tmp_path, sampling_ratio, aligned):
    features = torch.randn(2, 3, 12, 10)
    boxes = torch.tensor(
        [[0.0, 0, 39, 47], [3, 5, 20, 30], [8, 8, 9.5, 9], [0, 0, 0, 0], [20, 4, 40, 9]]
    )
    inputs = features, boxes, torch.tensor([0, 1, 1, 0, 0])
    regions = Regions(sampling_ratio, aligned)
    program = torch.export.export(regions, inputs)
    path = tmp_path / 'regions.onnx'
    torch.onnx.export(
        program,
        dynamo=True,
        input_names=['features', 'boxes', 'images'],
        opset_version=18,
        custom_translation_table=TRANSLATIONS,
        verbose=False,
    ).save(path)
    names = ('features', 'boxes', 'images')
    values = dict(zip(names, (t.numpy() for t in inputs), strict=True))
    (found,) = onnx_session(path).run(None, values)
    layer = RoIAlign((3, 2), 0.25, sampling_ratio, aligned=aligned)
    rois = torch.cat([inputs[2][:, None].float(), boxes], dim=1)
    torch.testing.assert_close(torch.from_numpy(found), layer(features, rois))


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


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    """A small SSD as an ONNX file of any size: its path, and the model."""
    for name in ('onnx', 'onnxscript', 'onnxruntime'):
        pytest.importorskip(name, reason='the extra `onnx` is not installed')
    folder = tmp_path_factory.mktemp('onnx')
    config, checkpoint, model = write(ssd_config(), folder)
    out = folder / 'new/ssd.onnx'
    result = export_onnx(config, checkpoint, out)
    assert result['detections'] > 3
    assert [p.name for p in out.parent.iterdir()] == ['ssd.onnx']
    return out, model


@pytest.mark.parametrize('size', [(96, 96), (72, 131)], ids=str)
def test_onnx_runtime_detects_what_mmdetection_does(exported, digits, size):
    session = onnx_session(exported[0])
    batch = images_of(digits, size)
    for some in (batch[:1], batch[1:3]):
        assert_onnx_detects_the_same(session, exported[1], some)


def test_weights_are_constants_that_nothing_normalizes(exported):
    import onnx

    graph = onnx.load(exported[0]).graph
    constants = {c.name: c for c in graph.initializer}
    convs = [n for n in graph.node if n.op_type == 'Conv']
    assert len(convs) == sum(isinstance(m, nn.Conv2d) for m in exported[1].modules())
    assert all(name in constants for n in convs for name in n.input[1:])
    kinds = {n.op_type for n in graph.node}
    assert not {k for k in kinds if 'Norm' in k or k.startswith('ReduceMean')}
    # the weights themselves, not what they are computed from
    fused = fuse_pws(exported[1])
    theirs = [onnx.numpy_helper.to_array(constants[n.input[1]]) for n in convs]
    for m in fused.modules():
        if isinstance(m, nn.Conv2d):
            assert any(np.array_equal(m.weight.detach(), w) for w in theirs)


def test_axes_have_names(exported):
    session = onnx_session(exported[0])
    (images,) = session.get_inputs()
    assert (images.name, images.shape) == ('images', ['batch', 3, 'height', 'width'])
    assert [(o.name, o.shape) for o in session.get_outputs()] == [
        ('boxes', ['batch', 60, 4]),
        ('scores', ['batch', 60]),
        ('labels', ['batch', 60]),
    ]


def test_verification_sees_other_weights(exported):
    path, model = exported
    network = DeployedDetector(fuse_pws(model))
    batch = images_to_verify(None, (96, 96), True)
    assert verify(path, network, batch)['detections'] > 3
    with torch.no_grad():
        network.model.bbox_head.cls_convs[0][-1].bias[0] += 0.1
    with pytest.raises(ValueError, match='do not detect the same: [0-9]+ detections'):
        verify(path, network, batch)


def test_verification_lowers_the_threshold_until_something_is_detected(
    exported, tmp_path, monkeypatch
):
    def copy(network, path, outputs, size, fixed_size, least_score):
        """In the place of an export, which takes long: of the same network."""
        shutil.copy(exported[0], path)
        set_least_score(path, least_score)

    config, checkpoint, model = write(changed(ssd_config(), score_thr=0.99), tmp_path)
    batches = images_to_verify(None, (96, 128), False)
    assert not any(len(found) for found in predict(model, batches[0]))
    monkeypatch.setattr(export, 'write_onnx', copy)
    out = tmp_path / 'out.onnx'
    result = export_onnx(config, checkpoint, out)
    assert result['detections'] > 4 and 0 < result['least_score'] < 0.99
    images = batches[0].transpose(0, 3, 1, 2).astype(np.float32)
    labels = onnx_session(out).run(None, dict(images=images))[2]
    assert (labels == -1).all()  # the file has the threshold of the config

    with torch.no_grad():  # what the threshold of the config would hide
        for layers in model.bbox_head.cls_convs:
            layers[-1].alpha *= 1.1
    torch.save(dict(state_dict=model.state_dict()), checkpoint)
    with pytest.raises(ValueError, match='do not detect the same: [0-9]+ detections'):
        export_onnx(config, checkpoint, tmp_path / 'other.onnx')
    assert not list(tmp_path.glob('*other*'))


def test_verification_without_any_detection_is_refused():
    model = random_model(ssd_config())
    with torch.no_grad():
        for layers in model.bbox_head.cls_convs:
            layers[-1].bias.view(-1)[:] = torch.nan
    batches = images_to_verify(None, (96, 96), True)
    with pytest.raises(ValueError, match='name an image with --image'):
        detecting_score(DeployedDetector(model), batches)


class Maps(nn.Module):
    """The tensors of a head, before anything is chosen."""

    def __init__(self, model):
        super().__init__()
        self.network = DeployedDetector(fuse_pws(model))

    def forward(self, images):
        scores, deltas = self.network.model.bbox_head(self.network.maps(images))
        return *scores, *deltas


class RPNMaps(Maps):
    def forward(self, images):
        scores, deltas = self.network.model.rpn_head(self.network.maps(images))
        return *scores, *deltas


@pytest.mark.slow
@pytest.mark.parametrize(
    'make, maps',
    [(small_config, Maps), (mask_rcnn_config, RPNMaps)],
    ids=['RetinaNet', 'RPN of Mask R-CNN'],
)
def test_raw_tensors_of_fpn_detectors(needs_onnx, tmp_path, digits, make, maps):
    model = random_model(make())
    network = maps(model)
    batch = images_of(digits, (64, 96))
    images = batch.transpose(0, 3, 1, 2).astype(np.float32)
    data = dict(inputs=list(torch.from_numpy(images)), data_samples=None)
    with torch.no_grad():
        inputs = model.data_preprocessor(data)['inputs']
        head = model.rpn_head if maps is RPNMaps else model.bbox_head
        scores, deltas = head(model.extract_feat(inputs))
    expected = [*scores, *deltas]
    path = tmp_path / 'raw.onnx'
    names = [f'map{i}' for i in range(len(expected))]
    write_onnx(network, path, names, (64, 96), fixed_size=True)
    outputs = onnx_session(path).run(None, dict(images=images))
    for ours, theirs in zip(outputs, expected, strict=True):
        assert np.abs(ours - theirs.numpy()).max() < 1e-4


def test_raw_tensors(needs_onnx, tmp_path, digits):
    model = random_model(ssd_config())
    path = tmp_path / 'raw.onnx'
    write_onnx(Maps(model), path, list('abcdef'), (64, 80), fixed_size=True)
    batch = images_of(digits, (64, 80))
    images = batch.transpose(0, 3, 1, 2).astype(np.float32)
    outputs = onnx_session(path).run(None, dict(images=images))
    data = dict(inputs=list(torch.from_numpy(images)), data_samples=None)
    with torch.no_grad():
        inputs = model.data_preprocessor(data)['inputs']
        scores, deltas = model(inputs, mode='tensor')
    assert len(outputs) == 6
    for ours, theirs in zip(outputs, (*scores, *deltas), strict=True):
        assert np.abs(ours - theirs.numpy()).max() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(
    'make', [small_config, mask_rcnn_config], ids=['retinanet', 'mask_rcnn']
)
def test_fpn_detectors(make, run, root, needs_onnx, tmp_path, digits):
    """The program on a real image, then ONNX Runtime on batches and other sizes."""
    config, checkpoint, model = write(make(), tmp_path)
    image = next(Path(digits).rglob('*.[jp][pn]g'))
    process = run(
        *(sys.executable, root / 'tools/deployment/pws_to_onnx.py'),
        *(config, checkpoint, 'out.onnx', '--image', image),
    )
    assert re.search('agree in [1-9][0-9]* detections', process.stdout)
    assert ('masks' in process.stdout) == (make is mask_rcnn_config)
    session = onnx_session(tmp_path / 'out.onnx')
    for size in ((96, 96), (61, 150), (180, 96)):
        batch = images_of(digits, size)
        for some in (batch[:1], batch[:3]):
            assert_onnx_detects_the_same(session, model, some)


@pytest.mark.slow
@pytest.mark.parametrize(
    'name, size',
    [
        ('ssd320_vgg16_pws_1x', (320, 320)),
        ('retinanet_r50_fpn_pws_1x', (192, 256)),
        ('mask_rcnn_r50_fpn_pws_from_bn_1x', (192, 256)),
    ],
)
def test_headline_configs_on_photographs(needs_onnx, tmp_path, coco_mini, name, size):
    cfg = load_config(f'configs/{name}.py')
    test_cfg = cfg.model.test_cfg
    test_cfg.get('rcnn', test_cfg).score_thr = 0.01  # of 80 classes, without training
    if 'rcnn' in test_cfg:
        test_cfg.rpn.update(nms_pre=200, max_per_img=100)
    if 'init_cfg' in cfg.model.backbone:
        cfg.model.backbone.init_cfg = None
    config, checkpoint, model = write(cfg, tmp_path)
    out = tmp_path / 'out.onnx'
    export_onnx(config, checkpoint, out, shape=size, check=False)
    batch = images_of(coco_mini, size)
    assert_onnx_detects_the_same(onnx_session(out), model, batch[:2])


def changed(cfg, **test_cfg):
    cfg.model.test_cfg.update(test_cfg)
    return cfg


@pytest.mark.parametrize(
    'cfg, message',
    [
        (
            small_config(
                type='GFLHead', reg_max=4, norm_cfg=None, anchor_generator=ONE_ANCHOR
            ),
            'GFLHead is not supported. Supported are single-stage',
        ),
        (stock_ssd_config(), 'SSDHead cannot predict'),
        (
            regions_config(pool_mode='max'),
            'SingleRoIExtractor with RoIAlign layers and pool_mode="avg"',
        ),
        (regions_config(type='RoIPool'), 'SingleRoIExtractor with RoIAlign layers'),
        (changed(ssd_config(), nms_pre=-1), 'positive nms_pre, got -1'),
        (changed(ssd_config(), max_per_img=0), 'positive max_per_img, got 0'),
        (changed(ssd_config(), nms=dict(type='soft_nms')), 'must be of type "nms"'),
        (
            changed(ssd_config(), nms=dict(iou_threshold=0.5, max_num=9)),
            'with an iou_threshold and no more than .*, got .*max_num',
        ),
    ],
    ids='head stock_ssd max_pool roi_pool nms_pre max_per_img soft_nms max_num'.split(),
)
def test_unsupported_models(cfg, message):
    with pytest.raises(ValueError, match=message):
        DeployedDetector(MODELS.build(cfg.model))


def test_query_based_detectors_are_refused(needs_onnx, tmp_path):
    config = tmp_path / 'detr.py'
    config.write_text(
        "_base_ = 'mmdet::detr/detr_r50_8xb2-150e_coco.py'\n"
        'model = dict(backbone=dict(depth=18, init_cfg=None),\n'
        '             neck=dict(in_channels=[512]))\n'
    )
    with pytest.raises(ValueError, match='DETR is not supported. Supported are'):
        export_onnx(config, tmp_path / 'no.pth', tmp_path / 'out.onnx')


@pytest.mark.parametrize(
    'change, out, options, message',
    [
        (None, 'out.pth', (), 'OUT must end in .onnx'),
        (None, 'mine.onnx', (), 'mine.onnx exists: move it away'),
        (None, 'out.onnx', ('--shape', '0', '96'), '--shape must be from 1 to 32768'),
        (None, 'out.onnx', ('--image', 'no.jpg'), 'There is no image no.jpg'),
        (lambda w: w.clear(), 'out.onnx', (), 'holds no weights'),
        (
            lambda w: w.pop('backbone.conv6.conv.bias'),
            'out.onnx',
            (),
            'the weights do not fit the network: they lack backbone.conv6.conv.bias',
        ),
        (
            lambda w: w.update(more=torch.ones(1)),
            'out.onnx',
            (),
            'the weights do not fit the network: the network has no more$',
        ),
        (
            lambda w: w.update({'backbone.features.0.conv.alpha': torch.ones(3)}),
            'out.onnx',
            (),
            'the weights do not fit the network: ',
        ),
        (
            lambda w: next(iter(w.values())).fill_(torch.nan),
            'out.onnx',
            (),
            'has NaN or infinity in backbone',
        ),
        (
            lambda w: [w.pop(k) for k in list(w) if k.endswith('.alpha')],
            'out.onnx',
            (),
            'epoch_1.pth: these are the weights of a network of plain',
        ),
        (None, 'mine.onnx/out.onnx', (), 'mine.onnx is no folder'),
    ],
    ids='suffix exists shape image empty less more shapes nan kind parent'.split(),
)
def test_bad_input(
    change, out, options, message, program, needs_onnx, tmp_path, monkeypatch, capsys
):
    config, checkpoint, model = write(ssd_config(), tmp_path)
    if change is not None:
        weights = model.state_dict()
        change(weights)
        torch.save(dict(state_dict=weights), checkpoint)
    (tmp_path / 'mine.onnx').write_text('mine')
    before = sorted(tmp_path.iterdir())
    arguments = (config, checkpoint, tmp_path / out, *options)
    error = error_of(program, monkeypatch, capsys, *arguments)
    assert re.search(message, error), error
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / 'mine.onnx').read_text() == 'mine'


def error_of(program, monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, 'argv', ['pws_to_onnx.py', *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        program.main()
    assert stop.value.code == 2
    return ' '.join(capsys.readouterr().err.split())


@pytest.mark.parametrize('name', ['onnx', 'onnxscript', 'onnxruntime'])
def test_a_missing_package_is_named_first(name, program, tmp_path, monkeypatch, capsys):
    for other in ('onnx', 'onnxscript', 'onnxruntime'):
        monkeypatch.setitem(sys.modules, other, sys)  # any module will do
    monkeypatch.setitem(sys.modules, name, None)
    error = error_of(program, monkeypatch, capsys, 'no.py', 'no.pth', 'out.onnx')
    assert f'importing {name} failed' in error
    assert "pip install -e '.[onnx]'" in error


def test_a_torch_that_is_too_old_is_named_first(
    run, program, tmp_path, monkeypatch, capsys
):
    code = (
        'import torch, pws_mmdet\n'
        'del torch.library.custom_op\n'
        'import pws_mmdet.deploy\n'
    )
    process = run(sys.executable, '-W', 'ignore', '-c', code, check=False)
    last = process.stdout.splitlines()[-1]
    assert last.startswith('ImportError: pws_mmdet.deploy needs torch>=2.4')
    monkeypatch.setattr(torch, '__version__', '2.1.2+cu121')
    error = error_of(program, monkeypatch, capsys, 'no.py', 'no.pth', 'out.onnx')
    assert error.endswith('The export needs torch>=2.7, not 2.1.2+cu121')
