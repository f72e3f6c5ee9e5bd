"""Convert networks that were trained elsewhere, and measure what it changes."""

import argparse
import contextlib
import json
import shlex
import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from conversion_images import open_images
from conversion_networks import load_network
from conversion_real_page import plot, to_markdown
from conversion_training import train
from device import describe_machine
from torch import Tensor, nn

import pws_mmdet
from pws_mmdet.convert import fold_batch_norm
from pws_mmdet.utils.files import put_in_page
from pws_mmdet.utils.records import put_record, read_records

# What a record has to differ in, so that it does not replace another one.
KEY = ('network', 'steps')
PARTS = 20  # of a training: the record holds the mean loss of each


def run(args: argparse.Namespace, argv: Sequence[str]) -> None:
    """Measure, and write or print the tables.

    Args:
        args: The options of conversion_real.py.
        argv: Its command line, for the records.

    Raises:
        ImportError: If a package with a network is not installed.
        OSError: If a file cannot be read or written.
        RuntimeError, ValueError: If an option is wrong.
    """
    command = shlex.join(['python', *argv])
    with contextlib.redirect_stdout(sys.stderr):  # MMEngine prints messages
        record = measure(args, command)
    put_record(args.out, record, replaces=partial(is_same, record=record))
    records = read_records(args.out)
    if args.plot:
        plot(records, args.plot)
    if args.markdown:
        put_in_page(args.markdown, args.out.stem, to_markdown(records))
    else:
        print(to_markdown(records), end='')


def is_same(line: str, record: dict[str, Any]) -> bool:
    """Tell whether a line of the records measures the same case as a record."""
    old = json.loads(line)
    return all(old.get(key) == record[key] for key in KEY)


def measure(args: argparse.Namespace, command: str) -> dict[str, Any]:
    """Convert a network, test it before and after, and train it.

    Returns:
        The record. ``trained`` has a row for each training.
    """
    name, model = load_network(args.network)
    images = open_images(args.data)
    train_set = images.train() if args.steps else None
    x, labels = images.test()
    start = time.perf_counter()
    converted, report = pws_mmdet.convert_to_pws(model)
    seconds = time.perf_counter() - start
    original, outputs = outputs_of(model, x), outputs_of(converted, x)
    tests: dict[str, Any] = dict(number=len(x), **agreement(outputs, original))
    if labels is not None:
        tests.update(BN=accuracy(original, labels), PWS=accuracy(outputs, labels))
    record = dict(
        command=command,
        **describe_machine(torch.device('cpu')),
        network=name,
        data=args.data.name,
        seconds=round(seconds, 2),
        converted=sum(not layer.kept for layer in report),
        kept=sum(bool(layer.kept) for layer in report),
        tests=tests,
        steps=args.steps,
        trained=[],
    )
    kinds = dict(BN=model, plain=fold_batch_norm(model)[0], PWS=converted)
    if train_set is None:
        return record
    for lr in args.lrs:
        for seed in args.seeds:
            for kind, network in kinds.items():
                new, losses = train(network, *train_set, lr, args.steps, seed)
                result = None if new is None else accuracy(outputs_of(new, x), labels)
                row = dict(kind=kind, lr=lr, seed=seed, accuracy=result)
                print(row, file=sys.stderr, flush=True)
                record['trained'].append({**row, 'losses': means(losses, args.steps)})
    return record


def means(losses: Sequence[float], steps: int) -> list[float]:
    """Return the mean loss of each part of a training, until it diverges."""
    size = max(1, steps // PARTS)
    parts = [losses[i : i + size] for i in range(0, len(losses) - size + 1, size)]
    return [round(sum(part) / size, 4) for part in parts]


@torch.no_grad()
def outputs_of(model: nn.Module, images: Tensor) -> Tensor:
    """Return the scores of images, (N, classes)."""
    return torch.cat([model(batch) for batch in images.split(64)])


def accuracy(outputs: Tensor, labels: Tensor) -> float:
    """Return the share of right classes in %."""
    return round(100 * (outputs.argmax(1) == labels).double().mean().item(), 2)


def agreement(outputs: Tensor, original: Tensor) -> dict[str, float]:
    """Compare the scores of two networks, (N, classes).

    Returns:
        ``agreement``, the share of images with the same best class in %; and ``error``,
        the largest difference of two scores, divided by the standard deviation of the
        scores over the images.
    """
    spread = (original - original.mean(0)).square().mean().sqrt()
    error = (outputs - original).abs().max() / spread
    return dict(
        agreement=accuracy(outputs, original.argmax(1)), error=float(f'{error:.2g}')
    )
