"""Detectors that the export would compute wrongly are refused."""

import pytest
from mmdet.registry import MODELS
from small_detectors import (
    ONE_ANCHOR,
    changed,
    regions_config,
    small_config,
    ssd_config,
)

from pws_mmdet.deploy import DeployedDetector


def stock_ssd_config():
    cfg = ssd_config()
    cfg.model.bbox_head.type = 'SSDHead'
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
