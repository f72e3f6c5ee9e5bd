"""Make one of the paper's tables from the records of its runs.

The paper's figure stands beside each measured one, which is the mean over the seeds,
± their standard deviation where there are several. The records come from
tools/misc/run_table.py.
"""

import argparse
import collections
import csv
import io
import math
import os
import statistics
import sys
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from pws_mmdet import tables
from pws_mmdet.utils.files import put_in_page, write_whole

ROOT = Path(__file__).resolve().parents[2]
MARK = ' ¹'


def read_records(table: tables.Table, folder: Path) -> list[dict]:
    """The whole records of the table's runs below ``folder``, oldest first."""
    records = []
    for path in sorted(folder.glob(f'{table.name}-{table.scale}/*.json')):
        record = tables.read_record(path)
        if record is None:
            print(
                f'{path} is only half written and left out; run_table.py makes it anew',
                file=sys.stderr,
            )
        elif record['row'] in table.rows and record['column'] in table.columns:
            records.append(record)
        else:
            print(
                f'{path} belongs to no cell of {table.name} and is left out',
                file=sys.stderr,
            )
    return sorted(records, key=lambda record: (record['date'], record['run']))


def cell(records: Iterable[dict], metric: tables.Metric) -> str:
    """One measured figure: '', '61.2', '61.2 ± 0.4', 'NaN', '61.2 (1 of 3 NaN)'."""
    ended = [r for r in records if not r['outcome'].startswith('failed')]
    values = [metric.of(r['metrics']) for r in ended if r['outcome'] == 'finished']
    values = [value for value in values if math.isfinite(value)]
    if not ended:
        return ''
    if not values:
        return 'NaN'
    text = f'{statistics.mean(values):.1f}'
    if len(values) > 1:
        text += f' ± {statistics.stdev(values):.1f}'
    if len(values) < len(ended):
        text += f' ({len(ended) - len(values)} of {len(ended)} NaN)'
    return text


def make_rows(
    table: tables.Table, records: list[dict], mark: str = ''
) -> list[list[str]]:
    """The table's cells, the heading first.

    Args:
        table: The table.
        records: Of its runs.
        mark: Put behind the figures that are the authors' and not the paper's.
    """
    by_cell = collections.defaultdict(list)
    for record in records:
        by_cell[record['row'], record['column']].append(record)

    # the figures of the paper in its order, each with what was measured of it
    groups: list[tuple[str | None, list[tables.Metric]]] = [
        (figure, [m for m in table.metrics if (m.beside or m.name) == figure])
        for figure in table.figures
    ]
    shown = [m for _, metrics in groups for m in metrics]
    groups += [(None, [m]) for m in table.metrics if m not in shown]

    heading = list(table.head)
    for column in table.columns.values():
        for figure, metrics in groups:
            names = [f'{figure}, paper'] if figure else []
            names += [m.name for m in metrics]
            heading += [
                ', '.join(filter(None, (column['label'], name))) for name in names
            ]
    rows = [heading]
    for row_name, row in table.rows.items():
        label = [tables.text(part) for part in row['label']]
        line = label + [''] * (len(table.head) - len(label))
        for column in table.columns:
            for figure, metrics in groups:
                if figure:
                    published = tables.text(table.paper(row_name, column, figure))
                    if published and table.is_of_authors(row_name, figure):
                        published += mark
                    line.append(published)
                line += [cell(by_cell[row_name, column], m) for m in metrics]
        rows.append(line)
    return rows


def make_notes(table: tables.Table, records: list[dict], revision: str) -> list[str]:
    """What has to be known of the figures: where, when and how they were measured."""
    if not records:
        return ['No run has a record yet.']
    notes = [f'`{command}`' for command in make_commands(table, records)]
    seeds = sorted({record['seed'] for record in records})
    dates = [a['date'] for record in records for a in tables.attempts(record)]
    dates += [record['date'] for record in records]
    notes.append(f'Seeds: {", ".join(map(str, seeds))}. Dates: {span(dates)}.')
    machines = count(records, lambda attempt: describe_machine(attempt['hardware']))
    notes.append(f'Hardware: {"; ".join(machines)}.')
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


