"""Compare kinds of layers in networks: speed and memory of steps."""

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from time import perf_counter
from typing import Any

import torch
from kinds import make_kinds
from networks import PARTS
from rounding import round_numbers
from timing import Contender, take_turns
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from pws_mmdet.layers import ReparamConv2d

MIB = 2**20
MIN_ROUNDS = 5
NUM_BOXES = 7  # objects in an image, as in COCO
MODES = ['training', 'inference']
FLOORS = ('ResNet-50', 'VGG-16-SSD320')
PROFILED = ('plain', 'PWS')
LEAST_SHARE = 0.002  # of a step; operators with a smaller difference are summed


@dataclass
class Plan:
    """What a run of speed.py measures.

    Args:
        parts: Networks in which kinds are compared; None for all.
        kinds: The kinds besides plain convolutions; None for all.
        floors: Networks whose filters are standardized and copied; None for all.
        profiles: Networks whose training step is profiled.
        modes: 'training', 'inference' or both.
        batch_sizes: Numbers of images in a step.
        image_sizes: Heights and widths of the images in pixels.
        seconds: How long each comparison takes; it has at least MIN_ROUNDS rounds.
        warmup: Number of rounds that are not timed.
        device: Device of the steps.
        amp: Train in mixed precision.
        channels_last: Weights and images are in this memory format.
        seed: Seed of the weights and the images.

    Raises:
        ValueError: If a network or a kind is unknown.
    """

    parts: Sequence[str] | None
    kinds: Sequence[str] | None
    floors: Sequence[str] | None
    profiles: Sequence[str] | None
    modes: Sequence[str]
    batch_sizes: Sequence[int]
    image_sizes: Sequence[int]
    seconds: float
    warmup: int
    device: torch.device
    amp: bool
    channels_last: bool
    seed: int

    def __post_init__(self) -> None:
        known = list(make_kinds())
        kinds = choose(self.kinds, known, '--kinds')
        self.kinds = list(dict.fromkeys(['plain', *kinds]))
        self.parts = choose(self.parts, list(PARTS), '--parts')
        self.floors = choose(self.floors, list(FLOORS), '--floors')
        self.profiles = choose(self.profiles, list(PARTS), '--profiles')

    @property
    def build_args(self) -> tuple:
        """The arguments of ``build``."""
        memory_format = (
            torch.channels_last if self.channels_last else torch.contiguous_format
        )
        return self.device, NUM_BOXES, self.amp, self.seed, memory_format


def choose(names: Sequence[str] | None, known: list[str], option: str) -> list[str]:
    """Return the known names that are given, in the known order; None gives all.

    Raises:
        ValueError: If a name is unknown.
    """
    unknown = [name for name in names or [] if name not in known]
    if unknown:
        raise ValueError(f'{option} has no {unknown[0]!r}; there are: {known}')
    return [name for name in known if names is None or name in names]


def measure(plan: Plan) -> Iterator[dict[str, Any]]:
    """Yield the record of each comparison, floor and profile once it is measured."""
    for name in plan.parts:
        for mode, size, batch in product(
            plan.modes, plan.image_sizes, plan.batch_sizes
        ):
            yield round_numbers(measure_part(plan, name, mode, size, batch))
    for name in plan.floors:
        floor = measure_floor(name, plan.device, plan.seconds)
        yield round_numbers(dict(what='floor', **floor))
    for name in plan.profiles:
        for size, batch in product(plan.image_sizes, plan.batch_sizes):
            row = measure_profile(
                name, batch, size, plan.warmup, plan.seconds, *plan.build_args
            )
            yield round_numbers(dict(what='profile', **row))


def measure_part(
    plan: Plan, name: str, mode: str, size: int, batch: int
) -> dict[str, Any]:
    """Compare the kinds in one network, and return the record."""
    kinds, part = make_kinds(), PARTS[name]
    inference = mode == 'inference'
    contenders = [
        part.make(kind, kinds[kind], batch, size, inference)
        for kind in plan.kinds
        if kind in (part.kinds or plan.kinds)
        and (inference or not kinds[kind].fuse)
        and (kinds[kind].share or part.kinds)
    ]
    rows = compare(contenders, inference, plan.warmup, plan.seconds, *plan.build_args)
    return dict(
        what='comparison',
        part=name,
        inference=inference,
        batch_size=batch,
        image_size=size,
        kinds={row.pop('kind'): row for row in rows},
    )


def count_rounds(warmup: int, seconds: float) -> Iterator[int]:
    """Yield the numbers of rounds until the time is over and they are enough."""
    end = math.inf
    i = 0
    while i < warmup + MIN_ROUNDS or perf_counter() < end:
        if i == warmup:
            end = perf_counter() + seconds
        yield i
        i += 1


