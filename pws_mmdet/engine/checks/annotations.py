"""Checks of annotations in the form of COCO.

MMDetection reads them itself. Where it fails, the error here says which entry of the
file is wrong; what it takes and leaves out is a warning.
"""

import contextlib
import logging
import math
import re
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Real
from typing import Any

import mmdet.evaluation.metrics.coco_metric as coco_metric
import numpy as np
from mmdet.datasets import CocoDataset, XMLDataset
from mmdet.datasets.api_wrappers import COCO
from mmengine.logging import print_log

from .data import is_of_host

# Pixels: the mask of a polygon that reaches further fills the memory
FAR = 1e7
# How pycocotools writes numbers: 5 bits a character, of which all but a number's last
# are marked by the sixth
RLE_TEXT = re.compile(r'([P-o]{0,6}[0-O])*')
# By kind of entry, what MMDetection reads of it; () stands for all
READ = dict(
    images=('file_name', 'height', 'width'), categories=('name',), annotations=()
)
READING_ERRORS = (
    *(AssertionError, AttributeError, IndexError, KeyError),
    *(OverflowError, TypeError, ValueError),
)


class CheckedCOCO(COCO):
    """COCO's own reader, with errors that say which file is wrong, and what of it.

    Raises:
        ValueError: If the file cannot be read, or two different entries have the same
            id: one of them would be lost in silence.
    """

    def __init__(self, annotation_file: str | None = None) -> None:
        self.path = annotation_file
        try:
            super().__init__(annotation_file)
        except (AssertionError, RecursionError, ValueError) as e:  # or not UTF-8
            raise ValueError(_unusable(annotation_file, str(e))) from None

    def createIndex(self) -> None:
        try:
            super().createIndex()
        except READING_ERRORS as e:
            raise ValueError(find_fault(self.dataset) or repr(e)) from None
        for kind, keys in READ.items():
            by_id = {}
            for entry in self.dataset.get(kind) or ():
                first = by_id.setdefault(entry['id'], entry)
                if first is not entry and any(
                    first.get(key) != entry.get(key)
                    for key in keys or {**first, **entry}
                ):
                    raise ValueError(_given_twice(kind, entry['id']))


@contextlib.contextmanager
def checked_annotations() -> Iterator[None]:
    """Datasets and metrics that are built meanwhile check the files they read."""
    places = {
        (coco_metric, 'COCO'): lambda stock: CheckedCOCO,
        (CocoDataset, 'load_data_list'): _checked,
        (XMLDataset, 'parse_data_info'): _naming_its_file,
    }
    stock = {place: getattr(*place) for place in places}
    try:
        for place, checked in places.items():
            setattr(*place, checked(stock[place]))
        yield
    finally:
        for place, value in stock.items():
            setattr(*place, value)


def _naming_its_file(parse_data_info: Callable) -> Callable:
    def parse(self: XMLDataset, img_info: dict) -> dict:
        try:
            return parse_data_info(self, img_info)
        except Exception as e:  # of whatever kind: XML, a missing tag, the image
            raise ValueError(
                f'{img_info["xml_path"]} cannot be used as annotations of '
                f'{img_info["file_name"]}: {type(e).__name__}: {e}'
            ) from e

    return parse


def _checked(load_data_list: Callable) -> Callable:
    def load(self: CocoDataset) -> list[dict]:
        files = []

        def read(path: str) -> CheckedCOCO:
            files.append(CheckedCOCO(path))
            return files[0]

        if type(self).COCOAPI is COCO:
            self.COCOAPI = read
        is_stock = type(self).parse_data_info is CocoDataset.parse_data_info
        try:
            records = load_data_list(self)
        except READING_ERRORS:
            fault = find_fault(files[0].dataset) if files and is_stock else ''
            if not fault:
                raise
            raise ValueError(_unusable(self.ann_file, fault)) from None
        finally:
            vars(self).pop('COCOAPI', None)
        if files:
            content = files[0].dataset
            if not records and self.serialize_data:
                fault = find_fault(content) or "'images' is empty"
                raise ValueError(_unusable(self.ann_file, fault))
            if is_stock and (odd := describe_oddities(content)):
                warn(f'{self.ann_file}: {odd}')
            # A class of the user's may give out labels itself, and without objects
            # there are none.
            labels = (type(self).load_data_list, type(self).parse_data_info)
            if content.get('annotations') and all(map(is_of_host, labels)):
                names = {c['id']: c['name'] for c in content['categories']}
                self.file_classes = tuple(names[i] for i in self.cat_ids)
        return records

    return load


