"""Configs for programs, with one error for all that may be wrong with them."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from textwrap import shorten

from mmengine.config import Config, DictAction
from mmengine.registry import MODELS, init_default_scope
from mmengine.utils import get_installed_path, is_installed
from torch import nn


class ConfigOptions(DictAction):
    """MMEngine's action for options of the form KEY=VALUE, with an error for others."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        try:
            super().__call__(parser, namespace, values, option_string)
        except RecursionError:  # how it fails on dicts and sets
            raise argparse.ArgumentError(
                self,
                f'takes no dict, but KEY.a=1 KEY.b=2 ..., got {" ".join(values)!r}',
            ) from None
        except (AssertionError, IndexError, ValueError):  # how it fails on others
            raise argparse.ArgumentError(
                self, f'must be KEY=VALUE ..., got {" ".join(values)!r}'
            ) from None


def read_config(config: str, cfg_options: Mapping | None = None) -> Config:
    """Read the config of a model.

    Args:
        config: Path of a config, or an installed one, as in 'mmdet::FOLDER/NAME.py'.
        cfg_options: Changes to it, as of MMDetection's programs.

    Raises:
        ValueError: If that fails, or it describes no model.
    """
    config = str(config)
    try:
        if '::' in config:  # which MMEngine knows as a base
            cfg = Config.fromstring(f'_base_ = {config!r}', '.py')
        else:
            cfg = Config.fromfile(config)
        cfg.merge_from_dict(dict(cfg_options or {}))
    except Exception as e:  # a config is Python, and may raise anything
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


def build_model(config: str, cfg: Config) -> nn.Module:
    """Build the model of a config, with random weights.

    Args:
        config: Its name, for the message.
        cfg: The config.

    Raises:
        ValueError: If that fails.
    """
    init_default_scope(cfg.get('default_scope') or 'mmdet')
    try:
        return MODELS.build(cfg.model)
    except Exception as e:  # whatever a model raises
        raise ValueError(f'{config} cannot be built: {describe(e)}') from e


def describe(error: Exception) -> str:
    return shorten(f'{type(error).__name__}: {error}', 400)
