from .checkpoint_files import find_checkpoints
from .gradient_clipping import (
    AGCOptimWrapper,
    AmpAGCOptimWrapper,
    clip_grad_adaptively_,
)
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
    'AGCOptimWrapper',
    'AmpAGCOptimWrapper',
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
    'clip_grad_adaptively_',
    'find_checkpoints',
]
