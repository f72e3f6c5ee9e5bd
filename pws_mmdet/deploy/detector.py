"""A detector as one function of raw images, which torch.export can trace."""

import torch
import torch.nn.functional as F
from mmdet.models.detectors import SingleStageDetector
from torch import Tensor, nn

from .predict import best, dense_detections, roi_features, threshold
from .support import check_support

OUTPUTS = ('boxes', 'scores', 'labels', 'masks')
"""Names of the outputs. Only detectors with masks have the last one."""


class DeployedDetector(nn.Module):
    """A detector that turns raw images into detections, for the export.

    Its input is a batch of images as MMDetection's pipelines deliver them: float32
    (N, 3, H, W), 0 to 255, with the order of channels that the ``data_preprocessor``
    expects (BGR with ``bgr_to_rgb=True``). The detector normalizes and pads them.

    It returns, with D = ``max_per_img`` of the config and the best score first,

    * boxes: float32 (N, D, 4), as (x1, y1, x2, y2) in pixels of the input;
    * scores: float32 (N, D);
    * labels: int64 (N, D);
    * masks, of Mask R-CNN only: float32 (N, D, h, w). The h x w values fill the box
      evenly; each is the probability that its point belongs to the object.

    An image with fewer than D detections is filled up with label -1, score 0 and box 0.
    An optional second input, a float32 tensor of shape (), replaces the score threshold
    of the config.

    Args:
        model: A detector of MMDetection. It is set to evaluation mode, not copied.

    Raises:
        ValueError: If a part of the detector is not supported.
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
        """The ``score_thr`` of the config: only higher scores are returned.

        Setting it changes the model's config, too. It is 0 for an RPN, which has no
        threshold.
        """
        return threshold(self._last_head)

    @least_score.setter
    def least_score(self, value: float) -> None:
        self._last_head.test_cfg.score_thr = value

    @property
    def _last_head(self) -> nn.Module:
        return getattr(self.model, 'roi_head', None) or self.model.bbox_head

    def maps(self, images: Tensor) -> tuple[Tensor, ...]:
        """The feature maps that the heads take."""
        return self.model.extract_feat(self.preprocess(images))

    def forward(
        self, images: Tensor, least_score: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        size = images.shape[-2], images.shape[-1]
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
        """Do to a batch what the ``data_preprocessor`` does: (N, 3, H', W')."""
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
        batch, num = proposals.shape[:2]
        rois = roi_features(roi_head.bbox_roi_extractor, maps, proposals)
        scores, deltas = head(rois)
        scores = scores.softmax(-1)[:, :-1].view(batch, num, -1)
        classes = scores.shape[-1]
        scores = scores * (scores > least_score) * (objectness > 0)[..., None]
        repeats = 1 if head.reg_class_agnostic else classes
        boxes = head.bbox_coder.decode(
            proposals.view(-1, 1, 4).expand(-1, repeats, 4).reshape(-1, 4),
            deltas.view(-1, 4),
            max_shape=size,
        )
        boxes = boxes.view(batch, num, repeats, 4).expand(-1, -1, classes, -1)
        labels = torch.arange(classes).expand(batch, num, classes)
        boxes, labels = boxes.flatten(1, 2), labels.flatten(1)
        return best(boxes, scores.flatten(1), labels, labels, cfg)

    def masks(self, maps: tuple[Tensor, ...], boxes: Tensor, labels: Tensor) -> Tensor:
        """The masks of (N, D, 4) boxes, each for its label in (N, D)."""
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
