import copy
import functools
import itertools
import json
import math
import os
import re
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from mmdet.datasets import CocoDataset
from mmdet.evaluation.metrics import coco_metric
from mmdet.registry import DATASETS
from mmengine.config import Config
from pycocotools import mask as mask_api

from pws_mmdet import PWSRunner
from pws_mmdet.engine import data_check
from pws_mmdet.engine.data_check import (
    DOWNLOAD,
    CheckedCOCO,
    check_coco,
    check_data,
    check_pictures,
    checked_annotations,
)

VOC_SPLITS = {
    'VOC2007': dict(trainval=['000001', '000002', '000003'], test=['000004', '000005']),
    'VOC2012': dict(trainval=['2008_000001', '2008_000002']),
}


def write_picture(folder, name):
    """A picture with one dog, as Pascal VOC stores it."""
    picture = np.zeros((80, 100, 3), np.uint8)
    picture[20:60, 30:70] = 255
    annotation = ET.Element('annotation')
    size = ET.SubElement(annotation, 'size')
    for key, value in dict(width=100, height=80, depth=3).items():
        ET.SubElement(size, key).text = str(value)
    dog = ET.SubElement(annotation, 'object')
    ET.SubElement(dog, 'name').text = 'dog'
    box = ET.SubElement(dog, 'bndbox')
    for key, value in dict(xmin=31, ymin=21, xmax=70, ymax=60).items():
        ET.SubElement(box, key).text = str(value)
    cv2.imwrite(str(folder / f'JPEGImages/{name}.jpg'), picture)
    ET.ElementTree(annotation).write(folder / f'Annotations/{name}.xml')


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Config, 'pretty_text', '')  # for logs; it takes seconds
    return tmp_path


@pytest.fixture
def voc(workplace):
    """Five pictures to train on and two to test on, where the configs expect them."""
    devkit = workplace / 'data/VOCdevkit'
    for year, splits in VOC_SPLITS.items():
        folder = devkit / year
        for part in ('Annotations', 'ImageSets/Main', 'JPEGImages'):
            (folder / part).mkdir(parents=True)
        for split, names in splits.items():
            (folder / f'ImageSets/Main/{split}.txt').write_text('\n'.join(names) + '\n')
            for name in names:
                write_picture(folder, name)
    return devkit


@pytest.fixture
def coco(workplace, digits):
    """The form of COCO 2017 in data/coco."""
    return Path(shutil.copytree(digits, workplace / 'data/coco'))


@functools.cache
def read(name):
    return Config.fromfile(ROOT / f'configs/{name}.py')


def load(name):
    return copy.deepcopy(read(name))


COCO_CONFIG = 'ssd320_vgg16_pws_1x'
VOC_CONFIG = 'voc/ssd320_vgg16_bn_voc'
DIGITS_CONFIG = 'mini/ssd96_vgg16_pws_digits'


def message_of(function, *args):
    with pytest.raises(FileNotFoundError) as error:
        function(*args)
    return str(error.value)


def runner_of(cfg, folder):
    cfg.update(work_dir=str(folder / 'work_dir'), log_level='WARNING')
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.update(batch_size=2, num_workers=0, persistent_workers=False)
    return PWSRunner.from_cfg(cfg)


def slim(cfg):
    """The SSD of VOC with a sixteenth of its channels."""
    channels = (32, 64, 32, 16, 16, 16)
    cfg.model.backbone.width = 1 / 16
    cfg.model.neck.update(in_channels=channels[:2], out_channels=channels)
    cfg.model.bbox_head.in_channels = channels
    cfg.model.test_cfg.nms_pre = 10
    return cfg


def test_complete_data_passes(voc, coco):
    check_data(load(VOC_CONFIG))
    check_data(load(COCO_CONFIG))


