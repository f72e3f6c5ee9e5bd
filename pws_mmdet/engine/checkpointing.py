"""How a runner writes, finds and reads checkpoints."""

from pathlib import Path

from mmengine.dist import master_only
from mmengine.runner import Runner

from ..checkpoint import DamagedCheckpointError, safe_loading
from ..utils.files import write_whole
from ..utils.log import inform
from .checkpoint_files import find_checkpoints, is_on_disk


class SafeCheckpointsRunner(Runner):
    """A runner whose checkpoints are whole, and cannot run code.

    * A checkpoint on the local disk is written whole or not at all.
    * ``--resume`` without a file takes the latest checkpoint in the ``work_dir``.
    * A checkpoint is read without running code that is pickled in it
      (``safe_loading``). MMEngine executes the text of the config in a checkpoint
      on resuming; this runner does not.

    Raises:
        DamagedCheckpointError: If a checkpoint cannot be read. If there is another
            one in its folder, the message names it.
        ValueError: If a checkpoint does not fit.
    """

    @master_only
    def save_checkpoint(
        self,
        out_dir: str | Path,
        filename: str,
        file_client_args: dict | None = None,
        *args,
        backend_args: dict | None = None,
        **kwargs,
    ) -> None:
        def save(path: Path) -> None:
            save_in(str(path.parent), path.name, file_client_args, *args, **kwargs)

        kwargs['backend_args'] = backend_args
        save_in = super().save_checkpoint
        if is_on_disk(str(out_dir), file_client_args, backend_args):
            write_whole(Path(out_dir, filename), save)
        else:
            save_in(str(out_dir), filename, file_client_args, *args, **kwargs)

    def load_or_resume(self) -> None:
        if self._resume and self._load_from is None and not self._has_loaded:
            checkpoints = find_checkpoints(self.work_dir)
            if checkpoints:
                self._load_from = str(checkpoints[0])
                inform(f'Resuming from the latest checkpoint, {self._load_from}')
        super().load_or_resume()

    def load_checkpoint(self, filename: str, *args, **kwargs) -> dict:
        try:
            with safe_loading():
                checkpoint = super().load_checkpoint(filename, *args, **kwargs)
        except DamagedCheckpointError as e:
            others = find_checkpoints(Path(filename).parent)
            others = [path for path in others if not path.samefile(filename)]
            if not others:
                raise
            raise DamagedCheckpointError(
                f'{e}\nThe latest other checkpoint is {others[0]}. Resume from it with '
                f'--resume {others[0]}'
            ) from None
        except ValueError as e:
            raise ValueError(f'{filename} cannot be loaded: {e}') from None
        # On resuming, MMEngine executes the config to find gpu_ids. No current
        # version of it writes them.
        if isinstance(checkpoint.get('meta'), dict):
            checkpoint['meta'].pop('config', None)
        return checkpoint
