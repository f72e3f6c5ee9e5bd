from .convert import convert_to_pws, fold_batch_norm
from .fuse import fuse_pws, to_conv2d
from .fuse_conv_bn import patch_fuse_conv_bn
from .fuse_detector import fuse_detector
from .pretrained import PWSPretrainedInit, load_bn_weights

__all__ = [
    'PWSPretrainedInit',
    'convert_to_pws',
    'fold_batch_norm',
    'fuse_detector',
    'fuse_pws',
    'load_bn_weights',
    'patch_fuse_conv_bn',
    'to_conv2d',
]
