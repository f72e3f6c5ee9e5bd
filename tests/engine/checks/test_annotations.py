"""Annotation files that MMDetection can use pass the checks, and others are refused."""

import copy
import itertools
import json
import math
import re
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from mmdet.datasets import CocoDataset
from mmdet.evaluation.metrics import CocoMetric, coco_metric
from pycocotools import mask as mask_api

from pws_mmdet.engine.checks import (
    CheckedCOCO,
    check_dataset,
    check_truth,
    checked_annotations,
)
from pws_mmdet.engine.checks.coco_content import describe_oddities, find_fault
from pws_mmdet.engine.checks.masks import fault_of_rle

CLASSES = ('a', 'b', 'c')
OBJECTS = [
    *((1, 1, [2, 3, 20, 30]), (1, 2, [30, 5, 20, 20]), (2, 3, [5, 5, 40, 30])),
    *((3, 1, [1, 1, 10, 10]), (3, 3, [20, 20, 30, 20]), (4, 2, [8, 8, 40, 30])),
]


def valid():
    """Four images of 64 x 48 with six objects of three classes."""
    annotations = []
    for i, (image, category, (x, y, w, h)) in enumerate(OBJECTS, 1):
        corners = [x, y, x + w, y, x + w, y + h, x, y + h]
        annotation = dict(id=i, image_id=image, category_id=category, iscrowd=0)
        annotation.update(bbox=[x, y, w, h], area=w * h, segmentation=[corners])
        annotations.append(annotation)
    images = [
        dict(id=i, file_name=f'{i}.png', height=48, width=64) for i in range(1, 5)
    ]
    categories = [dict(id=i, name=name) for i, name in enumerate(CLASSES, 1)]
    return dict(images=images, categories=categories, annotations=annotations)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('images')
    for i in range(1, 5):
        cv2.imwrite(str(folder / f'{i}.png'), np.full((48, 64, 3), 40 * i, np.uint8))
    return folder


def build(folder, with_mask=False, poly2mask=True, cls=CocoDataset, **kwargs):
    load = dict(type='LoadAnnotations', with_bbox=True, with_mask=with_mask)
    if not poly2mask:
        load['poly2mask'] = False
    pipeline = [
        dict(type='LoadImageFromFile'),
        load,
        dict(type='Resize', scale=(64, 64), keep_ratio=True),
        dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape')),
    ]
    options = dict(
        ann_file=str(folder / 'file.json'),
        data_prefix=dict(img=f'{folder}/'),
        metainfo=dict(classes=CLASSES),
        pipeline=pipeline,
    )
    return cls(**{**options, **kwargs})


def perfect(content, with_mask, dataset):
    """Yield perfect detections: every object with the name of its class."""
    categories = {c['id']: c['name'] for c in content['categories']}
    for record in (dataset.get_data_info(i) for i in range(len(dataset))):
        size = record['height'], record['width']
        objects = [
            a
            for a in content['annotations']
            if a['image_id'] == record['img_id']
            and categories.get(a['category_id']) in dataset.metainfo['classes']
            and not a.get('iscrowd')
        ]
        boxes = [[x, y, x + w, y + h] for x, y, w, h in (a['bbox'] for a in objects)]
        names = [categories[a['category_id']] for a in objects]
        labels = [dataset.metainfo['classes'].index(name) for name in names]
        predicted = dict(
            bboxes=torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4),
            scores=torch.ones(len(boxes)),
            labels=torch.tensor(labels, dtype=torch.long),
        )
        if with_mask:
            masks = [a['segmentation'] for a in objects]
            is_rle = [
                isinstance(m, dict) and isinstance(m['counts'], str) for m in masks
            ]
            masks = [
                copy.deepcopy(m) if rle else mask_api.frPyObjects(m, *size)
                for m, rle in zip(masks, is_rle, strict=True)
            ]
            predicted['masks'] = [
                mask_api.merge(m) if isinstance(m, list) else m for m in masks
            ]
        yield dict(pred_instances=predicted, img_id=record['img_id'], ori_shape=size)


