"""Compute the series of every figure. plots.py and charts.py draw them."""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from .scores import find_metrics
from .selection import FIGURES, OVER_LAYERS, Runs, check_same_model, layer_names
from .series import (
    at_step,
    color_range,
    drawable,
    gamma_text,
    gaps,
    is_log,
    legend_entry,
    mean_over_steps,
    steps_text,
)
from .training import Training
from .variance_record import VarianceRecord

SYMBOLS = {
    'var_ratio': 'Var[W_o − ΔW_o] / Var[W_o]',
    'shift': 'Var_o[n E[ΔW_o]]',
    'var_w_min': 'min_o Var[W_o]',
    'inv_std_max': 'max_o 1/√(Var[W_o] + γ)',
    'var_y': 'Var[Y]',
}
# of figure eq6
SIDES = {
    'var_y': 'measured',
    'var_y_eq5': 'equation (5)',
    'var_y_eq6': 'equation (6)',
}


@dataclass(frozen=True)
class Line:
    """A line of a figure, sometimes with a band.

    Args:
        label: Its entry in the legend, with remarks.
        x: Names of layers, training steps, or epochs.
        y: A value for each ``x``, NaN where nothing can be drawn.
        band: The lower and the upper end of the band for each ``x``; None without a
            band.
        run: The label of its training, without remarks.
    """

    label: str
    x: list[Any]
    y: np.ndarray
    band: tuple[np.ndarray, np.ndarray] | None = None
    run: str = ''


@dataclass(frozen=True)
class Panel:
    """One pair of axes with its lines.

    Args:
        title: Its title, '' if the figure has only this panel.
        lines: Its lines.
    """

    title: str
    lines: list[Line]


@dataclass(frozen=True)
class LineFigure:
    """A figure of lines.

    Args:
        panels: Its panels.
        log: Whether the y axis is logarithmic.
        statistic: What the y axis shows.
        x_label: The label of the x axis.
        layers: Names of the layers of all trainings.
    """

    panels: list[Panel]
    log: bool
    statistic: str
    x_label: str
    layers: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class HeatMap:
    """A statistic of one training over its layers and steps, as colours.

    Args:
        label: Name of the training.
        remarks: How many values are missing, if any.
        layers: Names of the L layers.
        steps: The S steps.
        values: Values, (L, S), NaN where nothing can be drawn.
    """

    label: str
    remarks: list[str]
    layers: list[str]
    steps: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class HeatMapRow:
    """The heat maps of a statistic, which share their colours.

    Args:
        statistic: The statistic.
        low: The value at the lower end of the colours.
        high: The value at the upper end.
        maps: A heat map for each training.
    """

    statistic: str
    low: float
    high: float
    maps: list[HeatMap]


def depth_figure(runs: Runs, name: str) -> LineFigure:
    """Compute figure 1a, 1b or eq6: values over the layers, the mean over the steps.

    Args:
        runs: Records, reduced to the steps of the mean by ``select``.
        name: Name of the figure.

    Raises:
        ValueError: If no value can be drawn.
    """
    log = is_log(name, _values_of(runs, *FIGURES[name]))
    steps = {label: steps_text(record) for label, record in runs.items()}
    is_same = len(set(steps.values())) == 1 and name != 'eq6'
    x_label = f'layer ({[*steps.values()][0]})' if is_same else 'layer'
    remarks = {} if is_same else {label: [text] for label, text in steps.items()}
    labels = _depth_labels(runs, name, log, remarks)
    panels = _depth_panels(runs, name, labels, log, mean_over_steps)
    names = layer_names(runs.values())
    return LineFigure(panels, log, FIGURES[name][0], x_label, names)


def depth_slides(runs: Runs, name: str, steps: Sequence[int]) -> list[LineFigure]:
    """Compute figure 1a, 1b or eq6 at each of some steps.

    All slides have the same axis. Labels count the missing values of all steps.

    Args:
        runs: Records with all their steps.
        name: Name of the figure.
        steps: The steps.

    Raises:
        ValueError: If the trainings cannot be compared, or no value can be drawn.
    """
    if name != 'eq6':
        check_same_model(runs)
    log = is_log(name, _values_of(runs, *FIGURES[name]))
    labels = _depth_labels(runs, name, log)
    names = layer_names(runs.values())
    slides = []
    for step in steps:
        panels = _depth_panels(runs, name, labels, log, partial(at_step, step=step))
        slides.append(LineFigure(panels, log, FIGURES[name][0], 'layer', names))
    return slides


def course_figure(runs: Runs, name: str) -> LineFigure:
    """Compute figure 2a or 2b: a panel for each layer, values over the training steps.

    Every panel has a line for each training. The line is empty if the training lacks
    the layer.

    Raises:
        ValueError: If the trainings cannot be compared, or no value can be drawn.
    """
    check_same_model(runs)
    [statistic] = FIGURES[name]
    log = is_log(name, _values_of(runs, statistic))
    names = layer_names(runs.values())
    panels = [Panel(layer, []) for layer in names]
    for run, record in runs.items():
        values = record.values[statistic]
        label = legend_entry(run, [gamma_text(record), *gaps([values], log)])
        columns = {layer.name: i for i, layer in enumerate(record.layers)}
        for panel in panels:
            i = columns.get(panel.title)
            steps = [] if i is None else record.steps.tolist()
            y = np.empty(0) if i is None else drawable(values[:, i], log)
            panel.lines.append(Line(label, steps, y, run=run))
    return LineFigure(panels, log, statistic, 'training step', names)