def warn(text: str) -> None:
    """Log a warning through MMEngine, for all who look at the log of a training."""
    print_log(text, logger='current', level=logging.WARNING)


def find_fault(content: Mapping[str, Any]) -> str:
    """Say what MMDetection cannot read of annotations in the form of COCO.

    ``annotations`` may be missing, as in COCO's lists of test images.

    Returns:
        The first fault, or an empty string.
    """
    for key in ('images', 'categories', 'annotations'):
        entries = content.get(key, [] if key == 'annotations' else None)
        if not isinstance(entries, list) or not all(
            isinstance(entry, dict) for entry in entries
        ):
            return f'{key!r} is missing, or no list of objects'
        for i, entry in enumerate(entries):
            if not _is_id(entry, 'id'):
                return f'number {i} of the {_one_of(key)} entries has no id'
    if not content['images']:
        return "'images' is empty"
    for image in content['images']:
        name = f'image {image["id"]!r}'
        if not isinstance(image.get('file_name'), str):
            return f"the {name} has no 'file_name'"
        for key in ('width', 'height'):
            if not isinstance(image.get(key), Real):
                return (
                    f'the {key} of the {name} must be a positive number, not '
                    f'{reprlib.repr(image.get(key))}'
                )
    for category in content['categories']:
        if 'name' not in category:
            return f"the category {category['id']!r} has no 'name'"
    seen = set()
    for annotation in content.get('annotations', ()):
        name = f'annotation {annotation["id"]!r}'
        for key in ('image_id', 'category_id'):
            if not _is_id(annotation, key):
                return (
                    f'the {name} has the {key} {reprlib.repr(annotation.get(key))}, '
                    'which is not there'
                )
        if fault := fault_of_numbers(annotation):
            return fault
        if annotation['id'] in seen:
            return _given_twice('annotations', annotation['id'])
        seen.add(annotation['id'])
    return ''


def fault_of_numbers(
    annotation: Mapping, keys: Sequence[str] = ('bbox', 'area')
) -> str:
    """Say what is wrong with the box or the area of an annotation."""
    box, area = annotation.get('bbox'), annotation.get('area')
    if 'bbox' in keys and not _is_box(box):
        return (
            f'the bbox of the annotation {annotation["id"]!r} must be '
            f'[x, y, width, height], not {reprlib.repr(box)}'
        )
    if 'area' in keys and not isinstance(area, Real):
        return (
            f'the area of the annotation {annotation["id"]!r} must be a number, not '
            f"{reprlib.repr(area)}; a box's is width * height"
        )
    return ''


def _is_box(box: Any) -> bool:
    if not (isinstance(box, list) and len(box) == 4):
        return False
    return all(
        isinstance(v, float) or (isinstance(v, int) and abs(v) < 1e38) for v in box
    )


def _is_id(entry: Mapping, key: str) -> bool:
    return key in entry and not isinstance(entry[key], (list, dict))


def _one_of(key: str) -> str:
    return 'category' if key == 'categories' else key[:-1]


def _given_twice(kind: str, i: Any) -> str:
    return f'the {_one_of(kind)} id {i!r} is given twice'


def _unusable(path: str | None, fault: str) -> str:
    return f'{path} cannot be used as annotations in the form of COCO: {fault}'


class Oddities:
    """Counts what is odd, and keeps the first case of each kind."""

    def __init__(self) -> None:
        self.found: dict[str, list] = {}

    def add(self, kind: str, first: str) -> None:
        self.found.setdefault(kind, [0, first])[0] += 1

    def __str__(self) -> str:
        return ' '.join(
            kind.format(number=number, first=first)
            for kind, (number, first) in self.found.items()
        )


