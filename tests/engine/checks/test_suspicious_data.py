import copy

import cv2
import numpy as np
import pytest
import torch
from conftest import load_config
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmengine.registry import DATASETS
from mmengine.structures import InstanceData
from PIL import Image

from pws_mmdet.engine.checks import describe_suspicious_data
from pws_mmdet.engine.checks.images import image_size


def sample_of(boxes, **metainfo):
    sample = DetDataSample(metainfo=dict(img_path='a.jpg', **metainfo))
    sample.gt_instances = InstanceData(bboxes=boxes)
    return sample


@pytest.mark.parametrize('kind', [torch.Tensor, HorizontalBoxes])
def test_boxes_that_cannot_be_right_are_named(kind):
    good = torch.tensor([[1.0, 2, 3, 4]])
    batch = dict(data_samples=[sample_of(kind(good))] * 2)
    assert describe_suspicious_data(batch) == ''
    bad = sample_of(kind(torch.tensor([[1.0, 2, 3, 4], [5, 6, 5, 9]])))
    text = describe_suspicious_data(dict(sup=dict(data_samples=[bad])))
    assert 'a.jpg has a box without area, [5.0, 6.0, 5.0, 9.0]' in text
    assert 'FilterAnnotations' in text
    bad = sample_of(kind(torch.tensor([[1.0, 2, torch.inf, 4]])))
    assert 'a.jpg has a box that is not finite' in describe_suspicious_data([bad] * 5)
    assert '2 more are like that' in describe_suspicious_data([bad] * 5)


def test_other_batches_than_those_of_mmdetection():
    assert describe_suspicious_data(None) == ''
    assert describe_suspicious_data([torch.ones(2), 'text', dict(inputs=3)]) == ''
    assert describe_suspicious_data([DetDataSample()]) == ''
    rotated = sample_of(torch.zeros(2, 5))  # boxes of five numbers
    assert describe_suspicious_data([rotated]) == ''


@pytest.fixture
def dataset(digits):
    cfg = load_config('configs/mini/ssd96_vgg16_pws_digits.py')
    cfg = copy.deepcopy(cfg.train_dataloader.dataset)
    cfg.update(data_root=str(digits), serialize_data=False)
    return DATASETS.build(cfg)


def test_images_of_another_size_than_annotated_are_named(dataset):
    record = dataset.data_list[1]
    path, size = record['img_path'], (record['height'], record['width'])
    sample = DetDataSample(metainfo=dict(img_path=path, ori_shape=size))
    wrapped = torch.utils.data.ConcatDataset([dataset])
    assert describe_suspicious_data([sample], wrapped) == ''
    record['width'] = 50
    text = describe_suspicious_data([sample], wrapped)
    assert f'{path} is 96 x 96 pixels' in text and '50 x 96 in its annotations' in text
    assert describe_suspicious_data([sample]) == ''


def test_an_image_turned_by_its_exif_orientation(tmp_path, dataset):
    path = str(tmp_path / 'turned.jpg')
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new('RGB', (40, 30)).save(path, exif=exif)
    assert image_size(path) == cv2.imread(path).shape[1::-1] == (30, 40)
    assert image_size(path, turn=False) == (40, 30)
    dataset.data_list[0].update(img_path=path, width=40, height=30)
    sample = DetDataSample(metainfo=dict(img_path=path, ori_shape=(40, 30)))
    text = describe_suspicious_data([sample], dataset)
    assert 'turned.jpg is 30 x 40 pixels' in text and '40 x 30 in its annot' in text
    assert 'EXIF orientation turns it' in text and 'color_ignore_orientation' in text
    # Follow the advice of the message.
    from mmcv.transforms import LoadImageFromFile

    load = LoadImageFromFile(color_type='color_ignore_orientation')
    assert load(dict(img_path=path))['img'].shape[:2] == (30, 40)


def test_the_size_of_a_file_that_is_no_image(tmp_path):
    cv2.imwrite(str(tmp_path / 'a.png'), np.zeros((3, 4, 3), np.uint8))
    assert image_size(str(tmp_path / 'a.png')) == (4, 3)
    (tmp_path / 'b.png').write_bytes(b'')
    with pytest.raises(OSError):
        image_size(str(tmp_path / 'b.png'))
