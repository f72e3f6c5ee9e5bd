"""Checks of the images, boxes and masks of a dataset, before the first step.

What would crash a training or ruin it in silence is an error, all else a warning.
"""

import os
import os.path as osp
import time
from collections import defaultdict
from collections.abc import Iterator
from numbers import Real
from typing import Any

import numpy as np
from mmcv.transforms import LoadImageFromFile
from mmdet.datasets import BaseDetDataset
from mmdet.datasets.transforms import FilterAnnotations, LoadAnnotations
from mmengine.dataset import BaseDataset
from torch import nn
from torch.utils.data import Dataset

from ...utils.names import first_names
from .annotations import (
    SHORT_MASK,
    Oddities,
    fault_of_polygons,
    fault_of_rle,
    warn,
)
from .classes import check_classes, check_num_classes
from .data import describe_missing, is_of_host, ways_to_get
from .suspicious_data import base_datasets, image_size, size_fault

# The number of images of a dataset whose sizes are looked at
SAMPLED_IMAGES = 200
# Seconds for finding empty files in one folder; a network drive may be slow
LISTING_TIME = 10
NO_AREA = (
    'The number of boxes without area is {number} (the first: {first}). The loss of '
    'such a box may be infinite. After LoadAnnotations put '
    "dict(type='FilterAnnotations', min_gt_bbox_wh=(1, 1)) into the pipeline."
)
NOT_FINITE = (
    'The number of boxes that are not finite is {number} (the first: {first}). '
    'Correct or remove them.'
)
NO_MASK = (
    'The number of objects that are left out because their masks cannot be used is '
    '{number} (the first: {first}).'
)
OTHER_SIZE = (
    'Of {number} of the images that were looked at, the size is not that of the '
    'annotations: {first}. See whether their boxes fit the images as they are read.'
)


def check_dataset(dataset: Dataset, model: nn.Module | None = None) -> None:
    """Check the images, masks and classes of a dataset of MMDetection.

    Args:
        dataset: It is built; wrappers of MMDetection and MMEngine are looked into.
            Other datasets are left alone.
        model: Check the number of classes of its heads, too.

    Raises:
        FileNotFoundError: If images are missing or empty that the pipeline reads.
        ValueError: If masks that the pipeline reads would stop it, or classes or
            labels do not fit together.
    """
    check_classes(dataset)
    if model is not None:
        check_num_classes(dataset, model)
    check_objects(dataset)
    check_images(dataset)


def check_images(dataset: Dataset) -> None:
    """Look for the image files that a dataset reads, and for their sizes.

    What is read through a ``backend_args`` or a transform of a user's own, and
    records without the path of an image are left alone.

    Raises:
        FileNotFoundError: If files are missing or empty. It says how many, and which.
    """
    folders = defaultdict(set)
    for base in base_datasets(dataset):
        loader = _loader_of(base)
        paths = [*_paths_of(base)] if loader is not False else []
        names = defaultdict(set)
        for path in paths:
            folder, name = osp.split(path)
            names[folder].add(name)
        if getattr(loader, 'ignore_empty', False) and not base.test_mode:
            if texts := [*_lacking_images(names)]:
                warn(
                    'Images are missing or empty. The training goes on without them '
                    f'(ignore_empty=True): {"; ".join(texts)}'
                )
        else:
            for folder in names:
                folders[folder] |= names[folder]
        if loader is not None and loader is not False:
            _compare_sizes(base, loader)
    if missing := [*_lacking_images(folders)]:
        raise FileNotFoundError(
            'Images that the annotations name are not there, or are empty files. '
            'Missing:\n    ' + '\n    '.join(missing) + f'\n{ways_to_get(missing)}'
        )


def _loader_of(base: BaseDetDataset) -> LoadImageFromFile | None | bool:
    """The transform that reads the files; False if something unknown may do it."""
    transforms = getattr(base.pipeline, 'transforms', ())
    reads = (BaseDataset.prepare_data, BaseDataset.__getitem__)
    if (type(base).prepare_data, type(base).__getitem__) != reads:
        return False
    if getattr(base, 'backend_args', None):
        return False
    for part in transforms:
        if getattr(type(part), 'transform', None) is LoadImageFromFile.transform:
            remote = part.backend_args or part.file_client_args
            return False if remote else part
        if not is_of_host(type(part)):
            return False
    return False if transforms else None


