import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS
from mmengine.runner import Runner


@HOOKS.register_module(force=True)
class AtomicCheckpointHook(CheckpointHook):
    """MMEngine's CheckpointHook for trainings that may be killed at any moment.

    It deletes an old checkpoint only when the new one is on the disk. MMEngine deletes
    it before, so that a killed training may have no whole checkpoint. The arguments
    are those of CheckpointHook. ``PWSRunner`` uses this hook in its place.

    Raises:
        TypeError: If an argument has an unknown name. CheckpointHook passes it on to
            the runner's ``save_checkpoint``, which fails at the first checkpoint.
    """

    def __init__(self, *args, **kwargs) -> None:
        known = [*inspect.signature(CheckpointHook).parameters]
        # The last parameter is **kwargs, which stands for one argument.
        known = [*known[:-1], 'save_param_scheduler']
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
        if not hasattr(self, 'file_backend'):  # No training has begun.
            return
        with self._removing_later():
            super()._save_best_checkpoint(runner, metrics)


class _RemoveLater:
    """A local file backend that removes files only when ``finish`` is called."""

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
