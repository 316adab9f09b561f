"""Settings of a training run, as frozen dataclasses; `configs/*.py` fill them in and the command line overrides them.

What the paper does not state is an assumption of this project and says so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal, get_args

from infu_jax.config import MeshConfig, Remat, ResamplerConfig, Weights
from infu_jax.errors import InputError

FacePlace = Literal["face_box", "face_points"]
FACE_PLACES: Mapping[FacePlace, tuple[int, ...]] = {"face_box": (4,), "face_points": (5, 2)}
"""Shapes of what a batch can say of where a face is."""
Feature = Literal["latents", "control", "t5", "clip", "arcface"]


@dataclass(frozen=True)
class DataConfig:
    """Which pictures a run sees, in which order and form (`data_pipeline.loader`)."""

    paths: tuple[str, ...] = ()
    """Datasets that `python -m data_pipeline.build` wrote, on disk or at gs:// addresses. Several are read as one."""
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


@dataclass(frozen=True)
class ModelsConfig:
    """The models of a run and where their weights come from: local folders and files, PyTorch's or converted ones."""

    base: Path = Path("FLUX.1-dev")
    """FLUX.1 folder in diffusers layout, or a converted one: transformer, VAE, text encoders, tokenizers."""
    transformer: Path | None = None
    """Another transformer than `base` has, e.g. flux1-dev.safetensors or a run that trained the base model."""
    autoencoder: Path | None = None
    """Another VAE than `base` has, e.g. ae.safetensors."""
    base_weights: Weights = "auto"
    """How the blocks of a frozen base transformer are kept. auto: in dtype. int8: in eight bits, computed in dtype; half the memory of bfloat16."""
    arcface: Path | None = Path("recognition_arcface_ir_se50.pth")
    """Face identity encoder (facexlib's ArcFace IR-SE50)."""
    init: Path | None = None
    """InfuseNet and resampler to start from: stage 1's run, or an InfiniteYou folder. None starts InfuseNet from the base's first blocks with zero outputs."""
    base_from_scratch: bool = False
    """trainable base: start from random weights of the sizes in the transformer's config.json instead of its weights."""
    infusenet_blocks: tuple[int, int] = (4, 10)
    """Double and single blocks of a new InfuseNet. Paper: fewer than the base by a factor of about 4; the release has 4 + 10."""
    resampler: ResamplerConfig = field(default_factory=ResamplerConfig)
    """Sizes of a new resampler. Its input and output sizes are those of ArcFace and InfuseNet."""

    def __post_init__(self):
        _check(
            min(self.infusenet_blocks) >= 0 and sum(self.infusenet_blocks) >= 1,
            f"models.infusenet_blocks are {self.infusenet_blocks}; at least one block is needed",
        )


