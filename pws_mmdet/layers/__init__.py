from .bias_conv import bias_conv2d
from .dynamic_tanh import DynamicTanh
from .instance_norm import AnySizeInstanceNorm2d
from .no_norm import NoNorm
from .pws_conv import PWSConv2d
from .reparam_conv import ReparamConv2d
from .scaled_ws_conv import ScaledWSConv2d
from .sharing import share_filters, share_filters_of_heads, shared_filters
from .standardize import standardize_weight
from .switchable_norm import SwitchableNorm2d
from .wn_conv import WNConv2d, normalize_weight

__all__ = [
    'AnySizeInstanceNorm2d',
    'DynamicTanh',
    'NoNorm',
    'PWSConv2d',
    'ReparamConv2d',
    'ScaledWSConv2d',
    'SwitchableNorm2d',
    'WNConv2d',
    'bias_conv2d',
    'normalize_weight',
    'share_filters',
    'share_filters_of_heads',
    'shared_filters',
    'standardize_weight',
]
