"""Image files that are missing or empty, and boxes in images."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from detection_data import COCO_CONFIG, DIGITS_CONFIG, VOC_CONFIG, load, message_of
from mmcv.transforms import BaseTransform, LoadImageFromFile
from mmdet.registry import DATASETS, TRANSFORMS

from pws_mmdet.engine.checks import check_data, check_dataset, check_images
from pws_mmdet.engine.checks.missing_files import DOWNLOAD


def test_missing_images_are_named(coco):
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


def test_ignore_empty_makes_missing_images_a_warning(coco, messages):
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


def test_remote_images_and_records_without_a_path_pass(coco):
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
def test_images_read_by_a_users_transform_are_not_checked(coco, name, messages):
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


def test_images_with_absolute_paths_need_no_folder(coco):
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


def test_a_function_as_a_transform(coco):
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
    assert 'Boxes without area: 1 (the first: [30, 20, 30, 59]' in text
    assert '000002.jpg' in text


def test_bccd_in_the_form_of_voc():
    """BCCD: blood cells, in folders of its own naming."""
    folder = Path(os.environ.get('PWS_DATA_ROOT', 'data')).resolve() / 'bccd'
    if not folder.is_dir():
        pytest.skip(f'the images of BCCD are not in {folder} (PWS_DATA_ROOT)')
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
    assert (
        boxes >= len(truth['annotations']) > 0
    )  # BCCD has more boxes, some without area
    dataset['img_subdir'] = 'JPEGImages'
    message = message_of(check_data, dict(val_dataloader=dict(dataset=dataset)))
    assert f'JPEGImages/: {len(names)} of {len(names)} files, {names[0]}.jpg' in message