@dataclass(frozen=True)
class ObjectiveConfig:
    """Rectified flow: z_t = (1 - t) x0 + t eps, the model predicts eps - x0 (paper section 3.4)."""

    time_mean: float = 0.0
    """Times are sigmoid(time_mean + time_std * normal). Paper: rf/lognorm(0.00, 1.00)."""
    time_std: float = 1.0
    """See time_mean."""
    shift_times: bool = False
    """Shift times towards noise with the number of image tokens, as sampling does. Assumption: off, since the paper's density has no shift."""
    guidance: float = 1.0
    """Guidance value the base model is told. Assumption: 1, at which the distilled model is nearest to the data's own velocity, which is the target."""
    infusenet_guidance: float = 1.0
    """Guidance value InfuseNet is told. The release samples with 1."""
    face_weight: float = 1.0
    """How much the loss weighs in the face's box, against 1 elsewhere; each picture weighs the same. Paper: 1. More teaches faces before backgrounds, which
    small models need (docs/tiny_world.md); records are then read even where all features are there. Validation losses have no weights."""

    id_weight: float = 0.0
    """How much the identity loss weighs: 1 - cosine of the identity and the face in the predicted picture, less of it at early times. Paper: 0, no such
    loss. With it steps decode pictures and embed their faces, of which they find the place in the records."""
    id_every: int = 1
    """Of a batch only every so many-th picture is decoded for the identity loss, and counts for the others: decoding may cost more than all the rest."""

    @property
    def faces(self) -> tuple[FacePlace, ...]:
        """What the loss must be told of the targets' faces."""
        return ("face_box",) * (self.face_weight != 1) + ("face_points",) * (self.id_weight != 0)

    def __post_init__(self):
        _check(self.id_weight >= 0, f"objective.id_weight is {self.id_weight}; 0 or more is needed")
        _check(self.id_every >= 1, f"objective.id_every is {self.id_every}; at least 1 is needed")
        _check(self.face_weight > 0, f"objective.face_weight is {self.face_weight}; more than 0 is needed")
        _check(self.time_std > 0, f"objective.time_std is {self.time_std}; more than 0 is needed")


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with the paper's numbers, or Muon; what the paper does not state is an assumption."""

    kind: Literal["adamw", "muon"] = "adamw"
    """adamw is the paper's. muon makes the momentum of the blocks' kernels orthogonal, with one moment instead of two, and leaves the rest to AdamW:
    a small base from nothing was at the same loss after about half the steps (docs/tiny_world.md)."""
    muon_beta: float = 0.95
    """Decay of Muon's moment."""
    learning_rate: float = 2e-5
    """Peak learning rate. Paper: 2e-5 in stage 1, 1e-5 in stage 2."""
    b1: float = 0.9
    """Decay of the first moment (paper)."""
    b2: float = 0.999
    """Decay of the second moment (paper)."""
    eps: float = 1e-8
    """Added to the root of the second moment. Assumption: the paper does not state it."""
    weight_decay: float = 0.01
    """Decoupled, of every trained parameter, as torch's AdamW does by default. Paper: 0.01."""
    warmup_steps: int = 1000
    """Steps of a linear rise. Assumption: the paper gives an initial learning rate and no warm-up."""
    decay: Literal["constant", "cosine", "linear"] = "constant"
    """After the warm-up, over all steps that are left. Assumption: constant."""
    final_rate: float = 0.0
    """Where a decay ends, as a share of the peak: the learning rate that a step after the last would have. The last is one step of the decay above it."""
    clip_norm: float | None = 1.0
    """Gradients are scaled down to this global norm. Assumption: 1; None turns it off."""
    moment_dtype: Literal["float32", "bfloat16"] = "float32"
    """How Adam's two moments are kept. bfloat16 halves them; it rounds stochastically, since small changes would be lost otherwise."""
    in_backward: bool = False
    """Update each block of InfuseNet in the backward pass, so that no gradients are kept: 6 GiB less on one chip at quick effort, 1 at default effort
    (docs/performance.md). The same numbers, but with a clip_norm InfuseNet's backward pass runs twice, first for the norm, and InfuseNet's own blocks
    are always computed again, whatever `remat` says."""
    ema_decay: float | None = None
    """Keep an exponential moving average of the trained weights too, e.g. 0.9999. Assumption: off; it costs as much memory as the weights."""

    def __post_init__(self):
        _check(self.learning_rate > 0, f"optimizer.learning_rate is {self.learning_rate}; more than 0 is needed")
        for name in ("b1", "b2", "muon_beta", "final_rate"):
            _check(0 <= getattr(self, name) <= 1, f"optimizer.{name} is {getattr(self, name)}; 0 to 1 is needed")
        _check(self.kind == "adamw" or self.moment_dtype == "float32", "optimizer.moment_dtype is bfloat16; muon keeps its moments in float32")
        _check(self.warmup_steps >= 0, f"optimizer.warmup_steps is {self.warmup_steps}; 0 or more is needed")
        _check(self.clip_norm is None or self.clip_norm > 0, f"optimizer.clip_norm is {self.clip_norm}; more than 0 is needed (None turns it off)")
        _check(self.ema_decay is None or 0 < self.ema_decay < 1, f"optimizer.ema_decay is {self.ema_decay}; between 0 and 1 is needed (None turns it off)")


