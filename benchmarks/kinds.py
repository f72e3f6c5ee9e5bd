"""The kinds of convolutions and norm layers that speed.py compares."""

from typing import NamedTuple

from mmengine.registry import MODELS
from torch import nn

import pws_mmdet  # noqa: F401  registers the layers

NO_NORM = dict(type='NoNorm')


@MODELS.register_module('BenchmarkFrozenBN', force=True)
class FrozenBN(nn.BatchNorm2d):
    """BN whose statistics and gains are constant, as in fine-tuned detectors.

    MMDetection has it by ``norm_eval=True`` in its ResNet. The FrozenBN of its registry
    is another class, which MMDetection's own configs do not use.
    """

    _abbr_ = 'bn'

    def __init__(self, num_features: int, **kwargs) -> None:
        super().__init__(num_features, **kwargs)
        self.requires_grad_(False)

    def train(self, mode: bool = True) -> 'FrozenBN':
        return super().train(False)


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
        'frozen BN': Kind(
            dict(type='Conv2d'), dict(type='BenchmarkFrozenBN', requires_grad=False)
        ),
        'GN': Kind(dict(type='Conv2d'), dict(type='GN', num_groups=32)),
        'IN': Kind(dict(type='Conv2d'), dict(type='AnySizeIN')),
        'SN': Kind(dict(type='Conv2d'), dict(type='SN')),
        'DyT': Kind(dict(type='Conv2d'), dict(type='DyT')),
        'WN': Kind(dict(type='WN')),
        'ScaledWS': Kind(dict(type='ScaledWS')),
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
