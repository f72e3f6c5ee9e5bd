"""Draw what VarianceMonitorHook measured with Matplotlib."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..utils.files import write_whole
from .figures import (
    SYMBOLS,
    HeatMap,
    course_figure,
    depth_figure,
    overview_figure,
    table,
)
from .plot_style import SIDE_STYLES, line_style, save_figure
from .selection import Runs, read_runs, select


@dataclass(frozen=True)
class VariancePlot:
    """A figure and its numbers.

    Args:
        figure: The figure of Matplotlib.
        table: Its numbers as CSV.
    """

    figure: Figure
    table: str

    def save(
        self, figures: Sequence[str | Path] = (), table: str | Path | None = None
    ) -> None:
        """Write the figure to .png and .svg files, and the numbers to a CSV file."""
        for path in figures:
            save_figure(self.figure, Path(path))
        if table is not None:
            write_whole(table, lambda part: part.write_text(self.table, 'utf-8'))


def plot_variance(
    work_dirs: Sequence[str | Path],
    figure: str,
    labels: Sequence[str] | None = None,
    layers: Sequence[str] | None = None,
    step: int | None = None,
    title: str | None = None,
) -> VariancePlot:
    """Plot what VarianceMonitorHook measured in trainings.

    Args:
        work_dirs: The work_dirs of the trainings.
        figure: '1a', '1b', '2a' or '2b' for a figure of the paper, 'eq6' for its
            equations (5) and (6), 'layers' for an overview.
        labels: A label for each training. By default it is the folder's name.
        layers: Regular expressions, searched in the names of the layers. None means
            the third layer for 2a and 2b, and all layers for the other figures.
        step: For 1a, 1b and eq6, show the watched step nearest to this one. None means
            the mean over the watched steps in the first tenth of the longest training.
        title: The title of the figure.

    Raises:
        ValueError: If a folder holds no record, the trainings cannot be compared, no
            layer matches, or there is no value to draw.
    """
    runs = select(read_runs(work_dirs, labels), figure, layers, step)
    return VariancePlot(draw_figure(runs, figure, title), table(runs, figure))


def draw_figure(runs: Runs, name: str, title: str | None = None) -> Figure:
    """Draw a figure of the records that ``select`` returned for it.

    Raises:
        ValueError: If there is no value to draw.
    """
    if name == 'layers':
        return _draw_overview(runs, title)
    if name == 'eq6':
        return _draw_equations(runs, title)
    if name in ('1a', '1b'):
        return _draw_depth(runs, name, title)
    return _draw_course(runs, name, title)


def _draw_depth(runs: Runs, name: str, title: str | None) -> Figure:
    """Draw figure 1a or 1b: a line for each training over the layers."""
    data = depth_figure(runs, name)
    size = (_width(data.layers), 5)
    figure = Figure(figsize=size, layout='constrained')
    axes = figure.add_subplot(ylabel=_axis_label(data.statistic), title=title)
    if data.log:
        axes.set_yscale('log')
    for i, line in enumerate(data.panels[0].lines):
        x = [data.layers.index(layer) for layer in line.x]
        style = line_style(i)
        axes.plot(x, line.y, label=line.label, **style)
        if line.band is not None:
            options = dict(color=style['color'], alpha=0.2, linewidth=0)
            axes.fill_between(x, *line.band, **options)
    _name_ticks(axes, data.layers)
    axes.set_xlabel(data.x_label)
    figure.legend(loc='outside lower center', ncols=2)
    return figure


def _draw_equations(runs: Runs, title: str | None) -> Figure:
    """Draw figure eq6: a panel for each training over the layers."""
    data = depth_figure(runs, 'eq6')
    names = [panel.lines[0].x for panel in data.panels]
    size = (max(map(_width, names)), 2 + 2.6 * len(names))
    figure = Figure(figsize=size, layout='constrained')
    figure.suptitle(title or '')
    rows = figure.subplots(len(names), sharey=True, squeeze=False)[:, 0]
    for i, (axes, panel) in enumerate(zip(rows, data.panels, strict=True)):
        axes.set(title=panel.title, ylabel=_axis_label(data.statistic))
        if data.log:
            axes.set_yscale('log')
        for line, side in zip(panel.lines, SIDE_STYLES, strict=True):
            color, dash, marker = side
            style = dict(color=color, linestyle=dash, marker=marker, markersize=4)
            axes.plot(line.y, label=line.label, **style)
        _name_ticks(axes, names[i])
        # Leave out the names if the panel below has the same ones.
        axes.tick_params(labelbottom=[names[i]] != names[i + 1 : i + 2])
    axes.set_xlabel(data.x_label)
    figure.legend(handles=axes.lines, loc='outside lower center', ncols=3)
    return figure


def _draw_course(runs: Runs, name: str, title: str | None) -> Figure:
    """Draw figure 2a or 2b: a panel for each layer, with a line for each training."""
    data = course_figure(runs, name)
    size = (6.4, 1 + 3.4 * len(data.panels))
    figure = Figure(figsize=size, layout='constrained')
    figure.suptitle(title or '')
    rows = figure.subplots(len(data.panels), sharex=True, squeeze=False)[:, 0]
    handles = {}
    for axes, panel in zip(rows, data.panels, strict=True):
        axes.set(title=panel.title, ylabel=_axis_label(data.statistic))
        axes.grid(alpha=0.3)
        if data.log:
            axes.set_yscale('log')
        for i, line in enumerate(panel.lines):
            if line.x:
                every = max(1, len(line.y) // 20)  # a marker at every so many points
                options = dict(label=line.label, markevery=every, **line_style(i))
                [handles[i]] = axes.plot(line.x, line.y, **options)
    axes.set_xlabel(data.x_label)
    axes.xaxis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10], integer=True))
    ordered = [handles[i] for i in sorted(handles)]
    figure.legend(handles=ordered, loc='outside lower center', ncols=2)
    return figure


def _draw_overview(runs: Runs, title: str | None) -> Figure:
    """Draw figure layers: a column for each training, a row for each statistic."""
    rows = overview_figure(runs)
    depth = max(len(record.layers) for record in runs.values())
    # The figure is at most as wide as a page of text, so that its text can be read.
    size = (2.4 + 1.8 * max(2, len(runs)), 1 + 2 * max(2.4, 0.15 * depth))
    figure = Figure(figsize=size, layout='constrained')
    figure.suptitle(title or '')
    panels = figure.subplots(2, len(runs), sharex=True, squeeze=False)
    for row, axes_row in zip(rows, panels, strict=True):
        norm = LogNorm(row.low, row.high)
        names = None
        for axes, heat_map in zip(axes_row, row.maps, strict=True):
            mesh = _draw_heat_map(axes, heat_map, norm)
            # Leave out the names if the panel on the left has the same ones.
            axes.tick_params(labelleft=heat_map.layers != names)
            names = heat_map.layers
        label = _axis_label(row.statistic)
        figure.colorbar(mesh, ax=axes_row, label=label, extend='both')
    for axes in panels[-1]:
        axes.set_xlabel('training step', fontsize='small')
        axes.tick_params('x', labelsize='small')
        axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10], integer=True))
    return figure


def _draw_heat_map(axes: Axes, heat_map: HeatMap, norm: LogNorm):
    """Draw the heat map of a training and return its mesh."""
    names = heat_map.layers
    mesh = axes.pcolormesh(
        _step_edges(heat_map.steps),
        np.arange(len(names) + 1) - 0.5,
        heat_map.values,
        norm=norm,
        cmap=colormaps['viridis'].with_extremes(bad='0.85'),
        rasterized=True,  # an SVG of thousands of cells would be large
    )
    remarks = [f'({remark})' for remark in heat_map.remarks]
    axes.set_title('\n'.join([heat_map.label, *remarks]), fontsize='small')
    axes.invert_yaxis()
    axes.set_yticks(range(len(names)), names, fontsize=7)
    return mesh


def _step_edges(steps: np.ndarray) -> np.ndarray:
    """Return the edges of S cells, (S + 1,). A cell ends where the next one begins."""
    last = steps[-1] - steps[-2] if len(steps) > 1 else 1
    return np.append(steps, steps[-1] + last)


def _width(layers: Sequence[str]) -> float:
    """Return the width in inches of a plot over these layers."""
    return max(6.4, 2 + 0.17 * len(layers))


def _axis_label(statistic: str) -> str:
    return SYMBOLS[statistic].replace('_o', '$_o$')


def _name_ticks(axes: Axes, names: Sequence[str]) -> None:
    """Name the layers 0, 1, ... on the x axis."""
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.grid(alpha=0.3)
