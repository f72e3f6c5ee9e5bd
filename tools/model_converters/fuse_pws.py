"""Turn a trained PWS detector into one of plain convolutions.

OUT_DIR holds a config and a checkpoint, named as CONFIG is, for MMDetection's test
program, init_detector and DetInferencer. The detector computes the same. Where
MMDetection has all its parts, pws_mmdet is not needed to load it; otherwise the
config's first line says so.
"""

import argparse
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from mmdet.registry import DATASETS
from mmengine.config import Config

from pws_mmdet.checkpoint.read import read_checkpoint
from pws_mmdet.convert import fuse_detector
from pws_mmdet.utils.config import ConfigOptions, read_config
from pws_mmdet.utils.files import check_new_path

STOCK = '# Plain convolutions, made by fuse_pws.py. MMDetection alone loads it.\n'
NOT_STOCK = (
    '# Needs pws_mmdet to be installed: MMDetection has no such network. Its\n'
    '# convolutions are plain, made by fuse_pws.py.\n'
)


def convert(
    config: str | Path,
    checkpoint: str | Path,
    out_dir: str | Path,
    cfg_options: Mapping | None = None,
) -> tuple[Path, Path]:
    """Write the config and the checkpoint of the detector with plain convolutions.

    Where the training had an EMAHook, MMEngine's ``state_dict`` holds the averaged
    weights: they are the ones that are converted.

    Args:
        config: The config of the training. Pretrained weights that it names are not
            read.
        checkpoint: What the training wrote.
        out_dir: A folder that does not exist, or is empty.
        cfg_options: Changes to the config, as of MMDetection's programs.

    Returns:
        The paths of the two files.

    Raises:
        FileExistsError: If there is something else at ``out_dir``.
        FileNotFoundError: If there is no such config or checkpoint.
        OSError: If ``out_dir`` cannot be made.
        RuntimeError: If the checkpoint is damaged or holds more than data, or the
            network makes PWS convolutions that its config does not name.
        ValueError: If the detector has no PWS convolution, or the checkpoint does
            not fit the config or holds values that are not finite, or neither
            names classes.
    """
    out_dir = Path(out_dir).expanduser().absolute()
    if not os.path.lexists(out_dir):
        check_new_path(out_dir, '')
    elif out_dir.is_symlink() or not out_dir.is_dir() or any(out_dir.iterdir()):
        raise FileExistsError(
            f'{out_dir} exists and is not an empty folder: choose another name'
        )
    cfg = read_config(config, cfg_options)
    weights, meta = read_checkpoint(checkpoint)
    if meta is None and not has_test_set(cfg):
        raise ValueError(
            f'{checkpoint} does not name the classes (dataset_meta), and {config} has '
            'no test_dataloader with a dataset that does'
        )
    try:
        plain_cfg, plain = fuse_detector(cfg, weights)
    except ValueError as e:
        raise ValueError(f'{checkpoint} with {config}: {e}') from None

    text = plain_cfg.pretty_text
    imports = plain_cfg.get('custom_imports', {}).get('imports', [])
    header = NOT_STOCK if 'pws_mmdet' in imports else STOCK
    if meta is None:
        dataset = {**plain_cfg.test_dataloader.dataset, 'lazy_init': True}
        meta = DATASETS.build(dataset).metainfo
    names = f'{Path(config).stem}.py', f'{Path(config).stem}.pth'
    part = out_dir.with_name(f'.{out_dir.name}.{os.getpid()}')
    part.mkdir(parents=True)
    try:
        (part / names[0]).write_text(header + text)
        torch.save(
            dict(state_dict=plain.state_dict(), meta=dict(dataset_meta=meta)),
            part / names[1],
        )
        part.replace(out_dir)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return out_dir / names[0], out_dir / names[1]


def has_test_set(cfg: Config) -> bool:
    loader = cfg.get('test_dataloader')
    return isinstance(loader, Mapping) and isinstance(loader.get('dataset'), Mapping)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='of the training')
    parser.add_argument('checkpoint', help='such as work_dirs/NAME/epoch_12.pth')
    parser.add_argument('out_dir', help='a new folder for the two files')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=ConfigOptions,
        help='changes to the config, KEY=VALUE ..., such as those of the training',
    )
    args = parser.parse_args()
    try:
        config, checkpoint = convert(
            args.config, args.checkpoint, args.out_dir, args.cfg_options
        )
    except (OSError, RuntimeError, ValueError) as error:
        parser.error(str(error))
    print(f'config:     {config}\ncheckpoint: {checkpoint}')


if __name__ == '__main__':
    main()
