"""A trained detector as a config and a checkpoint of plain convolutions."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from mmcv.cnn import ConvModule
from mmengine import registry
from mmengine.config import Config, ConfigDict
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..checkpoint.weights import load_strictly
from ..layers import NoNorm, ReparamConv2d
from ..utils.config import drop_pretrained, registered, type_name, walk
from ..utils.names import first_names
from .fuse import fuse_pws

PACKAGE = __name__.split('.')[0]
NO_NORM = dict(type='NoNorm')
# Carries beta where a block of MMDetection wants a norm layer: with its statistics
# at 0 and 1 it adds its bias.
BIAS_AS_NORM = dict(type='BN', requires_grad=False)
# The arguments that PWSResNet has besides those of ResNet
OWN_ARGUMENTS = ('pre_activation', 'stem_norm_cfg', 'stem_conv_cfg', 'out_norm_cfg')
GROUP_ARGUMENTS = ('groups', 'base_width')
# What is for a training, or names what a user's own run read and wrote
DROPPED = (
    'train_dataloader',
    'train_pipeline',
    'train_cfg',
    'optim_wrapper',
    'param_scheduler',
    'auto_scale_lr',
    'runner_type',
    'work_dir',
    'load_from',
    'resume',
    'launcher',
)


def fuse_detector(cfg: Config, weights: Mapping[str, Any]) -> tuple[Config, nn.Module]:
    """The config and the network that are left when PWS convolutions are made plain.

    The config is for testing. It names no type of this package where MMDetection has
    the network itself: there the beta of a ResNet's convolution becomes the bias of
    the BN layer after it. Elsewhere ``custom_imports`` names the package.

    Args:
        cfg: The config of the trained detector. It is not changed.
        weights: Its ``state_dict``.

    Returns:
        The config, and the network that it builds, with its weights.

    Raises:
        ValueError: If the network has no PWS (or WN) convolution, or the weights
            are not its weights, or not finite.
        RuntimeError: If it makes such convolutions from something else than its
            config.
    """
    plain_cfg = cfg.to_dict()
    registry.init_default_scope(plain_cfg.setdefault('default_scope', 'mmdet'))
    model_cfg = drop_pretrained(plain_cfg['model'])
    model = _build(model_cfg)
    if not any(isinstance(m, ReparamConv2d) for m in model.modules()):
        raise ValueError(
            f'{cfg.filename} has no PWS (or WN) convolution. Its detector is plain '
            'already, or another config is the one that it was trained with'
        )
    load_strictly(model, weights)
    fused = fuse_pws(model, inplace=True)
    plain_cfg['model'], plain = _plain_twin(model_cfg, fused)
    return Config(_for_testing(plain_cfg)), plain


def _build(model_cfg: dict) -> nn.Module:
    # A copy down to the last dict, some of which networks change
    return registry.MODELS.build(ConfigDict(model_cfg))


def _plain_twin(model_cfg: dict, fused: nn.Module) -> tuple[dict, nn.Module]:
    """The config of a fused network, and the network that it builds."""
    parts: set[str] = set()
    biased: set[str] = set()
    while True:
        plain_cfg = _plain_cfg(model_cfg, '', biased, parts)
        plain = _build(plain_cfg)
        left = [n for n, m in plain.named_modules() if isinstance(m, ReparamConv2d)]
        if left:
            raise RuntimeError(
                'These PWS (or WN) convolutions are not made from a conv_cfg of the '
                f'config, so that no config makes them plain: {first_names(left)}. '
                'pws_mmdet.fuse_pws(model) does'
            )
        without_place = _take_over(plain, fused)
        if not without_place:
            return plain_cfg, plain
        if biased == parts:
            raise RuntimeError(
                'The network of plain convolutions differs from the trained one in: '
                f'{first_names(without_place)}. pws_mmdet.fuse_pws(model) makes it '
                'plain without a config'
            )
        # First where the convolutions are, then everywhere
        named = {p for p in parts if any(n.startswith(p) for n in without_place)}
        biased = named if named - biased else parts


def _plain_cfg(cfg: Any, name: str, biased: set[str], parts: set[str]) -> Any:
    """A part of the model's config without PWS (and WN).

    Args:
        cfg: The part.
        name: Its path, each key followed by a dot, as in ``roi_head.mask_head.``.
        biased: Paths of parts whose convolutions get a bias in any case.
        parts: Paths of parts with such convolutions are added to it.
    """
    if isinstance(cfg, (list, tuple)):
        return type(cfg)(
            _plain_cfg(value, f'{name}{i}.', biased, parts)
            for i, value in enumerate(cfg)
        )
    if not isinstance(cfg, Mapping):
        return cfg
    cfg = dict(cfg)
    built = registered(cfg)
    default = built and inspect.signature(built).parameters.get('conv_cfg')
    if default and _is_reparam(default.default):
        cfg.setdefault('conv_cfg', default.default)
    convs = [key for key, value in cfg.items() if _is_reparam(value)]
    cfg = {
        key: _plain_cfg(value, f'{name}{key}.', biased, parts)
        for key, value in cfg.items()
        if key not in convs
    }
    if convs:
        parts.add(name)
        conv_type = 'BiasConv2d' if name in biased else 'Conv2d'
        cfg.update({key: dict(type=conv_type) for key in convs})
        if name not in biased:
            if 'conv_cfg' in convs:
                cfg['conv_cfg'] = None
            _make_stock(cfg)
    return cfg


def _is_reparam(cfg: Any) -> bool:
    built = registered(cfg)
    return inspect.isclass(built) and issubclass(built, ReparamConv2d)


def _make_stock(cfg: dict) -> None:
    """Name what MMDetection has itself, if it has it."""
    if getattr(registered(cfg), '__name__', None) == 'PWSResNet':
        norm_cfg = cfg.get('norm_cfg') or NO_NORM
        is_none = registered(norm_cfg) is NoNorm
        has_stem_norm = is_none and cfg.get('stem_norm_cfg', True)
        if cfg.get('pre_activation', True) or has_stem_norm:
            return
        grouped = cfg.get('groups', 1) > 1
        for key in OWN_ARGUMENTS if grouped else (*OWN_ARGUMENTS, *GROUP_ARGUMENTS):
            cfg.pop(key, None)
        cfg.update(
            type='mmdet.ResNeXt' if grouped else 'mmdet.ResNet', norm_cfg=norm_cfg
        )
    norm_cfg = cfg.get('norm_cfg')
    if registered(norm_cfg) is NoNorm and not norm_cfg.get('bias'):
        cfg['norm_cfg'] = dict(BIAS_AS_NORM)
        if 'norm_eval' in cfg:
            cfg['norm_eval'] = True


@torch.no_grad()
def _take_over(plain: nn.Module, fused: nn.Module) -> list[str]:
    """Give a network the fused one's weights, or name those that only one has."""
    weights = fused.state_dict()
    places = plain.state_dict()
    folds = []  # BN layer, name of the bias that it takes over
    zeros, identities = [], []
    named: set[str] = set()
    # Of each block, also where several share a convolution
    for prefix, parent in plain.named_modules():
        for child_name, child in parent._modules.items():
            name = f'{prefix}.{child_name}'.lstrip('.')
            bias = f'{name}.bias'
            if isinstance(child, nn.Conv2d):
                if bias in weights and bias not in places:
                    norm = _norm_after(parent, child_name)
                    if norm is not None:
                        folds.append((norm, bias))
                elif bias in places and bias not in weights:  # beta=False
                    zeros.append(child)
                    named.add(bias)
            elif isinstance(child, _BatchNorm) and f'{name}.running_var' not in weights:
                identities.append(child)
                named.update(f'{name}.{key}' for key in child.state_dict())
    folded = {bias for _, bias in folds}
    different = [k for k in weights if k not in places and k not in folded]
    different += [k for k in places if k not in weights and k not in named]
    if different:
        return different

    plain.load_state_dict(weights, strict=False)
    for conv in zeros:
        conv.bias.zero_()
    for norm in identities:
        norm.running_var.fill_(1 - norm.eps)
    for norm, bias in folds:
        gain = norm.weight / (norm.running_var + norm.eps).sqrt()
        norm.bias += gain * weights[bias]
    return []


