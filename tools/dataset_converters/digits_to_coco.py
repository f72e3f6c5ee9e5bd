"""Write a small data set of handwritten digits in the layout of COCO 2017.

The digits are real ones, the 1797 8x8 pictures that ship with scikit-learn, so
nothing is downloaded. Each picture shows a few of them at several scales and in
several colours on a textured background, which is enough to train and compare
detectors and instance segmenters within minutes.
"""

import argparse
import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
from numpy.random import Generator
from sklearn.datasets import load_digits
from tqdm import tqdm

CLASSES = 'zero one two three four five six seven eight nine'.split()
SPLITS = ('train2017', 'val2017')
ANNOTATIONS = tuple(f'annotations/instances_{split}.json' for split in SPLITS)

VAL_STRIDE = 5  # every fifth digit of a class is kept for validation
SCALES = (1 / 4, 1 / 2)  # height of a digit over the side of the picture
MAX_OVERLAP = 0.1  # of the smaller of two boxes
MIN_CONTRAST = 70  # between the luma of a digit and of what lies behind it
PLACEMENT_TRIES = 50
MAX_DIGITS = 20  # more would hardly find room
# Of each number the least and the most; pictures are held in memory, one at a time
RANGES = dict(
    num_train=(1, 10**7),
    num_val=(1, 10**7),
    size=(32, 8192),
    max_digits=(1, MAX_DIGITS),
    seed=(0, 2**63),
)
STROKE_LEVEL = 0.4  # lower would close the holes of sixes, higher break zeros
LUMA_BGR = np.array([0.114, 0.587, 0.299])

# BGR pixels, and the index and visible mask of each digit in them
Picture = tuple[np.ndarray, list[tuple[int, np.ndarray]]]


