"""Compare the kinds of layers in one network on a GPU, in several settings."""

from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import comparison
import torch
from device import describe_machine
from gpu_cases import CASES, KINDS, SETTINGS, TOY_CASES, TOY_KINDS, Case
from gpu_filters import measure_filters
from gpu_kinds import make_kinds, prepare
from gpu_report import write_json
from mmengine.logging import MMLogger
from networks import PARTS

from pws_mmdet.layers.filter_kernel import use_filter_kernel


class Step(NamedTuple):
    """One comparison."""

    batch_size: int
    setting: str
    inference: bool


def measure_speed(
    name: str,
    out: Path,
    budget: float,
    toy: bool,
    chosen: Sequence[str] | None = None,
    inference_too: bool = True,
) -> None:
    """Compare the kinds in all settings, and write each comparison at once.

    Args:
        name: Name of the case.
        out: The file to write.
        budget: Seconds for everything. Comparisons that do not fit are left out.
        toy: Small images, few kinds and two steps, on a CPU.
        chosen: The kinds to compare; by default all.
        inference_too: Measure inference besides training.
    """
    end = perf_counter() + budget
    MMLogger.get_instance('speed', log_level='WARNING')
    comparison.MIN_ROUNDS = 1 if toy else 4
    device = torch.device('cpu' if toy else 'cuda')
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    case = (TOY_CASES if toy else CASES)[name]
    everything = chosen is None
    if everything:
        chosen = TOY_KINDS if toy and name != 'ResNet-50' else KINDS
    plan = make_plan(case, toy, inference_too)
    report: dict[str, Any] = dict(
        part=name, machine=describe_machine(device), results=[], not_measured=[]
    )
    if name == 'ResNet-50':
        report.update(measure_filters(case, device, 1e-3 if toy else 1.0))
        write_json(report, out)
    longest = 0.0
    for i, step in enumerate(plan):
        start = perf_counter()
        left = end - start
        if left < 0.8 * longest:
            report['not_measured'].append(list(step))
            continue
        seconds = 1e-3 if toy else max(1.0, 0.5 * left / (len(plan) - i))
        rows = compare(case, step, chosen, device, 1 if toy else 2, seconds)
        report['results'] += [dict(part=name, **row) for row in rows]
        longest = max(longest, perf_counter() - start)
        write_json(report, out)
        print(
            f'{name}, {step.setting}, {"inference" if step.inference else "training"}, '
            f'{step.batch_size}: {perf_counter() - start:.0f} s',
            *(f'{r["kind"]}: {r["error"]}' for r in rows if r['error']),
            sep='\n  ',
            flush=True,
        )
    use_filter_kernel(True)
    if name == 'ResNet-50' and everything:
        report.update(profile(case, device, amp=not toy))
    write_json(report, out)


def make_plan(case: Case, toy: bool, inference_too: bool) -> list[Step]:
    """Return the comparisons: small batches and the most important settings first."""
    settings = ['fp32'] if toy else ['AMP', 'fp32', 'AMP, channels last']
    plan = [
        Step(batch_size, setting, inference)
        for batch_size in case.batch_sizes
        for setting in settings
        for inference in ((False, True) if inference_too else (False,))
    ]
    return sorted(
        plan,
        key=lambda step: (
            case.batch_sizes.index(step.batch_size) + settings.index(step.setting)
        ),
    )


def compare(
    case: Case,
    step: Step,
    chosen: Sequence[str],
    device: torch.device,
    warmup: int,
    seconds: float,
) -> list[dict[str, Any]]:
    """Return a row of figures for each kind.

    Its ``speed`` is the ratio to the images per second of each other kind.
    """
    kinds, part = make_kinds(), PARTS[case.part]
    switches = SETTINGS[step.setting]
    contenders = []
    for kind in chosen:
        if step.inference or not kinds[kind].fuse:
            contender = part.make(
                kind, kinds[kind], step.batch_size, case.image_size[0], step.inference
            )
            contender.image_size = case.image_size
            contenders.append(prepare(contender, switches['amp']))
    channels_last = switches['channels_last']
    rows = comparison.compare(
        contenders,
        step.inference,
        warmup,
        seconds,
        device,
        comparison.NUM_BOXES,
        switches['amp'],
        0,
        torch.channels_last if channels_last else torch.contiguous_format,
    )
    for row, contender in zip(rows, contenders, strict=True):
        row.update(
            setting=step.setting,
            inference=step.inference,
            batch_size=step.batch_size,
            image_size=list(case.image_size),
            error=contender.error,
        )
        if contender.error is None:
            row['images_per_second'] = contender.images_per_second()
            row['speed'] = {
                other.name: contender.ratio(other)
                for other in contenders
                if other.error is None
            }
    del contenders, contender
    if device.type == 'cuda':
        torch.cuda.empty_cache()
    return rows


def profile(case: Case, device: torch.device, amp: bool) -> dict[str, Any]:
    """Measure the standardization of all filters alone, and each operator of a step."""
    try:
        args = (device, comparison.NUM_BOXES, amp, 0, torch.contiguous_format)
        size = case.batch_sizes[0], case.image_size[0]
        return dict(
            floor=comparison.measure_floor(case.part, device, 1.0),
            profile=comparison.measure_profile(case.part, *size, 2, 1.0, *args),
        )
    except Exception as e:  # keep what is measured
        print(f'no profile: {e!r}', flush=True)
        return {}
