"""Old names of hooks. They keep working for one release, with a DeprecationWarning."""

import warnings
from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from .engine import AtomicCheckpointHook, ModelSummaryHook

RENAMED: dict[str, type[Hook]] = {
    'CompositionHook': ModelSummaryHook,
    'WholeCheckpointHook': AtomicCheckpointHook,
}


def renamed(old: str) -> type[Hook]:
    """Return the class that an old name stands for, and warn."""
    cls = RENAMED[old]
    warnings.warn(
        f'{old} is now {cls.__name__}. The old name will be removed in the next '
        'release.',
        DeprecationWarning,
        stacklevel=3,
    )
    return cls


def _register(old: str) -> None:
    """Register a subclass that warns when a config makes it."""

    def __init__(self: Hook, *args: Any, **kwargs: Any) -> None:
        renamed(old).__init__(self, *args, **kwargs)

    cls = type(old, (RENAMED[old],), dict(__init__=__init__))
    HOOKS.register_module(name=old, module=cls, force=True)


for name in RENAMED:
    _register(name)
