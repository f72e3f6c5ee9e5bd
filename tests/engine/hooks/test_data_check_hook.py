"""Wrong data and classes stop a training or a test of the runner."""

import json
import os
import re
import shutil

import pytest
import torch
from detection_data import (
    DIGITS_CONFIG,
    MASK_CONFIG,
    VOC_CONFIG,
    load,
    message_of,
    runner_of_config,
    slim,
)
from mmdet.registry import MODELS

from pws_mmdet import PWSRunner
from pws_mmdet.utils.config import drop_pretrained


@pytest.mark.parametrize(
    'old, new, reason',
    [
        ('<annotation>', '', 'ParseError'),
        ('<xmin>31</xmin>', '', 'AttributeError'),
        ('<xmin>31</xmin>', '<xmin>none</xmin>', "ValueError.*'none'"),
    ],
)
def test_unreadable_voc_annotations_are_named(voc, old, new, reason):
    path = voc / 'VOC2007/Annotations/000002.xml'
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ValueError, match=rf'000002\.xml cannot be used .*{reason}'):
        runner_of_config(slim(load(VOC_CONFIG)), voc).train()


def test_an_empty_voc_image_without_annotated_size_is_named(voc):
    path = voc / 'VOC2007/Annotations/000002.xml'
    path.write_text(re.sub('<size>.*</size>', '', path.read_text()))
    (voc / 'VOC2007/JPEGImages/000002.jpg').write_bytes(b'')
    with pytest.raises(ValueError, match=r'000002\.xml cannot .*000002\.jpg.*error'):
        runner_of_config(slim(load(VOC_CONFIG)), voc).train()


def test_missing_files_stop_a_training_before_data_is_read(drawn, monkeypatch):
    """MMDetection alone would load the training set before it misses the other."""
    runner = runner_of_config(load(DIGITS_CONFIG), drawn)
    monkeypatch.setattr('pycocotools.coco.json.load', None)
    (drawn / 'annotations/instances_val2017.json').unlink()
    message = message_of(runner.train)
    path = 'data/digits/annotations/instances_val2017.json'
    options = 'val_dataloader.dataset.ann_file, val_evaluator.0.ann_file'
    assert f'missing:\n    {path}  ({options})\n' in message


def test_missing_images_stop_a_training_before_the_first_step(drawn):
    runner = runner_of_config(load(DIGITS_CONFIG), drawn)
    name = sorted(os.listdir(drawn / 'val2017'))[0]
    (drawn / 'val2017' / name).unlink()
    message = message_of(runner.train)
    assert f'data/digits/val2017/: 1 of 6 files, {name}\n' in message
    assert runner.iter == 0


def without(entry, key):
    del entry[key]


@pytest.mark.parametrize(
    'config, split, spoil, message',
    [
        (DIGITS_CONFIG, 'train', lambda a: a.update(bbox=[1, 2]), 'bbox'),
        (MASK_CONFIG, 'train', lambda a: without(a, 'segmentation'), 'no segmentation'),
        (DIGITS_CONFIG, 'val', lambda a: without(a, 'iscrowd'), "no 'iscrowd'"),
        (DIGITS_CONFIG, 'val', lambda a: a.update(id=10**400), 'numbers, got 1000'),
    ],
)
def test_broken_annotations_stop_a_training_before_the_first_step(
    drawn, config, split, spoil, message
):
    """MMEngine alone would find a fault of the validation after the first epoch."""
    path = drawn / f'annotations/instances_{split}2017.json'
    content = json.loads(path.read_text())
    spoil(content['annotations'][0])
    path.write_text(json.dumps(content))
    runner = runner_of_config(load(config), drawn)
    runner.model.train_step = None
    with pytest.raises(ValueError, match=rf'instances_{split}2017\.json.*{message}'):
        runner.train()


def test_ids_from_0_and_a_subset_of_the_images_are_warnings(drawn, messages):
    """MMDetection's own converters write ids from 0. Subsets of images are common."""
    for split in ('train', 'val'):
        path = drawn / f'annotations/instances_{split}2017.json'
        content = json.loads(path.read_text())
        for annotation in content['annotations']:
            annotation['id'] -= 1
        del content['images'][-1]
        path.write_text(json.dumps(content))
    cfg = load(DIGITS_CONFIG)
    cfg.train_cfg.max_epochs = 1
    runner = runner_of_config(cfg, drawn)
    runner.train()
    assert runner.iter > 0
    assert 'coco/bbox_mAP' in str(runner.message_hub.log_scalars)
    text = '\n'.join(messages)
    assert text.count("image_id is not in 'images'") == 2
    assert 'instances_val2017.json: pycocotools takes the annotation id 0' in text


