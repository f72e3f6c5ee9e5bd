"""Small datasets in the layouts of COCO and Pascal VOC, as fixtures for all tests."""

import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import load_config
from mmengine.config import Config

from pws_mmdet import PWSRunner

COCO_CONFIG = 'ssd320_vgg16_pws_1x'
VOC_CONFIG = 'voc/ssd320_vgg16_bn_voc'
DIGITS_CONFIG = 'mini/ssd96_vgg16_pws_digits'
MASK_CONFIG = 'mini/mask_rcnn_r18_fpn_pws_digits'
VOC_SPLITS = {
    'VOC2007': dict(trainval=['000001', '000002', '000003'], test=['000004', '000005']),
    'VOC2012': dict(trainval=['2008_000001', '2008_000002']),
}


def write_image(folder, name):
    """An image with one dog, as Pascal VOC stores it."""
    image = np.zeros((80, 100, 3), np.uint8)
    image[20:60, 30:70] = 255
    annotation = ET.Element('annotation')
    size = ET.SubElement(annotation, 'size')
    for key, value in dict(width=100, height=80, depth=3).items():
        ET.SubElement(size, key).text = str(value)
    dog = ET.SubElement(annotation, 'object')
    ET.SubElement(dog, 'name').text = 'dog'
    box = ET.SubElement(dog, 'bndbox')
    for key, value in dict(xmin=31, ymin=21, xmax=70, ymax=60).items():
        ET.SubElement(box, key).text = str(value)
    cv2.imwrite(str(folder / f'JPEGImages/{name}.jpg'), image)
    ET.ElementTree(annotation).write(folder / f'Annotations/{name}.xml')


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Config, 'pretty_text', '')  # for logs; it takes seconds
    return tmp_path


@pytest.fixture
def voc(workplace):
    """Five images for training and two for testing, where the configs expect them."""
    devkit = workplace / 'data/VOCdevkit'
    for year, splits in VOC_SPLITS.items():
        folder = devkit / year
        for part in ('Annotations', 'ImageSets/Main', 'JPEGImages'):
            (folder / part).mkdir(parents=True)
        for split, names in splits.items():
            (folder / f'ImageSets/Main/{split}.txt').write_text('\n'.join(names) + '\n')
            for name in names:
                write_image(folder, name)
    return devkit


@pytest.fixture
def coco(workplace, digits):
    """Images in the layout of COCO 2017, in data/coco."""
    return Path(shutil.copytree(digits, workplace / 'data/coco'))


def load(name):
    return load_config(f'configs/{name}.py')


def message_of(function, *args):
    with pytest.raises(FileNotFoundError) as error:
        function(*args)
    return str(error.value)


def runner_of_config(cfg, folder):
    cfg.update(work_dir=str(folder / 'work_dir'), log_level='WARNING')
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.update(batch_size=2, num_workers=0, persistent_workers=False)
    return PWSRunner.from_cfg(cfg)


def slim(cfg):
    """Give the SSD for VOC a sixteenth of its channels."""
    channels = (32, 64, 32, 16, 16, 16)
    cfg.model.backbone.width = 1 / 16
    cfg.model.neck.update(in_channels=channels[:2], out_channels=channels)
    cfg.model.bbox_head.in_channels = channels
    cfg.model.test_cfg.nms_pre = 10
    return cfg


@pytest.fixture
def drawn(workplace, digits):
    """The digits, where the mini configs expect them."""
    return Path(shutil.copytree(digits, workplace / 'data/digits'))