def split_digits(targets: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return disjoint train and val indices, stratified by class."""
    order = np.random.default_rng(seed).permutation(len(targets))
    order = order[np.argsort(targets[order], kind='stable')]
    in_val = np.arange(len(order)) % VAL_STRIDE == 0
    return order[~in_val], order[in_val]


def draw_background(size: int, rng: Generator) -> np.ndarray:
    """Blend two similar colours by noise, a linear gradient or stripes."""
    angle, phase = rng.uniform(0, 2 * np.pi, 2)
    y, x = np.mgrid[:size, :size] / size
    ramp = x * np.cos(angle) + y * np.sin(angle)
    kind = rng.choice(['noise', 'gradient', 'stripes'])
    if kind == 'noise':
        texture = np.zeros((size, size))
        for cells in (2, 4, 8, 16):
            octave = rng.normal(size=(cells, cells)) / np.sqrt(cells)
            texture += cv2.resize(octave, texture.shape, interpolation=cv2.INTER_CUBIC)
    elif kind == 'gradient':
        texture = ramp
    else:
        texture = np.sin(2 * np.pi * rng.uniform(2, 10) * ramp + phase)
    weight = cv2.normalize(texture, None, 0, 1, cv2.NORM_MINMAX)[..., None]

    # Around a grey level, as fully random colours would nearly all be garish.
    first = rng.uniform(40, 215) + rng.uniform(-60, 60, 3)
    second = first + rng.uniform(-80, 80, 3)
    return np.clip(first + (second - first) * weight, 0, 255)


def draw_digit(digit: np.ndarray, height: int) -> np.ndarray:
    """Upscale an 8x8 digit to an antialiased alpha matte, cropped tight."""
    scale = height / len(digit)
    # The margin lets strokes that touch the border of the 8x8 picture end there.
    padded = np.pad(digit / 16, 1)
    side = round(len(padded) * scale)
    smooth = cv2.resize(padded, (side, side), interpolation=cv2.INTER_CUBIC)
    # An edge takes one pixel of the 8x8 picture, that is `scale` pixels here:
    # steepen it to one pixel, with the outline where alpha is one half.
    alpha = np.clip((smooth - STROKE_LEVEL) * max(scale, 1) + 0.5, 0, 1)
    x, y, w, h = cv2.boundingRect((alpha > 0).astype(np.uint8))
    return alpha[y : y + h, x : x + w]


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Return the area that two boxes share over that of the smaller one.

    Unlike the IoU this is large for a small digit inside a large one.
    """
    shared = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    smaller = min((a[2:] - a[:2]).prod(), (b[2:] - b[:2]).prod())
    return shared.clip(0).prod() / smaller


def place(
    shape: tuple[int, int], others: list[np.ndarray], size: int, rng: Generator
) -> np.ndarray | None:
    """Return a box (x1, y1, x2, y2) that overlaps the others little, if found."""
    extent = np.array(shape[::-1])
    for _ in range(PLACEMENT_TRIES):
        corner = rng.integers(0, size - extent + 1)
        box = np.concatenate([corner, corner + extent])
        if all(overlap(box, other) <= MAX_OVERLAP for other in others):
            return box
    return None


def paint(window: np.ndarray, alpha: np.ndarray, rng: Generator) -> None:
    """Blend a colour that stands out into a window, in place."""
    behind = np.average(window @ LUMA_BGR, weights=alpha)
    colour = rng.uniform(0, 255, 3)
    while abs(colour @ LUMA_BGR - behind) < MIN_CONTRAST:
        colour = rng.uniform(0, 255, 3)
    window += alpha[..., None] * (colour - window)


def draw_picture(
    images: np.ndarray, pool: np.ndarray, size: int, max_digits: int, rng: Generator
) -> Picture:
    """Draw digits of the pool on a background."""
    picture = draw_background(size, rng)
    owner = np.full((size, size), -1)  # index of the digit seen at each pixel
    boxes: list[np.ndarray] = []
    count = rng.integers(min(2, max_digits), max_digits + 1)
    chosen = rng.choice(pool, count, replace=False)
    for index in chosen:
        height = round(size * rng.uniform(*SCALES))
        alpha = draw_digit(images[index], height)
        box = place(alpha.shape, boxes, size, rng)
        if box is None:
            continue
        boxes.append(box)
        window = np.s_[box[1] : box[3], box[0] : box[2]]
        paint(picture[window], alpha, rng)
        owner[window][alpha >= 0.5] = index
    picture += rng.normal(0, 6, picture.shape)  # sensor noise
    masks = [(int(index), (owner == index).astype(np.uint8)) for index in chosen]
    visible = [(index, mask) for index, mask in masks if mask.any()]
    return picture.clip(0, 255).astype(np.uint8), visible


def trace_outlines(mask: np.ndarray) -> list[np.ndarray]:
    """Return the outer outlines of a mask as (N, 2) corners of its pixels.

    COCO polygons cannot hold holes, so the inside of a zero is filled. OpenCV
    traces through the centres of the border pixels, which would thin each stroke
    by a pixel; in a mask of twice the size, even and odd centres tell the two
    edges of a pixel apart, and halving them upwards gives the edges themselves.
    """
    contours, _ = cv2.findContours(
        mask.repeat(2, 0).repeat(2, 1), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
    )
    outlines = []
    for contour in contours:
        corners = (contour.reshape(-1, 2) + 1) // 2
        # Contours cut concave corners; both ends of such a cut give one point.
        outlines.append(corners[(corners != np.roll(corners, 1, 0)).any(axis=1)])
    return outlines


def write_split(
    root: Path, split: str, pictures: Iterable[Picture], targets: np.ndarray
) -> int:
    """Write the pictures and annotations of a split; return its object count."""
    (root / split).mkdir()
    images: list[dict] = []
    annotations: list[dict] = []
    for image_id, (picture, objects) in enumerate(pictures, 1):
        # COCO has JPEG, but its losses would show on strokes of a few pixels.
        path = root / split / f'{image_id:012d}.png'
        if not cv2.imwrite(str(path), picture):
            raise OSError(f'could not write {path}')
        height, width = picture.shape[:2]
        image = dict(id=image_id, file_name=path.name, width=width, height=height)
        images.append(image)
        for index, mask in objects:
            outlines = trace_outlines(mask)
            annotation = dict(
                id=len(annotations) + 1,
                image_id=image_id,
                category_id=int(targets[index]) + 1,
                bbox=list(cv2.boundingRect(mask)),
                # Of the filled outlines, as that is what COCO tools decode.
                area=sum(cv2.contourArea(outline) for outline in outlines),
                segmentation=[outline.ravel().tolist() for outline in outlines],
                iscrowd=0,
                digit_index=index,  # in load_digits(); not a field of COCO
            )
            annotations.append(annotation)
    categories = [
        dict(id=i, name=name, supercategory='digit')
        for i, name in enumerate(CLASSES, 1)
    ]
    content = dict(
        info=dict(description='Handwritten digits on textured backgrounds'),
        licenses=[],
        images=images,
        annotations=annotations,
        categories=categories,
    )
    path = root / 'annotations' / f'instances_{split}.json'
    path.write_text(json.dumps(content), encoding='utf-8')
    return len(annotations)


def check_arguments(out_dir: str | Path, force: bool, **numbers: int) -> None:
    """Raise what :func:`convert` documents, before any work is done."""
    for name, (least, most) in RANGES.items():
        if numbers[name] < least:
            raise ValueError(f'{name} must be at least {least}, not {numbers[name]}')
        if numbers[name] > most:
            raise ValueError(f'{name} must be at most {most}, not {numbers[name]}')
    check_out_dir(out_dir, force)


def check_out_dir(out_dir: str | Path, force: bool) -> None:
    """Raise an error if a data set must not be written to a path."""
    out_dir = Path(out_dir)
    # a link to nowhere or to itself does not exist, and leaves no room for a folder
    if os.path.lexists(out_dir) and not out_dir.is_dir():
        raise NotADirectoryError(f'{out_dir} is not a directory')
    folder = next(p for p in out_dir.absolute().parents if os.path.lexists(p))
    if not folder.is_dir():
        raise NotADirectoryError(f'{out_dir} cannot be made: {folder} is no directory')
    if out_dir.exists() and any(out_dir.iterdir()) and not force:
        raise FileExistsError(
            f'{out_dir} is not empty: use --force to replace the data set in it'
        )


def convert(
    out_dir: str | Path,
    num_train: int = 1440,
    num_val: int = 100,
    size: int = 192,
    max_digits: int = 4,
    seed: int = 0,
    force: bool = False,
) -> dict[str, int]:
    """Write pictures of handwritten digits in the layout of COCO 2017.

    The digits are scikit-learn's ``load_digits``, the test set of the UCI
    Optical Recognition of Handwritten Digits data. Four fifths of them appear
    in train pictures only, the rest in val pictures only. The same arguments
    give the same bytes.

    Args:
        out_dir: Directory to write ``annotations``, ``train2017`` and
            ``val2017`` into. It appears or changes only once all is drawn.
        num_train: Number of train pictures.
        num_val: Number of val pictures.
        size: Side of the square pictures in pixels, from 32 to 8192.
        max_digits: Most digits in a picture, from 1 to 20. Each picture is
            given 2 or more if this allows it, as far as they find room.
        seed: Seed of all randomness, not negative.
        force: Replace the data set in an ``out_dir`` that is not empty. Other
            files in there are kept.

    Returns:
        The number of objects in each split.

    Raises:
        ValueError: If a number is out of range.
        NotADirectoryError: If ``out_dir`` is something else.
        FileExistsError: If ``out_dir`` is not empty and ``force`` is false.
    """
    check_arguments(
        out_dir,
        force,
        num_train=num_train,
        num_val=num_val,
        size=size,
        max_digits=max_digits,
        seed=seed,
    )
    out_dir = Path(out_dir).resolve()
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    digits = load_digits()
    counts = {}
    with tempfile.TemporaryDirectory(
        prefix=f'.{out_dir.name}-', dir=out_dir.parent
    ) as scratch:
        root = Path(scratch)
        (root / 'annotations').mkdir()
        pools = split_digits(digits.target, seed)
        for i, num_pictures in enumerate((num_train, num_val)):
            rng = np.random.default_rng([seed, i])
            pictures = (
                draw_picture(digits.images, pools[i], size, max_digits, rng)
                for _ in tqdm(range(num_pictures), desc=SPLITS[i])
            )
            counts[SPLITS[i]] = write_split(root, SPLITS[i], pictures, digits.target)

        # Annotations leave first and arrive last: they never lack a picture.
        (out_dir / 'annotations').mkdir(parents=True, exist_ok=True)
        for name in (*ANNOTATIONS, *SPLITS):
            remove(out_dir / name)
        for name in (*SPLITS, *ANNOTATIONS):
            # Not a plain rename, for an `out_dir` that is a mount point.
            shutil.move(root / name, out_dir / name)
    return counts


def remove(path: Path) -> None:
    """Delete a file or a tree, but only the link if the path is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument('out_dir', help='directory to write the data set into')
    for option, default, text in [
        ('--num-train', 1440, 'number of train pictures'),
        ('--num-val', 100, 'number of val pictures'),
        ('--size', 192, 'side of the square pictures in pixels'),
        ('--max-digits', 4, 'most digits in a picture'),
        ('--seed', 0, 'seed of all randomness'),
    ]:
        parser.add_argument(option, type=int, default=default, help=text)
    parser.add_argument(
        '--force',
        action='store_true',
        help='replace the data set in a directory that is not empty; '
        'other files in there are kept',
    )
    args = parser.parse_args()
    try:
        check_arguments(**vars(args))
    except (ValueError, OSError) as error:
        parser.error(str(error))
    counts = convert(**vars(args))
    for split, num_pictures in zip(SPLITS, (args.num_train, args.num_val), strict=True):
        print(f'{split}: {num_pictures} pictures, {counts[split]} objects')
    print(f'written to {args.out_dir}')


if __name__ == '__main__':
    main()
