"""ArcFace IR-SE: an aligned face crop -> its identity embedding.

Source: facexlib `recognition/arcface_arch.py` (`Backbone`, mode "ir_se"), the release's face identity encoder; ArcFace is arXiv 1801.07698.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from infu_jax.config import ArcFaceConfig
from infu_jax.models.layers import Conv, Linear


class ArcFace(nnx.Module):
    """Residual network with squeeze-and-excitation; each stage halves the picture."""

    def __init__(self, cfg: ArcFaceConfig, *, rngs: nnx.Rngs):
        if len(cfg.widths) != len(cfg.units):
            raise ValueError(f"widths {cfg.widths} and units {cfg.units} must have one number for each stage")
        side, rest = divmod(cfg.image_size, 2 ** len(cfg.widths))
        if rest:
            raise ValueError(f"image_size {cfg.image_size} must be a multiple of {2 ** len(cfg.widths)}, for {len(cfg.widths)} stages")
        self.cfg = cfg
        self.conv_in = Conv(3, cfg.widths[0], bias=False, rngs=rngs)
        self.norm_in = BatchNorm(cfg.widths[0])
        self.prelu_in = PReLU(cfg.widths[0])
        units = [(width, 2 if n == 0 else 1) for width, count in zip(cfg.widths, cfg.units, strict=True) for n in range(count)]
        inputs = [cfg.widths[0], *(width for width, _ in units[:-1])]
        # Units of one stage are alike, but convolutions compile fast and files number the units across stages: a plain list.
        self.body = nnx.List(Unit(i, width, stride, cfg.se_reduction, rngs=rngs) for i, (width, stride) in zip(inputs, units, strict=True))
        self.norm_out = BatchNorm(cfg.widths[-1])
        self.proj_out = Linear((side, side, cfg.widths[-1]), cfg.embedding_dim, rngs=rngs)
        self.norm_embedding = BatchNorm(cfg.embedding_dim)

    def __call__(self, crops: Float[Array, "B S S 3"], *, train: bool = False) -> Float[Array, "B E"]:
        """Embeddings of length 1 of crops aligned to ArcFace's template, in **BGR**, x / 127.5 - 1.

        With `train` the norms use the batch's statistics and move their running ones, in place.
        """
        size = self.cfg.image_size
        if crops.shape[1:] != (size, size, 3):
            raise ValueError(f"crops are {crops.shape[1:]}; expected ({size}, {size}, 3)")
        x = self.features(crops, train=train)[-1]
        x = self.norm_embedding(self.proj_out(self.norm_out(x, train=train)), train=train)
        length = jnp.linalg.norm(x.astype(jnp.float32), axis=-1, keepdims=True)
        return (x / length).astype(crops.dtype)

    def features(self, images: Float[Array, "B H W 3"], *, train: bool = False) -> list[Array]:
        """What each unit makes of pictures of any size, (B, h, w, channels), the last as the embedding is made of; pictures and `train` as above."""
        x, made = self.prelu_in(self.norm_in(self.conv_in(images), train=train)), []
        for unit in self.body:
            x = unit(x, train=train)
            made.append(x)
        return made


class Unit(nnx.Module):
    """Two 3x3 convolutions, the second with the stride, and squeeze-and-excitation, beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, reduction: int, *, rngs: nnx.Rngs):
        self.stride = stride
        self.norm1 = BatchNorm(inputs)
        self.conv1 = Conv(inputs, outputs, bias=False, rngs=rngs)
        self.prelu = PReLU(outputs)
        self.conv2 = Conv(outputs, outputs, stride=stride, bias=False, rngs=rngs)
        self.norm2 = BatchNorm(outputs)
        self.se_down = Linear(outputs, outputs // reduction, bias=False, rngs=rngs)
        self.se_up = Linear(outputs // reduction, outputs, bias=False, rngs=rngs)
        widens = inputs != outputs
        self.shortcut = Linear(inputs, outputs, bias=False, rngs=rngs) if widens else None
        self.shortcut_norm = BatchNorm(outputs) if widens else None

    def __call__(self, x: Float[Array, "B H W D"], *, train: bool) -> Float[Array, "B h w E"]:
        y = self.prelu(self.conv1(self.norm1(x, train=train)))
        y = self.norm2(self.conv2(y), train=train)
        gate = jax.nn.sigmoid(self.se_up(jax.nn.relu(self.se_down(y.mean((1, 2), keepdims=True)))))
        x = x[:, :: self.stride, :: self.stride]
        if self.shortcut is not None:
            x = self.shortcut_norm(self.shortcut(x), train=train)
        return y * gate + x


class BatchNorm(nnx.Module):
    """Batch norm over all axes but the last, in float32, with PyTorch's running statistics (`count` is `num_batches_tracked`)."""

    def __init__(self, size: int, *, eps: float = 1e-5, momentum: float = 0.1):
        self.eps, self.momentum = eps, momentum
        self.scale = nnx.Param(jnp.ones(size))
        self.bias = nnx.Param(jnp.zeros(size))
        self.mean = nnx.BatchStat(jnp.zeros(size))
        self.var = nnx.BatchStat(jnp.ones(size))
        self.count = nnx.BatchStat(jnp.zeros((), jnp.int32))

    def __call__(self, x: Float[Array, "*B D"], *, train: bool) -> Float[Array, "*B D"]:
        y = x.astype(jnp.float32)
        if train:
            mean, var = self._update(y)
        else:
            mean, var = self.mean[...].astype(jnp.float32), self.var[...].astype(jnp.float32)
        y = (y - mean) * (jax.lax.rsqrt(var + self.eps) * self.scale[...].astype(jnp.float32))
        return (y + self.bias[...].astype(jnp.float32)).astype(x.dtype)

    def _update(self, y: Float[Array, "*B D"]) -> tuple[Float[Array, " D"], Float[Array, " D"]]:
        """The batch's mean and variance, after moving the running ones towards them."""
        n = y.size // y.shape[-1]
        if n < 2:
            raise ValueError("batch norm cannot train on one value per channel; use a batch of 2 or more")
        axes = tuple(range(y.ndim - 1))
        mean, var = y.mean(axes), y.var(axes)
        # PyTorch normalises by the biased variance but keeps the unbiased one.
        for running, new in ((self.mean, mean), (self.var, var * (n / (n - 1)))):
            moved = running[...] + self.momentum * (jax.lax.stop_gradient(new) - running[...])
            running.set_value(moved.astype(running.dtype))
        self.count.set_value(self.count[...] + 1)
        return mean, var


class PReLU(nnx.Module):
    """x where it is positive, slope * x elsewhere; one slope per channel."""

    def __init__(self, size: int):
        self.slope = nnx.Param(jnp.full(size, 0.25))

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        return jnp.where(x >= 0, x, self.slope[...].astype(x.dtype) * x)
