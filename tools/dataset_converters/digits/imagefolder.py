"""Write handwritten digits as a folder of images for each class."""

import shutil
import tempfile
from pathlib import Path

import cv2
import numpy as np
from sklearn.datasets import load_digits

from .drawing import draw_background, paint
from .folders import check_out_dir, remove

SPLITS = dict(train=slice(None, 1297), test=slice(1297, None))
LEAST_SIZE = 8  # that of the digits
LARGEST_SIZE = 4096


def check_arguments(out_dir: str | Path, size: int, force: bool) -> None:
    """Raise the errors of ``convert`` before any work is done."""
    if size < LEAST_SIZE:
        raise ValueError(f'size must be at least {LEAST_SIZE}, not {size}')
    if size > LARGEST_SIZE:
        raise ValueError(f'size must be at most {LARGEST_SIZE}, not {size}')
    check_out_dir(out_dir, force)


def convert(
    out_dir: str | Path, size: int = 16, force: bool = False, textured: bool = False
) -> dict[str, int]:
    """Write the digits as PNG files.

    The test split is the last 500 digits. The data are in the order of their writers,
    so nearly all digits of the train split are by other people.

    Args:
        out_dir: Folder for ``train`` and ``test``. It is made or changed only after
            everything is written.
        size: Side of the square images in pixels, from 8 to 4096. The digits have 8x8
            pixels and are scaled bilinearly.
        force: Replace the splits in an ``out_dir`` that is not empty. Its other files
            are kept.
        textured: Paint each digit in a random colour on a coloured texture. The seed of
            both is the index of the digit. By default, digits are grey on black.

    Returns:
        The number of images in each split.

    Raises:
        ValueError: If ``size`` is too small or too large, or ``out_dir`` is the root
            folder.
        NotADirectoryError: If ``out_dir`` is no folder.
        FileExistsError: If ``out_dir`` is not empty and ``force`` is false.
    """
    check_arguments(out_dir, size, force)
    out_dir = Path(out_dir).resolve()
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    digits = load_digits()
    counts = {}
    with tempfile.TemporaryDirectory(
        prefix=f'.{out_dir.name}-', dir=out_dir.parent
    ) as scratch:
        root = Path(scratch)
        for split, indices in SPLITS.items():
            chosen = range(len(digits.target))[indices]
            for index in chosen:
                path = root / split / str(digits.target[index]) / f'{index:04d}.png'
                path.parent.mkdir(parents=True, exist_ok=True)
                alpha = cv2.resize(digits.images[index] / 16, (size, size))
                write(path, draw_textured(alpha, index) if textured else 255 * alpha)
            counts[split] = len(chosen)
        out_dir.mkdir(exist_ok=True)
        for split in SPLITS:
            remove(out_dir / split)
            # A rename would fail if `out_dir` is a mount point.
            shutil.move(root / split, out_dir / split)
    return counts


def draw_textured(alpha: np.ndarray, seed: int) -> np.ndarray:
    """Paint a digit on a texture.

    Args:
        alpha: The digit as an alpha matte, from 0 to 1.
        seed: Seed of the colours and the texture.
    """
    rng = np.random.default_rng(seed)
    image = draw_background(len(alpha), rng)
    paint(image, alpha, rng)
    return image


def write(path: Path, image: np.ndarray) -> None:
    """Write an image with levels from 0 to 255."""
    if not cv2.imwrite(str(path), image.round().astype(np.uint8)):
        raise OSError(f'could not write {path}')
