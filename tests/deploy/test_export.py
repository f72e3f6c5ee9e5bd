"""The export to ONNX, and its comparison with MMDetection.

The export takes long, so that it is tested for few detectors.
"""

import shutil

import numpy as np
import pytest
import torch
from conftest import load_config
from small_detectors import (
    assert_onnx_detects_the_same,
    changed,
    images_of,
    mask_rcnn_config,
    needs_onnx,
    onnx_session,
    random_model,
    small_config,
    ssd_config,
    write,
)
from torch import nn

from pws_mmdet import fuse_pws
from pws_mmdet.deploy import DeployedDetector, export, export_onnx, write_onnx
from pws_mmdet.deploy.check import detecting_score, images_to_verify, predict, verify
from pws_mmdet.deploy.onnx_file import set_least_score

pytestmark = needs_onnx


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    """A small SSD as an ONNX file of any size: its path, and the model."""
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


def test_weights_are_constants_and_nothing_normalizes(exported):
    import onnx

    graph = onnx.load(exported[0]).graph
    constants = {c.name: c for c in graph.initializer}
    convs = [n for n in graph.node if n.op_type == 'Conv']
    assert len(convs) == sum(isinstance(m, nn.Conv2d) for m in exported[1].modules())
    assert all(name in constants for n in convs for name in n.input[1:])
    kinds = {n.op_type for n in graph.node}
    assert not {k for k in kinds if 'Norm' in k or k.startswith('ReduceMean')}
    # They are the fused filters, not the parameters of PWS.
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


def test_verification_finds_changed_weights(exported):
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
        """Copy the file of the same network: an export takes long."""
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
    assert (labels == -1).all()  # because the file has the threshold of the config

    with torch.no_grad():  # a change that the threshold of the config would hide
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
    """The outputs of a head, before candidates are selected."""

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
def test_raw_tensors_of_fpn_detectors(tmp_path, digits, make, maps):
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


def test_raw_tensors(tmp_path, digits):
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
    'name, size',
    [
        ('ssd320_vgg16_pws_1x', (320, 320)),
        ('retinanet_r50_fpn_pws_1x', (192, 256)),
        ('mask_rcnn_r50_fpn_pws_from_bn_1x', (192, 256)),
    ],
)
def test_headline_configs_on_photographs(tmp_path, coco_mini, name, size):
    cfg = load_config(f'configs/{name}.py')
    test_cfg = cfg.model.test_cfg
    test_cfg.get(
        'rcnn', test_cfg
    ).score_thr = 0.01  # untrained scores of 80 classes are low
    if 'rcnn' in test_cfg:
        test_cfg.rpn.update(nms_pre=200, max_per_img=100)
    if 'init_cfg' in cfg.model.backbone:
        cfg.model.backbone.init_cfg = None
    config, checkpoint, model = write(cfg, tmp_path)
    out = tmp_path / 'out.onnx'
    export_onnx(config, checkpoint, out, shape=size, check=False)
    batch = images_of(coco_mini, size)
    assert_onnx_detects_the_same(onnx_session(out), model, batch[:2])


def test_query_based_detectors_are_refused(tmp_path):
    config = tmp_path / 'detr.py'
    config.write_text(
        "_base_ = 'mmdet::detr/detr_r50_8xb2-150e_coco.py'\n"
        'model = dict(backbone=dict(depth=18, init_cfg=None),\n'
        '             neck=dict(in_channels=[512]))\n'
    )
    with pytest.raises(ValueError, match='DETR is not supported. Supported are'):
        export_onnx(config, tmp_path / 'no.pth', tmp_path / 'out.onnx')
