from pathlib import Path

import mmcv
import numpy as np
from mmpretrain.datasets import CIFAR10
from mmpretrain.registry import DATASETS

from ..utils.image_zip import read_images


@DATASETS.register_module(force=True)
class AnyCIFAR10(CIFAR10):
    """CIFAR-10 from its own files or from a zip file of images.

    Both give RGB images (32, 32, 3) and the same labels. All images of a zip file are
    decoded when it is read; the training images then take 150 MB, as those of the own
    files do.

    Args:
        data_root: A folder with ``cifar-10-batches-py``, or a file whose name ends in
            ``.zip``, with ``train/CLASS/NUMBER.jpg`` and ``test/CLASS/NUMBER.jpg``.
        split: 'train' or 'test'.
        **kwargs: As of mmpretrain's ``CIFAR10``.

    Raises:
        FileNotFoundError: If there is no such zip file.
        ValueError: If the zip file does not have the images of ten classes.
    """

    def load_data_list(self) -> list[dict]:
        """Return the images and their labels, as ``img`` and ``gt_label``."""
        path = Path(self.data_prefix['root'])
        if path.suffix != '.zip':
            return super().load_data_list()
        images, labels = read_images(path, self.split, decode)
        if (classes := len(set(labels))) != len(self.CLASSES):
            raise ValueError(
                f'{path} has images of {classes} classes for {self.split}, and '
                f'CIFAR-10 has {len(self.CLASSES)}'
            )
        # The names of the classes are in the order of the alphabet.
        pairs = zip(images, labels, strict=True)
        return [dict(img=image, gt_label=label) for image, label in pairs]


def decode(content: bytes) -> np.ndarray:
    """Return the image of a JPEG file, (H, W, 3), RGB."""
    return mmcv.imfrombytes(content, channel_order='rgb')