def stock_average_precision(folder, content, with_mask, **kwargs):
    """Load every image and evaluate with MMDetection alone. It may fail."""
    train = build(folder, with_mask, **kwargs)
    for i in range(len(train)):
        sample = train[i]['data_samples']
        assert sample.gt_instances.bboxes.tensor.isfinite().all()
    test = build(folder, with_mask, test_mode=True)
    metrics = ['bbox', 'segm'] if with_mask else ['bbox']
    metric = CocoMetric(ann_file=str(folder / 'file.json'), metric=metrics)
    metric.dataset_meta = test.metainfo
    for sample in perfect(content, with_mask, test):
        metric.process({}, [sample])
    results = metric.evaluate(len(test))
    return [value for key, value in results.items() if key.endswith('_mAP')]


def check(folder, with_mask=False, metric_options=(), **kwargs):
    with checked_annotations():
        train = build(folder, with_mask, **kwargs)
        check_dataset(train)
        metrics = ['bbox', 'segm'] if with_mask else ['bbox']
        options = {'metric': metrics, **dict(metric_options)}
        metric = CocoMetric(ann_file=str(folder / 'file.json'), **options)
        metric.dataset_meta = train.metainfo
        check_truth(SimpleNamespace(metrics=[metric]))


def change(kind, index, **values):
    return lambda content: content[kind][index].update(values)


def drop(kind, index, key):
    return lambda content: content[kind][index].pop(key)


def renumber(kind, key, new):
    def spoil(content):
        for entry in content[kind]:
            entry['id'] = new(entry['id'])
        for annotation in content['annotations'] if key else ():
            annotation[key] = new(annotation[key])

    return spoil


def segmentation(mask):
    return change('annotations', 0, segmentation=mask)


def annotation(**values):
    return change('annotations', 0, **values)


IMAGE, CATEGORY = ('images', 'image_id'), ('categories', 'category_id')
PIXELS = 48 * 64
TEXT = mask_api.encode(np.asfortranarray(np.eye(48, 64, dtype=np.uint8)))
TEXT = dict(size=[48, 64], counts=TEXT['counts'].decode())

