"""Which pictures look the same: a perceptual hash, and all near pairs of many hashes without comparing each with each."""

import itertools
import math

import numpy as np
from jaxtyping import Int64, UInt8, UInt64

BITS = 64


def perceptual_hash(image: UInt8[np.ndarray, "h w 3"]) -> int:
    """64 bits that change little when a picture is scaled, compressed or lit otherwise: the signs of its lowest frequencies (DCT, "pHash")."""
    import cv2  # changes LD_LIBRARY_PATH, so not at import

    grey = cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (32, 32), interpolation=cv2.INTER_AREA)
    low = cv2.dct(grey.astype(np.float32))[:8, :8].ravel()
    return int.from_bytes(np.packbits(low > np.median(low[1:])).tobytes(), "big")  # without the mean, which says only how bright it is


def find_duplicates(hashes: UInt64[np.ndarray, "N"], distance: int) -> Int64[np.ndarray, "N"]:
    """For each hash, from the best picture to the worst: -1 when it is kept, else the first kept one that differs in at most `distance` bits.

    So of a chain a-b-c of neighbours, where a and c are far apart, a and c stay.
    """
    unique, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    rank = np.argsort(first)  # np.unique sorts by value; back to the order of quality
    place = np.empty_like(rank)
    place[rank] = np.arange(len(rank))
    unique, first, inverse = unique[rank], first[rank], place[inverse]

    kept_by = np.arange(len(unique))  # of unique hashes: the one that stands for it
    for better, worse in _near_pairs(unique, distance):
        if kept_by[better] == better and kept_by[worse] == worse:
            kept_by[worse] = better
    result = first[kept_by[inverse]]  # equal hashes share the fate of their first
    return np.where(result == np.arange(len(hashes)), -1, result)


def _near_pairs(hashes: UInt64[np.ndarray, "N"], distance: int) -> list[list[int]]:
    """All pairs [i, j], i < j, of distinct hashes that differ in at most `distance` bits, sorted by (j, i).

    Multi-index hashing (Norouzi, CVPR 2012): of m bands of bits at most `distance` can differ, so the other m - distance are equal. Sorting
    by each choice of those brings all such pairs together. m grows with the number of hashes, so that few others come together.
    """
    found = [np.zeros((0, 2), np.int64)]
    bands = distance + 1
    while BITS // bands * (bands - distance) < math.log2(max(2, len(hashes))) + 2 and bands < BITS and math.comb(bands + 1, distance) < 200:
        bands += 1
    edges = np.linspace(0, BITS, bands + 1).astype(int)
    masks = [((1 << int(b - a)) - 1) << int(a) for a, b in itertools.pairwise(edges)]
    for chosen in itertools.combinations(masks, bands - distance) if distance else ():
        keys = hashes & np.uint64(sum(chosen))
        order = np.argsort(keys, kind="stable")
        keys, apart = keys[order], 0
        at = np.arange(len(keys))
        while len(at):  # pairs of neighbours, then of those one further, as long as the key is the same
            apart += 1
            at = at[at + apart < len(keys)]
            at = at[keys[at] == keys[at + apart]]
            i, j = order[at], order[at + apart]
            near = np.bitwise_count(hashes[i] ^ hashes[j]) <= distance
            found.append(np.stack([np.minimum(i, j)[near], np.maximum(i, j)[near]], axis=1))
    pairs = np.unique(np.concatenate(found), axis=0)
    return pairs[np.lexsort((pairs[:, 0], pairs[:, 1]))].tolist()
