"""What happens to a picture on its way into a batch. The same functions serve the loader and `data_pipeline.precompute`.

Points and boxes are (x, y) in pixels, in which pixel i covers [i, i + 1). NumPy and OpenCV only.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, UInt8

from data_pipeline.buckets import Bucket
from infu_jax import face
from infu_jax.errors import InputError

REDUCTIONS = (8, 4, 2)  # what a JPEG decoder can do at less than the full cost
_SHARP = 0.8  # pictures that shrink by less need no low-pass before the cubic filter


# Fit to a bucket ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fit:
    """How a picture fills a bucket: it is read at 1 / reduction, cut to a box, and the box is scaled to the bucket."""

    reduction: int
    box: tuple[int, int, int, int]
    """Left, top, right, bottom in pixels of the reduced picture."""
    bucket: Bucket

    def points(self, points: Float32[np.ndarray, "n 2"]) -> Float32[np.ndarray, "n 2"]:
        """Points of the picture as points of the bucket."""
        (left, top, right, bottom), (height, width) = self.box, self.bucket
        scale = np.array([width / (right - left), height / (bottom - top)])
        return ((points.astype(np.float64) / self.reduction - (left, top)) * scale).astype(np.float32)


def fit(size: tuple[int, int], bucket: Bucket, keypoints: Float32[np.ndarray, "5 2"], box: Float32[np.ndarray, "4"]) -> Fit:
    """How a picture of `size` (height, width) fills `bucket`: scaled to cover it, with what hangs over cut off.

    The cut is centred and moved no further than it takes to keep the face whole. A face that is larger than what remains is cut itself,
    then with its keypoints in the middle. A picture of twice the bucket and more is read at 1/2, 1/4 or 1/8.

    keypoints, box: of the face, in pixels of the picture.
    """
    for reduction in (*REDUCTIONS, 1):
        reduced = -(-size[0] // reduction), -(-size[1] // reduction)  # the decoder rounds up
        cut = _cover(reduced, bucket)
        if cut[0] >= bucket[0] and cut[1] >= bucket[1]:
            break
    spans = []
    for axis in (1, 0):  # x, then y
        points = keypoints[:, 1 - axis] / reduction
        sides = box[[1 - axis, 3 - axis]] / reduction
        start = _start(reduced[axis], cut[axis], points, sides)
        spans.append((start, start + cut[axis]))
    (left, right), (top, bottom) = spans
    return Fit(reduction, (left, top, right, bottom), bucket)


def _cover(size: tuple[int, int], bucket: Bucket) -> tuple[int, int]:
    """The largest part of a picture that has the bucket's shape."""
    (height, width), (h, w) = size, bucket
    if height * w >= width * h:
        return min(height, max(1, (2 * width * h + w) // (2 * w))), width
    return height, min(width, max(1, (2 * height * w + h) // (2 * h)))


def _start(length: int, cut: int, points: np.ndarray, sides: np.ndarray) -> int:
    """Where a cut begins along one axis."""
    low, high = math.floor(points.min()), math.floor(points.max()) + 1
    whole = (min(low, max(0, math.floor(sides[0]))), max(high, min(length, math.ceil(sides[1])))) if sides[0] < sides[1] else (low, high)
    if whole[1] - whole[0] <= cut:
        start = min(max((length - cut) // 2, whole[1] - cut), whole[0])
    else:
        start = (low + high - cut) // 2
    return min(max(start, 0), length - cut)


def decode(data: bytes, size: tuple[int, int], reduction: int = 1) -> UInt8[np.ndarray, "h w 3"]:
    """An encoded picture as RGB, at 1 / reduction of `size` (height, width; odd sides rounded up).

    Raises InputError when it cannot be decoded or has another size. Its EXIF orientation is not looked at: records hold upright pictures.
    """
    import cv2

    jpeg = data[:3] == b"\xff\xd8\xff"
    flags = cv2.IMREAD_IGNORE_ORIENTATION | cv2.IMREAD_COLOR_RGB
    if jpeg and reduction > 1:
        # OpenCV names these for grey and BGR only; the bit they share stands for the reduction, IMREAD_COLOR_RGB's for the channels.
        flags |= {2: cv2.IMREAD_REDUCED_GRAYSCALE_2, 4: cv2.IMREAD_REDUCED_GRAYSCALE_4, 8: cv2.IMREAD_REDUCED_GRAYSCALE_8}[reduction]
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
    if image is None:
        raise InputError(f"its {len(data)} bytes are no picture that OpenCV can decode")
    expected = -(-size[0] // reduction), -(-size[1] // reduction)
    found = image.shape[:2]
    if found != (expected if jpeg else tuple(size)):
        raise InputError(f"its picture decodes to {found[1]}x{found[0]}; {expected[1]}x{expected[0]} was recorded")
    if not jpeg and reduction > 1:
        image = cv2.resize(image, expected[::-1], interpolation=cv2.INTER_AREA)
    return image


def fill(image: UInt8[np.ndarray, "h w 3"], how: Fit, out: UInt8[np.ndarray, "H W 3"] | None = None) -> UInt8[np.ndarray, "H W 3"]:
    """A picture that was decoded with `how.reduction`, cut and scaled to the bucket; written to `out` if given.

    A cubic filter, after a slight low-pass where much is lost. On photographs nearer to Lanczos than OpenCV's area filter at a third of the time.
    """
    import cv2

    (left, top, right, bottom), (height, width) = how.box, how.bucket
    out = np.empty((height, width, 3), np.uint8) if out is None else out
    part = image[top:bottom, left:right]
    if part.shape == out.shape:
        out[:] = part
        return out
    scale = max(height / part.shape[0], width / part.shape[1])
    if scale < _SHARP:
        part = cv2.GaussianBlur(part, (3, 3), 0.75 * (1 / scale - 1))
    if cv2.resize(part, (width, height), dst=out, interpolation=cv2.INTER_CUBIC) is not out:
        raise AssertionError("OpenCV did not write to the array that it was given")
    return out


def fitted(
    data: bytes, size: tuple[int, int], bucket: Bucket, keypoints: Float32[np.ndarray, "5 2"], box: Float32[np.ndarray, "4"]
) -> tuple[UInt8[np.ndarray, "H W 3"], Float32[np.ndarray, "5 2"]]:
    """An encoded picture fitted to a bucket, and the face's keypoints in it. See `fit`, `decode` and `fill`."""
    how = fit(size, bucket, keypoints, box)
    return fill(decode(data, size, how.reduction), how), how.points(keypoints)


def control_image(bucket: Bucket, keypoints: Float32[np.ndarray, "5 2"] | None, out: UInt8[np.ndarray, "H W 3"] | None = None) -> UInt8[np.ndarray, "H W 3"]:
    """The control image of a fitted picture: its keypoints drawn on black, or all black; written to `out` if given."""
    out = np.empty((*bucket, 3), np.uint8) if out is None else out
    out[...] = 0
    return out if keypoints is None else face.draw_keypoints(*bucket, keypoints, out)


def identity_crop(data: bytes, size: tuple[int, int], keypoints: Float32[np.ndarray, "5 2"]) -> UInt8[np.ndarray, "112 112 3"]:
    """ArcFace's crop (BGR) of an encoded picture, from its full size, as the pipeline crops the photo that a user gives."""
    return face.align(decode(data, size), keypoints)
