"""Plot what VarianceMonitorHook measured: Figures 1 and 2 of the PWS paper, and more.

Each WORK_DIR is a training that had the hook. FIGURE is one of

  1a      Var[W_o - ΔW_o] / Var[W_o] of every layer, the mean over its filters in a
          band from the least to the greatest: Figure 1(a)
  1b      Var_o[n E[ΔW_o]], the shift of the average gradient, of every layer:
          Figure 1(b)
  2a      min_o Var[W_o] of a layer in the course of training: Figure 2(a)
  2b      max_o 1 / sqrt(Var[W_o] + gamma) of a layer likewise: Figure 2(b)
  eq6     Var[Y] of every layer, beside what equations (5) and (6) say of it
  layers  the shift and Var[Y] as colours, over the layers and the training; the
          colours end at the percentiles 1 and 99

The paper's Figure 1 is of the beginning of training. So are 1a, 1b and eq6: they show
the mean over the watched steps in the first tenth of the longest training (the band
of 1a is of all of them), as far as it is finite; --step shows a single one. 2a and 2b
show the third convolution, as the paper does, or a panel for each layer of --layers.
Layers of several trainings go together by their names.

Values that are not finite are gaps, and on a logarithmic axis so are zeros, such as
the shift of a frozen layer; the legend counts them. An axis of 1a, 2a or 2b is
logarithmic if the values span more than a factor of 100, the others always are.
"""

import argparse
import csv
import difflib
import io
import os
import re
import sys
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pws_mmdet.analysis import VarianceRecord, read_record
from pws_mmdet.analysis.plot_style import figure_path, line_style, save_figure
from pws_mmdet.utils.files import write_whole

# the statistics of each figure; those that follow the first of 1a are its band
FIGURES = {
    '1a': ('var_ratio', 'var_ratio_min', 'var_ratio_max'),
    '1b': ('shift',),
    '2a': ('var_w_min',),
    '2b': ('inv_std_max',),
    'eq6': ('var_y', 'var_y_eq5', 'var_y_eq6'),
    'layers': ('shift', 'var_y'),
}
OVER_LAYERS = ('1a', '1b', 'eq6')
ALWAYS_LOG = ('1b', 'eq6', 'layers')
SYMBOLS = {
    'var_ratio': 'Var[W_o − ΔW_o] / Var[W_o]',
    'shift': 'Var_o[n E[ΔW_o]]',
    'var_w_min': 'min_o Var[W_o]',
    'inv_std_max': 'max_o 1/√(Var[W_o] + γ)',
    'var_y': 'Var[Y]',
}
# of figure eq6: name, colour, line and marker
SIDES = {
    'var_y': ('measured', '#000000', '-', 'o'),
    'var_y_eq5': ('equation (5)', '#0072B2', '--', 's'),
    'var_y_eq6': ('equation (6)', '#D55E00', ':', '^'),
}

Runs = dict[str, VarianceRecord]  # by their labels


def name_runs(
    work_dirs: Sequence[Path], labels: Sequence[str] | None = None
) -> dict[str, Path]:
    """Return the work_dirs by their labels, which are the folders' names if not given.

    Raises:
        ValueError: If there are not as many labels, or two are the same.
    """
    if labels is None:
        labels = [
            os.path.basename(os.path.realpath(work_dir)) for work_dir in work_dirs
        ]
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


def merge_names(records: Iterable[VarianceRecord]) -> list[str]:
    """Return the names of all layers, each after those that precede it in a model."""
    names: list[str] = []
    for record in records:
        at = 0
        for layer in record.layers:
            if layer.name not in names:
                names.insert(at, layer.name)
            at = names.index(layer.name) + 1
    return names


