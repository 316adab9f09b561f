"""data_pipeline.transforms: cut and scale to a bucket with the face inside, at every reduction."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from data_pipeline import transforms
from data_pipeline.buckets import buckets, nearest
from infu_jax import face
from infu_jax.errors import InputError

SHAPE = face.ARCFACE_POINTS / 112  # five points in a face's box


def encoded(image, kind="JPEG", **options):
    out = io.BytesIO()
    Image.fromarray(image).save(out, kind, **{"quality": 95, **options})
    return out.getvalue()


def smooth(height, width, seed=0):
    rough = np.random.default_rng(seed).uniform(0, 255, (height // 40 + 2, width // 40 + 2, 3)).astype(np.float32)
    return np.clip(cv2.resize(rough, (width, height), interpolation=cv2.INTER_CUBIC), 0, 255).astype(np.uint8)


def random_face(rng, height, width):
    side = rng.uniform(0.02, 0.95) * min(height, width)
    left, top = rng.uniform(0, width - side), rng.uniform(0, height - side)
    return np.array([left, top, left + side, top + side], np.float32), (SHAPE * side + (left, top)).astype(np.float32)


def test_faces_are_inside_every_crop():
    rng = np.random.default_rng(0)
    tables = [
        buckets(resolution, step, aspect) for resolution, step, aspect in ((1024, 64, 2.0), (512, 64, 2.0), (768, 32, 1.5), (256, 64, 1.0), (96, 16, 2.0))
    ]
    whole = 0
    for _ in range(4000):
        table = tables[rng.integers(len(tables))]
        longer, aspect = rng.integers(120, 6000), np.exp(rng.uniform(-1.3, 1.3))
        height, width = max(64, round(longer * min(1, aspect))), max(64, round(longer * min(1, 1 / aspect)))
        bucket = table[nearest(np.array([[height, width]]), table)[0]] if rng.random() < 0.8 else table[rng.integers(len(table))]
        box, points = random_face(rng, height, width)
        how = transforms.fit((height, width), bucket, points, box)
        inside = how.points(points)
        left, top, right, bottom = how.box
        if max(np.ptp(points[:, 0]), np.ptp(points[:, 1])) / how.reduction + 2 <= min(right - left, bottom - top):
            assert (inside >= 0).all() and (inside <= (bucket[1], bucket[0])).all(), (height, width, bucket, points)
        else:  # the face is larger than what a strange bucket leaves: cut on both sides alike
            assert bucket != table[nearest(np.array([[height, width]]), table)[0]] or max(height, width) > 2 * min(height, width)
        # The cut is inside the picture, has the bucket's shape to a pixel, and reaches both its ends along one axis.
        reduced = -(-height // how.reduction), -(-width // how.reduction)
        assert 0 <= left < right <= reduced[1] and 0 <= top < bottom <= reduced[0]
        assert (right - left == reduced[1]) or (bottom - top == reduced[0])
        assert abs((bottom - top) * bucket[1] / bucket[0] - (right - left)) <= max(1, bucket[1] / bucket[0])
        # And the whole box is inside if it can be.
        sides = box / how.reduction
        if sides[2] - sides[0] + 2 <= right - left and sides[3] - sides[1] + 2 <= bottom - top:
            whole += 1
            assert left <= sides[0] + 1e-3 and sides[2] <= right + 1e-3 and top <= sides[1] + 1e-3 and sides[3] <= bottom + 1e-3
    assert whole > 3000


def test_the_cut_is_centred_and_moves_no_further_than_the_face_asks():
    points = SHAPE * 100
    bucket = (512, 512)
    cases = [  # left side of a face of 100 pixels -> left side of the cut, in a picture of 600 x 1000
        (450, 200),  # in the middle
        (200, 200),  # just inside the centred cut
        (150, 150),
        (0, 0),
        (700, 200),
        (760, 260),
        (900, 400),
    ]
    for left, expected in cases:
        box = np.array([left, 50, left + 100, 150], np.float32)
        how = transforms.fit((600, 1000), bucket, (points + (left, 50)).astype(np.float32), box)
        assert how.box == (expected, 0, expected + 600, 600), left
    # A box that is wider than the cut: its points in the middle, here 150 to 550 of 1000 in a cut of 500.
    wide = np.array([[150, 100], [550, 100], [350, 200], [200, 300], [500, 300]], np.float32)
    how = transforms.fit((500, 1000), bucket, wide, np.array([0, 0, 900, 500], np.float32))
    assert how.box == (100, 0, 600, 500)


def test_reduction_leaves_at_least_the_bucket():
    points, box = (SHAPE * 50 + 100).astype(np.float32), np.array([100, 100, 150, 150], np.float32)
    for size, expected in (
        ((256, 256), 1),
        ((510, 600), 1),
        ((511, 512), 2),
        ((512, 512), 2),
        ((1023, 1500), 4),
        ((1020, 1500), 2),
        ((9000, 9000), 8),
        ((200, 100), 1),
    ):
        assert transforms.fit(size, (256, 256), points, box).reduction == expected, size


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("size", [(200, 160), (333, 517), (1300, 901), (2111, 1301)])
def test_marks_stay_where_the_points_are(kind, size):
    """White squares at the five points of a dark picture are found again at the points that `fitted` returns, whatever the reduction."""
    height, width = size
    box, points = random_face(np.random.default_rng(sum(size)), height // 2, width // 2)
    box, points = box + np.float32(height // 5), points + np.float32(height // 5)
    points = np.round(points)
    image = np.full((*size, 3), 20, np.uint8)
    radius = max(2, min(size) // 60)
    for x, y in points.astype(int):
        image[y - radius : y + radius, x - radius : x + radius] = 250
    bucket = (256, 192) if height > width else (192, 256)
    pixels, inside = transforms.fitted(encoded(image, kind), size, bucket, points, box)
    assert pixels.shape == (*bucket, 3)
    scale = min(bucket[0] / height, bucket[1] / width)
    for x, y in inside:
        reach = int(radius * scale) + 6
        top, left = max(0, int(y) - reach), max(0, int(x) - reach)
        part = pixels[top : int(y) + reach + 1, left : int(x) + reach + 1, 0].astype(float) - 20
        rows, columns = np.nonzero(part > part.max() / 2)
        assert part.max() > 60
        near = np.hypot(rows + top + 0.5 - y, columns + left + 0.5 - x)
        assert near.min() < 1.5  # the mark is there
        if all(np.hypot(*(other - (x, y))) > 3 * reach for other in inside if (other != (x, y)).any()):
            assert abs(rows.mean() + top + 0.5 - y) < 0.75 and abs(columns.mean() + left + 0.5 - x) < 0.75


def test_pixels_are_those_of_a_good_filter():
    """Beside Pillow's Lanczos filter on the same cut: below what a nearest-neighbour or wrongly placed cut would leave."""
    for size, bucket in (((900, 1300), (512, 768)), ((500, 700), (512, 768)), ((1900, 2700), (512, 768)), ((640, 640), (512, 512))):
        image = smooth(*size)
        points, box = (SHAPE * 80 + 200).astype(np.float32), np.array([200, 200, 280, 280], np.float32)
        how = transforms.fit(size, bucket, points, box)
        ours = transforms.fitted(encoded(image), size, bucket, points, box)[0].astype(int)
        whole = [side * how.reduction for side in how.box]
        lanczos = np.asarray(
            Image.fromarray(image).resize(bucket[::-1], Image.Resampling.LANCZOS, box=(*whole[:2], min(whole[2], size[1]), min(whole[3], size[0])))
        )
        assert np.abs(ours - lanczos).mean() < 1.0 and np.abs(ours - lanczos).max() < 24
        assert np.abs(np.roll(ours, 4, axis=1) - lanczos).mean() > 3


