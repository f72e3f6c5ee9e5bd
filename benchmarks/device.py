"""The device and the machine of a measurement."""

import platform
from datetime import datetime, timezone
from importlib import import_module
from typing import Any

import torch

from pws_mmdet.utils.machine import cpu_name

PACKAGES = ('torch', 'mmcv', 'mmengine', 'mmdet', 'pws_mmdet')


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
