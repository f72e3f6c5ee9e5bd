"""The kinds of layers that gpu.py compares."""

from typing import Any

import kinds
import torch
from kinds import Kind

from pws_mmdet.layers.filter_kernel import use_filter_kernel

# ScaledWS has the kernel, too, but not in the networks of others.
WITHOUT_KERNEL = ('PWS, group norm', 'ScaledWS')


def make_kinds() -> dict[str, Kind]:
    """Return the kinds of speed.py, and PWS without the kernel."""
    made = kinds.make_kinds()
    made['PWS, group norm'] = made['PWS']
    return made


def prepare(contender: Any, amp: bool) -> Any:
    """Change a contender for the GPU.

    It is built on its device, which is faster. It turns the Triton kernel on or off
    before each step, as its name says. In mixed precision it infers under autocast.

    Args:
        contender: The contender.
        amp: Mixed precision.
    """
    build, run = contender.build, contender.run
    prepare_step = contender.prepare

    def prepare_with_kernel() -> None:
        use_filter_kernel(contender.name not in WITHOUT_KERNEL)
        prepare_step()

    def build_fast(device: torch.device, *args) -> None:
        try:
            with torch.device(device):
                build(device, *args)
        except Exception:
            if device.type == 'cpu':
                raise
            build(device, *args)

    def run_under_autocast() -> Any:
        with torch.autocast(contender.device.type, torch.float16):
            return run()

    contender.build = build_fast
    contender.prepare = prepare_with_kernel
    if amp and contender.inference:
        contender.run = run_under_autocast
    return contender
