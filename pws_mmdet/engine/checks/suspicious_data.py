"""What may be wrong with single images and their boxes, in words."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from mmdet.datasets import BaseDetDataset
from mmdet.structures.bbox import get_box_tensor
from mmengine.structures import BaseDataElement
from PIL import Image
from torch.utils.data import Dataset, Subset

EXIF_ORIENTATION = 0x0112  # 5 to 8 turn an image by 90 degrees


def describe_suspicious_data(
    data_batch: Any, dataset: Dataset | None = None, most: int = 3
) -> str:
    """Say which images of a batch have boxes or sizes that cannot be right.

    These are boxes without area or with numbers that are not finite, and images of
    another size than their annotations say.

    Args:
        data_batch: A batch as the data loader gives it: ``DetDataSample`` objects
            somewhere in dicts and lists.
        dataset: The dataset of the batch. Without it sizes are not compared.
        most: Describe at most so many images.

    Returns:
        Whole sentences, or an empty string if nothing is suspicious. An image that
        a transform mixes in (Mosaic, MixUp) cannot be seen here.
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


def base_datasets(dataset: Any) -> Iterator[BaseDetDataset]:
    """Find MMDetection's datasets inside those that wrap them.

    A wrapper of a user's own may leave out what it likes: it is not looked into.
    """
    if isinstance(dataset, BaseDetDataset):
        yield dataset
        return
    package = type(dataset).__module__.partition('.')[0]
    if package not in ('mmdet', 'mmengine', 'torch') or isinstance(dataset, Subset):
        return
    for inner in (getattr(dataset, 'dataset', None), *getattr(dataset, 'datasets', ())):
        if inner is not None:
            yield from base_datasets(inner)


def image_size(path: str, turn: bool = True) -> tuple[int, int]:
    """Return the width and height of an image file, in pixels, from its header.

    Args:
        path: The file.
        turn: As it is after turning it by its EXIF orientation, as OpenCV does.

    Raises:
        OSError: If it is no image.
    """
    with Image.open(path) as image:
        turned = turn and image.getexif().get(EXIF_ORIENTATION, 1) in (5, 6, 7, 8)
        return image.size[::-1] if turned else image.size


def size_fault(
    path: str, size: tuple[float, float], annotated: tuple[float, float]
) -> str:
    """Say that an image has another size than its annotations, or nothing.

    Args:
        path: Its file.
        size: Width and height as it is read, in pixels.
        annotated: Width and height as the annotations have them.
    """
    if tuple(size) == tuple(annotated):
        return ''
    text = (
        f'{path} is {size[0]} x {size[1]} pixels (width x height) when it is read, '
        f'and {annotated[0]} x {annotated[1]} in its annotations'
    )
    if tuple(size) == tuple(annotated)[::-1] and _is_turned(path):
        text += (
            ': its EXIF orientation turns it. If its boxes are those of the unturned '
            "image, read it with LoadImageFromFile(color_type='color_ignore_orientation"
            "')"
        )
    return text


def _is_turned(path: str) -> bool:
    try:
        return image_size(path) != image_size(path, turn=False)
    except OSError:
        return False


def _box_fault(boxes: torch.Tensor) -> str:
    if boxes.ndim != 2 or boxes.shape[1] != 4:  # boxes of another kind
        return ''
    odd = boxes[~boxes.isfinite().all(dim=1)]
    if len(odd):
        return f'has a box that is not finite, {odd[0].tolist()} (x1, y1, x2, y2)'
    empty = boxes[(boxes[:, 2:] <= boxes[:, :2]).any(dim=1)]
    if len(empty):
        return (
            f'has a box without area, {empty[0].tolist()} (x1, y1, x2, y2): after '
            'LoadAnnotations put '
            "dict(type='FilterAnnotations', min_gt_bbox_wh=(1, 1)) into the pipeline"
        )
    return ''


def _samples(data: Any) -> Iterator[BaseDataElement]:
    if isinstance(data, BaseDataElement):
        yield data
    elif isinstance(data, Mapping):
        for part in data.values():
            yield from _samples(part)
    elif isinstance(data, Sequence) and not isinstance(data, str):
        for part in data:
            yield from _samples(part)


def _annotated_sizes(dataset: Dataset | None, paths: set) -> dict[str, tuple]:
    sizes = {}
    for base in base_datasets(dataset):
        for i in range(len(base)):
            record = base.get_data_info(i)
            if record.get('img_path') in paths and {'width', 'height'} <= set(record):
                sizes[record['img_path']] = (record['width'], record['height'])
    return sizes
