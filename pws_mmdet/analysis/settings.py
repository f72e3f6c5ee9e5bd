"""Read the settings of a training from its work_dir, for a report."""

import difflib
import re
from pathlib import Path

TIMESTAMP = re.compile(r'\d{8}_\d{6}')  # MMEngine's name for the folder of a run

# Lines of the head of MMEngine's log, and the settings that they tell
LOGGED = {
    'seed': r'^ +seed: (\d+)',
    'processes': r'^ +GPU number: (\d+)',
    'Python': r'^ +Python: (\S+)',
    'PyTorch': r'^ +PyTorch: (\S+)',
    'TorchVision': r'^ +TorchVision: (\S+)',
    'MMEngine': r'^ +MMEngine: (\S+)',
    'OpenCV': r'^ +OpenCV: (\S+)',
}


def read_settings(work_dir: Path) -> dict[str, str]:
    """Return what a work_dir tells of the settings of its training, for people.

    The log of the last start counts. What nothing tells is missing.

    Raises:
        OSError: If a file cannot be read.
    """
    found = {'work_dir': str(work_dir)}
    if config := _config_file(work_dir):
        found['config'] = config.stem
    logs = sorted(work_dir.glob('*/*.log'))
    if not logs:
        return found
    if TIMESTAMP.fullmatch(started := logs[-1].parent.name):
        day, clock = started[:8], started[9:]
        found['started'] = f'{day[:4]}-{day[4:6]}-{day[6:]} {clock[:2]}:{clock[2:4]}'
    text = logs[-1].read_text(encoding='utf-8', errors='replace')
    devices = re.findall(r'^ +GPU [\d,]+: (.+)$', text, re.MULTILINE)
    if devices:
        found['device'] = ', '.join(devices)
    elif 'CUDA available: False' in text:
        found['device'] = 'CPU'
    for name, pattern in LOGGED.items():
        for value in re.findall(pattern, text, re.MULTILINE)[-1:]:
            found[name] = value
    return found


def read_config(work_dir: Path) -> str:
    """Return the text of the config, which MMEngine copies into the work_dir, or ''."""
    path = _config_file(work_dir)
    return path.read_text(encoding='utf-8', errors='replace') if path else ''


def compare_configs(first: str, second: str) -> str:
    """Return the lines in which two texts of configs differ, with - and +."""
    lines = difflib.unified_diff(first.splitlines(), second.splitlines(), n=1)
    # without the two lines that name files
    return '\n'.join([*lines][2:])


def _config_file(work_dir: Path) -> Path | None:
    paths = sorted(work_dir.glob('*.py'), key=lambda path: path.stat().st_mtime)
    return paths[-1] if paths else None
