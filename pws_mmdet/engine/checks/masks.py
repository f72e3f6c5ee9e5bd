"""Checks of the two forms of masks in COCO: polygons, and run-length encoding (RLE).

pycocotools does not check them. Some wrong masks end the process, or fill the memory.
"""

import math
import re
import reprlib
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np

# Largest coordinate in pixels: a larger polygon makes a mask that fills the memory.
FAR = 1e7
# The text form of RLE writes a number as 5 bits a character. A sixth bit marks all
# characters but the last one of a number.
RLE_TEXT = re.compile(r'([P-o]{0,6}[0-O])*')
SHORT_MASK = 'Masks that end too early: {number} (the first: {first}).'


def fault_of_polygons(polygons: Sequence) -> str:
    """Describe the first polygon that pycocotools cannot read.

    The check is cheap, because there are many polygons: it makes a few calls for a
    polygon, and none for a point.

    Returns:
        The end of a sentence about the mask, or an empty string.
    """
    for polygon in polygons:
        if not (
            isinstance(polygon, list)
            and {float, int}.issuperset(map(type, polygon))
            and -FAR <= min(polygon, default=0)
            and max(polygon, default=0) <= FAR
            and not math.isnan(sum(polygon))
        ):
            return (
                'must be polygons [x, y, x, y, x, y, ...] of 3 points or more, not '
                f'{reprlib.repr(polygon)}'
            )
    return ''


def fault_of_rle(mask: Mapping) -> tuple[str, str]:
    """Check that the runs of an RLE fit into its own size.

    Returns:
        What makes it unusable, and what is only odd: ends of a sentence about the
        mask. Either may be empty.
    """
    size: Any = mask.get('size')
    counts: Any = mask.get('counts')
    is_size = isinstance(size, list) and len(size) == 2
    if is_size:
        is_size = all(isinstance(v, Real) and 0 <= v < FAR for v in size)  # type: ignore
    if not is_size:
        return f'must have a size [height, width], not {reprlib.repr(size)}', ''
    pixels = size[0] * size[1]
    try:
        if isinstance(counts, str):
            if not RLE_TEXT.fullmatch(counts):
                raise ValueError
            counts = _decode_counts(counts)
        total = sum(np.asarray(counts, np.uint32).tolist())
    except (OverflowError, TypeError, ValueError):
        total = math.inf
    if total > pixels:
        return (
            f'must have counts that add up to its {size[0]} x {size[1]} pixels, not '
            f'{reprlib.repr(mask.get("counts"))}'
        ), ''
    if total == pixels:
        return '', ''
    return '', (
        f'has counts for fewer than its {size[0]} x {size[1]} pixels: the rest is '
        'background'
    )


def _decode_counts(text: str) -> list[int]:
    """Decode the text form of RLE.

    From the fourth number on, pycocotools writes the difference to the number that is
    two places before.
    """
    if not text:
        return []
    codes = np.frombuffer(text.encode(), np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(codes < 32)
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    shifts = 5 * (np.arange(len(codes)) - np.repeat(starts, lengths))
    counts = np.add.reduceat((codes & 31) << shifts, starts)
    counts -= np.where(codes[ends] & 16, 1 << 5 * lengths, 0)
    counts[1::2] = counts[1::2].cumsum()
    counts[2::2] = counts[2::2].cumsum()
    return counts.tolist()
