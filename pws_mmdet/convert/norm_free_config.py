"""Make the norm-free variant of any config of MMDetection's."""

import copy
import inspect
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmcv.cnn import ConvModule, ConvWS2d
from mmcv.cnn.bricks.wrappers import Conv2d as MMCVConv2d
from mmdet.registry import MODELS
from mmengine.config import Config, ConfigDict
from mmengine.registry import init_default_scope
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..layers import PWSConv2d, ReparamConv2d
from ..utils.config import (
    describe,
    drop_pretrained,
    read_config,
    registered,
    type_name,
    walk,
)
from ..utils.files import check_new_path, write_whole
from .bn_weights import BN_EPS

CONV_CFG = dict(type='PWS', gamma=1e-4, keep_mean=True)  # gamma: the paper's for ResNet
HEAD_CONV_CFG = dict(  # gamma: that of the authors' code
    type='PWS', gamma=0.1, relative_gamma=True, keep_mean=True
)
HOOKS = [dict(type='PWSAlphaInitHook')]
CLIP_GRAD = dict(max_norm=10, norm_type=2)  # see PWSAlphaInitHook for the reason
COMMENT = (
    "# The norm-free variant. gamma is the paper's for ResNet in the backbone,\n"
    "# and that of the authors' code elsewhere. Gradients are clipped because no norm\n"
    '# layer keeps the steps small. With keep_mean, the network can take over weights\n'
    '# that were trained with BN.\n'
)
NO_NORM = dict(type='NoNorm')
RESNETS = ('ResNet', 'ResNeXt')
# Classes that read the weight of a convolution and do not call it
READ_DIRECTLY = ('TOODHead',)
OURS = {'SSDVGG': 'PWSSSDVGG', 'SSDHead': 'PWSSSDHead'}
# Classes of convolutions that PWS convolutions replace
REPLACED = (nn.Conv2d, MMCVConv2d, ConvWS2d)


@dataclass
class NormFreeConfig:
    """A config that ``make_norm_free`` wrote.

    Attributes:
        path: The config.
        model: The model that it describes, with random weights.
        notes: As of ``norm_free_model``.
    """

    path: Path
    model: nn.Module
    notes: list[str]


def make_norm_free(config: str | Path, out: str | Path) -> NormFreeConfig:
    """Write the norm-free variant of a config.

    All parts of the model that take a ``conv_cfg`` get PWS convolutions and lose their
    norm layers, see ``norm_free_model``. The new config inherits from the old one
    and holds only what differs.

    Args:
        config: Path of a config, or an installed one, 'mmdet::FOLDER/NAME.py'.
        out: The new file, *.py.

    Raises:
        FileExistsError: If ``out`` exists.
        OSError: If it cannot be written.
        ValueError: If the config cannot be read, describes no model, or takes no
            PWS convolutions, if its variant cannot be built, or if the new config
            cannot be read.
    """
    config = str(config)
    path = check_new_path(out, '.py')
    cfg = read_config(config)
    init_default_scope(cfg.get('default_scope') or 'mmdet')
    try:
        model_cfg, notes = norm_free_model(cfg.model, CONV_CFG, HEAD_CONV_CFG)
        model = MODELS.build(drop_pretrained(model_cfg))
    except Exception as e:  # a model that does not take PWS may raise anything
        raise ValueError(
            f'{config} has no norm-free variant: building it failed with '
            f'{type(e).__name__}: {e}'
        ) from e
    if not any(isinstance(module, PWSConv2d) for module in model.modules()):
        raise ValueError(
            f'{config}: no part of the model takes PWS convolutions.'
            + ''.join(f' {line}.' for line in notes)
        )
    base, absolute = config, config
    if '::' not in config:
        absolute = str(Path(config).expanduser().absolute())
        base = os.path.relpath(absolute, path.absolute().parent)
    text = _text_of(cfg, model_cfg)
    try:
        Config.fromstring(f'_base_ = {absolute!r}\n{text}', '.py')
    except Exception as e:  # a config is Python, and may raise anything
        raise ValueError(
            f'{config} has no norm-free variant: a config that inherits from it and '
            f'holds what differs cannot be read: {describe(e)}'
        ) from e
    text = f'{COMMENT}_base_ = {base!r}\n\n{text}'
    write_whole(path, lambda part: part.write_text(text))
    return NormFreeConfig(path, model, notes)


