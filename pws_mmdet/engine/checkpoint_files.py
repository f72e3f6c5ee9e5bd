"""The checkpoints in the folder of a training."""

import re
from pathlib import Path

from mmengine.fileio import FileClient, HardDiskBackend, LocalBackend, get_file_backend

LATEST = 'last_checkpoint'  # MMEngine's file with the path of the latest checkpoint


def find_checkpoints(work_dir: str | Path) -> list[Path]:
    """Return the checkpoints of a training, the latest first.

    They are the files epoch_N.pth and iter_N.pth in ``work_dir``. The one that
    MMEngine noted as the latest comes before them, if it exists.
    """
    work_dir = Path(work_dir)
    found = [
        path
        for path in work_dir.glob('*.pth')
        if re.fullmatch(r'(epoch|iter)_\d+', path.stem)
    ]
    found.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
    noted = _noted_latest(work_dir)
    if noted is None:
        return found
    return [noted, *(path for path in found if not path.samefile(noted))]


def _noted_latest(work_dir: Path) -> Path | None:
    try:
        noted = Path((work_dir / LATEST).read_text().strip())
    except OSError:
        return None
    if noted.is_file():
        return noted
    # The folder may have been moved: look for the end of the path in it.
    places = (work_dir.joinpath(*noted.parts[i:]) for i in range(len(noted.parts)))
    return next(filter(Path.is_file, places), None)


def is_on_disk(
    folder: str, file_client_args: dict | None = None, backend_args: dict | None = None
) -> bool:
    """Tell whether MMEngine itself writes the files of a folder to the local disk."""
    if file_client_args is not None:
        client = FileClient.infer_client(file_client_args, folder).client
        return type(client) in (LocalBackend, HardDiskBackend)
    if '://' in folder:
        return False
    return type(get_file_backend(folder, backend_args=backend_args)) is LocalBackend
