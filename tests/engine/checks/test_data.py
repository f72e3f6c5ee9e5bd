import copy
import functools
import json
import os
import re
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT
from mmcv.transforms import BaseTransform, LoadImageFromFile
from mmdet.datasets import CocoDataset
from mmdet.evaluation import CocoMetric
from mmdet.registry import DATASETS, METRICS, MODELS, TRANSFORMS
from mmengine.config import Config

from pws_mmdet import PWSRunner
from pws_mmdet.engine.checks import data
from pws_mmdet.engine.checks.data import DOWNLOAD, check_data
from pws_mmdet.engine.checks.datasets import check_dataset, check_images
from pws_mmdet.utils.config import drop_pretrained

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


def test_names_in_a_list_of_voc_may_have_folders(voc):
    year = voc / 'VOC2007'
    for folder, suffix in (('Annotations', 'xml'), ('JPEGImages', 'jpg')):
        (year / folder / 'more').mkdir()
        path = year / folder / f'000002.{suffix}'
        path.rename(path.parent / 'more' / path.name)
    for path in (year / 'ImageSets/Main').iterdir():
        path.write_text(path.read_text().replace('000002', 'more/000002'))
    check_data(load(VOC_CONFIG))
    (year / 'JPEGImages/more/000002.jpg').unlink()
    message = message_of(check_data, load(VOC_CONFIG))
    assert 'VOC2007/JPEGImages/more/: 1 of 1 files, 000002.jpg  (' in message


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
        dict(here, pipeline=[dict(type='LoadImageFromFile', file_client_args=here)]),
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

    monkeypatch.setattr(data, '_answers', answer)
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
    assert not data._answers('http://127.0.0.1:9/none')


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
    monkeypatch.setattr(data, '_answers', lambda url: False)
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
        message = message_of(check_images, DATASETS.build(cfg))
        expected = (
            f'data/coco/train2017/: 5 of 12 files, {", ".join(lost[:3])} and 2 more'
        )
        assert expected in message
        assert f'{DOWNLOAD} coco2017 --save-dir data/coco\n' in message
    check_images(DATASETS.build(dict(dataset, indices=[5, 6])))


def test_empty_images_are_named(coco):
    names = sorted(os.listdir(coco / 'train2017'))
    (coco / 'train2017' / names[3]).write_bytes(b'')
    dataset = load(COCO_CONFIG).train_dataloader.dataset
    dataset.update(metainfo=load(DIGITS_CONFIG).metainfo)
    message = message_of(check_images, DATASETS.build(dataset))
    assert f'train2017/: 1 of 12 files have 0 bytes, {names[3]}\n' in message


def test_a_training_may_leave_out_images_that_are_not_there(coco, messages):
    names = sorted(os.listdir(coco / 'train2017'))
    (coco / 'train2017' / names[3]).unlink()
    dataset = load(COCO_CONFIG).train_dataloader.dataset
    dataset.update(metainfo=load(DIGITS_CONFIG).metainfo)
    dataset.pipeline[0].ignore_empty = True
    built = DATASETS.build(dataset)
    check_images(built)
    assert f'1 of 12 files, {names[3]}' in messages.pop()
    assert built[3]['inputs'] is not None  # another one
    message_of(check_images, DATASETS.build(dict(dataset, test_mode=True)))


@TRANSFORMS.register_module(force=True)
class LoadFromArchive(BaseTransform):
    def transform(self, results):
        results['img'] = np.zeros((96, 96, 3), np.uint8)
        results['img_shape'] = results['ori_shape'] = (96, 96)
        return results


@TRANSFORMS.register_module(force=True)
class LoadFromFileOrArchive(LoadImageFromFile):
    def transform(self, results):
        return LoadFromArchive().transform(results)


@pytest.mark.parametrize('name', ['LoadFromArchive', 'LoadFromFileOrArchive'])
def test_images_that_a_transform_of_the_user_reads(coco, name, messages):
    shutil.rmtree(coco / 'train2017')
    cfg = load(COCO_CONFIG)
    dataset = cfg.train_dataloader.dataset
    dataset.update(metainfo=load(DIGITS_CONFIG).metainfo)
    message_of(check_data, cfg)
    dataset.pipeline[0] = dict(type=name)
    check_data(cfg)
    built = DATASETS.build(dataset)
    check_images(built)
    assert built[0]['inputs'] is not None
    assert messages == []


def test_images_with_whole_paths_need_no_folder(coco):
    path = coco / 'annotations/instances_train2017.json'
    content = json.loads(path.read_text())
    for image in content['images']:
        image['file_name'] = str(coco / 'moved' / image['file_name'])
    (coco / 'train2017').rename(coco / 'moved')
    cfg = load(COCO_CONFIG)
    message_of(check_data, cfg)
    path.write_text(json.dumps(content))
    check_data(cfg)
    dataset = cfg.train_dataloader.dataset
    dataset.update(metainfo=load(DIGITS_CONFIG).metainfo)
    check_images(DATASETS.build(dataset))


