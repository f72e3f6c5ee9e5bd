"""Norm-free detectors for MMDetection: Parametric Weights Standardization.

Importing the package registers its layers, models, hooks and metrics, so that configs
can name them. The names below are those that Python code needs most. All others are
in the modules ``pws_mmdet.layers``, ``models``, ``checkpoint``, ``convert``,
``analysis``, ``evaluation`` and ``engine``, and in ``pws_mmdet.deploy``, which needs
torch 2.4 and declares operators to it when it is imported.
"""

from .compat import allow_broken_torchvision, check_versions
from .version import __version__

# Before the other imports, which need the right versions and import MMDetection
check_versions()
allow_broken_torchvision()

from . import deprecated, evaluation, models  # noqa: E402, F401
from .analysis import suggest_gamma, summarize_model  # noqa: E402
from .checkpoint import read_checkpoint, register_loaders  # noqa: E402
from .convert import (  # noqa: E402
    convert_checkpoint,
    convert_to_pws,
    fuse_pws,
    patch_fuse_conv_bn,
)
from .engine import PWSRunner  # noqa: E402
from .layers import PWSConv2d, share_filters, standardize_weight  # noqa: E402

register_loaders()

__all__ = [
    'PWSConv2d',
    'PWSRunner',
    '__version__',
    'convert_checkpoint',
    'convert_to_pws',
    'fuse_pws',
    'patch_fuse_conv_bn',
    'read_checkpoint',
    'share_filters',
    'standardize_weight',
    'suggest_gamma',
    'summarize_model',
]


def __getattr__(name: str) -> type:
    if name in deprecated.RENAMED:
        return deprecated.renamed(name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