def test_everything_that_lacks_is_in_one_error(workplace):
    message = message_of(check_data, load(COCO_CONFIG))
    for path, option in (
        ('data/coco/annotations/instances_train2017.json', 'dataset.ann_file'),
        ('data/coco/train2017/', 'dataset.data_prefix.img'),
    ):
        assert f'{path}  (train_dataloader.{option})' in message
    assert message.count('instances_val2017.json  (') == 1
    assert f'{DOWNLOAD} coco2017 --save-dir data/coco\n' in message
    assert 'ln -s FOLDER data/coco\n' in message

    message = message_of(check_data, load(VOC_CONFIG))
    for i, path in enumerate(('VOC2007/', 'VOC2012/')):
        option = f'(train_dataloader.dataset.datasets.{i}.'
        path = f'data/VOCdevkit/{path}'
        assert f'{path}ImageSets/Main/trainval.txt  {option}ann_file)' in message
        assert f'{path}  {option}data_prefix.sub_data_root' in message
    assert f'{DOWNLOAD} voc2007 --save-dir data\n' in message
    assert f'{DOWNLOAD} voc2012 --save-dir data\n' in message
    assert 'ln -s FOLDER data/VOCdevkit\n' in message
    assert 'coco' not in message


def test_the_program_that_the_error_names_is_there():
    program = Path(DOWNLOAD.split()[1])
    text = program.read_text()
    for part in ('--dataset-name', '--save-dir', '--unzip', 'coco2017', 'voc2012'):
        assert part in text


def test_following_the_error_makes_the_data(workplace, digits):
    cfg = load(DIGITS_CONFIG)
    message = message_of(check_data, cfg)
    assert 'python tools/dataset_converters/digits_to_coco.py data/digits\n' in message
    assert 'coco2017' not in message
    (workplace / 'data').mkdir()
    (workplace / 'data/digits').symlink_to(digits)  # which that program drew
    check_data(cfg)


@pytest.mark.parametrize('part', ['ImageSets', 'Annotations', 'JPEGImages'])
def test_a_folder_of_voc_is_missing(voc, part):
    shutil.rmtree(voc / f'VOC2012/{part}')
    message = message_of(check_data, load(VOC_CONFIG))
    assert f'data/VOCdevkit/VOC2012/{part}/' in message
    assert 'VOC2007/' not in message.split('Download')[0].split('expected')[0]


@pytest.mark.parametrize('name', ['Annotations/000002.xml', 'JPEGImages/000002.jpg'])
def test_one_file_of_voc_is_missing(voc, name):
    (voc / 'VOC2007' / name).unlink()
    folder, name = name.split('/')
    message = message_of(check_data, load(VOC_CONFIG))
    assert f'data/VOCdevkit/VOC2007/{folder}/: 1 of 3 files, {name}  (' in message


def test_wrapped_data_sets_and_lists_of_evaluators(coco):
    cfg = load(COCO_CONFIG)
    dataset = copy.deepcopy(cfg.train_dataloader.dataset)
    dataset.ann_file = 'none.json'
    cfg.train_dataloader.dataset = dict(
        type='RepeatDataset',
        times=2,
        dataset=dict(
            type='MultiImageMixDataset',
            pipeline=[],
            dataset=dict(type='ConcatDataset', datasets=[dataset]),
        ),
    )
    cfg.val_evaluator = [dict(type='CocoMetric', ann_file='neither.json')]
    message = message_of(check_data, cfg)
    option = 'train_dataloader.dataset.dataset.dataset.datasets.0.ann_file'
    assert f'data/coco/none.json  ({option})' in message
    assert 'neither.json  (val_evaluator.0.ann_file)' in message


def test_what_others_read_is_left_alone(workplace):
    here = dict(type='CocoDataset', data_root='none', ann_file='none.json')
    datasets = [
        dict(here, backend_args=dict(backend='petrel')),
        dict(here, pipeline=[dict(type='LoadImageFromFile', backend_args=dict(a=1))]),
        dict(here, data_root='s3://bucket', data_prefix=dict(img='train/')),
        dict(here, type='CocoCaptionDataset'),
        dict(here, type='unknown'),
    ]
    for dataset in datasets:
        check_data(dict(train_dataloader=dict(dataset=dataset)))
    evaluator = dict(type='CocoMetric', ann_file='http://host/val.json')
    check_data(dict(val_evaluator=evaluator, val_dataloader=None))
    with pytest.raises(FileNotFoundError, match=r'none/none\.json'):
        check_data(dict(train_dataloader=dict(dataset=here)))


