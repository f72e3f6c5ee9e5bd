"""Operators that detectors need, and their translations to ONNX.

torch.export cannot trace MMCV's compiled operators. In PyTorch these functions call
MMCV's; an exported graph holds the operators of ONNX in their place.
"""

from typing import Any

import torch
from mmcv.ops import nms, roi_align
from torch import Tensor

if not hasattr(torch.library, 'custom_op'):
    raise ImportError(
        'pws_mmdet.deploy needs torch>=2.4, and the export to ONNX torch>=2.7, but '
        f'torch {torch.__version__} is installed'
    )


@torch.library.custom_op('pws_mmdet::nms_mask', mutates_args=())
def nms_mask(boxes: Tensor, scores: Tensor, iou_threshold: float, limit: int) -> Tensor:
    """Suppress overlapping boxes, separately in each image.

    Args:
        boxes: (N, K, 4), as (x1, y1, x2, y2).
        scores: (N, K); boxes with a score of 0 or less are not kept.
        iou_threshold: Of two boxes with a larger IoU, the one with the lower score is
            dropped.
        limit: At most this many boxes are kept in an image, those with the best scores.

    Returns:
        Which boxes are kept: bool, (N, K).
    """
    kept = torch.zeros_like(scores, dtype=torch.bool)
    for mask, image_boxes, image_scores in zip(kept, boxes, scores, strict=True):
        (candidates,) = torch.where(image_scores > 0)
        if len(candidates):
            best = nms(
                image_boxes[candidates], image_scores[candidates], iou_threshold
            )[1]
            mask[candidates[best[:limit]]] = True
    return kept


@nms_mask.register_fake
def _(boxes: Tensor, scores: Tensor, iou_threshold: float, limit: int) -> Tensor:
    return torch.empty_like(scores, dtype=torch.bool)


@torch.library.custom_op('pws_mmdet::aligned_rois', mutates_args=())
def aligned_rois(
    features: Tensor,
    boxes: Tensor,
    images: Tensor,
    height: int,
    width: int,
    scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """Average the samples of each bin of a box, as RoIAlign does.

    Args:
        features: (N, C, H, W).
        boxes: (R, 4), as (x1, y1, x2, y2) in pixels of the image.
        images: The index of each box's image, int64, (R,).
        height, width: Size of the result.
        scale: Pixels of ``features`` for each pixel of the image.
        sampling_ratio: Samples in a bin, in each direction; 0 takes as many as fit.
        aligned: True puts the center of a pixel at 0.5. False puts it at 0, and makes
            a box at least one pixel of ``features`` wide and high.

    Returns:
        (R, C, height, width).
    """
    rois = torch.cat([images[:, None].to(boxes), boxes], dim=1)
    # MMCV on a CPU reads channels_last maps as if they were contiguous.
    features = features.contiguous()
    return roi_align(
        features, rois, (height, width), scale, sampling_ratio, 'avg', aligned
    )


@aligned_rois.register_fake
def _(
    features: Tensor,
    boxes: Tensor,
    images: Tensor,
    height: int,
    width: int,
    scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    return features.new_empty(boxes.shape[0], features.shape[1], height, width)


def _nms_mask_in_onnx(boxes: Any, scores: Any, iou_threshold: float, limit: int) -> Any:
    from onnxscript import opset18 as op

    kept = op.NonMaxSuppression(
        boxes,
        op.Unsqueeze(scores, op.Constant(value_ints=[1])),  # one class
        op.Constant(value_ints=[limit]),
        op.Constant(value_floats=[iou_threshold]),
        op.Constant(value_floats=[0.0]),
    )  # a row (image, class, box) for each kept box
    where = op.Gather(kept, op.Constant(value_ints=[0, 2]), axis=1)
    is_kept = op.Equal(
        op.Gather(kept, op.Constant(value_int=1), axis=1), op.Constant(value_int=0)
    )  # the class is always 0, so that this is True
    none = op.Less(scores, scores)
    return op.ScatterND(none, where, is_kept)


def _aligned_rois_in_onnx(
    features: Any,
    boxes: Any,
    images: Any,
    height: int,
    width: int,
    scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> Any:
    from onnxscript import opset18 as op

    mode = 'half_pixel' if aligned else 'output_half_pixel'
    return op.RoiAlign(
        features,
        boxes,
        images,
        coordinate_transformation_mode=mode,
        mode='avg',
        output_height=height,
        output_width=width,
        sampling_ratio=sampling_ratio,
        spatial_scale=scale,
    )


TRANSLATIONS = {
    torch.ops.pws_mmdet.nms_mask.default: _nms_mask_in_onnx,
    torch.ops.pws_mmdet.aligned_rois.default: _aligned_rois_in_onnx,
}
"""The ``custom_translation_table`` of ``torch.onnx.export``."""
