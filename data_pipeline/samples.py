"""From a row of the plan to a row of a batch: one class per step. `data_pipeline.loader` says which steps a run takes, and in which order.

Steps are picklable (worker processes get copies) and called by many threads at once: what they know of a row is in its `Sample`.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from data_pipeline import transforms
from data_pipeline.buckets import Bucket
from data_pipeline.features import Features
from data_pipeline.pairs import draw
from data_pipeline.records import Record, Records
from infu_jax import face
from infu_jax.errors import InputError
from infu_jax.tokenizers import Tokenizer
from infu_jax.train_config import FACE_PLACES, FacePlace

CLIP_LENGTH = 77

Arrays = dict[str, tuple[tuple[int, ...], Any]]
"""Name of each array of a batch, shape of one row, type."""


@dataclass(eq=False)
class Sample:
    """One row of a batch in the making. Steps add what later ones need, and fill their part of `out`."""

    epoch: int
    bucket: Bucket
    target: tuple[int, int]
    """Dataset and record number in it."""
    identity: tuple[int, int]
    """Likewise: whose face it is."""
    inline: bool
    """Whether the face is the identity photo inside that record, rather than its target."""
    number: int
    """The target's number in all datasets."""
    captions: int
    """How many the target has."""
    out: dict[str, np.ndarray]
    """This row of each array of the batch, to be filled whole."""
    target_record: Record | None = None
    identity_record: Record | None = None
    caption: int | None = None
    """Number of the caption; None is the empty prompt."""
    keypoints: bool = False
    """Whether the control image shows them."""
    decoded: np.ndarray | None = None
    """The target at full size, if it was decoded so."""


@runtime_checkable
class Step(Protocol):
    def arrays(self, bucket: Bucket) -> Arrays:
        """What it fills in a batch of a bucket."""

    def __call__(self, sample: Sample) -> None: ...


# Reading and drawing lots -------------------------------------------------------------------------


@dataclass(frozen=True)
class ReadTarget:
    datasets: tuple[Records, ...]

    def arrays(self, bucket: Bucket) -> Arrays:
        return {}

    def __call__(self, sample: Sample) -> None:
        dataset, number = sample.target
        sample.target_record = self.datasets[dataset][number]


@dataclass(frozen=True)
class ReadIdentity:
    """The record that shows the face; nothing is read again where that is the target's."""

    datasets: tuple[Records, ...]

    def arrays(self, bucket: Bucket) -> Arrays:
        return {}

    def __call__(self, sample: Sample) -> None:
        dataset, number = sample.identity
        same = sample.identity == sample.target and sample.target_record is not None
        sample.identity_record = sample.target_record if same else self.datasets[dataset][number]


@dataclass(frozen=True)
class Draw:
    """Which caption, if any, whether the identity is kept, and whether keypoints are shown: a function of (seed, epoch, record).

    Each lot has a number of its own, so that changing one share leaves the other choices as they were. A record without captions, or with
    none of a source that weighs more than 0, has the empty prompt.
    """

    seed: int
    weights: Mapping[str, float]
    prompt_dropout: float
    id_dropout: float
    keypoint_share: float

    def arrays(self, bucket: Bucket) -> Arrays:
        return {"id_keep": ((), np.bool_), "record": ((), np.int64), "epoch": ((), np.int32)}

    def __call__(self, sample: Sample) -> None:
        which, prompt, identity, control = draw(self.seed, "conditions", sample.epoch, sample.number).random(4)
        sample.caption = None if prompt < self.prompt_dropout else self._caption(sample, which)
        sample.keypoints = bool(control < self.keypoint_share)
        sample.out["id_keep"][...] = identity >= self.id_dropout
        sample.out["record"][...] = sample.number
        sample.out["epoch"][...] = sample.epoch

    def _caption(self, sample: Sample, lot: float) -> int | None:
        if sample.target_record is None:  # so all weigh the same
            return min(int(lot * sample.captions), sample.captions - 1) if sample.captions else None
        weights = np.cumsum([self.weights.get(caption.source, 1.0) for caption in sample.target_record.captions])
        if not len(weights) or weights[-1] <= 0:
            return None
        return min(int(np.searchsorted(weights, lot * weights[-1], side="right")), len(weights) - 1)  # the product may round up


@dataclass(frozen=True)
class FacePlaces:
    """Where the target's face is in the bucket, by its box (left, top, right, bottom), its five keypoints or both."""

    names: tuple[FacePlace, ...]

    def arrays(self, bucket: Bucket) -> Arrays:
        return {name: (FACE_PLACES[name], np.float32) for name in self.names}

    def __call__(self, sample: Sample) -> None:
        record = sample.target_record
        how = transforms.fit(record.target_size, sample.bucket, record.target_keypoints, record.target_face)
        given = {"face_box": record.target_face.reshape(2, 2), "face_points": record.target_keypoints}
        for name in self.names:
            sample.out[name][...] = how.points(given[name]).reshape(FACE_PLACES[name])


# From pictures and captions -----------------------------------------------------------------------


@dataclass(frozen=True)
class FitTarget:
    datasets: tuple[Records, ...]

    def arrays(self, bucket: Bucket) -> Arrays:
        return {"pixels": ((*bucket, 3), np.uint8)}

    def __call__(self, sample: Sample) -> None:
        record = sample.target_record
        with _named(self.datasets, sample.target, record):
            how = transforms.fit(record.target_size, sample.bucket, record.target_keypoints, record.target_face)
            image = transforms.decode(record.target, record.target_size, how.reduction)
        transforms.fill(image, how, sample.out["pixels"])
        if how.reduction == 1:
            sample.decoded = image


