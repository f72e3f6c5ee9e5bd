"""In PyTorch, the network that is exported detects what MMDetection does."""

import pytest
import torch
from small_detectors import (
    ONE_ANCHOR,
    assert_same_detections,
    images_of,
    mask_rcnn_config,
    random_model,
    regions_config,
    small_config,
    ssd_config,
)

from pws_mmdet import fuse_pws
from pws_mmdet.deploy import DeployedDetector
from pws_mmdet.deploy.check import predict


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
    rpn.model.test_cfg.rpn.score_thr = 0.5  # an RPN ignores it
    yield 'rpn_score_thr', rpn
    yield 'tblr', tblr_config()


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
        # MMDetection pastes the logits of every class. Give it ours for each class.
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
