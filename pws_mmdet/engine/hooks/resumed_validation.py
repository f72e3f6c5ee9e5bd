from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ...utils.log import inform


@HOOKS.register_module(force=True)
class ResumedValidationHook(Hook):
    """Validate after a resumed training that has no step left to train.

    A training that is killed in its last validation has its last checkpoint, but no
    results. MMEngine would end the resumed training at once.
    """

    priority = 'VERY_HIGH'  # before hooks that end their work after the training

    def before_train(self, runner: Runner) -> None:
        self.start = runner.iter

    def after_train(self, runner: Runner) -> None:
        if runner.iter == self.start and runner.val_loop is not None:
            inform('No step is left to train: validating')
            runner.val_loop.run()