@dataclass(frozen=True)
class DrawControl:
    def arrays(self, bucket: Bucket) -> Arrays:
        return {"control": ((*bucket, 3), np.uint8)}

    def __call__(self, sample: Sample) -> None:
        record, points = sample.target_record, None
        if sample.keypoints:
            points = transforms.fit(record.target_size, sample.bucket, record.target_keypoints, record.target_face).points(record.target_keypoints)
        transforms.control_image(sample.bucket, points, sample.out["control"])


@dataclass(frozen=True)
class CropIdentity:
    datasets: tuple[Records, ...]

    def arrays(self, bucket: Bucket) -> Arrays:
        return {"id_crop": ((112, 112, 3), np.uint8)}

    def __call__(self, sample: Sample) -> None:
        record = sample.identity_record
        with _named(self.datasets, sample.identity, record):
            if sample.inline:
                crop = transforms.identity_crop(record.identity, record.identity_size, record.identity_keypoints)
            elif sample.decoded is not None and sample.identity == sample.target:
                crop = face.align(sample.decoded, record.target_keypoints)
            else:
                crop = transforms.identity_crop(record.target, record.target_size, record.target_keypoints)
        sample.out["id_crop"][...] = crop


@contextlib.contextmanager
def _named(datasets: tuple[Records, ...], place: tuple[int, int], record: Record) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        dataset, number = place
        where = f"{datasets[dataset].directory}, split {datasets[dataset].split}, record {number} (key {record.key})"
        raise InputError(f"{where}: {error}; remove it from the manifest and build the dataset again") from error


@dataclass(frozen=True)
class Tokenize:
    name: str
    """Of the array: t5_ids or clip_ids."""
    tokenizer: Tokenizer
    length: int

    def arrays(self, bucket: Bucket) -> Arrays:
        return {self.name: ((self.length,), np.int32)}

    def __call__(self, sample: Sample) -> None:
        text = "" if sample.caption is None else sample.target_record.captions[sample.caption].text
        sample.out[self.name][...] = self.tokenizer.encode([text], self.length)[0]


# From features computed ahead ---------------------------------------------------------------------


@dataclass(frozen=True)
class ReadLatents:
    features: tuple[Features, ...]
    """Of each dataset."""

    def arrays(self, bucket: Bucket) -> Arrays:
        return _moments("latent", self.features, bucket)

    def __call__(self, sample: Sample) -> None:
        dataset, number = sample.target
        sample.out["latent_mean"][...], sample.out["latent_logvar"][...] = _float32(self.features[dataset].read(number))


@dataclass(frozen=True)
class ReadControl:
    features: tuple[Features, ...]

    def arrays(self, bucket: Bucket) -> Arrays:
        return _moments("control", self.features, bucket)

    def __call__(self, sample: Sample) -> None:
        dataset, number = sample.target
        height, width = sample.bucket
        stored = self.features[dataset]
        moments = stored.read(number) if sample.keypoints else stored.constant(f"black-{height}x{width}")
        sample.out["control_mean"][...], sample.out["control_logvar"][...] = _float32(moments)


@dataclass(frozen=True)
class ReadIdentityEmbedding:
    features: tuple[Features, ...]

    def arrays(self, bucket: Bucket) -> Arrays:
        return {"id_embedding": (_row("faces", self.features), np.float32)}

    def __call__(self, sample: Sample) -> None:
        dataset, number = sample.identity
        sample.out["id_embedding"][...] = self.features[dataset].read(number, item=int(sample.inline))


@dataclass(frozen=True)
class ReadText:
    name: str
    """Of the array: txt or y."""
    features: tuple[Features, ...]

    def arrays(self, bucket: Bucket) -> Arrays:
        stored = np.result_type(*(np.dtype(features.plan.dtype) for features in self.features))
        return {self.name: (_row("empty", self.features), np.float32 if self.name == "y" else stored)}

    def __call__(self, sample: Sample) -> None:
        dataset, number = sample.target
        stored = self.features[dataset]
        sample.out[self.name][...] = stored.constant("empty") if sample.caption is None else stored.read(number, item=sample.caption)


def _float32(values: np.ndarray) -> np.ndarray:
    """NumPy converts float16 one by one; OpenCV does in a tenth of the time."""
    if values.dtype != np.float16:
        return values
    import cv2

    return cv2.convertFp16(values.view(np.int16).reshape(len(values), -1)).reshape(values.shape)


def _moments(name: str, features: Sequence[Features], bucket: Bucket) -> Arrays:
    _, *latent = _row(f"{bucket[0]}x{bucket[1]}", features)
    return {f"{name}_{part}": (tuple(latent), np.float32) for part in ("mean", "logvar")}


def _row(group: str, features: Sequence[Features]) -> tuple[int, ...]:
    """The shape of a row of a group, which datasets must agree on."""
    shapes = {str(stored.folder): found.shape for stored in features for found in stored.plan.groups if found.name == group}
    if len(set(shapes.values())) != 1:
        stated = ", ".join(f"{folder}: {shape}" for folder, shape in shapes.items())
        raise InputError(f"features of {group} have {'several shapes' if shapes else 'no rows'} ({stated}); compute them with the same models")
    return next(iter(shapes.values()))
