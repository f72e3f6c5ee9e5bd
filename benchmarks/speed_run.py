"""Run speed.py's measurements, write their records and make their tables."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from comparison import Plan, measure
from device import check_device, describe_machine
from mmengine.logging import MMLogger
from speed_page import read_measurements, to_markdown

from pws_mmdet.utils.files import put_in_page
from pws_mmdet.utils.records import put_record


def run(args: argparse.Namespace, argv: Sequence[str]) -> None:
    """Measure or read, and write or print the tables.

    Args:
        args: The options of speed.py.
        argv: Its command line, for the records.

    Raises:
        ValueError: If an option is wrong.
        OSError: If a file cannot be read or written, or --out exists.
    """
    MMLogger.get_instance('speed', log_level='WARNING')
    if args.read:
        records = read_measurements(args.read)
    else:
        records = measure_all(args, argv)
    tables = to_markdown(records, args.table)
    if args.markdown:
        name = (args.read or args.out or Path('speed')).stem
        name = f'{name}: {args.table}' if args.table else name
        put_in_page(args.markdown, name, tables)
    else:
        print(tables, end='')


def measure_all(args: argparse.Namespace, argv: Sequence[str]) -> list[dict[str, Any]]:
    """Measure what the options say; write each record as soon as it is measured."""
    device = check_device(args.device, args.amp)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    options = {**vars(args), 'device': device}
    plan = Plan(**{field.name: options[field.name] for field in fields(Plan)})
    if args.out and args.out.exists():
        raise FileExistsError(f'{args.out} exists; name a new file')
    common = dict(
        command=shlex.join(['python', *argv]),
        **describe_machine(device),
        amp=plan.amp,
        channels_last=plan.channels_last,
        seed=plan.seed,
        warmup=plan.warmup,
        seconds=plan.seconds,
    )
    records = []
    for measured in measure(plan):
        records.append({**common, **measured})
        print(summary(measured), file=sys.stderr)
        if args.out:
            put_record(args.out, records[-1])
    if not records:
        raise ValueError('nothing to measure: name --parts, --floors or --profiles')
    return records


def summary(record: dict[str, Any]) -> str:
    """Return a line for the console."""
    if record['what'] != 'comparison':
        return f'{record["part"]}, {record["what"]}'
    mode = 'inference' if record['inference'] else 'training'
    times = ', '.join(
        f'{kind} {row["time"]:.3f}' if 'time' in row else f'{kind} -'
        for kind, row in record['kinds'].items()
    )
    batch = f'{record["batch_size"]} x {record["image_size"]}'
    return f'{record["part"]}, {mode}, {batch}: {times}'