def compare(
    contenders: Sequence[Contender],
    inference: bool,
    warmup: int,
    seconds: float,
    *args,
) -> list[dict[str, Any]]:
    """Let contenders take their steps; return a row of figures for each.

    Args:
        contenders: Contenders with the same batch. Ratios are to the first.
        inference: A step is a forward pass instead of a training step.
        warmup: Number of rounds that are not timed.
        seconds: How long to measure; there are at least MIN_ROUNDS rounds.
        *args: Arguments of ``build``.
    """
    for contender in contenders:
        contender.attempt(contender.build, *args)
    for _ in take_turns(contenders, count_rounds(warmup, seconds), warmup):
        pass
    first = contenders[0]
    rows = []
    for contender in contenders:
        if not inference:
            contender.peak_memory = contender.attempt(contender.measure_memory)
        row: dict[str, Any] = dict(kind=contender.name)
        if contender.error is not None:
            row['error'] = contender.error
        else:
            row.update(
                rounds=len(contender.seconds),
                ms=1e3 * statistics.median(contender.seconds),
                weights_mib=sum(p.nbytes for p in contender.model.parameters()) / MIB,
            )
            if not inference:
                row['peak_mib'] = contender.peak_memory / MIB
            if first.error is None:
                row['time'] = 1 / contender.ratio(first)
        rows.append(row)
    return rows


def measure_floor(part: str, device: torch.device, seconds: float) -> dict[str, Any]:
    """Standardize all filters of a network, and copy them, in turn.

    Returns:
        The size of the filters, the median times of both in ms, and the median of
        their ratios.
    """
    contender = PARTS[part].make('', make_kinds()['PWS'], 1, 320, True)
    contender.fuse = False
    contender.build(device, 1, False, 0, torch.contiguous_format)
    convs = [m for m in contender.model.modules() if isinstance(m, ReparamConv2d)]

    def standardize() -> list[Tensor]:
        return [conv.effective_weight() for conv in convs]

    def duplicate() -> list[Tensor]:
        return [torch.empty_like(conv.weight).copy_(conv.weight) for conv in convs]

    def clock(function: Callable) -> float:
        if device.type == 'cuda':
            torch.cuda.synchronize(device)
        start = perf_counter()
        function()
        if device.type == 'cuda':
            torch.cuda.synchronize(device)
        return perf_counter() - start

    times = []
    with torch.inference_mode():
        for i in count_rounds(3, seconds):
            pair = clock(standardize), clock(duplicate)
            if i >= 3:
                times.append(pair)
    own, floor = map(statistics.median, zip(*times, strict=True))
    weights = sum(conv.weight.nbytes for conv in convs)
    return dict(
        part=part,
        layers=len(convs),
        weights_mib=weights / MIB,
        rounds=len(times),
        ms=1e3 * own,
        copy_ms=1e3 * floor,
        copy_gb_per_second=2 * weights / floor / 1e9,  # read and written
        time=statistics.median(a / b for a, b in times),
    )


def measure_profile(
    part: str, batch_size: int, size: int, warmup: int, seconds: float, *args
) -> dict[str, Any]:
    """Profile training steps with plain convolutions and with PWS, in turn.

    Args:
        part: Name of the network.
        batch_size: Number of images in a step.
        size: Height and width of the images in pixels.
        warmup, seconds, *args: See ``compare``.

    Returns:
        The median milliseconds of each operator in a step, for both networks, without
        the operators that it calls.
    """
    contenders = [
        PARTS[part].make(kind, make_kinds()[kind], batch_size, size, False)
        for kind in PROFILED
    ]
    for contender in contenders:
        contender.build(*args)
    on_gpu = contenders[0].device.type == 'cuda'
    activity = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU
    attribute = 'self_device_time_total' if on_gpu else 'self_cpu_time_total'
    times: list[dict[str, list[float]]] = [{}, {}]
    rounds = 0
    for i in count_rounds(warmup, seconds):
        for contender, own in zip(contenders, times, strict=True):
            with profile(activities=[activity]) as profiler:
                contender.step()
            for event in profiler.key_averages() if i >= warmup else ():
                own.setdefault(event.key, []).append(getattr(event, attribute) / 1e3)
        rounds += i >= warmup
    medians = [
        {key: statistics.median(values) for key, values in own.items()} for own in times
    ]
    return dict(
        part=part,
        batch_size=batch_size,
        image_size=size,
        rounds=rounds,
        ms=[sum(own.values()) for own in medians],
        operators=summarize_operators(*medians),
    )


def summarize_operators(
    plain: dict[str, float], pws: dict[str, float]
) -> list[dict[str, Any]]:
    """Return the operators that differ, with the largest difference first.

    Operators that differ by less than LEAST_SHARE of a step are summed in a last row.
    """
    totals = [sum(plain.values()), sum(pws.values())]
    pairs = {
        key: [plain.get(key, 0.0), pws.get(key, 0.0)]
        for key in sorted({*plain, *pws}, key=lambda k: plain.get(k, 0) - pws.get(k, 0))
    }
    rows = [
        dict(operator=key, ms=pair)
        for key, pair in pairs.items()
        if abs(pair[1] - pair[0]) >= LEAST_SHARE * totals[0]
    ]
    others = [
        total - sum(row['ms'][i] for row in rows) for i, total in enumerate(totals)
    ]
    return [*rows, dict(operator='all others', ms=others)]
