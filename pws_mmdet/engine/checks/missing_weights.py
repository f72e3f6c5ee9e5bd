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
from ...convert.convert import check_takes_filters
from ...convert.images import dict_at
from ...layers import PWSConv2d
from ...models import PWSResNet
from ...utils.config import read_config, walk

BN_TO_PWS = 'python tools/model_converters/bn_to_pws.py'
# What configs/mask_rcnn_r50_fpn_pws_from_bn_1x.py changes in the network.
STOCK_BLOCKS = {'pre_activation': False, 'stem_norm_cfg': None}
STEM = {'stem_conv_cfg.type': 'BiasConv2d'}


def describe_missing(cfg: Config, name: str, module: nn.Module, path: str) -> str:
    """Say how to train although a file of pretrained weights is missing.

    * A PWSResNet with MMDetection's blocks: a command that makes the file from
      torchvision's weights and images of the training set.
    * A PWSResNet with the paper's blocks, which no weights with BN fit: a command that
      trains the same config with MMDetection's blocks, from torchvision's weights.
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
    if source is None or not (module.pre_activation or path.endswith('.pth')):
        lines[0] += 'Choose one of these ways:'
    elif module.pre_activation:
        lines[0] += 'This command trains without it:'
        lines += _train_stock_blocks(cfg, option, source)
    else:
        lines[0] += 'This command makes it:'
        lines += [
            f'    {_convert(cfg, option, source, path, {})}',
            f'It converts the weights of {source} with images of the training set. '
            'Then repeat your command.',
            'Other ways:',
        ]
    return '\n'.join([*lines, *_other_ways(cfg, option, module, path)])


def _find_source(cfg: Config, option: str, module: nn.Module) -> str | None:
    """Return the name of the weights with BN that a backbone can start from, if any."""
    part = dict_at(cfg, *option.split('.'))
    init_cfg = dict_at(part, 'init_cfg')
    if not isinstance(module, PWSResNet) or init_cfg is None or 'prefix' in init_cfg:
        return None
    pws = [conv for conv in module.modules() if isinstance(conv, PWSConv2d)]
    try:
        for conv in pws:
            check_takes_filters(conv)
    except ValueError:
        return None
    if not pws or module.depth not in ResNet.arch_settings:
        return None
    with torch.device('meta'):
        stock = ResNet(module.depth)
    fits = _filter_shapes(module) <= _filter_shapes(stock)
    return f'torchvision://resnet{module.depth}' if fits else None


def _filter_shapes(module: nn.Module) -> set[tuple[str, torch.Size]]:
    weights = module.state_dict().items()
    return {(key, weight.shape) for key, weight in weights if weight.dim() == 4}


def _train_stock_blocks(cfg: Config, option: str, source: str) -> list[str]:
    """Return lines on training with MMDetection's blocks: first the command."""
    changes: dict[str, Any] = {**STOCK_BLOCKS}
    if 'stem_conv_cfg' not in (dict_at(cfg, *option.split('.')) or {}):
        changes.update(STEM)
    depth = source.rpartition('resnet')[2]
    file = f'checkpoints/resnet{depth}_pws_from_bn.pth'
    lr = (dict_at(cfg, 'optim_wrapper', 'optimizer') or {}).get('lr')
    rate = {'optim_wrapper.optimizer.lr': f'{lr / 10:g}'} if lr else {}

    def train(checkpoint: str) -> str:
        init_cfg = dict(type='PWSPretrained', checkpoint=checkpoint)
        start = {f'init_cfg.{key}': value for key, value in init_cfg.items()}
        options = {f'{option}.{k}': v for k, v in {**start, **changes}.items()}
        return f'    {_train(cfg)} --cfg-options {_words({**options, **rate})}'

    written = osp.join(
        cfg.get('work_dir') or 'work_dirs', osp.basename(_config_path(cfg))
    )
    return [
        train(source),
        f"It downloads torchvision's ResNet-{depth} with BN, and converts it. "
        "The missing file is for the paper's blocks (pre_activation=True). The authors "
        'published no such weights, and weights with BN do not fit these blocks. So '
        "the network gets MMDetection's blocks, as in "
        'configs/mask_rcnn_r50_fpn_pws_from_bn_1x.py, and a tenth of the learning '
        'rate. Add the other options of your command. Test with the config that the '
        f'training writes, {written}.',
        'Other ways:',
        '* Convert the same weights beforehand, with images of the training set. It '
        'loses less:',
        f'    {_convert(cfg, option, source, file, changes)}',
        train(file),
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
            f'    {_train(cfg, "configs/imagenet/resnet50_pws_in1k.py")}',
            '    python tools/model_converters/publish_backbone.py '
            f'work_dirs/resnet50_pws_in1k/epoch_100.pth {shlex.quote(path)}',
            f'    {_train(cfg)}',
        ]
    return lines


# --- commands ----------------------------------------------------------------------


def _config_path(cfg: Config) -> str:
    return getattr(cfg, 'filename', None) or 'CONFIG'


def _train(cfg: Config, config: str | None = None) -> str:
    """Return a command that trains a config on as many processes as this training."""
    config = shlex.quote(config or _config_path(cfg))
    if cfg.get('launcher', 'none') == 'none':
        return f'python tools/train.py {config}'
    return f'tools/dist_train.sh {config} {get_world_size()}'


def _convert(
    cfg: Config, option: str, source: str, out: str, changes: Mapping[str, Any]
) -> str:
    """Return a command that converts weights for a part of a config's model.

    The program reads the config from its file. So the command repeats what the options
    of this training changed in that part.
    """
    keys = option.split('.')
    options = _leaves(dict_at(cfg, *keys))
    try:
        in_file = _leaves(dict_at(read_config(_config_path(cfg)), *keys))
    except ValueError:  # The config has no file.
        in_file = options
    missing = object()
    options = {k: v for k, v in options.items() if in_file.get(k, missing) != v}
    # A change of a whole part replaces changes in it.
    options = {k: v for k, v in options.items() if k.split('.')[0] not in changes}
    options = {f'{option}.{k}': v for k, v in {**options, **changes}.items()}
    command = [*shlex.split(BN_TO_PWS), _config_path(cfg), source, out]
    command += ['--calibrate', _training_images(cfg)]
    words = shlex.join(command)
    return f'{words} --cfg-options {_words(options)}' if options else words


def _leaves(part: Any) -> dict[str, Any]:
    """Return the values in a part of a config by name, without its init_cfg."""
    parts = walk(part, skip=['init_cfg'])
    return {k: v for k, v in parts if not isinstance(v, (Mapping, list, tuple))}


def _words(options: Mapping[str, Any]) -> str:
    return shlex.join(f'{key}={value}' for key, value in options.items())


def _training_images(cfg: Config) -> str:
    """Return the folder of the training images, or the config if it is not known."""
    dataset: Any = dict_at(cfg, 'train_dataloader', 'dataset')
    while isinstance(dataset, Mapping) and (
        'dataset' in dataset or 'datasets' in dataset
    ):
        dataset = dataset.get('dataset') or next(iter(dataset['datasets']), None)
    folder = (dict_at(dataset, 'data_prefix') or {}).get('img')
    if not isinstance(folder, str):
        return _config_path(cfg)
    return osp.join(dataset.get('data_root') or '', folder) or _config_path(cfg)