def class_folders(data_root, **kwargs):
    dataset = dict(type='CustomDataset', data_root=str(data_root), **kwargs)
    return dict(train_dataloader=dict(dataset=dataset))


@pytest.mark.parametrize(
    'root, way',
    [
        ('data/digits_imagefolder', 'digits_to_imagefolder.py {}\n'),
        ('data/digits_textured', 'digits_to_imagefolder.py {} --textured\n'),
    ],
)
def test_folders_of_classes(workplace, root, way):
    cfg = class_folders(root, data_prefix='train')
    option = 'train_dataloader.dataset.data_prefix'
    message = message_of(check_data, cfg)
    assert f'    {root}/train/CLASS/  ({option})\n' in message
    assert way.format(root) in message
    Path(root, 'train').mkdir(parents=True)
    Path(root, 'train/README').touch()  # no class
    assert f'{root}/train/CLASS/' in message_of(check_data, cfg)
    Path(root, 'train/0').mkdir()
    check_data(cfg)


def test_lists_of_pictures_need_no_folders_of_classes(workplace):
    cfg = class_folders('data', ann_file='list.txt', data_prefix=dict(img_path='all'))
    message = message_of(check_data, cfg)
    assert 'data/list.txt  (train_dataloader.dataset.ann_file)\n' in message
    assert 'data/all/  (train_dataloader.dataset.data_prefix)\n' in message
    Path('data/all').mkdir(parents=True)
    Path('data/list.txt').touch()
    check_data(cfg)
    check_data(class_folders('data/all', with_label=False))
    check_data(class_folders('none', backend_args=dict(backend='petrel')))
    check_data(class_folders('s3://bucket/none'))


def test_imagenet(workplace):
    dataset = dict(type='ImageNet', data_root='data/imagenet', split='val')
    cfg = dict(val_dataloader=dict(dataset=dataset))
    message = message_of(check_data, cfg)
    assert 'data/imagenet/val/CLASS/  (val_dataloader.dataset.data_root)' in message
    assert 'data/imagenet/train/CLASS and' in message and 'image-net.org' in message
    Path('data/imagenet/val').mkdir(parents=True)  # all in one folder
    assert 'val/CLASS/' in message_of(check_data, cfg)
    Path('data/imagenet/meta').mkdir()
    Path('data/imagenet/meta/val.txt').touch()  # which ImageNet finds by itself
    check_data(cfg)
    message = message_of(
        check_data,
        cfg | dict(train_dataloader=dict(dataset=dict(dataset, split='train'))),
    )
    assert 'data/imagenet/train/CLASS/  (' in message and 'val/CLASS/  (' not in message


def test_cifar10_is_downloaded_where_it_can(workplace, monkeypatch):
    asked = []
    answers = [True, False]

    def answer(url):
        asked.append(url)
        return answers[len(asked) - 1]

    monkeypatch.setattr(data_check, '_answers', answer)
    dataset = dict(type='CIFAR10', data_root='data/cifar10', split='train')
    cfg = dict(train_dataloader=dict(dataset=dataset))
    check_data(cfg)
    message = message_of(check_data, cfg)
    option = '(train_dataloader.dataset.data_root)'
    assert f'data/cifar10/cifar-10-batches-py/  {option}' in message
    assert asked[1] in message and 'tar -xzf cifar-10-python.tar.gz' in message
    dataset['download'] = False
    assert 'cifar-10-batches-py/  (' in message_of(check_data, cfg)
    Path('data/cifar10/cifar-10-batches-py').mkdir(parents=True)
    check_data(cfg)
    assert len(asked) == 2


def test_a_network_that_is_not_there():
    assert not data_check._answers('http://127.0.0.1:9/none')


