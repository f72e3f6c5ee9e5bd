"""Put the measurements of gpu.py together.

This module needs no torch: a report can be made even if nothing else works.
"""

import json
import sys
from pathlib import Path
from typing import Any

from gpu_tables import to_markdown
from rounding import round_numbers


def write_json(report: Any, path: Path) -> None:
    """Write a file as a whole, so that a reader never finds a part of it."""
    write_lines([report], path)


def write_lines(records: list[Any], path: Path) -> None:
    """Write a line of JSON for each record."""
    part = path.with_name(f'{path.name}.partial')
    part.write_text(
        ''.join(json.dumps(round_numbers(record)) + '\n' for record in records)
    )
    part.replace(path)


def read_report(path: Path) -> dict[str, Any]:
    """Read the file that ``make_report`` wrote."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    *parts, noted = records
    return dict(
        machine=parts[0]['machine'] if parts else None,
        notes=noted['notes'],
        speed=[part for part in parts if part['part'] != 'cifar'],
        cifar=[part for part in parts if part['part'] == 'cifar'],
    )


def make_report(parts: list[Path], out: Path, markdown: Path, notes: list[str]) -> None:
    """Put the files of the parts together, and make their tables.

    Args:
        parts: Files of gpu.py. Those that cannot be read are left out.
        out: File to write, a line for each part.
        markdown: File for the tables.
        notes: Notes for the tables, as KEY=VALUE.
    """
    found = []
    for path in parts:
        try:
            found.append(json.loads(path.read_text()))
        except (OSError, ValueError) as e:
            print(f'{path} is left out: {e}', file=sys.stderr)
    noted = dict(part='notes', notes=dict(note.split('=', 1) for note in notes))
    write_lines([*found, noted], out)
    text = to_markdown(read_report(out))
    markdown.write_text(text)
    print(text, end='')
