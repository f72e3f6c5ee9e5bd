"""Write files whole or not at all, and tables into pages."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_whole(path: str | Path, write: Callable[[Path], Any]) -> None:
    """Write a file so that nobody, not even after a crash, finds half of it.

    Args:
        path: The file. It is replaced if it exists, and its folder is made if there is
            none. If it is a link, the file that it points to is replaced, unless
            ``write`` makes a link. Devices and pipes are written to directly.
        write: Writes a file, or makes a link, at the temporary path that it gets.
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
            # shutil.move: the file may be on another disk.
            partial = Path(shutil.move(partial, _beside(path)))
        with open(partial, 'rb') as f:
            os.fsync(f.fileno())
        os.replace(partial, path)
    except BaseException:
        # Not after a success: another process may write its own partial file by then.
        partial.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # so that the new name survives a crash
    finally:
        os.close(folder)


def _beside(path: Path) -> Path:
    return path.with_name(f'.{path.name}.partial')


def check_new_path(out: str | Path, suffix: str = '', or_link: bool = False) -> Path:
    """Check that a program can make a file or folder, before the work begins.

    Args:
        out: Path of the file or folder.
        suffix: What the path must end in.
        or_link: Allow a link at this path, which the program will replace.

    Returns:
        The path, with ``~`` expanded.

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
    """Write a table into a page, in the place of the old one.

    Args:
        path: The page. If it exists, it marks the place with the comments
            ``<!-- name -->`` and ``<!-- /name -->``. Otherwise it is made.
        name: Name of the table.
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
