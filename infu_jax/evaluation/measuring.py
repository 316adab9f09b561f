"""Models look at pictures: faces and their points, embeddings of recognisers, scores of pictures and prompts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float

from infu_jax import face
from infu_jax.checkpoint import params_of
from infu_jax.models.arcface import ArcFace


@dataclass(frozen=True)
class Measure:
    """One number about a model. better: "up" or "down" is the better direction, "zero" means that 0 is best."""

    key: str
    label: str
    better: str
    about: str


@runtime_checkable
class Scorer(Protocol):
    """Says how well pictures fit their prompts, as CLIPScore does (`clip.CosineScore`). `measure` describes the mean of what it says.

    It may have a `fingerprint`, a text that says which weights it has: values of other weights are then not compared with it.
    """

    measure: Measure

    def __call__(self, images: Sequence[np.ndarray], prompts: Sequence[str]) -> Float[np.ndarray, " n"]:
        """A value for each of the pictures (h, w, 3) uint8 RGB; NaN where there is none."""


@dataclass(frozen=True, eq=False)
class Recogniser:
    """A face recogniser of ArcFace's layout.

    conditioned: whether its embedding made the pictures, which it then flatters; None where that is not known.
    """

    name: str
    model: ArcFace
    conditioned: bool | None

    def __call__(self, crops: Float[np.ndarray, "n h w 3"]) -> Float[np.ndarray, "n e"]:
        return np.asarray(_embed(self.model, crops))


@dataclass(frozen=True, eq=False)
class Measured:
    """What was seen in N pictures; rows of pictures without a face are NaN.

    keypoints: of the largest face. faces: embedding of it, by recogniser. scores: of pictures and prompts, by the scorer's key.
    """

    keypoints: Float[np.ndarray, "n 5 2"]
    faces: Mapping[str, Float[np.ndarray, "n _"]]
    scores: Mapping[str, Float[np.ndarray, " n"]]


def fingerprint(model: nnx.Module) -> str:
    """Which model this is, by its weights, wherever its file lies and whatever its layout."""
    digest = hashlib.sha256()
    for name, value in sorted(params_of(model).items()):
        digest.update(name.encode() + np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


def measure(
    images: Iterable[np.ndarray],
    detector: face.Detector,
    recognisers: Sequence[Recogniser],
    scorers: Sequence[Scorer] = (),
    prompts: Sequence[str] = (),
    *,
    batch: int = 16,
    done: Callable[[int], None] = lambda count: None,
) -> Measured:
    """Look at pictures (h, w, 3) uint8 RGB, `batch` at once; only so many are in memory.

    prompts: of each picture, for the scorers.
    done: called with how many have been looked at since the last call.
    """
    points: list[np.ndarray] = []
    faces: dict[str, list[np.ndarray]] = {r.name: [] for r in recognisers}
    told: dict[str, list[np.ndarray]] = {scorer.measure.key: [] for scorer in scorers}
    for part in _parts(images, batch):
        found = [_keypoints(detector, image) for image in part]
        points += [np.full((5, 2), np.nan) if p is None else p for p in found]
        for r in recognisers:
            faces[r.name].append(_embed_faces(r, part, found, batch))
        for scorer in scorers:
            told[scorer.measure.key].append(scorer(part, prompts[len(points) - len(part) : len(points)]))
        done(len(part))
    join = lambda parts: np.concatenate(parts).astype(np.float64)  # noqa: E731
    return Measured(np.array(points, np.float64), {k: join(v) for k, v in faces.items()}, {k: join(v) for k, v in told.items()})


def _parts(images: Iterable[np.ndarray], size: int) -> Iterable[list[np.ndarray]]:
    part: list[Any] = []
    for image in images:
        part.append(image)
        if len(part) == size:
            yield part
            part = []
    if part:
        yield part


def _keypoints(detector: face.Detector, image: np.ndarray) -> np.ndarray | None:
    try:
        return face.largest_face(detector, image).keypoints
    except face.NoFaceError:
        return None


def _embed_faces(r: Recogniser, images: Sequence[np.ndarray], found: Sequence[np.ndarray | None], batch: int) -> np.ndarray:
    """Embeddings of a part, always computed in batches of one size, so that one program is compiled."""
    cfg = r.model.cfg
    out = np.full((len(images), cfg.embedding_dim), np.nan)
    rows = [n for n, points in enumerate(found) if points is not None]
    if rows:
        crops = np.zeros((batch, cfg.image_size, cfg.image_size, 3), np.float32)
        for slot, n in enumerate(rows):
            crops[slot] = face.arcface_input(face.align(images[n], found[n], cfg.image_size))
        out[rows] = r(crops)[: len(rows)]
    return out


@jax.jit
def _embed(arcface: ArcFace, crops):
    return arcface(crops)
