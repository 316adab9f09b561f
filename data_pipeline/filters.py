"""Which pictures are kept: settings, the reasons why one is not, and the look at a picture that finds its face and decides."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, UInt8

from infu_jax import face
from infu_jax.errors import InputError

REASONS = {
    "bad_row": "the row is no JSON object, lacks a column, or a value has the wrong form",
    "bad_id": "a person id or key is no plain name",
    "outside": "a path leads out of the source's folder",
    "missing_file": "there is no such picture file",
    "file_too_large": "the file has more bytes than allowed",
    "not_a_picture": "the file is no JPEG, PNG or WebP picture",
    "damaged": "the picture cannot be decoded",
    "too_many_pixels": "the picture has more pixels than allowed",
    "animated": "the file is an animation",
    "picture_too_small": "the picture's short side is too short",
    "picture_too_long": "the picture's long side is too long for its short one",
    "no_caption": "there is no caption",
    "no_face": "no face was found",
    "several_faces": "there is another face of a comparable size",
    "face_cut": "one of the face's five points lies outside the picture",
    "face_too_small": "the face has too few pixels, or too small a share of the picture",
    "face_unsure": "the face detector is not sure enough",
    "blurred": "the face is blurred",
    "duplicate": "it looks like a picture that is kept",
    "same_key": "another row has the same key",
}
"""In the order in which they are looked at."""

SHARPNESS_SIDE = 224


class Rejected(InputError):
    """A row that is not kept. `reason` is one of REASONS."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Filters:
    """What a picture must be. The paper names its filters (small, low-quality and several faces) but states no values; these are ours."""

    min_side: int = 384
    """Shortest short side, in pixels."""
    max_aspect: float = 3.0
    """Longest long side, relative to the short one."""
    min_face: int = 64
    """Smallest face: the square root of its box's area, in pixels."""
    min_face_share: float = 0.01
    """Smallest share of the picture's area that the face's box takes."""
    min_score: float = 0.8
    """Least confidence of the face detector."""
    other_face: float = 0.3
    """Largest second face, as a share of the first one's area: smaller ones are taken for passers-by. 1 allows any."""
    min_sharpness: float = 5.0
    """Least variance of the Laplacian of the face's grey values, with the face scaled to 224 pixels. 0 allows any."""
    duplicate_distance: int | None = 4
    """Pictures whose 64-bit perceptual hashes differ in at most so many bits count as one: the one with most pixels is kept. None: keep all."""
    require_caption: bool = False
    """Keep only pictures that have a caption."""

    def __post_init__(self):
        for name in ("min_side", "max_aspect"):
            if not getattr(self, name) >= 1:  # which NaN is not either
                raise InputError(f"filters.{name} is {getattr(self, name)}; 1 or more is needed")
        for name in ("min_face", "min_sharpness"):
            if not getattr(self, name) >= 0:
                raise InputError(f"filters.{name} is {getattr(self, name)}; 0 or more is needed")
        for name in ("min_face_share", "min_score", "other_face"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"filters.{name} is {getattr(self, name)}; a share between 0 and 1 is needed")
        if self.duplicate_distance is not None and not 0 <= self.duplicate_distance <= 8:
            raise InputError(f"filters.duplicate_distance is {self.duplicate_distance}; 0 to 8 bits of 64 are possible, or None")


@dataclass(frozen=True, eq=False)
class Found:
    """The face of a picture, and numbers about it."""

    keypoints: Float32[np.ndarray, "5 2"]
    box: Float32[np.ndarray, "4"]
    scores: dict[str, float]


def check_size(height: int, width: int, filters: Filters) -> None:
    """Raises Rejected for a picture that is too small or too long."""
    if min(height, width) < filters.min_side:
        raise Rejected("picture_too_small", f"{width}x{height}: the short side has fewer than {filters.min_side} pixels")
    if max(height, width) > filters.max_aspect * min(height, width):
        raise Rejected("picture_too_long", f"{width}x{height}: longer than {filters.max_aspect:g} to 1")


def find_face(image: UInt8[np.ndarray, "h w 3"], detector: face.Detector, filters: Filters, given: Float32[np.ndarray, "5 2"] | None = None) -> Found:
    """The face of a picture: the one at the `given` points, or the largest that the detector finds. Raises Rejected when it is not good enough."""
    height, width = image.shape[:2]
    scores = {}
    if given is None:
        faces = detector.detect(image)
        if not faces:
            raise Rejected("no_face", f"no face found in {width}x{height}")
        first = faces[0]
        if len(faces) > 1 and faces[1].area > filters.other_face * first.area:
            raise Rejected("several_faces", f"{len(faces)} faces; the second has {faces[1].area / first.area:.0%} of the first one's area")
        if first.score < filters.min_score:
            raise Rejected("face_unsure", f"detector score {first.score:.2f} is below {filters.min_score:g}")
        keypoints, box, scores["detector"] = first.keypoints, first.box, first.score
    else:
        keypoints, box = given, box_around(given)
    if (keypoints < 0).any() or (keypoints > (width - 1, height - 1)).any():
        raise Rejected("face_cut", f"keypoints {np.round(keypoints).astype(int).tolist()} are not all inside {width}x{height}")
    left, top, right, bottom = box
    area = float((right - left) * (bottom - top))
    scores |= {"face_pixels": area**0.5, "face_share": area / (height * width)}
    if scores["face_pixels"] < filters.min_face:
        raise Rejected("face_too_small", f"the face has {scores['face_pixels']:.0f} pixels; at least {filters.min_face} are needed")
    if scores["face_share"] < filters.min_face_share:
        raise Rejected("face_too_small", f"the face takes {scores['face_share']:.2%} of the picture; at least {filters.min_face_share:.2%} is needed")
    scores["sharpness"] = sharpness(image, box)
    if scores["sharpness"] < filters.min_sharpness:
        raise Rejected("blurred", f"sharpness {scores['sharpness']:.1f} is below {filters.min_sharpness:g}")
    return Found(keypoints, box, scores)


def box_around(keypoints: Float32[np.ndarray, "5 2"]) -> Float32[np.ndarray, "4"]:
    """About the box that YuNet gives for a face with these points: in ArcFace's crop of 112 pixels its faces reach from (20, 1) to (92, 123)."""
    low, high = face.ARCFACE_POINTS.min(axis=0), face.ARCFACE_POINTS.max(axis=0)
    scale = (keypoints.max(axis=0) - keypoints.min(axis=0)) / (high - low)
    first = keypoints.min(axis=0) - (low - (20, 1)) * scale
    return np.concatenate([first, first + (72, 122) * scale]).astype(np.float32)


def sharpness(image: UInt8[np.ndarray, "h w 3"], box: Float32[np.ndarray, "4"]) -> float:
    """Variance of the Laplacian of grey values 0 to 255 in the face's box, scaled to SHARPNESS_SIDE pixels (the root of its area)."""
    import cv2  # changes LD_LIBRARY_PATH, so not at import

    height, width = image.shape[:2]
    left, top, right, bottom = np.clip(np.round(box), 0, (width, height, width, height)).astype(int)
    grey = cv2.cvtColor(np.ascontiguousarray(image[top:bottom, left:right]), cv2.COLOR_RGB2GRAY)
    scale = SHARPNESS_SIDE / max(1.0, (grey.shape[0] * grey.shape[1]) ** 0.5)
    size = max(3, round(grey.shape[1] * scale)), max(3, round(grey.shape[0] * scale))
    grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    return float(cv2.Laplacian(grey, cv2.CV_64F).var())
