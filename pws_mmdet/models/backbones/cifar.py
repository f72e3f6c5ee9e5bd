import math

import mmcv.cnn
from mmcv.cnn import ConvModule, build_conv_layer
from mmdet.utils import OptMultiConfig
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn

from ...utils.config import registered
from .pws_resnet import PWSResNet

PLAIN = (nn.Conv2d, mmcv.cnn.Conv2d)


@MODELS.register_module(force=True)
class PWSCifarResNet(PWSResNet):
    """ResNet for images of 32x32: depth 6m + 2, three stages of m basic blocks.

    The stem is a 3x3 convolution of stride 1 without pooling. The three stages have
    1, 2 and 4 times ``base_channels``. The output is one map
    (N, 4 base_channels, H / 4, W / 4), sizes rounded up. Where the shape changes, the
    shortcut is a 1x1 convolution, as in every ResNet of MMDetection; the original
    shortcut has no parameters.

    Depth 18 and 34 are the ResNets for ImageNet with this stem: four stages, whose
    output is (N, 8 base_channels, H / 8, W / 8). ``base_channels`` is usually 64.

    With the defaults every convolution is a PWS one and nothing normalizes. All
    rows of Table 4 have the original order of layers (convolution, norm, ReLU), so
    that they differ in the norm alone.

    Args:
        depth: 20, 32, 44, 56 or 110; 18 or 34 for four stages.
        base_channels: Channels of the first stage.
        conv_cfg: Convolution layers; None or ``dict(type='Conv2d')`` for plain ones.
        norm_cfg: Norm layer after each convolution. None is ``NoNorm``, with a bias
            if the convolutions are plain: the blocks build these without one.
        stem_norm_cfg, pre_activation: As of ``PWSResNet``.
        norm_eval, zero_init_residual: As of ``ResNet``; False, as in the original.
        **kwargs: As of ``PWSResNet``. The number, strides and dilations of the
            stages, the outputs and ``deep_stem`` are fixed.

    Raises:
        ValueError: If the depth is unknown.

    Source: He et al. 2016 ("Deep Residual Learning", section 4.2); Table 4.
    """

    blocks_per_stage = {6 * m + 2: (m, m, m) for m in (3, 5, 7, 9, 18)} | {
        depth: PWSResNet.blocks_per_stage[depth] for depth in (18, 34)
    }
    bottlenecks_from = math.inf

    def __init__(
        self,
        depth: int,
        base_channels: int = 16,
        conv_cfg: dict | None = dict(type='PWS', gamma=1e-3),
        norm_cfg: dict | None = None,
        stem_norm_cfg: dict | None = None,
        pre_activation: bool = False,
        norm_eval: bool = False,
        zero_init_residual: bool = False,
        **kwargs,
    ) -> None:
        if depth not in self.blocks_per_stage:
            raise ValueError(
                f'depth must be one of {tuple(self.blocks_per_stage)}, got {depth}'
            )
        is_plain = conv_cfg is None or registered(conv_cfg) in PLAIN
        num_stages = len(self.blocks_per_stage[depth])
        super().__init__(
            depth,
            base_channels=base_channels,
            conv_cfg=conv_cfg,
            norm_cfg=norm_cfg or dict(type='NoNorm', bias=is_plain),
            stem_norm_cfg=stem_norm_cfg,
            pre_activation=pre_activation,
            norm_eval=norm_eval,
            zero_init_residual=zero_init_residual,
            num_stages=num_stages,
            strides=(1, 2, 2, 2)[:num_stages],
            dilations=(1,) * num_stages,
            out_indices=(num_stages - 1,),
            deep_stem=False,
            **kwargs,
        )

    def _make_stem_layer(self, in_channels: int, stem_channels: int) -> None:
        super()._make_stem_layer(in_channels, stem_channels)
        self.conv1 = build_conv_layer(
            self.conv_cfg, in_channels, stem_channels, 3, padding=1, bias=False
        )
        self.maxpool = nn.Identity()


@MODELS.register_module(force=True)
class ConvPoolCNN(BaseModule):
    """ConvPool-CNN-C without dropout, up to its classifier.

    There are two groups of three 3x3 convolutions and a 3x3 max pooling of stride 2.
    A 3x3 convolution without padding and a 1x1 convolution follow. The output is a
    map (N, 192 width, H / 4 - 2, W / 4 - 2), H / 4 rounded up: 6x6 for an image of
    32x32, as in the original.

    Global average pooling and a linear layer complete the network. In the original
    the linear layer is a 1x1 convolution before the pooling. Both are linear, so that
    the order does not matter. The original also has a ReLU between them. It is left
    out, because it would make negative scores impossible.

    Args:
        width: Multiplier of all channels, for small networks.
        conv_cfg: As of ``PWSCifarResNet``.
        norm_cfg: Norm layers after each convolution; None for none.
        in_channels: Channels of the images.
        init_cfg: Initialization. The default is Kaiming normal (fan_in) for
            plain convolutions. It does not change PWS and WN convolutions.

    Raises:
        ValueError: If ``width`` leaves a layer without channels.

    Source: Springenberg et al. 2015, Table 2 (ConvPool-CNN-C); Table 4.
    """

    def __init__(
        self,
        width: float = 1.0,
        conv_cfg: dict | None = dict(type='PWS', gamma=1e-3),
        norm_cfg: dict | None = None,
        in_channels: int = 3,
        init_cfg: OptMultiConfig = dict(
            type='Kaiming',
            layer='Conv2d',
            mode='fan_in',
            nonlinearity='relu',
            distribution='normal',
        ),
    ) -> None:
        super().__init__(init_cfg)
        if int(96 * width) < 1:
            raise ValueError(f'width must leave at least one channel, got {width}')

        def conv(channels: int, kernel_size: int = 3, padding: int = 1) -> ConvModule:
            nonlocal in_channels
            module = ConvModule(
                in_channels,
                int(channels * width),
                kernel_size,
                padding=padding,
                conv_cfg=conv_cfg,
                norm_cfg=norm_cfg,
            )
            in_channels = module.out_channels
            return module

        self.layers = nn.Sequential(
            *(conv(96) for _ in range(3)),
            nn.MaxPool2d(3, 2, padding=1),
            *(conv(192) for _ in range(3)),
            nn.MaxPool2d(3, 2, padding=1),
            conv(192, padding=0),
            conv(192, kernel_size=1, padding=0),
        )

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.layers(x),)