@dataclass(frozen=True)
class CheckpointConfig:
    every_steps: int = 1000
    """Steps between checkpoints; the last step and a preemption save one too."""
    keep: int = 3
    """Newest checkpoints that are kept."""
    keep_every_steps: int | None = None
    """Checkpoints at multiples of this are kept for good."""

    def __post_init__(self):
        _check(self.every_steps >= 1, f"checkpoint.every_steps is {self.every_steps}; at least 1 is needed")
        _check(self.keep >= 1, f"checkpoint.keep is {self.keep}; at least 1 is needed")
        _check(self.keep_every_steps is None or self.keep_every_steps >= 1, f"checkpoint.keep_every_steps is {self.keep_every_steps}; at least 1 is needed")


@dataclass(frozen=True)
class ValidationConfig:
    """What is measured on people that training never sees (the datasets' validation split)."""

    every_steps: int | None = 5000
    """Steps between validations; None turns them off."""
    batches: int = 4
    """Batches of which the loss is taken, always the same ones with the same noises."""
    times: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)
    """Times at which it is taken."""
    pictures: int = 4
    """Sample pictures, shown beside the photo and the target with their identity similarity; at most a batch."""
    sampling_steps: int = 30
    """Denoising steps of the sample pictures."""
    guidance: float = 3.5
    """Guidance of the sample pictures."""

    def __post_init__(self):
        _check(self.every_steps is None or self.every_steps >= 1, f"validation.every_steps is {self.every_steps}; at least 1 is needed (None turns it off)")
        _check(
            self.batches >= 1 and self.pictures >= 0 and self.sampling_steps >= 1,
            "validation needs batches and sampling_steps of 1 or more, pictures of 0 or more",
        )
        _check(all(0 <= t <= 1 for t in self.times) and len(self.times) > 0, f"validation.times are {self.times}; times between 0 and 1 are needed")


@dataclass(frozen=True)
class DistributedConfig:
    """Several processes. On TPU pods, Slurm, GKE and Open MPI nothing needs to be set."""

    coordinator: str | None = None
    """Address host:port of process 0."""
    processes: int | None = None
    """How many processes there are."""
    process: int | None = None
    """Which one this is, from 0."""

    def __post_init__(self):
        given = [self.coordinator is not None, self.processes is not None, self.process is not None]
        _check(all(given) or not any(given), "distributed.coordinator, .processes and .process are given together or not at all")


