from . import alpha_decay  # noqa: F401: watches the optimizers
from .alpha_init_hook import PWSAlphaInitHook
from .epoch_seed_hook import EpochSeedHook
from .runner import PWSRunner

__all__ = ['EpochSeedHook', 'PWSAlphaInitHook', 'PWSRunner']