def overview_figure(runs: Runs) -> list[HeatMapRow]:
    """Compute figure layers: a row of heat maps for each statistic.

    Raises:
        ValueError: If a statistic has no value that can be drawn.
    """
    rows = []
    for statistic in FIGURES['layers']:
        values = _values_of(runs, statistic)
        log = is_log('layers', values)
        maps = [
            HeatMap(
                label,
                gaps([record.values[statistic]], log),
                [layer.name for layer in record.layers],
                record.steps,
                drawable(record.values[statistic], log).T,
            )
            for label, record in runs.items()
        ]
        rows.append(HeatMapRow(statistic, *color_range(values), maps))
    return rows


def history_figure(trainings: Sequence[Training], name: str) -> LineFigure:
    """Compute the figure of the ``loss`` or the ``lr`` over the training steps.

    Raises:
        ValueError: If no value can be drawn.
    """
    values = [np.array(getattr(training, name)) for training in trainings]
    log = is_log(name, values) and name == 'loss'
    lines = [
        Line(
            legend_entry(t.label, gaps([y], log)),
            t.steps,
            drawable(y, log),
            run=t.label,
        )
        for t, y in zip(trainings, values, strict=True)
    ]
    return LineFigure([Panel('', lines)], log, name, 'training step')


def validation_figure(trainings: Sequence[Training]) -> LineFigure:
    """Compute the figure of the validations: a panel for each metric, over the epochs.

    Values are those of ``Metric.value``: AP in percent, for example.

    Raises:
        ValueError: If no training came to a second validation. One point is no curve.
    """
    most = max(len(t.validations) for t in trainings)
    if most < 2:
        raise ValueError(
            'There is one validation and so no curve.'
            if most
            else 'There was no validation.'
        )
    panels = []
    for metric in find_metrics(trainings):
        lines = []
        for t in trainings:
            epochs = sorted(t.validations)
            y = [metric.value(t.validations[epoch]) for epoch in epochs]
            lines.append(Line(t.label, epochs, np.array(y), run=t.label))
        panels.append(Panel(metric.name, lines))
    x_label = ' or '.join(dict.fromkeys(t.counts for t in trainings))
    return LineFigure(panels, False, panels[0].title, x_label)


def table(runs: Runs, name: str) -> str:
    """Return the numbers of a figure as CSV, one value a line.

    In the column ``step``, the mean over the steps 1 to 60 is '1-60'.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator='\n')
    writer.writerow(['run', 'step', 'layer', 'statistic', 'value'])
    for label, record in runs.items():
        steps = record.steps.tolist()
        if name in OVER_LAYERS and len(steps) > 1:
            steps = [f'{steps[0]}-{steps[-1]}']
        for statistic in FIGURES[name]:
            values = record.values[statistic]
            if name in OVER_LAYERS:
                values = mean_over_steps(record, statistic)[None]
            for step, row in zip(steps, values.tolist(), strict=True):
                for layer, value in zip(record.layers, row, strict=True):
                    line = [label, step, layer.name, statistic, f'{value:.6g}']
                    writer.writerow(line)
    return file.getvalue()


def _values_of(runs: Runs, *statistics: str) -> list[np.ndarray]:
    return [record.values[s] for record in runs.values() for s in statistics]


def _depth_labels(
    runs: Runs, name: str, log: bool, remarks: dict[str, list[str]] | None = None
) -> dict[str, str]:
    """Return the label of each training with remarks. 1a counts gaps in its line."""
    counted = FIGURES[name] if name == 'eq6' else FIGURES[name][:1]
    return {
        label: legend_entry(
            label,
            (remarks or {}).get(label, [])
            + gaps([record.values[statistic] for statistic in counted], log),
        )
        for label, record in runs.items()
    }


def _depth_panels(
    runs: Runs,
    name: str,
    labels: dict[str, str],
    log: bool,
    reduce: Callable[[VarianceRecord, str], np.ndarray],
) -> list[Panel]:
    """Return one panel with a line for each training; for eq6 a panel for each one."""
    panels, lines = [], []
    for label, record in runs.items():
        x = [layer.name for layer in record.layers]
        rows = [drawable(reduce(record, s), log) for s in FIGURES[name]]
        if name == 'eq6':
            sides = [Line(SIDES[s], x, y) for s, y in zip(SIDES, rows, strict=True)]
            panels.append(Panel(labels[label], sides))
        else:
            y, *ends = rows
            band = (ends[0], ends[1]) if ends else None
            lines.append(Line(labels[label], x, y, band, label))
    return panels or [Panel('', lines)]
