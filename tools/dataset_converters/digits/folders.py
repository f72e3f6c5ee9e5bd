"""The folder of a data set."""

import os
import shutil
from pathlib import Path


def check_out_dir(out_dir: str | Path, force: bool) -> None:
    """Check that a data set can be written to a folder.

    Raises:
        ValueError: If the path is the root of the file system.
        NotADirectoryError: If the path is something else or cannot be made.
        FileExistsError: If the folder is not empty and ``force`` is false.
    """
    out_dir = Path(out_dir)
    if os.path.realpath(out_dir) == os.path.sep:
        raise ValueError(f'{out_dir} is the root of the file system')
    # A broken link does not `exist`, but no folder can be made in its place.
    if os.path.lexists(out_dir) and not out_dir.is_dir():
        raise NotADirectoryError(f'{out_dir} is not a directory')
    folder = next(p for p in out_dir.absolute().parents if os.path.lexists(p))
    if not folder.is_dir():
        raise NotADirectoryError(f'{out_dir} cannot be made: {folder} is no directory')
    if out_dir.exists() and any(out_dir.iterdir()) and not force:
        raise FileExistsError(
            f'{out_dir} is not empty: use --force to replace the data set in it'
        )


def remove(path: Path) -> None:
    """Delete a file, a folder with its files, or a link, but not the link's target."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
