"""Which rows a feature has, and what the encoder is to be given for each."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from data_pipeline import buckets, transforms
from data_pipeline.index import INLINE_IDENTITY, Index
from data_pipeline.records import Record, Records
from infu_jax.errors import InputError
from infu_jax.train_config import DataConfig, Feature

CLIP_LENGTH = 77  # as in infu_jax.pipeline


@dataclass(frozen=True)
class Work:
    """The rows of one feature of one split: where they go, and what the encoder is to be given for each."""

    rows: np.ndarray
    """See `features.Features.read`."""
    groups: tuple[tuple[str, int], ...]
    """Name and number of rows of each group."""
    load: Callable[[str, int], np.ndarray]
    """The encoder's input for a row: group and row inside the group -> array. Threads call it."""
    unit: str


def plan_work(feature: Feature, cfg: DataConfig, source: Records, index: Index, tokenizer) -> Work:
    """What a run with the settings `cfg` wants of a feature; see the table in `data_pipeline.features`."""
    if feature in ("latents", "control"):
        return _pictures(feature, cfg, source, index)
    if feature == "arcface":
        return _faces(source, index)
    return _captions(cfg.t5_length if feature == "t5" else CLIP_LENGTH, source, index, tokenizer)


def _pictures(feature: Feature, cfg: DataConfig, source: Records, index: Index) -> Work:
    """A row a record, sorted by bucket; for control a black image of each bucket."""
    table = buckets.buckets(cfg.resolution, cfg.bucket_step, cfg.max_aspect)
    numbers = buckets.nearest(index.sizes, table)
    order = np.argsort(numbers, kind="stable").astype(np.uint32)  # the record of each row
    rows = np.empty_like(order)
    rows[order] = np.arange(len(order), dtype=np.uint32)
    counts = np.bincount(numbers, minlength=len(table))
    used = {f"{height}x{width}": (number, (height, width)) for number, (height, width) in enumerate(table) if counts[number]}
    starts = np.concatenate([[0], np.cumsum(counts)])
    groups = [(name, int(counts[number])) for name, (number, _) in used.items()]
    if feature == "control":
        groups += [(f"black-{name}", 1) for name in used]

    def load(group: str, row: int) -> np.ndarray:
        if group.startswith("black-"):
            return transforms.control_image(used[group.removeprefix("black-")][1], None)
        number, bucket = used[group]
        at = int(order[starts[number] + row])
        record = source[at]
        with _named(source, at, record):
            if feature == "latents":
                return transforms.fitted(record.target, record.target_size, bucket, record.target_keypoints, record.target_face)[0]
            fit = transforms.fit(record.target_size, bucket, record.target_keypoints, record.target_face)
            return transforms.control_image(bucket, fit.points(record.target_keypoints))

    return Work(rows, tuple(groups), load, "pictures")


def _captions(length: int, source: Records, index: Index, tokenizer) -> Work:
    """A row a caption, in the order of the records, and the empty prompt."""
    rows = np.concatenate([[0], np.cumsum(index.captions, dtype=np.uint64)])
    count = int(rows[-1])

    def load(group: str, row: int) -> np.ndarray:
        if group == "empty":
            return tokenizer.encode([""], length)[0]
        at = int(np.searchsorted(rows, row, side="right")) - 1
        return tokenizer.encode([source[at].captions[row - int(rows[at])].text], length)[0]

    groups = ((("captions", count),) if count else ()) + (("empty", 1),)
    return Work(rows, groups, load, "captions")


def _faces(source: Records, index: Index) -> Work:
    """The face of each target, followed by that of its inline identity where there is one."""
    inline = (index.flags & INLINE_IDENTITY) > 0
    rows = np.concatenate([[0], np.cumsum(1 + inline.astype(np.uint64))])

    def load(group: str, row: int) -> np.ndarray:
        at = int(np.searchsorted(rows, row, side="right")) - 1
        record = source[at]
        with _named(source, at, record):
            if row == rows[at]:
                return transforms.identity_crop(record.target, record.target_size, record.target_keypoints)
            return transforms.identity_crop(record.identity, record.identity_size, record.identity_keypoints)

    return Work(rows, (("faces", int(rows[-1])),), load, "faces")


@contextlib.contextmanager
def _named(source: Records, number: int, record: Record) -> Iterator[None]:
    try:
        yield
    except InputError as e:
        raise InputError(f"{source.directory}, split {source.split}, record {number} ({record.key}): {e}") from e
