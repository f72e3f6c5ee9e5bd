from .alpha_init import PWSAlphaInitHook
from .checkpoint import AtomicCheckpointHook
from .data_check import DataCheckHook
from .divergence import DivergenceError, DivergenceHook
from .epoch_seed import EpochSeedHook
from .fuse import FusePWSHook
from .model_summary import ModelSummaryHook
from .resumed_validation import ResumedValidationHook
from .share_filters import ShareFiltersHook
from .variance import VarianceMonitorHook
from .weight_check import WeightCheckHook

__all__ = [
    'AtomicCheckpointHook',
    'DataCheckHook',
    'DivergenceError',
    'DivergenceHook',
    'EpochSeedHook',
    'FusePWSHook',
    'ModelSummaryHook',
    'PWSAlphaInitHook',
    'ResumedValidationHook',
    'ShareFiltersHook',
    'VarianceMonitorHook',
    'WeightCheckHook',
]
