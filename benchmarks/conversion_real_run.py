"""Convert networks that were trained elsewhere, and measure what it costs and loses."""

import argparse
import contextlib
import json
import shlex
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from conversion_images import Images, open_images
from conversion_networks import load_network
from conversion_real_page import to_markdown
from conversion_training import train
from device import describe_machine, in_new_process, peak_memory
from torch import Tensor, nn

import pws_mmdet
from pws_mmdet.utils.files import put_in_page
from pws_mmdet.utils.records import put_record, read_records

# What a record has to differ in, so that it does not replace another one.
KEY = ('network', 'exclude', 'images', 'seed')


@dataclass(frozen=True)
class Case:
    """A conversion to measure.

    Attributes:
        network: As :func:`load_network` takes it.
        data: As :func:`open_images` takes it.
        images: Number of calibration images.
        batch_size: Images in a calibration batch.
        seed: Seed of the choice of images and of the trainings.
        exclude: As of :func:`pws_mmdet.convert_to_pws`; None for its default.
        epochs: Epochs of a training; 0 for none.
        lrs: Learning rates at the start of the trainings.
    """

    network: str
    data: Path
    images: int
    batch_size: int
    seed: int
    exclude: tuple[str, ...] | None
    epochs: int
    lrs: tuple[float, ...]


def run(args: argparse.Namespace, argv: Sequence[str]) -> None:
    """Measure, and write or print the table.

    Args:
        args: The options of conversion_real.py.
        argv: Its command line, for the records.

    Raises:
        ImportError: If a package with a network is not installed.
        OSError: If a file cannot be read or written.
        RuntimeError, ValueError: If an option is wrong, or a process was killed.
    """
    common = dict(
        command=shlex.join(['python', *argv]), **describe_machine(torch.device('cpu'))
    )
    for seed in args.seeds:
        case = Case(
            args.network,
            args.data,
            args.num_images,
            args.batch_size,
            seed,
            None if args.exclude is None else tuple(args.exclude),
            args.train_epochs,
            tuple(args.lrs),
        )
        record = {**common, **in_new_process(measure, case)}
        put_record(args.out, record, replaces=partial(is_same, record=record))
        shown = {key: value for key, value in record.items() if key != 'layers'}
        print(json.dumps(shown), file=sys.stderr)
    table = to_markdown(read_records(args.out))
    if args.markdown:
        put_in_page(args.markdown, args.out.stem, table)
    else:
        print(table, end='')


def is_same(line: str, record: dict[str, Any]) -> bool:
    """Tell whether a line of the records measures the same case as a record."""
    old = json.loads(line)
    return all(old.get(key) == record[key] for key in KEY)


def measure(case: Case) -> dict[str, Any]:
    """Convert a network, test it before and after, and train both.

    Returns:
        The record of the case. ``memory`` is the peak of this process in bytes before
        and during the conversion. ``tests`` and ``trained`` are as of :func:`compare`;
        a training that diverges gives None.
    """
    with contextlib.redirect_stdout(sys.stderr):  # MMEngine prints messages
        name, model = load_network(case.network)
        images = open_images(case.data)
        calibration = images.choose(case.images, case.seed)
    batches = list(calibration.split(case.batch_size))
    options = {} if case.exclude is None else dict(exclude=case.exclude)
    before = peak_memory()
    start = time.perf_counter()
    converted, report = pws_mmdet.convert_to_pws(
        model, batches, progress=False, **options
    )
    seconds = time.perf_counter() - start
    memory = dict(before=before, during=peak_memory())
    errors = [layer.error for layer in report if layer.error is not None]
    tests, trained = compare(case, images, model, converted)
    return dict(
        network=name,
        data=case.data.name,
        exclude=case.exclude and list(case.exclude),
        images=len(calibration),
        image_size=calibration.shape[-1],
        batch_size=case.batch_size,
        seed=case.seed,
        seconds=round(seconds, 1),
        memory=memory,
        kept=sum(layer.method == 'kept' for layer in report),
        converted=sum(layer.method != 'kept' for layer in report),
        median_error=round(statistics.median(errors), 4) if errors else None,
        layers=[asdict(layer) for layer in report],
        tests=tests,
        epochs=case.epochs,
        trained=trained,
    )


def compare(
    case: Case, images: Images, model: nn.Module, converted: nn.Module
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Test the network with BN and the converted one, and train copies of both.

    Returns:
        The metrics of the tests; and the accuracies after the training for each
        learning rate.
    """
    x, labels = images.test()
    original, outputs = outputs_of(model, x), outputs_of(converted, x)
    tests: dict[str, Any] = dict(number=len(x), **agreement(outputs, original))
    if labels is not None:
        tests['BN'] = accuracy(original, labels)
        tests['PWS'] = accuracy(outputs, labels)
    trained = []
    if case.epochs:
        data = images.train()
        for lr in case.lrs:
            row: dict[str, Any] = dict(lr=lr)
            for kind, network in (('BN', model), ('PWS', converted)):
                new = train(network, *data, lr, case.epochs, case.seed)
                row[kind] = (
                    None if new is None else accuracy(outputs_of(new, x), labels)
                )
            trained.append(row)
    return tests, trained


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
        the root mean squared difference of the scores, divided by their standard
        deviation over the images.
    """
    spread = original - original.mean(0)
    error = ((outputs - original).square().sum() / spread.square().sum()).sqrt()
    return dict(
        agreement=accuracy(outputs, original.argmax(1)), error=round(error.item(), 4)
    )
