from .alpha_init_hook import PWSAlphaInitHook
from .checkpoint_hook import WholeCheckpointHook
from .composition_hook import CompositionHook
from .divergence_hook import DivergenceError, DivergenceHook
from .epoch_seed_hook import EpochSeedHook
from .fuse_hook import FusePWSHook
from .optim import PWSOptimWrapperConstructor
from .runner import PWSRunner
from .variance_hook import VarianceMonitorHook

__all__ = [
    'CompositionHook',
    'DivergenceError',
    'DivergenceHook',
    'EpochSeedHook',
    'FusePWSHook',
    'PWSAlphaInitHook',
    'PWSOptimWrapperConstructor',
    'PWSRunner',
    'VarianceMonitorHook',
    'WholeCheckpointHook',
]
