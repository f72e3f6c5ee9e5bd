"""The images of CIFAR-10 in a zip file."""

import zipfile
from collections.abc import Callable
from pathlib import Path


def read_images(path: Path, split: str, decode: Callable) -> tuple[list, list[int]]:
    """Return the images and labels of a zip file with SPLIT/CLASS/NUMBER.jpg.

    Args:
        path: The file.
        split: 'train' or 'test'.
        decode: Makes an image of the bytes of a JPEG file.

    Raises:
        ValueError: If the file has no such images.
    """
    with zipfile.ZipFile(path) as archive:
        names = [n for n in archive.namelist() if n.startswith(f'{split}/')]
        names = sorted(n for n in names if not n.endswith('/'))
        if not names:
            raise ValueError(f'{path} has no {split}/CLASS/NUMBER.jpg')
        classes = sorted({n.split('/')[1] for n in names})
        labels = [classes.index(n.split('/')[1]) for n in names]
        return [decode(archive.read(n)) for n in names], labels


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
