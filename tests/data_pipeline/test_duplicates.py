"""Perceptual hashes of pictures, and the search for near ones against comparing each with each."""

import cv2
import numpy as np
import pytest

from data_pipeline.duplicates import find_duplicates, perceptual_hash
from tests.data_pipeline.conftest import portrait


def each_with_each(hashes, distance):
    result = np.full(len(hashes), -1)
    for j in range(len(hashes)):
        for i in range(j):
            if result[i] == -1 and int(hashes[i] ^ hashes[j]).bit_count() <= distance:
                result[j] = i
                break
    return result


@pytest.mark.parametrize("distance", [0, 1, 4, 8])
def test_search_finds_what_comparing_finds(distance):
    rng = np.random.default_rng(distance)
    for count in (0, 1, 2, 300):
        hashes = rng.integers(0, 2**64, count, dtype=np.uint64)
        for _ in range(count // 2):  # chains of neighbours, with equal ones among them
            a, b = rng.integers(0, count, 2)
            hashes[a] = hashes[b]
            for bit in rng.integers(0, 64, rng.integers(0, distance + 3)):
                hashes[a] ^= np.uint64(1 << int(bit))
        found = find_duplicates(hashes, distance)
        np.testing.assert_array_equal(found, each_with_each(hashes, distance))
        assert count < 300 or (found >= 0).sum() > 20


def test_many_hashes():
    """20 billion pairs, of which 1000 are near: seconds, not hours."""
    hashes = np.random.default_rng(0).integers(0, 2**64, 200_000, dtype=np.uint64)
    near = np.arange(100_000, 101_000)
    hashes[near] = hashes[:1000] ^ np.uint64(0x8000000000000011)
    found = find_duplicates(hashes, 4)
    np.testing.assert_array_equal(np.flatnonzero(found >= 0), near)
    np.testing.assert_array_equal(found[near], np.arange(1000))


def test_a_blank_picture_a_hundred_thousand_times():
    hashes = np.full(100_000, 7, np.uint64)
    hashes[50_000] = 6
    found = find_duplicates(hashes, 4)
    assert found[0] == -1 and (found[1:] == 0).all()


def test_copies_are_near_and_other_pictures_far():
    distance = lambda a, b: (perceptual_hash(a) ^ perceptual_hash(b)).bit_count()  # noqa: E731
    pictures = [portrait(person, number) for person in range(6) for number in range(4)]
    for image in pictures:
        smaller = cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        pressed = cv2.imdecode(cv2.imencode(".jpg", smaller, [cv2.IMWRITE_JPEG_QUALITY, 60])[1], cv2.IMREAD_COLOR)
        brighter = np.clip(image * 1.1, 0, 255).astype(np.uint8)
        assert max(distance(image, copy) for copy in (smaller, pressed, brighter)) <= 4
    assert min(distance(a, b) for n, a in enumerate(pictures) for b in pictures[:n]) > 8
