"""Pretrained weights that are missing, and what to do without them."""

import os.path as osp

from mmengine.runner import Runner

from ...compat import INSTALL_PRETRAIN
from ...utils.config import type_name
from ..hooks.checkpoint import find_checkpoints

# Of init_cfg, those that read `checkpoint` as a file; '' is Swin's without a type.
TYPES = ('Pretrained', 'PretrainedInit', 'PWSPretrained', 'PWSPretrainedInit', '')


def check_pretrained(runner: Runner) -> None:
    """Look for the files of pretrained weights that a model starts from.

    A training that is resumed does without them.

    Raises:
        FileNotFoundError: If one is missing, with the ways to train nevertheless.
    """
    resumes = runner._resume and (
        runner._load_from or find_checkpoints(runner.work_dir)
    )
    for name, module in runner.model.named_modules():
        init_cfgs = getattr(module, 'init_cfg', None) or []
        if isinstance(init_cfgs, dict):
            init_cfgs = [init_cfgs]
        for init_cfg in init_cfgs:
            path = init_cfg.get('checkpoint')
            if type_name(init_cfg) not in TYPES or not path:
                continue
            if '://' in path or osp.isfile(osp.expanduser(path)):
                continue
            if not resumes:
                raise FileNotFoundError(_describe_ways_on(runner, name, path))
            # MMEngine would read it, only to overwrite the weights at once
            module.init_cfg = None


def _describe_ways_on(runner: Runner, name: str, path: str) -> str:
    config = getattr(runner.cfg, 'filename', None) or 'CONFIG'
    option = 'model.' + name.removeprefix('module.')
    train = f'tools/dist_train.sh {config} 8 --cfg-options'
    optim_wrapper = runner.cfg.get('optim_wrapper') or {}
    lr = (optim_wrapper.get('optimizer') or {}).get('lr')
    rate = f'optim_wrapper.optimizer.lr={lr / 10:g} ' if lr else ''
    return (
        f'The pretrained weights {path} of {option} do not exist.\n'
        'Ways on (8 is the number of GPUs):\n'
        '* Start from the weights of a ResNet-50 with BN, as '
        'configs/mask_rcnn_r50_fpn_pws_from_bn_1x.py does, and at a tenth of the '
        'learning rate:\n'
        f'    {train} {rate}{option}.init_cfg.type=PWSPretrained '
        f'{option}.init_cfg.checkpoint=torchvision://resnet50 '
        f'{option}.pre_activation=False {option}.stem_norm_cfg=None\n'
        f'* Name the file, if it lies elsewhere:\n'
        f'    {train} {option}.init_cfg.checkpoint=FILE\n'
        '* Train from scratch, with nothing frozen (and, for a result, for '
        'longer):\n'
        f'    {train} {option}.init_cfg=None {option}.frozen_stages=-1\n'
        '* Pretrain a norm-free ResNet-50 on ImageNet (in data/imagenet), with '
        f'mmpretrain ({INSTALL_PRETRAIN}):\n'
        '    tools/dist_train.sh configs/imagenet/resnet50_pws_in1k.py 8\n'
        '    python tools/model_converters/publish_backbone.py '
        f'work_dirs/resnet50_pws_in1k/epoch_100.pth {path}\n'
        f'    tools/dist_train.sh {config} 8'
    )
