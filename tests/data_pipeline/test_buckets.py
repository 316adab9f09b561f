"""data_pipeline.buckets: NovelAI's table, and which bucket a picture goes to."""

import math

import numpy as np
import pytest

from data_pipeline import buckets as module
from data_pipeline.buckets import buckets, nearest
from infu_jax.errors import InputError

# By hand: for every multiple of 64 the largest other side within the area, aspect at most 2.
TABLES = {
    512: {(512, 512), (576, 448), (640, 384)},
    768: {(768, 768), (832, 704), (896, 640), (960, 576), (1024, 576)},
    1024: {(1024, 1024), (1088, 960), (1152, 896), (1216, 832), (1280, 768), (1344, 768), (1408, 704)},
}


@pytest.mark.parametrize("resolution", TABLES)
def test_tables(resolution):
    table = buckets(resolution)
    assert set(table) == TABLES[resolution] | {(w, h) for h, w in TABLES[resolution]}
    assert len(set(table)) == len(table)
    assert [h / w for h, w in table] == sorted(h / w for h, w in table)


def test_every_bucket_obeys_step_area_and_aspect():
    for resolution in (256, 300, 512, 640, 1000, 1536):
        for step in (16, 32, 64, 128):
            for most in (1.0, 1.5, 2.0, 3.0):
                table = buckets(resolution, step, most)
                side = resolution // step * step
                assert (side, side) in table
                for height, width in table:
                    assert height % step == width % step == 0
                    # No more than the area; so much that the shorter side could not be a step longer.
                    assert height * width <= resolution**2
                    assert resolution**2 < max(height, width) * (min(height, width) + step) or height == width == side
                    assert max(height, width) <= most * min(height, width)
                    assert (width, height) in table


def test_novelai_picture_and_its_limits():
    assert (768, 576) not in buckets(512)  # more than the area
    assert (704, 320) in buckets(512, max_aspect=2.5) and (704, 320) not in buckets(512)
    for arguments in ((32, 64, 2.0), (512, 0, 2.0), (512, 64, 0.9)):
        with pytest.raises(InputError, match="no buckets: resolution"):
            buckets(*arguments)


def test_nearest_is_nearest_in_the_logarithm(monkeypatch):
    table = buckets(1024)
    sizes = np.random.default_rng(0).integers(100, 5000, (2000, 2)).astype(np.uint16)
    numbers = nearest(sizes, table)
    for (height, width), number in zip(sizes.tolist(), numbers):
        distances = [abs(math.log(height / width) - math.log(h / w)) for h, w in table]
        assert distances[number] <= min(distances) + 1e-12
    assert set(numbers) == set(range(len(table)))
    for number, bucket in enumerate(table):
        assert nearest(np.array([bucket]), table) == number
    monkeypatch.setattr(module, "CHUNK", 7)
    np.testing.assert_array_equal(nearest(sizes, table), numbers)


def test_one_bucket():
    assert buckets(512, 64, 1.0) == ((512, 512),)
    np.testing.assert_array_equal(nearest(np.array([[9000, 10], [10, 9000]]), ((512, 512),)), [0, 0])
