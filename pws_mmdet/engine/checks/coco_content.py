"""Checks of the content of an annotation file in the form of COCO.

A fault is something that MMDetection cannot read. An oddity is something that it reads
and leaves out.
"""

import reprlib
from collections.abc import Iterator, Mapping, Sequence
from numbers import Real
from typing import Any

from .oddities import Oddities

NO_IMAGE = (
    "Annotations whose image_id is not in 'images': {number} (the first: {first}). "
    'MMDetection leaves them out. This is right for a subset of the images.'
)
NO_CATEGORY = (
    "Annotations whose category_id is not in 'categories': {number} (the first: "
    '{first}). MMDetection leaves them out.'
)
NO_BOX = (
    'Boxes that MMDetection does not train on: {number} (the first: {first}). They '
    'have no area, have a side below 1 pixel, or lie outside their image. A validation '
    'may count them as objects that are missed. Correct or remove them.'
)
NO_CROWD = (
    'Annotations whose iscrowd is neither 0 nor 1: {number} (the first: {first}). '
    'MMDetection takes them for crowds and ignores the objects.'
)


def find_fault(content: Mapping[str, Any]) -> str:
    """Describe the first thing that MMDetection cannot read.

    ``annotations`` may be missing, as in COCO's lists of test images.

    Args:
        content: The content of the file.

    Returns:
        The fault, without the name of the file, or an empty string.
    """
    return next(_faults(content), '')


def _faults(content: Mapping[str, Any]) -> Iterator[str]:
    for key in ('images', 'categories', 'annotations'):
        entries = content.get(key, [] if key == 'annotations' else None)
        if not isinstance(entries, list) or not all(
            isinstance(entry, dict) for entry in entries
        ):
            yield f'{key!r} is missing, or is not a list of objects'
        for i, entry in enumerate(entries):
            if not _has_id(entry, 'id'):
                yield f'entry {i} of {key!r} has no id'
    if not content['images']:
        yield "'images' is empty"
    yield from _faults_of_images(content['images'])
    for category in content['categories']:
        if 'name' not in category:
            yield f"the category {category['id']!r} has no 'name'"
    yield from _faults_of_annotations(content.get('annotations', ()))


def _faults_of_images(images: Sequence[Mapping]) -> Iterator[str]:
    for image in images:
        name = f'image {image["id"]!r}'
        if not isinstance(image.get('file_name'), str):
            yield f"the {name} has no 'file_name'"
        for key in ('width', 'height'):
            if not isinstance(image.get(key), Real):
                yield (
                    f'the {key} of the {name} must be a positive number, not '
                    f'{reprlib.repr(image.get(key))}'
                )


def _faults_of_annotations(annotations: Sequence[Mapping]) -> Iterator[str]:
    seen = set()
    for annotation in annotations:
        for key in ('image_id', 'category_id'):
            if not _has_id(annotation, key):
                yield (
                    f'the {key} of the annotation {annotation["id"]!r} must be the id '
                    f'of an entry, not {reprlib.repr(annotation.get(key))}'
                )
        if fault := fault_of_numbers(annotation):
            yield fault
        if annotation['id'] in seen:
            yield repeated_id('annotations', annotation['id'])
        seen.add(annotation['id'])


def fault_of_numbers(
    annotation: Mapping, keys: Sequence[str] = ('bbox', 'area')
) -> str:
    """Describe what is wrong with the box or the area of an annotation, if anything."""
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


def _has_id(entry: Mapping, key: str) -> bool:
    return key in entry and not isinstance(entry[key], (list, dict))


def _singular(key: str) -> str:
    """Return 'image', 'category' or 'annotation' for a key of the file."""
    return 'category' if key == 'categories' else key[:-1]


def repeated_id(key: str, value: Any) -> str:
    """Say that two entries of a list have the same id."""
    return f'the {_singular(key)} id {value!r} is given twice'


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