# MMDetection can use these files.
FINE = dict(
    valid=lambda c: None,
    float_ids=renumber('annotations', None, float),
    ids_that_are_no_integers=renumber('annotations', None, lambda i: i + 0.5),
    ids_as_texts=renumber('annotations', None, str),
    negative_ids=renumber('annotations', None, lambda i: -i),
    large_id=annotation(id=2**60),
    float_image_ids=renumber(*IMAGE, float),
    float_image_ids_alone=renumber('images', None, float),
    image_ids_as_texts=renumber(*IMAGE, lambda i: f'i{i}'),
    image_id_0=renumber(*IMAGE, lambda i: i - 1),
    float_category_ids=renumber(*CATEGORY, float),
    category_ids_as_texts=renumber(*CATEGORY, lambda i: f'category {i}'),
    category_of_no_class=lambda c: c['categories'].insert(0, dict(id=0, name='other')),
    categories_of_no_class_and_one_name=lambda c: c['categories'].extend(
        [dict(id=8, name='other'), dict(id=9, name='other')]
    ),
    same_image_again=lambda c: c['images'].append(dict(c['images'][0])),
    same_image_of_another_date=lambda c: c['images'].append(
        {**c['images'][0], 'date_captured': 'today'}
    ),
    float_width=change('images', 0, width=64.0),
    crowd=annotation(iscrowd=1),
    true_crowd=annotation(iscrowd=True),
    box_over_the_edge=annotation(bbox=[-5, -5, 20, 20]),
    area_that_is_not_the_boxes=annotation(area=1),
    large_area=annotation(area=1e13),
    no_annotations_of_an_image=lambda c: c['annotations'].pop(),
    two_polygons=lambda c: c['annotations'][0]['segmentation'].append(
        [1, 1, 2, 2, 3, 1]
    ),
    rle=segmentation(dict(size=[48, 64], counts=[9, 20, PIXELS - 29])),
    rle_of_floats=segmentation(dict(size=[48, 64], counts=[9.0, 20, PIXELS - 29])),
    rle_as_text=segmentation(TEXT),
)
# MMDetection can use these files, and leaves something out: a warning tells what.
ODD = dict(
    ids_from_0=(
        renumber('annotations', None, lambda i: i - 1),
        'Number the ids from 1',
    ),
    removed_image=(lambda c: c['images'].pop(0), "not in 'images': 2 "),
    removed_images=(lambda c: c.update(images=c['images'][:1]), "not in 'images': 4 "),
    image_id_none=(annotation(image_id=None), 'annotation 1, image_id None'),
    removed_category=(annotation(category_id=7), 'annotation 1, category_id 7'),
    category_id_as_text=(annotation(category_id='1'), "category_id '1'"),
    negative_area=(annotation(area=-5), 'not train on: 1 .*area -5'),
    zero_area=(annotation(area=0), 'not train on: 1 .*area 0'),
    negative_width=(annotation(bbox=[9, 9, -5, 5]), r'bbox \[9, 9, -5, 5\]'),
    zero_width=(annotation(bbox=[9, 9, 0, 5]), r'bbox \[9, 9, 0, 5\]'),
    outside=(annotation(bbox=[100, 9, 5, 5]), 'outside their image'),
    nan_in_box=(annotation(bbox=[9, math.nan, 5, 5]), 'not train on: 1'),
    crowd_of_2=(annotation(iscrowd=2), 'annotation 1, iscrowd 2'),
    crowd_as_text=(annotation(iscrowd='0'), "annotation 1, iscrowd '0'"),
    wrong_size=(change('images', 0, width=50), '64 x 48 pixels .* 50 x 48 in its'),
    turned=(change('images', 0, width=48, height=64), '64 x 48 pixels .* 48 x 64 in'),
)
# These are odd only if masks are read.
ODD_MASKS = dict(
    rle_that_ends_early=(
        segmentation(dict(size=[48, 64], counts=[9, 20])),
        'end too early',
    ),
    rle_of_nothing=(segmentation(dict(size=[48, 64], counts=[])), 'end too early: 1'),
    rle_of_no_text=(segmentation(dict(size=[48, 64], counts='')), 'end too early: 1'),
)
# MMDetection fails at these files.
BROKEN = dict(
    no_images=(lambda c: c.pop('images'), "'images' is missing"),
    no_categories=(lambda c: c.pop('categories'), "'categories' is missing"),
    images_as_dict=(
        lambda c: c.update(images={}),
        "'images' is missing, or is not a list",
    ),
    empty=(lambda c: c.update(images=[]), "'images' is empty"),
    lists=(
        lambda c: c.update(annotations=[[1]]),
        "'annotations' is missing, or is not",
    ),
    null=(
        lambda c: c.update(annotations=None),
        "'annotations' is missing, or is not a list",
    ),
    image_without_id=(drop('images', 1, 'id'), "entry 1 of 'images' has no"),
    image_of_list=(change('images', 1, id=[1]), "entry 1 of 'images' has no"),
    category_without_id=(drop('categories', 1, 'id'), "entry 1 of 'categories' has"),
    without_id=(drop('annotations', 0, 'id'), "entry 0 of 'annotations' has no id"),
    no_file_name=(drop('images', 1, 'file_name'), "the image 2 has no 'file_name'"),
    number_as_name=(change('images', 1, file_name=5), "image 2 has no 'file_name'"),
    no_width=(drop('images', 1, 'width'), 'the width of the image 2 .* None'),
    text_height=(change('images', 1, height='9'), "the height of the image 2 .* '9'"),
    no_name=(drop('categories', 0, 'name'), "the category 1 has no 'name'"),
    id_twice=(annotation(id=2), 'the annotation id 2 is given twice'),
    annotation_twice=(
        lambda c: c['annotations'].append(dict(c['annotations'][0])),
        'the annotation id 1 is given twice',
    ),
    no_image_id=(
        drop('annotations', 1, 'image_id'),
        'image_id of the annotation 2 .* None',
    ),
    no_category_id=(
        drop('annotations', 1, 'category_id'),
        'category_id of the annotation 2 .* None',
    ),
    list_as_category=(
        annotation(category_id=[1]),
        r'category_id of the annotation 1 .* \[1\]',
    ),
    no_bbox=(drop('annotations', 1, 'bbox'), 'bbox .* annotation 2 .* None'),
    three_numbers=(annotation(bbox=[1, 2, 3]), r'bbox .* \[1, 2, 3\]'),
    five_numbers=(annotation(bbox=[1, 2, 3, 4, 5]), r'bbox .* \[1, 2, 3, 4, 5\]'),
    text_in_box=(annotation(bbox=[9, '9', 5, 5]), "bbox .* '9'"),
    huge_box=(annotation(bbox=[0, 0, 10**400, 1]), 'that no float can hold'),
    no_area=(drop('annotations', 1, 'area'), 'the area of the annotation 2'),
    text_as_area=(annotation(area='600'), "the area of the annotation 1 .* '600'"),
    no_crowd=(drop('annotations', 0, 'iscrowd'), "annotation 1 has no 'iscrowd'"),
    crowd_of_none=(annotation(iscrowd=None), "annotation 1 has no 'iscrowd'"),
    crowd_of_no=(annotation(iscrowd='no'), "iscrowd .* 1 must .* 'no'"),
    crowd_of_list=(annotation(iscrowd=[1]), r'iscrowd .* 1 must .* \[1\]'),
    text_as_id=(annotation(id='x'), "needs annotation ids that are numbers, got 'x'"),
    huge_id=(annotation(id=10**400), 'annotation ids that are numbers, got 1000'),
    mixed_image_ids=(
        lambda c: (change('images', 3, id='x')(c), c['annotations'].pop()),
        'some of the image ids are texts',
    ),
)
# MMDetection fails at these files if it reads masks.
BROKEN_MASKS = dict(
    none=segmentation(None),
    no_polygon=segmentation([]),
    empty_polygon=segmentation([[]]),
    two_points=segmentation([[1, 2, 3, 4]]),
    flat=segmentation([1, 2, 3, 4, 5, 6]),
    texts=segmentation(['1, 2']),
    polygon_of_none=segmentation([None]),
    polygon_of_dict=segmentation([{}]),
    nested=segmentation([[1, 2, 3, 4, 5, [6]]]),
    huge=segmentation([[1, 2, 3, 4, 5, 10**400]]),
    text=segmentation('x'),
    number=segmentation(5),
    empty_dict=segmentation({}),
    no_size=segmentation(dict(counts=[PIXELS])),
    no_counts=segmentation(dict(size=[48, 64])),
    rle_of_another_size=segmentation(dict(size=[64, 48], counts=[PIXELS])),
    rle_text_of_another_size=segmentation(dict(TEXT, size=[64, 48])),
    size_of_one=segmentation(dict(size=[48], counts=[PIXELS])),
    size_of_texts=segmentation(dict(size=['48', '64'], counts=[PIXELS])),
)
# At these masks, pycocotools ends the process, fills the memory or overruns it.
DEADLY_MASKS = dict(
    nan=[[1, 2, 3, 4, 5, math.nan]],
    infinite=[[1, 2, 3, 4, 5, math.inf]],
    null=[[1, 2, 3, 4, 5, None]],
    too_long=dict(size=[48, 64], counts=[9, PIXELS]),
    negative=dict(size=[48, 64], counts=[PIXELS + 1, -1]),
    no_rle=dict(size=[48, 64], counts='é'),
    half_a_number=dict(size=[48, 64], counts='o'),
)
# With these files, MMDetection silently trains or evaluates on other objects.
RUINED = dict(
    images_of_one_id=(change('images', 1, id=1), 'the image id 1 is given twice'),
    categories_of_one_id=(
        change('categories', 1, id=1),
        'category id 1 is given twice',
    ),
    id_of_a_removed_image=(
        lambda c: (change('annotations', 5, id=1)(c), c['images'].pop()),
        'the annotation id 1 is given twice',
    ),
    other_order=(
        lambda c: c['categories'].reverse(),
        'in another order, c, b, a, than',
    ),
    missing_class=(
        lambda c: c['categories'].pop(0),
        'categories for 2 of the 3 classes',
    ),
    missing_last=(lambda c: c['categories'].pop(), 'has categories for 2 of the 3'),
    one_name_twice=(
        change('categories', 1, name='a'),
        'categories of the same name, a',
    ),
    category_twice=(
        lambda c: c['categories'].append(dict(c['categories'][0])),
        'categories of the same name, a',
    ),
)


