"""Measure what the conversion of a trained network with BN to PWS loses.

CONFIG is the norm-free network's, BN_CONFIG that of the same network with BN, and
CHECKPOINT its weights. The network is tested, converted in several ways and tested
again, and each of the results trained shortly, at a constant learning rate, and
tested once more, as is the network with BN.

  BN              as it is
  mean            every filter just loses its mean
  no-data-plain   without data: BN's statistics tell what that changes
  no-data         the same, after scaling the channels
  no-data-stem    the same, but the first convolution stays plain, with BN in it
  local           each layer alone is fitted to the outputs of its own filters
  fit-plain       each to the outputs of the original network
  fit             the same, after scaling the channels: what bn_to_pws.py does
  stem            the same, but the first convolution stays plain, with BN in it
  sweeps          the same, and all layers are fitted twice
"""

import argparse
import contextlib
import copy
import json
import re
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from device import describe_machine
from mmengine.config import Config
from torch import nn

import pws_mmdet
from pws_mmdet.checkpoint.read import read_checkpoint
from pws_mmdet.checkpoint.weights import load_strictly
from pws_mmdet.checkpoint.write import write_checkpoint
from pws_mmdet.convert import fold_batch_norm
from pws_mmdet.convert.images import dict_at, find_images, load_images
from pws_mmdet.engine import DivergenceError, PWSRunner
from pws_mmdet.utils.arguments import positive
from pws_mmdet.utils.config import ConfigOptions, build_model, read_config
from pws_mmdet.utils.files import put_in_page, write_whole

WITHOUT_DATA = {
    'no-data-plain': dict(max_scale=1.0),
    'no-data': {},
    'no-data-stem': {},
}
FITS = {
    'local': dict(max_scale=1.0, unaligned=('',)),
    'fit-plain': dict(max_scale=1.0),
    'fit': {},
    'stem': {},
    'sweeps': dict(sweeps=2),
}
KEEP_STEM = ('no-data-stem', 'stem', 'sweeps')
LEVELS = ['BN', 'mean', *WITHOUT_DATA, *FITS]
METRICS = {
    'coco/bbox_mAP': ('box AP', 100),
    'coco/segm_mAP': ('mask AP', 100),
    'accuracy/top1': ('accuracy', 1),
}


def drop_means(model: nn.Module) -> nn.Module:
    """Take their means from all filters, BN's factors in them."""
    plain, layers = fold_batch_norm(model)
    for layer in layers:
        weight = plain.get_submodule(layer.name).weight
        weight.data -= weight.data.mean((1, 2, 3), keepdim=True)
    # which takes nothing more from them
    return pws_mmdet.convert_to_pws(plain, max_scale=1.0, progress=False)[0]


def convert(level: str, model: nn.Module, batches: Sequence[Any]) -> nn.Module:
    """Convert a network in one of the ways.

    Args:
        level: The way.
        model: The network with BN.
        batches: Of images; those without data use none.
    """
    if level == 'BN':
        return model
    if level == 'mean':
        return drop_means(model)
    options: dict[str, Any] = dict({**WITHOUT_DATA, **FITS}[level], progress=False)
    data = batches if level in FITS else None
    if level in KEEP_STEM:
        first = fold_batch_norm(model)[1][0].name
        options['exclude'] = (f'^{re.escape(first)}$',)
    return pws_mmdet.convert_to_pws(model, data, **options)[0]


