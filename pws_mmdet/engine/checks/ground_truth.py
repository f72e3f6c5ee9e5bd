"""Checks of the ground truth of CocoMetric, before the first step."""

from collections.abc import Iterator, Sequence

import numpy as np
from mmdet.evaluation import CocoMetric
from mmengine.evaluator import Evaluator

from ...utils.names import first_names
from .annotations import CheckedCOCO
from .classes import fault_of_order
from .coco_content import fault_of_numbers
from .masks import SHORT_MASK, fault_of_polygons, fault_of_rle
from .oddities import Oddities

ID_0 = (
    'pycocotools takes the annotation id 0 for "not found": this object counts as '
    'missed, and the AP is too low. Number the ids from 1, as with '
    "for i, a in enumerate(content['annotations'], 1): a['id'] = i."
)
NO_TRUE_MASK = (
    'Masks whose RLE has another size than their image: {number} (the first: {first}). '
    'No detection can match them.'
)


def check_truth(evaluator: Evaluator) -> None:
    """Check that the annotation files of CocoMetric have what it needs.

    Raises:
        ValueError: If it would fail after the epoch, or count correct detections as
            wrong ones.
    """
    for metric in getattr(evaluator, 'metrics', ()):
        truth = getattr(metric, '_coco_api', None)
        is_stock = type(metric).compute_metrics is CocoMetric.compute_metrics
        if isinstance(truth, CheckedCOCO) and is_stock and not metric.format_only:
            odd = Oddities()
            for fault in _faults(metric, truth, odd):
                raise ValueError(f'{truth.path}: {fault}')
            odd.warn(str(truth.path))


def _faults(metric: CocoMetric, truth: CheckedCOCO, odd: Oddities) -> Iterator[str]:
    name = type(metric).__name__
    classes = (metric.dataset_meta or {}).get('classes') or ()
    categories = truth.dataset.get('categories') or []
    of_classes = [c for c in categories if c.get('name') in classes]
    annotations = truth.dataset.get('annotations') or []
    if annotations and classes:
        yield from _faults_of_names([c['name'] for c in of_classes], classes, name)
    for kind, ids in (('image', truth.imgs), ('category', truth.cats)):
        try:
            sorted(ids)
        except TypeError:
            yield (
                f'some of the {kind} ids are texts, others are numbers, and {name} '
                'sorts them'
            )
    if metric.classwise:
        for category in of_classes:
            try:
                truth.loadCats(category['id'])[0]['name']  # as CocoMetric does
            except (KeyError, TypeError):
                yield (
                    f'{name} with classwise=True needs category ids that are integers, '
                    f'got {category["id"]!r}'
                )
    metrics = set(metric.metrics)
    used = {c['id'] for c in of_classes}
    if metrics & {'proposal', 'proposal_fast'}:
        used = {*truth.cats}
    for annotation in annotations:
        if annotation['image_id'] in truth.imgs and annotation['category_id'] in used:
            yield from _faults_of_annotation(annotation, metrics, name, truth, odd)


def _faults_of_names(
    names: Sequence[str], classes: Sequence[str], metric: str
) -> Iterator[str]:
    if fault := fault_of_order(names, classes):
        yield f'it {fault}'
    if len(names) < len(classes):
        yield (
            f'it has categories for {len(names)} of the {len(classes)} classes: '
            f'{metric} fails at a detection of the others. Add '
            f"{first_names(classes[len(names) :])} to its 'categories'"
        )


def _faults_of_annotation(
    annotation: dict, metrics: set, name: str, truth: CheckedCOCO, odd: Oddities
) -> Iterator[str]:
    i = annotation['id']
    needed = ['iscrowd', *(['segmentation'] if 'segm' in metrics else [])]
    for key in needed:
        if annotation.get(key) in (None, []):
            yield f'the annotation {i!r} has no {key!r}, and {name} needs it'
    try:
        int(annotation['iscrowd'])
    except (TypeError, ValueError):
        yield (
            f'the iscrowd of the annotation {i!r} must be 0 or 1, not '
            f'{annotation["iscrowd"]!r}'
        )
    keys = ['area'] if metrics - {'proposal_fast'} else []
    keys += ['bbox'] if metrics - {'segm'} else []
    if fault := fault_of_numbers(annotation, keys):
        yield fault
    # pycocotools writes the id of a match into an array of floats. A 0 in it means
    # that no detection matched.
    try:
        number = np.float64(i)
    except (OverflowError, TypeError, ValueError):
        yield f'{name} needs annotation ids that are numbers, got {i!r:.40}'
    else:
        if number == 0:
            odd.add(ID_0)
    if 'segm' in metrics:
        if fault := _fault_of_mask(annotation, truth, odd):
            yield f'the segmentation of the annotation {i!r} {fault}'


def _fault_of_mask(annotation: dict, truth: CheckedCOCO, odd: Oddities) -> str:
    mask = annotation['segmentation']
    image = truth.imgs[annotation['image_id']]
    size = [image.get('height'), image.get('width')]
    if isinstance(mask, list):
        fault = fault_of_polygons(mask)
        if fault or all(len(p) >= 6 and len(p) % 2 == 0 for p in mask):
            return fault
        try:
            truth.annToRLE(annotation)
        except Exception as e:  # pycocotools raises many types.
            return f'must be polygons of 3 points or more: pycocotools says {e!r}'
    elif not isinstance(mask, dict):
        return f'must be a list of polygons, or RLE, not {mask!r:.40}'
    else:
        fault, cut = fault_of_rle(mask)
        if fault:
            return fault
        if cut:
            odd.add(SHORT_MASK, f'that of the annotation {annotation["id"]!r} {cut}')
        if mask['size'] != size:
            text = f'annotation {annotation["id"]!r}, {mask["size"]} for {size}'
            odd.add(NO_TRUE_MASK, text)
    return ''