@pytest.mark.parametrize('number, follows', [(9, 'too few'), (11, 'too many')])
def test_a_head_with_another_number_of_classes_is_an_error(drawn, number, follows):
    cfg = load(DIGITS_CONFIG)
    cfg.model.bbox_head.num_classes = number
    runner = runner_of_config(cfg, drawn)
    runner.model.train_step = None
    message = f'10 classes .*num_classes={number} of model.bbox_head is {follows}.*=10'
    with pytest.raises(ValueError, match=message):
        runner.train()


def reorder(path):
    content = json.loads(path.read_text())
    content['categories'].reverse()
    path.write_text(json.dumps(content))


@pytest.mark.parametrize('split', ['train', 'val'])
def test_categories_in_another_order_are_an_error(drawn, split):
    path = drawn / f'annotations/instances_{split}2017.json'
    reorder(path)
    cfg = load(DIGITS_CONFIG)
    runner = runner_of_config(cfg, drawn)
    runner.model.train_step = None
    message = rf'{split}2017\.json has its categories in another order, nine, eight'
    with pytest.raises(ValueError, match=message):
        runner.train()
    # with its own order in metainfo, the other file has another one
    cfg = load(DIGITS_CONFIG)
    classes = tuple(reversed(cfg.metainfo['classes']))
    cfg[f'{split}_dataloader'].dataset.metainfo = dict(classes=classes)
    runner = runner_of_config(cfg, drawn)
    runner.model.train_step = None
    with pytest.raises(ValueError, match='label 0 is .* in the training and .* in the'):
        runner.train()


@pytest.mark.parametrize('way', ['test', 'val', 'resume', 'load_from'])
def test_a_checkpoint_with_classes_in_another_order_is_refused(drawn, way):
    """Its detections would count for other classes."""
    cfg = load(DIGITS_CONFIG)
    classes = tuple(reversed(cfg.metainfo['classes']))
    path = drawn / 'checkpoint.pth'
    meta = dict(dataset_meta=dict(classes=list(classes)), epoch=0, iter=0)
    weights = MODELS.build(drop_pretrained(cfg.model)).state_dict()
    torch.save(dict(state_dict=weights, meta=meta, message_hub={}), path)
    cfg.load_from, cfg.resume = str(path), way == 'resume'
    runner = runner_of_config(cfg, drawn)
    run = {'test': runner.test, 'val': runner.val}.get(way, runner.train)
    if way == 'load_from':  # the head learns the order of the training
        runner.model.train_step = None
        with pytest.raises(TypeError, match='NoneType'):
            run()
        return
    with pytest.raises(ValueError, match='checkpoint.pth cannot be .* other labels'):
        run()


def test_classes_given_as_a_text(drawn):
    cfg = load(DIGITS_CONFIG)
    cfg.train_dataloader.dataset.metainfo = dict(classes='zero')
    with pytest.raises(ValueError, match=r"classes=\('zero',\)\), with a comma"):
        runner_of_config(cfg, drawn).train()


@pytest.mark.parametrize('mask', [None, []])
def test_ground_truth_without_masks(drawn, mask):
    path = drawn / 'annotations/instances_val2017.json'
    content = json.loads(path.read_text())
    content['annotations'][0]['segmentation'] = mask
    path.write_text(json.dumps(content))
    cfg = load(MASK_CONFIG)
    for part in cfg.val_dataloader.dataset.pipeline:
        part.pop('with_mask', None)
    with pytest.raises(ValueError, match="annotation 1 has no 'segmentation'.*Coco"):
        runner_of_config(cfg, drawn).train()


@pytest.mark.parametrize('split', ['train', 'val'])
def test_a_class_that_the_file_lacks_is_an_error(drawn, split):
    """MMDetection would give the label of the class to the next one."""
    cfg = load(DIGITS_CONFIG)
    dataset = cfg[f'{split}_dataloader'].dataset
    dataset.metainfo = dict(classes=('cat', *cfg.metainfo['classes'][1:]))
    runner = runner_of_config(cfg, drawn)
    runner.model.train_step = None
    with pytest.raises(ValueError, match='categories for 9 of the 10 classes .*, cat,'):
        runner.train()


def test_a_test_needs_only_the_test_set(voc):
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


def test_a_voc_config_trains_and_evaluates(voc):
    """The last of five images is left out: BN cannot train on a batch of one."""
    cfg = slim(load(VOC_CONFIG))
    cfg.train_cfg.update(max_epochs=1, val_interval=1)
    runner = runner_of_config(cfg, voc)
    runner.train()
    assert runner.iter == 2
    scalars = runner.message_hub.log_scalars
    for key in ('pascal_voc/mAP', 'box/f_measure'):
        assert 0 <= scalars[f'val/{key}'].current() <= 1
