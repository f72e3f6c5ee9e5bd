from collections.abc import Callable
from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import BaseLoop, Runner
from torch import nn

from ...convert.fuse import fuse_pws, reason_against_fusing
from ...layers.reparam_conv import ReparamConv2d
from ...utils.log import warn
from ...utils.model import unwrap_model
from ...utils.names import first_names


@HOOKS.register_module(force=True)
class FusePWSHook(Hook):
    """Test a copy of the network in which PWS convolutions are plain ones.

    The test then has the cost of plain convolutions. The network itself is not
    changed. The copy is made in the first step of the test, after an EMAHook has set
    the averaged weights. ``runner.model`` is the copy only during a step, so that it
    is the network again if an error or an interrupt ends the test.

    A layer that computes more than its convolution (see
    ``pws_mmdet.convert.fuse.reason_against_fusing``) is tested as it is. So is a
    network that cannot be copied. The hook is a default hook of ``PWSRunner``.
    """

    priority = 'VERY_LOW'  # after EMAHook, whose priority is 'NORMAL'

    def __init__(self) -> None:
        self._loop: BaseLoop | None = None
        # The run_iter that was set on the loop itself, if there is one
        self._own: Callable | None = None
        self._has_warned = False

    def before_test_epoch(self, runner: Runner) -> None:
        self.after_test_epoch(runner)  # A test that failed has not called it.
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
        except Exception as e:  # Copying an attribute of a model may raise anything.
            self._warn_once(
                f'FusePWSHook cannot copy the network ({type(e).__name__}: {e}). The '
                'test uses its PWS convolutions, and takes a bit longer'
            )
            return model
        besides = {
            name: reason_against_fusing(module)
            for name, module in unwrap_model(model).named_modules()
            if isinstance(module, ReparamConv2d)
        }
        left = [f'{name} has {reason}' for name, reason in besides.items() if reason]
        if left:
            self._warn_once(
                'FusePWSHook does not fuse layers that compute more than their '
                f'convolution, and the test takes a bit longer: {first_names(left)}'
            )
        return fused

    def _warn_once(self, text: str) -> None:
        if not self._has_warned:
            warn(text)
            self._has_warned = True
