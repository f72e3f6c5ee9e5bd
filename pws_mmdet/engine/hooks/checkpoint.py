"""Checkpoints that a killed training leaves whole."""

import inspect
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.fileio import (
    FileClient,
    HardDiskBackend,
    LocalBackend,
    get_file_backend,
)
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

LATEST = 'last_checkpoint'  # MMEngine's file with the path of the latest checkpoint


def find_checkpoints(work_dir: str | Path) -> list[Path]:
    """The checkpoints of a training, the latest first.

    Those are epoch_N.pth and iter_N.pth in ``work_dir`` and, before them, the one
    that MMEngine noted as the latest, if it exists.
    """
    work_dir = Path(work_dir)
    found = [
        path
        for path in work_dir.glob('*.pth')
        if re.fullmatch(r'(epoch|iter)_\d+', path.stem)
    ]
    found.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
    try:
        noted: Path | None = Path((work_dir / LATEST).read_text().strip())
    except OSError:
        return found
    if not noted.is_file():  # the folder may have been moved
        parts = noted.parts
        places = (work_dir.joinpath(*parts[i:]) for i in range(len(parts)))
        noted = next(filter(Path.is_file, places), None)
    if noted is None:
        return found
    return [noted, *(path for path in found if not path.samefile(noted))]


def is_on_disk(
    folder: str, file_client_args: dict | None = None, backend_args: dict | None = None
) -> bool:
    """Whether MMEngine writes the files of a folder to the local disk itself."""
    if file_client_args is not None:
        client = FileClient.infer_client(file_client_args, folder).client
        return type(client) in (LocalBackend, HardDiskBackend)
    if '://' in folder:
        return False
    return type(get_file_backend(folder, backend_args=backend_args)) is LocalBackend


class _RemoveLater:
    """A local file backend whose files stay until others are written."""

    def __init__(self, backend: LocalBackend) -> None:
        self.backend = backend
        self.doomed: list[tuple[str, int]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def remove(self, filepath: str) -> None:
        self.doomed.append((filepath, os.stat(filepath).st_ino))

    def finish(self) -> None:
        for path, inode in self.doomed:
            # The new checkpoint may have reused this path: delete only the old file.
            if os.path.isfile(path) and os.stat(path).st_ino == inode:
                self.backend.remove(path)


@HOOKS.register_module(force=True)
class AtomicCheckpointHook(CheckpointHook):
    """MMEngine's CheckpointHook for trainings that may be killed at any moment.

    An old checkpoint is deleted only when the new one is on the disk, and not
    before, as MMEngine does, so that there always is a whole one. Its arguments are
    those of CheckpointHook, which :class:`PWSRunner` replaces by it.

    Raises:
        TypeError: If there is no argument of a name. CheckpointHook hands it to the
            runner's ``save_checkpoint``, where the first checkpoint fails.
    """

    def __init__(self, *args, **kwargs) -> None:
        known = [*inspect.signature(CheckpointHook).parameters]
        known = [*known[:-1], 'save_param_scheduler']  # in the place of **kwargs
        unknown = [name for name in kwargs if name not in known]
        if unknown:
            raise TypeError(
                f'CheckpointHook has no argument {", ".join(map(repr, unknown))}; it '
                f'has {", ".join(known)}'
            )
        super().__init__(*args, **kwargs)

    @contextmanager
    def _removing_later(self) -> Iterator[None]:
        if type(self.file_backend) not in (LocalBackend, _RemoveLater):
            yield
            return
        backend = self.file_backend
        self.file_backend = later = _RemoveLater(backend)
        try:
            yield
            later.finish()
        finally:
            self.file_backend = backend

    def _save_checkpoint_with_step(self, runner: Runner, *args, **kwargs) -> None:
        with self._removing_later():
            super()._save_checkpoint_with_step(runner, *args, **kwargs)

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        if not hasattr(self, 'file_backend'):  # no training has begun
            return
        with self._removing_later():
            super()._save_best_checkpoint(runner, metrics)
