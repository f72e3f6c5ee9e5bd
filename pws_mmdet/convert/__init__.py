from .folding import fold_into_plain_convolutions
from .from_bn import convert_to_pws
from .fuse import fuse_pws, to_conv2d
from .plain_detector import fuse_detector
from .pretrained import PWSPretrainedInit, load_bn_weights

__all__ = [
    'PWSPretrainedInit',
    'convert_to_pws',
    'fold_into_plain_convolutions',
    'fuse_detector',
    'fuse_pws',
    'load_bn_weights',
    'to_conv2d',
]