@DATASETS.register_module(force=True)
class OwnCoco(CocoDataset):
    def load_data_list(self):
        return []


@METRICS.register_module(force=True)
class OwnMetric(CocoMetric):
    def __init__(self, ann_file, **kwargs):
        super().__init__(**kwargs)


def test_what_a_class_of_the_user_reads_is_left_alone(workplace):
    dataset = dict(type='OwnCoco', ann_file='none', data_prefix=dict(img='none'))
    cfg = dict(
        train_dataloader=dict(dataset=dataset),
        val_evaluator=dict(type='OwnMetric', ann_file='none'),
    )
    check_data(cfg)
    cfg['val_evaluator']['type'] = 'CocoMetric'
    assert 'none  (val_evaluator.ann_file)' in message_of(check_data, cfg)


def test_maps_are_looked_for_where_they_are_read(coco):
    dataset = load(COCO_CONFIG).train_dataloader.dataset
    dataset.data_prefix = dict(img='train2017/', seg='maps/')
    cfg = dict(train_dataloader=dict(dataset=dataset))
    check_data(cfg)
    dataset.pipeline[1].with_seg = True
    option = '(train_dataloader.dataset.data_prefix.seg)'
    assert f'data/coco/maps/  {option}' in message_of(check_data, cfg)


@pytest.mark.parametrize(
    'old, new, reason',
    [
        ('<annotation>', '', 'ParseError'),
        ('<xmin>31</xmin>', '', 'AttributeError'),
        ('<xmin>31</xmin>', '<xmin>none</xmin>', "ValueError.*'none'"),
    ],
)
def test_annotations_of_voc_that_cannot_be_read_are_named(voc, old, new, reason):
    path = voc / 'VOC2007/Annotations/000002.xml'
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ValueError, match=rf'000002\.xml cannot be used .*{reason}'):
        runner_of(slim(load(VOC_CONFIG)), voc).train()


def test_an_empty_image_of_voc_without_a_size_is_named(voc):
    path = voc / 'VOC2007/Annotations/000002.xml'
    path.write_text(re.sub('<size>.*</size>', '', path.read_text()))
    (voc / 'VOC2007/JPEGImages/000002.jpg').write_bytes(b'')
    with pytest.raises(ValueError, match=r'000002\.xml cannot .*000002\.jpg.*error'):
        runner_of(slim(load(VOC_CONFIG)), voc).train()


def test_transforms_that_are_no_classes(coco):
    cfg = load(COCO_CONFIG)
    dataset = cfg.train_dataloader.dataset
    dataset.update(metainfo=load(DIGITS_CONFIG).metainfo)
    dataset.pipeline.insert(1, lambda results: results)
    check_data(cfg)
    check_dataset(DATASETS.build(dataset))
    dataset.pipeline.insert(0, dataset.pipeline.pop(1))  # it may read the images
    shutil.rmtree(coco / 'train2017')
    check_data(cfg)
    check_dataset(DATASETS.build(dataset))


def test_boxes_without_area_are_named(voc, messages):
    path = voc / 'VOC2007/Annotations/000002.xml'
    path.write_text(path.read_text().replace('<xmax>70', '<xmax>31'))
    dataset = load(VOC_CONFIG).train_dataloader.dataset
    check_dataset(DATASETS.build(dataset))
    (text,) = messages
    assert 'boxes without area is 1 (the first: [30, 20, 30, 59]' in text
    assert '000002.jpg' in text


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
    check_images(dataset)
    for record in dataset.data_list:
        del record['img_path']
    check_images(dataset)
    check_images(range(3))


@pytest.fixture
def drawn(workplace, digits):
    """The digits, where the small configs expect them."""
    return Path(shutil.copytree(digits, workplace / 'data/digits'))


def test_training_stops_before_anything_is_read(drawn, monkeypatch):
    """MMDetection would load the training set before it finds the other missing."""
    runner = runner_of(load(DIGITS_CONFIG), drawn)
    monkeypatch.setattr('pycocotools.coco.json.load', None)
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


MASK_CONFIG = 'mini/mask_rcnn_r18_fpn_pws_digits'


