"""Plot a validation metric of trainings against the epoch: Fig. 3 of the PWS paper.

A training is given by its record, a JSON file that tools/misc/run_table.py writes,
or by its work_dir. Trainings of one label, such as those of several seeds, become
one line, the mean of those that have a value at an epoch, in a band from the least
to the greatest. The legend says which trainings did not finish, as far as records
tell. A value that is NaN is a gap.
"""

import argparse
import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pws_mmdet.analysis.plot_style import figure_path, line_style, save_figure
from pws_mmdet.analysis.scalars import NOT_METRICS, read_scalars


@dataclass(frozen=True)
class Training:
    """The validations of a training.

    Args:
        path: Where it was read from.
        label: Its name in the legend.
        seed: Its seed, if known.
        outcome: How it ended, if not by finishing: 'diverged at iteration 37'.
        curve: Metrics of each validated epoch.
    """

    path: Path
    label: str
    seed: int | None
    outcome: str | None
    curve: dict[int, dict[str, float]]

    @property
    def metrics(self) -> set[str]:
        return set().union(*self.curve.values())


def read(path: str | Path, label: str | None = None) -> Training:
    """Read a record or a work_dir.

    Args:
        path: The JSON file or the folder.
        label: Name in the legend instead of the record's or the folder's.

    Raises:
        ValueError: If it is neither.
        OSError: If it cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        curve = read_scalars(path).validations
        return Training(path, label or path.resolve().name, None, None, curve)
    try:
        record = json.loads(path.read_text(encoding='utf-8'))
        outcome = record['outcome'].split(':')[0]  # a failure's reason is long
        return Training(
            path,
            label or record['label'],
            record.get('seed'),
            None if outcome == 'finished' else outcome,
            {entry['epoch']: numbers(entry) for entry in record['curve']},
        )
    except KeyError as e:
        raise ValueError(f'{path} is no record of a training: it lacks {e}') from e
    except (AttributeError, TypeError, ValueError) as e:
        raise ValueError(f'{path} is no record of a training: {e}') from e


def numbers(entry: dict[str, Any]) -> dict[str, float]:
    """Return the metrics of a validation, NaN where JSON has null."""
    return {
        key: math.nan if value is None else float(value)
        for key, value in entry.items()
        if key not in NOT_METRICS and isinstance(value, int | float | None)
    }


def group(trainings: Iterable[Training]) -> dict[str, list[Training]]:
    """Return the trainings of each label, in the order of the first ones."""
    groups: dict[str, list[Training]] = {}
    for training in trainings:
        groups.setdefault(training.label, []).append(training)
    return groups


def check(trainings: Sequence[Training], metric: str) -> None:
    """Check that trainings can share a plot of a metric.

    Raises:
        ValueError: If one validated without it, or occurs twice.
    """
    if not any(training.curve for training in trainings):
        raise ValueError('none of the trainings came to a validation')
    seen: dict[tuple[str, int], Training] = {}
    for training in trainings:
        if training.curve and metric not in training.metrics:
            raise ValueError(
                f'{training.path} has no metric {metric!r}; there are '
                f'{", ".join(sorted(training.metrics))}'
            )
        if training.seed is None:
            continue
        twin = seen.setdefault((training.label, training.seed), training)
        if twin is not training:
            raise ValueError(
                f'{twin.path} and {training.path} are both {training.label!r} of '
                f'seed {training.seed}: tell them apart with --labels'
            )


def legend_entry(label: str, trainings: Sequence[Training]) -> str:
    """Return a label with what is to be known of its trainings."""
    outcomes = Counter(t.outcome for t in trainings if t.outcome is not None)
    if len(trainings) == 1:
        notes = list(outcomes)
    else:
        notes = [f'{len(trainings)} runs']
        notes += [f'{count} {outcome}' for outcome, count in outcomes.items()]
    return f'{label} ({", ".join(notes)})' if notes else label


def plot(
    trainings: Sequence[Training], metric: str, title: str | None = None
) -> Figure:
    """Plot a metric against the epoch, with a line for each label.

    Args:
        trainings: The trainings. Those that lack an epoch, or have NaN there, do
            not count at it.
        metric: The metric, such as 'box/f_measure'.
        title: Title of the plot.

    Raises:
        ValueError: If a training has other metrics only, or occurs twice.
    """
    check(trainings, metric)
    figure = Figure(figsize=(6.4, 4.4), layout='constrained')
    axes = figure.add_subplot(xlabel='epoch', ylabel=metric, title=title)
    for i, (label, members) in enumerate(group(trainings).items()):
        epochs = sorted(set().union(*(training.curve for training in members)))
        lows, means, highs = [], [], []
        for epoch in epochs:
            values = [t.curve.get(epoch, {}).get(metric, math.nan) for t in members]
            values = [v for v in values if not math.isnan(v)] or [math.nan]
            lows.append(min(values))
            means.append(fmean(values))
            highs.append(max(values))
        style = line_style(i)
        axes.plot(epochs, means, label=legend_entry(label, members), **style)
        if len(members) > 1:
            band = dict(color=style['color'], alpha=0.2, linewidth=0)
            axes.fill_between(epochs, lows, highs, **band)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    figure.legend(loc='outside lower center', ncols=2)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'records',
        nargs='+',
        type=Path,
        metavar='RECORD',
        help='JSON file of tools/misc/run_table.py, or work_dir of a training',
    )
    parser.add_argument(
        '-o',
        '--out',
        action='append',
        required=True,
        type=figure_path,
        metavar='FILE',
        help='image to write, .png or .svg; may be given repeatedly',
    )
    parser.add_argument(
        '--metric', default='box/f_measure', help='(default: box/f_measure)'
    )
    parser.add_argument('--title', help='title of the plot')
    parser.add_argument(
        '--labels',
        nargs='+',
        metavar='LABEL',
        help="a label for each RECORD (default: the record's, or the folder's name)",
    )
    args = parser.parse_args()
    labels = args.labels or [None] * len(args.records)
    if len(labels) != len(args.records):
        parser.error(f'{len(args.records)} RECORDs but {len(labels)} --labels')
    try:
        trainings = [read(*pair) for pair in zip(args.records, labels, strict=True)]
        figure = plot(trainings, args.metric, args.title)
        for path in args.out:
            save_figure(figure, path)
    except (ValueError, OSError) as e:
        parser.error(str(e))
    print(f'written to {", ".join(map(str, args.out))}')


if __name__ == '__main__':
    main()