def _text_of(cfg: Config, model: dict) -> str:
    """Return what the new config holds besides its base."""
    imports = cfg.get('custom_imports', {}).get('imports', [])
    imports = [imports] if isinstance(imports, str) else list(imports)
    old = cfg.get('optim_wrapper')
    old = old if isinstance(old, dict) else {}
    # If the config names a constructor, it stays.
    new = {'constructor': 'PWSOptimWrapperConstructor', **old}
    entries = dict(
        custom_imports=dict(
            imports=list(dict.fromkeys([*imports, 'pws_mmdet'])),
            allow_failed_imports=False,
        ),
        runner_type='PWSRunner',
        model=changes_of(cfg.model, model),
        optim_wrapper=changes_of(
            old, {**new, 'clip_grad': old.get('clip_grad') or dict(CLIP_GRAD)}
        ),
        custom_hooks=[*cfg.get('custom_hooks', []), *HOOKS],
    )
    return Config(entries).pretty_text


def norm_free_model(
    model: dict, conv_cfg: dict, head_conv_cfg: dict
) -> tuple[ConfigDict, list[str]]:
    """Put PWS convolutions in all parts of a model that take a ``conv_cfg``.

    The norm layers of these parts are removed. ResNet and ResNeXt become
    ``PWSResNet`` in MMDetection's order of blocks, which starts from the same
    weights, converted. Weights with GN cannot be converted; a backbone that names them
    starts from random weights. Parts that take no ``conv_cfg``, such as transformers,
    stay as they are.

    Args:
        model: The model of a config. It is not changed.
        conv_cfg: ``conv_cfg`` of the backbone.
        head_conv_cfg: ``conv_cfg`` of all other parts.

    Returns:
        The changed copy; and notes, one for each part that takes a ``conv_cfg`` and
        stays, with the reason, and for each part whose pretrained weights were dropped.
    """
    model = ConfigDict(copy.deepcopy(dict(model)))
    notes = []
    for name, part in _parts(model):
        in_backbone = 'backbone' in name.split('.')  # SoftTeacher: detector.backbone
        kind = type_name(part)
        note = _change(part, dict(conv_cfg if in_backbone else head_conv_cfg))
        if note:
            notes.append(f'{name} ({kind}): {note}')
    return model, notes


def changes_of(old: Any, new: Any) -> dict:
    """Return what a config must hold to turn an inherited dict into another one.

    Args:
        old: The dict that the config inherits.
        new: The dict that it is to become.
    """
    changes = {}
    for key, value in new.items():
        before = old.get(key)
        if not isinstance(value, dict) or not isinstance(before, dict):
            if key not in old or before != value:
                replaces = key in old and isinstance(value, dict)  # such as a None
                changes[key] = {'_delete_': True, **value} if replaces else value
        elif before.get('type') != value.get('type') or set(before) - set(value):
            changes[key] = {'_delete_': True, **value}
        elif inner := changes_of(before, value):
            changes[key] = inner
    return changes


def bn_eps_of(model: dict) -> float:
    """Return the eps that the BN layers of a model had before it became norm-free.

    Args:
        model: The model of a config that ``make_norm_free`` wrote.

    Returns:
        ``bn_eps`` of the backbone's ``init_cfg``, or else ``eps`` of a ``NoNorm``, or
        else 1e-5, torch's default.
    """
    backbone = model.get('backbone')
    start = backbone.get('init_cfg') if isinstance(backbone, Mapping) else None
    if start and type_name(start) == 'PWSPretrained':
        return start.get('bn_eps', BN_EPS)
    parts = [part for _, part in _parts(model) if type_name(part) == 'NoNorm']
    return next((part['eps'] for part in parts if 'eps' in part), BN_EPS)


def _parts(model: Mapping) -> Iterator[tuple[str, dict]]:
    """Yield name and dict of all parts below a model that name a class."""
    for name, part in walk(model, skip=('train_cfg', 'test_cfg')):
        if name and type_name(part):
            yield name, part


