"""Detectors as one function of raw pictures, which torch.export can trace.

Every step is the one of MMDetection's ``predict``, for a batch at once and in tensors
of fixed size: where ``predict`` drops a candidate its score is set to 0 here.
"""

import torch
import torch.nn.functional as F
from mmcv.ops import RoIAlign
from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmdet.models.dense_heads import RPNHead
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.detectors import SingleStageDetector, TwoStageDetector
from mmdet.models.roi_heads import StandardRoIHead
from mmdet.models.roi_heads.bbox_heads import BBoxHead
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmdet.structures.bbox import get_box_tensor
from mmengine.config import ConfigDict
from torch import Tensor, nn

from ..utils.config import type_name
from .operators import aligned_rois, nms_mask

OUTPUTS = ('boxes', 'scores', 'labels', 'masks')


class DeployedDetector(nn.Module):
    """A detector that goes from raw pictures to detections, to be exported.

    It takes pictures as MMDetection's pipelines deliver them, float32 (N, 3, H, W),
    0 to 255, in the order of channels that the ``data_preprocessor`` expects (BGR with
    ``bgr_to_rgb=True``): it normalizes and pads them itself.

    It returns, for the D = ``max_per_img`` of the config, per picture and with the best
    score first,

    * boxes: float32 (N, D, 4), as (x1, y1, x2, y2) in pixels of the input;
    * scores: float32 (N, D);
    * labels: int64 (N, D);
    * masks, of Mask R-CNN only: float32 (N, D, h, w), the probability that a point of
      the box, which the h x w values fill evenly, belongs to the object.

    Where a picture has fewer detections the rest has label -1, score 0 and box 0.
    A second input, a number as a float32 tensor of shape (), replaces the score
    threshold of the config.

    Args:
        model: A detector of MMDetection. It is set to evaluation, and not copied.

    Raises:
        ValueError: If the detector does more than is implemented here.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        check_support(model)
        self.model = model.eval()

    @property
    def with_masks(self) -> bool:
        """Whether masks are returned."""
        roi_head = getattr(self.model, 'roi_head', None)
        return roi_head is not None and roi_head.with_mask

    @property
    def least_score(self) -> float:
        """Only detections above it are returned: the ``score_thr`` of the config.

        A new value holds for the model, too. An RPN looks at none: it is 0 there.
        """
        return threshold(self._last_head)

    @least_score.setter
    def least_score(self, value: float) -> None:
        self._last_head.test_cfg.score_thr = value

    @property
    def _last_head(self) -> nn.Module:
        return getattr(self.model, 'roi_head', None) or self.model.bbox_head

    def maps(self, images: Tensor) -> tuple[Tensor, ...]:
        """The maps that the heads see."""
        return self.model.extract_feat(self.preprocess(images))

    def forward(
        self, images: Tensor, least_score: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        size = tuple(images.shape[-2:])
        maps = self.maps(images)
        least = self.least_score if least_score is None else least_score
        if isinstance(self.model, SingleStageDetector):
            return dense_detections(self.model.bbox_head, maps, size, least)
        head = self.model.rpn_head
        proposals, objectness, _ = dense_detections(head, maps, size, threshold(head))
        detections = self.roi_detections(maps, proposals, objectness, size, least)
        if not self.with_masks:
            return detections
        return *detections, self.masks(maps, detections[0], detections[2])

    def preprocess(self, images: Tensor) -> Tensor:
        """What the ``data_preprocessor`` does with a batch, (N, 3, H', W')."""
        settings = self.model.data_preprocessor
        if settings._channel_conversion:
            images = images.flip(1)
        if settings._enable_normalize:
            images = (images - settings.mean) / settings.std
        divisor = settings.pad_size_divisor
        if divisor == 1:
            return images
        height, width = images.shape[-2:]
        return F.pad(
            images,
            (0, -width % divisor, 0, -height % divisor),
            value=settings.pad_value,
        )

    def roi_detections(
        self,
        maps: tuple[Tensor, ...],
        proposals: Tensor,
        objectness: Tensor,
        size: tuple[int, int],
        least_score: float | Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes, scores and labels of the box head, from (N, P, 4) proposals."""
        roi_head = self.model.roi_head
        head, cfg = roi_head.bbox_head, roi_head.test_cfg
        pictures, num = proposals.shape[:2]
        rois = roi_features(roi_head.bbox_roi_extractor, maps, proposals)
        scores, deltas = head(rois)
        scores = scores.softmax(-1)[:, :-1].view(pictures, num, -1)
        classes = scores.shape[-1]
        scores = scores * (scores > least_score) * (objectness > 0)[..., None]
        repeats = 1 if head.reg_class_agnostic else classes
        boxes = head.bbox_coder.decode(
            proposals.view(-1, 1, 4).expand(-1, repeats, 4).reshape(-1, 4),
            deltas.view(-1, 4),
            max_shape=size,
        )
        boxes = boxes.view(pictures, num, repeats, 4).expand(-1, -1, classes, -1)
        labels = torch.arange(classes).expand(pictures, num, classes)
        boxes, labels = boxes.flatten(1, 2), labels.flatten(1)
        return best(boxes, scores.flatten(1), labels, labels, cfg)

    def masks(self, maps: tuple[Tensor, ...], boxes: Tensor, labels: Tensor) -> Tensor:
        """The masks of (N, D, 4) boxes, of their labels (N, D)."""
        roi_head = self.model.roi_head
        extractor = roi_head.mask_roi_extractor
        head = roi_head.mask_head
        masks = head(roi_features(extractor, maps, boxes)).sigmoid()
        if head.class_agnostic:
            masks = masks[:, 0]
        else:
            channel = labels.flatten().clamp(min=0)[:, None, None, None]
            channel = channel.expand(-1, 1, *masks.shape[-2:])
            masks = masks.gather(1, channel)[:, 0]
        return masks.unflatten(0, labels.shape)


