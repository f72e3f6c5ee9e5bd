from mmengine.registry import MODELS
from torch import nn


@MODELS.register_module(name='BiasConv2d', force=True)
def bias_conv2d(*args, bias: bool = True, **kwargs) -> nn.Conv2d:
    """Make a plain ``nn.Conv2d`` that has a bias even if blocks pass ``bias=False``.

    It replaces a fused PWS convolution, whose beta is the bias: see ``pws-fuse``.

    Args:
        *args, **kwargs: As of ``nn.Conv2d``.
        bias: Ignored, as in ``PWSConv2d``.
    """
    return nn.Conv2d(*args, **kwargs)
