"""Images in a zip file with a folder for each class."""

import zipfile
from collections.abc import Callable
from pathlib import Path


def read_images(path: Path, split: str, decode: Callable) -> tuple[list, list[int]]:
    """Return the images and labels of a zip file with SPLIT/CLASS/NUMBER.jpg.

    The zip file may have all of this in a folder.

    Args:
        path: The file.
        split: 'train' or 'test'.
        decode: Makes an image of the bytes of a JPEG file.

    Returns:
        The images, and the positions of their classes in the sorted list of all.

    Raises:
        ValueError: If the file has no such images.
    """
    with zipfile.ZipFile(path) as archive:
        files = [n for n in sorted(archive.namelist()) if not n.endswith('/')]
        names = [n for n in files if n.split('/')[-3:-2] == [split]]
        if not names:
            raise ValueError(f'{path} has no {split}/CLASS/NUMBER.jpg')
        classes = sorted({n.split('/')[-2] for n in names})
        labels = [classes.index(n.split('/')[-2]) for n in names]
        return [decode(archive.read(n)) for n in names], labels
