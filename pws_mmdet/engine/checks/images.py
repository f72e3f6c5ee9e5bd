"""Checks of image files, and of their sizes."""

import os
import os.path as osp
import time
from collections import defaultdict
from collections.abc import Iterator

from mmcv.transforms import LoadImageFromFile
from mmdet.datasets import BaseDetDataset
from mmengine.dataset import BaseDataset
from PIL import Image
from torch.utils.data import Dataset

from ...utils.log import warn
from ...utils.names import first_names
from .hosts import base_datasets, is_of_host
from .missing_files import describe_missing, ways_to_get
from .oddities import Oddities

EXIF_ORIENTATION = 0x0112  # Values 5 to 8 turn an image by 90 degrees.
# Number of images of a dataset whose sizes are compared
SAMPLED_IMAGES = 200
# Seconds for finding empty files in one folder; a network drive may be slow
LISTING_TIME = 10
OTHER_SIZE = (
    'Images whose size is not that of their annotations: {number} of those that were '
    'looked at. The first: {first}. Check that the boxes fit the images as they are '
    'read.'
)


def check_images(dataset: Dataset) -> None:
    """Check that the image files that a dataset reads exist and are not empty.

    A warning tells if images have another size than their annotations say. Images are
    not checked if they are read through a ``backend_args`` or a transform of the
    user's, or if the annotations do not name a file.

    Raises:
        FileNotFoundError: If files are missing or empty. The message says how many,
            and names the first ones.
    """
    folders = defaultdict(set)
    for base in base_datasets(dataset):
        loader = _loader_of(base)
        if loader is False:
            continue
        names = defaultdict(set)
        for path in _paths_of(base):
            folder, name = osp.split(path)
            names[folder].add(name)
        if getattr(loader, 'ignore_empty', False) and not base.test_mode:
            if texts := [*_lacking_images(names)]:
                warn(
                    'Images are missing or empty. The training leaves them out '
                    f'(ignore_empty=True): {"; ".join(texts)}'
                )
        else:
            for folder in names:
                folders[folder] |= names[folder]
        if loader is not None:
            _compare_sizes(base, loader)
    if missing := [*_lacking_images(folders)]:
        raise FileNotFoundError(
            'Images that the annotations name are missing, or are empty files:\n    '
            + '\n    '.join(missing)
            + f'\n{ways_to_get(missing)}'
        )


def image_size(path: str, turn: bool = True) -> tuple[int, int]:
    """Return the width and height of an image file, in pixels, from its header.

    Args:
        path: The file.
        turn: Return the size after turning the image by its EXIF orientation, as
            OpenCV does.

    Raises:
        OSError: If it is no image.
    """
    with Image.open(path) as image:
        turned = turn and image.getexif().get(EXIF_ORIENTATION, 1) in (5, 6, 7, 8)
        return image.size[::-1] if turned else image.size


def annotated_size(record: dict) -> tuple[int, int] | None:
    """Return the width and height in the record of an image, if it has them."""
    has_size = {'width', 'height'} <= set(record)
    return (record['width'], record['height']) if has_size else None


def size_fault(
    path: str, size: tuple[float, float], annotated: tuple[float, float]
) -> str:
    """Say that an image has another size than its annotations, if it is so.

    Args:
        path: The file of the image.
        size: Width and height in pixels, as the image is read.
        annotated: Width and height in pixels, as the annotations have them.

    Returns:
        A sentence without its end, or an empty string if the sizes are equal.
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


def _loader_of(base: BaseDetDataset) -> LoadImageFromFile | None | bool:
    """Find the transform that reads the image files of a dataset.

    Returns:
        The transform. None if the pipeline is empty, so that files may be read later.
        False if it is not known which files are read, or if they are not on a disk.
    """
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
        path, annotated = record.get('img_path'), annotated_size(record)
        if isinstance(path, str) and '://' not in path and annotated:
            try:
                fault = size_fault(path, image_size(path, turn), annotated)
            except OSError:  # The file is missing, or Pillow does not know its kind.
                continue
            if fault:
                odd.add(OTHER_SIZE, fault)
    odd.warn(base.ann_file)
