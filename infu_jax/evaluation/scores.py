"""The scores of each picture, as a table of columns and as JSON, and the measures that are made of them.

No face embedding is kept: they are biometric data, and every measure can be had from cosines and poses.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infu_jax.errors import InputError
from infu_jax.evaluation import statistics
from infu_jax.evaluation.measuring import Measure, Measured
from infu_jax.pose import head_pose, mouth_width

FORMAT = "infu_jax evaluation 1"
PHOTO = "photo_"  # columns of the photo that a picture's person was shown in
POSE = ("yaw", "pitch", "roll")


@dataclass(frozen=True)
class RecogniserInfo:
    """conditioned: whether its embedding made the pictures; None where that is not known. fingerprint: of its weights, `measuring.fingerprint`."""

    name: str
    conditioned: bool | None
    fingerprint: str | None = None

    @property
    def text(self) -> str:
        how = {True: "conditioned the pictures", False: "did not condition the pictures", None: "may have conditioned the pictures or not"}
        return f"{self.name} ({how[self.conditioned]})"


@dataclass(frozen=True, eq=False)
class Scores:
    """One row a picture. NaN stands for what could not be measured, such as the similarity of a picture without a face.

    columns: face (0 or 1), similarity/R, rank_1/R, rank_1_others/R, copy_gap/R for each recogniser R, yaw, pitch, roll, mouth, the last four with `photo_`
        before them, for the photo, and one by the key of each of `fits`, the measures of how well pictures fit their prompts.
    prompts: number of each picture's prompt; texts: the prompts by number.
    gallery: all people among whom rank-1 is searched, by name, also those without pictures; None in results of earlier versions.
    scorers: fingerprints of their weights by the key of their measure, of those that have one.
    """

    name: str
    who: tuple[str, ...]
    prompts: tuple[int, ...]
    columns: Mapping[str, np.ndarray]
    recognisers: tuple[RecogniserInfo, ...]
    fits: tuple[Measure, ...] = ()
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    texts: Mapping[int, str] = dataclasses.field(default_factory=dict)
    gallery: tuple[str, ...] | None = None
    scorers: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.who)

    @property
    def people(self) -> tuple[str, ...]:
        """The gallery; where it is not known, those who have pictures, who it was in earlier versions of the command."""
        return tuple(sorted(set(self.who))) if self.gallery is None else self.gallery

    def rows(self, keep: Sequence[int]) -> Scores:
        """Some of the pictures."""
        keep = np.asarray(keep, np.int64)
        columns = {name: values[keep] for name, values in self.columns.items()}
        return dataclasses.replace(self, who=tuple(self.who[n] for n in keep), prompts=tuple(self.prompts[n] for n in keep), columns=columns)


def measures(scores: Scores) -> list[Measure]:
    """All measures in the order of the table; a table leaves out those whose columns it lacks."""
    out, people = [], len(scores.people)
    for r in scores.recognisers:
        out += [
            Measure(f"id_loss/{r.name}", f"ID Loss, {r.name}", "down", f"1 - cosine to the photo, over pictures with a face; {r.text}"),
            Measure(f"rank_1/{r.name}", f"rank-1, {r.name}", "up", f"pictures most like the right one of {people} photos; without a face, a miss; {r.text}"),
            Measure(
                f"rank_1_others/{r.name}", f"rank-1 by other photos, {r.name}", "up",
                f"pictures most like the right one of {people} people, each known by the mean of other photos, which no model was shown; {r.text}",
            ),
            Measure(
                f"copy_gap/{r.name}", f"copy gap, {r.name}", "zero",
                "cosine to the photo minus mean cosine to other photos of the person: what is repeated of the photo beyond who it shows",
            ),
        ]  # fmt: skip
    return [
        *out,
        Measure("faces", "faces found", "up", "pictures in which the detector finds a face"),
        *scores.fits,
        Measure("copy_pose", "pose copied", "zero", "concordance of yaw and roll with those of the photo: 0 unrelated, 1 the same in every picture"),
        Measure("copy_expression", "expression copied", "zero", "concordance of mouth width (over eye distance); that of faces is in it, see other photos"),
        Measure("prompt_pose", "pose from prompt", "up", "part of the variance of yaw and roll that the prompt decides: 0 none, 1 all of it"),
        Measure("prompt_expression", "expression from prompt", "up", "the same of mouth width"),
        Measure("copy_yaw", "yaw copied", "zero", "concordance of yaw alone"),
        Measure("copy_roll", "roll copied", "zero", "concordance of roll alone"),
        Measure("copy_pitch", "pitch copied", "zero", "concordance of pitch alone; the shape of faces is in it, see other photos"),
    ]


def statistic(scores: Scores, key: str) -> statistics.Statistic | None:
    """A measure as a function of bootstrap weights; None where the scores lack its columns."""
    kind, _, recogniser = key.partition("/")
    wanted = {"id_loss": f"similarity/{recogniser}", "faces": "face"}.get(kind, key)
    source, _, what = kind.partition("_")
    looks = {"pose": ("yaw", "roll"), "expression": ("mouth",), **{axis: (axis,) for axis in POSE}}
    if source in ("copy", "prompt") and what in looks:
        stack = lambda before: np.stack([scores.columns[before + name] for name in looks[what]], axis=1)  # noqa: E731
        return statistics.concordance(stack(""), stack(PHOTO)) if source == "copy" else statistics.shared(stack(""), scores.who, scores.prompts)
    if wanted not in scores.columns:
        return None
    values = scores.columns[wanted]
    return statistics.mean(1 - values if kind == "id_loss" else values)


def photo_columns(photos: Measured, at: np.ndarray) -> dict[str, np.ndarray]:
    """Pose and mouth of the photo of each picture; `at`: its row in `photos`."""
    return {PHOTO + name: values[at] for name, values in looks(photos).items()}


def looks(seen: Measured) -> dict[str, np.ndarray]:
    """Columns face, yaw, pitch, roll, mouth."""
    turned = head_pose(seen.keypoints)
    columns = {name: turned[:, n] for n, name in enumerate(POSE)}
    return {"face": np.isfinite(seen.keypoints).all(axis=(1, 2)).astype(np.float64), **columns, "mouth": mouth_width(seen.keypoints)}


def face_columns(seen: Measured, gallery: Measured, at: np.ndarray, others: Measured | None, of: np.ndarray) -> dict[str, np.ndarray]:
    """Columns of similarity and rank-1; with other photos copy gap, and if everybody has some that shows a face, rank-1 by other photos.

    gallery: the photo of each person; at: the person of each picture. others: more photos of them, of persons `of`; where these are the pictures
        themselves (`seen is others`), each is compared with the rest, and has no copy gap; without a rest that shows a face, its rank-1 is NaN.
    """
    columns = {}
    for name, faces in seen.faces.items():
        likeness = statistics.cosine(faces, gallery.faces[name][at])
        columns[f"similarity/{name}"] = likeness
        columns[f"rank_1/{name}"] = statistics.rank_1(faces, gallery.faces[name], at).astype(np.float64)
        if others is not None:
            known, rest = statistics.templates(others.faces[name], of, len(gallery.faces[name]))
            own = rest if seen is others else known[at]
            enrolled = np.isfinite(own).all(axis=1)  # whether anything is left to know the person by; not whether the picture has a face
            if np.isfinite(known).all() and enrolled.any():
                columns[f"rank_1_others/{name}"] = np.where(enrolled, statistics.rank_1(faces, known, at, own), np.nan)
            if seen is not others:
                columns[f"copy_gap/{name}"] = likeness - _mean_likeness(faces, at, others.faces[name], of)
    return columns


def _mean_likeness(faces: np.ndarray, at: np.ndarray, others: np.ndarray, of: np.ndarray) -> np.ndarray:
    """Mean cosine of each picture to the other photos of its person that show a face; NaN where there are none."""
    out = np.full(len(faces), np.nan)
    for n, person in enumerate(at):
        likeness = [float(statistics.cosine(faces[n : n + 1], other[None])[0]) for other in others[(of == person) & np.isfinite(others).all(axis=1)]]
        if likeness:
            out[n] = np.mean(likeness)
    return out


# Files --------------------------------------------------------------------------------------------


def to_json(scores: Scores) -> dict[str, Any]:
    """Plain values; NaN becomes null."""
    rows = [
        {"identity": who, "prompt": prompt, **{name: _number(values[n]) for name, values in scores.columns.items()}}
        for n, (who, prompt) in enumerate(zip(scores.who, scores.prompts))
    ]
    return {
        "format": FORMAT,
        "name": scores.name,
        "settings": dict(scores.settings),
        "recognisers": [dataclasses.asdict(r) for r in scores.recognisers],
        "fits": [dataclasses.asdict(m) for m in scores.fits],
        "scorers": dict(scores.scorers),
        "prompts": {str(number): text for number, text in scores.texts.items()},
        "gallery": None if scores.gallery is None else list(scores.gallery),
        "pictures": rows,
    }


def read(path: Path) -> Scores:
    """The scores in a scores.json of this command."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["format"] != FORMAT:
            raise InputError(f"{path} has format {stored['format']!r}, expected {FORMAT!r}; evaluate its pictures again with --pictures")
        rows = stored["pictures"]
        columns = {
            name: np.array([math.nan if row[name] is None else float(row[name]) for row in rows])
            for name in (rows[0] if rows else ())
            if name not in ("identity", "prompt")
        }
        return Scores(
            str(stored["name"]),
            tuple(str(row["identity"]) for row in rows),
            tuple(int(row["prompt"]) for row in rows),
            columns,
            tuple(RecogniserInfo(**r) for r in stored["recognisers"]),
            tuple(Measure(**m) for m in stored["fits"]),
            stored["settings"],
            {int(number): str(text) for number, text in stored["prompts"].items()},
            None if stored.get("gallery") is None else tuple(str(name) for name in stored["gallery"]),
            {str(key): str(value) for key, value in stored.get("scorers", {}).items()},
        )
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise InputError(f"{path} is no scores.json of this command ({e!r}); give the one in the --out folder of another run") from None


def _number(value: float) -> float | None:
    return round(float(value), 6) if math.isfinite(value) else None
