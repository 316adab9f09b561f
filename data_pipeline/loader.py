"""Batches for training: the plan's steps, read, drawn and fitted by Grain's threads and worker processes.

    with open_loader(cfg.data, batch_size=256, seed=cfg.seed, t5_tokenizer=..., clip_tokenizer=...) as loader:
        for batch in loader.iterate(start=step): ...

A batch is a flat dict of NumPy arrays: b rows of this process, pictures of H x W pixels (the step's bucket, the same on every process),
h x w positions of the autoencoder (1 / 8 of them), z of its channels. Of every two lines below a batch has one; the second are features
computed ahead by `data_pipeline.precompute`.

    pixels          (b, H, W, 3) uint8      RGB, the target fitted to the bucket
    latent_mean, latent_logvar (b, h, w, z) float32    "latents": its moments

    control         (b, H, W, 3) uint8      RGB, keypoints on black, or all black
    control_mean, control_logvar (b, h, w, z) float32  "control": its moments

    id_crop         (b, 112, 112, 3) uint8  BGR, ArcFace's crop of the identity
    id_embedding    (b, E) float32          "arcface": its embedding, of length 1

    t5_ids          (b, T) int32            T5's tokens
    txt             (b, T, E) as stored     "t5": its output

    clip_ids        (b, 77) int32           CLIP's tokens
    y               (b, V) float32          "clip": its pooled output

    face_box        (b, 4) float32          left, top, right, bottom in pixels of the bucket; only if asked for
    face_points     (b, 5, 2) float32       the face's keypoints in pixels of the bucket; only if asked for

    id_keep         (b,) bool               False: the face embedding is to be zeroed
    record          (b,) int64              number of the target in all datasets
    epoch           (b,) int32
"""

import multiprocessing
import os
import signal
import sys
import threading
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grain
import numpy as np
from absl import flags

from data_pipeline import features as stored
from data_pipeline import samples
from data_pipeline.buckets import Bucket
from data_pipeline.pairs import VERSION, Plan, Rows, open_plan
from data_pipeline.records import open_records
from infu_jax.errors import InputError
from infu_jax.tokenizers import Tokenizer
from infu_jax.train_config import DataConfig, FacePlace, Feature

Batch = dict[str, np.ndarray]


def open_loader(
    cfg: DataConfig,
    *,
    batch_size: int,
    seed: int,
    t5_tokenizer: Tokenizer | None = None,
    clip_tokenizer: Tokenizer | None = None,
    faces: tuple[FacePlace, ...] = (),
    process_index: int = 0,
    process_count: int = 1,
) -> "Loader":
    """Open the datasets of `cfg`.

    batch_size: of all processes together; process_index of process_count gets its part of every batch.
    t5_tokenizer, clip_tokenizer: needed unless the features t5 and clip are there.
    faces: say where the faces are, too; then records are read in any case.

    Raises InputError where a dataset, its index or a feature is missing or does not fit, or no bucket fills a batch. Warns once of pictures
    that are never seen.
    """
    if not cfg.paths:
        raise InputError("data.paths is empty; name a dataset that python -m data_pipeline.build wrote")
    if batch_size % process_count or not 0 <= process_index < process_count:
        raise InputError(f"batch size {batch_size}, process {process_index} of {process_count}; every process needs as many rows")
    plan = open_plan(cfg, batch_size=batch_size, seed=seed)
    plan.steps_per_epoch()  # raises when there are none
    for sentence in plan.unseen():
        warnings.warn(sentence, stacklevel=2)
    found = _open_features(cfg, plan)
    steps = _steps(cfg, seed, found, t5_tokenizer, clip_tokenizer, faces)
    return Loader(plan, steps, tuple(found), process_index=process_index, process_count=process_count)


def _open_features(cfg: DataConfig, plan: Plan) -> dict[Feature, tuple[stored.Features, ...]]:
    """The features that are read, of each dataset."""
    if cfg.features == "auto":
        have = [set(stored.available(path, cfg.split)) for path in cfg.paths]
        wanted = [feature for feature in stored.FEATURES if all(feature in names for names in have)]
        if partly := [feature for feature in stored.FEATURES if feature in set.union(*have) - set(wanted)]:
            lacking = [str(path) for path, names in zip(cfg.paths, have) if not names.issuperset(partly)]
            warnings.warn(f"features {', '.join(partly)} are not used: {', '.join(lacking)} lacks some or all of them", stacklevel=3)
    else:
        wanted = [feature for feature in stored.FEATURES if feature in cfg.features]
    return {
        feature: tuple(
            stored.open_features(path, cfg.split, feature, fingerprint=index.fingerprint, settings=stored.settings_of(feature, cfg))
            for path, index in zip(cfg.paths, plan.indexes)
        )
        for feature in wanted
    }


