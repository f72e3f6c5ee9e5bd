from .batch_norm import patch_fuse_conv_bn
from .convert import convert_to_pws
from .fuse import fuse_pws, to_conv2d
from .fuse_detector import fuse_detector
from .pretrained import PWSPretrainedInit, load_bn_weights

__all__ = [
    'PWSPretrainedInit',
    'convert_to_pws',
    'fuse_detector',
    'fuse_pws',
    'load_bn_weights',
    'patch_fuse_conv_bn',
    'to_conv2d',
]