def spoiled(folder, spoil):
    content = valid()
    spoil(content)
    (folder / 'file.json').write_text(json.dumps(content))
    return content


def cases(table):
    return pytest.mark.parametrize('case', table.values(), ids=table.keys())


@pytest.mark.parametrize('with_mask', [False, True], ids=['boxes', 'masks'])
@cases(FINE)
def test_valid_files_give_no_message(folder, messages, case, with_mask):
    content = spoiled(folder, case)
    precisions = stock_average_precision(folder, content, with_mask)
    assert precisions == [1.0] * (1 + with_mask)
    check(folder, with_mask)
    assert messages == []


@pytest.mark.parametrize('with_mask', [False, True], ids=['boxes', 'masks'])
@cases({**ODD, **ODD_MASKS})
def test_odd_files_give_a_warning(folder, messages, case, with_mask):
    spoil, message = case
    content = spoiled(folder, spoil)
    stock_average_precision(folder, content, with_mask)
    messages.clear()
    check(folder, with_mask)
    if with_mask or case in ODD.values():
        assert re.search(message, ' '.join(messages))
        assert str(folder / 'file.json') in messages[0]
    else:
        assert messages == []


@pytest.mark.parametrize('with_mask', [False, True], ids=['boxes', 'masks'])
@cases(BROKEN)
def test_broken_files_are_refused(folder, case, with_mask):
    spoil, message = case
    content = spoiled(folder, spoil)
    with pytest.raises(Exception):  # noqa: B017  of many kinds
        stock_average_precision(folder, content, with_mask)
    with pytest.raises(ValueError, match=rf'file\.json.*{message}'):
        check(folder, with_mask)


