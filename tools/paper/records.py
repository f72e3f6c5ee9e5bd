"""The records of the paper's runs: TABLE-SCALE.jsonl, one line of JSON a run.

Reading needs neither torch nor MMDetection: ``run_table.py --dry-run`` starts fast.
"""

import json
from pathlib import Path
from typing import Any

# What page.py needs of a record, of each attempt in it, and of the hardware
ATTEMPT = dict(date=str, revision=str, versions=dict, hardware=dict)
RECORD = dict(
    run=str, row=str, column=str, seed=int, outcome=str, metrics=dict, **ATTEMPT
)
HARDWARE = dict(cpu=str, cores=int, processes=int, threads=int)


def read_records(path: str | Path) -> tuple[dict[str, dict], list[str]]:
    """Read the records of a table's runs.

    Args:
        path: The file. If there is none, there are no records.

    Returns:
        The records by the names of their runs, and the lines that are not complete
        records.
    """
    try:
        text = Path(path).read_text(encoding='utf-8', errors='replace')
    except FileNotFoundError:
        return {}, []
    found, broken = {}, []
    for line in text.splitlines():
        record = read_line(line)
        if record is None:
            broken.append(line)
        else:
            found[record['run']] = record
    return found, broken


def read_line(line: str) -> dict | None:
    """Return the record of a line, or None if the line is no complete record."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError:
        return None
    return record if _is_complete(record) else None


def write_record(path: str | Path, record: dict) -> None:
    """Write the record of a run in the place of its former record.

    Several processes may write to the file. Lines that are no complete records are
    removed.
    """
    from pws_mmdet.utils.records import put_record  # imports torch

    def replaces(line: str) -> bool:
        former = read_line(line)
        return former is None or former['run'] == record['run']

    put_record(path, record, replaces)


def attempts(record: dict) -> list[dict]:
    """Return revision, date, versions and hardware of each attempt at a run."""
    return record.get('attempts', [record])


def is_done(record: dict | None) -> bool:
    """Whether a run has a result. A divergence is a result, a failure is none."""
    return record is not None and not record['outcome'].startswith('failed')


def _is_complete(record: Any) -> bool:
    def has(value, kinds):
        return isinstance(value, dict) and all(
            isinstance(value.get(name), kind) for name, kind in kinds.items()
        )

    return (
        has(record, RECORD)
        and all(isinstance(v, (int, float)) for v in record['metrics'].values())
        and isinstance(attempts(record), list)
        and len(attempts(record)) > 0
        and all(
            has(attempt, ATTEMPT) and has(attempt['hardware'], HARDWARE)
            for attempt in attempts(record)
        )
    )