def _paths_of(base: BaseDetDataset) -> Iterator[str]:
    for i in range(len(base)):
        path = base.get_data_info(i).get('img_path')
        if isinstance(path, str) and '://' not in path:
            yield path


def _lacking_images(folders: dict[str, set]) -> Iterator[str]:
    for folder, names in folders.items():
        if text := describe_missing(folder, names):
            yield text
        elif empty := _empty_files(folder or '.', names):
            yield (
                f'{osp.join(folder, "")}: {len(empty)} of {len(names)} files have 0 '
                f'bytes, {first_names(empty)}'
            )


def _empty_files(folder: str, names: set[str]) -> list[str]:
    stop = time.monotonic() + LISTING_TIME
    empty = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if time.monotonic() > stop:
                break
            if entry.name in names and entry.stat().st_size == 0:
                empty.append(entry.name)
    return sorted(empty)


def _compare_sizes(base: BaseDetDataset, loader: LoadImageFromFile) -> None:
    odd = Oddities()
    turn = loader.color_type in ('color', 'grayscale')
    turn &= loader.imdecode_backend in ('cv2', 'pillow')
    for i in range(0, len(base), max(1, len(base) // SAMPLED_IMAGES)):
        record = base.get_data_info(i)
        path, annotated = record.get('img_path'), _size_of(record)
        if isinstance(path, str) and '://' not in path and annotated:
            try:
                fault = size_fault(path, image_size(path, turn), annotated)
            except OSError:  # not there, or of a kind that Pillow does not know
                continue
            if fault:
                odd.add(OTHER_SIZE, fault)
    if odd.found:
        warn(f'{base.ann_file}: {odd}')


def _size_of(record: dict) -> tuple | None:
    has_size = {'width', 'height'} <= set(record)
    return (record['width'], record['height']) if has_size else None


def check_objects(dataset: Dataset) -> None:
    """Check the boxes and masks that the pipeline of a dataset reads.

    Raises:
        ValueError: If an object has no mask, or one that would stop the pipeline, or
            a box has numbers that do not fit into floats.
    """
    for base in base_datasets(dataset):
        transforms = getattr(base.pipeline, 'transforms', ())
        masks = [part for part in transforms if _reads_masks(part)]
        is_filtered = any(isinstance(part, FilterAnnotations) for part in transforms)
        odd = Oddities()
        for i in range(len(base)):
            record = base.get_data_info(i)
            path = record.get('img_path')
            for instance in record.get('instances') or ():
                if masks:
                    _check_mask(base, record, instance, masks[0].poly2mask, odd)
                box = instance.get('bbox')
                is_box = isinstance(box, list) and len(box) == 4
                if not is_box or not all(isinstance(v, Real) for v in box):
                    continue
                if any(isinstance(v, int) and abs(v) > 1e38 for v in box):
                    raise ValueError(
                        f'{base.ann_file}: the box of an object of {path} has a number '
                        'that no float can hold'
                    )
                if not np.isfinite(box).all():
                    odd.add(NOT_FINITE, f'{box} of {path}')
                elif is_filtered or instance.get('ignore_flag'):
                    continue
                elif box[2] <= box[0] or box[3] <= box[1]:
                    odd.add(NO_AREA, f'{box} (x1, y1, x2, y2) of {path}')
        if odd.found:
            warn(f'{base.ann_file}: {odd}')


def _reads_masks(part: Any) -> bool:
    """Whether a transform reads the masks of the instances as MMDetection does."""
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
        if not fault and _size_of(record):
            fault = _fault_of_rle_size(mask['size'], record)
    if fault:
        raise ValueError(
            f'{base.ann_file}: the segmentation of an object of {path} {fault}'
        )
    if left_out:
        odd.add(NO_MASK, f'of {path}, {left_out}')
    if cut:
        odd.add(SHORT_MASK, f'one of {path} {cut}')


def _fault_of_rle_size(size: list, record: dict) -> str:
    """MMDetection compares it with the image that it has read."""
    width, height = _size_of(record)
    if size == [height, width]:
        return ''
    try:
        if size == [*image_size(record['img_path'])[::-1]]:
            return ''
    except (KeyError, OSError, TypeError):
        pass
    return (
        f'must have the size [height, width] of its image, {[height, width]}, not '
        f'{size}'
    )