def _norm_after(parent: nn.Module, name: str) -> _BatchNorm | None:
    """The BN layer that a block applies to the output of its convolution, if any."""
    norm = None
    if isinstance(parent, ConvModule):
        if 'conv norm' in ' '.join(parent.order):
            norm = parent.norm
    elif isinstance(parent, nn.Sequential):
        names = [*parent._modules, None]
        norm = parent._modules.get(names[names.index(name) + 1])
    elif name.startswith('conv'):  # conv1 and norm1, as MMDetection names them
        norm = getattr(parent, name.replace('conv', 'norm', 1), None)
    is_affine = isinstance(norm, _BatchNorm) and norm.bias is not None
    return norm if is_affine and norm.running_var is not None else None


def _for_testing(cfg: dict) -> dict:
    """What a test needs of a config, without this package where the model can do."""
    cfg = {key: value for key, value in cfg.items() if key not in DROPPED}
    needs_package = _names_package(cfg['model'])
    # MMEngine's default takes the place of what is not there
    hooks = cfg.get('default_hooks') or {}
    cfg['default_hooks'] = {k: v for k, v in hooks.items() if not _names_package(v)}
    cfg['custom_hooks'] = [
        hook
        for hook in cfg.get('custom_hooks') or []
        if not _names_package(hook) and type_name(hook) != 'EMAHook'
    ]
    for key in ('val_evaluator', 'test_evaluator'):
        metrics = cfg.get(key)
        if _names_package(metrics) and not needs_package:
            metrics = [metrics] if isinstance(metrics, Mapping) else metrics
            cfg[key] = [one for one in metrics if not _names_package(one)]
    imports = (cfg.pop('custom_imports', None) or {}).get('imports') or []
    imports = [imports] if isinstance(imports, str) else imports
    imports = [name for name in imports if name.split('.')[0] != PACKAGE]
    if needs_package:
        imports.append(PACKAGE)
    if imports:
        cfg['custom_imports'] = dict(imports=imports, allow_failed_imports=False)
    # variables of the config, such as conv_cfg, from which the model was made
    keep = ('model', 'val_evaluator', 'test_evaluator') if needs_package else ('model',)
    return {k: v for k, v in cfg.items() if k in keep or not _names_package(v)}


def _names_package(cfg: Any) -> bool:
    """Tell whether a config, or a part of it, names a type of this package."""
    registries = (registry.MODELS, registry.HOOKS, registry.METRICS)
    for _, part in walk(cfg):
        type_ = part.get('type') if isinstance(part, Mapping) else None
        if isinstance(type_, str):
            found = (r.module_dict.get(type_name(part)) for r in registries)
            type_ = next(filter(None, found), None)
        if getattr(type_, '__module__', '').split('.')[0] == PACKAGE:
            return True
    return False
