from collections.abc import Mapping
from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ..checkpoint_files import find_checkpoints
from ..checks.pretrained import check_pretrained
from ..checks.weights import check_weights


@HOOKS.register_module(force=True)
class WeightCheckHook(Hook):
    """Check pretrained weights and checkpoints before they are used.

    * Missing pretrained weights stop a training before any data is read. A training
      that is resumed, and a test, do not need them.
    * A checkpoint of another network, with other kinds of layers, or with NaN stops a
      run before its weights are loaded.

    ``PWSRunner`` calls ``before_build``. In other runners, only checkpoints are
    checked.
    """

    priority = 'VERY_HIGH'  # before hooks that look at the data, or change weights

    def before_build(self, runner: Runner, cfgs: Mapping[str, Any]) -> None:
        """Check the pretrained weights of a training.

        Raises:
            FileNotFoundError: If they are missing.
        """
        if 'train_dataloader' in cfgs:
            resumes = runner._resume and (
                runner._load_from or find_checkpoints(runner.work_dir)
            )
            check_pretrained(runner.model, runner.cfg, bool(resumes))

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Check a checkpoint. MMEngine calls this before it sets the weights.

        Raises:
            ValueError: If the checkpoint does not fit.
        """
        check_weights(runner.model, checkpoint, runner._resume)
