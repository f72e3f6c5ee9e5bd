"""Time the conversion of ResNets of several depths, and make the table."""

import argparse
import json
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from conversion_networks import CifarResNet
from conversion_real_page import MIB, Record, notes, table
from device import describe_machine, in_new_process, peak_memory
from torch import Tensor, nn

import pws_mmdet
from pws_mmdet.utils.files import put_in_page
from pws_mmdet.utils.records import put_record, read_records

EXCLUDES: tuple[Literal['auto'] | tuple[str, ...], ...] = ('auto', ())


@dataclass(frozen=True)
class Case:
    """A conversion to measure.

    Attributes:
        depth: Of the ResNet, 6 n + 2.
        images: Number of calibration images.
        exclude: As of :func:`pws_mmdet.convert_to_pws`.
        batch_size: Images in a calibration batch.
        image_size: Height and width of the images in pixels.
        channels: Channels of the first stage.
        seed: Seed of the weights and the images.
    """

    depth: int
    images: int
    exclude: Literal['auto'] | tuple[str, ...]
    batch_size: int = 16
    image_size: int = 32
    channels: int = 16
    seed: int = 0


def run(args: argparse.Namespace, argv: Sequence[str]) -> None:
    """Measure, and write or print the table.

    Args:
        args: The options of conversion_time.py.
        argv: Its command line, for the records.

    Raises:
        OSError: If a file cannot be written, or OUT exists.
        RuntimeError: If a process was killed, as when memory runs out.
        ValueError: If there is no ResNet of a depth.
    """
    if args.out.exists():
        raise FileExistsError(f'{args.out} exists; name a new file')
    for depth in args.depths:
        if depth < 8 or depth % 6 != 2:
            raise ValueError(f'there is no ResNet-{depth}: depths are 8, 14, 20, ...')
    common = dict(
        command=shlex.join(['python', *argv]), **describe_machine(torch.device('cpu'))
    )
    fixed = args.batch_size, args.image_size, args.channels, args.seed
    for depth, images in sizes(args.depths, args.num_images):
        for exclude in EXCLUDES:
            case = Case(depth, images, exclude, *fixed)
            record = {**common, **in_new_process(measure, case)}
            put_record(args.out, record)
            print(json.dumps(record), file=sys.stderr)
    text = to_markdown(read_records(args.out))
    if args.markdown:
        put_in_page(args.markdown, args.out.stem, text)
    else:
        print(text, end='')


def sizes(depths: Sequence[int], numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield all depths with the first number of images, and the first with the others.

    Args:
        depths: Depths of networks.
        numbers: Numbers of images.
    """
    yield from ((depth, numbers[0]) for depth in dict.fromkeys(depths))
    yield from ((depths[0], n) for n in dict.fromkeys(numbers) if n != numbers[0])


def measure(case: Case) -> Record:
    """Convert a network, and return the record of the case.

    ``memory`` is the peak of this process in bytes before and during the conversion.
    """
    # What the first conversion of a process does once is not a cost of the depth.
    convert(Case(8, 2, case.exclude, image_size=8, channels=4))
    return dict(**asdict(case), **convert(case))


def convert(case: Case) -> Record:
    """Convert the network of a case, and return what that takes."""
    model, images = make(case)
    batches = list(images.split(case.batch_size))
    before = peak_memory()
    start, cpu_start = time.perf_counter(), time.process_time()
    _, report = pws_mmdet.convert_to_pws(model, batches, case.exclude, progress=False)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu_start
    return dict(
        seconds=round(seconds, 3),
        cpu_seconds=round(cpu, 3),
        memory=dict(before=before, during=peak_memory()),
        convolutions=len(report),
        kept=sum(layer.method == 'kept' for layer in report),
    )


def make(case: Case) -> tuple[nn.Module, Tensor]:
    """Return the network of a case in evaluation mode, and its images, (N, 3, H, W)."""
    torch.manual_seed(case.seed)
    # Neighbouring pixels are alike, as in photographs.
    images = F.interpolate(
        torch.randn(case.images, 3, 8, 8), size=case.image_size, mode='bicubic'
    )
    model = CifarResNet((case.depth - 2) // 6, case.channels).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean over all batches
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
    with torch.no_grad():
        for batch in images.split(case.batch_size):
            model(batch)
    return model.eval(), images


def to_markdown(records: Sequence[Record]) -> str:
    """Return the table of records, what a convolution adds, and how it was measured.

    Args:
        records: In the order in which they were measured; not empty.
    """
    found = {(r['depth'], r['images'], json.dumps(r['exclude'])): r for r in records}
    kinds = [json.dumps(exclude) for exclude in EXCLUDES]
    columns = ['seconds', 'ms each', 'CPU seconds', 'MiB', 'of it before', 'kept']
    head = ['', 'convolutions', 'images', *columns]
    head += ['`exclude=()`: seconds', *columns[1:]]
    cases = list(dict.fromkeys((r['depth'], r['images']) for r in records))
    rows = []
    for depth, images in cases:
        pair = [found[depth, images, kind] for kind in kinds]
        row = [f'ResNet-{depth}', str(pair[0]['convolutions']), str(images)]
        rows.append(row + [cell for r in pair for cell in cells(r)])
    lines = [*table(head, rows), '']
    for kind, text in zip(kinds, ('default arguments', '`exclude=()`'), strict=True):
        same = [found[depth, n, kind] for depth, n in cases if n == cases[0][1]]
        if len(same) > 1:
            lines.append(f'* Seconds against depth, {text}: {", ".join(slopes(same))}.')
    return '\n'.join([*lines, *notes(records), ''])


def cells(record: Record) -> list[str]:
    """Return the columns of one conversion."""
    return [
        f'{record["seconds"]:.1f}',
        f'{1000 * record["seconds"] / record["convolutions"]:.0f}',
        f'{record["cpu_seconds"]:.1f}',
        f'{record["memory"]["during"] / MIB:.0f}',
        f'{record["memory"]["before"] / MIB:.0f}',
        str(record['kept']),
    ]


def slopes(records: Sequence[Record]) -> Iterator[str]:
    """Say what each convolution adds between one depth and the next.

    The values are the same if the time is a straight line.
    """
    for a, b in pairwise(sorted(records, key=lambda r: r['depth'])):
        added = b['convolutions'] - a['convolutions']
        ms = 1000 * (b['seconds'] - a['seconds']) / added
        yield f'{ms:.0f} ms for each convolution from {a["depth"]} to {b["depth"]}'
