"""What is in a dataset: how many there are of what, and pairs as training would show them. For the page and the sheet of `data_pipeline.show`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import tyro
from etils import epath

from infu_jax.errors import InputError
from infu_jax.train_config import DataConfig

DEFAULTS = DataConfig()
CELL = 224  # height of a picture


@dataclass(frozen=True)
class Wanted:
    """What is to be looked at, and how."""

    dataset: tyro.conf.Positional[str]
    """Dataset that python -m data_pipeline.build wrote."""
    split: str = "train"
    """Part of the dataset that pairs and histograms are of."""
    pairs: int = 24
    """How many pairs to show."""
    pairing: Literal["auto", "spss", "spms"] = "auto"
    """As data.pairing of a run. auto: spms if people have several pictures or records carry an identity photo, or else spss."""
    identities: Literal["real", "any"] = DEFAULTS.identities
    """As data.identities of a run: what may be an identity in spms."""
    resolution: int = DEFAULTS.resolution
    """As data.resolution of a run: class of the aspect-ratio buckets."""
    bucket_step: int = DEFAULTS.bucket_step
    """As data.bucket_step of a run."""
    max_aspect: float = DEFAULTS.max_aspect
    """As data.max_aspect of a run."""
    seed: int = 0
    """Which pairs are drawn."""
    scan: int = 2000
    """Records that are read for the scores and the sources of captions, evenly over the split."""


@dataclass(frozen=True)
class Split:
    """Counts of one split."""

    records: int
    people: int
    captions: int
    synthetic: int
    inline: int


@dataclass(frozen=True, eq=False)
class Pair:
    """One pair. Pictures are RGB thumbnails of CELL pixels of height."""

    identity: np.ndarray
    """The photo that shows the face, with its keypoints."""
    target: np.ndarray
    """The target as stored, with face and keypoints; what its bucket cuts off is dimmed."""
    fitted: np.ndarray
    """What the model learns to paint."""
    control: np.ndarray
    record: Any
    """`records.Record` of the target."""
    shown_by: str
    """Where the identity is from."""
    bucket: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Found:
    """Everything that is shown."""

    name: str
    split: str
    splits: Mapping[str, Split]
    pairing: str
    targets: int
    """Pairs of an epoch."""
    notes: tuple[str, ...]
    buckets: Mapping[tuple[int, int], int]
    pictures_of: Mapping[int, int]
    """Number of pictures -> how many people have that many."""
    captions_of: Mapping[int, int]
    """Number of captions -> how many records have that many."""
    scanned: int
    sources: Mapping[str, int]
    scores: Mapping[str, np.ndarray]
    features: Sequence[Sequence[str]]
    """Rows of: feature, split, settings, stored as, size of a row."""
    rejected: Mapping[str, int]
    """Rows that the build left out, for each reason; empty where there is no report."""
    pairs: Sequence[Pair]


def look(wanted: Wanted) -> Found:
    """Read what is to be shown."""
    from data_pipeline import index, pairs, records
    from data_pipeline.buckets import buckets, nearest

    folder = epath.Path(wanted.dataset)
    names = [path.name for path in (folder / "index").iterdir()] if (folder / "index").is_dir() else []
    if wanted.split not in names:
        raise InputError(f"{folder} has no split {wanted.split}; it has {', '.join(sorted(names)) or 'none: give a folder that data_pipeline.build wrote'}")
    indexes = {name: index.open_index(folder, name) for name in sorted(names)}
    mine = indexes[wanted.split]
    pairing = wanted.pairing
    if pairing == "auto":
        pairing = "spms" if mine.records > mine.people or (mine.flags & index.INLINE_IDENTITY).any() else "spss"
    cfg = DataConfig(
        paths=(wanted.dataset,), split=wanted.split, pairing=pairing, identities=wanted.identities,
        resolution=wanted.resolution, bucket_step=wanted.bucket_step, max_aspect=wanted.max_aspect,
    )  # fmt: skip
    plan = pairs.Plan(cfg, [mine], batch_size=1, seed=wanted.seed)
    targets = plan.steps_per_epoch()
    source = records.open_records(folder, wanted.split)
    table = buckets(wanted.resolution, wanted.bucket_step, wanted.max_aspect)
    counts = np.bincount(nearest(mine.sizes, table), minlength=len(table))
    scanned = np.unique(np.linspace(0, mine.records - 1, min(wanted.scan, mine.records)).astype(int))
    sources: Counter[str] = Counter()
    scores: dict[str, list[float]] = {}
    for number in scanned:
        record = source[number]
        sources.update(caption.source for caption in record.captions)
        for name, value in record.scores.items():
            scores.setdefault(name, []).append(value)
    return Found(
        name=folder.name,
        split=wanted.split,
        splits={name: _count(found) for name, found in indexes.items()},
        pairing=pairing,
        targets=targets,
        notes=plan.unseen(),
        buckets={bucket: int(count) for bucket, count in zip(table, counts) if count},
        pictures_of=_histogram(np.diff(mine.offsets.astype(np.int64))),
        captions_of=_histogram(mine.captions),
        scanned=len(scanned),
        sources=dict(sources.most_common()),
        scores={name: np.array(values) for name, values in sorted(scores.items())},
        features=_features(folder, indexes),
        rejected=_rejected(folder),
        pairs=[_pair(source, plan.rows(step)) for step in range(min(wanted.pairs, targets))],
    )


def _count(found) -> Split:
    from data_pipeline import index

    flags = np.asarray(found.flags)
    return Split(
        found.records,
        found.people,
        int(found.captions.sum(dtype=np.int64)),
        int(np.count_nonzero(flags & index.SYNTHETIC)),
        int(np.count_nonzero(flags & index.INLINE_IDENTITY)),
    )


def _histogram(values: np.ndarray) -> dict[int, int]:
    found, counts = np.unique(np.asarray(values), return_counts=True)
    return {int(value): int(count) for value, count in zip(found, counts)}


def _features(folder: epath.Path, splits: Iterable[str]) -> list[tuple[str, ...]]:
    from data_pipeline import features

    rows = []
    for split in splits:
        for feature in features.available(folder, split):
            place = features.folder_of(folder, feature, split) / features.PLAN
            plan = features.Plan.from_json(place.read_text(), place)
            settings = ", ".join(f"{name} {value}" for name, value in plan.settings.items()) or "none"
            size = max(plan.row_bytes(group) for group in plan.groups)
            rows.append((feature, split, settings, plan.dtype, f"{size / 2**10:,.1f} KiB", f"{int(plan.starts[-1]):,}"))
    return rows


def _rejected(folder: epath.Path) -> dict[str, int]:
    path = folder / "report" / "report.json"
    if not path.exists():
        return {}
    try:
        return {str(reason): int(count) for reason, count in json.loads(path.read_text())["rejected"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise InputError(f"{path} is not the report of a build ({e!r}); move it away") from None


def ranges(counts: Mapping[int, int], most: int = 12) -> list[tuple[str, int]]:
    """A bar a value, or for many values a bar for each doubling: 8-15, 16-31, ..."""
    if len(counts) <= most:
        return [(str(value), count) for value, count in sorted(counts.items())]
    bars: Counter[int] = Counter()
    for value, count in counts.items():
        bars[value.bit_length()] += count
    names = {bits: (1 << bits >> 1, (1 << bits) - 1) for bits in bars}
    return [(str(low) if low == high else f"{low}-{high}", bars[bits]) for bits, (low, high) in sorted(names.items())]


# Pictures -----------------------------------------------------------------------------------------


def _pair(source, rows) -> Pair:
    """The first of a batch's rows."""
    from data_pipeline import transforms

    number, identity, inline = int(rows.targets[0]), int(rows.identities[0]), bool(rows.inline[0])
    record = source[number]
    giver = record if identity == number else source[identity]
    if inline:
        photo, points, box = transforms.decode(giver.identity, giver.identity_size), giver.identity_keypoints, giver.identity_face
        shown_by = "a photo in the record"
    else:
        photo, points, box = transforms.decode(giver.target, giver.target_size), giver.target_keypoints, giver.target_face
        shown_by = "the same picture" if identity == number else f"picture {giver.key}"
    target = transforms.decode(record.target, record.target_size)
    how = transforms.fit(record.target_size, rows.bucket, record.target_keypoints, record.target_face)
    fitted, _ = transforms.fitted(record.target, record.target_size, rows.bucket, record.target_keypoints, record.target_face)
    cut = tuple(side * how.reduction for side in how.box)
    return Pair(
        identity=_drawn(photo, points, box),
        target=_drawn(target, record.target_keypoints, record.target_face, cut),
        fitted=_thumbnail(fitted)[0],
        control=_thumbnail(transforms.control_image(rows.bucket, how.points(record.target_keypoints)))[0],
        record=record,
        shown_by=shown_by,
        bucket=rows.bucket,
    )


def _thumbnail(image: np.ndarray) -> tuple[np.ndarray, float]:
    """The picture at CELL pixels of height, at most twice as wide, and its scale."""
    import cv2

    scale = min(CELL / image.shape[0], 2 * CELL / image.shape[1])
    size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC), scale


def _drawn(image: np.ndarray, points: np.ndarray, box: np.ndarray, cut: tuple[int, int, int, int] | None = None) -> np.ndarray:
    """A thumbnail with five dots, the face's box, and all outside of `cut` (left, top, right, bottom) dimmed."""
    from PIL import Image, ImageDraw

    from infu_jax import face

    small, scale = _thumbnail(image)
    if cut is not None:
        left, top, right, bottom = (round(side * scale) for side in cut)
        inside = small[top:bottom, left:right].copy()
        small = (small * 0.35).astype(np.uint8)
        small[top:bottom, left:right] = inside
    picture = Image.fromarray(small)
    draw = ImageDraw.Draw(picture)
    draw.rectangle([float(side) * scale for side in box], outline=(255, 255, 255))
    for (x, y), colour in zip(points * scale, face.COLOURS):
        draw.ellipse([x - 3, y - 3, x + 3, y + 3], fill=colour, outline=(255, 255, 255))
    return np.asarray(picture)