@pytest.mark.parametrize(
    'name, path',
    [
        ('mini/convpool_pws_digits', 'data/digits_imagefolder/test/CLASS/'),
        ('imagenet/resnet50_pws_in1k', 'data/imagenet/val/CLASS/'),
        ('cifar10/convpool_pws_cifar10', 'data/cifar10/cifar-10-batches-py/'),
    ],
)
def test_classification_stops_before_anything_is_built(
    workplace, monkeypatch, name, path
):
    pytest.importorskip('mmpretrain', reason='mmpretrain is not installed')
    monkeypatch.setattr(data_check, '_answers', lambda url: False)
    message = message_of(check_data, load(name))
    assert re.search(rf'{path}  \(.*\bval_dataloader\.dataset\.data_', message)


def test_the_program_says_what_to_do_about_data_elsewhere(workplace):
    message = message_of(check_data, load(COCO_CONFIG), 'say --data')
    assert message.endswith('If it lies elsewhere, say --data.')
    assert '--cfg-options' in message_of(check_data, load(COCO_CONFIG))


def test_pictures_that_the_annotations_name(coco):
    names = sorted(os.listdir(coco / 'train2017'))
    lost = [*names[:4], names[-1]]
    for name in lost:
        (coco / 'train2017' / name).unlink()
    cfg = load(COCO_CONFIG)
    check_data(cfg)
    dataset = cfg.train_dataloader.dataset
    dataset.update(pipeline=[], metainfo=load(DIGITS_CONFIG).metainfo)
    wrapped = dict(type='RepeatDataset', times=2, dataset=dataset)
    for cfg in (dataset, wrapped):
        message = message_of(check_pictures, DATASETS.build(cfg))
        expected = f'data/coco/train2017/: 5 of 12 files, {", ".join(lost[:3])}, ...'
        assert expected in message
        assert f'{DOWNLOAD} coco2017 --save-dir data/coco\n' in message
    check_pictures(DATASETS.build(dict(dataset, indices=[5, 6])))


def test_records_without_a_path_and_remote_pictures_pass(coco):
    dataset = DATASETS.build(
        dict(
            type='CocoDataset',
            data_root='data/coco',
            ann_file='annotations/instances_train2017.json',
            data_prefix=dict(img='s3://bucket/train2017/'),
            metainfo=dict(classes=('one',)),
            serialize_data=False,
        )
    )
    check_pictures(dataset)
    for record in dataset.data_list:
        del record['img_path']
    check_pictures(dataset)
    check_pictures(range(3))


@pytest.fixture
def drawn(workplace, digits):
    """The digits, where the small configs expect them."""
    return Path(shutil.copytree(digits, workplace / 'data/digits'))


def test_training_stops_before_anything_is_read(drawn, monkeypatch):
    """MMDetection would load the training set before it finds the other missing."""
    runner = runner_of(load(DIGITS_CONFIG), drawn)
    monkeypatch.setattr('mmdet.datasets.CocoDataset.load_data_list', None)
    (drawn / 'annotations/instances_val2017.json').unlink()
    message = message_of(runner.train)
    path = 'data/digits/annotations/instances_val2017.json'
    options = 'val_dataloader.dataset.ann_file, val_evaluator.0.ann_file'
    assert f'Missing:\n    {path}  ({options})\n' in message


def test_training_stops_before_the_first_step(drawn):
    runner = runner_of(load(DIGITS_CONFIG), drawn)
    name = sorted(os.listdir(drawn / 'val2017'))[0]
    (drawn / 'val2017' / name).unlink()
    message = message_of(runner.train)
    assert f'data/digits/val2017/: 1 of 6 files, {name}\n' in message
    assert runner.iter == 0


def without(entry, key):
    del entry[key]