def _change(part: dict, conv_cfg: dict) -> str:
    """Put PWS convolutions in a part, in place.

    Returns:
        A note for the user: why the part stays, or what else changed. Often empty.
    """
    cls = registered(part)
    if not inspect.isclass(cls) or not issubclass(cls, nn.Module):
        return ''
    kind = cls.__name__
    options = _options(cls)
    if part.get('l2_norm_scale', options.get('l2_norm_scale')):  # SSDNeck normalizes
        part['l2_norm_scale'] = None
    if 'conv_cfg' not in options and kind not in OURS:
        return ''
    if any(base.__name__ in READ_DIRECTLY for base in inspect.getmro(cls)):
        return 'it reads the weight of a convolution itself, which is no filter in PWS'
    if part.get('dcn'):
        return 'its deformable convolutions exclude PWS convolutions'
    present = part.get('conv_cfg', options.get('conv_cfg')) or dict(type='Conv2d')
    conv = registered(present)
    if conv not in REPLACED:
        return f'its convolutions are of the type {type_name(present)}'
    norm_cfg = part.get('norm_cfg', options.get('norm_cfg'))
    note = _start(part, norm_cfg, present if conv is ConvWS2d else None)
    part['conv_cfg'] = conv_cfg
    if kind in RESNETS:
        part.update(type='PWSResNet', pre_activation=False, stem_norm_cfg=None)
        part.pop('norm_cfg', None)
        return note
    part['type'] = OURS.get(kind, part['type'])
    if norm_cfg is not None:
        # NoNorm ignores eps. pws-convert reads it, because checkpoints do not hold it.
        eps = _eps_of(norm_cfg)
        part['norm_cfg'] = dict(NO_NORM) if eps == BN_EPS else dict(NO_NORM, eps=eps)
        if _lacks_bias(part) and not _lacks_bias({**part, 'norm_cfg': None}):
            part['norm_cfg'] = None
    return note


def _start(part: dict, norm_cfg: Mapping | None, conv_ws: Mapping | None) -> str:
    """Let a part start from its pretrained weights, converted.

    Args:
        part: The part. Its ``init_cfg`` is changed in place.
        norm_cfg: The norm of the pretrained weights.
        conv_ws: The ``conv_cfg`` of the pretrained weights if it is ConvWS, else None.

    Returns:
        Why the weights cannot be converted; empty if they can.
    """
    inits = part.get('init_cfg')
    inits = inits if isinstance(inits, (list, tuple)) else [inits]
    for init in inits:
        if type_name(init) not in ('Pretrained', 'PretrainedInit'):
            continue
        if norm_cfg and not _is_bn(norm_cfg):
            part['init_cfg'] = None
            if part.get('frozen_stages', -1) >= 0:
                part['frozen_stages'] = -1
            return (
                f'weights with {type_name(norm_cfg)} cannot be converted, only weights '
                'with BN. It starts from random weights, and nothing in it is frozen. '
                'To start from weights with BN, name them: '
                "init_cfg=dict(type='PWSPretrained', checkpoint='torchvision://...')"
            )
        init['type'] = 'PWSPretrained'
        if (eps := _eps_of(norm_cfg)) != BN_EPS:
            init['bn_eps'] = eps
        if conv_ws is not None:
            init['conv_ws'] = True
    return ''


def _is_bn(norm_cfg: Mapping | None) -> bool:
    norm = registered(norm_cfg)
    return inspect.isclass(norm) and issubclass(norm, _BatchNorm)


def _eps_of(norm_cfg: Mapping | None) -> float:
    return norm_cfg.get('eps', BN_EPS) if norm_cfg and _is_bn(norm_cfg) else BN_EPS


def _lacks_bias(part: dict) -> bool:
    """Tell whether plain convolutions of a part have neither a bias nor a norm layer.

    ``conv_cfg`` does not reach all convolutions of some parts. Blocks of MMCV have no
    bias if they have a norm layer, even if that is NoNorm.

    Returns:
        True also if the part cannot be built.
    """
    try:
        module = MODELS.build(drop_pretrained(part))
    except Exception:  # a class that needs a norm layer may raise anything
        return True
    return any(
        isinstance(m, ConvModule)
        and m.norm_name == 'no_norm'
        and not isinstance(m.conv, ReparamConv2d)
        and getattr(m.conv, 'bias', None) is None  # DCN version 1 has no bias
        for m in module.modules()
    )


def _options(cls: type) -> dict[str, Any]:
    """Return the arguments of a class and of its bases, with their defaults."""
    options: dict[str, Any] = {}
    for base in inspect.getmro(cls):
        if '__init__' not in vars(base):
            continue
        parameters = inspect.signature(vars(base)['__init__']).parameters.values()
        for p in parameters:
            options.setdefault(p.name, None if p.default is p.empty else p.default)
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return options