@cases(BROKEN_MASKS)
def test_broken_masks_are_refused_if_masks_are_read(folder, messages, case):
    content = spoiled(folder, case)
    with pytest.raises(Exception):  # noqa: B017  of many kinds
        stock_average_precision(folder, content, True)
    with pytest.raises(ValueError, match=r'file\.json: .*segmentation'):
        check(folder, True)
    assert stock_average_precision(folder, content, False) == [1.0]
    messages.clear()
    check(folder)
    assert messages == []


@cases(DEADLY_MASKS)
def test_masks_that_would_end_the_process_are_refused(folder, case):
    spoiled(folder, segmentation(case))
    with pytest.raises(ValueError, match=r'segmentation of an object'):
        check(folder, True)
    check(folder)


@pytest.mark.parametrize('mask', [[[]], [[1, 2, 3, 4]], [[1, 2, 3, 4, 5, 6, 7]], [{}]])
def test_a_warning_tells_which_polygons_are_left_out(folder, messages, mask):
    spoiled(folder, segmentation(mask))
    for poly2mask in (True, False):
        train = build(folder, True, poly2mask)
        assert len(train[0]['data_samples'].gt_instances) == 1
        check_dataset(train)
        assert 'left out because their masks cannot be used: 1 ' in messages.pop()


@pytest.mark.parametrize('mask', [TEXT, 'x', 5, dict(size=[3], counts=[1])])
def test_a_warning_tells_that_other_masks_need_poly2mask(folder, messages, mask):
    spoiled(folder, segmentation(mask))
    train = build(folder, True, poly2mask=False)
    assert len(train[0]['data_samples'].gt_instances) == 1
    check_dataset(train)
    assert 'need poly2mask=True' in messages.pop()


def test_an_rle_may_have_the_size_of_the_image_file(folder, messages):
    def spoil(content):
        change('images', 0, width=50)(content)
        segmentation(TEXT)(content)

    spoiled(folder, spoil)
    train = build(folder, True)
    assert len(train[0]['data_samples'].gt_instances.masks) == 2
    check_dataset(train)
    assert '50 x 48 in its annotations' in messages.pop()


@cases(RUINED)
def test_files_that_silently_ruin_a_training_are_refused(folder, case):
    spoil, message = case
    spoiled(folder, spoil)
    with pytest.raises(ValueError, match=rf'file\.json.*{message}'):
        check(folder)


class OwnLabels(CocoDataset):
    """Numbers the classes in the order of metainfo."""

    def parse_data_info(self, raw_data_info):
        record = super().parse_data_info(raw_data_info)
        names = [c['name'] for c in self.coco.load_cats(self.cat_ids)]
        for instance in record['instances']:
            name = names[instance['bbox_label']]
            instance['bbox_label'] = self.metainfo['classes'].index(name)
        return record


def test_a_users_dataset_may_number_the_classes_itself(folder):
    content = spoiled(folder, RUINED['other_order'][0])
    with checked_annotations():
        train = build(folder, cls=OwnLabels)
    check_dataset(train)
    for i, image in enumerate(content['images']):
        ids = [
            a['category_id'] for a in content['annotations'] if a['image_id'] == i + 1
        ]
        assert image['id'] == i + 1
        assert train[i]['data_samples'].gt_instances.labels.tolist() == [
            n - 1 for n in ids
        ]


@pytest.mark.parametrize('case', ['other_order', 'missing_class'])
def test_perfect_detections_with_wrong_labels_have_a_low_ap(folder, case):
    """This is the reason why these files are refused."""
    content = spoiled(folder, RUINED[case][0])
    try:
        assert stock_average_precision(folder, content, False)[0] < 0.4
    except IndexError:  # a label of no category
        assert case == 'missing_class'


