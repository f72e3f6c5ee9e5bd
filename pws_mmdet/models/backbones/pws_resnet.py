from collections.abc import Callable

import torch.nn.functional as F
import torch.utils.checkpoint as cp
from mmcv.cnn import build_norm_layer
from mmdet.models.backbones.resnet import BasicBlock, ResNet
from mmdet.models.backbones.resnext import Bottleneck
from mmdet.models.layers import ResLayer
from mmengine.registry import MODELS
from torch import Tensor, nn

from ...layers.no_norm import NoNorm
from ...utils.config import registered

NO_NORM = dict(type='NoNorm')


class _PreActivation:
    """A mixin for blocks: x -> conv(relu(... conv1(relu(x)))) + shortcut.

    No ReLU follows the sum. A subclass may override ``activate`` and ``add``.
    """

    # set by MMDetection's blocks
    num_convs: int
    relu: nn.Module
    downsample: nn.Module | None
    with_cp: bool
    forward_plugin: Callable

    def activate(self, x: Tensor) -> Tensor:
        """Return the input of the first convolution and of the downsampling."""
        # F.relu is not in place: the identity path needs x as it is.
        return F.relu(x)

    def add(self, branch: Tensor, shortcut: Tensor) -> Tensor:
        """Return the output of the block."""
        return branch + shortcut

    def forward(self, x: Tensor) -> Tensor:
        def inner(x: Tensor) -> Tensor:
            relu_x = out = self.activate(x)
            for i in range(1, self.num_convs + 1):
                if i > 1:
                    out = self.relu(out)
                out = getattr(self, f'conv{i}')(out)
                out = getattr(self, f'norm{i}')(out)
                if getattr(self, 'with_plugins', False):
                    names = getattr(self, f'after_conv{i}_plugin_names')
                    out = self.forward_plugin(out, names)
            if self.downsample is not None:
                x = self.downsample(relu_x)
            return self.add(out, x)

        if self.with_cp and x.requires_grad:
            return cp.checkpoint(inner, x, use_reentrant=False)
        return inner(x)


class PreActBasicBlock(_PreActivation, BasicBlock):
    num_convs = 2


class PreActBottleneck(_PreActivation, Bottleneck):
    num_convs = 3


