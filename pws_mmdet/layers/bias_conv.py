from mmengine.registry import MODELS
from torch import nn


@MODELS.register_module(name='BiasConv2d', force=True)
def bias_conv2d(*args, bias: bool = True, **kwargs) -> nn.Conv2d:
    """A plain ``nn.Conv2d`` with a bias, also where blocks pass ``bias=False``.

    It takes the place of a PWS convolution whose filters are computed once and for
    all, see ``tools/model_converters/fuse_pws.py``: beta becomes the bias.

    Args:
        *args, **kwargs: As of ``nn.Conv2d``.
        bias: Accepted and ignored, as in :class:`PWSConv2d`.
    """
    return nn.Conv2d(*args, **kwargs)
