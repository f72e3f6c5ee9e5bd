"""A search for wrong boxes and image sizes in one batch."""

from typing import Any

import torch
from mmdet.structures.bbox import get_box_tensor
from mmengine.structures import BaseDataElement
from torch.utils.data import Dataset

from ...utils.config import walk
from .hosts import base_datasets
from .images import annotated_size, size_fault


def describe_suspicious_data(
    data_batch: Any, dataset: Dataset | None = None, most: int = 3
) -> str:
    """Name the images of a batch whose boxes or sizes cannot be right.

    A box is wrong if it has no area or a number that is not finite. A size is wrong if
    it is not the one in the annotations. Images that a transform mixes into another
    one (Mosaic, MixUp) are not seen.

    Args:
        data_batch: A batch as the data loader gives it: ``DetDataSample`` objects
            somewhere in dicts and lists.
        dataset: The dataset of the batch. Without it, sizes are not compared.
        most: The largest number of images to describe.

    Returns:
        Whole sentences, or an empty string if nothing is wrong.
    """
    samples = [*_samples(data_batch)]
    paths = {sample.get('img_path') for sample in samples} - {None}
    sizes = _annotated_sizes(dataset, paths) if paths else {}
    found = []
    for sample in samples:
        path = sample.get('img_path')
        name = path or f'The image {sample.get("img_id")!r}'
        gt = sample.get('gt_instances')
        if gt is not None and 'bboxes' in gt:
            boxes = get_box_tensor(gt['bboxes']).detach().float()
            if fault := _box_fault(boxes):
                found.append(f'{name} {fault}.')
        if path in sizes and 'ori_shape' in sample:
            height, width = sample.get('ori_shape')[:2]
            if fault := size_fault(path, (width, height), sizes[path]):
                found.append(f'{fault}.')
    more = f' {len(found) - most} more are like that.' if len(found) > most else ''
    return ' '.join(found[:most]) + more


def _box_fault(boxes: torch.Tensor) -> str:
    if boxes.ndim != 2 or boxes.shape[1] != 4:  # Boxes of another kind, as rotated ones
        return ''
    odd = boxes[~boxes.isfinite().all(dim=1)]
    if len(odd):
        return f'has a box that is not finite, {odd[0].tolist()} (x1, y1, x2, y2)'
    empty = boxes[(boxes[:, 2:] <= boxes[:, :2]).any(dim=1)]
    if len(empty):
        return (
            f'has a box without area, {empty[0].tolist()} (x1, y1, x2, y2): put '
            "dict(type='FilterAnnotations', min_gt_bbox_wh=(1, 1)) after "
            'LoadAnnotations in the pipeline'
        )
    return ''


def _samples(data: Any) -> list[BaseDataElement]:
    return [part for _, part in walk(data) if isinstance(part, BaseDataElement)]


def _annotated_sizes(dataset: Dataset | None, paths: set) -> dict[str, tuple]:
    sizes = {}
    for base in base_datasets(dataset):
        for i in range(len(base)):
            record = base.get_data_info(i)
            size = annotated_size(record)
            if record.get('img_path') in paths and size:
                sizes[record['img_path']] = size
    return sizes
