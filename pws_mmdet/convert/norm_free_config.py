"""The norm-free variant of any detector that MMDetection can configure."""

import copy
import inspect
from collections.abc import Callable, Iterator
from typing import Any

from mmdet.registry import MODELS
from mmengine.config import ConfigDict

from ..config import type_name

NO_NORM = dict(type='NoNorm')
RESNETS = ('ResNet', 'ResNeXt')
# They read the weight of a convolution and do not call it
READ_PAST = ('TOODHead',)
OURS = {'SSDVGG': 'PWSVGG', 'SSDHead': 'PWSSSDHead'}


def norm_free_model(
    model: dict, conv_cfg: dict, head_conv_cfg: dict
) -> tuple[ConfigDict, list[str]]:
    """Put PWS convolutions in every part of a model that takes a ``conv_cfg``.

    Their norm layers go. ResNet and ResNeXt become :class:`PWSResNet` in
    MMDetection's order of blocks, which starts from the same weights, converted.
    Parts that take none, such as transformers, stay as they are.

    Args:
        model: Of a config; it is not changed.
        conv_cfg: Of the backbone.
        head_conv_cfg: Of all other parts.

    Returns:
        The changed copy, and for each part that could take PWS convolutions and
        does not, why.
    """
    model = ConfigDict(copy.deepcopy(dict(model)))
    kept = []
    for name, part in _parts(model):
        in_backbone = name.split('.')[0] == 'backbone'
        reason = _change(part, dict(conv_cfg if in_backbone else head_conv_cfg))
        if reason:
            kept.append(f'{name} ({type_name(part)}): {reason}')
    return model, kept


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


def _parts(cfg: Any, name: str = '') -> Iterator[tuple[str, dict]]:
    """The dicts below a model that name a class, with their places in it."""
    if isinstance(cfg, dict):
        if name and type_name(cfg):
            yield name, cfg
        items = [(k, v) for k, v in cfg.items() if k not in ('train_cfg', 'test_cfg')]
    elif isinstance(cfg, (list, tuple)):
        items = [(str(i), value) for i, value in enumerate(cfg)]
    else:
        return
    for key, value in items:
        yield from _parts(value, f'{name}.{key}' if name else key)


def _change(part: dict, conv_cfg: dict) -> str:
    """Change a part in place, or return why it could and does not change."""
    kind, cls = type_name(part), part['type']
    if isinstance(cls, str):
        cls = MODELS.get(cls)
    options = _options(cls) if cls is not None else {}
    if 'conv_cfg' not in options and kind not in OURS:
        return ''
    if any(base.__name__ in READ_PAST for base in inspect.getmro(cls)):
        return 'it reads the weight of a convolution itself, which would be no filter'
    if part.get('dcn'):
        return 'its deformable convolutions exclude other ones'
    present = type_name(part.get('conv_cfg')) or 'Conv2d'
    if present not in ('Conv2d', 'ConvWS'):
        return f'its convolutions are of the type {present}'
    if kind in OURS:
        part['type'] = OURS[kind]
    elif kind in RESNETS:
        part.update(type='PWSResNet', pre_activation=False, stem_norm_cfg=None)
        part.pop('norm_cfg', None)
    elif part.get('norm_cfg', options.get('norm_cfg')) is not None:
        part['norm_cfg'] = dict(NO_NORM)
    init_cfg = part.get('init_cfg')
    if type_name(init_cfg) in ('Pretrained', 'PretrainedInit'):
        if kind not in OURS:  # their layers have other names
            init_cfg['type'] = 'PWSPretrained'
    part['conv_cfg'] = conv_cfg
    return ''


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
