"""Norm-free detectors for MMDetection: Parametric Weights Standardization."""

from .compat import allow_broken_torchvision, check_versions
from .version import __version__

check_versions()
allow_broken_torchvision()

# Importing registers the types with MMEngine, and needs the checks before it.
from .analysis import suggest_gamma, summarize_model  # noqa: E402
from .checkpoint.read import register_loaders  # noqa: E402
from .convert import (  # noqa: E402
    PWSPretrainedInit,
    convert_to_pws,
    fuse_pws,
    patch_fuse_conv_bn,
)
from .engine import (  # noqa: E402
    AtomicCheckpointHook,
    DataCheckHook,
    DivergenceError,
    DivergenceHook,
    EpochSeedHook,
    FusePWSHook,
    ModelSummaryHook,
    PWSAlphaInitHook,
    PWSOptimWrapperConstructor,
    PWSRunner,
    ShareFiltersHook,
    VarianceMonitorHook,
)
from .evaluation import FMeasureMetric  # noqa: E402
from .layers import (  # noqa: E402
    AnySizeInstanceNorm2d,
    NoNorm,
    PWSConv2d,
    SwitchableNorm2d,
    WNConv2d,
    share_filters,
    shared_filters,
    standardize_weight,
)
from .models import (  # noqa: E402
    PWSVGG,
    ConvPoolCNN,
    PWSCifarResNet,
    PWSResNet,
    PWSSSDHead,
)

register_loaders()

__all__ = [
    'ModelSummaryHook',
    'ConvPoolCNN',
    'DataCheckHook',
    'DivergenceError',
    'DivergenceHook',
    'AnySizeInstanceNorm2d',
    'EpochSeedHook',
    'FMeasureMetric',
    'FusePWSHook',
    'NoNorm',
    'PWSAlphaInitHook',
    'PWSCifarResNet',
    'PWSConv2d',
    'PWSOptimWrapperConstructor',
    'PWSPretrainedInit',
    'PWSResNet',
    'PWSRunner',
    'PWSSSDHead',
    'PWSVGG',
    'ShareFiltersHook',
    'SwitchableNorm2d',
    'VarianceMonitorHook',
    'AtomicCheckpointHook',
    'WNConv2d',
    '__version__',
    'convert_to_pws',
    'summarize_model',
    'fuse_pws',
    'patch_fuse_conv_bn',
    'share_filters',
    'shared_filters',
    'standardize_weight',
    'suggest_gamma',
]
