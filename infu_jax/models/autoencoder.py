"""FLUX.1's KL autoencoder: pictures to latents and back, 8 pixels to a cell. Everything is NHWC.

Source: black-forest-labs/flux `modules/autoencoder.py`, whose names are kept; diffusers' `AutoencoderKL` is the same model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from infu_jax.config import AutoencoderConfig
from infu_jax.models.layers import Conv, Linear
from infu_jax.sharding import constrain_batch

# A megapixel has 16384 cells, and all their attention weights together fill 1 GiB; this many rows at a time fill 64 MiB.
QUERIES_AT_ONCE = 1024


class Autoencoder(nnx.Module):
    """`encode` a picture in [-1, 1] to latents as FLUX sees them, `decode` latents to a picture."""

    def __init__(self, cfg: AutoencoderConfig, *, rngs: nnx.Rngs):
        self.cfg = cfg
        self.encoder = Encoder(cfg, rngs=rngs)
        self.decoder = Decoder(cfg, rngs=rngs)

    def encode(self, image: Float[Array, "B H W C"], noise: Float[Array, "B h w z"] | None = None) -> Float[Array, "B h w z"]:
        """Latents of a picture. `noise` is standard normal; None takes the mean of the distribution instead of a sample."""
        return sample_latents(self.cfg, *self.moments(image), noise)

    def moments(self, image: Float[Array, "B H W C"]) -> tuple[Float[Array, "B h w z"], Float[Array, "B h w z"]]:
        """Mean and log-variance of the latent distribution, before shift and scale: what `sample_latents` takes."""
        height, width = image.shape[1:3]
        n = self.cfg.downscale
        if height % n or width % n:
            raise ValueError(f"image is {width}x{height}; sides must be multiples of {n} (try {width // n * n}x{height // n * n})")
        return tuple(jnp.split(self.encoder(image), 2, axis=-1))

    def decode(self, latents: Float[Array, "B h w z"], *, at_once: int | None = None) -> Float[Array, "B H W C"]:
        """The picture of some latents, about [-1, 1] and not clipped.

        at_once: a level with more pixels, of all pictures together, is computed in bands of rows of about so many, one after the other, with
            the same result. It takes memory for the level's input and a band, and some four times the level's work: see `_in_bands`.
        """
        return self.decoder(latents / self.cfg.scale_factor + self.cfg.shift_factor, at_once)


def sample_latents(
    cfg: AutoencoderConfig, mean: Float[Array, "B h w z"], logvar: Float[Array, "B h w z"], noise: Float[Array, "B h w z"] | None
) -> Float[Array, "B h w z"]:
    """Shifted and scaled latents from moments, which may come from a file; needs no weights. Without `noise`: of the mean."""
    if noise is not None:
        mean = mean + jnp.exp(0.5 * jnp.clip(logvar, -30.0, 20.0)) * noise.astype(mean.dtype)
    return (mean - cfg.shift_factor) * cfg.scale_factor


class Encoder(nnx.Module):
    """Picture -> [mean, log-variance], (B, H / 8, W / 8, 2 z)."""

    def __init__(self, cfg: AutoencoderConfig, *, rngs: nnx.Rngs):
        first, last = cfg.channels[0], cfg.channels[-1]
        inputs = (first, *cfg.channels[:-1])
        self.conv_in = Conv(cfg.in_channels, first, rngs=rngs)
        self.down = nnx.List(DownLevel(cfg, level, inputs[level], rngs=rngs) for level in range(len(cfg.channels)))
        self.mid = Middle(last, cfg.norm_groups, rngs=rngs)
        self.norm_out = GroupNorm(last, cfg.norm_groups)
        self.conv_out = Conv(last, 2 * cfg.z_channels, rngs=rngs)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w z2"]:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        x = self.mid(x)
        return self.conv_out(jax.nn.silu(self.norm_out(x)))


def _whole(norm: GroupNorm | None, x: jax.Array) -> jax.Array:
    """What convolutions see of a whole picture. Norms are asked for by name so that `_in_bands` can answer otherwise."""
    return x if norm is None else norm(x)


Norm = Callable[[Any, jax.Array], jax.Array]


class Decoder(nnx.Module):
    """Latents, unscaled -> picture. `up[0]` is the level of full resolution, as in BFL's files, and runs last."""

    def __init__(self, cfg: AutoencoderConfig, *, rngs: nnx.Rngs):
        first, last = cfg.channels[0], cfg.channels[-1]
        inputs = (*cfg.channels[1:], last)
        self.conv_in = Conv(cfg.z_channels, last, rngs=rngs)
        self.mid = Middle(last, cfg.norm_groups, rngs=rngs)
        self.up = nnx.List(UpLevel(cfg, level, inputs[level], rngs=rngs) for level in range(len(cfg.channels)))
        self.norm_out = GroupNorm(first, cfg.norm_groups)
        self.conv_out = Conv(first, cfg.out_channels, rngs=rngs)

    def __call__(self, x: Float[Array, "B h w z"], at_once: int | None = None) -> Float[Array, "B H W C"]:
        x = self.mid(self.conv_in(x))
        for level in reversed(range(len(self.up))):
            larger, last = level < len(self.up) - 1, level == 0
            step = 2 if larger else 1
            if at_once is None or len(x) * x.shape[1] * x.shape[2] * step**2 <= at_once:
                x = self.level(level, x, _whole)
            else:
                blocks = len(self.up[level].block)
                stage = lambda x, norm, level=level: self.level(level, x, norm)  # noqa: E731
                x = _in_bands(stage, x, at_once, step, norms=2 * blocks + last, convs=2 * blocks + larger + last)
        return x

    def level(self, level: int, x: Float[Array, "B h w D"], norm: Norm) -> Float[Array, "B H W E"]:
        """From the blocks of the level below to those of this one, and after the last of them to the picture."""
        if level < len(self.up) - 1:
            x = norm(None, x)
            x = self.up[level + 1].upsample(x.repeat(2, axis=1).repeat(2, axis=2))
        for block in self.up[level].block:
            x = block(x, norm)
        return x if level else self.conv_out(jax.nn.silu(norm(self.norm_out, x)))


