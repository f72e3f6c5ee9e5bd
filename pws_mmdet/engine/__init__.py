from .alpha_init_hook import PWSAlphaInitHook
from .checkpoint_hook import WholeCheckpointHook
from .composition_hook import CompositionHook
from .data_check_hook import DataCheckHook
from .divergence_hook import DivergenceError, DivergenceHook
from .epoch_seed_hook import EpochSeedHook
from .fuse_hook import FusePWSHook
from .optim import PWSOptimWrapperConstructor
from .runner import PWSRunner
from .share_filters_hook import ShareFiltersHook
from .variance_hook import VarianceMonitorHook

__all__ = [
    'CompositionHook',
    'DataCheckHook',
    'DivergenceError',
    'DivergenceHook',
    'EpochSeedHook',
    'FusePWSHook',
    'PWSAlphaInitHook',
    'PWSOptimWrapperConstructor',
    'PWSRunner',
    'ShareFiltersHook',
    'VarianceMonitorHook',
    'WholeCheckpointHook',
]
