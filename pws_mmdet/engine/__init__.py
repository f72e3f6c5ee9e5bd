from .alpha_decay import warn_of_decayed_alpha
from .alpha_init_hook import PWSAlphaInitHook
from .epoch_seed_hook import EpochSeedHook
from .runner import PWSRunner

__all__ = ['EpochSeedHook', 'PWSAlphaInitHook', 'PWSRunner', 'warn_of_decayed_alpha']
