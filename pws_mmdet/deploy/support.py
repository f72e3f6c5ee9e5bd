"""Which detectors ``DeployedDetector`` computes correctly."""

from mmcv.ops import RoIAlign
from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmdet.models.dense_heads import RPNHead
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.detectors import SingleStageDetector, TwoStageDetector
from mmdet.models.roi_heads import StandardRoIHead
from mmdet.models.roi_heads.bbox_heads import BBoxHead
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from torch import nn

from ..utils.config import type_name

SUPPORTED = (
    'single-stage detectors whose head predicts as RetinaNet, SSD (PWSSSDHead), FCOS '
    'or ATSS do, and Faster and Mask R-CNN'
)


def check_support(model: nn.Module) -> None:
    """Raise a ValueError that names the first unsupported part of a detector.

    Args:
        model: A detector of MMDetection.
    """
    if type(model.data_preprocessor) is not DetDataPreprocessor:
        raise ValueError(
            'The data_preprocessor must be a DetDataPreprocessor, got '
            f'{type(model.data_preprocessor).__name__}'
        )
    if _predicts_as(model, SingleStageDetector, 'predict', 'extract_feat'):
        _check_dense(model.bbox_head)
    elif _predicts_as(model, TwoStageDetector, 'predict', 'extract_feat'):
        _check_dense(model.rpn_head)
        _check_rois(model.roi_head)
    else:
        raise ValueError(_unsupported(model))


def _unsupported(part: nn.Module) -> str:
    return f'{type(part).__name__} is not supported. Supported are {SUPPORTED}.'


def _predicts_as(part: nn.Module, base: type, *methods: str) -> bool:
    """Tell whether the class of ``part`` inherits these methods from ``base``."""
    return isinstance(part, base) and all(
        getattr(type(part), name) is getattr(base, name) for name in methods
    )


def _check_dense(head: nn.Module) -> None:
    """Check a head that predicts at every point of its feature maps."""
    base = RPNHead if isinstance(head, RPNHead) else BaseDenseHead
    names = ('predict_by_feat', '_predict_by_feat_single', '_bbox_post_process')
    custom = getattr(getattr(head, 'loss_cls', None), 'custom_cls_channels', False)
    if not _predicts_as(head, base, 'predict', *names) or custom:
        raise ValueError(_unsupported(head))
    if not hasattr(head, 'loss_cls'):  # SSDHead of MMDetection 3.3.0
        raise ValueError(
            f'{type(head).__name__} cannot predict: it lacks the attribute loss_cls. '
            'PWSSSDHead can, and takes the same weights: '
            '--cfg-options model.bbox_head.type=PWSSSDHead'
        )
    _check_test_cfg(head, 'nms_pre')


def _check_rois(roi_head: nn.Module) -> None:
    """Check the second stage of a two-stage detector."""
    names = ('predict', 'predict_bbox', 'predict_mask', '_bbox_forward')
    if not _predicts_as(roi_head, StandardRoIHead, *names) or roi_head.with_shared_head:
        raise ValueError(_unsupported(roi_head))
    head = roi_head.bbox_head
    if not (
        _predicts_as(head, BBoxHead, 'predict_by_feat', '_predict_by_feat_single')
        and head.with_reg
        and not head.custom_cls_channels
    ):
        raise ValueError(_unsupported(head))
    extractors = [roi_head.bbox_roi_extractor]
    if roi_head.with_mask:
        if not _predicts_as(roi_head.mask_head, FCNMaskHead, 'predict_by_feat'):
            raise ValueError(_unsupported(roi_head.mask_head))
        extractors.append(roi_head.mask_roi_extractor)
    for extractor in extractors:
        if type(extractor) is not SingleRoIExtractor or not all(
            isinstance(layer, RoIAlign) and layer.pool_mode == 'avg'
            for layer in extractor.roi_layers
        ):
            raise ValueError(
                'Regions must be extracted by a SingleRoIExtractor with RoIAlign '
                f'layers and pool_mode="avg", got {extractor}'
            )
    _check_test_cfg(roi_head)


def _check_test_cfg(head: nn.Module, *more: str) -> None:
    """Check the numbers of candidates, and the non-maximum suppression."""
    cfg = head.test_cfg
    for name in ('max_per_img', *more):
        if not cfg.get(name, -1) > 0:
            raise ValueError(
                f'The test_cfg of {type(head).__name__} must have a positive {name}, '
                f'got {cfg.get(name)}'
            )
    nms = cfg.get('nms') or {}
    known = {'type', 'iou_threshold', 'class_agnostic', 'split_thr'}
    if (
        ('type' in nms and type_name(nms) != 'nms')
        or 'iou_threshold' not in nms
        or nms.keys() - known
    ):
        raise ValueError(
            f'The nms of {type(head).__name__} must be of type "nms", with an '
            f'iou_threshold and no more than {sorted(known)}, got {nms}'
        )
