"""Which weights wait in host memory while others compute, and which a program is not given at all."""

from __future__ import annotations

import re

import jax

from infu_jax import checkpoint
from infu_jax.models.flux import MODULATION, Flux
from infu_jax.models.infusenet import InfuseNet
from infu_jax.sharding import in_host

# The models that run once per picture: what `offload` keeps in host memory.
PARKED = ("resampler", "autoencoder", "t5", "clip", "arcface")
# And the transformers' parameters that do: of their blocks' modulations, which are computed for all steps before the first. Kernels only:
# TPUs cannot fetch single rows of a stack of bfloat16 vectors from host memory.
PARKED_PARAMETERS = re.compile(r"(double|single)_blocks\.(.*\.)?mod\.kernel(_steps)?")
# Of a parked model: parameters that its program fetches from host memory itself, one block at a time. T5's blocks are 9 of its 10 GB.
STREAMED = {"t5": re.compile(r"blocks\..*\.kernel(_steps)?")}


def parked(name: str, model):
    """What of a model waits in host memory is there."""
    waits = lambda path: name in PARKED or PARKED_PARAMETERS.fullmatch(path)  # noqa: E731
    return checkpoint.with_params(model, {path: jax.device_put(a, in_host(a)) if waits(path) else a for path, a in checkpoint.params_of(model).items()})


def without_modulations(model: Flux | InfuseNet):
    """The model as the loop needs it, which has tables of modulations."""
    return checkpoint.with_params(model, {path: None if MODULATION.fullmatch(path) else w for path, w in checkpoint.params_of(model).items()})


def aside(a: jax.Array) -> jax.Array:
    """In host memory, split over devices as it was."""
    return jax.device_put(a, a.sharding.with_memory_kind("pinned_host"))


def here(a: jax.Array) -> jax.Array:
    """Back on the devices, where it is not."""
    return a if a.sharding.memory_kind == "device" else jax.device_put(a, a.sharding.with_memory_kind("device"))


def on_device(model, but: re.Pattern | None = None):
    """The model with its weights on the device, `but` for parameters whose path matches, which stay where they are."""
    stays = lambda path: but is not None and but.fullmatch(path)  # noqa: E731
    return checkpoint.with_params(model, {path: a if stays(path) else here(a) for path, a in checkpoint.params_of(model).items()})