def test_a_picture_of_the_buckets_size_is_left_alone():
    image = smooth(192, 256)
    points, box = (SHAPE * 80 + 40).astype(np.float32), np.array([40, 40, 120, 120], np.float32)
    data = encoded(image, "PNG")
    pixels, inside = transforms.fitted(data, (192, 256), (192, 256), points, box)
    np.testing.assert_array_equal(pixels, image)
    np.testing.assert_array_equal(inside, points)


def test_decoding_equals_pillows():
    image = smooth(203, 301)
    for data in (
        encoded(image),
        encoded(image, subsampling=0),
        encoded(image, progressive=True),
        encoded(image, "PNG"),
        encoded(image[..., 0]),
        encoded(image[..., 0], "PNG"),
    ):
        np.testing.assert_array_equal(transforms.decode(data, (203, 301)), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
    drafted = Image.open(io.BytesIO(encoded(image)))
    drafted.draft("RGB", (150, 101))
    np.testing.assert_array_equal(transforms.decode(encoded(image), (203, 301), 2), np.asarray(drafted))
    for reduction in (2, 4, 8):
        for kind in ("JPEG", "PNG"):
            found = transforms.decode(encoded(image, kind), (203, 301), reduction)
            assert found.shape == (-(-203 // reduction), -(-301 // reduction), 3)


def test_decoding_refuses():
    data = encoded(smooth(64, 80))
    for broken in (b"", b"no picture", data[:30]):
        with pytest.raises(InputError, match=f"{len(broken)} bytes are no picture"):
            transforms.decode(broken, (64, 80))
    for size, reduction in (((80, 64), 1), ((64, 81), 1), ((70, 80), 4)):
        with pytest.raises(InputError, match=r"decodes to .*x.*; .* was recorded"):
            transforms.decode(data, size, reduction)


def test_fill_writes_where_it_is_told():
    image = smooth(300, 300)
    for box, bucket in (((0, 0, 300, 300), (128, 128)), ((10, 20, 138, 148), (128, 128)), ((0, 0, 100, 100), (128, 128))):
        how = transforms.Fit(1, box, bucket)
        batch = np.full((3, *bucket, 3), 7, np.uint8)
        transforms.fill(image, how, batch[1])
        np.testing.assert_array_equal(batch[1], transforms.fill(image, how))
        assert (batch[0] == 7).all() and (batch[2] == 7).all() and (batch[1] != 7).any()


def test_control_image_and_identity_crop():
    points = (SHAPE * 100 + (30, 20)).astype(np.float32)
    np.testing.assert_array_equal(transforms.control_image((192, 160), points), face.draw_keypoints(192, 160, points))
    black = transforms.control_image((192, 160), None)
    assert black.shape == (192, 160, 3) and not black.any()
    image = smooth(192, 160)
    np.testing.assert_array_equal(transforms.identity_crop(encoded(image, "PNG"), (192, 160), points), face.align(image, points))
