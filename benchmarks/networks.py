"""The networks in which speed.py compares kinds of layers."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

import torch
from detector import Detector
from kinds import Kind
from mmcv.cnn import ConvModule
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS
from mmengine.runner import set_random_seed
from timing import Contender
from torch import Tensor, nn

import pws_mmdet
from pws_mmdet.utils.config import drop_pretrained, type_name, walk

ROOT = Path(__file__).resolve().parents[1]


class Network(Contender):
    """A layer or a backbone with an SGD optimizer.

    Args:
        name: The kind of its layers.
        make: Makes the network.
        image_size: Height and width of the images in pixels.
        input_shape: Shape of the input (N, C, H', W').
        inference: A step is a forward pass instead of a training step.
        fuse: PWS convolutions are fused into plain ones.
        input_grad: The input has a gradient, as inside a larger network.
    """

    def __init__(
        self,
        name: str,
        make: Callable[[], nn.Module],
        image_size: tuple[int, int],
        input_shape: tuple[int, int, int, int],
        inference: bool,
        fuse: bool,
        input_grad: bool,
    ) -> None:
        super().__init__(name, input_shape[0], image_size)
        self.make = make
        self.input_shape = input_shape
        self.inference = inference
        self.fuse = fuse
        self.input_grad = input_grad

    def build(
        self,
        device: torch.device,
        num_boxes: int,
        amp: bool,
        seed: int,
        memory_format: torch.memory_format,
    ) -> None:
        set_random_seed(seed)
        self.device = device
        self.amp = amp
        self.model = self.make()
        if self.fuse:
            pws_mmdet.fuse_pws(self.model, inplace=True)
        self.model.to(device, memory_format=memory_format).train(not self.inference)
        x = torch.rand(self.input_shape).to(device, memory_format=memory_format)
        self.x = x.requires_grad_(self.input_grad and not self.inference)
        if not self.inference:
            parameters = self.model.parameters()
            self.optimizer = torch.optim.SGD(parameters, lr=0.0, momentum=0.9)

    def forward(self) -> list[Tensor]:
        with torch.autocast(self.device.type, torch.float16, enabled=self.amp):
            outs = self.model(self.x)
        return [outs] if isinstance(outs, Tensor) else list(outs)

    def run(self) -> float:
        if self.inference:
            with torch.inference_mode():
                self.forward()
            return 0.0
        outs = self.forward()
        torch.autograd.backward(outs, [torch.ones_like(out) for out in outs])
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.x.grad = None
        return 0.0


class Part(ABC):
    """A network in which the kinds are compared."""

    kinds: tuple[str, ...] | None = None  # the kinds to compare; None for all

    @abstractmethod
    def make(
        self, name: str, kind: Kind, batch_size: int, size: int, inference: bool
    ) -> Contender:
        """Return a contender with layers of a kind.

        Args:
            name: Name of the kind.
            kind: The kind.
            batch_size: Number of images in a step.
            size: Height and width of the images in pixels.
            inference: A step is a forward pass instead of a training step.
        """


class LayerPart(Part):
    """A convolution with its norm layer and ReLU, as inside a network.

    Args:
        channels: Number of input and output channels.
        kernel_size: Size of the kernel.
        stride: Stride of the feature map in pixels of the image.
    """

    def __init__(self, channels: int, kernel_size: int, stride: int) -> None:
        self.channels = channels
        self.kernel_size = kernel_size
        self.stride = stride

    def make(self, name, kind, batch_size, size, inference):
        def make():
            return ConvModule(
                self.channels,
                self.channels,
                self.kernel_size,
                padding=self.kernel_size // 2,
                conv_cfg=kind.conv_cfg,
                norm_cfg=kind.norm_cfg,
            )

        side = size // self.stride
        shape = (batch_size, self.channels, side, side)
        return Network(
            name, make, (size, size), shape, inference, kind.fuse, input_grad=True
        )


class BackbonePart(Part):
    """A backbone. Its stem has the same norm layers as its stages.

    Args:
        **cfg: The backbone's config.
    """

    def __init__(self, **cfg) -> None:
        self.cfg = cfg

    def make(self, name, kind, batch_size, size, inference):
        def make():
            cfg = dict(self.cfg, conv_cfg=kind.conv_cfg, norm_cfg=kind.norm_cfg)
            model = MODELS.build(drop_pretrained(cfg))
            model.init_weights()
            return model

        shape = (batch_size, 3, size, size)
        return Network(
            name, make, (size, size), shape, inference, kind.fuse, input_grad=False
        )


class DetectorPart(Part):
    """The detector of a config of this project. All its layers are trained.

    Args:
        config: Path of the config. Each conv_cfg in it is replaced by the kind's.
        kinds: The kinds to compare; None for all.
    """

    def __init__(self, config: str, kinds: tuple[str, ...] | None = None) -> None:
        self.config = config
        self.kinds = kinds

    def make(self, name, kind, batch_size, size, inference):
        cfg = Config.fromfile(ROOT / self.config)
        for _, part in walk(cfg.model):
            if not isinstance(part, dict) or 'conv_cfg' not in part:
                continue
            predicts = type_name(part) == 'PWSSSDHead'
            part.conv_cfg = copy.deepcopy(
                kind.predictors if predicts else kind.conv_cfg
            )
            if not predicts:
                part.norm_cfg = copy.deepcopy(kind.norm_cfg)
        backbone = cfg.model.backbone
        if 'stem_norm_cfg' in backbone:
            backbone.update(stem_norm_cfg=None, frozen_stages=-1, norm_eval=False)
        if 'roi_head' in cfg.model:
            take_as_many_regions(cfg.model)
        return Detector(
            name, cfg, batch_size, (size, size), inference, kind.fuse, kind.share
        )


def take_as_many_regions(model: ConfigDict) -> None:
    """Make the work of a two-stage detector independent of its random weights.

    All proposals of an image are kept. Only the box of an object itself matches the
    object.
    """
    for proposals in (model.train_cfg.rpn_proposal, model.test_cfg.rpn):
        proposals.nms.iou_threshold = 1.0
    for name in ('bbox', 'mask'):  # 0 samples large regions more
        model.roi_head[f'{name}_roi_extractor'].roi_layer.sampling_ratio = 2
    model.train_cfg.rcnn.assigner.update(
        pos_iou_thr=0.999, neg_iou_thr=0.999, min_pos_iou=0.999
    )


PARTS: dict[str, Part] = {
    'conv 3x3, 64 channels, H/4': LayerPart(64, 3, 4),
    'conv 3x3, 512 channels, H/16': LayerPart(512, 3, 16),
    'conv 1x1, 1024 channels, H/16': LayerPart(1024, 1, 16),
    'ResNet-50': BackbonePart(
        type='PWSResNet', depth=50, stem_norm_cfg=None, norm_eval=False
    ),
    'VGG-16-SSD320': DetectorPart('configs/ssd320_vgg16_pws_1x.py'),
    'Mask R-CNN R-50-FPN': DetectorPart('configs/mask_rcnn_r50_fpn_pws_1x.py'),
    'RetinaNet R-50-FPN': DetectorPart(
        'configs/retinanet_r50_fpn_pws_1x.py',
        kinds=('plain', 'plain, again', 'PWS', 'PWS, not shared', 'PWS, fused'),
    ),
}
