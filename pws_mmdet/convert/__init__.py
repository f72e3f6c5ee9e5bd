from .folding import fold_into_plain_convolutions
from .fuse import fuse_pws, to_conv2d

__all__ = ['fold_into_plain_convolutions', 'fuse_pws', 'to_conv2d']
