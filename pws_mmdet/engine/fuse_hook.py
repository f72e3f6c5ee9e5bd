from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn

from ..convert import fuse_pws


@HOOKS.register_module(force=True)
class FusePWSHook(Hook):
    """Test a copy of the network whose PWS convolutions are plain ones.

    A test so costs what plain convolutions cost. The copy is taken after an
    EMAHook has put the averaged weights in place, and given up after the test;
    the network itself is not touched. :class:`PWSRunner` brings this hook.
    """

    priority = 'VERY_LOW'  # EMAHook's is 'NORMAL'

    def __init__(self) -> None:
        self._model: nn.Module | None = None

    def before_test_epoch(self, runner: Runner) -> None:
        self._model = runner.model
        runner.model = fuse_pws(runner.model)

    def after_test_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        runner.model, self._model = self._model, None
