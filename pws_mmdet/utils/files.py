"""Files that are there as a whole or not at all, and tables in pages."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_whole(path: str | Path, write: Callable[[Path], Any]) -> None:
    """Write a file such that its name never stands for a part of it.

    Args:
        path: The file, which is replaced if it exists, in a folder that is made if
            there is none. A link to a file stays one, unless a link is made, and
            devices and pipes are written to.
        write: Writes it under another name in the same folder, or makes a link.
    """
    path = Path(path)
    if path.exists() and not path.is_file() and not path.is_dir():
        write(path)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _beside(path)
    try:
        write(partial)
        if path.is_symlink() and not partial.is_symlink():
            path = Path(os.path.realpath(path))
            partial = shutil.move(partial, _beside(path))  # maybe on another disk
        with open(partial, 'rb') as f:
            os.fsync(f.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name
    finally:
        os.close(folder)


def _beside(path: Path) -> Path:
    return path.with_name(f'.{path.name}.partial')


def check_new_path(out: str | Path, suffix: str = '', or_link: bool = False) -> Path:
    """Return the path of a file or folder that a program is going to make.

    Args:
        out: The path.
        suffix: What it must end in.
        or_link: It may be a link, which the program replaces.

    Raises:
        ValueError: If it does not end in ``suffix``.
        FileExistsError: If there is such a file, folder or link.
        OSError: If it cannot be made.
    """
    path = Path(out).expanduser()
    if suffix and path.suffix != suffix:
        raise ValueError(f'OUT must end in {suffix}, got {out}')
    if os.path.lexists(path) and not (or_link and path.is_symlink()):
        raise FileExistsError(f'{path} exists: move it away, or choose another name')
    folder = next(p for p in path.absolute().parents if os.path.lexists(p))
    if not folder.is_dir():
        raise NotADirectoryError(f'{out} cannot be written: {folder} is no folder')
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f'{out} cannot be written: {folder} is read-only')
    return path


def put_in_page(path: Path, name: str, markdown: str) -> None:
    """Write a table to a page, or in the place of the one that the page has.

    Args:
        path: The page; one that exists marks the place by the comments
            ``<!-- name -->`` and ``<!-- /name -->``.
        name: Of the table.
        markdown: The table.

    Raises:
        ValueError: If the page exists and has no such place.
    """
    begin, end = f'<!-- {name} -->\n', f'<!-- /{name} -->\n'
    before, after = '', ''
    if path.exists():
        page = path.read_text(encoding='utf-8')
        before, found, rest = page.partition(begin)
        _, found_end, after = rest.partition(end)
        if not found or not found_end:
            raise ValueError(
                f'{path} exists and has no place for the table: put the lines '
                f'{begin.strip()} and {end.strip()} into it, or name a new file'
            )
    page = f'{before}{begin}{markdown}{end}{after}'
    write_whole(path, lambda part: part.write_text(page, encoding='utf-8'))
