"""Write images of handwritten digits in the layout of COCO 2017."""

import json
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
from sklearn.datasets import load_digits
from tqdm import tqdm

from .drawing import Drawing, draw_image
from .folders import check_out_dir, remove

CLASSES = 'zero one two three four five six seven eight nine'.split()
SPLITS = ('train2017', 'val2017')
ANNOTATIONS = tuple(f'annotations/instances_{split}.json' for split in SPLITS)

VAL_STRIDE = 5  # every fifth digit of a class is for validation
MAX_DIGITS = 20  # there is hardly room for more
# The least and the most of each number. One image at a time is held in memory.
RANGES = dict(
    num_train=(1, 10**7),
    num_val=(1, 10**7),
    size=(32, 8192),
    max_digits=(1, MAX_DIGITS),
    seed=(0, 2**63),
)


def split_digits(targets: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return disjoint train and val indices, stratified by class."""
    order = np.random.default_rng(seed).permutation(len(targets))
    order = order[np.argsort(targets[order], kind='stable')]
    in_val = np.arange(len(order)) % VAL_STRIDE == 0
    return order[~in_val], order[in_val]


def trace_outlines(mask: np.ndarray) -> list[np.ndarray]:
    """Return the outer outlines of a mask as (N, 2) corners of its pixels.

    The inside of a zero is filled, because polygons of COCO have no holes. OpenCV's
    outlines go through the centres of the border pixels, so each stroke would be a
    pixel thinner. The mask is therefore doubled: the centres then have even numbers at
    one edge of a pixel and odd numbers at the other. Halving and rounding up gives the
    edges.
    """
    contours, _ = cv2.findContours(
        mask.repeat(2, 0).repeat(2, 1), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
    )
    outlines = []
    for contour in contours:
        corners = (contour.reshape(-1, 2) + 1) // 2
        # Contours cut concave corners. Both ends of a cut become the same point.
        outlines.append(corners[(corners != np.roll(corners, 1, 0)).any(axis=1)])
    return outlines


def write_split(
    root: Path, split: str, drawings: Iterable[Drawing], targets: np.ndarray
) -> int:
    """Write the images and annotations of a split; return the number of objects."""
    (root / split).mkdir()
    images: list[dict] = []
    annotations: list[dict] = []
    for image_id, (image, objects) in enumerate(drawings, 1):
        # PNG, although COCO has JPEG: JPEG changes strokes of a few pixels.
        path = root / split / f'{image_id:012d}.png'
        if not cv2.imwrite(str(path), image):
            raise OSError(f'could not write {path}')
        height, width = image.shape[:2]
        images.append(
            dict(id=image_id, file_name=path.name, width=width, height=height)
        )
        for index, mask in objects:
            outlines = trace_outlines(mask)
            annotation = dict(
                id=len(annotations) + 1,
                image_id=image_id,
                category_id=int(targets[index]) + 1,
                bbox=list(cv2.boundingRect(mask)),
                # The area of the filled outlines, which COCO tools decode.
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
    """Raise the errors of ``convert`` before any work is done."""
    for name, (least, most) in RANGES.items():
        if numbers[name] < least:
            raise ValueError(f'{name} must be at least {least}, not {numbers[name]}')
        if numbers[name] > most:
            raise ValueError(f'{name} must be at most {most}, not {numbers[name]}')
    check_out_dir(out_dir, force)


def convert(
    out_dir: str | Path,
    num_train: int = 1440,
    num_val: int = 100,
    size: int = 192,
    max_digits: int = 4,
    seed: int = 0,
    force: bool = False,
) -> dict[str, int]:
    """Write images of handwritten digits in the layout of COCO 2017.

    The digits are those of scikit-learn's ``load_digits``, the test set of the UCI
    Optical Recognition of Handwritten Digits data. Four fifths of them are only in
    train images, the others only in val images. The same arguments give the same
    bytes.

    Args:
        out_dir: Folder for ``annotations``, ``train2017`` and ``val2017``. It is made
            or changed only after everything is drawn.
        num_train: Number of train images.
        num_val: Number of val images.
        size: Side of the square images in pixels, from 32 to 8192.
        max_digits: Most digits in an image, from 1 to 20. Each image gets 2 or more if
            this allows it and there is room.
        seed: Seed of all randomness, not negative.
        force: Replace the data set in an ``out_dir`` that is not empty. Its other files
            are kept.

    Returns:
        The number of objects in each split.

    Raises:
        ValueError: If a number is out of range, or ``out_dir`` is the root folder.
        NotADirectoryError: If ``out_dir`` is no folder.
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
        for i, num_images in enumerate((num_train, num_val)):
            rng = np.random.default_rng([seed, i])
            drawings = (
                draw_image(digits.images, pools[i], size, max_digits, rng)
                for _ in tqdm(range(num_images), SPLITS[i], disable=None)
            )
            counts[SPLITS[i]] = write_split(root, SPLITS[i], drawings, digits.target)
        move(root, out_dir)
    return counts


def move(root: Path, out_dir: Path) -> None:
    """Move a data set from ``root`` to ``out_dir``, in the place of the one there."""
    # Annotations are removed first and written last: their images always exist.
    (out_dir / 'annotations').mkdir(parents=True, exist_ok=True)
    for name in (*ANNOTATIONS, *SPLITS):
        remove(out_dir / name)
    for name in (*SPLITS, *ANNOTATIONS):
        # A rename would fail if `out_dir` is a mount point.
        shutil.move(root / name, out_dir / name)
