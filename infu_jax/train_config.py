"""Settings of a training run, as frozen dataclasses; `configs/*.py` fill them in and the command line overrides them.

What the paper does not state is an assumption of this project and says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from infu_jax.errors import InputError

Feature = Literal["latents", "control", "t5", "clip", "arcface"]


@dataclass(frozen=True)
class DataConfig:
    """Which pictures a run sees, in which order and form (`data_pipeline.loader`)."""

    paths: tuple[Path, ...] = ()
    """Datasets that `python -m data_pipeline.build` wrote. Several are read as one."""
    split: str = "train"
    """Part of the datasets: train or validation."""
    pairing: Literal["spss", "spms"] = "spss"
    """spss (stage 1): a photo is identity and target. spms (stage 2): the identity is a different picture of the same person."""
    identities: Literal["real", "any"] = "real"
    """spms: which pictures may serve as identity: only real photos (the paper), or synthetic ones too."""
    max_per_person: int | None = None
    """Targets of one person in an epoch, other ones each time; None is all of them. Keeps people with many pictures from drowning the others."""
    resolution: int = 1024
    """Class of the aspect-ratio buckets: pictures have about resolution x resolution pixels. The paper does not state its own."""
    bucket_step: int = 64
    """Sides of the buckets are multiples of this; itself a multiple of 16."""
    max_aspect: float = 2.0
    """Longest bucket: long side / short side."""
    caption_weights: Mapping[str, float] = field(default_factory=dict)
    """How often captions of each source are drawn, relative to each other; sources that are not named weigh 1."""
    prompt_dropout: float = 0.1
    """Share of samples with an empty prompt. Assumption: the paper states none."""
    id_dropout: float = 0.1
    """Share of samples with a zero face embedding. Assumption: the paper states none."""
    keypoint_share: float = 0.5
    """Share of samples with a keypoint image; the others get a black one. Assumption: the paper states none."""
    t5_length: int = 512
    """T5 tokens a prompt is padded or cut to."""
    features: Literal["auto"] | tuple[Feature, ...] = "auto"
    """What must have been computed ahead (`data_pipeline.precompute`): of latents, control, t5, clip, arcface. auto: what is there."""
    workers: int = 0
    """Processes that read and decode ahead on each host; 0 uses threads."""
    threads: int = 8
    """Reading threads in each process."""
    prefetch: int = 4
    """Batches that are kept ready on each host."""

    def __post_init__(self):
        _check(self.bucket_step > 0 and self.bucket_step % 16 == 0, f"data.bucket_step is {self.bucket_step}; a multiple of 16 is needed")
        _check(self.resolution >= self.bucket_step, f"data.resolution is {self.resolution}; at least data.bucket_step ({self.bucket_step}) is needed")
        _check(self.max_aspect >= 1, f"data.max_aspect is {self.max_aspect}; 1 or more is needed")
        for name in ("prompt_dropout", "id_dropout", "keypoint_share"):
            _check(0 <= getattr(self, name) <= 1, f"data.{name} is {getattr(self, name)}; a share between 0 and 1 is needed")
        _check(self.max_per_person is None or self.max_per_person >= 1, f"data.max_per_person is {self.max_per_person}; at least 1 is needed")
        _check(all(w >= 0 for w in self.caption_weights.values()), f"data.caption_weights are {dict(self.caption_weights)}; 0 or more is needed")
        _check(self.t5_length >= 1, f"data.t5_length is {self.t5_length}; at least 1 is needed (FLUX.1-dev uses 512)")
        _check(min(self.workers, self.threads - 1, self.prefetch - 1) >= 0, "data.workers is 0 or more; data.threads and data.prefetch are 1 or more")
        unknown = [] if self.features == "auto" else [name for name in self.features if name not in get_args(Feature)]
        _check(not unknown, f"data.features names {unknown}; the features are {', '.join(get_args(Feature))}")


def _check(ok: bool, message: str) -> None:
    if not ok:
        raise InputError(message)
