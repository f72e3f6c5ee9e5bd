"""The device and the machine of a measurement."""

import platform
import re
import resource
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import datetime, timezone
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import torch

from pws_mmdet.utils.machine import cpu_name

PACKAGES = ('torch', 'mmcv', 'mmengine', 'mmdet', 'pws_mmdet')
T = TypeVar('T')


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Return date, versions and hardware, for the record of a measurement."""
    return dict(
        date=datetime.now(timezone.utc).isoformat(timespec='seconds'),
        versions=dict(
            python=platform.python_version(),
            **{name: import_module(name).__version__ for name in PACKAGES},
        ),
        cpu=cpu_name(),
        gpu=torch.cuda.get_device_name(device) if device.type == 'cuda' else None,
        threads=torch.get_num_threads(),
        device=str(device),
    )


def peak_memory() -> int:
    """Return the most memory that this process has held so far, in bytes."""
    try:
        status = Path('/proc/self/status').read_text(encoding='utf-8')
        # getrusage also counts what the parent held when it started this process.
        return int(re.findall(r'VmHWM:\s*(\d+) kB', status)[0]) * 1024
    except (OSError, IndexError):  # not Linux
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == 'darwin' else peak * 1024


def in_new_process(function: Callable[..., T], *args: Any) -> T:
    """Call a function in a new process, whose peak of memory is that of the call.

    Raises:
        RuntimeError: If the process was killed, as when memory runs out.
        Exception: What the function raises.
    """
    with ProcessPoolExecutor(1, mp_context=get_context('spawn')) as pool:
        return pool.submit(function, *args).result()


def check_device(name: str, amp: bool = False) -> torch.device:
    """Return the device of this name.

    Raises:
        ValueError: If there is no such device or it cannot be measured.
    """
    try:
        device = torch.device(name)
    except RuntimeError as e:
        raise ValueError(f'{name!r} is no device: use cpu, cuda or cuda:N') from e
    if device.type not in ('cpu', 'cuda'):
        raise ValueError(f'the device must be cpu, cuda or cuda:N, not {name}')
    if device.type == 'cuda' and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f'there is no GPU {name} here: use --device cpu')
    if device.type == 'cpu' and amp:
        raise ValueError('--amp needs a GPU')
    return device
