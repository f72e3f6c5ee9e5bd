import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from mmengine.device import get_device
from mmengine.dist import is_distributed, master_only
from mmengine.hooks import CheckpointHook, Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS, RUNNERS
from mmengine.runner import BaseLoop, Runner
from torch import nn

from ..checkpoint.read import DamagedCheckpointError, meta_of, safe_loading, weights_of
from ..checkpoint.weights import (
    check_finite,
    check_kind,
    renamed_on_loading,
    warn_of_other_shapes,
)
from ..convert.fuse_conv_bn import patch_fuse_conv_bn
from ..utils.arguments import check_names
from ..utils.files import write_whole
from .checks.pretrained import check_pretrained
from .hooks.checkpoint import AtomicCheckpointHook, find_checkpoints, is_on_disk
from .hooks.data_check import DataCheckHook
from .hooks.divergence import DivergenceHook
from .hooks.fuse import FusePWSHook
from .hooks.model_summary import ModelSummaryHook
from .hooks.share_filters import ShareFiltersHook

# The default hooks of MMEngine's runner, by name, and those of ours
MMENGINE_HOOKS = (
    *('runtime_info', 'timer', 'sampler_seed', 'logger', 'param_scheduler'),
    'checkpoint',
)
DEFAULT_HOOKS = dict(
    data_check=DataCheckHook,
    share_filters=ShareFiltersHook,
    fuse=FusePWSHook,
    model_summary=ModelSummaryHook,
    divergence=DivergenceHook,
)


