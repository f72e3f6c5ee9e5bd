"""Run conversion_mmdet.py's measurements, write their records and make their table."""

import argparse
import contextlib
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from conversion import METRICS, Laboratory, convert
from device import describe_machine
from mmengine.config import Config
from torch import nn

from pws_mmdet.checkpoint.read import read_checkpoint
from pws_mmdet.checkpoint.weights import load_strictly
from pws_mmdet.utils.config import build_model, dict_at, read_config
from pws_mmdet.utils.files import put_in_page
from pws_mmdet.utils.records import put_record


def run(args: argparse.Namespace, argv: Sequence[str]) -> None:
    """Measure, and write or print the table.

    Args:
        args: The options of conversion_mmdet.py.
        argv: Its command line, for the records.

    Raises:
        ImportError, RuntimeError, ValueError: If an option is wrong.
        OSError: If a file cannot be read or written, or OUT exists.
    """
    if args.out.exists():
        raise FileExistsError(f'{args.out} exists; name a new file')
    with contextlib.redirect_stdout(sys.stderr):  # MMEngine prints messages
        records = measure(args, shlex.join(['python', *argv]))
    if args.markdown:
        put_in_page(args.markdown, args.out.stem, to_markdown(records))
    else:
        print(to_markdown(records), end='')


def measure(args: argparse.Namespace, command: str) -> list[dict[str, Any]]:
    """Measure all cases, and write the record of each as soon as it is measured."""
    cfg = read_config(args.config, args.cfg_options)
    bn_cfg = read_config(args.bn_config, args.cfg_options)
    for name, one in ((args.config, cfg), (args.bn_config, bn_cfg)):
        for loop in ('train', 'test'):
            data = dict_at(one, f'{loop}_dataloader', 'dataset')
            if 'pipeline' not in (data or {}):
                raise ValueError(f'{name} has no data with a pipeline to {loop} on')
    model = load_model(args.bn_config, bn_cfg, args.checkpoint)
    common = dict(
        command=command,
        **describe_machine(torch.device('cpu')),
        config=args.config,
        epochs=args.epochs,
        seeds=args.seeds,
    )
    records = []
    with tempfile.TemporaryDirectory() as folder:
        laboratory = Laboratory(cfg, bn_cfg, Path(folder))
        for kind in args.kinds:
            has_bn = kind == 'BN'
            start = time.perf_counter()
            converted = convert(kind, model)
            seconds = time.perf_counter() - start
            row = dict(
                kind=kind,
                seconds=round(seconds, 1),
                converted=laboratory.test(converted, has_bn),
                trained={
                    str(lr): [
                        laboratory.train(converted, has_bn, lr, args.epochs, seed)
                        for seed in args.seeds
                    ]
                    for lr in args.lrs
                },
            )
            records.append({**common, **row})
            put_record(args.out, records[-1])
            print(row, file=sys.stderr)
    return records


def load_model(name: str, cfg: Config, checkpoint: str) -> nn.Module:
    """Build a network and load its weights, all of them.

    Raises:
        ValueError: If the checkpoint is that of another network.
    """
    model = build_model(name, cfg)
    try:
        load_strictly(model, read_checkpoint(checkpoint).weights)
    except ValueError as e:
        raise ValueError(f'{checkpoint} does not fit {name}: {e}') from None
    return model.eval()


def to_markdown(records: Sequence[dict[str, Any]]) -> str:
    """Return the table of records, and how they were measured."""
    first = records[0]
    epochs = first['epochs']
    after = f'{epochs} epoch{"s" if epochs > 1 else ""} at'
    head = ['', 'converted', *(f'{after} {float(lr):g}' for lr in first['trained'])]
    lines = [f'| {" | ".join(head)} |', '|---' * len(head) + '|']
    for r in records:
        results = [[r['converted']], *r['trained'].values()]
        cells = [', '.join(map(format_metrics, metrics)) for metrics in results]
        lines.append(f'| {r["kind"]} | {" | ".join(cells)} |')
    names = ', '.join(METRICS[key][0] for key in first['converted'])
    threads = first['threads']
    threads = f'{threads} thread' + 's' * (threads > 1)
    versions = ', '.join(f'{k} {v}' for k, v in first['versions'].items())
    seeds = ', '.join(map(str, first['seeds']))
    return '\n'.join(
        [
            f'**{Path(first["config"]).stem}: {names}**',
            '',
            *lines,
            '',
            f'* `{first["command"]}`',
            f'* {first["cpu"]}, {threads}; seeds {seeds}; {first["date"][:10]}.',
            f'* Versions: {versions}.',
            '',
        ]
    )


def format_metrics(metrics: dict[str, float] | None) -> str:
    """Return the figures of a test; None is a training that diverged."""
    if metrics is None:
        return 'diverged'
    return ' / '.join(f'{value:.1f}' for value in metrics.values())
