"""A check that the files of pretrained weights exist."""

import os.path as osp

from mmengine.config import Config
from torch import nn

from ...compat import INSTALL_PRETRAIN
from ...utils.config import type_name

# Types of init_cfg that read `checkpoint` as a file; Swin's init_cfg has no type ('').
TYPES = ('Pretrained', 'PretrainedInit', 'PWSPretrained', 'PWSPretrainedInit', '')


def check_pretrained(model: nn.Module, cfg: Config, resumes: bool) -> None:
    """Check that the files of pretrained weights exist, before a training.

    A training that is resumed does not need them. The ``init_cfg`` of the model that
    name a missing file are then removed: MMEngine would try to read it.

    Args:
        model: The detector, before its weights are initialized.
        cfg: Its config, for the message.
        resumes: The training goes on from a checkpoint.

    Raises:
        FileNotFoundError: If a file is missing. The message says how to train
            nevertheless.
    """
    for name, module in model.named_modules():
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
                raise FileNotFoundError(_describe_missing(cfg, name, path))
            module.init_cfg = None


def _describe_missing(cfg: Config, name: str, path: str) -> str:
    config = getattr(cfg, 'filename', None) or 'CONFIG'
    option = 'model.' + name.removeprefix('module.')
    train = f'tools/dist_train.sh {config} 8 --cfg-options'
    optim_wrapper = cfg.get('optim_wrapper') or {}
    lr = (optim_wrapper.get('optimizer') or {}).get('lr')
    rate = f'optim_wrapper.optimizer.lr={lr / 10:g} ' if lr else ''
    return (
        f'The pretrained weights {path} of {option} do not exist.\n'
        'Choose one of these ways (8 is the number of GPUs):\n'
        '* Start from the weights of a ResNet-50 with BN, with a tenth of the learning '
        'rate, as configs/mask_rcnn_r50_fpn_pws_from_bn_1x.py does:\n'
        f'    {train} {rate}{option}.init_cfg.type=PWSPretrained '
        f'{option}.init_cfg.checkpoint=torchvision://resnet50 '
        f'{option}.pre_activation=False {option}.stem_norm_cfg=None\n'
        '* Name the file, if it is in another place:\n'
        f'    {train} {option}.init_cfg.checkpoint=FILE\n'
        '* Train from scratch, with no stage frozen (a good result needs a longer '
        'training):\n'
        f'    {train} {option}.init_cfg=None {option}.frozen_stages=-1\n'
        '* Pretrain a norm-free ResNet-50 on ImageNet (in data/imagenet), with '
        f'mmpretrain ({INSTALL_PRETRAIN}):\n'
        '    tools/dist_train.sh configs/imagenet/resnet50_pws_in1k.py 8\n'
        '    python tools/model_converters/publish_backbone.py '
        f'work_dirs/resnet50_pws_in1k/epoch_100.pth {path}\n'
        f'    tools/dist_train.sh {config} 8'
    )