# What is done to the file, and what the error says of it
BROKEN = [
    (lambda c: c.pop('images'), "'images' is missing"),
    (lambda c: c.pop('categories'), "'categories' is missing"),
    (lambda c: c.update(images={}), "'images' is missing, or no list"),
    (lambda c: c.update(annotations=[[1]]), "'annotations' is missing, or no list of"),
    (lambda c: without(c['images'][1], 'id'), 'number 1 of the image entries has no'),
    (lambda c: c['images'][1].update(id=1), 'the image id 1 is given twice'),
    (lambda c: without(c['images'][1], 'file_name'), "the image 2 has no 'file_name'"),
    (lambda c: without(c['images'][1], 'width'), 'the width of the image 2 .* None'),
    (lambda c: c['images'][1].update(height='9'), "the height of the image 2 .* '9'"),
    (lambda c: without(c['categories'][0], 'name'), "the category 1 has no 'name'"),
    (lambda c: c['categories'][1].update(id=1), 'the category id 1 is given twice'),
    (lambda c: c['annotations'][1].update(id=1), 'the annotation id 1 is given twice'),
    (lambda c: c['annotations'][1].update(image_id=99), 'annotation 2 .* image_id 99'),
    (lambda c: without(c['annotations'][1], 'image_id'), 'image_id None'),
    (lambda c: c['annotations'][1].update(category_id=[1]), r'category_id \[1\]'),
    (lambda c: without(c['annotations'][1], 'category_id'), 'category_id None'),
    (lambda c: without(c['annotations'][1], 'bbox'), 'bbox .* annotation 2 .* None'),
    (lambda c: c['annotations'][1].update(bbox=[1, 2, 3]), r'bbox .* \[1, 2, 3\]'),
    (lambda c: c['annotations'][1].update(bbox=[9, 9, -5, 5]), 'width, height.*-5'),
    (lambda c: c['annotations'][1].update(bbox=[9, math.nan, 5, 5]), 'bbox .* nan'),
    (lambda c: c['annotations'][1].update(bbox=[9, '9', 5, 5]), "bbox .* '9'"),
    (lambda c: without(c['annotations'][1], 'area'), 'the area of the annotation 2'),
    (lambda c: c['annotations'][1].update(segmentation='x'), 'the segmentation of the'),
    (lambda c: c.update(images=[]), "'images' is empty"),
    (lambda c: c['images'][1].update(id='2'), "some of the image ids .*: 1, '2'"),
    (lambda c: c['images'][1].update(width=10**400), 'the width of the image 2'),
    (lambda c: c['annotations'][1].update(bbox=[0, 10**400, 1, 1]), 'bbox .* 2 must'),
    (lambda c: c['annotations'][1].update(area=10**400), 'the area of the annotation'),
    (lambda c: c['annotations'][1].update(iscrowd='no'), "iscrowd .* 2 must .* 'no'"),
    (lambda c: c['annotations'][1].update(iscrowd=[1]), r'iscrowd .* 2 .* \[1\]'),
    (
        lambda c: c['categories'][1].update(name=c['categories'][0]['name']),
        "the category name 'zero' is given twice",
    ),
]
POLYGONS = [
    *([1, 2, 3, 4, 5, 6], ['1, 2'], [None], [[]], [{}], [[1, 2, 3, 4]]),
    *([[1, 2, 3, 4, 5, 6, 7]], [[1, 2, 3, 4, 5, '6']], [[1, 2, 3, 4, 5, math.nan]]),
    *([[1, 2, 3, 4, 5, math.inf]], [[1, 2, 3, 4, 5, 10**400]]),
    *([[1, 2, 3, 4, 5, None]], [[1, 2, 3, 4, 5, [6]]], [[math.nan] * 6]),
]
PICTURE = dict(height=4, width=5)
RLES = [
    *({}, dict(counts=[20]), dict(size=[4, 5]), dict(size=[5, 4], counts=[20])),
    *(dict(size=[4, 5], counts=counts) for counts in ([19], [], [21, -1], [20.0])),
    *(dict(size=[4, 5], counts=counts) for counts in (None, 20, ['20'], [[20]])),
    *(dict(size=[4, 5], counts=counts) for counts in ('', '0', 'o', 'é', '~~', 'oo0')),
    *(dict(size=size, counts=[20]) for size in ('45', 45, [4], [-4, -5], ['4', '5'])),
]


@pytest.mark.parametrize('spoil, message', BROKEN)
def test_broken_annotations(coco, spoil, message):
    path = coco / 'annotations/instances_train2017.json'
    content = json.loads(path.read_text())
    spoil(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f'{re.escape(str(path))} cannot.*{message}'):
        CheckedCOCO(str(path))


