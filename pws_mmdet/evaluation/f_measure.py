"""The F-measure of the paper's Figure 3, as a metric of MMEngine."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from mmdet.structures.bbox import bbox_overlaps, get_box_tensor
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS


@METRICS.register_module(force=True)
class FMeasureMetric(BaseMetric):
    """F-measure of the detected boxes: Fig. 3 of the PWS paper.

    It is the harmonic mean of precision and recall over all images and classes, at one
    threshold of the score and one of the IoU. The paper names neither threshold.

    In each image the detections are matched to objects in order of falling score. A
    detection takes the free object of its class with the largest IoU, if this IoU is at
    least ``iou_thr``. A detection without an object is a false positive, unless at
    least ``iou_thr`` of its own area lies in an ignored object of its class (a crowd of
    COCO, a difficult object of VOC). Ignored objects do not count.

    Results are ``box/f_measure``, ``box/precision`` and ``box/recall``, each from 0 to
    1, and 0 where the divisor is 0.

    Detectors return boxes in pixels of the original images, so the ground truth has to
    be in these pixels, too. Put ``LoadAnnotations`` after ``Resize`` in the pipeline,
    as all configs of this project and of MMDetection do.

    Args:
        iou_thr: Smallest IoU of a detection and its object, in (0, 1].
        score_thr: Smallest score of a detection that counts, in [0, 1].
        class_agnostic: Match detections to objects of any class.
        collect_device: See MMEngine's ``BaseMetric``.
        prefix: See MMEngine's ``BaseMetric``.
        collect_dir: See MMEngine's ``BaseMetric``.

    Raises:
        ValueError: If a threshold is out of range. In validation, if an image has no
            ground truth.
    """

    default_prefix = 'box'

    def __init__(
        self,
        iou_thr: float = 0.5,
        score_thr: float = 0.5,
        class_agnostic: bool = False,
        collect_device: str = 'cpu',
        prefix: str | None = None,
        collect_dir: str | None = None,
    ) -> None:
        if not 0 < iou_thr <= 1:
            raise ValueError(f'iou_thr must be in (0, 1], not {iou_thr}')
        if not 0 <= score_thr <= 1:
            raise ValueError(f'score_thr must be in [0, 1], not {score_thr}')
        super().__init__(collect_device, prefix, collect_dir)
        self.iou_thr = iou_thr
        self.score_thr = score_thr
        self.class_agnostic = class_agnostic

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Count matches, detections and objects in each image of a batch.

        Args:
            data_batch: Not used.
            data_samples: For each image ``pred_instances`` of bboxes (N, 4) in
                pixels (x1, y1, x2, y2), scores (N,) and labels (N,),
                ``gt_instances`` of bboxes and labels, and optionally
                ``ignored_instances`` of bboxes and labels.
        """
        self.results.extend(self._count(sample) for sample in data_samples)

    def compute_metrics(self, results: list[tuple[int, int, int]]) -> dict[str, float]:
        """Return the f-measure, precision and recall of all images together.

        Args:
            results: The numbers of matches, detections and objects of each image.
        """
        matches, detections, objects = map(sum, zip((0, 0, 0), *results, strict=True))
        return dict(
            f_measure=2 * matches / max(detections + objects, 1),
            precision=matches / max(detections, 1),
            recall=matches / max(objects, 1),
        )

    def _count(self, sample: dict) -> tuple[int, int, int]:
        gt = sample.get('gt_instances', {})
        if 'bboxes' not in gt or 'labels' not in gt:
            raise ValueError(
                'FMeasureMetric needs the ground truth of each image: put '
                "dict(type='LoadAnnotations', with_bbox=True) between Resize and "
                'PackDetInputs in the pipeline of the val and test data'
            )
        pred = sample['pred_instances']
        order = pred['scores'].argsort(descending=True, stable=True)
        order = order[pred['scores'][order] >= self.score_thr]
        pred = {key: pred[key][order] for key in ('bboxes', 'labels')}

        matched = np.zeros(len(order), dtype=bool)
        free = np.ones(len(gt['labels']), dtype=bool)
        for i, overlaps in enumerate(self._overlaps(pred, gt, 'iou')):
            overlaps = overlaps * free
            if overlaps.max(initial=0) >= self.iou_thr:
                matched[i] = True
                free[overlaps.argmax()] = False
        counted = np.ones(len(order), dtype=bool)
        ignored = sample.get('ignored_instances', {})
        if 'bboxes' in ignored:
            inside = self._overlaps(pred, ignored, 'iof') >= self.iou_thr
            counted = matched | ~inside.any(axis=1)
        return int(matched.sum()), int(counted.sum()), len(free)

    def _overlaps(self, pred: dict, gt: dict, mode: str) -> np.ndarray:
        """Return the overlaps (N, M) of detections and objects, 0 if classes differ."""
        boxes = (get_box_tensor(x['bboxes']).cpu().float() for x in (pred, gt))
        overlaps = bbox_overlaps(*boxes, mode=mode).numpy()
        if self.class_agnostic:
            return overlaps
        return overlaps * (pred['labels'].cpu()[:, None] == gt['labels'].cpu()).numpy()