@RUNNERS.register_module(force=True)
class PWSRunner(Runner):
    """MMEngine's runner with earlier errors, and processes without a GPU.

    * Missing pretrained weights stop a training before any data is read. A
      resumed training and a test do without them.
    * Distributed runs on a machine without a GPU use gloo.
    * Checkpoints are loaded as data alone (:func:`safe_loading`), and the text of a
      config that one carries is not executed on resuming. Weights of another kind
      of network are refused.
    * Checkpoints are written whole or not at all, and ``--resume`` finds the latest.
      If nothing is left to train, the validation that may have been cut off is made.
    * BN is folded rightly into PWS layers (:func:`patch_fuse_conv_bn`).

    Beside MMEngine's it has default hooks of its own. ``default_hooks.NAME=None``
    switches one off, ``default_hooks.NAME=dict(...)`` gives it arguments, and one of
    the same type in ``custom_hooks`` takes its place. MMEngine's own runner does not
    know the names: it stops at ``NAME=None`` with an AssertionError. Without
    ``checkpoint`` no checkpoints are written, as in MMEngine.

    ================= ========================= =====================================
    ``checkpoint``    AtomicCheckpointHook       keep the old file until the new one is
    ``data_check``    DataCheckHook             missing and broken data stop a run early
    ``divergence``    DivergenceHook            stop a training that diverges
    ``fuse``          FusePWSHook               test on plain convolutions
    ``model_summary`` ModelSummaryHook           log what the model is made of
    ``share_filters`` ShareFiltersHook          filters of heads are computed once
    ================= ========================= =====================================

    ``tools/train.py`` and ``tools/test.py`` put it in the place of
    ``mmengine.runner.Runner``; elsewhere ``runner_type='PWSRunner'`` selects it.

    Raises:
        RuntimeError: If there is no GPU and the launcher needs one.
        FileNotFoundError: If pretrained weights or data are missing.
        DamagedCheckpointError: If a checkpoint cannot be read.
        ValueError: If a checkpoint, annotations or classes do not fit.
    """

    def __init__(self, *args, **kwargs) -> None:
        # Default hooks that the config does not name
        self._replaceable: list[Hook] = []
        super().__init__(*args, **kwargs)

    def setup_env(self, env_cfg: dict) -> None:
        if self.distributed and not is_distributed() and get_device() == 'cpu':
            if self.launcher != 'pytorch':
                raise RuntimeError(
                    f'The launcher {self.launcher!r} needs GPUs, and none was found '
                    'here. tools/dist_train.sh and tools/dist_test.sh run as many '
                    'CPU processes.'
                )
            torch.distributed.init_process_group('gloo')
        super().setup_env(env_cfg)

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        on_cpu = self.distributed and get_device() == 'cpu'
        if model_wrapper_cfg is None and on_cpu and not is_model_wrapper(model):
            # MMEngine's default, except that it names no GPU
            model_wrapper_cfg = dict(
                type='MMDistributedDataParallel',
                device_ids=None,
                broadcast_buffers=False,
                find_unused_parameters=self.cfg.get('find_unused_parameters', False),
            )
        return super().wrap_model(model_wrapper_cfg, model)

    def build_model(self, model: nn.Module | dict) -> nn.Module:
        with self._safely():  # some detectors load a teacher's weights
            return super().build_model(model)

    def train(self) -> nn.Module:
        check_pretrained(self)
        self._check_before('train', 'val')
        with self._safely():
            return super().train()

    def val(self) -> dict:
        with self._safely():
            return super().val()

    def test(self) -> dict:
        self._check_before('test')
        with self._safely():
            return super().test()

    @contextmanager
    def _safely(self) -> Iterator[None]:
        with safe_loading(), patch_fuse_conv_bn():
            yield

    def _check_before(self, *splits: str) -> None:
        names = [f'{s}_{part}' for s in splits for part in ('dataloader', 'evaluator')]
        cfgs = {name: getattr(self, f'_{name}', None) for name in names}
        self.call_hook('before_build', cfgs=cfgs)

    def build_train_loop(self, loop: BaseLoop | dict) -> BaseLoop:
        return self._checked(super().build_train_loop, loop, self._train_dataloader)

    def build_val_loop(self, loop: BaseLoop | dict) -> BaseLoop:
        return self._checked(super().build_val_loop, loop)

    def build_test_loop(self, loop: BaseLoop | dict) -> BaseLoop:
        return self._checked(super().build_test_loop, loop)

    def _checked(
        self, build: Callable, loop: BaseLoop | dict, train_loader: Any = None
    ) -> BaseLoop:
        with ExitStack() as stack:
            for hook in self.hooks:
                if isinstance(hook, DataCheckHook):
                    stack.enter_context(hook.building(train_loader))
            loop = build(loop)
        self.call_hook('after_build', loop=loop, train_loader=train_loader)
        return loop

    def register_default_hooks(self, hooks: dict | None = None) -> None:
        hooks = dict(hooks or {})
        ours = [cls for name, cls in DEFAULT_HOOKS.items() if name not in hooks]
        known = {*MMENGINE_HOOKS, *DEFAULT_HOOKS}
        for name in [n for n, hook in hooks.items() if hook is None]:
            if name not in MMENGINE_HOOKS:  # for which MMEngine's assertion fails
                del hooks[name]
            if name not in known:
                self.logger.warning(
                    f'default_hooks.{name}=None switches off no default hook. They '
                    f'are {", ".join(sorted(known))}.'
                )
        for name, cls in DEFAULT_HOOKS.items():
            if isinstance(hooks.get(name), dict):
                hooks[name] = {'type': cls, **hooks[name]}
        super().register_default_hooks(hooks)
        for cls in ours:
            if not any(isinstance(hook, cls) for hook in self.hooks):
                self.register_hook(hook := cls())
                self._replaceable.append(hook)

    def register_hook(self, hook: Hook | dict, *args, **kwargs) -> None:
        if isinstance(hook, dict):
            cls = hook.get('type')
            cls = HOOKS.get(cls) if isinstance(cls, str) else cls
            if cls is CheckpointHook:
                cls = AtomicCheckpointHook
                hook = {**hook, 'type': cls}
            if inspect.isclass(cls):
                check_names(cls, set(hook) - {'type', 'priority', '_scope_'})
        before = list(self.hooks)
        super().register_hook(hook, *args, **kwargs)
        for added in (h for h in self.hooks if h not in before):
            for default in [h for h in self._replaceable if isinstance(added, type(h))]:
                self._replaceable.remove(default)
                self.hooks.remove(default)

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
                self.logger.info(f'Resuming from the latest, {self._load_from}')
        super().load_or_resume()

    def load_checkpoint(self, filename: str, *args, **kwargs) -> dict:
        try:
            with self._safely():
                checkpoint = super().load_checkpoint(filename, *args, **kwargs)
        except DamagedCheckpointError as e:
            others = find_checkpoints(Path(filename).parent)
            others = [path for path in others if not path.samefile(filename)]
            if not others:
                raise
            raise DamagedCheckpointError(
                f'{e}\nAnother one beside it is {others[0]}: --resume {others[0]}'
            ) from None
        except ValueError as e:
            raise ValueError(f'{filename} cannot be loaded: {e}') from None
        # Resuming executes it to look for gpu_ids, which nothing writes any more.
        if isinstance(checkpoint.get('meta'), dict):
            checkpoint['meta'].pop('config', None)
        return checkpoint

    def call_hook(self, fn_name: str, **kwargs) -> None:
        # MMEngine calls this hook just before it puts the weights into the model.
        if fn_name == 'after_load_checkpoint':
            self._check_checkpoint(kwargs['checkpoint'])
        elif fn_name == 'before_train':
            self._start = self.iter
        elif fn_name == 'after_train' and self.iter == self._start and self._val_loop:
            self.logger.info('Nothing is left to train: validating')
            self.val_loop.run()
        super().call_hook(fn_name, **kwargs)

    def _check_checkpoint(self, checkpoint: Any) -> None:
        weights = renamed_on_loading(self.model, weights_of(checkpoint))
        check_finite(weights, 'it', self.model)
        own = self.model.state_dict()
        names = {name.removeprefix('module.') for name in own}
        if not names & set(weights):
            raise ValueError(
                f'it is of another network: it has {next(iter(weights))}, and none of '
                f'the names of this one, such as {min(names)}'
            )
        check_kind(self.model, weights)
        warn_of_other_shapes(self.model, weights)
        state = meta_of(checkpoint)
        if self._resume and not (
            isinstance(state.get('epoch'), int)
            and isinstance(state.get('iter'), int)
            and isinstance(checkpoint.get('message_hub'), dict)
        ):
            raise ValueError(
                'it holds no state of a training that can be resumed. Without '
                '--resume, --cfg-options load_from=FILE starts from its weights'
            )
