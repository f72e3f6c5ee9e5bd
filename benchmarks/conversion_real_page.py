"""The tables of conversion_real.py, and the plot of its trainings."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib

Record = dict[str, Any]
KINDS = {'BN': 'tab:gray', 'plain': 'tab:red', 'PWS': 'tab:blue'}

COLUMNS: dict[str, Callable[[Record], str]] = {
    'BN': lambda r: score(r['tests'].get('BN')),
    'PWS': lambda r: score(r['tests'].get('PWS')),
    'same class': lambda r: score(r['tests']['agreement']),
    'largest error': lambda r: f'{r["tests"]["error"]:.0e}',
    'layers converted': lambda r: str(r['converted']),
    'kept': lambda r: str(r['kept']),
    'seconds': lambda r: f'{r["seconds"]:.1f}',
}


def to_markdown(records: Sequence[Record]) -> str:
    """Return the tables of records, and how they were measured.

    Args:
        records: In the order in which they were measured; not empty.
    """
    networks = {r['network']: r for r in records}
    rows = [
        [name, *(column(r) for column in COLUMNS.values())]
        for name, r in networks.items()
    ]
    lines = table(['', *COLUMNS], rows)
    if trained := [r for r in records if r['trained']]:
        head = ['trained', 'steps', 'from', *KINDS]
        lines += ['', *table(head, (row for r in trained for row in after(r)))]
    return '\n'.join([*lines, '', *notes(records), ''])


def after(record: Record) -> Iterable[list[str]]:
    """Yield the rows of the table of trainings."""
    for lr in dict.fromkeys(row['lr'] for row in record['trained']):
        results = [
            join(score(row['accuracy'], 'diverged') for row in same(record, kind, lr))
            for kind in KINDS
        ]
        yield [record['network'], str(record['steps']), f'{lr:g}', *results]


def same(record: Record, kind: str, lr: float) -> list[Record]:
    """Return the trainings of a network at a learning rate, of all seeds."""
    return [r for r in record['trained'] if (r['kind'], r['lr']) == (kind, lr)]


def plot(records: Sequence[Record], path: Path) -> None:
    """Draw the losses of all trainings: a panel for each network and learning rate.

    Raises:
        ValueError: If nothing was trained.
    """
    matplotlib.use('agg')
    from matplotlib import pyplot

    panels = [
        (r, lr)
        for r in records
        for lr in dict.fromkeys(row['lr'] for row in r['trained'])
    ]
    if not panels:
        raise ValueError('nothing was trained, so there is nothing to plot')
    figure, axes = pyplot.subplots(
        1, len(panels), figsize=(3 * len(panels), 3), sharey=True, squeeze=False
    )
    for ax, (record, lr) in zip(axes[0], panels, strict=True):
        ax.set_title(f'{record["network"]}, {lr:g}', fontsize=10)
        ax.set_xlabel('step')
        for kind, color in KINDS.items():
            for i, row in enumerate(same(record, kind, lr)):
                losses = row['losses']
                size = record['steps'] / max(len(losses), 1)
                if row['accuracy'] is None:
                    size = 1.0
                steps = [size * (k + 0.5) for k in range(len(losses))]
                label = kind if i == 0 else None
                ax.plot(steps, losses, color=color, linewidth=1, label=label)
    first = [v for r, _ in panels for row in r['trained'] for v in row['losses'][:1]]
    axes[0][0].set_ylim(0, 3 * mean(sorted(first)[: max(1, len(first) // 2)]))
    axes[0][0].set_ylabel('training loss')
    axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table."""
    lines = [f'| {" | ".join(head)} |', '|---' * len(head) + '|']
    return lines + [f'| {" | ".join(row)} |' for row in rows]


def join(cells: Iterable[str]) -> str:
    """Return the cells of several seeds as one, shorter if all are the same."""
    values = list(cells)
    return values[0] if len(set(values)) == 1 else ', '.join(values)


def score(value: float | None, none: str = '') -> str:
    return none if value is None else f'{value:.1f}'


def notes(records: Sequence[Record]) -> Iterable[str]:
    """Yield a line for each command, and one for each machine."""
    for command in dict.fromkeys(r['command'] for r in records):
        yield f'* `{command}`'
    machines: dict[str, list[Record]] = {}
    for r in records:
        threads = f'{r["threads"]} thread' + 's' * (r['threads'] > 1)
        versions = ', '.join(f'{k} {v}' for k, v in r['versions'].items())
        machines.setdefault(f'{r["cpu"]}, {threads}; {versions}', []).append(r)
    for machine, own in machines.items():
        seeds = sorted({row['seed'] for r in own for row in r['trained']})
        text = f'seeds of the trainings {", ".join(map(str, seeds))}; ' if seeds else ''
        dates = sorted({r['date'][:10] for r in own})
        date = dates[0] if len(dates) == 1 else f'{dates[0]} to {dates[-1]}'
        yield f'* {machine}; {text}{date}.'