@dataclass(frozen=True)
class TrainConfig:
    """One training run."""

    out: Path
    """Folder of the run. If it holds checkpoints already, the run goes on from the newest."""
    trainable: Literal["infusenet", "base"] = "infusenet"
    """infusenet: InfuseNet and the resampler, the base is frozen (the paper). base: the base model alone, text to picture."""
    steps: int = 300_000
    """Optimizer steps in all."""
    batch_size: int = 512
    """Pictures a step, over all devices."""
    accumulate: int = 1
    """Parts that a batch is computed in, one after the other: less memory, same result."""
    seed: int = 0
    """Of the data's order, times, noises, dropouts and new weights."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Of computation and frozen weights. auto: bfloat16 on TPU and GPU, float32 on CPU. Trained weights are always float32."""
    remat: Remat = "block"
    """What the backward pass finds in memory and need not compute again. block: the input of each block; attention: the attention's output too;
    dots: outputs of all matrix products; none: everything. offload: the input of each block, which waits in host memory."""
    mesh: MeshConfig = field(default_factory=lambda: MeshConfig(fsdp=-1))
    """How devices share the work."""
    models: ModelsConfig = field(default_factory=ModelsConfig)
    data: DataConfig = field(default_factory=DataConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    log_every_steps: int = 10
    """Steps between lines of the log and the charts."""
    profile_steps: tuple[int, int] | None = None
    """First and last step of a profile (TensorBoard's Profile tab, or xprof)."""
    accept_changes: bool = False
    """Go on from a checkpoint that was made with other settings than these."""
    compilation_cache: Path | None = None
    """Folder in which compiled programs are kept between starts."""

    def __post_init__(self):
        _check(self.steps >= 1, f"steps is {self.steps}; at least 1 is needed")
        _check(self.batch_size >= 1, f"batch_size is {self.batch_size}; at least 1 is needed")
        _check(self.accumulate >= 1, f"accumulate is {self.accumulate}; at least 1 is needed")
        _check(self.batch_size % self.accumulate == 0, f"batch_size {self.batch_size} is not a multiple of accumulate {self.accumulate}")
        _check(self.log_every_steps >= 1, f"log_every_steps is {self.log_every_steps}; at least 1 is needed")
        _check(0 <= self.seed < 2**32, f"seed is {self.seed}; 0 <= seed < {2**32} is needed")
        _check(
            self.models.base_weights == "auto" or self.trainable != "base",
            f"models.base_weights is {self.models.base_weights}, which is for a frozen base; with trainable base leave it at auto",
        )
        _check(
            not self.optimizer.in_backward or (self.trainable, self.optimizer.kind, self.accumulate) == ("infusenet", "adamw", 1),
            f"optimizer.in_backward is for trainable infusenet, optimizer.kind adamw and accumulate 1; "
            f"here they are {self.trainable}, {self.optimizer.kind} and {self.accumulate}",
        )
        _check(
            self.batch_size // self.accumulate % self.objective.id_every == 0,
            f"objective.id_every {self.objective.id_every} does not divide batch_size {self.batch_size} / accumulate {self.accumulate}, "
            f"the pictures that are computed at once",
        )
        _check(self.objective.id_weight == 0 or self.trainable == "infusenet", "objective.id_weight needs trainable infusenet: the base is told of no identity")
        _check(self.models.base_from_scratch is False or self.trainable == "base", "models.base_from_scratch needs trainable base")
        first, last = self.profile_steps or (0, 0)
        _check(0 <= first <= last, f"profile_steps are {self.profile_steps}; two steps, the first not after the last, are needed")


# Settings that may change when a run goes on: they decide where and how fast it runs, not what it computes.
_FREE = (
    "out", "accumulate", "remat", "optimizer.in_backward", "mesh.*", "distributed.*", "checkpoint.*", "validation.*", "log_every_steps", "profile_steps",
    "accept_changes", "compilation_cache", "models.init", "data.paths", "data.features", "data.workers", "data.threads", "data.prefetch",
)  # fmt: skip


def settings(cfg: TrainConfig) -> dict[str, Any]:
    """All settings as plain JSON values, `{"optimizer.learning_rate": 2e-05, ...}`."""
    return dict(_flat("", dataclasses.asdict(cfg)))


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What would make a run with the settings `new` compute something else than it did with `old`, as `name old -> new`.

    A setting that `old`, of an older version, does not know was at its default.
    """
    old = {**{name: value for name, value in settings(TrainConfig(out=Path())).items() if name in new}, **old}
    free = [*_FREE, "steps"] if new["optimizer.decay"] == "constant" else _FREE
    names = [name for name in dict.fromkeys([*old, *new]) if old.get(name) != new.get(name) and not any(fnmatch(name, pattern) for pattern in free)]
    return [f"{name} {old.get(name)} -> {new.get(name)}" for name in names]


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from _flat(f"{prefix}.{name}" if prefix else name, inner)
    else:
        yield prefix, str(value) if isinstance(value, Path) else [str(v) if isinstance(v, Path) else v for v in value] if isinstance(value, tuple) else value


def _check(ok: bool, message: str) -> None:
    if not ok:
        raise InputError(message)