class DownLevel(nnx.Module):
    """The residual blocks of one resolution, then half of it (but for the last level)."""

    def __init__(self, cfg: AutoencoderConfig, level: int, inputs: int, *, rngs: nnx.Rngs):
        size = cfg.channels[level]
        self.block = nnx.List(ResnetBlock(inputs if n == 0 else size, size, cfg.norm_groups, rngs=rngs) for n in range(cfg.num_res_blocks))
        # Padded below and on the right only: the checkpoints were trained with this asymmetry.
        self.downsample = Conv(size, size, stride=2, padding=((0, 1), (0, 1)), rngs=rngs) if level < len(cfg.channels) - 1 else None

    def __call__(self, x: Float[Array, "B H W D"]) -> Float[Array, "B h w E"]:
        for block in self.block:
            x = block(x)
        return x if self.downsample is None else self.downsample(x)


class UpLevel(nnx.Module):
    """The residual blocks of one resolution, one more than on the way down, then twice the resolution (but for level 0). See `Decoder.level`."""

    def __init__(self, cfg: AutoencoderConfig, level: int, inputs: int, *, rngs: nnx.Rngs):
        size = cfg.channels[level]
        self.block = nnx.List(ResnetBlock(inputs if n == 0 else size, size, cfg.norm_groups, rngs=rngs) for n in range(cfg.num_res_blocks + 1))
        self.upsample = Conv(size, size, rngs=rngs) if level > 0 else None


class Middle(nnx.Module):
    """The blocks at the lowest resolution, where every cell sees all others."""

    def __init__(self, size: int, groups: int, *, rngs: nnx.Rngs):
        self.block_1 = ResnetBlock(size, size, groups, rngs=rngs)
        self.attn_1 = Attention(size, groups, rngs=rngs)
        self.block_2 = ResnetBlock(size, size, groups, rngs=rngs)

    def __call__(self, x: Float[Array, "B h w D"]) -> Float[Array, "B h w D"]:
        return self.block_2(self.attn_1(self.block_1(x)))


