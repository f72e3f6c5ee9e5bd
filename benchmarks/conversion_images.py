"""Images to train and test networks on."""

import io
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from gpu_images import read_images
from PIL import Image
from torch import Tensor


class Images(ABC):
    """Images as the authors of a network normalized them.

    Args:
        data: Where the images are.

    Attributes:
        mean, std: Of each channel, RGB, of values from 0 to 255.
    """

    mean: Sequence[float]
    std: Sequence[float]

    def __init__(self, data: Path) -> None:
        self.data = data

    def train(self) -> tuple[Tensor, Tensor]:
        """Return all training images, (N, 3, H, W), and their labels, (N,).

        Raises:
            ValueError: If the images have no labels.
        """
        raise ValueError(f'the images of {self.data} have no labels to train with')

    @abstractmethod
    def test(self) -> tuple[Tensor, Tensor | None]:
        """Return all test images, (N, 3, H, W), and their labels, if there are any."""

    def normalize(self, images: Sequence[Image.Image]) -> Tensor:
        """Return images of one size as a tensor, (N, 3, H, W)."""
        x = torch.from_numpy(np.stack([np.asarray(x.convert('RGB')) for x in images]))
        x = x.permute(0, 3, 1, 2).float()
        mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (self.mean, self.std))
        return x.sub_(mean).div_(std)


class Cifar(Images):
    """CIFAR-10 as JPEG files, in a zip file with SPLIT/CLASS/NUMBER.jpg."""

    mean = (123.675, 116.28, 103.53)
    std = (58.395, 57.12, 57.375)

    def train(self) -> tuple[Tensor, Tensor]:
        return self.split('train')

    def test(self) -> tuple[Tensor, Tensor | None]:
        return self.split('test')

    def split(self, name: str) -> tuple[Tensor, Tensor]:
        files, labels = read_images(self.data, name, bytes)
        return self.decode(files), torch.tensor(labels)

    def decode(self, files: Sequence[bytes]) -> Tensor:
        return self.normalize([Image.open(io.BytesIO(file)) for file in files])


class Coco(Images):
    """Crops of photographs, in a folder with val2017.

    The shorter side of an image is enlarged or reduced to 256 pixels. The crops have
    224: the middle and the corners of each image.
    """

    mean = (127.0, 127.0, 127.0)
    std = (128.0, 128.0, 128.0)

    def test(self) -> tuple[Tensor, Tensor | None]:
        paths = sorted((self.data / 'val2017').iterdir())
        images = [path for path in paths if path.suffix == '.jpg']
        return self.normalize([crop for path in images for crop in crops(path)]), None


def crops(path: str | Path, side: int = 256, size: int = 224) -> list[Image.Image]:
    """Return the middle and the four corners of an image.

    Args:
        path: The file.
        side: The shorter side of the resized image in pixels.
        size: Height and width of the crops in pixels.
    """
    image = Image.open(path).convert('RGB')
    scale = side / min(image.size)
    width, height = (round(length * scale) for length in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    right, bottom = width - size, height - size
    corners = [(0, 0), (right, 0), (0, bottom), (right, bottom)]
    return [
        image.crop((x, y, x + size, y + size))
        for x, y in [(right // 2, bottom // 2), *corners]
    ]


def open_images(data: Path) -> Images:
    """Return the images of a zip file of CIFAR-10, or of a folder in COCO's layout.

    Raises:
        FileNotFoundError: If there is no such file or folder.
    """
    if not data.exists():
        raise FileNotFoundError(f'there is no file or folder {data}')
    return Coco(data) if data.is_dir() else Cifar(data)
