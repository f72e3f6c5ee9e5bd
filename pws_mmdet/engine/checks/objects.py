"""Checks of the boxes and masks that the pipeline of a dataset reads."""

from numbers import Real
from typing import Any

import numpy as np
from mmdet.datasets import BaseDetDataset
from mmdet.datasets.transforms import FilterAnnotations, LoadAnnotations
from torch.utils.data import Dataset

from .hosts import base_datasets
from .images import annotated_size, image_size
from .masks import SHORT_MASK, fault_of_polygons, fault_of_rle
from .oddities import Oddities

NO_AREA = (
    'Boxes without area: {number} (the first: {first}). The loss of such a box may be '
    "infinite. Put dict(type='FilterAnnotations', min_gt_bbox_wh=(1, 1)) after "
    'LoadAnnotations in the pipeline.'
)
NOT_FINITE = (
    'Boxes with a NaN or infinite number: {number} (the first: {first}). Correct or '
    'remove them.'
)
NO_MASK = (
    'Objects that are left out because their masks cannot be used: {number} (the '
    'first: {first}).'
)


def check_objects(dataset: Dataset) -> None:
    """Check the boxes and masks that the pipeline of a dataset reads.

    Raises:
        ValueError: If an object has no mask, or one that would stop the pipeline, or
            if a box has a number that no float can hold.
    """
    for base in base_datasets(dataset):
        transforms = getattr(base.pipeline, 'transforms', ())
        masks = [part for part in transforms if _reads_masks(part)]
        is_filtered = any(isinstance(part, FilterAnnotations) for part in transforms)
        odd = Oddities()
        for i in range(len(base)):
            record = base.get_data_info(i)
            for instance in record.get('instances') or ():
                if masks:
                    _check_mask(base, record, instance, masks[0].poly2mask, odd)
                may_be_empty = is_filtered or bool(instance.get('ignore_flag'))
                _check_box(base, record, instance.get('bbox'), may_be_empty, odd)
        odd.warn(base.ann_file)


def _check_box(
    base: BaseDetDataset, record: dict, box: Any, may_be_empty: bool, odd: Oddities
) -> None:
    path = record.get('img_path')
    is_box = isinstance(box, list) and len(box) == 4
    if not is_box or not all(isinstance(v, Real) for v in box):
        return
    if any(isinstance(v, int) and abs(v) > 1e38 for v in box):
        raise ValueError(
            f'{base.ann_file}: the box of an object of {path} has a number that no '
            'float can hold'
        )
    if not np.isfinite(box).all():
        odd.add(NOT_FINITE, f'{box} of {path}')
    elif not may_be_empty and (box[2] <= box[0] or box[3] <= box[1]):
        odd.add(NO_AREA, f'{box} (x1, y1, x2, y2) of {path}')


def _reads_masks(part: Any) -> bool:
    """Tell whether a transform reads masks with MMDetection's own code."""
    kind = type(part)
    return (
        isinstance(part, LoadAnnotations)
        and part.with_mask
        and kind.transform is LoadAnnotations.transform
        and kind._load_masks is LoadAnnotations._load_masks
        and kind._process_masks is LoadAnnotations._process_masks
    )


def _check_mask(
    base: BaseDetDataset, record: dict, instance: dict, poly2mask: bool, odd: Oddities
) -> None:
    path = record.get('img_path')
    if 'mask' not in instance:
        raise ValueError(
            f'{base.ann_file}: an object of {path} has no segmentation, and the '
            'pipeline loads masks (with_mask=True)'
        )
    mask, fault, left_out, cut = instance['mask'], '', '', ''
    if isinstance(mask, list):
        usable = [p for p in mask if not hasattr(p, '__len__') or len(p) >= 6]
        usable = [p for p in usable if not hasattr(p, '__len__') or len(p) % 2 == 0]
        fault = fault_of_polygons(usable)
        left_out = '' if usable else 'no polygon has 3 points'
    elif not poly2mask:
        left_out = 'masks that are no polygons need poly2mask=True'
    elif not isinstance(mask, dict):
        fault = f'must be a list of polygons, or RLE, not {mask!r:.40}'
    elif mask.get('size') is None or not isinstance(mask.get('counts'), (list, str)):
        left_out = 'its RLE needs size and counts'
    else:
        fault, cut = fault_of_rle(mask)
        if not fault:
            fault = _fault_of_rle_size(mask['size'], record)
    if fault:
        raise ValueError(
            f'{base.ann_file}: the segmentation of an object of {path} {fault}'
        )
    if left_out:
        odd.add(NO_MASK, f'one of {path}, {left_out}')
    if cut:
        odd.add(SHORT_MASK, f'one of {path} {cut}')


def _fault_of_rle_size(size: list, record: dict) -> str:
    """Compare the size of an RLE with that of its image, as MMDetection does.

    MMDetection takes the size of the image as it is read. The annotations may have
    another one.
    """
    annotated = annotated_size(record)
    if not annotated or size == [*annotated[::-1]]:
        return ''
    try:
        if size == [*image_size(record['img_path'])[::-1]]:
            return ''
    except (KeyError, OSError, TypeError):
        pass
    return (
        f'must have the size [height, width] of its image, {[*annotated[::-1]]}, not '
        f'{size}'
    )
