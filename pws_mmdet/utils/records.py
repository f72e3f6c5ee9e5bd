"""Files with one record in a line (JSON Lines), which several processes may write."""

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .files import write_whole


def read_records(path: str | Path) -> list[dict[str, Any]]:
    """Read the records of a file.

    Raises:
        ValueError: If a line is not a JSON object.
        OSError: If the file cannot be read.
    """
    records = []
    lines = Path(path).read_text(encoding='utf-8').splitlines()
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as e:
            raise ValueError(f'{path}, line {number}: not JSON: {e}') from e
        if not isinstance(record, dict):
            raise ValueError(f'{path}, line {number}: not a record but {line[:80]}')
        records.append(record)
    return records


def put_record(
    path: str | Path,
    record: dict[str, Any],
    replaces: Callable[[str], bool] | None = None,
) -> None:
    """Add a record to a file as its last line.

    The file is replaced as a whole, so a reader never sees a part of a line. Processes
    that write to the same file wait for each other.

    Args:
        path: The file. It and its folder are made if they do not exist.
        record: The record.
        replaces: Whether the record takes the place of a line with this text. By
            default, all lines are kept.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_file():  # a device, such as /dev/stdout
        path.write_text(json.dumps(record) + '\n', encoding='utf-8')
        return
    with _locked(path):
        lines = path.read_text(encoding='utf-8', errors='replace').splitlines()
        if replaces is not None:
            lines = [line for line in lines if not replaces(line)]
        text = ''.join(f'{line}\n' for line in [*lines, json.dumps(record)])
        try:
            write_whole(path, lambda part: part.write_text(text, encoding='utf-8'))
        except BaseException:
            if path.stat().st_size == 0:  # made by the lock
                path.unlink()
            raise


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Lock a file that another process may replace in the meantime."""
    while True:
        with open(path, 'a', encoding='utf-8') as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                is_current = os.path.samestat(os.fstat(file.fileno()), path.stat())
            except FileNotFoundError:
                is_current = False
            if is_current:
                yield
                return
