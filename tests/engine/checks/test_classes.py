import json
import sys
from types import ModuleType

import cv2
import numpy as np
import pytest
import torch
from mmdet.datasets import CocoDataset, CocoPanopticDataset
from mmdet.models.roi_heads.mask_heads import SCNetSemanticHead
from mmengine.config import Config
from mmengine.dataset import ConcatDataset, RepeatDataset
from mmengine.registry import MODELS
from torch import nn
from torch.utils.data import Subset

from pws_mmdet.engine.checks import (
    check_dataset,
    check_num_classes,
    check_same_classes,
    check_trained_classes,
    checked_annotations,
)


def dataset(*classes, **kwargs):
    return CocoDataset(metainfo=dict(classes=classes), lazy_init=True, **kwargs)


def panoptic():
    return CocoPanopticDataset(data_prefix=dict(img='', seg=''), lazy_init=True)


@pytest.fixture(scope='module')
def panoptic_config():
    return Config.fromstring(
        "_base_ = 'mmdet::panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py'", '.py'
    )


@pytest.fixture(scope='module')
def panoptic_fpn(panoptic_config):
    with torch.device('meta'):
        return MODELS.build(panoptic_config.model)


def test_heads_of_a_panoptic_network_have_the_classes_of_things(panoptic_fpn):
    check_num_classes(panoptic(), panoptic_fpn)
    assert panoptic_fpn.roi_head.bbox_head.num_classes == 80 < 133
    panoptic_fpn.roi_head.bbox_head.num_classes = 79
    with pytest.raises(ValueError, match='79 of model.roi_head.bbox_head is too few'):
        check_num_classes(panoptic(), panoptic_fpn)
    panoptic_fpn.roi_head.bbox_head.num_classes = 80


def test_modules_that_are_no_heads_may_have_other_classes(panoptic_fpn):
    model = nn.ModuleDict(dict(rpn_head=panoptic_fpn.rpn_head, backbone=nn.Identity()))
    model.backbone.num_classes = 1000  # as of the ImageNet classifier it was
    assert model.rpn_head.num_classes == 1
    check_num_classes(dataset('a', 'b', 'c'), model)
    alone = nn.ModuleDict(dict(bbox_head=panoptic_fpn.rpn_head))  # a detector RPN
    check_num_classes(dataset('a', 'b', 'c'), alone)
    semantic = SCNetSemanticHead(num_ins=1, fusion_level=0, num_classes=183)
    check_num_classes(dataset('a', 'b', 'c'), nn.ModuleDict(dict(head=semantic)))


@pytest.mark.parametrize('number, kind', [(79, 'few'), (81, 'many')])
def test_a_detector_may_be_tested_on_other_classes(
    panoptic_fpn, messages, number, kind
):
    head = panoptic_fpn.roi_head.bbox_head
    model = nn.ModuleDict(dict(bbox_head=head))
    classes = dataset(*map(str, range(number)))
    with pytest.raises(ValueError, match='num_classes=80 of model.bbox_head is too'):
        check_num_classes(classes, model)
    other = {'few': 'many', 'many': 'few'}[kind]
    check_num_classes(classes, model, refused=[kind])
    assert f'is too {other}' in messages.pop()


def test_classes_that_are_prompts_are_not_checked(panoptic_fpn):
    prompts = dataset('a', 'b', return_classes=True)
    check_num_classes(prompts, panoptic_fpn)
    check_same_classes(dataset('b', 'a'), prompts)


def test_a_class_has_the_same_label_in_training_and_validation(messages):
    train = RepeatDataset(dataset('a', 'b'), 2, lazy_init=True)
    check_same_classes(train, dataset('a', 'b'))
    check_same_classes(train, [1, 2])
    with pytest.raises(ValueError, match="label 0 is 'a' in the training and 'b' in"):
        check_same_classes(train, dataset('b', 'a'))
    with pytest.raises(ValueError, match="label 0 is 'a' in the training and 'b' in"):
        check_same_classes(train, ConcatDataset([dataset('b')], lazy_init=True))
    assert not messages
    check_same_classes(train, dataset('a', 'c'))  # another dataset's name of it
    (text,) = messages
    assert "The label 1 is 'b' in the training and 'c' in the validation" in text
    check_same_classes(train, Subset(dataset('b', 'a'), [0]))  # may be anything


def test_a_checkpoint_with_the_same_classes_in_another_order(messages):
    tested = ConcatDataset([dataset('a', 'b', 'c', ann_file='x.json')], lazy_init=True)
    for trained in ((), ('a', 'b', 'c'), ('a',), ('a', 'b', 'c', 'd'), ('e', 'f')):
        check_trained_classes(tested, trained)
    assert not messages
    with pytest.raises(
        ValueError, match=r"'a' has the label 1 in it, and 0 in x\.json"
    ):
        check_trained_classes(tested, ('c', 'a', 'b'))
    check_trained_classes(tested, ('d', 'a', 'c'))  # of another dataset
    assert 'other labels for a: ' in messages.pop()
    prompts = dataset('a', 'b', return_classes=True)
    check_trained_classes(prompts, ('b', 'a'))


def test_valid_panoptic_data_pass(tmp_path, panoptic_config, monkeypatch, messages):
    """Masks are in PNG files, so annotations have no segmentation."""
    utils = ModuleType('panopticapi.utils')  # of a package that is not on PyPI
    utils.rgb2id = lambda color: color.astype(int) @ [1, 256, 65536]
    package = ModuleType('panopticapi')
    package.utils = utils
    monkeypatch.setitem(sys.modules, 'panopticapi', package)
    monkeypatch.setitem(sys.modules, 'panopticapi.utils', utils)
    cv2.imwrite(str(tmp_path / '1.jpg'), np.zeros((48, 64, 3), np.uint8))
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[5:25, 10:40, 2] = 7  # OpenCV writes BGR
    (tmp_path / 'png').mkdir()
    cv2.imwrite(str(tmp_path / 'png/1.png'), pixels)
    segment = dict(id=7, category_id=1, bbox=[10, 5, 30, 20], area=600, iscrowd=0)
    content = dict(
        images=[dict(id=1, file_name='1.jpg', height=48, width=64)],
        categories=[dict(id=1, name='person', isthing=1)],
        annotations=[dict(image_id=1, file_name='1.png', segments_info=[segment])],
    )
    (tmp_path / 'panoptic.json').write_text(json.dumps(content))
    cfg = panoptic_config.train_dataloader.dataset
    options = dict(cfg, data_root=f'{tmp_path}/', ann_file='panoptic.json')
    options = {k: v for k, v in options.items() if k not in ('type', '_scope_')}
    options['data_prefix'] = dict(img='', seg='png/')
    with checked_annotations():
        train = CocoPanopticDataset(**options)
    check_dataset(train)
    assert messages == []
    assert len(train[0]['data_samples'].gt_instances.masks) == 1