def one_object(picture, **annotation):
    box = dict(id=3, image_id=1, category_id=1, bbox=[0, 0, 2, 2], area=4)
    return dict(
        images=[dict(picture, id=1, file_name='a.png')],
        categories=[dict(id=1, name='a')],
        annotations=[dict(box, **annotation)],
    )


@pytest.mark.parametrize('mask', [*POLYGONS, *RLES], ids=str)
def test_masks_that_are_none(mask):
    check_coco(one_object(PICTURE))
    with pytest.raises(ValueError, match='the segmentation of the annotation 3 must'):
        check_coco(one_object(PICTURE, segmentation=mask))


@given(
    arrays(np.uint8, array_shapes(min_dims=2, max_dims=2), elements=st.integers(0, 1))
)
@settings(derandomize=True, deadline=None, database=None)
def test_every_mask_of_pycocotools_passes(pixels):
    rle = mask_api.encode(np.asfortranarray(pixels))
    rle['counts'] = rle['counts'].decode()
    flat = pixels.flatten(order='F')
    runs = [len(list(run)) for _, run in itertools.groupby(flat)]
    runs = [0, *runs] if flat[0] else runs
    assert data_check._counts_of(rle['counts']) == runs
    height, width = pixels.shape
    for mask in (rle, dict(size=[height, width], counts=runs)):
        check_coco(one_object(dict(height=height, width=width), segmentation=mask))


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
def test_no_annotations_at_all(tmp_path, content):
    path = tmp_path / 'train.json'
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r'train\.json cannot be used as annotations'):
        CheckedCOCO(str(path))


def test_annotations_as_the_real_ones_pass(coco):
    """COCO has boxes without an area, and lists of test pictures without any."""
    path = coco / 'annotations/instances_train2017.json'
    content = json.loads(path.read_text())
    content['annotations'][0].update(bbox=[0, 0, 10.5, 0], area=0, iscrowd=1)
    size = [content['images'][0][key] for key in ('height', 'width')]
    rle = dict(counts=[size[0] * size[1]], size=size)
    content['annotations'][1].update(segmentation=rle)
    content['annotations'][2].update(segmentation=[])
    path.write_text(json.dumps(content))
    assert CheckedCOCO(str(path)).dataset == content
    del content['annotations']
    path.write_text(json.dumps(content))
    assert len(CheckedCOCO(str(path)).imgs) == 12


MASK_CONFIG = 'mini/mask_rcnn_r18_fpn_pws_digits'


@pytest.mark.parametrize(
    'config, split, spoil, message',
    [
        (DIGITS_CONFIG, 'train', lambda a: a.update(bbox=[1, 2]), 'bbox'),
        (DIGITS_CONFIG, 'val', lambda a: a.update(image_id=99), 'image_id 99'),
        (MASK_CONFIG, 'train', lambda a: without(a, 'segmentation'), 'no segmentation'),
        (DIGITS_CONFIG, 'val', lambda a: without(a, 'iscrowd'), "no 'iscrowd'"),
        (DIGITS_CONFIG, 'val', lambda a: a.update(id=0), 'not 0, got 0'),
        (DIGITS_CONFIG, 'val', lambda a: a.update(id=10**400), 'not 0, got 1000'),
    ],
)
def test_training_stops_at_broken_annotations(drawn, config, split, spoil, message):
    """Before the first step; MMEngine validates after the first epoch only."""
    path = drawn / f'annotations/instances_{split}2017.json'
    content = json.loads(path.read_text())
    spoil(content['annotations'][0])
    path.write_text(json.dumps(content))
    runner = runner_of(load(config), drawn)
    runner.model.train_step = None
    with pytest.raises(ValueError, match=rf'instances_{split}2017\.json.*{message}'):
        runner.train()


