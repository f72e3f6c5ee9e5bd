"""The tables of conversion_real.py."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

Record = dict[str, Any]
MIB = 2**20

COLUMNS: dict[str, Callable[[Record], str]] = {
    'BN': lambda r: score(r['tests'].get('BN')),
    'PWS': lambda r: score(r['tests'].get('PWS')),
    'same class': lambda r: score(r['tests']['agreement']),
    'error of the scores': lambda r: f'{r["tests"]["error"]:.2f}',
    'layers converted': lambda r: str(r['converted']),
    'kept': lambda r: str(r['kept']),
    'median error of a layer': lambda r: f'{r["median_error"] or 0:.2f}',
    'seconds': lambda r: f'{r["seconds"]:.0f}',
    'MiB': lambda r: f'{r["memory"]["during"] / MIB:.0f}',
    'of it before': lambda r: f'{r["memory"]["before"] / MIB:.0f}',
}


def to_markdown(records: Sequence[Record]) -> str:
    """Return the tables of records, and how they were measured.

    Args:
        records: In the order in which they were measured; not empty.
    """
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(title(record), []).append(record)
    for group in groups.values():
        group.sort(key=lambda r: r['seed'])
    lines = table(
        ['', *COLUMNS],
        (
            [name, *(join(map(column, group)) for column in COLUMNS.values())]
            for name, group in groups.items()
        ),
    )
    trained = {name: g for name, g in groups.items() if any(r['trained'] for r in g)}
    if trained:
        lines += [
            '',
            *table(['trained', 'epochs', 'from', 'BN', 'PWS'], after(trained)),
        ]
    return '\n'.join([*lines, '', *notes(records), ''])


def title(record: Record) -> str:
    """Return the name of a row: the network, and what differs from the defaults."""
    exclude = record['exclude']
    name = f'{record["network"]}, {record["images"]} images'
    if exclude is None:
        return name
    return f'{name}, `exclude=({", ".join(map(repr, exclude))})`'.replace('|', r'\|')


def after(groups: dict[str, list[Record]]) -> Iterable[list[str]]:
    """Yield the rows of the table of trainings."""
    for name, group in groups.items():
        rows = [(r['epochs'], row) for r in group for row in r['trained']]
        for epochs, lr in dict.fromkeys((epochs, row['lr']) for epochs, row in rows):
            same = [row for n, row in rows if (n, row['lr']) == (epochs, lr)]
            results = [
                join(score(r[kind], 'diverged') for r in same)
                for kind in 'BN PWS'.split()
            ]
            yield [name, str(epochs), f'{lr:g}', *results]


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
        seeds = ', '.join(map(str, sorted({r['seed'] for r in own})))
        dates = sorted({r['date'][:10] for r in own})
        date = dates[0] if len(dates) == 1 else f'{dates[0]} to {dates[-1]}'
        yield f'* {machine}; seeds {seeds}; {date}.'
