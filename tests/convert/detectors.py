"""Detectors with random weights for the tests of fuse_detector and fuse_checkpoint."""

import torch
from conftest import ROOT
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS
from torch import nn

from pws_mmdet import PWSConv2d

MASK_RCNN = 'configs/mini/mask_rcnn_r18_fpn_pws_digits.py'


SSD = 'configs/mini/ssd96_vgg16_pws_digits.py'


NAMES = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')


STOCK_ORDER = """
model = dict(
    backbone=dict(pre_activation=False, conv_cfg=dict(keep_mean=True)),
    test_cfg=dict(rcnn=dict(score_thr=0.0, max_per_img=20)),
)
"""


def build(cfg):
    return MODELS.build(ConfigDict(cfg.model))


def randomized(model):
    """Set random weights, of a size that keeps the scores of detections apart."""
    for name, p in model.named_parameters():
        if name.endswith('.alpha'):
            nn.init.uniform_(p, 0.5, 1.5)
        elif name.endswith('.bias'):
            nn.init.normal_(p, std=0.2)
    for layer in model.modules():
        if isinstance(layer, PWSConv2d) and layer.mean is not None:
            nn.init.normal_(layer.mean, std=0.3 / layer.weight[0].numel())
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.running_mean, std=0.2)
            nn.init.uniform_(layer.running_var, 0.5, 2.0)
    return model.eval()


def write_detector(tmp_path, digits, base, changes='', name='mine'):
    """Write a config that inherits from a shipped one, and a checkpoint."""
    path = tmp_path / f'{name}.py'
    path.write_text(
        f'_base_ = {str(ROOT / base)!r}\n'
        f'test_dataloader = dict(\n'
        f'    num_workers=0, dataset=dict(data_root={str(digits)!r})\n)\n{changes}'
    )
    cfg = Config.fromfile(path)
    annotations = f'{digits}/annotations/instances_val2017.json'
    evaluators = cfg.test_evaluator
    for one in evaluators if isinstance(evaluators, list) else [evaluators]:
        if 'ann_file' in one:
            one.ann_file = annotations
    cfg.dump(path)
    model = randomized(build(cfg))
    checkpoint = tmp_path / f'{name}.pth'
    meta = dict(epoch=3, dataset_meta=dict(classes=NAMES))
    content = dict(meta=meta, state_dict=model.state_dict(), optimizer=dict(a=1))
    torch.save(content, checkpoint)
    return path, checkpoint, model
