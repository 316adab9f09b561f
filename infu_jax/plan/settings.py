"""What the command is asked: a machine, and a training step or a picture."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from infu_jax.config import MeshConfig, SamplingConfig, Weights
from infu_jax.errors import InputError
from infu_jax.train_config import TrainConfig

Effort = Literal["quick", "default"]
OptionalPath = Annotated[Path | None, tyro.conf.arg(metavar="PATH")]


@dataclass(frozen=True)
class TrainArgs(TrainConfig):
    topology: str = "v5p:2x2x1"
    """Chips, such as v5p:2x2x1, v6e:4x4, v6e:1x1 (one chip), or GPUs: h100:8, or h100:2x8 for two hosts of eight."""
    gpu_gib: float | None = None
    """Instead of a topology: any one GPU with so much memory, by arithmetic alone (an estimate)."""
    choose: bool = False
    """Take the mesh and batch size that the arithmetic prefers, in the place of those in the settings."""
    height: int = 1024
    """Height of the pictures."""
    width: int = 1024
    """Width of the pictures."""
    effort: Effort = "quick"
    """Of a TPU's compiler: quick is several times faster and takes about as much memory; default is what a run does, and always for GPUs."""
    efficiency: float = 0.5
    """Assumed share of the chips' bfloat16 peak, for the estimate of the time."""
    json: OptionalPath = None
    """Write the report as JSON to this file too; - prints it instead of the table."""

    def __post_init__(self):
        super().__post_init__()
        _check(self)


@dataclass(frozen=True)
class SampleArgs:
    topology: str = "v6e:1x1"
    """Chips, such as v6e:1x1 (one chip), v6e:2x2, v5e:4x4, v5p:2x2x1, or GPUs, such as rtx4090:1, l40s:4, h100:8."""
    gpu_gib: float | None = None
    """Instead of a topology: any one GPU with so much memory, by arithmetic alone (an estimate)."""
    batch: int = 1
    """Pictures computed at once."""
    sampling: Annotated[SamplingConfig, tyro.conf.arg(name="")] = field(default_factory=SamplingConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    """How devices share the work; left alone, as the arithmetic prefers."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Of weights and computation."""
    weights: Weights = "auto"
    """int8: as sample.py's, the blocks of both transformers and of T5 in eight bits."""
    offload: bool = False
    """As sample.py's: what runs once per picture waits in host memory."""
    tables: bool = True
    """--no-tables: as if each step computed its modulations itself, to see what tables save. Sampling always has them."""
    base: OptionalPath = None
    """FLUX.1 folder whose sizes are taken; by default the release's."""
    infu: OptionalPath = None
    """InfiniteYou folder whose sizes are taken; by default the release's."""
    everything: bool = False
    """Compile the programs around the loop too: text encoders, modulations, VAE."""
    effort: Effort = "quick"
    """Of a TPU's compiler: quick is several times faster and takes about as much memory; default is what a run does, and always for GPUs."""
    efficiency: float = 0.5
    """Assumed share of the chips' bfloat16 peak, for the estimate of the time."""
    json: OptionalPath = None
    """Write the report as JSON to this file too; - prints it instead of the table."""

    def __post_init__(self):
        if self.batch < 1:
            raise InputError(f"batch is {self.batch}; at least 1 is needed")
        _check(self)


def _check(args: TrainArgs | SampleArgs) -> None:
    if not 0 < args.efficiency <= 1:
        raise InputError(f"efficiency is {args.efficiency}; a share between 0 and 1 is needed")
    if args.gpu_gib is not None and args.gpu_gib <= 0:
        raise InputError(f"gpu_gib is {args.gpu_gib}; the GPU's memory in GiB is needed, such as 48")
