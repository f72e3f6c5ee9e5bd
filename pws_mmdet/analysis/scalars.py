"""Read MMEngine's log of a training: the scalars.json files of its work_dir."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NOT_METRICS = {'epoch', 'step', 'time', 'data_time'}


@dataclass(frozen=True)
class Scalars:
    """What MMEngine logged in a training, its resumptions included.

    Args:
        paths: The log files, in the order of time: one for each start of the training.
        training: The entry of each logged training step, with ``lr``, ``loss`` and
            so on. A resumed training replaces the steps that it repeats.
        validations: The metrics of each validated epoch, NaN where the log has null.
            If the training counts iterations, the key is the iteration. If an epoch
            was validated twice, the later validation counts.
        validated_at: The last logged training step before each validation; 0 if there
            is none.
    """

    paths: list[Path]
    training: dict[int, dict[str, Any]]
    validations: dict[int, dict[str, float]]
    validated_at: dict[int, int]


def read_scalars(work_dir: str | Path) -> Scalars:
    """Read the log of a training.

    A line that a killed training did not finish is skipped.

    Args:
        work_dir: The work_dir of the training.

    Raises:
        ValueError: If the folder holds no log of MMEngine.
        OSError: If a log cannot be read.
    """
    work_dir = Path(work_dir)
    paths = scalar_files(work_dir)
    if not paths:
        raise ValueError(
            f'{work_dir} is no work_dir of a training: there is no '
            '*/vis_data/scalars.json in it'
        )
    training: dict[int, dict[str, Any]] = {}
    validations: dict[int, dict[str, float]] = {}
    validated_at: dict[int, int] = {}
    last = 0
    for path in paths:
        for entry in _entries(path):
            step = entry['step']
            if 'lr' not in entry:  # a validation: its step is the epoch
                validations[step] = select_metrics(entry)
                validated_at[step] = last
                continue
            if training and step <= next(reversed(training)):  # resumed
                training = {k: v for k, v in training.items() if k < step}
            training[step] = entry
            last = step
    return Scalars(paths, training, validations, validated_at)


def scalar_files(work_dir: str | Path) -> list[Path]:
    """Return the log files of a work_dir in the order of time; maybe none."""
    return sorted(Path(work_dir).glob('*/vis_data/scalars.json'))


def select_metrics(entry: dict[str, Any]) -> dict[str, float]:
    """Return the metrics of an entry: its numbers without times and counters."""
    return {
        key: math.nan if value is None else float(value)
        for key, value in entry.items()
        if key not in NOT_METRICS and isinstance(value, int | float | None)
    }


def _entries(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text(encoding='utf-8').splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:  # a killed training did not finish this line
            continue
        if not _is_entry(entry):
            raise ValueError(f"{path} is no log of MMEngine's: {line[:80]}")
        yield entry


def _is_entry(entry: Any) -> bool:
    """Whether it is a dict with a whole step, and numbers for ``lr`` and ``loss``."""
    return (
        isinstance(entry, dict)
        and isinstance(entry.get('step'), int)
        and all(isinstance(entry.get(k), int | float | None) for k in ('lr', 'loss'))
    )
