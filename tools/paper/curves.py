"""Plot a validation metric of trainings against the epoch."""

import fnmatch
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pws_mmdet.analysis.plot_style import line_style
from pws_mmdet.analysis.scalars import NOT_METRICS, read_scalars
from pws_mmdet.utils.records import read_records


@dataclass(frozen=True)
class Training:
    """The validations of a training.

    Args:
        source: The work_dir, or the file and the run, that they were read from.
        label: Name in the legend.
        seed: Seed of the training, if known.
        outcome: None if it finished, or else how it ended: 'diverged at iteration 37'.
        curve: The metrics of each validated epoch.
    """

    source: str
    label: str
    seed: int | None
    outcome: str | None
    curve: dict[int, dict[str, float]]

    @property
    def metrics(self) -> set[str]:
        return set().union(*self.curve.values())


def read(source: str | Path, label: str | None = None) -> list[Training]:
    """Read a work_dir or a file of records.

    Args:
        source: A work_dir, a file that run_table.py wrote, or FILE:RUN. RUN is the
            name of a run in that file, or a pattern such as 'pws-b2-s*'.
        label: Name in the legend instead of the record's or the folder's.

    Raises:
        ValueError: If it holds no log and no record of this name.
        OSError: If it cannot be read.
    """
    path, runs = Path(source), '*'
    if path.is_dir():
        curve = read_scalars(path).validations
        label = label or path.resolve().name
        return [Training(str(path), label, None, None, curve)]
    if not path.exists() and ':' in path.name:
        name, _, runs = str(source).rpartition(':')
        path = Path(name)
    records = read_records(path)
    trainings = [
        _read_record(path, record, label)
        for record in records
        if fnmatch.fnmatchcase(str(record.get('run')), runs)
    ]
    if not trainings:
        names = ', '.join(str(record.get('run')) for record in records)
        raise ValueError(f'{path} has no run {runs!r}; there are: {names or "none"}')
    return trainings


def _read_record(path: Path, record: dict, label: str | None) -> Training:
    source = f'{path}:{record.get("run")}'
    try:
        outcome = record['outcome'].split(':')[0]  # the reason of a failure is long
        return Training(
            source,
            label or record['label'],
            record.get('seed'),
            None if outcome == 'finished' else outcome,
            {entry['epoch']: _metrics(entry) for entry in record['curve']},
        )
    except KeyError as e:
        raise ValueError(f'{source} is no record of a training: it lacks {e}') from e
    except (AttributeError, TypeError, ValueError) as e:
        raise ValueError(f'{source} is no record of a training: {e}') from e


def _metrics(entry: dict[str, Any]) -> dict[str, float]:
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
        ValueError: If one has other metrics only, or occurs twice.
    """
    if not any(training.curve for training in trainings):
        raise ValueError('none of the trainings reached a validation')
    seen: dict[tuple[str, int], Training] = {}
    for training in trainings:
        if training.curve and metric not in training.metrics:
            raise ValueError(
                f'{training.source} has no metric {metric!r}; there are '
                f'{", ".join(sorted(training.metrics))}'
            )
        if training.seed is None:
            continue
        twin = seen.setdefault((training.label, training.seed), training)
        if twin is not training:
            raise ValueError(
                f'{twin.source} and {training.source} are both {training.label!r} of '
                f'seed {training.seed}: name them differently with --labels'
            )


def legend_entry(label: str, trainings: Sequence[Training]) -> str:
    """Return a label, with the number of its trainings and how they ended."""
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
        trainings: The trainings. At an epoch, those count that have a value there.
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
