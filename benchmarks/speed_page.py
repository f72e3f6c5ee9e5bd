"""The tables of speed.py as Markdown."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from comparison import PROFILED
from networks import PARTS, LayerPart

from pws_mmdet.utils.records import read_records

OVER = 'over that of plain convolutions'


def read_measurements(path: str | Path) -> list[dict[str, Any]]:
    """Read the records that a run of speed.py wrote.

    Raises:
        ValueError: If the file holds something else.
        OSError: If it cannot be read.
    """
    try:
        records = read_records(path)
        to_markdown(records)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as e:
        raise ValueError(f'{path} is no file of this program: {e!r}') from e
    return records


def to_markdown(records: Sequence[dict[str, Any]], title: str | None = None) -> str:
    """Return the tables of a run, and how they were measured.

    Args:
        records: The records of the run.
        title: The title of one table; None for all tables.

    Raises:
        ValueError: If there is no table of this title.
    """
    tables = make_tables(records)
    if title is not None:
        if title not in tables:
            raise ValueError(f'there is no table {title!r}; there are: {list(tables)}')
        tables = {title: tables[title]}
    return '\n'.join([*tables.values(), make_notes(records)])


def make_tables(records: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Return the tables of a run by their titles."""
    tables = {}
    compared = [r for r in records if r['what'] == 'comparison']
    for part, inference in dict.fromkeys((r['part'], r['inference']) for r in compared):
        chosen = [
            r for r in compared if r['part'] == part and r['inference'] == inference
        ]
        step = f'{part}, {"inference" if inference else "training step"}'
        title = f'{step}: time {OVER}'
        tables[title] = f'**{title}**\n\n' + format_cells(chosen, 'time', 'ms')
        if not inference and not isinstance(PARTS[part], LayerPart):
            title = f'{step}: peak memory {OVER}'
            tables[title] = (
                f'**{title}** (in parentheses what it is above, in sizes of the '
                'weights)\n\n' + format_cells(chosen, 'memory', 'MiB')
            )
    floors = [r for r in records if r['what'] == 'floor']
    if floors:
        title = 'Standardizing all filters once, over copying them once'
        tables[title] = f'**{title}**\n\n' + format_floors(floors)
    for record in records:
        if record['what'] == 'profile':
            size = f'{record["batch_size"]} x {record["image_size"]}²'
            title = f'{record["part"]}, training step, {size}: ms in each operator'
            tables[title] = f'**{title}**\n\n' + format_profile(record)
    return tables


def format_cells(records: Sequence[dict[str, Any]], what: str, unit: str) -> str:
    """Return a table with a row for each kind and a column for each batch and size."""
    kinds = list(dict.fromkeys(kind for r in records for kind in r['kinds']))
    head = ' | '.join(f'{r["batch_size"]} x {r["image_size"]}²' for r in records)
    lines = [f'| | {head} |', '|---' * (len(records) + 1) + '|']
    for kind in kinds:
        texts = []
        for record in records:
            first, row = record['kinds'][kinds[0]], record['kinds'][kind]
            if row.get('error'):
                texts.append(row['error'].partition(':')[0])
            elif kind == kinds[0]:
                number = row['ms' if what == 'time' else 'peak_mib']
                texts.append(f'{number:.0f} {unit}')
            elif first.get('error'):
                texts.append('')
            elif what == 'time':
                texts.append(f'{row["time"]:.3f}')
            else:
                above = row['peak_mib'] - first['peak_mib']
                texts.append(
                    f'{row["peak_mib"] / first["peak_mib"]:.3f} '
                    f'({above / first["weights_mib"]:+.1f})'
                )
        lines.append(f'| {kind} | {" | ".join(texts)} |')
    return '\n'.join(lines) + '\n'


def format_floors(floors: Sequence[dict[str, Any]]) -> str:
    lines = ['| | layers | MiB | standardize, ms | copy, ms | copy, GB/s | ratio |']
    lines += ['|---|---|---|---|---|---|---|']
    lines += [
        f'| {f["part"]} | {f["layers"]} | {f["weights_mib"]:.1f} '
        f'| {f["ms"]:.2f} | {f["copy_ms"]:.2f} | {f["copy_gb_per_second"]:.1f} '
        f'| {f["time"]:.2f} |'
        for f in floors
    ]
    return '\n'.join(lines) + '\n'


def format_profile(record: dict[str, Any]) -> str:
    lines = [f'| | {" | ".join(PROFILED)} | difference |', '|---|---|---|---|']
    for row in [*record['operators'], dict(operator='whole step', ms=record['ms'])]:
        plain, pws = row['ms']
        name = row['operator'].replace('|', r'\|')
        lines.append(f'| {name} | {plain:.1f} | {pws:.1f} | {pws - plain:+.1f} |')
    return '\n'.join(lines) + '\n'


def make_notes(records: Sequence[dict[str, Any]]) -> str:
    """Return how, where and when a run was measured."""
    run = records[0]
    counts = [r['rounds'] for r in records if 'rounds' in r]
    for record in records:
        rows = record.get('kinds', {}).values()
        counts += [row['rounds'] for row in rows if 'rounds' in row]
    threads = run['threads']
    threads = f'{threads} thread' + 's' * (threads > 1)
    hardware = run['gpu'] or f'{run["cpu"]}, {threads}'
    versions = ', '.join(f'{k} {v}' for k, v in run['versions'].items())
    switches = [name for name in ('amp', 'channels_last') if run[name]]
    notes = [
        f'`{run["command"]}`',
        f'{", ".join([hardware, *switches])}; seed {run["seed"]}; '
        f'{run["date"][:10]}; {min(counts, default=0)} rounds or more.',
        f'Versions: {versions}.',
    ]
    return '\n'.join(f'* {note}' for note in notes) + '\n'
