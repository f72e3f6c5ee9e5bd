"""The images of CIFAR-10 in a zip file."""

import zipfile
from pathlib import Path

from pws_mmdet.utils.image_zip import read_images

__all__ = ['pack', 'read_images']


def pack(source: Path, target: Path, images: int) -> None:
    """Copy a part of the images, with the same number of each class.

    Args:
        source: Zip file of all images.
        target: Zip file to write.
        images: Number of training images. A sixth of it are test images.
    """
    counts: dict[str, int] = {}
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(target, 'w') as small:
        for name in sorted(archive.namelist()):
            folder = name.rpartition('/')[0]
            if name.endswith('/'):
                continue
            wanted = images // 10 if folder.startswith('train') else images // 60
            counts[folder] = counts.get(folder, 0) + 1
            if counts[folder] <= wanted:
                small.writestr(name, archive.read(name))