NO_IMAGE = (
    "The number of annotations of images that 'images' does not list is {number} "
    '(the first: {first}). They are left out. This is right for a subset.'
)
NO_CATEGORY = (
    "The number of annotations of categories that 'categories' does not list is "
    '{number} (the first: {first}). They are left out.'
)
NO_BOX = (
    'The number of boxes that MMDetection does not train on is {number} (the first: '
    '{first}): they have no area, a side below 1 pixel, or lie outside their image. A '
    'validation may count them as objects that are missed. Correct or remove them.'
)
NO_CROWD = (
    'The number of annotations with an iscrowd that is neither 0 nor 1 is {number} '
    '(the first: {first}). MMDetection takes them for crowds and ignores the objects.'
)
SHORT_MASK = 'The number of masks that are cut off is {number} (the first: {first}).'


def describe_oddities(content: Mapping[str, Any]) -> str:
    """Say what MMDetection leaves out of annotations that it can read.

    Returns:
        Whole sentences, or an empty string.
    """
    odd = Oddities()
    images = {image['id']: image for image in content['images']}
    categories = {category['id'] for category in content['categories']}
    for annotation in content.get('annotations', ()):
        name = f'annotation {annotation["id"]!r}'
        image = images.get(annotation['image_id'])
        if image is None:
            odd.add(NO_IMAGE, f'{name}, image_id {annotation["image_id"]!r}')
            continue
        if annotation['category_id'] not in categories:
            odd.add(NO_CATEGORY, f'{name}, category_id {annotation["category_id"]!r}')
            continue
        if annotation.get('iscrowd') not in (None, 0, 1):
            odd.add(NO_CROWD, f'{name}, iscrowd {annotation["iscrowd"]!r}')
        if annotation.get('ignore', False):
            continue
        x, y, w, h = annotation['bbox']
        is_inside = x < image['width'] and y < image['height'] and x + w > 0 < y + h
        if not (is_inside and w >= 1 <= h and annotation['area'] > 0):
            text = f'{name}, bbox {annotation["bbox"]}, area {annotation["area"]}'
            odd.add(NO_BOX, text)
    return str(odd)


def fault_of_polygons(polygons: Sequence) -> str:
    """Say what pycocotools cannot make a mask of; it would crash the process.

    Cheap, as there are many: a few calls for a polygon, none for its points.
    """
    for polygon in polygons:
        if not (
            isinstance(polygon, list)
            and {float, int}.issuperset(map(type, polygon))
            and -FAR <= min(polygon, default=0)
            and max(polygon, default=0) <= FAR
            and not math.isnan(sum(polygon))
        ):
            return (
                'must be polygons [x, y, x, y, x, y, ...] of 3 points or more, not '
                f'{reprlib.repr(polygon)}'
            )
    return ''


def fault_of_rle(mask: Mapping) -> tuple[str, str]:
    """Check a mask in run-length encoding, with its own size.

    Returns:
        What is wrong with it, and what is only odd.
    """
    size, counts = mask.get('size'), mask.get('counts')
    is_size = isinstance(size, list) and len(size) == 2
    if not is_size or not all(isinstance(v, Real) and 0 <= v < FAR for v in size):
        return f'must have a size [height, width], not {reprlib.repr(size)}', ''
    pixels = size[0] * size[1]
    text = f'counts that add up to its {size[0]} x {size[1]} pixels'
    try:
        if isinstance(counts, str):
            if not RLE_TEXT.fullmatch(counts):
                raise ValueError
            counts = _counts_of(counts)
        total = sum(np.asarray(counts, np.uint32).tolist())
    except (OverflowError, TypeError, ValueError):
        total = math.inf
    if total > pixels:
        return f'must have {text}, not {reprlib.repr(mask.get("counts"))}', ''
    return '', '' if total == pixels else f'lacks {text}: the rest is background'


def _counts_of(text: str) -> list[int]:
    """The counts of an RLE, of which pycocotools writes differences."""
    if not text:
        return []
    codes = np.frombuffer(text.encode(), np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(codes < 32)
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    shifts = 5 * (np.arange(len(codes)) - np.repeat(starts, lengths))
    counts = np.add.reduceat((codes & 31) << shifts, starts)
    counts -= np.where(codes[ends] & 16, 1 << 5 * lengths, 0)
    counts[1::2] = counts[1::2].cumsum()
    counts[2::2] = counts[2::2].cumsum()
    return counts.tolist()
