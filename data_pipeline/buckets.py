"""Aspect-ratio buckets: the shapes that pictures are fitted to, so that a batch has one shape and few pictures lose much.

Source: NovelAI, "Improvements on Stable Diffusion" (2022), section Aspect Ratio Bucketing.
"""

import numpy as np
from jaxtyping import Integer, UInt16

from infu_jax.errors import InputError

Bucket = tuple[int, int]
"""Height and width in pixels."""

CHUNK = 1 << 22  # sizes that are looked at together: bounds the memory of tens of millions


def buckets(resolution: int, step: int = 64, max_aspect: float = 2.0) -> tuple[Bucket, ...]:
    """The buckets of a resolution class, from the widest to the tallest.

    As NovelAI has them: for every width that is a multiple of `step` the largest such height whose area is no more than
    resolution * resolution, then the same for every height; of these, all whose sides differ by no more than `max_aspect`, and the square.

    Raises InputError when no side fits.
    """
    if step < 1 or resolution < step or max_aspect < 1:
        raise InputError(f"no buckets: resolution {resolution}, step {step}, max_aspect {max_aspect}; expected resolution >= step >= 1 and max_aspect >= 1")
    square = resolution // step * step
    found = {(square, square)}
    for side in range(step, int(resolution * max_aspect) + 1, step):
        other = resolution**2 // side // step * step
        if other and max(side, other) <= max_aspect * min(side, other):
            found |= {(side, other), (other, side)}
    return tuple(sorted(found, key=lambda bucket: bucket[0] / bucket[1]))


def nearest(sizes: Integer[np.ndarray, "N 2"], table: tuple[Bucket, ...]) -> UInt16[np.ndarray, "N"]:
    """The number in `table` of the bucket that each picture goes to: the nearest in the logarithm of the aspect ratio.

    sizes: height and width of each picture. Only roundings that IEEE 754 prescribes occur, so all machines agree.
    """
    heights, widths = np.array(table, np.float64).T
    between = np.sqrt((heights[:-1] * heights[1:]) / (widths[:-1] * widths[1:]))  # halfway in the logarithm
    numbers = np.empty(len(sizes), np.uint16)
    for at in range(0, len(sizes), CHUNK):
        part = np.asarray(sizes[at : at + CHUNK])
        numbers[at : at + CHUNK] = np.searchsorted(between, part[:, 0] / part[:, 1])
    return numbers
