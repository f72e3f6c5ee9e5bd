"""Compare configs by the speed and memory of their training steps, on one device.

Table 1 of the PWS paper gives the images per second that each normalization
trains. A step here is preprocessing, forward, backward and optimizer step, as
the config sets them, on random images with random objects: no data set is
needed, and loading data is not part of it. The configs take a step in each round,
in an order that is drawn anew (A B B A ...), so that what else happens on the
machine hits all alike. Name a config twice to see how far apart equal ones come out.

  images/s    of the median step
  ratio       images/s over those of the first config: median over the rounds
  peak MiB    the most that tensors take at once while this config trains: its
              weights, buffers and optimizer state, and what a step adds to them.
              The other configs do not count, nor does what PyTorch's allocators
              do not see or only keep in reserve, such as the CUDA context,
              workspaces of libraries and cached blocks.

With --watched every config takes its steps a second time, with VarianceMonitorHook
watching each of them; at its default interval it watches one of 50. With --inference a
step is the forward pass of a test, without post-processing, and
PWS convolutions are plain ones, as in tools/test.py.

Weights start at random, without what init_cfg of type Pretrained would load, and
the learning rate is 0, so that no step finds more to do than another.
"""

import argparse
import contextlib
import json
import math
import os
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
from timing import take_turns

from pws_mmdet.utils.config import ConfigOptions, read_config, type_name
from pws_mmdet.utils.files import write_whole

MIB = 2**20
THREADS_PER_CORE = 16  # of some 10,000 PyTorch's library crashes


def measure(
    detectors: Sequence[Detector], steps: int, warmup: int, *args
) -> list[dict[str, Any]]:
    """Let all take their steps in turn; return a row of results for each.

    Args:
        detectors: The configs. An error of one ends only its own steps.
        steps: Number of measured steps.
        warmup: Number of steps before them.
        *args: As of Detector.build.
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
    """Return a row of results; those that an error prevents are NaN."""
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


def load(path: str, options: dict, *args, **kwargs) -> Detector:
    """Read a config.

    Raises:
        ValueError: If that fails, if it lacks what no argument gives, or if it is
            no detector's.
    """
    cfg = read_config(path, options)
    if type_name(cfg.model).endswith('Classifier'):
        raise ValueError(
            f'{path} is a classifier, and train_speed.py makes images for detectors'
        )
    if not isinstance(cfg.get('train_dataloader', {}), dict):
        raise ValueError(f'{path}: train_dataloader must be a dict')
    return Detector(path, cfg, *args, **kwargs)


def positive_integer(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('configs', nargs='+', metavar='CONFIG', help='config file')
    for option, default, text in [
        ('--batch-size', None, "images in a step (default: the config's)"),
        ('--steps', 30, 'measured steps (default: 30)'),
        ('--warmup', 5, 'steps before the measured ones (default: 5)'),
        ('--num-boxes', 7, 'objects in a image (default: 7, as in COCO)'),
        ('--threads', None, "threads on the CPU (default: PyTorch's)"),
    ]:
        parser.add_argument(option, type=positive_integer, default=default, help=text)
    parser.add_argument(
        '--image-size',
        type=positive_integer,
        nargs=2,
        metavar=('H', 'W'),
        help='height and width of the images in pixels (default: the scale of '
        "Resize in the config's training pipeline)",
    )
    parser.add_argument(
        '--device',
        default='cuda' if torch.cuda.is_available() else 'cpu',
        help='cpu, cuda or cuda:N (default: cuda if there is a GPU)',
    )
    parser.add_argument(
        '--amp', action='store_true', help='train in mixed precision; GPU only'
    )
    parser.add_argument(
        '--seed', type=int, default=0, help='seed of weights and images (default: 0)'
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        '--inference', action='store_true', help='compare forward passes of a test'
    )
    what.add_argument(
        '--watched',
        action='store_true',
        help='also train with VarianceMonitorHook at every step',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=ConfigOptions,
        default={},
        metavar='KEY=VALUE',
        help='settings to change in all configs',
    )
    parser.add_argument(
        '--out', type=Path, metavar='FILE', help='JSON file for all that is measured'
    )
    return parser


def main() -> None:
    parser = make_parser()
    args = parser.parse_args()
    MMLogger.get_instance('train_speed', log_level='WARNING')
    most = THREADS_PER_CORE * (os.cpu_count() or 1)
    if args.threads is not None and args.threads > most:
        parser.error(f'--threads must be at most {most} on this machine')
    try:
        device = check_device(args.device, args.amp)
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
                args.out.stat()  # fails if nothing can be there
            args.out.parent.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as e:
        parser.error(str(e))
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    report = dict(
        command=shlex.join(sys.argv),
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
    print()
    print(format_table(rows))
    if args.out is not None:
        report['results'] = [
            {k: None if v != v else v for k, v in row.items()}
            for row in rows  # NaN
        ]
        text = json.dumps(report, indent=2, allow_nan=False)
        write_whole(args.out, lambda p: p.write_text(text + '\n', encoding='utf-8'))
    if all(row['error'] for row in rows):
        sys.exit(1)


if __name__ == '__main__':
    main()