def threshold(head: nn.Module) -> float:
    """The score above which candidates count; an RPN does not look at it."""
    return 0 if isinstance(head, RPNHead) else head.test_cfg.get('score_thr', 0)


def dense_detections(
    head: BaseDenseHead,
    maps: tuple[Tensor, ...],
    size: tuple[int, int],
    least_score: float | Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes, scores and labels of a head that predicts at every point of its maps.

    Args:
        head: An RPN's label is 0.
        maps: One per level, (N, C, h, w).
        size: Height and width of the pictures, to which boxes are clipped.
        least_score: Only candidates above it count.

    Returns:
        (N, D, 4), (N, D), (N, D), as of :class:`DeployedDetector`.
    """
    cfg = head.test_cfg
    outputs = head(maps)
    priors = head.prior_generator.grid_priors(
        [scores.shape[-2:] for scores in outputs[0]],
        dtype=maps[0].dtype,
        device=maps[0].device,
    )
    levels = [
        level_candidates(head, level, least_score, *tensors)
        for level, tensors in enumerate(zip(priors, *outputs, strict=True))
    ]
    anchors, deltas, scores, labels, groups = (
        torch.cat(parts, dim=1) for parts in zip(*levels, strict=True)
    )
    boxes = head.bbox_coder.decode(
        anchors.flatten(0, 1), deltas.flatten(0, 1), max_shape=size
    )
    boxes = get_box_tensor(boxes).view(*scores.shape, 4)
    if cfg.get('min_bbox_size', -1) >= 0:
        large = (boxes[..., 2:] - boxes[..., :2] > cfg.min_bbox_size).all(-1)
        scores = scores * large
    return best(boxes, scores, labels, groups, cfg)


def level_candidates(
    head: BaseDenseHead,
    level: int,
    least_score: float | Tensor,
    priors: Tensor,
    scores: Tensor,
    deltas: Tensor,
    factors: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """The ``nms_pre`` best pairs of prior and class of a level.

    Args:
        head: Its ``test_cfg`` says how many.
        level: Its index.
        least_score: Only candidates above it count.
        priors: (P, 4) or (P, 2).
        scores: Logits, (N, A * classes, h, w).
        deltas: (N, A * 4, h, w).
        factors: Logits of what scores are multiplied by afterwards, (N, A, h, w).

    Returns:
        Priors, deltas, scores, labels, and what suppresses each other only within:
        the label, or with an RPN the level. All start with (N, nms_pre).
    """
    cfg = head.test_cfg
    classes = head.cls_out_channels
    scores = by_prior(scores, classes)
    if head.use_sigmoid_cls:
        scores = scores.sigmoid()
    else:
        scores = scores.softmax(-1)[..., :-1]
        classes = classes - 1
    # zeros, so that a small map has nms_pre, too
    scores = F.pad(scores.flatten(1), (0, cfg.nms_pre))
    scores, pairs = scores.topk(cfg.nms_pre)
    scores = scores * (scores > least_score)
    pairs = pairs * (scores > 0)  # the zeros have no prior
    index, labels = pairs // classes, pairs % classes
    deltas = by_prior(deltas, head.bbox_coder.encode_size)
    deltas = take(deltas, index)
    if factors is not None:
        scores = scores * by_prior(factors, 1)[..., 0].gather(1, index).sigmoid()
    groups = torch.full_like(labels, level) if isinstance(head, RPNHead) else labels
    return priors[index], deltas, scores, labels, groups


def by_prior(values: Tensor, channels: int) -> Tensor:
    """(N, A * channels, h, w) as (N, h * w * A, channels), the order of priors."""
    return values.permute(0, 2, 3, 1).reshape(values.shape[0], -1, channels)


def take(values: Tensor, index: Tensor) -> Tensor:
    """Of (N, P, c) what (N, K) names: (N, K, c)."""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[-1]))


def best(
    boxes: Tensor, scores: Tensor, labels: Tensor, groups: Tensor, cfg: ConfigDict
) -> tuple[Tensor, Tensor, Tensor]:
    """Non-maximum suppression within groups, and the best of what is left.

    Args:
        boxes: (N, K, 4).
        scores: (N, K); 0 for what is no candidate.
        labels, groups: int64, (N, K).
        cfg: Has ``nms`` and ``max_per_img``.
    """
    limit = min(cfg.max_per_img, scores.shape[1])
    # As MMCV does it: a shift keeps groups apart in one suppression, and rounds the
    # coordinates the same way, on which close decisions depend.
    shifted = boxes
    if not cfg.nms.get('class_agnostic', False):
        largest = (boxes * (scores > 0)[..., None]).amax((1, 2), keepdim=True)
        shifted = boxes + groups.to(boxes)[..., None] * (largest + 1)
    scores = scores * nms_mask(shifted, scores, cfg.nms.iou_threshold, limit)
    scores, index = scores.topk(limit)
    found = scores > 0
    boxes = take(boxes, index) * found[..., None]
    return boxes, scores, torch.where(found, labels.gather(1, index), -1)


def roi_features(
    extractor: SingleRoIExtractor, maps: tuple[Tensor, ...], boxes: Tensor
) -> Tensor:
    """The features of (N, R, 4) boxes, each from the map of its size: (N * R, ...)."""
    pictures = torch.arange(boxes.shape[0])[:, None].expand(boxes.shape[:2]).flatten()
    boxes = boxes.flatten(0, 1)
    maps = maps[: extractor.num_inputs]
    levels = extractor.map_roi_levels(F.pad(boxes, (1, 0)), len(maps))
    result = 0
    for level, (layer, features) in enumerate(
        zip(extractor.roi_layers, maps, strict=True)
    ):
        on_level = levels == level
        # Boxes of other levels become empty, which saves their samples where a box has
        # as many as fit into it. With a fixed number (sampling_ratio > 0), or aligned
        # to whole pixels, an empty box has samples, too: their average is dropped.
        regions = aligned_rois(
            features,
            boxes * on_level[:, None],
            pictures,
            *layer.output_size,
            layer.spatial_scale,
            max(layer.sampling_ratio, 0),
            layer.aligned,
        )
        result = result + regions * on_level[:, None, None, None]
    return result


def check_support(model: nn.Module) -> None:
    """Raise a ValueError that names what is not implemented, if there is something."""
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


SUPPORTED = (
    'single-stage detectors whose head predicts as RetinaNet, SSD (PWSSSDHead), FCOS '
    'or ATSS do, and Faster and Mask R-CNN'
)


def _unsupported(part: nn.Module) -> str:
    return f'{type(part).__name__} is not supported. Supported are {SUPPORTED}.'


def _predicts_as(part: nn.Module, base: type, *methods: str) -> bool:
    """Whether a subclass left these methods as they are."""
    return isinstance(part, base) and all(
        getattr(type(part), name) is getattr(base, name) for name in methods
    )


def _check_dense(head: nn.Module) -> None:
    base = RPNHead if isinstance(head, RPNHead) else BaseDenseHead
    names = ('predict_by_feat', '_predict_by_feat_single', '_bbox_post_process')
    custom = getattr(getattr(head, 'loss_cls', None), 'custom_cls_channels', False)
    if not _predicts_as(head, base, 'predict', *names) or custom:
        raise ValueError(_unsupported(head))
    if not hasattr(head, 'loss_cls'):  # as in MMDetection 3.3.0
        raise ValueError(
            f'{type(head).__name__} cannot predict: it lacks the attribute loss_cls. '
            'PWSSSDHead can, and takes the same weights: '
            '--cfg-options model.bbox_head.type=PWSSSDHead'
        )
    _check_test_cfg(head, 'nms_pre')


def _check_rois(roi_head: nn.Module) -> None:
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