def match(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """Return the names in which one of the regular expressions is found.

    Raises:
        ValueError: If an expression is in none of them.
    """
    for pattern in patterns:
        if not any(re.search(pattern, name) for name in names):
            near = difflib.get_close_matches(pattern, names, n=5, cutoff=0.0)
            raise ValueError(
                f'no layer matches {pattern!r}; near it: {", ".join(near)}'
            )
    return [name for name in names if any(re.search(p, name) for p in patterns)]


def check_alike(runs: Runs) -> None:
    """Check that the layers of trainings can be told by their names.

    Raises:
        ValueError: If a training shares no layer with the first one, or a layer of
            the same name is another one.
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
    """Cut what a figure shows out of records.

    Args:
        runs: The records.
        figure: Name of the figure.
        patterns: Regular expressions of its layers; None for all, or for the third
            one in figures of the course of training.
        step: The step of figures over the layers, or that watched next to it; None
            for those in the first tenth of the longest training.

    Raises:
        ValueError: If an expression matches no layer, or the models have nothing in
            common.
    """
    if figure not in ('eq6', 'layers'):
        check_alike(runs)
    names = merge_names(runs.values())
    if patterns:
        names = match(names, patterns)
    elif figure in ('2a', '2b'):
        names = names[:3][-1:]
    beginning = max(record.steps[-1] for record in runs.values()) / 10
    chosen = {}
    for label, record in runs.items():
        columns = [i for i, layer in enumerate(record.layers) if layer.name in names]
        if not columns:
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


def over_layers(record: VarianceRecord, statistic: str) -> np.ndarray:
    """Return a statistic of each layer, (L,): the mean of its finite values.

    Of minima over the filters it is the minimum, and of maxima the maximum.
    """
    values = record.values[statistic]
    values = np.where(np.isfinite(values), values, np.nan)
    with warnings.catch_warnings():  # of layers without a value
        warnings.simplefilter('ignore', RuntimeWarning)
        if statistic.endswith('_min'):
            return np.nanmin(values, 0)
        if statistic.endswith('_max'):
            return np.nanmax(values, 0)
        return np.nanmean(values, 0)


def steps_text(record: VarianceRecord) -> str:
    """Return 'step 50', or 'mean of steps 1 to 60' if there are several."""
    first, last = record.steps[0], record.steps[-1]
    return f'step {first}' if first == last else f'mean of steps {first} to {last}'


def is_log(figure: str, values: Sequence[np.ndarray]) -> bool:
    """Whether the axis of these values is logarithmic.

    Raises:
        ValueError: If it could show none of them.
    """
    flat = np.concatenate([v.ravel() for v in values])
    positive = flat[np.isfinite(flat) & (flat > 0)]
    if not len(positive):
        raise ValueError(f'figure {figure} has no value that is finite and above 0')
    return figure in ALWAYS_LOG or positive.max() > 100 * positive.min()


def drawable(values: np.ndarray, log: bool) -> np.ndarray:
    """Put NaN where a value cannot be drawn."""
    return np.where(np.isfinite(values) & ((values > 0) | (not log)), values, np.nan)


def color_range(values: Sequence[np.ndarray]) -> np.ndarray:
    """Return the percentiles 1 and 99 of what can be drawn, (2,).

    The last steps before a divergence would leave no colours to the others.
    """
    flat = np.concatenate([drawable(v, log=True).ravel() for v in values])
    return np.exp(np.nanpercentile(np.log(flat), [1, 99]))


def gaps(values: Sequence[np.ndarray], log: bool) -> list[str]:
    """Say how many values cannot be drawn, if any."""
    flat = np.concatenate([v.ravel() for v in values])
    missing = np.count_nonzero(~np.isfinite(flat))
    zeros = np.count_nonzero(flat == 0) if log else 0
    remarks = []
    if missing:
        remarks.append(f'{missing} {"value" if missing == 1 else "values"} not finite')
    if zeros:
        remarks.append(f'{zeros} {"is" if zeros == 1 else "are"} 0')
    return remarks


def values_of(runs: Runs, *statistics: str) -> list[np.ndarray]:
    return [record.values[s] for record in runs.values() for s in statistics]


def depth_inches(layers: Sequence) -> float:
    """Return how wide a plot over so many layers is."""
    return max(6.4, 2 + 0.17 * len(layers))


def axis_label(statistic: str) -> str:
    return SYMBOLS[statistic].replace('_o', '$_o$')


def name_ticks(axes: Axes, names: Sequence[str]) -> None:
    """Name the layers 0, 1, ... on the x axis."""
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.grid(alpha=0.3)


def legend_entry(label: str, remarks: Sequence[str]) -> str:
    return f'{label} ({", ".join(remarks)})' if remarks else label


def gamma_text(record: VarianceRecord) -> str:
    gammas = sorted({layer.gamma for layer in record.layers})
    return 'γ = ' + ', '.join(f'{gamma:.3g}' for gamma in gammas)


def plot(runs: Runs, figure: str, title: str | None = None) -> Figure:
    """Plot a figure of what :func:`select` chose for it.

    Raises:
        ValueError: If there is nothing to draw.
    """
    if figure == 'layers':
        return plot_overview(runs, title)
    if figure == 'eq6':
        return plot_equations(runs, title)
    if figure in OVER_LAYERS:
        return plot_depth(runs, figure, title)
    return plot_course(runs, figure, title)


def plot_depth(runs: Runs, figure: str, title: str | None) -> Figure:
    """Plot figure 1a or 1b: a line for each training over the layers."""
    statistic, *band = FIGURES[figure]
    log = is_log(figure, values_of(runs, *FIGURES[figure]))
    names = merge_names(runs.values())
    picture = Figure(figsize=(depth_inches(names), 5), layout='constrained')
    axes = picture.add_subplot(ylabel=axis_label(statistic), title=title)
    if log:
        axes.set_yscale('log')
    steps = {steps_text(record) for record in runs.values()}
    for i, (label, record) in enumerate(runs.items()):
        x = [names.index(layer.name) for layer in record.layers]
        remarks = [steps_text(record)] if len(steps) > 1 else []
        remarks += gaps([record.values[statistic]], log)
        style = line_style(i)
        y = drawable(over_layers(record, statistic), log)
        axes.plot(x, y, label=legend_entry(label, remarks), **style)
        if band:
            low, high = (drawable(over_layers(record, s), log) for s in band)
            color = style['color']
            axes.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)
    name_ticks(axes, names)
    axes.set_xlabel(f'layer ({steps.pop()})' if len(steps) == 1 else 'layer')
    picture.legend(loc='outside lower center', ncols=2)
    return picture


def plot_equations(runs: Runs, title: str | None) -> Figure:
    """Plot figure eq6: a panel for each training over the layers."""
    log = is_log('eq6', values_of(runs, *SIDES))
    width = max(depth_inches(record.layers) for record in runs.values())
    size = (width, 2 + 2.6 * len(runs))
    picture = Figure(figsize=size, layout='constrained')
    picture.suptitle(title)
    panels = picture.subplots(len(runs), sharey=True, squeeze=False)[:, 0]
    names = [merge_names([record]) for record in runs.values()]
    for i, (label, record) in enumerate(runs.items()):
        axes = panels[i]
        remarks = [steps_text(record)]
        remarks += gaps([record.values[side] for side in SIDES], log)
        axes.set(title=legend_entry(label, remarks), ylabel=axis_label('var_y'))
        if log:
            axes.set_yscale('log')
        for statistic, (side, color, line, marker) in SIDES.items():
            y = drawable(over_layers(record, statistic), log)
            style = dict(color=color, linestyle=line, marker=marker, markersize=4)
            axes.plot(y, label=side, **style)
        name_ticks(axes, names[i])
        # the names need not be there again if they are below the next panel
        axes.tick_params(labelbottom=[names[i]] != names[i + 1 : i + 2])
    axes.set_xlabel('layer')
    picture.legend(handles=axes.lines, loc='outside lower center', ncols=3)
    return picture


def plot_course(runs: Runs, figure: str, title: str | None) -> Figure:
    """Plot figure 2a or 2b: a panel for each layer, with a line for each training."""
    [statistic] = FIGURES[figure]
    log = is_log(figure, values_of(runs, statistic))
    names = merge_names(runs.values())
    picture = Figure(figsize=(6.4, 1 + 3.4 * len(names)), layout='constrained')
    picture.suptitle(title)
    panels = picture.subplots(len(names), sharex=True, squeeze=False)[:, 0]
    for axes, name in zip(panels, names, strict=True):
        axes.set(title=name, ylabel=axis_label(statistic))
        axes.grid(alpha=0.3)
        if log:
            axes.set_yscale('log')
    axes.set_xlabel('training step')
    axes.xaxis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10], integer=True))
    handles = []
    for i, (label, record) in enumerate(runs.items()):
        values = record.values[statistic]
        for layer, y in zip(record.layers, drawable(values, log).T, strict=True):
            axes = panels[names.index(layer.name)]
            every = max(1, len(y) // 20)  # a marker
            [line] = axes.plot(record.steps, y, markevery=every, **line_style(i))
        remarks = [gamma_text(record), *gaps([values], log)]
        line.set_label(legend_entry(label, remarks))
        handles.append(line)
    picture.legend(handles=handles, loc='outside lower center', ncols=2)
    return picture


def plot_overview(runs: Runs, title: str | None) -> Figure:
    """Plot figure layers: a column for each training, a row for each statistic."""
    depth = max(len(record.layers) for record in runs.values())
    # no wider than a page of text shows it at a size that can be read
    size = (2.4 + 1.8 * max(2, len(runs)), 1 + 2 * max(2.4, 0.15 * depth))
    picture = Figure(figsize=size, layout='constrained')
    picture.suptitle(title)
    panels = picture.subplots(2, len(runs), sharex=True, squeeze=False)
    colors = colormaps['viridis'].with_extremes(bad='0.85')
    names = [merge_names([record]) for record in runs.values()]
    for row, statistic in zip(panels, FIGURES['layers'], strict=True):
        values = values_of(runs, statistic)
        log = is_log('layers', values)
        norm = LogNorm(*color_range(values))
        for i, (label, record) in enumerate(runs.items()):
            axes = row[i]
            image = axes.pcolormesh(
                step_edges(record.steps),
                np.arange(len(names[i]) + 1) - 0.5,
                drawable(values[i], log).T,
                norm=norm,
                cmap=colors,
                rasterized=True,  # thousands of cells
            )
            remarks = [f'({remark})' for remark in gaps([values[i]], log)]
            axes.set_title('\n'.join([label, *remarks]), fontsize='small')
            axes.invert_yaxis()
            axes.set_yticks(range(len(names[i])), names[i], fontsize=7)
            # the names need not be there again if they are left of the panel before
            axes.tick_params(labelleft=i == 0 or names[i] != names[i - 1])
        picture.colorbar(image, ax=row, label=axis_label(statistic), extend='both')
    for axes in panels[-1]:
        axes.set_xlabel('training step', fontsize='small')
        axes.tick_params('x', labelsize='small')
        axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10], integer=True))
    return picture


def step_edges(steps: np.ndarray) -> np.ndarray:
    """Return the edges of S cells, (S + 1,): each reaches to the next step."""
    last = steps[-1] - steps[-2] if len(steps) > 1 else 1
    return np.append(steps, steps[-1] + last)


def table(runs: Runs, figure: str) -> str:
    """Return the numbers of a figure as CSV, a line each; of a mean, '1-60' as step."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator='\n')
    writer.writerow(['run', 'step', 'layer', 'statistic', 'value'])
    for label, record in runs.items():
        steps = record.steps.tolist()
        if figure in OVER_LAYERS and len(steps) > 1:
            steps = [f'{steps[0]}-{steps[-1]}']
        for statistic in FIGURES[figure]:
            values = record.values[statistic]
            if figure in OVER_LAYERS:
                values = over_layers(record, statistic)[None]
            for step, row in zip(steps, values.tolist(), strict=True):
                for layer, value in zip(record.layers, row, strict=True):
                    line = [label, step, layer.name, statistic, f'{value:.6g}']
                    writer.writerow(line)
    return file.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'work_dirs',
        nargs='+',
        type=Path,
        metavar='WORK_DIR',
        help='work_dir of a training with VarianceMonitorHook',
    )
    parser.add_argument('--figure', choices=FIGURES, required=True)
    parser.add_argument(
        '-o',
        '--out',
        action='append',
        default=[],
        type=figure_path,
        metavar='FILE',
        help='picture to write, .png or .svg; may be given repeatedly',
    )
    parser.add_argument(
        '--table', metavar='FILE', help='CSV file to write the numbers to, - for stdout'
    )
    parser.add_argument('--title', help='title of the plot')
    parser.add_argument(
        '--labels',
        nargs='+',
        metavar='LABEL',
        help="a label for each WORK_DIR (default: the folder's name)",
    )
    parser.add_argument(
        '--layers',
        nargs='+',
        metavar='REGEX',
        help='regular expressions, searched in the names of the layers, of those to '
        'show (default: all; for 2a and 2b the third)',
    )
    parser.add_argument(
        '--step',
        type=int,
        metavar='N',
        help='show step N, or the watched one next to it, in 1a, 1b or eq6',
    )
    args = parser.parse_args()
    if not args.out and not args.table:
        parser.error('nothing to write: give -o or --table')
    if args.step is not None and args.figure not in OVER_LAYERS:
        parser.error(f'--step is for {", ".join(OVER_LAYERS)}')
    try:
        named = name_runs(args.work_dirs, args.labels)
        runs = {label: read_record(path) for label, path in named.items()}
        runs = select(runs, args.figure, args.layers, args.step)
        figure = plot(runs, args.figure, args.title)
        written = [str(path) for path in args.out]
        for path in args.out:
            save_figure(figure, path)
        if args.table == '-':
            print(table(runs, args.figure), end='')
        elif args.table:
            written.append(args.table)
            text = table(runs, args.figure)
            write_whole(args.table, lambda part: part.write_text(text, 'utf-8'))
    except re.error as e:
        parser.error(f'{e.pattern!r} is no regular expression: {e}')
    except (ValueError, OSError) as e:
        parser.error(str(e))
    if written:
        print(f'written to {", ".join(written)}', file=sys.stderr)


if __name__ == '__main__':
    main()
