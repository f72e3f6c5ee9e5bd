"""The default hooks of a runner, and how a config replaces them."""

import inspect

from mmengine.hooks import CheckpointHook, Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ..utils.arguments import check_names
from ..utils.log import warn
from .hooks import (
    AtomicCheckpointHook,
    DataCheckHook,
    DivergenceHook,
    FusePWSHook,
    ModelSummaryHook,
    ResumedValidationHook,
    ShareFiltersHook,
    WeightCheckHook,
)

# Names of the default hooks of MMEngine's runner
MMENGINE_HOOKS = (
    *('runtime_info', 'timer', 'sampler_seed', 'logger', 'param_scheduler'),
    'checkpoint',
)
# Default hooks that this package adds
DEFAULT_HOOKS = dict(
    weight_check=WeightCheckHook,
    data_check=DataCheckHook,
    share_filters=ShareFiltersHook,
    fuse=FusePWSHook,
    model_summary=ModelSummaryHook,
    divergence=DivergenceHook,
    resumed_validation=ResumedValidationHook,
)


class DefaultHooksRunner(Runner):
    """A runner with ``DEFAULT_HOOKS`` beside MMEngine's default hooks.

    A config switches one off by ``default_hooks.NAME=None``, or gives it arguments by
    ``default_hooks.NAME=dict(...)``. A hook of the same type in ``custom_hooks``
    replaces it.

    MMEngine's CheckpointHook is replaced by ``AtomicCheckpointHook``.

    Raises:
        TypeError: If a hook is given an argument that it does not have.
    """

    def __init__(self, *args, **kwargs) -> None:
        # Default hooks that the config does not name
        self._replaceable: list[Hook] = []
        super().__init__(*args, **kwargs)

    def register_default_hooks(self, hooks: dict | None = None) -> None:
        hooks = dict(hooks or {})
        ours = [cls for name, cls in DEFAULT_HOOKS.items() if name not in hooks]
        known = {*MMENGINE_HOOKS, *DEFAULT_HOOKS}
        for name in [n for n, hook in hooks.items() if hook is None]:
            # MMEngine accepts None for its own hooks alone.
            if name not in MMENGINE_HOOKS:
                del hooks[name]
            if name not in known:
                warn(
                    f'default_hooks.{name}=None switches off no default hook. The '
                    f'default hooks are {", ".join(sorted(known))}.'
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
