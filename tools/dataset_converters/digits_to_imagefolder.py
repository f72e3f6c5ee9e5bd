"""Write scikit-learn's handwritten digits as a folder of images per class.

The layout is that of mmpretrain's CustomDataset, train/0 to test/9. The 1797 real
digits ship with scikit-learn, so nothing is downloaded.
"""

import argparse
import shutil
import tempfile
from pathlib import Path

import cv2
import numpy as np
from digits_to_coco import check_out_dir, draw_background, paint, remove
from sklearn.datasets import load_digits

SPLITS = dict(train=slice(None, 1297), test=slice(1297, None))
LEAST_SIZE = 8  # the digits' own
LARGEST_SIZE = 4096


def check_arguments(out_dir: str | Path, size: int, force: bool) -> None:
    """Raise what :func:`convert` documents, before any work is done."""
    if size < LEAST_SIZE:
        raise ValueError(f'size must be at least {LEAST_SIZE}, not {size}')
    if size > LARGEST_SIZE:
        raise ValueError(f'size must be at most {LARGEST_SIZE}, not {size}')
    check_out_dir(out_dir, force)


def convert(
    out_dir: str | Path, size: int = 16, force: bool = False, textured: bool = False
) -> dict[str, int]:
    """Write the digits as PNG files, train first in the order of the data.

    The data are in the order of their writers, so that the last 500 digits, the
    test split, are of other hands than nearly all of the train split.

    Args:
        out_dir: Directory to write ``train`` and ``test`` into. It appears or
            changes only once all is written.
        size: Side of the square images in pixels, from 8 to 4096. The digits
            have 8x8 pixels and are scaled bilinearly.
        force: Replace the splits in an ``out_dir`` that is not empty. Other files
            in there are kept.
        textured: Paint each digit in a colour of its own on a coloured texture,
            both drawn with its index as the seed. Else they are grey on black.

    Returns:
        The number of images in each split.

    Raises:
        ValueError: If ``size`` is too small or too large.
        NotADirectoryError: If ``out_dir`` is something else.
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
            # Not a plain rename, for an `out_dir` that is a mount point.
            shutil.move(root / split, out_dir / split)
    return counts


def draw_textured(alpha: np.ndarray, seed: int) -> np.ndarray:
    """Paint a digit, given as a matte from 0 to 1, on a texture."""
    rng = np.random.default_rng(seed)
    image = draw_background(len(alpha), rng)
    paint(image, alpha, rng)
    return image


def write(path: Path, image: np.ndarray) -> None:
    """Write levels from 0 to 255."""
    if not cv2.imwrite(str(path), image.round().astype(np.uint8)):
        raise OSError(f'could not write {path}')


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument('out_dir', help='directory to write the data set into')
    parser.add_argument(
        '--size', type=int, default=16, help='side of the square images in pixels'
    )
    parser.add_argument(
        '--textured',
        action='store_true',
        help='coloured digits on coloured textures instead of grey on black',
    )
    parser.add_argument(
        '--force',
        action='store_true',
        help='replace train and test in a directory that is not empty; '
        'other files in there are kept',
    )
    args = parser.parse_args()
    try:
        check_arguments(args.out_dir, args.size, args.force)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    counts = convert(**vars(args))
    for split, count in counts.items():
        print(f'{split}: {count} images')
    print(f'written to {args.out_dir}')


if __name__ == '__main__':
    main()
