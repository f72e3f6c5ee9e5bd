"""The machine that a measurement was made on."""

import platform
from pathlib import Path


def cpu_name() -> str:
    """Return the model of the CPU, or its architecture where the model is unknown."""
    try:
        lines = Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.split(':', 1)[1].strip() for line in lines if 'model name' in line]
    return names[0] if names else platform.processor() or platform.machine()
