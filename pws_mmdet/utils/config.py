"""Read configs, build models from them, and look into their parts."""

import argparse
import difflib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import Any

from mmengine.config import Config, DictAction
from mmengine.optim import OptimWrapper, OptimWrapperDict, build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import set_random_seed
from mmengine.utils import get_installed_path, is_installed
from torch import nn


class ConfigOptions(DictAction):
    """MMEngine's DictAction for KEY=VALUE options, with readable errors."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        try:
            super().__call__(parser, namespace, values, option_string)
        except RecursionError:  # DictAction raises it for dicts and sets
            raise argparse.ArgumentError(
                self,
                f'takes no dict, but KEY.a=1 KEY.b=2 ..., got {" ".join(values)!r}',
            ) from None
        except (AssertionError, IndexError, ValueError):  # and these for anything else
            raise argparse.ArgumentError(
                self, f'must be KEY=VALUE ..., got {" ".join(values)!r}'
            ) from None


def read_config(config: str | Path, cfg_options: Mapping | None = None) -> Config:
    """Read the config of a model.

    Args:
        config: Path of a config, or the name of an installed one, such as
            'mmdet::FOLDER/NAME.py'.
        cfg_options: Changes to it, as in ``--cfg-options`` of MMDetection's programs.

    Raises:
        ValueError: If it cannot be read or has no model. No other error is raised.
    """
    config = str(config)
    try:
        if '::' in config:  # MMEngine reads such a name only as a base
            cfg = Config.fromstring(f'_base_ = {config!r}', '.py')
        else:
            cfg = Config.fromfile(config)
        cfg.merge_from_dict(dict(cfg_options or {}))
    except Exception as e:  # a config is Python code, which may raise anything
        reason = describe(e)
        package, _, name = config.partition('::')
        if '+' in name and is_installed(package):
            path = Path(get_installed_path(package), '.mim', 'configs', name)
            reason = f'MMEngine takes no + in such a name. Give the path, {path}'
        raise ValueError(f'{config} cannot be read: {reason}') from e
    if not isinstance(cfg.get('model'), dict):
        raise ValueError(f'{config} describes no model')
    scope = cfg.get('default_scope')
    if scope is not None and not isinstance(scope, str):
        raise ValueError(f'{config}: default_scope must be a name, not {scope!r}')
    return cfg


def build_model(config: str | Path, cfg: Config) -> nn.Module:
    """Build the model of a config, with random weights.

    Args:
        config: Name of the config, for the error.
        cfg: The config.

    Raises:
        ValueError: If the model cannot be built. No other error is raised.
    """
    init_default_scope(cfg.get('default_scope') or 'mmdet')
    try:
        with naming_unknown_layers(cfg.model):
            return MODELS.build(drop_pretrained(cfg.model))
    except Exception as e:  # a model may raise anything
        raise ValueError(f'{config} cannot be built: {describe(e)}') from e


@contextmanager
def naming_unknown_layers(cfg: Any) -> Iterator[None]:
    """Name the layers that do not exist, where MMCV only says "Cannot find None".

    Args:
        cfg: The config of the model that is built inside.

    Raises:
        ValueError: If a ``conv_cfg``, ``norm_cfg`` or the like names no known layer.
    """
    try:
        yield
    except KeyError as e:
        if 'Cannot find None' not in str(e):
            raise
        with MODELS.switch_scope_and_registry(None) as models:
            known = [name for m in (models, models.root) for name in m.module_dict]
        unknown = []
        for name, part in walk(cfg):
            type_ = part.get('type') if isinstance(part, Mapping) else None
            if name.endswith('init_cfg') or not name.endswith('_cfg'):
                continue
            if type_ and registered(part) is None:
                near = difflib.get_close_matches(type_, known, n=1)
                hint = f'; did you mean {near[0]!r}?' if near else ''
                unknown.append(f'model.{name}: there is no layer {type_!r}{hint}')
        if not unknown:
            raise
        raise ValueError('. '.join(unknown)) from e


def build_for_training(
    config: str, cfg: Config
) -> tuple[nn.Module, OptimWrapper | OptimWrapperDict | None]:
    """Build the model of a config, with random weights, and its optimizer.

    The weights are the same in each call.

    Args:
        config: Name of the config, for the error.
        cfg: The config.

    Returns:
        The model in training mode, and its optimizer wrapper. The latter is None if
        the config has none.

    Raises:
        ValueError: If one of the two cannot be built.
    """
    set_random_seed(0)
    model = build_model(config, cfg).train()
    try:
        return model, _build_optimizer(model, cfg)
    except Exception as e:  # an optimizer may raise anything
        raise ValueError(f'{config} cannot be built: {describe(e)}') from e


def _build_optimizer(
    model: nn.Module, cfg: Config
) -> OptimWrapper | OptimWrapperDict | None:
    optim_cfg = cfg.get('optim_wrapper')
    if optim_cfg and 'optimizer' in optim_cfg:
        # Leave out the type of the wrapper: AmpOptimWrapper needs a GPU.
        keys = ('constructor', 'optimizer', 'paramwise_cfg')
        optim_cfg = {key: optim_cfg[key] for key in keys if key in optim_cfg}
    return build_optim_wrapper(model, optim_cfg) if optim_cfg else None


def find_image_size(
    cfg: Config,
    loaders: Sequence[str] = ('test_dataloader', 'val_dataloader', 'train_dataloader'),
) -> tuple[int, int] | None:
    """Return the height and width in pixels to which a config resizes its images.

    Args:
        cfg: The config.
        loaders: The data loaders to look at. The first one that has a size counts.

    Returns:
        Height and width, or None if no Resize or CenterCrop tells them.
    """
    for loader in loaders:
        for _, part in walk(cfg.get(loader)):
            key = dict(Resize='scale', CenterCrop='crop_size').get(type_name(part))
            size = part.get(key) if key else None
            if size is not None:
                width, height = (size, size) if isinstance(size, int) else size
                return height, width
    return None


def walk(
    cfg: Any, name: str = '', skip: Collection[str] = ()
) -> Iterator[tuple[str, Any]]:
    """Yield every part of a config, each before the parts in it.

    The caller may change a dict that it gets: its new parts are yielded then.

    Args:
        cfg: Nested dicts and lists.
        name: The name of ``cfg`` itself.
        skip: Keys of dicts to leave out.

    Returns:
        The name of each part, such as 'neck.convs.0', and the part.
    """
    yield name, cfg
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(cfg, Mapping):
        items = [(key, value) for key, value in cfg.items() if key not in skip]
    elif isinstance(cfg, (list, tuple)):
        items = enumerate(cfg)
    for key, value in items:
        yield from walk(value, f'{name}.{key}' if name else str(key), skip)


def registered(cfg: Any) -> Any:
    """Return the class or function that a part of a config names.

    Args:
        cfg: A dict with a ``type``, or anything else. The type is a class, or its name
            in the registry MODELS, with or without a scope.

    Returns:
        The class. None if ``cfg`` has no type, or the name is not registered.
    """
    type_ = cfg.get('type') if isinstance(cfg, Mapping) else None
    if not isinstance(type_, str):
        return type_
    with MODELS.switch_scope_and_registry(None) as models:
        return models.get(type_)


def type_name(cfg: Any) -> str:
    """Return the name of the class that a part of a config names.

    Unlike ``registered``, it does not need the class to be installed.

    Args:
        cfg: A dict with a ``type``, or anything else. The type is a class, or its name
            with or without a scope.

    Returns:
        The name without a scope. '' if ``cfg`` has no type.
    """
    type_ = cfg.get('type') if isinstance(cfg, Mapping) else None
    name = type_ if isinstance(type_, str) else getattr(type_, '__name__', '')
    return name.split('.')[-1]


# Arguments that make a model load weights in its constructor
LOADED = ('pretrained', 'teacher_ckpt')


def drop_pretrained(cfg: Any) -> Any:
    """Remove all that makes a model start from the weights of a checkpoint.

    Args:
        cfg: The config of a model, or a part of it. It is not changed.

    Returns:
        A copy in which every dict and list is new.
    """
    if isinstance(cfg, (list, tuple)):
        kept = (drop_pretrained(part) for part in cfg if not _is_pretrained(part))
        return type(cfg)(kept)
    if not isinstance(cfg, Mapping):
        return cfg
    kind: Any = type(cfg)
    return kind(
        {
            key: drop_pretrained(value)
            for key, value in cfg.items()
            if key not in LOADED and not _is_pretrained(value)
        }
    )


def _is_pretrained(cfg: Any) -> bool:
    """Tell whether a part of a config is an init_cfg that loads weights."""
    return type_name(cfg).removesuffix('Init').endswith('Pretrained')


def describe(error: Exception) -> str:
    """Return the type and text of an error in one line of at most 400 characters."""
    return shorten(f'{type(error).__name__}: {error}', 400)


def dict_at(cfg: Any, *keys: str) -> dict | None:
    """Return the dict that a config has below some keys, or None."""
    for key in keys:
        cfg = cfg.get(key) if isinstance(cfg, (Config, dict)) else None
    return cfg if isinstance(cfg, dict) else None