class ResnetBlock(nnx.Module):
    """Two normalised 3x3 convolutions beside a shortcut, which is a linear layer where the width changes."""

    def __init__(self, inputs: int, outputs: int, groups: int, *, rngs: nnx.Rngs):
        self.norm1 = GroupNorm(inputs, groups)
        self.conv1 = Conv(inputs, outputs, rngs=rngs)
        self.norm2 = GroupNorm(outputs, groups)
        self.conv2 = Conv(outputs, outputs, rngs=rngs)
        self.nin_shortcut = Linear(inputs, outputs, rngs=rngs) if inputs != outputs else None

    def __call__(self, x: Float[Array, "B H W D"], norm: Norm = _whole) -> Float[Array, "B H W E"]:
        y = self.conv1(jax.nn.silu(norm(self.norm1, x)))
        y = self.conv2(jax.nn.silu(norm(self.norm2, y)))
        return y + (x if self.nin_shortcut is None else self.nin_shortcut(x))


class Attention(nnx.Module):
    """Self-attention of one head over all cells, added to its input."""

    def __init__(self, size: int, groups: int, *, rngs: nnx.Rngs):
        self.norm = GroupNorm(size, groups)
        self.qkv = Linear(size, (3, size), rngs=rngs)
        self.proj_out = Linear(size, size, rngs=rngs)

    def __call__(self, x: Float[Array, "B h w D"]) -> Float[Array, "B h w D"]:
        b, h, w, d = x.shape
        q, k, v = jnp.moveaxis(self.qkv(self.norm(x)).reshape(b, h * w, 3, d), 2, 0)

        # No fused kernel takes a head of 512 channels, so rows of the attention matrix are made in portions.
        @jax.checkpoint
        def attend(q: Float[Array, "B D"]) -> Float[Array, "B D"]:
            logits = jnp.einsum("bd,bnd->bn", q, k, preferred_element_type=jnp.float32) / math.sqrt(d)
            return jnp.einsum("bn,bnd->bd", jax.nn.softmax(logits).astype(v.dtype), v)

        y = jax.lax.map(attend, jnp.moveaxis(q, 1, 0), batch_size=QUERIES_AT_ONCE)
        return x + self.proj_out(jnp.moveaxis(y, 0, 1).reshape(x.shape))


class GroupNorm(nnx.Module):
    """Normalises each picture's groups of neighbouring channels over all pixels, in float32."""

    def __init__(self, size: int, groups: int, *, eps: float = 1e-6):
        if size % groups:
            raise ValueError(f"{size} channels do not divide into norm_groups = {groups}")
        self.groups, self.eps = groups, eps
        self.scale = nnx.Param(jnp.ones(size))
        self.bias = nnx.Param(jnp.zeros(size))

    def __call__(self, x: Float[Array, "B H W D"], moments: tuple[jax.Array, jax.Array] | None = None) -> Float[Array, "B H W D"]:
        """moments: mean and variance of each channel's group, (B, 1, 1, D) each, of the whole picture where `x` is a band of it."""
        y = x.astype(jnp.float32)
        y = y - (self._group_mean(y) if moments is None else moments[0])
        y = y * jax.lax.rsqrt((self._group_mean(jnp.square(y)) if moments is None else moments[1]) + self.eps)
        return (y * self.scale[...].astype(jnp.float32) + self.bias[...].astype(jnp.float32)).astype(x.dtype)

    def moments(self, mean: Float[Array, "B 1 1 D"], variance: Float[Array, "B 1 1 D"]) -> tuple[Float[Array, "B 1 1 D"], Float[Array, "B 1 1 D"]]:
        """Of each channel's group, from each channel's own."""
        group = self._group_mean(mean)
        return group, self._group_mean(variance + jnp.square(mean - group))

    def _group_mean(self, y: Float[Array, "B H W D"]) -> Float[Array, "B 1 1 D"]:
        # Pixels first, then channels: the whole picture never takes a shape whose last axis is a group, which a TPU would pad 32-fold.
        channels = y.mean((1, 2)).reshape(y.shape[0], self.groups, -1)
        means = jnp.broadcast_to(channels.mean(-1, keepdims=True), channels.shape)
        return means.reshape(y.shape[0], 1, 1, -1)


