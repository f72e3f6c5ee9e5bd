from .no_norm import NoNorm
from .pws_conv import PWSConv2d
from .standardize import standardize_weight

__all__ = ['NoNorm', 'PWSConv2d', 'standardize_weight']
