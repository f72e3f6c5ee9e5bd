from .hooks.alpha_init import PWSAlphaInitHook
from .hooks.checkpoint import AtomicCheckpointHook
from .hooks.data_check import DataCheckHook
from .hooks.divergence import DivergenceError, DivergenceHook
from .hooks.epoch_seed import EpochSeedHook
from .hooks.fuse import FusePWSHook
from .hooks.model_summary import ModelSummaryHook
from .hooks.share_filters import ShareFiltersHook
from .hooks.variance import VarianceMonitorHook
from .optim import PWSOptimWrapperConstructor
from .runner import PWSRunner

__all__ = [
    'ModelSummaryHook',
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
    'AtomicCheckpointHook',
]
