"""The compiled programs that a picture takes, from its prompt to its pixels.

Models are pytrees, so weights are arguments and sizes are part of the cache key.
"""

from __future__ import annotations

import math
from functools import cache, partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from infu_jax import flow, latents, sampler
from infu_jax.config import AutoencoderConfig, SamplingConfig
from infu_jax.models.arcface import ArcFace
from infu_jax.models.autoencoder import Autoencoder, sample_latents
from infu_jax.models.clip import CLIPTextEncoder
from infu_jax.models.flux import Flux
from infu_jax.models.infusenet import InfuseNet
from infu_jax.models.resampler import Resampler
from infu_jax.models.t5 import T5Encoder
from infu_jax.sharding import batch_axes, constrain_batch, platform

# Pixels that a device decodes at once. Larger pictures and batches are decoded in bands of a quarter of this.
DECODED_AT_ONCE = 1024 * 1024


@partial(jax.jit, static_argnames="dtype")
def encode_text(t5: T5Encoder, clip: CLIPTextEncoder, t5_ids, clip_ids, *, dtype):
    return t5(t5_ids, dtype=dtype), clip(clip_ids, dtype=dtype)[1]


@jax.jit
def embed(arcface: ArcFace, crops):
    return arcface(crops)


@partial(jax.jit, static_argnames="dtype")
def project(resampler: Resampler, id_embedding, *, dtype):
    return resampler(id_embedding[:, None].astype(dtype))


@partial(jax.jit, static_argnames="dtype")
def encode_control(autoencoder: Autoencoder, image, *, dtype):
    return autoencoder.moments(image.astype(dtype))


@partial(jax.jit, static_argnums=0)
def sample_control(cfg: AutoencoderConfig, mean, logvar, noise):
    mean, logvar = (constrain_batch(jnp.broadcast_to(x, noise.shape)) for x in (mean, logvar))  # of one picture
    return latents.pack(sample_latents(cfg, mean, logvar, noise))


@partial(jax.jit, static_argnames="dtype")
def modulation(model: Flux | InfuseNet, times, y, guidance, *, dtype):
    """Rows of the model's modulations at each of the times, (times, B, R, D); see `MMDiT.rows`."""
    return jax.vmap(lambda t: model.rows(model.modulation(jnp.broadcast_to(t, len(y)), y, guidance, dtype)))(times)


@partial(jax.jit, static_argnames="dtype")
def traced_step(flux: Flux, infusenet: InfuseNet | None, img, schedule, k, given, tables, *, dtype):
    v, residuals = sampler.velocity(flux, infusenet, img, schedule.model_times[k], given, dtype, tables=sampler.at_step(tables, k))
    return flow.euler_step(img, v, schedule.times[k], schedule.times[k + 1]), v, residuals


def steps():
    """The program of `sampler.denoise` for the platform in use."""
    return _steps(platform())


@cache
def _steps(where: str):
    def steps(flux: Flux, infusenet: InfuseNet | None, img, schedule, first, last, given, tables, *, dtype):
        return sampler.denoise(flux, infusenet, img, schedule, first, last, given, dtype, tables)

    # cuBLAS alone: it reads a block's weights where they lie in the stack. Where XLA may choose its own products (Triton) it copies them out first.
    options = {"xla_gpu_enable_triton_gemm": False} if where == "gpu" else None
    return jax.jit(steps, static_argnames="dtype", donate_argnames="img", compiler_options=options)


@partial(jax.jit, static_argnames=("h", "w", "dtype", "at_once"))
def decode(autoencoder: Autoencoder, img, *, h, w, dtype, at_once=None):
    return autoencoder.decode(latents.unpack(img, h, w).astype(dtype), at_once=at_once).astype(jnp.float32)


def decoded_at_once(mesh: Mesh, batch: int, settings: SamplingConfig) -> int | None:
    """`Autoencoder.decode`'s limit for a batch of pictures; None where they are small."""
    devices = math.prod(mesh.shape[axis] for axis in batch_axes(mesh, batch))
    return None if batch * settings.width * settings.height <= DECODED_AT_ONCE * devices else DECODED_AT_ONCE * devices // 4
