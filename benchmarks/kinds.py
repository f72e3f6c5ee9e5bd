"""The kinds of convolutions and norm layers that speed.py compares."""

from typing import NamedTuple

from mmengine.registry import MODELS
from torch import nn

import pws_mmdet  # noqa: F401  registers the layers

NO_NORM = dict(type='NoNorm')


def with_bias(name: str, conv: type[nn.Conv2d]) -> dict:
    """Register a convolution that always has a bias, also if a block asks for none.

    Returns:
        Its conv_cfg.
    """

    def make(*args, bias: bool = True, **kwargs) -> nn.Conv2d:
        return conv(*args, **kwargs)

    MODELS.register_module(name=name, module=make, force=True)
    return dict(type=name)


class Kind(NamedTuple):
    """The convolutions and norm layers of a network.

    Args:
        conv_cfg: The convolutions.
        norm_cfg: The norm layers.
        predictors: The convolutions of SSD's predictors; None for plain ones.
        fuse: PWS convolutions are fused into plain ones. For inference only.
        share: Heads of several levels compute their filters once.
    """

    conv_cfg: dict
    norm_cfg: dict = NO_NORM
    predictors: dict | None = None
    fuse: bool = False
    share: bool = True


def make_kinds() -> dict[str, Kind]:
    """Return the kinds by their names; the first one is what the others divide by."""
    plain = dict(type='BiasConv2d')
    pws = dict(type='PWS', gamma=1e-3)
    kinds = {
        'plain': Kind(plain),
        'plain, again': Kind(plain),
        'PWS': Kind(pws, predictors=pws),
        'PWS, not shared': Kind(pws, predictors=pws, share=False),
        'PWS, fused': Kind(pws, predictors=pws, fuse=True),
        'BN': Kind(dict(type='Conv2d'), dict(type='BN')),
        'GN': Kind(dict(type='Conv2d'), dict(type='GN', num_groups=32)),
        'IN': Kind(dict(type='Conv2d'), dict(type='AnySizeIN')),
        'SN': Kind(dict(type='Conv2d'), dict(type='SN')),
        'WN': Kind(dict(type='WN')),
        'ConvWS': Kind(with_bias('BiasConvWS', MODELS.get('ConvWS'))),
        'ConvWS and GN': Kind(dict(type='ConvWS'), dict(type='GN', num_groups=32)),
    }
    try:
        from timm.layers import ScaledStdConv2d
    except (ImportError, RuntimeError):  # a torchvision for another torch
        pass
    else:
        kinds['ScaledStdConv2d'] = Kind(with_bias('BiasScaledStd', ScaledStdConv2d))
    return kinds
