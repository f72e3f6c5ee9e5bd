from .checkpoint_files import find_checkpoints
from .hooks import (
    AtomicCheckpointHook,
    DataCheckHook,
    DivergenceError,
    DivergenceHook,
    EpochSeedHook,
    FusePWSHook,
    ModelSummaryHook,
    PWSAlphaInitHook,
    ResumedValidationHook,
    ShareFiltersHook,
    VarianceMonitorHook,
    WeightCheckHook,
)
from .optim import PWSOptimWrapperConstructor
from .runner import PWSRunner

__all__ = [
    'AtomicCheckpointHook',
    'DataCheckHook',
    'DivergenceError',
    'DivergenceHook',
    'EpochSeedHook',
    'FusePWSHook',
    'ModelSummaryHook',
    'PWSAlphaInitHook',
    'PWSOptimWrapperConstructor',
    'PWSRunner',
    'ResumedValidationHook',
    'ShareFiltersHook',
    'VarianceMonitorHook',
    'WeightCheckHook',
    'find_checkpoints',
]
