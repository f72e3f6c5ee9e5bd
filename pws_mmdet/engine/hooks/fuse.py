import logging
from collections.abc import Callable
from typing import Any

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from mmengine.runner import BaseLoop, Runner
from torch import nn

from ...convert.fuse import fuse_pws, what_it_does_besides
from ...layers.reparam_conv import ReparamConv2d
from ...utils.model import unwrap_model
from ...utils.names import first_names


@HOOKS.register_module(force=True)
class FusePWSHook(Hook):
    """Test a copy of the network whose PWS convolutions are plain ones.

    A test so costs what plain convolutions cost. The copy is taken in the first step
    of the test, when an EMAHook has put the averaged weights in place. The runner has
    the copy only during a step: whatever ends the test, its model is the network
    itself, which is not touched.

    A layer that computes more than its convolution, see
    :func:`pws_mmdet.convert.fuse.what_it_does_besides`, is tested as it is. So is a
    network that cannot be copied. :class:`PWSRunner` brings this hook.
    """

    priority = 'VERY_LOW'  # EMAHook's is 'NORMAL'

    def __init__(self) -> None:
        self._loop: BaseLoop | None = None
        self._own: Callable | None = None  # the loop's run_iter, if it was set on it
        self._has_told = False

    def before_test_epoch(self, runner: Runner) -> None:
        self.after_test_epoch(runner)  # a test that failed has not called it
        loop = runner.test_loop
        has_pws = any(isinstance(m, ReparamConv2d) for m in runner.model.modules())
        if not has_pws or not hasattr(loop, 'run_iter'):
            return
        run_iter, fused = loop.run_iter, None
        self._loop, self._own = loop, vars(loop).get('run_iter')

        def run_fused(*args: Any, **kwargs: Any) -> Any:
            nonlocal fused
            model = runner.model
            fused = fused or self._fuse(model)
            runner.model = fused
            try:
                return run_iter(*args, **kwargs)
            finally:
                runner.model = model

        loop.run_iter = run_fused

    def after_test_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        if self._loop is not None:
            del self._loop.run_iter
            if self._own is not None:
                self._loop.run_iter = self._own
            self._loop = None

    def _fuse(self, model: nn.Module) -> nn.Module:
        try:
            fused = fuse_pws(model, strict=False)
        except Exception as e:  # a network may hold what cannot be copied
            self._tell(
                f'FusePWSHook cannot copy the network ({type(e).__name__}: {e}). It '
                'is tested with its PWS convolutions, which takes a bit longer'
            )
            return model
        left = {
            name: what_it_does_besides(module)
            for name, module in unwrap_model(model).named_modules()
            if isinstance(module, ReparamConv2d)
        }
        left = [f'{name} has {reason}' for name, reason in left.items() if reason]
        if left:
            self._tell(
                'FusePWSHook leaves layers that compute more than their convolution '
                f'as they are, which takes a bit longer: {first_names(left)}'
            )
        return fused

    def _tell(self, text: str) -> None:
        if not self._has_told:
            print_log(text, logger='current', level=logging.WARNING)
            self._has_told = True
