"""Make one of the paper's tables from the records of its runs.

The paper's figure stands beside each measured one, which is the mean over the seeds,
± their standard deviation where there are several. The records come from
tools/misc/run_table.py.
"""

import argparse
import collections
import csv
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path

from pws_mmdet import tables
from pws_mmdet.files import put_in_page

ROOT = Path(__file__).resolve().parents[2]


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


def make_rows(table: tables.Table, records: list[dict]) -> list[list[str]]:
    """The table's cells, the heading first."""
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
                    line.append(tables.text(table.paper(row_name, column, figure)))
                line += [cell(by_cell[row_name, column], m) for m in metrics]
        rows.append(line)
    return rows


def make_notes(table: tables.Table, records: list[dict], revision: str) -> list[str]:
    """What has to be known of the figures: where, when and how they were measured."""
    if not records:
        return ['No run has a record yet.']
    seeds = sorted({record['seed'] for record in records})
    notes = [
        f'`python tools/misc/run_table.py {table.name} --scale {table.scale}'
        + (f' --seeds {" ".join(map(str, seeds))}`' if seeds != [0] else '`'),
        f'Seeds: {", ".join(map(str, seeds))}. '
        f'Dates: {span(record["date"] for record in records)}.',
    ]
    machines = collections.Counter(describe_machine(record) for record in records)
    notes.append(f'Hardware: {"; ".join(machines)}.')
    versions = collections.Counter(
        ', '.join(f'{k} {v}' for k, v in record['versions'].items())
        for record in records
    )
    notes.append(f'Versions: {"; ".join(versions)}.')
    revisions = collections.Counter(record['revision'] for record in records)
    counts = ', '.join(f'{name} ({n} runs)' for name, n in revisions.items())
    # The table does not name its own revision, which changes when it is committed.
    others = set(revisions) != {revision}
    notes.append(
        f'Revisions of the code{", others than this one" if others else ""}: '
        f'{counts}; a "+" marks code that differed from the commit.'
    )
    for record in records:
        if record['outcome'] != 'finished':
            notes.append(f'{record["run"]} {record["outcome"]}.')
        elif not any(metric.key in record['metrics'] for metric in table.metrics):
            notes.append(f'{record["run"]} detected nothing at its end.')
    return notes


def span(dates: Iterable[str]) -> str:
    first, *_, last = sorted([*(dates := list(dates)), *dates])
    return first if first == last else f'{first} to {last}'


def describe_machine(record: dict) -> str:
    hardware = record['hardware']
    if hardware.get('gpu'):
        return f'{hardware["processes"]} x {hardware["gpu"]}'
    threads = hardware['threads'] * hardware['processes']
    return f'{hardware["cpu"]}, {threads} of {hardware["cores"]} cores a run'


def to_markdown(table: tables.Table, rows: list[list[str]], notes: list[str]) -> str:
    def line(cells):
        return '| ' + ' | '.join(cells) + ' |'

    lines = [f'**{table.title}**', '', f'Data: {table.data}.', '']
    lines += [line(rows[0]), '|' + '---|' * len(rows[0])]
    lines += [line(cells) for cells in rows[1:]]
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
    if not args.records.is_dir():
        print(
            f'make_table.py: there is no folder {args.records}; run_table.py makes '
            'it, and --records names another',
            file=sys.stderr,
        )
        return 2
    records = read_records(table, args.records)
    rows = make_rows(table, records)
    markdown = to_markdown(
        table, rows, make_notes(table, records, tables.revision(ROOT))
    )
    if args.markdown:
        try:
            put_in_page(args.markdown, f'{table.name}-{table.scale}', markdown)
        except ValueError as e:
            print(f'make_table.py: {e}', file=sys.stderr)
            return 2
    else:
        print(markdown, end='')
    if args.csv:
        args.csv.parent.mkdir(parents=True, exist_ok=True)
        with open(args.csv, 'w', encoding='utf-8', newline='') as file:
            csv.writer(file, lineterminator='\n').writerows(rows)
    return 0


if __name__ == '__main__':
    sys.exit(main())
