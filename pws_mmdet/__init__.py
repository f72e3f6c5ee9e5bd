"""Norm-free detectors for MMDetection: Parametric Weights Standardization."""

from .compat import allow_mmengine_checkpoints, check_versions
from .version import __version__

check_versions()
allow_mmengine_checkpoints()

# Importing registers the types with MMEngine, and needs the checks before it.
from .engine import (  # noqa: E402
    DivergenceError,
    DivergenceHook,
    EpochSeedHook,
    PWSAlphaInitHook,
    PWSRunner,
)
from .evaluation import FMeasureMetric  # noqa: E402
from .layers import (  # noqa: E402
    NoNorm,
    PWSConv2d,
    standardize_weight,
)
from .models import PWSVGG, PWSResNet, PWSSSDHead  # noqa: E402

__all__ = [
    'DivergenceError',
    'DivergenceHook',
    'EpochSeedHook',
    'FMeasureMetric',
    'NoNorm',
    'PWSAlphaInitHook',
    'PWSConv2d',
    'PWSResNet',
    'PWSRunner',
    'PWSSSDHead',
    'PWSVGG',
    '__version__',
    'standardize_weight',
]
