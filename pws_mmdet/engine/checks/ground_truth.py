"""Checks of the ground truth of CocoMetric, before the first step."""

import numpy as np
from mmdet.evaluation import CocoMetric
from mmengine.evaluator import Evaluator

from ...utils.names import first_names
from .annotations import (
    SHORT_MASK,
    CheckedCOCO,
    Oddities,
    fault_of_numbers,
    fault_of_polygons,
    fault_of_rle,
    warn,
)
from .classes import fault_of_order

ID_0 = (
    'pycocotools takes the annotation id 0 for "not found": this object counts as '
    'missed, and the AP is too low. Number the ids from 1, as with '
    "for i, a in enumerate(content['annotations'], 1): a['id'] = i."
)
NO_TRUE_MASK = (
    'The number of masks whose RLE is of another size than their image is {number} '
    '(the first: {first}). No detection can match them.'
)


def check_truth(evaluator: Evaluator) -> None:
    """Look for what CocoMetric needs of each annotation of its file.

    Raises:
        ValueError: If it would fail after the epoch, or count right detections as
            wrong ones.
    """
    for metric in getattr(evaluator, 'metrics', ()):
        truth = getattr(metric, '_coco_api', None)
        is_stock = type(metric).compute_metrics is CocoMetric.compute_metrics
        if isinstance(truth, CheckedCOCO) and is_stock and not metric.format_only:
            try:
                _check_truth(metric, truth)
            except _Unfit as e:
                raise ValueError(f'{truth.path}: {e}') from None


class _Unfit(Exception):
    pass


def _check_truth(metric: CocoMetric, truth: CheckedCOCO) -> None:
    name = type(metric).__name__
    classes = (metric.dataset_meta or {}).get('classes') or ()
    categories = truth.dataset.get('categories') or []
    of_classes = [c for c in categories if c.get('name') in classes]
    annotations = truth.dataset.get('annotations') or []
    if annotations and classes:
        names = [c['name'] for c in of_classes]
        fault = fault_of_order(names, classes)
        if not fault and len(names) < len(classes):
            fault = (
                f'has categories for {len(names)} of the {len(classes)} classes: '
                f'{name} fails at a detection of the others. Add '
                f"{first_names(classes[len(names) :])} to its 'categories'"
            )
        if fault:
            raise _Unfit(f'it {fault}')
    for kind, ids in (('image', truth.imgs), ('category', truth.cats)):
        try:
            sorted(ids)
        except TypeError:
            raise _Unfit(
                f'some of the {kind} ids are texts, others numbers; {name} sorts them'
            ) from None
    if metric.classwise:
        for category in of_classes:
            try:
                truth.loadCats(category['id'])[0]['name']  # as it makes its table
            except (KeyError, TypeError):
                raise _Unfit(
                    f'{name} with classwise=True needs category ids that are integers, '
                    f'got {category["id"]!r}'
                ) from None
    metrics = set(metric.metrics)
    used = {c['id'] for c in of_classes}
    if metrics & {'proposal', 'proposal_fast'}:
        used = {*truth.cats}
    odd = Oddities()
    for annotation in annotations:
        if annotation['image_id'] in truth.imgs and annotation['category_id'] in used:
            _check_annotation(annotation, metrics, name, truth, odd)
    if odd.found:
        warn(f'{truth.path}: {odd}')


def _check_annotation(
    annotation: dict, metrics: set, name: str, truth: CheckedCOCO, odd: Oddities
) -> None:
    i = annotation['id']
    needed = ['iscrowd', *(['segmentation'] if 'segm' in metrics else [])]
    for key in needed:
        if annotation.get(key) in (None, []):
            raise _Unfit(f'the annotation {i!r} has no {key!r}, which {name} needs')
    try:
        int(annotation['iscrowd'])
    except (TypeError, ValueError):
        raise _Unfit(
            f'the iscrowd of the annotation {i!r} must be 0 or 1, not '
            f'{annotation["iscrowd"]!r}'
        ) from None
    keys = ['area'] if metrics - {'proposal_fast'} else []
    keys += ['bbox'] if metrics - {'segm'} else []
    if fault := fault_of_numbers(annotation, keys):
        raise _Unfit(fault)
    # pycocotools writes the id of a match into an array of floats. A 0 there means
    # that no detection matched.
    try:
        number = np.float64(i)
    except (OverflowError, TypeError, ValueError):
        raise _Unfit(
            f'{name} needs annotation ids that are numbers, got {i!r:.40}'
        ) from None
    if number == 0:
        odd.add(ID_0, '')
    if 'segm' in metrics:
        if fault := _fault_of_truth(annotation, truth, odd):
            raise _Unfit(f'the segmentation of the annotation {i!r} {fault}')


def _fault_of_truth(annotation: dict, truth: CheckedCOCO, odd: Oddities) -> str:
    mask = annotation['segmentation']
    image = truth.imgs[annotation['image_id']]
    size = [image.get('height'), image.get('width')]
    if isinstance(mask, list):
        fault = fault_of_polygons(mask)
        if fault or all(len(p) >= 6 and len(p) % 2 == 0 for p in mask):
            return fault
        try:
            truth.annToRLE(annotation)
        except Exception as e:  # of whatever kind pycocotools finds for it
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
