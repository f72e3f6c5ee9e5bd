import math

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn

from ...layers.scaled_ws_conv import RELU_GAIN, ScaledWSConv2d
from ...utils.config import registered
from .cifar import PWSCifarResNet
from .pws_resnet import PreActBasicBlock


class NFBasicBlock(PreActBasicBlock):
    r"""A block of NF-ResNets: x -> shortcut + skip_scale * skip_gain * branch(x / std).

    Where the shape changes, the shortcut is a convolution of relu(x / std).

    Attributes:
        std: The expected standard deviation of the input. The network sets it.
        skip_scale: The branch's share, a constant.
        skip_gain: SkipInit, a trained scalar of shape (1,). It starts at 0, unless
            the network sets it: the block starts as its shortcut.

    Source: Brock et al. 2021, "Characterizing signal propagation to close the
    performance gap in unnormalized ResNets"; SkipInit: De & Smith 2020.
    """

    std = 1.0
    skip_scale = 0.2

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.skip_gain = nn.Parameter(torch.zeros(1))

    def activate(self, x: Tensor) -> Tensor:
        return F.relu(x / self.std)

    def add(self, branch: Tensor, shortcut: Tensor) -> Tensor:
        return shortcut + self.skip_scale * self.skip_gain * branch


@MODELS.register_module(force=True)
class NFCifarResNet(PWSCifarResNet):
    """The NF-ResNet of the shape of ``PWSCifarResNet``: nothing normalizes.

    The activation of each block is divided by the standard deviation that its input has
    at the start, by calculation: each block adds skip_scale^2 to the variance, and a
    shortcut with a convolution sets it back to 1. The order of layers is that of
    pre-activation. The gain of ReLU is in the filters (``ScaledWSConv2d``), but
    not in the stem's, which no activation precedes. The output is multiplied by it,
    because a plain layer follows.

    Args:
        depth, base_channels: As of ``PWSCifarResNet``.
        conv_cfg: Convolution layers.
        skip_scale: The share of each branch.
        skip_init: What ``skip_gain`` starts from. 0 is SkipInit; at 1 all branches
            learn from the first step.
        **kwargs: As of ``PWSCifarResNet``, without ``pre_activation``.

    Raises:
        ValueError: If the depth is unknown.

    Source: as of ``NFBasicBlock``.
    """

    pre_activation_block = NFBasicBlock

    def __init__(
        self,
        depth: int,
        base_channels: int = 16,
        conv_cfg: dict = dict(type='ScaledWS'),
        skip_scale: float = 0.2,
        skip_init: float = 0.0,
        **kwargs,
    ) -> None:
        super().__init__(
            depth, base_channels, conv_cfg=conv_cfg, pre_activation=True, **kwargs
        )
        variance = 1.0
        for block in self.modules():
            if isinstance(block, NFBasicBlock):
                block.std = math.sqrt(variance)
                block.skip_scale = skip_scale
                nn.init.constant_(block.skip_gain, skip_init)
                variance = 1.0 if block.downsample is not None else variance
                variance += skip_scale**2

    def _make_stem_layer(self, in_channels: int, stem_channels: int) -> None:
        conv_cfg = self.conv_cfg
        if registered(conv_cfg) is ScaledWSConv2d:
            self.conv_cfg = {**conv_cfg, 'activation_gain': 1.0}
        super()._make_stem_layer(in_channels, stem_channels)
        self.conv_cfg = conv_cfg

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(RELU_GAIN * out for out in super().forward(x))
