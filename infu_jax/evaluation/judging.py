"""From pictures on disk to their scores: what photos, other photos and pictures show, put together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from infu_jax import face, pictures
from infu_jax.errors import InputError
from infu_jax.evaluation import pairs, scores
from infu_jax.evaluation.identities import Identity
from infu_jax.evaluation.measuring import Recogniser, Scorer, fingerprint, measure
from infu_jax.evaluation.pairs import Pair
from infu_jax.evaluation.scores import RecogniserInfo, Scores
from infu_jax.models.arcface import ArcFace

REFERENCE = "other photos of them"
FINGERPRINT = "recogniser"  # in the metadata of pictures: which one conditioned them


def judge(
    wanted: Sequence[Pair],
    people: Sequence[Identity],
    folder: Path,
    *,
    detector: face.Detector,
    recognisers: Sequence[Recogniser],
    scorers: Sequence[Scorer] = (),
    name: str = "this run",
    settings: Mapping[str, Any] | None = None,
    batch: int = 16,
    done: Callable[[int], None] = lambda count: None,
) -> tuple[Scores, Scores | None]:
    """Scores of the pictures of `wanted` in `folder`, which must all be there, and those of the other photos of the same people as if they were pictures.

    The second, None without other photos, is the yardstick: how like each other, and in how different poses, photos of one person are.
    people: the gallery, among whom rank-1 is searched; some may have no pictures.
    done: called with how many pictures have been looked at since the last call.
    """
    others = [(n, path) for n, who in enumerate(people) for path in who.others]
    of = np.array([n for n, _ in others], np.int64)
    photos = measure(_images(who.photo for who in people), detector, recognisers, batch=batch)
    if faceless := [who for who, points in zip(people, photos.keypoints) if not np.isfinite(points).all()]:
        raise InputError(f"{faceless[0].photo}: no face found; give a photo with a clear, uncovered face, or another detector")
    files = [pairs.find(folder, pair) for pair in wanted]
    if None in files:
        raise InputError(f"{folder} has no picture {wanted[files.index(None)].stem}")
    seen = measure(_images(files), detector, recognisers, scorers, [pair.prompt.text for pair in wanted], batch=batch, done=done)
    more = measure(_images(path for _, path in others), detector, recognisers, batch=batch) if others else None

    names = [who.name for who in people]
    at = np.array([names.index(pair.identity.name) for pair in wanted])
    columns = {**scores.looks(seen), **scores.photo_columns(photos, at), **scores.face_columns(seen, photos, at, more, of), **seen.scores}
    told = tuple(RecogniserInfo(r.name, r.conditioned, fingerprint(r.model)) for r in recognisers)
    texts = {pair.prompt.number: pair.prompt.text for pair in wanted}
    who, numbers = tuple(pair.identity.name for pair in wanted), tuple(pair.prompt.number for pair in wanted)
    gallery = tuple(sorted(names))
    weights = {scorer.measure.key: found for scorer in scorers if (found := getattr(scorer, "fingerprint", None)) is not None}
    mine = Scores(name, who, numbers, columns, told, tuple(scorer.measure for scorer in scorers), settings or {}, texts, gallery, weights)
    painted = np.flatnonzero(np.isin(of, at)).tolist()  # other photos of people who have pictures
    if more is None or not painted:
        return mine, None
    compared = {**scores.looks(more), **scores.photo_columns(photos, of), **scores.face_columns(more, photos, of, more, of)}
    # Each with a prompt of its own: there are none.
    reference = Scores(REFERENCE, tuple(names[n] for n in of), tuple(-n for n in range(len(of))), compared, told, gallery=gallery)
    return mine, reference.rows(painted)


def recognisers_of(models: Mapping[str, ArcFace], example: Path) -> list[Recogniser]:
    """Recognisers by name, with what the metadata of a picture tell of the one that conditioned it; nothing if another program made it."""
    try:
        stored = pictures.read_recipe(example).get(FINGERPRINT)
    except InputError:
        stored = None
    return [Recogniser(name, model, None if stored is None else fingerprint(model) == stored) for name, model in models.items()]


def _images(paths) -> Iterator[np.ndarray]:
    yield from (face.read_image(path) for path in paths)