def _steps(
    cfg: DataConfig,
    seed: int,
    found: dict[Feature, tuple[stored.Features, ...]],
    t5_tokenizer: Tokenizer | None,
    clip_tokenizer: Tokenizer | None,
    faces: tuple[FacePlace, ...],
) -> tuple[samples.Step, ...]:
    """What is done for every row, in this order. Records are read only where a picture, a caption or its source is needed."""
    missing = set(stored.FEATURES) - set(found)
    for feature, tokenizer in (("t5", t5_tokenizer), ("clip", clip_tokenizer)):
        if feature in missing and tokenizer is None:
            raise InputError(f"feature {feature} is not read, so {feature}_tokenizer is needed")
    datasets = tuple(open_records(path, cfg.split) for path in cfg.paths)
    steps: list[samples.Step] = []
    if missing - {"arcface"} or cfg.caption_weights or faces:
        steps.append(samples.ReadTarget(datasets))
    if "arcface" in missing:
        steps.append(samples.ReadIdentity(datasets))
    steps.append(samples.Draw(seed, dict(cfg.caption_weights), cfg.prompt_dropout, cfg.id_dropout, cfg.keypoint_share))
    steps.append(samples.ReadLatents(found["latents"]) if "latents" in found else samples.FitTarget(datasets))
    steps.append(samples.ReadControl(found["control"]) if "control" in found else samples.DrawControl())
    steps.append(samples.ReadIdentityEmbedding(found["arcface"]) if "arcface" in found else samples.CropIdentity(datasets))
    steps.append(samples.ReadText("txt", found["t5"]) if "t5" in found else samples.Tokenize("t5_ids", t5_tokenizer, cfg.t5_length))
    steps.append(samples.ReadText("y", found["clip"]) if "clip" in found else samples.Tokenize("clip_ids", clip_tokenizer, samples.CLIP_LENGTH))
    if faces:
        steps.append(samples.FacePlaces(faces))
    return tuple(steps)


@dataclass(frozen=True, eq=False)
class Steps:
    """Grain's source: element s is what this process shows at step s."""

    plan: Plan
    first: int
    last: int
    """Rows [first, last) of the global batch."""

    def __len__(self) -> int:
        return sys.maxsize  # training ends it

    def __getitem__(self, step: int) -> Rows:
        return self.plan.rows(int(step), self.first, self.last)


class Assemble(grain.transforms.Map):
    """A step's rows -> its batch, several rows at once."""

    def __init__(self, plan: Plan, steps: tuple[samples.Step, ...], threads: int):
        self.plan, self.steps, self.threads = plan, steps, threads
        self._lock, self._pool = threading.Lock(), None

    def __reduce__(self):
        return Assemble, (self.plan, self.steps, self.threads)

    def map(self, rows: Rows) -> Batch:
        batch = {name: np.empty(shape, dtype) for name, (shape, dtype) in shapes(self.steps, rows.bucket, len(rows.targets)).items()}
        with self._lock:
            if self._pool is None:
                import cv2

                # Rows run side by side already.
                cv2.setNumThreads(1)
                self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="data-rows")
        for _ in self._pool.map(lambda row: self._assemble(rows, row, batch), range(len(rows.targets))):
            pass  # raises what a row raised
        return batch

    def _assemble(self, rows: Rows, row: int, batch: Batch) -> None:
        sample = samples.Sample(
            epoch=rows.epoch,
            bucket=rows.bucket,
            target=self.plan.place(rows.targets[row]),
            identity=self.plan.place(rows.identities[row]),
            inline=bool(rows.inline[row]),
            number=int(rows.targets[row]),
            captions=int(rows.captions[row]),
            out={name: array[row, ...] for name, array in batch.items()},
        )
        for step in self.steps:
            step(sample)


