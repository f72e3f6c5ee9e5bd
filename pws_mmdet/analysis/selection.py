"""Choose the trainings, layers and steps that a figure shows."""

import difflib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from .variance_record import VarianceRecord, read_record

# The statistics of each figure. In 1a the first one is the line, the other two are the
# ends of its band.
FIGURES = {
    '1a': ('var_ratio', 'var_ratio_min', 'var_ratio_max'),
    '1b': ('shift',),
    '2a': ('var_w_min',),
    '2b': ('inv_std_max',),
    'eq6': ('var_y', 'var_y_eq5', 'var_y_eq6'),
    'layers': ('shift', 'var_y'),
}
OVER_LAYERS = ('1a', '1b', 'eq6')  # the other figures show the course of training

Runs = dict[str, VarianceRecord]  # the records of trainings by the trainings' labels


def name_runs(
    work_dirs: Sequence[Path], labels: Sequence[str] | None = None
) -> dict[str, Path]:
    """Return the work_dirs by their labels. A label is the folder's name by default.

    Raises:
        ValueError: If the number of labels is wrong, or two labels are the same.
    """
    if labels is None:
        labels = [os.path.basename(os.path.realpath(path)) for path in work_dirs]
    if len(labels) != len(work_dirs):
        raise ValueError(f'{len(work_dirs)} WORK_DIRs but {len(labels)} --labels')
    runs: dict[str, Path] = {}
    for label, work_dir in zip(labels, work_dirs, strict=True):
        twin = runs.setdefault(label, work_dir)
        if twin is not work_dir:
            raise ValueError(
                f'{twin} and {work_dir} are both {label!r}: tell them apart with '
                '--labels'
            )
    return runs


def read_runs(
    work_dirs: Sequence[str | Path], labels: Sequence[str] | None = None
) -> Runs:
    """Read the variance records of trainings.

    Args:
        work_dirs: The work_dirs of trainings with VarianceMonitorHook.
        labels: A label for each training. By default it is the folder's name.

    Raises:
        ValueError: If a folder holds no record, the number of labels is wrong, or two
            labels are the same.
    """
    named = name_runs([Path(path) for path in work_dirs], labels)
    return {label: read_record(path) for label, path in named.items()}


def layer_names(records: Iterable[VarianceRecord]) -> list[str]:
    """Return the names of all layers of several models, in the order of the models.

    A layer that the first model lacks comes directly after the layer that it follows in
    its own model.
    """
    names: list[str] = []
    for record in records:
        at = 0
        for layer in record.layers:
            if layer.name not in names:
                names.insert(at, layer.name)
            at = names.index(layer.name) + 1
    return names


def match_names(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """Return the names in which at least one of the regular expressions is found.

    Raises:
        ValueError: If an expression is found in no name.
        re.error: If a pattern is no regular expression.
    """
    for pattern in patterns:
        if not any(re.search(pattern, name) for name in names):
            near = difflib.get_close_matches(pattern, names, n=5, cutoff=0.0)
            raise ValueError(
                f'no layer matches {pattern!r}; near it: {", ".join(near)}'
            )
    return [name for name in names if any(re.search(p, name) for p in patterns)]


def check_same_model(runs: Mapping[str, VarianceRecord]) -> None:
    """Check that layers of the same name in several trainings can be compared.

    Raises:
        ValueError: If a training shares no layer with the first one, or if two layers
            of one name have other sizes.
    """
    (first, record), *others = runs.items()
    layers = {layer.name: layer for layer in record.layers}
    for label, record in others:
        shared = [layer for layer in record.layers if layer.name in layers]
        if not shared:
            raise ValueError(
                f'{label!r} has no layer of the names of those of {first!r}: plot '
                'different models apart'
            )
        for layer in shared:
            twin = layers[layer.name]
            if (layer.n, layer.filters) != (twin.n, twin.filters):
                raise ValueError(
                    f'{layer.name} has {twin.filters} filters of {twin.n} weights in '
                    f'{first!r}, and {layer.filters} of {layer.n} in {label!r}: plot '
                    'different models apart'
                )


def select(
    runs: Runs,
    figure: str,
    patterns: Sequence[str] | None = None,
    step: int | None = None,
) -> Runs:
    """Reduce records to the layers, steps and statistics that a figure shows.

    Args:
        runs: The records.
        figure: Name of the figure, a key of ``FIGURES``.
        patterns: Regular expressions, searched in the names of the layers. None means
            the third layer for 2a and 2b, and all layers for the other figures.
        step: For figures over the layers, show the watched step nearest to this one.
            None means all watched steps in the first tenth of the longest training.

    Raises:
        ValueError: If an expression matches no layer, or the models have no layer in
            common.
    """
    if figure not in ('eq6', 'layers'):
        check_same_model(runs)
    names = layer_names(runs.values())
    if patterns:
        names = match_names(names, patterns)
    elif figure in ('2a', '2b'):
        names = names[:3][-1:]
    beginning = max(record.steps[-1] for record in runs.values()) / 10
    chosen = {}
    for label, record in runs.items():
        columns = np.array(
            [i for i, layer in enumerate(record.layers) if layer.name in names], int
        )
        if not len(columns):
            raise ValueError(f'{label!r} has none of the layers {", ".join(names)}')
        if figure not in OVER_LAYERS:
            rows = np.arange(len(record.steps))
        elif step is None:
            rows = np.flatnonzero(record.steps <= max(beginning, record.steps[0]))
        else:
            distances = [abs(watched - step) for watched in record.steps.tolist()]
            rows = np.array([distances.index(min(distances))])
        chosen[label] = replace(
            record,
            layers=[record.layers[i] for i in columns],
            steps=record.steps[rows],
            lr=record.lr[rows],
            loss=record.loss[rows],
            values={
                name: record.values[name][np.ix_(rows, columns)]
                for name in FIGURES[figure]
            },
        )
    return chosen
