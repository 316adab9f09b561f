"""FLUX.1's KL autoencoder: pictures to latents and back, 8 pixels to a cell. Everything is NHWC.

Source: black-forest-labs/flux `modules/autoencoder.py`, whose names are kept; diffusers' `AutoencoderKL` is the same model.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from infu_jax.config import AutoencoderConfig
from infu_jax.models.layers import Conv, Linear

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

    def decode(self, latents: Float[Array, "B h w z"]) -> Float[Array, "B H W C"]:
        """The picture of some latents, about [-1, 1] and not clipped."""
        return self.decoder(latents / self.cfg.scale_factor + self.cfg.shift_factor)


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

    def __call__(self, x: Float[Array, "B h w z"]) -> Float[Array, "B H W C"]:
        x = self.mid(self.conv_in(x))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(jax.nn.silu(self.norm_out(x)))


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
    """The residual blocks of one resolution, one more than on the way down, then twice the resolution (but for level 0)."""

    def __init__(self, cfg: AutoencoderConfig, level: int, inputs: int, *, rngs: nnx.Rngs):
        size = cfg.channels[level]
        self.block = nnx.List(ResnetBlock(inputs if n == 0 else size, size, cfg.norm_groups, rngs=rngs) for n in range(cfg.num_res_blocks + 1))
        self.upsample = Conv(size, size, rngs=rngs) if level > 0 else None

    def __call__(self, x: Float[Array, "B h w D"]) -> Float[Array, "B H W E"]:
        for block in self.block:
            x = block(x)
        return x if self.upsample is None else self.upsample(x.repeat(2, axis=1).repeat(2, axis=2))


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

    def __call__(self, x: Float[Array, "B H W D"]) -> Float[Array, "B H W E"]:
        y = self.conv1(jax.nn.silu(self.norm1(x)))
        y = self.conv2(jax.nn.silu(self.norm2(y)))
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

    def __call__(self, x: Float[Array, "B H W D"]) -> Float[Array, "B H W D"]:
        y = x.astype(jnp.float32)
        y = y - self._group_mean(y)
        y = y * jax.lax.rsqrt(self._group_mean(jnp.square(y)) + self.eps)
        return (y * self.scale[...].astype(jnp.float32) + self.bias[...].astype(jnp.float32)).astype(x.dtype)

    def _group_mean(self, y: Float[Array, "B H W D"]) -> Float[Array, "B 1 1 D"]:
        # Pixels first, then channels: the whole picture never takes a shape whose last axis is a group, which a TPU would pad 32-fold.
        channels = y.mean((1, 2)).reshape(y.shape[0], self.groups, -1)
        means = jnp.broadcast_to(channels.mean(-1, keepdims=True), channels.shape)
        return means.reshape(y.shape[0], 1, 1, -1)