def shapes(steps: tuple[samples.Step, ...], bucket: Bucket, rows: int) -> samples.Arrays:
    """Shape and type of each array of a batch."""
    return {name: ((rows, *shape), dtype) for step in steps for name, (shape, dtype) in step.arrays(bucket).items()}


def _own(batch: Batch) -> Batch:
    """Arrays that outlive the worker processes: those are in shared memory, and Python complains of what is still in use when it ends."""
    return {name: np.array(array) for name, array in batch.items()}


def _live_as_long_as_the_parent(worker: int, workers: int) -> None:
    """What a worker process begins with.

    Ctrl-C and scancel signal all processes at once. It is for the parent to say what that means: a training run saves first, which takes
    batches to come to. Grain ends workers by an event, or by SIGKILL; of a parent that was killed it does not hear.
    """
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_IGN)

    def watch():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, name="data-parent", daemon=True).start()


class Loader:
    """One process's batches. Close it, or use it in a with statement: worker processes then end at once."""

    def __init__(self, plan: Plan, steps: tuple[samples.Step, ...], features: tuple[Feature, ...], *, process_index: int, process_count: int):
        self.plan, self.features = plan, features
        self._steps = steps
        self._rows = plan.batch_size // process_count
        cfg = plan.cfg
        source = Steps(plan, process_index * self._rows, (process_index + 1) * self._rows)
        self.dataset: grain.MapDataset[Batch] = grain.MapDataset.source(source).map(Assemble(plan, steps, cfg.threads))
        """Endless; element s is this process's part of global batch s."""
        self._iterators: weakref.WeakSet[grain.DatasetIterator[Batch]] = weakref.WeakSet()

    def iterate(self, start: int = 0) -> grain.DatasetIterator[Batch]:
        """The batches of steps start, start + 1, ... with the settings' threads, buffers and worker processes.

        As the plan is all there is to know, a run resumes exactly by the number of its next step, with any number of processes and workers.
        Grain's get_state and set_state work too; their states count from `start` and depend on the number of workers.

        A script that asks for worker processes must guard its entry with `if __name__ == "__main__"`: they import it.
        """
        cfg = self.plan.cfg
        ahead = -(-cfg.prefetch // max(1, cfg.workers))  # batches in each process
        # The rows of a batch have threads of their own (Assemble); these only keep several batches in the making.
        batches = self.dataset[start:].to_iter_dataset(grain.ReadOptions(num_threads=ahead, prefetch_buffer_size=ahead))
        if cfg.workers:
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()  # Grain asks absl, which wants to have seen a command line
            how = grain.MultiprocessingOptions(num_workers=cfg.workers, per_worker_buffer_size=1)
            batches = batches.mp_prefetch(how, worker_init_fn=_live_as_long_as_the_parent).map(_own)
        iterator = iter(batches)
        self._iterators.add(iterator)
        return iterator

    def steps_per_epoch(self, epoch: int = 0) -> int:
        return self.plan.steps_per_epoch(epoch)

    def bucket_of(self, step: int) -> Bucket:
        """Height and width of a step's pictures."""
        return self.plan.bucket(step)

    @property
    def buckets(self) -> tuple[Bucket, ...]:
        """All that occur."""
        return self.plan.full_buckets

    def example(self, bucket: Bucket) -> Batch:
        """A batch of zeros, as a step of this bucket has it: for its shapes and types."""
        return {name: np.zeros(shape, dtype) for name, (shape, dtype) in shapes(self._steps, bucket, self._rows).items()}

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What decides which records a step shows, and how they are drawn, as JSON values. A run that resumes with another sees other data."""
        cfg = self.plan.cfg
        order = ("split", "pairing", "identities", "max_per_person", "resolution", "bucket_step", "max_aspect")
        drawn = ("prompt_dropout", "id_dropout", "keypoint_share", "t5_length")
        return {
            "order": VERSION,
            "datasets": [index.fingerprint for index in self.plan.indexes],
            "records": self.plan.records,
            "batch_size": self.plan.batch_size,
            "seed": self.plan.seed,
            **{name: getattr(cfg, name) for name in (*order, *drawn)},
            "caption_weights": dict(sorted(cfg.caption_weights.items())),
        }

    def close(self) -> None:
        """Ends the worker processes and threads of all iterators."""
        for iterator in list(self._iterators):
            iterator.close()

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