# Bands --------------------------------------------------------------------------------------------


class _Band:
    """Answers for the norms of a stage that computes a band: with known moments first, then by remembering the first whose are not known."""

    def __init__(self, first: jax.Array, rows: int, height: int, known: list[tuple[jax.Array, jax.Array]]):
        self.first, self.rows, self.height, self.known = first, rows, height, iter(known)
        self.asked: tuple[GroupNorm, jax.Array] | None = None

    def __call__(self, norm: GroupNorm | None, x: jax.Array) -> jax.Array:
        moments = None if norm is None or self.asked else next(self.known, None)
        if norm is not None and moments is None:
            self.asked = self.asked or (norm, x)
            return x  # nobody needs what follows
        # Rows outside the picture are what convolutions pad with: zeros, which the activation keeps.
        step = x.shape[1] // self.rows
        row = self.first * step + jnp.arange(x.shape[1])
        inside = ((row >= 0) & (row < self.height * step))[:, None, None]
        return jnp.where(inside, x if norm is None else norm(x, moments), 0)


def _in_bands(stage: Callable[[jax.Array, Norm], jax.Array], x: jax.Array, at_once: int, step: int, *, norms: int, convs: int) -> jax.Array:
    """stage(x, _whole), exactly but for the order of sums, with memory for `x`, the result and one band.

    A band is computed with as many rows around it as its convolutions can see, and each norm with the moments of the whole picture. For these
    a first pass over all bands goes up to the first norm, a second with its moments to the next one, and so on.

    at_once: pixels of a band, without the rows around it.
    step: rows and columns of the result for each of x.
    norms, convs: how many the stage has, the convolutions at the result's size.
    """
    batch, height, width = x.shape[:3]
    most = max(1, at_once // (batch * width * step**2))
    rows = max(n for n in range(1, min(most, height) + 1) if height % n == 0)
    around = -(-convs // step)
    padded, count = jnp.pad(x, ((0, 0), (around, around), (0, 0), (0, 0))), height // rows
    known: list[tuple[jax.Array, jax.Array]] = []

    def run(n: jax.Array) -> tuple[_Band, jax.Array]:
        part = jax.lax.dynamic_slice_in_dim(padded, n * rows, rows + 2 * around, axis=1)
        band = _Band(n * rows - around, rows + 2 * around, height, known)
        return band, stage(part, band)

    def inner(y: jax.Array) -> jax.Array:
        cut = around * (y.shape[1] // (rows + 2 * around))
        return y[:, cut : y.shape[1] - cut]

    def look(asked: list[GroupNorm]) -> jax.Array:
        norm, y = run(jnp.int32(0))[0].asked
        asked.append(norm)
        return y

    def gather(n: jax.Array, sums: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        """Mean and squared deviations of n + 1 bands from those of n (Chan et al. 1979)."""
        y = inner(run(n)[0].asked[1]).astype(jnp.float32)
        mean = y.mean((1, 2), keepdims=True)
        apart = mean - sums[0]
        return sums[0] + apart / (n + 1), sums[1] + jnp.square(y - mean).mean((1, 2), keepdims=True) + jnp.square(apart) * n / (n + 1)

    for _ in range(norms):
        asked: list[GroupNorm] = []
        y = jax.eval_shape(lambda asked=asked: look(asked))
        zeros = constrain_batch(jnp.zeros((batch, 1, 1, y.shape[-1])))
        # A function of its own: JAX would take another pass's program for the same function.
        mean, deviations = jax.lax.fori_loop(0, count, lambda n, sums: gather(n, sums), (zeros, zeros))
        known.append(asked[0].moments(mean, deviations / count))
    shape = jax.eval_shape(lambda: inner(run(jnp.int32(0))[1]))
    out = constrain_batch(jnp.zeros((batch, height * step, *shape.shape[2:]), shape.dtype))
    put = lambda n, out: jax.lax.dynamic_update_slice_in_dim(out, inner(run(n)[1]), n * rows * step, axis=1)  # noqa: E731
    return jax.lax.fori_loop(0, count, lambda n, out: constrain_batch(put(n, out)), out)
