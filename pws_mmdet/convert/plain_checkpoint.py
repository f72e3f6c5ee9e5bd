"""Write a trained detector as a config and a checkpoint of plain convolutions."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmdet.registry import DATASETS
from mmengine.config import Config

from ..checkpoint import read_checkpoint
from ..utils.config import read_config
from ..utils.files import check_new_path
from .plain_detector import fuse_detector

STOCK = '# Plain convolutions, made by pws-fuse. MMDetection alone loads it.\n'
NOT_STOCK = (
    '# Needs pws_mmdet to be installed: MMDetection has no such network. Its\n'
    '# convolutions are plain, made by pws-fuse.\n'
)


def fuse_checkpoint(
    config: str | Path,
    checkpoint: str | Path,
    out_dir: str | Path,
    cfg_options: Mapping | None = None,
) -> tuple[Path, Path]:
    """Write the config and the checkpoint of a detector with plain convolutions.

    The files are named as ``config`` is. If the training had an EMAHook, the
    ``state_dict`` of a checkpoint of MMEngine holds the averaged weights, and these are
    written.

    Args:
        config: The config of the training. Pretrained weights that it names are not
            read.
        checkpoint: The checkpoint of the training.
        out_dir: A folder that does not exist, or is empty.
        cfg_options: Changes to the config, as in MMDetection's programs.

    Returns:
        The paths of the config and of the checkpoint.

    Raises:
        FileExistsError: If ``out_dir`` exists and is not an empty folder.
        FileNotFoundError: If there is no such config or checkpoint.
        OSError: If ``out_dir`` cannot be made.
        RuntimeError: If the checkpoint is damaged or holds more than data, or the
            network makes PWS convolutions that its config does not name.
        ValueError: If the detector has no PWS convolution, the checkpoint does not fit
            the config or is not finite, or neither of them names the classes.
    """
    out_dir = _check_new_folder(out_dir)
    cfg = read_config(config, cfg_options)
    weights, meta = read_checkpoint(checkpoint)
    if meta is None and not _has_test_set(cfg):
        raise ValueError(
            f'{checkpoint} does not name the classes (dataset_meta), and {config} has '
            'no test_dataloader with a dataset that does'
        )
    try:
        plain_cfg, plain = fuse_detector(cfg, weights)
    except ValueError as e:
        raise ValueError(f'{checkpoint} with {config}: {e}') from None

    imports = plain_cfg.get('custom_imports', {}).get('imports', [])
    text = (NOT_STOCK if 'pws_mmdet' in imports else STOCK) + plain_cfg.pretty_text
    if meta is None:
        dataset = {**plain_cfg.test_dataloader.dataset, 'lazy_init': True}
        meta = DATASETS.build(dataset).metainfo
    content = dict(state_dict=plain.state_dict(), meta=dict(dataset_meta=meta))
    return _write(out_dir, Path(config).stem, text, content)


def _check_new_folder(out_dir: str | Path) -> Path:
    out_dir = Path(out_dir).expanduser().absolute()
    if not os.path.lexists(out_dir):
        return check_new_path(out_dir)
    if out_dir.is_symlink() or not out_dir.is_dir() or any(out_dir.iterdir()):
        raise FileExistsError(
            f'{out_dir} exists and is not an empty folder: choose another name'
        )
    return out_dir


def _has_test_set(cfg: Config) -> bool:
    loader = cfg.get('test_dataloader')
    return isinstance(loader, Mapping) and isinstance(loader.get('dataset'), Mapping)


def _write(
    out_dir: Path, name: str, config: str, content: dict[str, Any]
) -> tuple[Path, Path]:
    """Write both files to a new folder, and rename it when they are whole."""
    part = out_dir.with_name(f'.{out_dir.name}.{os.getpid()}')
    part.mkdir(parents=True)
    try:
        (part / f'{name}.py').write_text(config)
        torch.save(content, part / f'{name}.pth')
        part.replace(out_dir)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return out_dir / f'{name}.py', out_dir / f'{name}.pth'
