"""Conversions: BN to PWS, PWS to plain convolutions, and configs to norm-free ones."""

from .authors_checkpoint import convert_authors_checkpoint
from .backbone_checkpoint import publish_backbone
from .bn_checkpoint import convert_checkpoint
from .bn_weights import load_bn_weights
from .convert import convert_to_pws
from .fold import fold_batch_norm
from .fuse import fuse_pws, to_conv2d
from .fuse_conv_bn import patch_fuse_conv_bn
from .norm_free_config import make_norm_free, norm_free_model
from .plain_checkpoint import fuse_checkpoint
from .plain_detector import fuse_detector
from .pretrained import PWSPretrainedInit

__all__ = [
    'PWSPretrainedInit',
    'convert_authors_checkpoint',
    'convert_checkpoint',
    'convert_to_pws',
    'fold_batch_norm',
    'fuse_checkpoint',
    'fuse_detector',
    'fuse_pws',
    'load_bn_weights',
    'make_norm_free',
    'norm_free_model',
    'patch_fuse_conv_bn',
    'publish_backbone',
    'to_conv2d',
]