class Laboratory:
    """Tests and trains networks of one architecture.

    Args:
        config: The norm-free network's.
        bn_config: That of the network with BN.
        folder: For what programs write.
    """

    def __init__(self, config: Config, bn_config: Config, folder: Path) -> None:
        self.configs = {False: config, True: bn_config}
        self.folder = folder
        self.runs = 0

    def make_runner(self, model: nn.Module, has_bn: bool, changes: dict) -> PWSRunner:
        """A runner for a copy of a network."""
        self.runs += 1
        cfg = copy.deepcopy(self.configs[has_bn])
        path = self.folder / f'{self.runs}.pth'
        write_checkpoint(dict(state_dict=model.state_dict()), path)
        cfg.merge_from_dict(
            {
                'work_dir': str(self.folder / str(self.runs)),
                'experiment_name': f'{self.folder.name}-{self.runs}',
                'load_from': str(path),  # and not what initializes it
                'log_level': 'ERROR',
                'launcher': 'none',
                **changes,
            }
        )

        class Runner(PWSRunner):
            def build_model(self, _: Any) -> nn.Module:
                return copy.deepcopy(model)

        return Runner.from_cfg(cfg)

    def test(self, model: nn.Module, has_bn: bool) -> dict[str, float]:
        return known(self.make_runner(model, has_bn, {}).test())

    def train(
        self, model: nn.Module, has_bn: bool, lr: float, epochs: int, seed: int
    ) -> dict[str, float] | None:
        """Train a network, and test it; None if it diverges."""
        changes = {
            'randomness.seed': seed,
            'optim_wrapper.optimizer.lr': lr,
            'param_scheduler': [],
            'train_cfg.max_epochs': epochs,
            'train_cfg.val_begin': epochs + 1,
            'default_hooks.checkpoint': None,
        }
        runner = self.make_runner(model, has_bn, changes)
        try:
            runner.train()
        except DivergenceError:
            return None
        return known(runner.test())


def known(metrics: dict[str, Any]) -> dict[str, float]:
    return {
        key: float(value) * METRICS[key][1]
        for key, value in metrics.items()
        if key in METRICS
    }


def cases(
    levels: Sequence[str], numbers: Sequence[int], seeds: Sequence[int]
) -> Iterator[tuple[str, int | None, int]]:
    """Levels, numbers of images, and the seeds of their choice and of trainings."""
    for level in levels:
        fits = level in FITS
        # one number is enough to compare ways
        more = level in ('fit', 'stem')
        chosen = numbers if more else numbers[:1] if fits else [None]
        for number in chosen:
            for seed in seeds:
                yield level, number, seed


def measure(args: argparse.Namespace, save: Callable[[dict], None]) -> dict[str, Any]:
    """Measure all cases, and save the record after each."""
    cfg = read_config(args.config, args.cfg_options)
    bn_cfg = read_config(args.bn_config, args.cfg_options)
    for name, one in ((args.config, cfg), (args.bn_config, bn_cfg)):
        for loop in ('train', 'test'):
            data = dict_at(one, f'{loop}_dataloader', 'dataset')
            if 'pipeline' not in (data or {}):
                raise ValueError(f'{name} has no data with a pipeline to {loop} on')
    find_images(args.calibrate, max(args.num_images), 0)
    model = build_model(args.bn_config, bn_cfg)
    weights = read_checkpoint(args.checkpoint).weights
    try:
        load_strictly(model, weights)
    except ValueError as e:
        raise ValueError(
            f'{args.checkpoint} does not fit {args.bn_config}: {e}'
        ) from None
    model.eval()
    record: dict[str, Any] = dict(
        command=shlex.join(['python', *sys.argv]),
        **describe_machine(torch.device('cpu')),
        config=args.config,
        epochs=args.epochs,
        lrs=args.lrs,
        rows=[],
    )
    with tempfile.TemporaryDirectory() as folder:
        laboratory = Laboratory(cfg, bn_cfg, Path(folder))
        for level, number, seed in cases(args.levels, args.num_images, args.seeds):
            has_bn = level == 'BN'
            batches = []
            if number is not None:
                paths = find_images(args.calibrate, number, seed)
                batches = load_images(cfg, paths, args.batch_size)
            start = time.perf_counter()
            converted = convert(level, model, batches)
            seconds = time.perf_counter() - start
            row = dict(
                level=level,
                images=number,
                seed=seed,
                seconds=round(seconds, 1),
                converted=laboratory.test(converted, has_bn),
                trained=[
                    laboratory.train(converted, has_bn, lr, args.epochs, seed)
                    for lr in args.lrs
                ],
            )
            record['rows'].append(row)
            save(record)
            print(row, file=sys.stderr)
    return record


