"""Turn a trained PWS detector into a config and a network of plain convolutions."""

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
# MMDetection's blocks need a norm layer. With mean 0 and variance 1, BN only adds its
# bias, which is beta.
BIAS_AS_NORM = dict(type='BN', requires_grad=False)
# Arguments that PWSResNet has and ResNet has not
OWN_ARGUMENTS = ('pre_activation', 'stem_norm_cfg', 'out_norm_cfg')
GROUP_ARGUMENTS = ('groups', 'base_width')
# Keys for the training, and keys that hold paths of the user's own runs
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
    """Replace the PWS convolutions of a detector by plain ones, in config and network.

    The new config is for testing. If MMDetection has all parts of the network, the
    config does not need this package: in a ResNet, beta of a convolution becomes the
    bias of the BN layer after it. Otherwise ``custom_imports`` names the package.

    Args:
        cfg: The config of the trained detector. It is not changed.
        weights: The ``state_dict`` of the detector.

    Returns:
        The new config, and the network that it builds, with its weights.

    Raises:
        ValueError: If the network has no PWS (or WN) convolution, or the weights do
            not fit it or are not finite.
        RuntimeError: If the network has such convolutions that no ``conv_cfg`` of its
            config names.
    """
    plain_cfg = cfg.to_dict()
    registry.init_default_scope(plain_cfg.setdefault('default_scope', 'mmdet'))
    model_cfg = drop_pretrained(plain_cfg['model'])
    model = _build(model_cfg)
    if not any(isinstance(m, ReparamConv2d) for m in model.modules()):
        raise ValueError(
            f'{cfg.filename} has no PWS (or WN) convolution. Its detector is plain '
            'already, or was trained with another config'
        )
    load_strictly(model, weights)
    fused = fuse_pws(model, inplace=True)
    plain_cfg['model'], plain = _plain_twin(model_cfg, fused)
    return Config(_for_testing(plain_cfg)), plain


def _build(model_cfg: dict) -> nn.Module:
    # A deep copy, because some networks change their config
    return registry.MODELS.build(ConfigDict(model_cfg))


def _plain_twin(model_cfg: dict, fused: nn.Module) -> tuple[dict, nn.Module]:
    """Find a config that builds a fused network, and build it.

    Args:
        model_cfg: The model of the config with PWS.
        fused: The network with plain convolutions.

    Returns:
        The model of the new config, and the network that it builds, with the weights.
    """
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
        # Add biases to the parts that lack them. If that is not enough, to all parts.
        named = {p for p in parts if any(n.startswith(p) for n in without_place)}
        biased = named if named - biased else parts


def _plain_cfg(cfg: Any, name: str, biased: set[str], parts: set[str]) -> Any:
    """Return a part of a model's config without PWS (and WN) convolutions.

    Args:
        cfg: The part.
        name: Path of the part, with a dot after each key: ``roi_head.mask_head.``.
        biased: Paths of the parts whose convolutions always get a bias (BiasConv2d).
        parts: The paths of all parts with PWS convolutions are added to this set.
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
    """Replace types of this package by MMDetection's where it has equivalent ones."""
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
    norm_cfg = cfg.get('norm_cfg') or {}
    if registered(norm_cfg) is NoNorm and not norm_cfg.get('bias'):
        cfg['norm_cfg'] = dict(BIAS_AS_NORM)
        if 'norm_eval' in cfg:
            cfg['norm_eval'] = True


@torch.no_grad()
def _take_over(plain: nn.Module, fused: nn.Module) -> list[str]:
    """Load the weights of a fused network into the network of the new config.

    Args:
        plain: The network of the new config.
        fused: The network with plain convolutions.

    Returns:
        The keys that only one of the networks has. If there are any, nothing is
        loaded.
    """
    weights = fused.state_dict()
    places = plain.state_dict()
    folds = []  # pairs: a BN layer, and the key of the bias that it gets
    zeros, identities = [], []
    named: set[str] = set()
    # Visit each block, because several may share a convolution.
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
                    zeros.append(child.get_parameter('bias'))
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
    for beta in zeros:
        beta.zero_()
    for norm in identities:
        norm.get_buffer('running_var').fill_(1 - norm.eps)
    for norm, bias in folds:
        variance = norm.get_buffer('running_var') + norm.eps
        gain = norm.get_parameter('weight') / variance.sqrt()
        norm.get_parameter('bias').add_(gain * weights[bias])
    return []


def _norm_after(parent: nn.Module, name: str) -> _BatchNorm | None:
    """Return the BN layer that a block calls after one of its convolutions, if any."""
    norm = None
    if isinstance(parent, ConvModule):
        if 'conv norm' in ' '.join(parent.order):
            norm = parent.norm
    elif isinstance(parent, nn.Sequential):
        names = list(parent._modules)
        after = names.index(name) + 1
        norm = parent._modules[names[after]] if after < len(names) else None
    elif name.startswith('conv'):  # conv1 and norm1, as MMDetection names them
        norm = getattr(parent, name.replace('conv', 'norm', 1), None)
    if not isinstance(norm, _BatchNorm):
        return None
    return None if norm.bias is None or norm.running_var is None else norm


def _for_testing(cfg: dict) -> dict:
    """Return the keys of a config that a test needs.

    Types of this package are removed if the model does not need the package.
    """
    cfg = {key: value for key, value in cfg.items() if key not in DROPPED}
    needs_package = _names_package(cfg['model'])
    # MMEngine has a default for each of these hooks, so they can be dropped.
    hooks = cfg.get('default_hooks') or {}
    cfg['default_hooks'] = {k: v for k, v in hooks.items() if not _names_package(v)}
    cfg['custom_hooks'] = [
        hook
        for hook in cfg.get('custom_hooks') or []
        if not _names_package(hook) and type_name(hook) != 'EMAHook'
    ]
    for key in ('val_evaluator', 'test_evaluator'):
        metrics = cfg.get(key) or []
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
    # Drop variables of the config, such as conv_cfg, that name types of this package.
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
