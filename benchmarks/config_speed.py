"""Compare configs by the speed and memory of their steps."""

import argparse
import contextlib
import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detector import Detector
from device import check_device, describe_machine
from mmengine.logging import MMLogger
from mmengine.utils import track_iter_progress
from rounding import round_numbers
from timing import take_turns

from pws_mmdet.utils.config import read_config, type_name
from pws_mmdet.utils.records import put_record

MIB = 2**20


def prepare(args: argparse.Namespace) -> list[Detector]:
    """Check the options of train_speed.py and read its configs.

    Raises:
        ValueError: If an option or a config is wrong.
        OSError: If a file cannot be read, or --out cannot be written.
    """
    MMLogger.get_instance('train_speed', log_level='WARNING')
    check_device(args.device, args.amp)
    detectors = [
        load(
            path,
            args.cfg_options,
            args.batch_size,
            args.image_size,
            args.inference,
            watched=watched,
        )
        for path in args.configs
        for watched in ([False, True] if args.watched else [False])
    ]
    if args.out is not None:
        if args.out.is_dir():
            raise IsADirectoryError(f'{args.out} is a directory')
        with contextlib.suppress(FileNotFoundError):
            args.out.stat()  # fails if the path is impossible
        args.out.parent.mkdir(parents=True, exist_ok=True)
    return detectors


def load(path: str, options: dict, *args, **kwargs) -> Detector:
    """Read the config of a detector.

    Raises:
        ValueError: If it cannot be read, if it lacks a size that no argument gives, or
            if it is not the config of a detector.
    """
    cfg = read_config(path, options)
    if type_name(cfg.model).endswith('Classifier'):
        raise ValueError(
            f'{path} is a classifier, and train_speed.py makes images for detectors'
        )
    if not isinstance(cfg.get('train_dataloader', {}), dict):
        raise ValueError(f'{path}: train_dataloader must be a dict')
    return Detector(path, cfg, *args, **kwargs)


def run(
    args: argparse.Namespace, detectors: Sequence[Detector], argv: Sequence[str]
) -> list[dict[str, Any]]:
    """Measure the detectors, and add a record to the file of --out.

    Args:
        args: The options of train_speed.py.
        detectors: What ``prepare`` returns.
        argv: The command line, for the record.

    Returns:
        A row of figures for each detector.
    """
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    record = dict(
        command=shlex.join(argv),
        **describe_machine(device),
        amp=args.amp,
        inference=args.inference,
        seed=args.seed,
        warmup=args.warmup,
        steps=args.steps,
        num_boxes=args.num_boxes,
        cfg_options=args.cfg_options,
    )
    rows = measure(
        detectors, args.steps, args.warmup, device, args.num_boxes, args.amp, args.seed
    )
    if args.out is not None:
        put_record(args.out, round_numbers(dict(record, results=rows)))
    return rows


def measure(
    detectors: Sequence[Detector], steps: int, warmup: int, *args
) -> list[dict[str, Any]]:
    """Let all detectors take their steps in turn; return a row of figures for each.

    Args:
        detectors: The detectors. If one fails, the others continue.
        steps: Number of measured steps.
        warmup: Number of steps before them.
        *args: Arguments of ``Detector.build``.
    """
    for detector in detectors:
        detector.attempt(detector.build, *args)
    rounds = track_iter_progress(range(warmup + steps), file=sys.stderr)
    for _ in take_turns(detectors, rounds, warmup):
        pass
    for detector in detectors:
        detector.peak_memory = detector.attempt(detector.measure_memory)
    return [summarize(detector, detectors[0]) for detector in detectors]


def summarize(detector: Detector, first: Detector) -> dict[str, Any]:
    """Return a row of figures. After an error they are NaN."""
    failed = detector.error is not None
    return dict(
        config=detector.name,
        watched=detector.watched,
        batch_size=detector.batch_size,
        image_size=list(detector.image_size),
        images_per_second=detector.images_per_second(),
        ratio=detector.ratio(first),
        peak_memory_mib=math.nan if failed else detector.peak_memory / MIB,
        seconds=detector.seconds,
        error=detector.error,
    )


def format_table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as a table for the console."""
    names = [Path(r['config']).stem + ', watched' * r['watched'] for r in rows]
    width = max(len('config'), *map(len, names))
    head = f'{"config":{width}}  batch       size  images/s   ratio  peak MiB'
    lines = [head, '-' * len(head)]
    for name, row in zip(names, rows, strict=True):
        size = 'x'.join(map(str, row['image_size']))
        line = (
            f'{name:{width}}  {row["batch_size"]:5}  {size:>9}  '
            f'{row["images_per_second"]:8.2f}  {row["ratio"]:6.3f}  '
            f'{row["peak_memory_mib"]:8.1f}'
        )
        lines.append(f'{line}  {row["error"]}' if row['error'] else line)
    return '\n'.join(lines)