def to_markdown(record: dict[str, Any]) -> str:
    """The table of a record, and what it is of."""
    rows = record['rows']
    epochs = record['epochs']
    after = f'{epochs} epoch{"s" if epochs > 1 else ""} at'
    head = ['', 'images', 'converted', *(f'{after} {lr:g}' for lr in record['lrs'])]
    lines = [f'| {" | ".join(head)} |', '|---' * len(head) + '|']
    for level, number in dict.fromkeys((r['level'], r['images']) for r in rows):
        same = [r for r in rows if (r['level'], r['images']) == (level, number)]
        columns = [[r['converted'] for r in same]]
        if level == 'BN':
            columns = [columns[0][:1]]  # which no seed changes
        columns += [[r['trained'][i] for r in same] for i in range(len(record['lrs']))]
        cells = [', '.join(map(format_metrics, column)) for column in columns]
        lines.append(f'| {level} | {number or ""} | {" | ".join(cells)} |')
    names = ', '.join(METRICS[key][0] for key in rows[0]['converted']) if rows else ''
    threads = record['threads']
    threads = f'{threads} thread' + 's' * (threads > 1)
    versions = ', '.join(f'{k} {v}' for k, v in record['versions'].items())
    seeds = ', '.join(dict.fromkeys(str(r['seed']) for r in rows))
    return '\n'.join(
        [
            f'**{Path(record["config"]).stem}: {names}**',
            '',
            *lines,
            '',
            f'* `{record["command"]}`',
            f'* {record["cpu"]}, {threads}; seeds {seeds}; {record["date"][:10]}.',
            f'* Versions: {versions}.',
            '',
        ]
    )


def format_metrics(metrics: dict[str, float] | None) -> str:
    if metrics is None:
        return 'diverged'
    return ' / '.join(f'{value:.1f}' for value in metrics.values())


def write(record: dict[str, Any], path: Path) -> None:
    text = json.dumps(record, indent=1) + '\n'
    write_whole(path, lambda part: part.write_text(text, encoding='utf-8'))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    whole = positive(int)
    parser.add_argument('config', help='of the network with PWS')
    parser.add_argument('bn_config', help='of the network with BN')
    parser.add_argument('checkpoint', help='of the network with BN')
    parser.add_argument('out', type=Path, help='JSON file to write')
    parser.add_argument('--calibrate', required=True, metavar='FOLDER_OR_CONFIG')
    parser.add_argument('--num-images', nargs='+', type=whole, default=[64, 256])
    parser.add_argument('--batch-size', type=whole, default=4, help='of the fits')
    parser.add_argument('--levels', nargs='+', choices=LEVELS, default=LEVELS)
    parser.add_argument(
        '--seeds',
        nargs='+',
        type=int,
        default=[0],
        help='of the choice of images and of the trainings',
    )
    parser.add_argument('--epochs', type=whole, default=1, help='of each training')
    parser.add_argument('--lrs', nargs='+', type=positive(float), default=[1e-4, 1e-3])
    parser.add_argument(
        '--markdown',
        type=Path,
        help='new page, or one with a place marked by the name of OUT; else the table '
        'is printed',
    )
    parser.add_argument('--cfg-options', nargs='+', action=ConfigOptions, metavar='K=V')
    args = parser.parse_args()
    try:
        if args.out.exists():
            raise FileExistsError(f'{args.out} exists; name a new file')
        with contextlib.redirect_stdout(sys.stderr):  # MMEngine's messages
            record = measure(args, lambda record: write(record, args.out))
        if args.markdown:
            put_in_page(args.markdown, args.out.stem, to_markdown(record))
        else:
            print(to_markdown(record), end='')
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        parser.error(str(error))


if __name__ == '__main__':
    main()