@MODELS.register_module(force=True)
class PWSResNet(ResNet):
    """ResNet or ResNeXt whose activations need no normalization.

    A subclass of MMDetection's ``ResNet`` with the same outputs: one map
    (N, C_i, H / s_i, W / s_i) for each of ``out_indices``, s = 4, 8, 16, 32.
    With the defaults every convolution is a PWS one, beta included, and the
    only layer that normalizes is the one after the stem. ``conv_cfg=None`` and a
    ``norm_cfg`` of BN or GN make the control network. Its convolutions start from the
    distribution of PWS: He normal, fan_in.

    Args:
        depth: 18, 34, 50, 101 or 152.
        conv_cfg: Convolution of stem, blocks and downsampling.
        norm_cfg: Norm layer of the blocks. None is ``dict(type='NoNorm')``.
            MMDetection's blocks build convolutions without a bias;
            ``dict(type='NoNorm', bias=True)`` adds it for plain convolutions
            (``conv_cfg=None``).
        stem_norm_cfg: Norm layer after the stem of a network whose blocks have
            none. The default is the authors' GN with one group; None makes a network
            without any norm layer. If the blocks have one, ``norm_cfg`` holds for the
            stem, too.
        pre_activation: True makes the authors' blocks: the identity path carries the
            sum before the ReLU, so that its mean stays near zero, and each output
            map passes a ReLU at the end. False makes MMDetection's blocks.
        out_norm_cfg: Norm layer before the ReLU of the last output map. The authors
            have GN with one group there for classification. It needs
            ``pre_activation``.
        groups, base_width: As of ``ResNeXt`` (depth 50 and more).
        zero_init_residual: As of ``ResNet``; without norm layers it does nothing.
        **kwargs: As of ``ResNet``.

    Raises:
        ValueError: If ``groups`` is given for a depth of basic blocks, or
            ``out_norm_cfg`` without pre-activation.

    Source: "Object Detection in COCO", "Image Classification in ImageNet" and
    the code of the paper's authors.
    """

    # Blocks in each stage, by depth; and the smallest depth that has bottlenecks.
    blocks_per_stage = {d: blocks for d, (_, blocks) in ResNet.arch_settings.items()}
    bottlenecks_from: float = 50
    pre_activation_block: type[PreActBasicBlock] = PreActBasicBlock

    def __init__(
        self,
        depth: int,
        conv_cfg: dict | None = dict(type='PWS'),
        norm_cfg: dict | None = None,
        stem_norm_cfg: dict | None = dict(type='GN', num_groups=1),
        pre_activation: bool = True,
        out_norm_cfg: dict | None = None,
        groups: int = 1,
        base_width: int = 4,
        **kwargs,
    ) -> None:
        if groups > 1 and depth < self.bottlenecks_from:
            raise ValueError(
                f'groups must be 1 for depth {depth}: only the bottlenecks of '
                f'depth 50, 101 and 152 can be grouped, got groups={groups}'
            )
        if out_norm_cfg and not pre_activation:
            raise ValueError(
                'out_norm_cfg needs pre_activation=True: in the stock order the '
                'last ReLU belongs to a block'
            )
        norm_cfg = norm_cfg or NO_NORM
        no_norm = registered(norm_cfg) is NoNorm
        self.stem_norm_cfg = stem_norm_cfg if stem_norm_cfg and no_norm else norm_cfg
        self.pre_activation = pre_activation
        self.groups = groups
        self.base_width = base_width
        basic, bottleneck = (
            (self.pre_activation_block, PreActBottleneck)
            if pre_activation
            else (BasicBlock, Bottleneck)
        )
        self.arch_settings = {
            d: (bottleneck if d >= self.bottlenecks_from else basic, blocks)
            for d, blocks in self.blocks_per_stage.items()
        }
        self._default_init = kwargs.get('init_cfg') is None
        super().__init__(depth, conv_cfg=conv_cfg, norm_cfg=norm_cfg, **kwargs)
        if self._default_init and isinstance(self.init_cfg, list):
            # ResNet has fan_out, whose variance differs by up to a factor of 4 from
            # that of PWS.
            self.init_cfg = [{**self.init_cfg[0], 'mode': 'fan_in'}, *self.init_cfg[1:]]
        self.out_norm: nn.Module | None = None
        if out_norm_cfg:
            channels = self.block.expansion * self.base_channels
            channels *= 2 ** max(self.out_indices)
            self.out_norm = build_norm_layer(out_norm_cfg, channels)[1]

    def make_res_layer(self, **kwargs) -> ResLayer:
        is_bottleneck = self.block.expansion == Bottleneck.expansion
        if is_bottleneck:
            kwargs.update(
                groups=self.groups,
                base_width=self.base_width,
                base_channels=self.base_channels,
            )
        if self.zero_init_residual and self._default_init:
            # ResNet itself does this for BasicBlock and Bottleneck only.
            last_norm = dict(name='norm3' if is_bottleneck else 'norm2')
            init_cfg = dict(type='Constant', val=0, override=last_norm)
            kwargs.update(init_cfg=init_cfg)
        return ResLayer(**kwargs)

    def _make_stem_layer(self, in_channels: int, stem_channels: int) -> None:
        super()._make_stem_layer(in_channels, stem_channels)
        norm_name, norm = build_norm_layer(self.stem_norm_cfg, stem_channels, postfix=1)
        if self.deep_stem:
            # The stem is conv norm relu conv norm relu conv norm relu.
            self.stem[7] = norm
            if self.pre_activation:
                del self.stem[8]
        else:
            delattr(self, self.norm1_name)
            self.norm1_name = norm_name
            self.add_module(norm_name, norm)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        if not self.pre_activation:
            return super().forward(x)
        x = self.stem(x) if self.deep_stem else self.norm1(self.conv1(x))
        # No ReLU here, so that the identity path of the first block gets the values
        # before the ReLU. Its other path is unchanged: ReLU and max pooling commute.
        x = self.maxpool(x)
        outs = []
        for i, name in enumerate(self.res_layers):
            x = getattr(self, name)(x)
            if i in self.out_indices:
                out = x
                if self.out_norm is not None and i == max(self.out_indices):
                    out = self.out_norm(x)
                outs.append(F.relu(out))
        return tuple(outs)