@pytest.mark.parametrize(
    'config, split, spoil, message',
    [
        (DIGITS_CONFIG, 'train', lambda a: a.update(bbox=[1, 2]), 'bbox'),
        (MASK_CONFIG, 'train', lambda a: without(a, 'segmentation'), 'no segmentation'),
        (DIGITS_CONFIG, 'val', lambda a: without(a, 'iscrowd'), "no 'iscrowd'"),
        (DIGITS_CONFIG, 'val', lambda a: a.update(id=10**400), 'numbers, got 1000'),
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


def test_training_goes_on_with_ids_from_0_and_a_subset_of_the_images(drawn, messages):
    """As MMDetection's own converters and users' subsets write files."""
    for split in ('train', 'val'):
        path = drawn / f'annotations/instances_{split}2017.json'
        content = json.loads(path.read_text())
        for annotation in content['annotations']:
            annotation['id'] -= 1
        del content['images'][-1]
        path.write_text(json.dumps(content))
    cfg = load(DIGITS_CONFIG)
    cfg.train_cfg.max_epochs = 1
    runner = runner_of(cfg, drawn)
    runner.train()
    assert runner.iter > 0
    assert 'coco/bbox_mAP' in str(runner.message_hub.log_scalars)
    text = '\n'.join(messages)
    assert text.count("images' does not list") == 2
    assert 'instances_val2017.json: pycocotools takes the annotation id 0' in text


@pytest.mark.parametrize('number, follows', [(9, 'too few'), (11, 'too many')])
def test_a_head_of_another_number_of_classes(drawn, number, follows):
    cfg = load(DIGITS_CONFIG)
    cfg.model.bbox_head.num_classes = number
    runner = runner_of(cfg, drawn)
    runner.model.train_step = None
    message = f'10 classes .*num_classes={number} of model.bbox_head is {follows}.*=10'
    with pytest.raises(ValueError, match=message):
        runner.train()


def reorder(path):
    content = json.loads(path.read_text())
    content['categories'].reverse()
    path.write_text(json.dumps(content))


@pytest.mark.parametrize('split', ['train', 'val'])
def test_categories_in_another_order_than_the_classes(drawn, split):
    path = drawn / f'annotations/instances_{split}2017.json'
    reorder(path)
    cfg = load(DIGITS_CONFIG)
    runner = runner_of(cfg, drawn)
    runner.model.train_step = None
    message = rf'{split}2017\.json has its categories in another order, nine, eight'
    with pytest.raises(ValueError, match=message):
        runner.train()
    # with its own order in metainfo, the other file has another one
    cfg = load(DIGITS_CONFIG)
    classes = tuple(reversed(cfg.metainfo['classes']))
    cfg[f'{split}_dataloader'].dataset.metainfo = dict(classes=classes)
    runner = runner_of(cfg, drawn)
    runner.model.train_step = None
    with pytest.raises(ValueError, match='label 0 is .* in the training and .* in the'):
        runner.train()


@pytest.mark.parametrize('way', ['test', 'val', 'resume', 'load_from'])
def test_a_checkpoint_that_learned_the_classes_in_another_order(drawn, way):
    """Its detections would count as those of other classes."""
    cfg = load(DIGITS_CONFIG)
    classes = tuple(reversed(cfg.metainfo['classes']))
    path = drawn / 'checkpoint.pth'
    meta = dict(dataset_meta=dict(classes=list(classes)), epoch=0, iter=0)
    weights = MODELS.build(drop_pretrained(cfg.model)).state_dict()
    torch.save(dict(state_dict=weights, meta=meta, message_hub={}), path)
    cfg.load_from, cfg.resume = str(path), way == 'resume'
    runner = runner_of(cfg, drawn)
    run = {'test': runner.test, 'val': runner.val}.get(way, runner.train)
    if way == 'load_from':  # the head learns the order of the training
        runner.model.train_step = None
        with pytest.raises(TypeError, match='NoneType'):
            run()
        return
    with pytest.raises(ValueError, match='checkpoint.pth cannot be .* other labels'):
        run()


def test_classes_of_a_text(drawn):
    cfg = load(DIGITS_CONFIG)
    cfg.train_dataloader.dataset.metainfo = dict(classes='zero')
    with pytest.raises(ValueError, match=r"classes=\('zero',\)\), with a comma"):
        runner_of(cfg, drawn).train()


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
    check_images(cells)
    names = (folder / 'voc_splits/test.txt').read_text().split()
    assert [cells.get_data_info(i)['img_id'] for i in range(len(cells))] == names
    truth = json.loads((folder / 'annotations/instances_test.json').read_text())
    boxes = sum(len(cells.get_data_info(i)['instances']) for i in range(len(cells)))
    assert boxes >= len(truth['annotations']) > 0  # without those of no area
    dataset['img_subdir'] = 'JPEGImages'
    message = message_of(check_data, dict(val_dataloader=dict(dataset=dataset)))
    assert f'JPEGImages/: {len(names)} of {len(names)} files, {names[0]}.jpg' in message