def test_a_metric_that_only_writes_results_needs_no_ground_truth(folder, tmp_path):
    options = dict(format_only=True, outfile_prefix=str(tmp_path / 'out'))
    spoiled(folder, drop('annotations', 0, 'iscrowd'))
    check(folder, metric_options=options)
    with pytest.raises(ValueError, match="has no 'iscrowd'"):
        check(folder)


@pytest.mark.parametrize('new', [float, lambda i: f'category {i}'])
def test_classwise_results_need_integer_category_ids(folder, new):
    spoiled(folder, renumber(*CATEGORY, new))
    with pytest.raises(ValueError, match='classwise=True needs category ids that are'):
        check(folder, metric_options=dict(classwise=True))
    check(folder)


class OwnForm(CocoDataset):
    """Boxes of four corners, and no area."""

    def parse_data_info(self, raw_data_info):
        image = raw_data_info['raw_img_info']
        instances = [
            dict(bbox=a['quad'][:4], bbox_label=0, ignore_flag=0)
            for a in raw_data_info['raw_ann_info']
        ]
        path = f'{self.data_prefix["img"]}{image["name"]}'
        return dict(
            img_path=path, img_id=image['id'], height=48, width=64, instances=instances
        )


def test_a_users_dataset_may_read_another_form(folder, messages):
    content = dict(
        images=[dict(id=1, name='1.png')],
        categories=[dict(id=1, name='a')],
        annotations=[dict(id=1, image_id=1, category_id=1, quad=[1, 2, 30, 40, 5, 6])],
    )
    (folder / 'file.json').write_text(json.dumps(content))
    options = dict(cls=OwnForm, metainfo=dict(classes=('a',)))
    with checked_annotations():
        train = build(folder, **options)
    check_dataset(train)
    assert len(train[0]['data_samples'].gt_instances) == 1
    assert messages == []
    del content['images'][0]['name']
    (folder / 'file.json').write_text(json.dumps(content))
    with checked_annotations(), pytest.raises(KeyError, match='name'):
        build(folder, **options)  # its own error


@pytest.mark.parametrize(
    'content',
    [
        b'',
        b'{"images": [',
        b'[]',
        b'\xff\xd8\xff\xe0',
        '{}'.encode('utf-16'),
        b'[' * 10**6,
    ],
)
def test_files_without_annotations_are_refused(tmp_path, content):
    path = tmp_path / 'train.json'
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r'train\.json cannot be used as annotations'):
        CheckedCOCO(str(path))


def test_lists_of_test_images_without_annotations_pass(folder, messages):
    spoiled(folder, lambda c: c.pop('annotations'))
    with checked_annotations():
        test = build(folder, test_mode=True)
    check_dataset(test)
    assert len(test) == 4
    assert messages == []
    spoiled(folder, lambda c: (c.pop('annotations'), c.update(categories=[])))
    with checked_annotations():  # as the images without labels of a teacher and student
        check_dataset(build(folder, test_mode=True))
    assert messages == []


def test_valid_annotations_have_no_fault():
    assert find_fault(valid()) == describe_oddities(valid()) == ''


@given(
    arrays(np.uint8, array_shapes(min_dims=2, max_dims=2), elements=st.integers(0, 1))
)
@settings(derandomize=True, deadline=None, database=None)
def test_every_rle_of_pycocotools_passes(pixels):
    rle = mask_api.encode(np.asfortranarray(pixels))
    rle['counts'] = rle['counts'].decode()
    flat = pixels.flatten(order='F')
    runs = [len(list(run)) for _, run in itertools.groupby(flat)]
    runs = [0, *runs] if flat[0] else runs
    size = list(pixels.shape)
    for counts in (rle['counts'], runs):
        assert fault_of_rle(dict(size=size, counts=counts)) == ('', '')
    too_long = [*runs[:-1], runs[-1] + 1]
    assert 'add up to' in fault_of_rle(dict(size=size, counts=too_long))[0]


def test_mmdetection_is_unchanged_after_the_check(folder):
    stock = CocoDataset.COCOAPI, CocoDataset.load_data_list, coco_metric.COCO
    spoiled(folder, lambda c: None)
    with checked_annotations():
        assert 'COCOAPI' not in vars(build(folder))
        assert coco_metric.COCO is CheckedCOCO
    now = CocoDataset.COCOAPI, CocoDataset.load_data_list, coco_metric.COCO
    assert now == stock
