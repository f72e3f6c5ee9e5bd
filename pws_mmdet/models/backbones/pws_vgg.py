from mmcv.cnn import ConvModule, build_conv_layer
from mmdet.models.backbones import SSDVGG
from mmdet.utils import OptMultiConfig
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn


@MODELS.register_module(force=True)
class PWSVGG(BaseModule):
    """VGG of SSD for 320x320, with any convolution and any norm layer.

    It has the thirteen convolutions of VGG-16, pool5 of 3x3 and stride 1, conv6 of 3x3
    without dilation, and conv7 of 1x1. The output of conv4_3 is not L2-normalized.

    Args:
        depth: 11, 13, 16 or 19.
        width: Multiplier of all channels, for small networks.
        conv_cfg: Convolution layers, PWS by default; None for plain ones.
        norm_cfg: Norm layers after each convolution; None for none.
        in_channels: Channels of the images.
        init_cfg: Initialization. The default is Kaiming normal (fan_in) for
            plain convolutions. It does not change PWS convolutions.

    Returns (forward):
        conv4_3 (N, 512 width, H / 8, W / 8) and conv7
        (N, 1024 width, H / 16, W / 16), sizes rounded up.

    Raises:
        ValueError: If the depth is unknown, or ``width`` leaves a layer
            without channels.

    Source: "Object Detection in VOC07" and the code of the paper's authors.
    """

    # convolutions in each stage
    arch_settings = {
        11: (1, 1, 2, 2, 2),
        13: (2, 2, 2, 2, 2),
        16: (2, 2, 3, 3, 3),
        19: (2, 2, 4, 4, 4),
    }

    def __init__(
        self,
        depth: int = 16,
        width: float = 1.0,
        conv_cfg: dict | None = dict(type='PWS'),
        norm_cfg: dict | None = None,
        in_channels: int = 3,
        init_cfg: OptMultiConfig = (
            dict(
                type='Kaiming',
                layer='Conv2d',
                mode='fan_in',
                nonlinearity='relu',
                distribution='normal',
            ),
            dict(type='Constant', val=1, layer=['_BatchNorm', 'GroupNorm']),
        ),
    ) -> None:
        super().__init__(init_cfg)
        if depth not in self.arch_settings:
            raise ValueError(
                f'depth must be one of {tuple(self.arch_settings)}, got {depth}'
            )
        if int(64 * width) < 1:
            raise ValueError(f'width must leave at least one channel, got {width}')

        def conv(out_channels: int, kernel_size: int) -> ConvModule:
            nonlocal in_channels
            module = ConvModule(
                in_channels,
                out_channels,
                kernel_size,
                padding=kernel_size // 2,
                conv_cfg=conv_cfg,
                norm_cfg=norm_cfg,
            )
            # Else MMEngine would call the init_weights of the direct children after
            # init_cfg was applied, and undo it.
            module.is_init = True
            in_channels = out_channels
            return module

        self.stages = nn.ModuleList()
        channels = [int(c * width) for c in (64, 128, 256, 512, 512)]
        for out_channels, num_convs in zip(
            channels, self.arch_settings[depth], strict=True
        ):
            convs = [conv(out_channels, 3) for _ in range(num_convs)]
            self.stages.append(nn.Sequential(*convs))
        self.conv6 = conv(int(1024 * width), 3)
        self.conv7 = conv(int(1024 * width), 1)
        self.pool = nn.MaxPool2d(2, 2, ceil_mode=True)
        self.pool5 = nn.MaxPool2d(3, 1, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for stage in self.stages[:3]:
            x = self.pool(stage(x))
        conv4_3 = self.stages[3](x)
        x = self.stages[4](self.pool(conv4_3))
        return conv4_3, self.conv7(self.conv6(self.pool5(x)))


@MODELS.register_module(force=True)
class PWSSSDVGG(SSDVGG):
    """MMDetection's VGG of SSD, for 300x300 and 512x512, with any convolution.

    Its layers have the names and sizes of those of ``SSDVGG``, so that
    ``PWSPretrained`` can convert the same weights for it. The paper's network is
    ``PWSVGG``.

    Args:
        *args, **kwargs: As of ``SSDVGG``.
        conv_cfg: Convolution layers, PWS by default; None for plain ones.

    Returns (forward):
        A map (N, C_i, H_i, W_i) for each of ``out_feature_indices``.
    """

    def __init__(
        self, *args, conv_cfg: dict | None = dict(type='PWS'), **kwargs
    ) -> None:
        super().__init__(*args, **kwargs)
        for i, conv in enumerate(self.features):
            if isinstance(conv, nn.Conv2d):
                self.features[i] = build_conv_layer(
                    conv_cfg,
                    conv.in_channels,
                    conv.out_channels,
                    conv.kernel_size,
                    padding=conv.padding,
                    dilation=conv.dilation,
                )
