"""Draw handwritten digits on textured backgrounds."""

import cv2
import numpy as np
from numpy.random import Generator

SCALES = (1 / 4, 1 / 2)  # least and greatest height of a digit, in sides of the image
MAX_OVERLAP = 0.1  # over the area of the smaller of two boxes
MIN_CONTRAST = 70  # between the luma of a digit and of its background
PLACEMENT_TRIES = 50
STROKE_LEVEL = 0.4  # a lower one closes the holes of sixes, a higher one breaks zeros
LUMA_BGR = np.array([0.114, 0.587, 0.299])

# BGR pixels, and the index and the visible mask of each digit in them
Drawing = tuple[np.ndarray, list[tuple[int, np.ndarray]]]


def draw_background(size: int, rng: Generator) -> np.ndarray:
    """Return a texture of two similar colours: noise, a gradient or stripes."""
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

    # Both colours are near one grey level. Random colours would be too bright.
    first = rng.uniform(40, 215) + rng.uniform(-60, 60, 3)
    second = first + rng.uniform(-80, 80, 3)
    return np.clip(first + (second - first) * weight, 0, 255)


def draw_digit(digit: np.ndarray, height: int) -> np.ndarray:
    """Scale an 8x8 digit to an alpha matte, cropped to the digit."""
    scale = height / len(digit)
    # With the margin, a stroke at the border of the 8x8 image ends there.
    padded = np.pad(digit / 16, 1)
    side = round(len(padded) * scale)
    smooth = cv2.resize(padded, (side, side), interpolation=cv2.INTER_CUBIC)
    # An edge is one pixel of the 8x8 image wide, which is `scale` pixels here. Make it
    # one pixel wide. Alpha is one half at the outline.
    alpha = np.clip((smooth - STROKE_LEVEL) * max(scale, 1) + 0.5, 0, 1)
    x, y, w, h = cv2.boundingRect((alpha > 0).astype(np.uint8))
    return alpha[y : y + h, x : x + w]


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Return the shared area of two boxes over the area of the smaller box.

    For a small box inside a large one it is 1, where the IoU is small.
    """
    shared = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    smaller = min((a[2:] - a[:2]).prod(), (b[2:] - b[:2]).prod())
    return shared.clip(0).prod() / smaller


def place(
    shape: tuple[int, int], others: list[np.ndarray], size: int, rng: Generator
) -> np.ndarray | None:
    """Return a box (x1, y1, x2, y2) with little overlap, or None if none is found."""
    extent = np.array(shape[::-1])
    for _ in range(PLACEMENT_TRIES):
        corner = rng.integers(0, size - extent + 1)
        box = np.concatenate([corner, corner + extent])
        if all(overlap(box, other) <= MAX_OVERLAP for other in others):
            return box
    return None


def paint(window: np.ndarray, alpha: np.ndarray, rng: Generator) -> None:
    """Paint a digit into a window, in place, in a colour with enough contrast."""
    behind = np.average(window @ LUMA_BGR, weights=alpha)
    colour = rng.uniform(0, 255, 3)
    while abs(colour @ LUMA_BGR - behind) < MIN_CONTRAST:
        colour = rng.uniform(0, 255, 3)
    window += alpha[..., None] * (colour - window)


def draw_image(
    digits: np.ndarray, pool: np.ndarray, size: int, max_digits: int, rng: Generator
) -> Drawing:
    """Draw digits on a background.

    Args:
        digits: All digits (N, 8, 8).
        pool: Indices of the digits to choose from.
        size: Side of the image in pixels.
        max_digits: Most digits in the image.
        rng: Source of randomness.
    """
    image = draw_background(size, rng)
    owner = np.full((size, size), -1)  # index of the visible digit at each pixel
    boxes: list[np.ndarray] = []
    count = rng.integers(min(2, max_digits), max_digits + 1)
    chosen = rng.choice(pool, count, replace=False)
    for index in chosen:
        height = round(size * rng.uniform(*SCALES))
        alpha = draw_digit(digits[index], height)
        box = place(alpha.shape, boxes, size, rng)
        if box is None:
            continue
        boxes.append(box)
        window = np.s_[box[1] : box[3], box[0] : box[2]]
        paint(image[window], alpha, rng)
        owner[window][alpha >= 0.5] = index
    image += rng.normal(0, 6, image.shape)  # sensor noise
    masks = [(int(index), (owner == index).astype(np.uint8)) for index in chosen]
    visible = [(index, mask) for index, mask in masks if mask.any()]
    return image.clip(0, 255).astype(np.uint8), visible
