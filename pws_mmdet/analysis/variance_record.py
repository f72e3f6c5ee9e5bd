"""Write and read the file of VarianceMonitorHook: variance.jsonl in a work_dir."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .variance import STATISTICS

FILE_NAME = 'variance.jsonl'


@dataclass(frozen=True)
class Layer:
    """A convolution that the hook watched.

    Args:
        name: Its name in the model.
        type: Its class.
        n: Number of weights in one of its filters.
        filters: Number of its filters.
        gamma: Its gamma; 0 if it has no gamma.
        frozen: Whether its weights are not trained.
    """

    name: str
    type: str
    n: int
    filters: int
    gamma: float
    frozen: bool


@dataclass(frozen=True)
class VarianceRecord:
    """What the hook measured in a training.

    Args:
        path: The work_dir.
        layers: The L layers, in the order of the model.
        steps: The S training steps that were watched, counted from 1.
        lr: Learning rate at each step, (S,).
        loss: Loss at each step, (S,).
        values: The values of each statistic by its name, (S, L). NaN means no value, or
            one that is not finite.
    """

    path: Path
    layers: list[Layer]
    steps: np.ndarray
    lr: np.ndarray
    loss: np.ndarray
    values: dict[str, np.ndarray]


def write_header(path: Path, layers: Sequence[Layer]) -> None:
    """Write the layers, the first line of a file. Make its folder if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _append(path, {'layers': [vars(layer) for layer in layers]})


def write_step(
    path: Path,
    step: int,
    lr: float,
    loss: float,
    values: Mapping[str, Sequence[float]],
) -> None:
    """Append a step: for each statistic a value, or NaN, for each layer."""
    short = {k: [_short(v) for v in values[k]] for k in STATISTICS}
    entry = dict(step=step, lr=_short(lr), loss=_short(loss), values=short)
    _append(path, entry)


def read_record(work_dir: str | Path) -> VarianceRecord:
    """Read what VarianceMonitorHook measured in a training and its resumptions.

    A resumed training replaces the steps that it repeats. A line that a killed training
    did not finish is skipped.

    Args:
        work_dir: The work_dir of a training.

    Raises:
        ValueError: If there is no record, the record is damaged, or it is of several
            models.
    """
    work_dir = Path(work_dir)
    paths = sorted(work_dir.glob(f'*/{FILE_NAME}'))
    if not paths:
        raise ValueError(
            f'{work_dir} holds no record of VarianceMonitorHook (*/{FILE_NAME}). '
            'Train with --cfg-options default_hooks.variance.type=VarianceMonitorHook.'
        )
    try:
        return _read(work_dir, paths)
    except (AttributeError, KeyError, TypeError) as e:
        raise ValueError(
            f'{work_dir} holds a record that is not as VarianceMonitorHook writes it: '
            f'{type(e).__name__}: {e}'
        ) from e


def _read(work_dir: Path, paths: Sequence[Path]) -> VarianceRecord:
    layers: list[Layer] | None = None
    steps: dict[int, dict[str, Any]] = {}
    for path in paths:
        for entry in _entries(path):
            if 'layers' in entry:
                found = [Layer(**layer) for layer in entry['layers']]
                if layers is not None and layers != found:
                    raise ValueError(
                        f'{work_dir} holds trainings of different models or layers: '
                        f'{path} does not watch those of {paths[0]}'
                    )
                layers = found
            else:
                _check_step(entry, layers)
                first = entry['step']
                # A resumed training repeats this step and all that follow.
                steps = {k: v for k, v in steps.items() if k < first}
                steps[first] = entry
    if layers is None or not steps:
        raise ValueError(f'{work_dir} holds a record without a single step')

    def numbers(values: Sequence[float | None]) -> list[float]:
        return [math.nan if v is None else v for v in values]

    entries = list(steps.values())
    missing = [math.nan] * len(layers)
    return VarianceRecord(
        work_dir,
        layers,
        np.array(list(steps)),
        np.array(numbers([e['lr'] for e in entries])),
        np.array(numbers([e['loss'] for e in entries])),
        {
            name: np.array([numbers(e['values'].get(name, missing)) for e in entries])
            for name in STATISTICS
        },
    )


def _check_step(entry: Mapping[str, Any], layers: Sequence[Layer] | None) -> None:
    """Raise a TypeError unless a step has a number or null for every value."""
    if layers is None:
        raise TypeError('a step stands before the layers')
    step = entry['step']
    if not isinstance(step, int):
        raise TypeError(f'{step!r} is no step')
    rows = {'lr': [entry['lr']], 'loss': [entry['loss']], **entry['values']}
    for name, row in rows.items():
        if name in entry['values'] and len(row) != len(layers):
            raise TypeError(
                f'step {step} has {len(row)} values of {name} for {len(layers)} layers'
            )
        for value in row:
            if not (value is None or isinstance(value, int | float)):
                raise TypeError(f'{name} of step {step} is {value!r}')


def _entries(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text(encoding='utf-8', errors='replace').splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:  # a killed training did not finish this line
            continue


def _append(path: Path, entry: Mapping[str, Any]) -> None:
    with path.open('a', encoding='utf-8') as file:
        file.write(json.dumps(entry, separators=(',', ':'), allow_nan=False) + '\n')


def _short(value: float) -> float | None:
    """Round to six digits, and return None for NaN and inf, which JSON lacks."""
    return float(f'{value:.6g}') if math.isfinite(value) else None