def make_commands(table: tables.Table, records: list[dict]) -> list[str]:
    """The calls of run_table.py that make these runs and no others."""
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
        command = f'python tools/misc/run_table.py {table.name} --scale {table.scale}'
        if len(chosen) < len(cells):
            command += f' --rows {" ".join(name_rows(cells.values(), chosen))}'
        if seeds != ['0']:
            command += f' --seeds {" ".join(seeds)}'
        commands.append(command)
    return commands


def name_rows(runs: Iterable[tables.Run], chosen: Collection[str]) -> list[str]:
    """The names of cells in the order of ``runs``; of rows, where all are chosen."""
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
    """How many runs were trained by what; several attempts are 'this then that'."""
    return collections.Counter(
        ' then '.join(dict.fromkeys(map(describe, tables.attempts(record))))
        for record in records
    )


def describe_revisions(records: list[dict], revision: str) -> str:
    own, others = [], []
    for name, number in count(records, lambda attempt: attempt['revision']).items():
        runs = 'run' if number == 1 else 'runs'
        (own if name == revision else others).append(f'{name} ({number} {runs})')
    # The table does not name its own revision, which changes when it is committed.
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


def make_sheet(table: tables.Table, records: list[dict]) -> list[list[str]]:
    """The cells of :func:`make_rows` as numbers alone, for CSV.

    Where the authors' figures are marked in the page, here a last column names them.
    """
    rows = make_rows(table, records)
    of_authors = [
        [
            figure
            for figure in table.figures
            if table.is_of_authors(row, figure)
            and any(table.paper(row, column, figure) for column in table.columns)
        ]
        for row in table.rows
    ]
    if any(of_authors):
        rows[0].append("figures of the authors' repository")
        for row, figures in zip(rows[1:], of_authors, strict=True):
            row.append(', '.join(figures))
    return rows


def to_markdown(table: tables.Table, records: list[dict], notes: list[str]) -> str:
    def line(cells):
        return '| ' + ' | '.join(cells) + ' |'

    rows = make_rows(table, records, MARK)
    lines = [f'**{table.title}**', '', f'Data: {table.data}.', '']
    lines += [line(rows[0]), '|' + '---|' * len(rows[0])]
    lines += [line(cells) for cells in rows[1:]]
    if any(text.endswith(MARK) for cells in rows for text in cells):
        lines += ['', f"{MARK.strip()} From the authors' repository, not in the paper."]
    return '\n'.join([*lines, '', *(f'* {note}' for note in notes)]) + '\n'


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('table', help='such as table1; a wrong name lists them')
    parser.add_argument('--scale', choices=tables.SCALES, default='full')
    parser.add_argument(
        '--records',
        type=Path,
        default=Path('work_dirs/tables'),
        help='folder that run_table.py wrote to',
    )
    parser.add_argument(
        '--markdown',
        type=Path,
        help='new page, or one with a marked place; else it is printed',
    )
    parser.add_argument('--csv', type=Path, help='file with the same cells')
    args = parser.parse_args(argv)
    try:
        table = tables.Table(args.table, args.scale, ROOT / 'configs/tables.yml')
    except tables.TableError as e:
        print(f'make_table.py: {e}', file=sys.stderr)
        return 2
    if not os.path.isdir(args.records):
        print(
            f'make_table.py: there is no folder {args.records}; run_table.py makes '
            'it, and --records names another',
            file=sys.stderr,
        )
        return 2
    records = read_records(table, args.records)
    notes = make_notes(table, records, tables.revision(ROOT))
    markdown = to_markdown(table, records, notes)
    try:
        if args.csv:
            file = io.StringIO()
            writer = csv.writer(file, lineterminator='\n')
            writer.writerows(make_sheet(table, records))
            sheet = file.getvalue()
            write_whole(args.csv, lambda part: part.write_text(sheet, 'utf-8'))
        if args.markdown:
            put_in_page(args.markdown, f'{table.name}-{table.scale}', markdown)
    except (OSError, ValueError) as e:
        print(f'make_table.py: {e}', file=sys.stderr)
        return 2
    if not args.markdown:
        print(markdown, end='')
    return 0


if __name__ == '__main__':
    sys.exit(main())
