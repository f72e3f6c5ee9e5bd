"""The norm-free variant of any detector that MMDetection can configure."""

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mmcv.cnn import ConvModule, ConvWS2d
from mmcv.cnn.bricks.wrappers import Conv2d as MMCVConv2d
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..layers import ReparamConv2d
from ..utils.config import drop_pretrained, registered, type_name, walk
from .pretrained import BN_EPS

NO_NORM = dict(type='NoNorm')
RESNETS = ('ResNet', 'ResNeXt')
# They read the weight of a convolution and do not call it
READ_PAST = ('TOODHead',)
OURS = {'SSDVGG': 'PWSSSDVGG', 'SSDHead': 'PWSSSDHead'}
# What a PWS convolution can stand in for
REPLACED = (nn.Conv2d, MMCVConv2d, ConvWS2d)


def norm_free_model(
    model: dict, conv_cfg: dict, head_conv_cfg: dict
) -> tuple[ConfigDict, list[str]]:
    """Put PWS convolutions in every part of a model that takes a ``conv_cfg``.

    Their norm layers go. ResNet and ResNeXt become :class:`PWSResNet` in
    MMDetection's order of blocks, which starts from the same weights, converted.
    Weights with GN cannot be converted: such a backbone starts from random ones.
    Parts that take no ``conv_cfg``, such as transformers, stay as they are.

    Args:
        model: Of a config; it is not changed.
        conv_cfg: Of the backbone.
        head_conv_cfg: Of all other parts.

    Returns:
        The changed copy, and notes: for each part that could take PWS convolutions
        and does not, why, and which pretrained weights could not be kept.
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
    """What a config says that inherits from one model's and makes another's."""
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
    """The eps of the BN layers that a model had, as its norm-free config tells.

    Args:
        model: Of a config, such as :func:`norm_free_model` makes it.

    Returns:
        That of the backbone's pretrained weights or else of a ``NoNorm``; 1e-5, which
        is torch's, if the config has neither.
    """
    backbone = model.get('backbone')
    start = backbone.get('init_cfg') if isinstance(backbone, Mapping) else None
    if type_name(start) == 'PWSPretrained':
        return start.get('bn_eps', BN_EPS)
    parts = [part for _, part in _parts(model) if type_name(part) == 'NoNorm']
    return next((part['eps'] for part in parts if 'eps' in part), BN_EPS)


def _parts(model: Mapping) -> Iterator[tuple[str, dict]]:
    """Yield the dicts below a model that name a class, with their names."""
    for name, part in walk(model, skip=('train_cfg', 'test_cfg')):
        if name and type_name(part):
            yield name, part


def _change(part: dict, conv_cfg: dict) -> str:
    """Change a part in place.

    Returns:
        Why it could change and does not, or what else the user must know.
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
    if any(base.__name__ in READ_PAST for base in inspect.getmro(cls)):
        return 'it reads the weight of a convolution itself, which would be no filter'
    if part.get('dcn'):
        return 'its deformable convolutions exclude other ones'
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
        # An eps means nothing to NoNorm. It tells bn_to_pws.py that of a checkpoint.
        eps = _eps_of(norm_cfg)
        part['norm_cfg'] = dict(NO_NORM) if eps == BN_EPS else dict(NO_NORM, eps=eps)
        if _lacks_bias(part) and not _lacks_bias({**part, 'norm_cfg': None}):
            part['norm_cfg'] = None
    return note


def _start(part: dict, norm_cfg: Mapping | None, conv_ws: Mapping | None) -> str:
    """Let a part start from what its weights become, or say why it cannot."""
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
                f'weights with {type_name(norm_cfg)} cannot be converted, as those '
                'with BN can: it starts from random ones, and nothing in it is frozen. '
                'Or name weights with BN, as in '
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
    return norm_cfg.get('eps', BN_EPS) if _is_bn(norm_cfg) else BN_EPS


def _lacks_bias(part: dict) -> bool:
    """Whether plain convolutions of a part have no bias, and no norm that brings one.

    They are those that its ``conv_cfg`` does not reach. Its blocks leave the bias to
    the norm layer. True if the part cannot be built.
    """
    try:
        module = MODELS.build(drop_pretrained(part))
    except Exception:  # whatever a class raises that insists on a norm layer
        return True
    return any(
        isinstance(m, ConvModule)
        and m.norm_name == 'no_norm'
        and not isinstance(m.conv, ReparamConv2d)
        and getattr(m.conv, 'bias', None) is None  # a DCN of version 1 never has one
        for m in module.modules()
    )


def _options(cls: Callable) -> dict[str, Any]:
    """Arguments of a class and their defaults, those that it hands up included."""
    options: dict[str, Any] = {}
    for base in inspect.getmro(cls):
        if '__init__' not in vars(base):
            continue
        parameters = inspect.signature(base.__init__).parameters.values()
        for p in parameters:
            options.setdefault(p.name, None if p.default is p.empty else p.default)
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return options
