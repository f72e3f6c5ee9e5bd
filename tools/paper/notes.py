"""The notes below a table: how, where and when its runs were trained."""

import collections
import math
from collections.abc import Callable, Collection, Iterable

from grid import Run, Table
from records import attempts


def make_notes(table: Table, records: list[dict], revision: str) -> list[str]:
    """Return how, when and where the figures of a table were measured.

    Args:
        table: The table.
        records: The records of its runs.
        revision: The commit of this code.
    """
    if not records:
        return ['No run has a record yet.']
    notes = [f'`{command}`' for command in make_commands(table, records)]
    seeds = sorted({record['seed'] for record in records})
    dates = [a['date'] for record in records for a in attempts(record)]
    dates += [record['date'] for record in records]
    notes.append(f'Seeds: {", ".join(map(str, seeds))}. Dates: {span(dates)}.')
    machines = count(records, lambda attempt: describe_machine(attempt['hardware']))
    notes.append(f'Hardware: {"; ".join(machines)}.')
    elsewhere = [r for r in records if any(a.get('data') for a in attempts(r))]
    for data, number in count(elsewhere, lambda a: str(a.get('data'))).items():
        notes.append(f'With `--data {data}`: {number} of {len(records)} runs.')
    versions = count(
        records, lambda a: ', '.join(f'{k} {v}' for k, v in a['versions'].items())
    )
    notes.append(f'Versions: {"; ".join(versions)}.')
    notes.append(describe_revisions(records, revision))
    for record in records:
        values = [metric.of(record['metrics']) for metric in table.metrics]
        if record['outcome'] != 'finished':
            notes.append(f'{record["run"]} {record["outcome"]}.')
        elif not any(metric.key in record['metrics'] for metric in table.metrics):
            notes.append(f'{record["run"]} detected nothing at its end.')
        elif not all(map(math.isfinite, values)):
            notes.append(f'{record["run"]} finished with a figure that is not finite.')
    return notes


def make_commands(table: Table, records: list[dict]) -> list[str]:
    """Return the commands that train exactly these runs."""
    cells = {run.cell: run for run in table.runs()}
    names = {(run.row, run.column): cell for cell, run in cells.items()}
    of_seed = collections.defaultdict(set)
    for record in records:
        of_seed[record['seed']].add(names[record['row'], record['column']])
    seeds_of = collections.defaultdict(list)
    for seed in sorted(of_seed):
        seeds_of[frozenset(of_seed[seed])].append(str(seed))
    commands = []
    for chosen, seeds in seeds_of.items():
        command = f'python tools/paper/run_table.py {table.name} --scale {table.scale}'
        if len(chosen) < len(cells):
            command += f' --rows {" ".join(name_rows(cells.values(), chosen))}'
        if seeds != ['0']:
            command += f' --seeds {" ".join(seeds)}'
        commands.append(command)
    return commands


def name_rows(runs: Iterable[Run], chosen: Collection[str]) -> list[str]:
    """Return the names of cells in the order of ``runs``.

    If all cells of a row are chosen, the row's name stands for them.
    """
    by_row = collections.defaultdict(list)
    for run in runs:
        by_row[run.row].append(run.cell)
    names = []
    for row, cells in by_row.items():
        some = [cell for cell in cells if cell in chosen]
        names += [row] if some == cells else some
    return names


def count(
    records: list[dict], describe: Callable[[dict], str]
) -> collections.Counter[str]:
    """Count the runs by a description of what trained them.

    If the attempts of a run differ, the description is 'this then that'.
    """
    return collections.Counter(
        ' then '.join(dict.fromkeys(map(describe, attempts(record))))
        for record in records
    )


def describe_revisions(records: list[dict], revision: str) -> str:
    own, others = [], []
    for name, number in count(records, lambda attempt: attempt['revision']).items():
        runs = 'run' if number == 1 else 'runs'
        (own if name == revision else others).append(f'{name} ({number} {runs})')
    # Runs of this revision come first; the others are named as such.
    parts = [f'Revisions of the code: {", ".join(own)}'] if own else []
    if others:
        start = '' if own else 'Revisions of the code, '
        parts.append(f'{start}others than this one: {", ".join(others)}')
    return f'{"; ".join(parts)}; a "+" marks code that differed from the commit.'


def span(dates: Iterable[str]) -> str:
    first, *_, last = sorted([*(dates := list(dates)), *dates])
    return first if first == last else f'{first} to {last}'


def describe_machine(hardware: dict) -> str:
    if hardware.get('gpu'):
        return f'{hardware["processes"]} x {hardware["gpu"]}'
    threads = hardware['threads'] * hardware['processes']
    return f'{hardware["cpu"]}, {threads} of {hardware["cores"]} cores a run'
