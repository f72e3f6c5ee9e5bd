"""A check that the files of pretrained weights exist."""

import os.path as osp

from mmengine.config import Config
from torch import nn

from ...utils.config import type_name
from .missing_weights import describe_missing

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
        FileNotFoundError: If a file is missing. The message says how to make it,
            or how to train without it.
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
                raise FileNotFoundError(describe_missing(cfg, name, module, path))
            module.init_cfg = None
