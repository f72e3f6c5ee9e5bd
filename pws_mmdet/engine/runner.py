from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from mmengine.registry import RUNNERS
from mmengine.runner import BaseLoop
from torch import nn

from ..checkpoint import safe_loading
from ..convert.fuse_conv_bn import patch_fuse_conv_bn
from ..utils.config import naming_unknown_layers
from .checkpointing import SafeCheckpointsRunner
from .cpu_processes import CPUProcessesRunner
from .default_hooks import DefaultHooksRunner
from .hooks import DataCheckHook


@RUNNERS.register_module(force=True)
class PWSRunner(CPUProcessesRunner, SafeCheckpointsRunner, DefaultHooksRunner):
    """MMEngine's runner with early errors, whole checkpoints, and runs on CPUs.

    These are its default hooks besides those of MMEngine. ``default_hooks.NAME=None``
    switches one off.

    * ``checkpoint`` (``AtomicCheckpointHook``): write whole files, delete old ones last
    * ``data_check`` (``DataCheckHook``): stop early at missing or broken data
    * ``divergence`` (``DivergenceHook``): stop a training that diverges
    * ``fuse`` (``FusePWSHook``): test with plain convolutions
    * ``model_summary`` (``ModelSummaryHook``): log what the model is made of
    * ``resumed_validation`` (``ResumedValidationHook``): validate if no step is left
    * ``share_filters`` (``ShareFiltersHook``): compute the filters of heads once
    * ``weight_check`` (``WeightCheckHook``): stop early at missing or wrong weights

    MMEngine's own runner does not know these names: it stops at ``NAME=None`` with an
    AssertionError. Without ``checkpoint``, no checkpoints are written, as in MMEngine.

    Checkpoints are written whole, and read without running code. BN is folded correctly
    into PWS layers (``patch_fuse_conv_bn``). Distributed runs without a GPU use gloo.

    ``tools/train.py`` and ``tools/test.py`` use it in the place of
    ``mmengine.runner.Runner``. Elsewhere, ``runner_type='PWSRunner'`` selects it.

    Raises:
        RuntimeError: If the launcher needs GPUs, and there is none.
        FileNotFoundError: If pretrained weights or data are missing.
        DamagedCheckpointError: If a checkpoint cannot be read.
        ValueError: If a checkpoint, annotations or classes do not fit.
    """

    def build_model(self, model: nn.Module | dict) -> nn.Module:
        # Some detectors load the weights of a teacher: patch the loading here, too.
        with self._patched(), naming_unknown_layers(model):
            return super().build_model(model)

    def train(self) -> nn.Module:
        self._announce('train', 'val')
        with self._patched():
            return super().train()

    def val(self) -> dict:
        with self._patched():
            return super().val()

    def test(self) -> dict:
        self._announce('test')
        with self._patched():
            return super().test()

    @contextmanager
    def _patched(self) -> Iterator[None]:
        with safe_loading(), patch_fuse_conv_bn():
            yield

    def _announce(self, *splits: str) -> None:
        """Call ``before_build`` with the configs of loaders and evaluators."""
        names = [f'{s}_{part}' for s in splits for part in ('dataloader', 'evaluator')]
        cfgs = {name: getattr(self, f'_{name}', None) for name in names}
        self.call_hook('before_build', cfgs=cfgs)

    def build_train_loop(self, loop: BaseLoop | dict) -> BaseLoop:
        return self._build(super().build_train_loop, loop, self._train_dataloader)

    def build_val_loop(self, loop: BaseLoop | dict) -> BaseLoop:
        return self._build(super().build_val_loop, loop)

    def build_test_loop(self, loop: BaseLoop | dict) -> BaseLoop:
        return self._build(super().build_test_loop, loop)

    def _build(
        self, build: Callable, loop: BaseLoop | dict, train_loader: Any = None
    ) -> BaseLoop:
        """Build a loop while the hooks check its data, then call ``after_build``."""
        with ExitStack() as stack:
            for hook in self.hooks:
                if isinstance(hook, DataCheckHook):
                    stack.enter_context(hook.building(train_loader))
            loop = build(loop)
        self.call_hook('after_build', loop=loop, train_loader=train_loader)
        return loop
