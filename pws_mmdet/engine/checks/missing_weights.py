"""The message about missing pretrained weights. It leads with a command that helps."""

import os.path as osp
import shlex
from collections.abc import Mapping
from typing import Any

import torch
from mmdet.models.backbones import ResNet
from mmengine.config import Config
from mmengine.dist import get_world_size
from torch import nn

from ...compat import INSTALL_PRETRAIN
from ...layers import PWSConv2d
from ...models import PWSResNet
from ...utils.config import dict_at
from ...utils.repository import shown_path

# What configs/mask_rcnn_r50_fpn_pws_from_bn_1x.py changes in the network.
STOCK_BLOCKS = {'pre_activation': False, 'stem_norm_cfg': None}
PRETRAIN = 'configs/imagenet/resnet50_pws_in1k.py'
PUBLISH = 'tools/model_converters/publish_backbone.py'


def describe_missing(cfg: Config, name: str, module: nn.Module, path: str) -> str:
    """Say how to train although a file of pretrained weights is missing.

    * A PWSResNet: a command that trains from torchvision's weights. If the network has
      the paper's blocks, which no weights with BN fit, the command also gives it
      MMDetection's.
    * Other networks: what to change, because no file can be made for them.

    Args:
        cfg: The config.
        name: Name of the part of the model whose weights are missing.
        module: That part.
        path: The missing file.
    """
    option = 'model.' + name.removeprefix('module.')
    source = _find_source(cfg, option, module)
    lines = [f'{path}, the pretrained weights of {option}, does not exist. ']
    if source is None:
        lines[0] += 'Choose one of these ways:'
    else:
        lines[0] += 'This command trains without it:'
        lines += _train_from_bn(cfg, option, module, source)
    return '\n'.join([*lines, *_other_ways(cfg, option, module, path)])


def _find_source(cfg: Config, option: str, module: nn.Module) -> str | None:
    """Return the name of the weights with BN that a backbone can start from, if any."""
    part = dict_at(cfg, *option.split('.'))
    init_cfg = dict_at(part, 'init_cfg')
    if not isinstance(module, PWSResNet) or init_cfg is None or 'prefix' in init_cfg:
        return None
    pws = [conv for conv in module.modules() if isinstance(conv, PWSConv2d)]
    takes_filters = all(c.alpha_mode == 'channel' and c.bias is not None for c in pws)
    if not pws or not takes_filters or module.depth not in ResNet.arch_settings:
        return None
    with torch.device('meta'):
        stock = ResNet(module.depth)
    fits = _filter_shapes(module) <= _filter_shapes(stock)
    return f'torchvision://resnet{module.depth}' if fits else None


def _filter_shapes(module: nn.Module) -> set[tuple[str, torch.Size]]:
    weights = module.state_dict().items()
    return {(key, weight.shape) for key, weight in weights if weight.dim() == 4}


def _train_from_bn(
    cfg: Config, option: str, module: nn.Module, source: str
) -> list[str]:
    """Return lines on training from weights with BN: first the command."""
    changes = {
        'init_cfg.type': 'PWSPretrained',
        'init_cfg.checkpoint': source,
        'conv_cfg.keep_mean': True,
        **(STOCK_BLOCKS if module.pre_activation else {}),
    }
    if dict_at(cfg, *option.split('.'), 'conv_cfg') is None:  # it is the default
        changes['conv_cfg.type'] = 'PWS'
    options = {f'{option}.{key}': value for key, value in changes.items()}
    depth = source.rpartition('resnet')[2]
    text = f"It downloads torchvision's ResNet-{depth} with BN, and converts it. "
    if module.pre_activation:
        text += (
            "The missing file is for the paper's blocks (pre_activation=True). The "
            'authors published no such weights, and weights with BN do not fit these '
            "blocks. So the network gets MMDetection's blocks, as in "
            'configs/mask_rcnn_r50_fpn_pws_from_bn_1x.py. '
        )
    folder = cfg.get('work_dir') or 'work_dirs'
    written = osp.join(folder, osp.basename(_config_path(cfg)))
    return [
        f'    {_train(cfg)} --cfg-options {_words(options)}',
        f'{text}Add the other options of your command. Test with the config that the '
        f'training writes, {written}.',
        'Other ways:',
    ]


def _other_ways(cfg: Config, option: str, module: nn.Module, path: str) -> list[str]:
    train = f'    {_train(cfg)} --cfg-options'
    frozen = getattr(module, 'frozen_stages', -1) >= 0
    lines = [
        '* Name the file, if it is in another place:',
        f'{train} {option}.init_cfg.checkpoint=FILE',
        f'* Train from scratch{", with no stage frozen" if frozen else ""} (a good '
        'result needs a longer training):',
        f'{train} {option}.init_cfg=None'
        + (f' {option}.frozen_stages=-1' if frozen else ''),
    ]
    if getattr(module, 'pre_activation', False) and module.depth == 50:
        lines += [
            '* Pretrain a norm-free ResNet-50 on ImageNet (in data/imagenet), with '
            f'mmpretrain ({INSTALL_PRETRAIN}):',
            f'    {_train(cfg, PRETRAIN)}',
            f'    python {shown_path(PUBLISH)} '
            f'work_dirs/resnet50_pws_in1k/epoch_100.pth {shlex.quote(path)}',
            f'    {_train(cfg)}',
        ]
    return lines


# --- commands ----------------------------------------------------------------------


def _config_path(cfg: Config) -> str:
    return getattr(cfg, 'filename', None) or 'CONFIG'


def _train(cfg: Config, config: str | None = None) -> str:
    """Return a command that trains a config on as many processes as this training."""
    config = shown_path(config) if config else shlex.quote(_config_path(cfg))
    if cfg.get('launcher', 'none') == 'none':
        return f'python {shown_path("tools/train.py")} {config}'
    return f'{shown_path("tools/dist_train.sh")} {config} {get_world_size()}'


def _words(options: Mapping[str, Any]) -> str:
    return shlex.join(f'{key}={value}' for key, value in options.items())
