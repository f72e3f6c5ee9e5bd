"""Measure how long the filters of a network and their gradients take alone."""

import statistics
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

import torch
from comparison import count_rounds
from gpu_cases import Case
from gpu_kinds import make_kinds
from networks import PARTS
from torch.profiler import ProfilerActivity, profile

from pws_mmdet.layers import ReparamConv2d
from pws_mmdet.layers.filter_kernel import use_filter_kernel


def measure_filters(
    case: Case, device: torch.device, seconds: float
) -> dict[str, list[dict[str, Any]]]:
    """Compute all filters and their gradients, with and without the Triton kernel.

    Nothing else happens in such a step. Under autocast the filters become fp16.

    Args:
        case: The case with the network.
        device: Device of the steps.
        seconds: Time for each of fp32 and autocast.

    Returns:
        For each, the median milliseconds of a step, of its launches on the CPU and of
        the work on the GPU, and the number of kernels. Empty after an error.
    """
    try:
        contender = PARTS[case.part].make(
            '', make_kinds()['PWS'], 1, case.image_size[0], False
        )
        contender.build(device, 1, False, 0, torch.contiguous_format)
        modules = contender.model.modules()
        step = FilterStep([m for m in modules if isinstance(m, ReparamConv2d)], device)
        return dict(
            filters=[
                row for amp in (False, True) for row in time_steps(step, amp, seconds)
            ]
        )
    except Exception as e:  # the other measurements continue
        print(f'no times of the filters alone: {e!r}', flush=True)
        return {}
    finally:
        use_filter_kernel(False)


class FilterStep:
    """A step that computes the filters of layers and their gradients.

    Args:
        convs: The layers.
        device: Their device.
    """

    def __init__(self, convs: Sequence[ReparamConv2d], device: torch.device) -> None:
        self.convs = convs
        self.device = device
        self.grads = [torch.randn_like(conv.weight) for conv in convs]
        self.half_grads = [g.half() for g in self.grads]

    def run(self, amp: bool) -> None:
        with torch.autocast(self.device.type, torch.float16, enabled=amp):
            made = [conv.filters_to_convolve_with() for conv in self.convs]
        if amp:  # autocast would convert the filters that are not in fp16
            made = [w.half() for w in made]
        torch.autograd.backward(made, self.half_grads if amp else self.grads)
        for conv in self.convs:
            conv.weight.grad = conv.alpha.grad = None

    def clock(self, kernel: bool, amp: bool) -> tuple[float, float]:
        """Return the seconds of a step, and of its launches on the CPU."""
        use_filter_kernel(kernel)
        self._synchronize()
        start = perf_counter()
        self.run(amp)
        launched = perf_counter()
        self._synchronize()
        return perf_counter() - start, launched - start

    def _synchronize(self) -> None:
        if self.device.type == 'cuda':
            torch.cuda.synchronize()


def time_steps(step: FilterStep, amp: bool, seconds: float) -> list[dict[str, Any]]:
    """Time steps without and with the kernel, in turn; return a row for each."""
    times: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
    for i in count_rounds(3, seconds):
        for kernel, own in times.items():
            pair = step.clock(kernel, amp)
            if i >= 3:
                own.append(pair)
    rows = []
    for kernel, own in times.items():
        wall, launch = map(statistics.median, zip(*own, strict=True))
        row = dict(kernel=kernel, amp=amp, rounds=len(own), layers=len(step.convs))
        row.update(ms=1e3 * wall, launch_ms=1e3 * launch)
        if step.device.type == 'cuda':
            row.update(gpu_work(lambda k=kernel: step.clock(k, amp)))
        print(row, flush=True)
        rows.append(row)
    return rows


def gpu_work(step: Callable) -> dict[str, float]:
    """Return the milliseconds that the GPU works in a step, and its kernels."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        step()
    events = [e for e in profiler.key_averages() if e.self_device_time_total]
    return dict(
        gpu_ms=sum(e.self_device_time_total for e in events) / 1e3,
        kernels=sum(e.count for e in events),
    )