@pytest.mark.parametrize('mask', [None, []])
def test_masks_to_evaluate_with(drawn, mask):
    path = drawn / 'annotations/instances_val2017.json'
    content = json.loads(path.read_text())
    content['annotations'][0]['segmentation'] = mask
    path.write_text(json.dumps(content))
    cfg = load(MASK_CONFIG)
    for part in cfg.val_dataloader.dataset.pipeline:
        part.pop('with_mask', None)
    with pytest.raises(ValueError, match="annotation 1 has no 'segmentation'.*Coco"):
        runner_of(cfg, drawn).train()


@pytest.mark.parametrize('split', ['train', 'val'])
def test_a_class_that_the_file_does_not_have(drawn, split):
    """MMDetection would give its label to the next class."""
    cfg = load(DIGITS_CONFIG)
    dataset = cfg[f'{split}_dataloader'].dataset
    dataset.metainfo = dict(classes=('cat', *cfg.metainfo['classes'][1:]))
    runner = runner_of(cfg, drawn)
    runner.model.train_step = None
    with pytest.raises(ValueError, match='categories for 9 of the 10 classes .*, cat,'):
        runner.train()


def test_other_programs_read_annotations_as_before(coco):
    stock = CocoDataset.COCOAPI, coco_metric.COCO
    with checked_annotations():
        assert CocoDataset.COCOAPI is coco_metric.COCO is CheckedCOCO
    assert (CocoDataset.COCOAPI, coco_metric.COCO) == stock != (CheckedCOCO,) * 2


def test_testing_needs_the_test_set_alone(voc):
    cfg = slim(load(VOC_CONFIG))
    cfg.pop('train_dataloader')
    for key in ('train_cfg', 'optim_wrapper', 'param_scheduler'):
        cfg.pop(key)
    shutil.rmtree(voc / 'VOC2012')
    cfg.work_dir, cfg.log_level = str(voc / 'work_dir'), 'WARNING'
    cfg.test_dataloader.update(num_workers=0, persistent_workers=False)
    runner = PWSRunner.from_cfg(cfg)
    assert 'pascal_voc/mAP' in runner.test()
    (voc / 'VOC2007/ImageSets/Main/test.txt').unlink()
    assert '(test_dataloader.dataset.ann_file)' in message_of(
        PWSRunner.from_cfg(cfg).test
    )


def test_voc_config_trains_and_evaluates(voc):
    """Five pictures in batches of two: BN could not train on the last one alone."""
    cfg = slim(load(VOC_CONFIG))
    cfg.train_cfg.update(max_epochs=1, val_interval=1)
    runner = runner_of(cfg, voc)
    runner.train()
    assert runner.iter == 2
    scalars = runner.message_hub.log_scalars
    for key in ('pascal_voc/mAP', 'box/f_measure'):
        assert 0 <= scalars[f'val/{key}'].current() <= 1


def test_real_pictures_in_the_form_of_voc():
    """BCCD: blood cells, in folders of its own naming."""
    folder = Path(os.environ.get('PWS_DATA_ROOT', 'data')).resolve() / 'bccd'
    if not folder.is_dir():
        pytest.skip(f'the pictures of BCCD are not in {folder} (PWS_DATA_ROOT)')
    dataset = dict(
        type='VOCDataset',
        data_root=f'{folder}/',
        ann_file='voc_splits/test.txt',
        data_prefix=dict(sub_data_root=''),
        ann_subdir='voc_annotations',
        img_subdir='images',
        metainfo=dict(classes=('WBC', 'RBC', 'Platelets')),
        pipeline=[],
    )
    check_data(dict(val_dataloader=dict(dataset=dataset)))
    cells = DATASETS.build(dataset)
    check_pictures(cells)
    names = (folder / 'voc_splits/test.txt').read_text().split()
    assert [cells.get_data_info(i)['img_id'] for i in range(len(cells))] == names
    truth = json.loads((folder / 'annotations/instances_test.json').read_text())
    boxes = sum(len(cells.get_data_info(i)['instances']) for i in range(len(cells)))
    assert boxes >= len(truth['annotations']) > 0  # without those of no area
    dataset['img_subdir'] = 'JPEGImages'
    message = message_of(check_data, dict(val_dataloader=dict(dataset=dataset)))
    assert f'JPEGImages/: {len(names)} of {len(names)} files, {names[0]}.jpg' in message
