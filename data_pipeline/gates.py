"""Which generated pictures are kept: settings, reasons, and the look at a picture beside the photo that it was made from."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float32, UInt8

from data_pipeline import filters
from data_pipeline.duplicates import perceptual_hash
from data_pipeline.filters import Filters, Found, Rejected, find_face
from infu_jax import face
from infu_jax.errors import InputError
from infu_jax.pose import head_pose

_FACE = ("no_face", "several_faces", "face_unsure", "face_cut", "face_too_small", "blurred")
REASONS = {
    "no_photo": "there is no usable photo of the person",
    "no_prompt": "there is no prompt for the person",
    **{reason: filters.REASONS[reason] for reason in _FACE},
    "turned": "the head is turned too far",
    "copy": "it is nearly the identity photo, or has its very face",
    "unlike": "the face is not like the person's",
    "too_like": "the face is the photo's own",
    "scored_low": "a scorer gives it too little",
    "duplicate": filters.REASONS["duplicate"],
}
"""In the order in which they are looked at."""


@dataclass(frozen=True)
class Gates:
    """What a generated picture must be.

    The paper filters for normal poses, high resemblance and good aesthetics and states no values: every number here is our assumption. Look
    at report/people.jpg and at the scores in report/rejected.jsonl, then choose your own.
    """

    other_face: float = 0.0
    """Largest second face, as a share of the first one's area. 0: exactly one face may be found."""
    min_score: float = 0.8
    """Least confidence of the face detector."""
    min_face: int = 64
    """Smallest face: the square root of its box's area, in pixels."""
    min_face_share: float = 0.01
    """Smallest share of the picture's area that the face's box takes."""
    min_sharpness: float = 5.0
    """Least variance of the Laplacian of the face's grey values, with the face scaled to 224 pixels. 0 allows any."""
    max_yaw: float = 35.0
    """Most that the head is turned to a side, in degrees, as estimated from the five points (give or take 5). 90 allows any."""
    max_pitch: float = 25.0
    """Most that it is raised or lowered."""
    max_roll: float = 25.0
    """Most that it is tilted."""
    copy_distance: int | None = 8
    """A picture whose 64-bit perceptual hash differs from the photo's in at most so many bits is a copy of it. None: no such test."""
    max_face_correlation: float = 0.985
    """A face whose grey values correlate more with those of the photo's face, where they fit best, was pasted: same pose, expression and
    light. 1: any."""
    min_similarity: float = 0.6
    """Least cosine between the face embeddings of picture and photo. Released stage 1 reaches 0.83 on average (ID loss 0.172), with ArcFace IR-SE50."""
    max_similarity: float = 0.97
    """Most of it: more is no other picture of the person."""
    duplicate_distance: int | None = 4
    """Kept pictures whose perceptual hashes differ in at most so many bits count as one: the first is kept. None: keep all."""

    def __post_init__(self):
        self.filters()
        for name in ("max_yaw", "max_pitch", "max_roll"):
            if not 0 <= getattr(self, name) <= 180:
                raise InputError(f"gates.{name} is {getattr(self, name)}; 0 to 180 degrees are possible")
        for name in ("max_face_correlation", "min_similarity", "max_similarity"):
            if not -1 <= getattr(self, name) <= 1:
                raise InputError(f"gates.{name} is {getattr(self, name)}; -1 to 1 is possible")
        if self.min_similarity > self.max_similarity:
            raise InputError(f"gates.min_similarity is {self.min_similarity}, max_similarity {self.max_similarity}: no picture could be kept")
        if self.copy_distance is not None and not 0 <= self.copy_distance <= 32:
            raise InputError(f"gates.copy_distance is {self.copy_distance}; 0 to 32 bits of 64 are possible, or None")

    def filters(self) -> Filters:
        """Those of the builder, for what both look at."""
        return Filters(
            other_face=self.other_face, min_score=self.min_score, min_face=self.min_face, min_face_share=self.min_face_share,
            min_sharpness=self.min_sharpness, duplicate_distance=self.duplicate_distance,
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Shown:
    """The photo that a picture is held against."""

    hash: int
    crop: UInt8[np.ndarray, "112 112 3"]
    """ArcFace's, BGR."""
    embedding: Float32[np.ndarray, "d"]
    """Of the recogniser that judges."""


@dataclass(eq=False)
class Verdict:
    """What was found out about a picture, as far as it got."""

    scores: dict[str, float] = field(default_factory=dict)
    rejected: Rejected | None = None
    found: Found | None = None
    hash: int = 0
    crop: UInt8[np.ndarray, "112 112 3"] | None = None
    """Of the face, where the picture passed all gates that need no recogniser."""


def examine(image: UInt8[np.ndarray, "h w 3"], photo: Shown, detector: face.Detector, gates: Gates) -> Verdict:
    """All gates that need neither recogniser nor scorer nor the other pictures."""
    verdict = Verdict(hash=perceptual_hash(image))
    try:
        verdict.found = find_face(image, detector, gates.filters())
        verdict.scores |= verdict.found.scores
        crop = face.align(image, verdict.found.keypoints)
        _check_pose(verdict, gates)
        _check_copy(verdict, crop, photo, gates)
        verdict.crop = crop
    except Rejected as error:
        verdict.rejected = error
    return verdict


def _check_pose(verdict: Verdict, gates: Gates) -> None:
    assert verdict.found is not None
    turned = dict(zip(("yaw", "pitch", "roll"), head_pose(verdict.found.keypoints[None])[0].tolist()))
    if not np.isfinite(list(turned.values())).all():
        raise Rejected("turned", "its five points lie in one place, where no turn can be seen")
    verdict.scores |= turned
    for name, degrees in turned.items():
        if abs(degrees) > (most := getattr(gates, f"max_{name}")):
            raise Rejected("turned", f"{name} is {degrees:.1f} degrees; at most {most:g} are allowed")


def _check_copy(verdict: Verdict, crop: UInt8[np.ndarray, "112 112 3"], photo: Shown, gates: Gates) -> None:
    distance = (verdict.hash ^ photo.hash).bit_count()
    verdict.scores |= {"photo_distance": float(distance), "face_correlation": correlation(crop, photo.crop)}
    if gates.copy_distance is not None and distance <= gates.copy_distance:
        raise Rejected("copy", f"its perceptual hash differs from the photo's in {distance} bits; more than {gates.copy_distance} are needed")
    if verdict.scores["face_correlation"] > gates.max_face_correlation:
        raise Rejected("copy", f"its face correlates with the photo's by {verdict.scores['face_correlation']:.3f}; at most {gates.max_face_correlation:g}")


def correlation(a: UInt8[np.ndarray, "112 112 3"], b: UInt8[np.ndarray, "112 112 3"]) -> float:
    """Of the grey values of two aligned faces, from brows to chin, -1 to 1, after the affine map that fits them best (Evangelidis and Psarakis, PAMI 2008).

    For the detector places its points a little otherwise each time. Where no map is found they are compared as they are.
    """
    import cv2  # changes LD_LIBRARY_PATH, so not at import

    first, second = (cv2.resize(cv2.cvtColor(crop, cv2.COLOR_BGR2GRAY), (56, 56), interpolation=cv2.INTER_AREA) for crop in (a, b))
    inner = np.ascontiguousarray(first[13:51, 9:47])
    if inner.std() < 1 or second.std() < 1:
        return 0.0
    start = np.array([[1, 0, 9], [0, 1, 13]], np.float32)
    as_they_are = float(np.corrcoef(inner.ravel(), second[13:51, 9:47].ravel())[0, 1])
    try:
        fitted = cv2.findTransformECC(inner, second, start, cv2.MOTION_AFFINE, (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 50, 1e-4), None, 5)[0]
    except cv2.error:  # it says so when it does not converge
        fitted = as_they_are
    return float(np.nan_to_num(max(fitted, as_they_are)))


def check_similarity(verdict: Verdict, embedding: Float32[np.ndarray, "d"], photo: Shown, gates: Gates) -> None:
    """The gate on likeness, for a picture that passed those of `examine`."""
    likeness = float(face.cosine(embedding, photo.embedding))
    verdict.scores["similarity"] = likeness
    if likeness < gates.min_similarity:
        verdict.rejected = Rejected("unlike", f"identity similarity {likeness:.3f} is below {gates.min_similarity:g}")
    elif likeness > gates.max_similarity:
        verdict.rejected = Rejected("too_like", f"identity similarity {likeness:.3f} is above {gates.max_similarity:g}")


def table(rows: int, rejected: Mapping[str, int]) -> str:
    """Several lines for the terminal: how many pictures each gate looked at and turned away."""
    lines, left = [f"{'gate':18}{'looked at':>10}{'rejected':>10}{'share':>8}"], rows
    for reason, meaning in REASONS.items():
        if count := rejected.get(reason, 0):
            lines.append(f"{reason:18}{left:>10,}{count:>10,}{count / left:>8.1%}  {meaning}")
            left -= count
    lines.append(f"{'kept':18}{rows:>10,}{left:>10,}{left / rows:>8.1%}")
    return "\n".join(lines)
