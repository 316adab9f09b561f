"""FLUX.1: a rectified-flow transformer of double-stream and single-stream MMDiT blocks.

Source: black-forest-labs/flux `model.py` and `modules/layers.py`; names are theirs. Blocks of one kind are
stacked and scanned, so compile time does not grow with depth.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from infu_jax.attention import attention
from infu_jax.config import FluxConfig, Remat
from infu_jax.models.layers import LayerNorm, Linear, RMSNorm, scan, stack
from infu_jax.sharding import SUBLANES, add_to_second, constrain_batch, constrain_tokens, join, platform, streams


class RoPE(NamedTuple):
    """Rotary angles of every token, text first: cosines and sines, each (S, K / 2) float32."""

    cos: Float[Array, "S k"]
    sin: Float[Array, "S k"]


class Residuals(NamedTuple):
    """What a control branch adds to the image tokens: one entry per branch block, (n, B, L, D) each."""

    double: Float[Array, "n B L D"]
    single: Float[Array, "m B L D"]


class Modulation(NamedTuple):
    """Shifts, scales and gates of every block and of the final layer: all that a model takes from time, guidance and pooled text.

    With it a model needs none of the parameters in `MODULATION`, which may be None.
    """

    img: Float[Array, "n B 6 D"]  # of the double-stream blocks
    txt: Float[Array, "n B 6 D"]
    single: Float[Array, "m B 3 D"]
    final: Float[Array, "B 2 D"] | None  # InfuseNet has no final layer


class MMDiT(nnx.Module):
    """What Flux and InfuseNet share: embedders and the two stacks of blocks."""

    def __init__(self, cfg: FluxConfig, *, rngs: nnx.Rngs):
        self.cfg = cfg
        self.img_in = Linear(cfg.in_channels, cfg.hidden_size, rngs=rngs)
        self.txt_in = Linear(cfg.context_in_dim, cfg.hidden_size, rngs=rngs)
        self.time_in = MLPEmbedder(TIME_CHANNELS, cfg.hidden_size, rngs=rngs)
        self.vector_in = MLPEmbedder(cfg.vec_in_dim, cfg.hidden_size, rngs=rngs)
        self.guidance_in = MLPEmbedder(TIME_CHANNELS, cfg.hidden_size, rngs=rngs) if cfg.guidance_embed else None
        self.double_blocks = stack(lambda rngs: DoubleStreamBlock(cfg, rngs=rngs), cfg.depth, rngs)
        self.single_blocks = stack(lambda rngs: SingleStreamBlock(cfg, rngs=rngs), cfg.depth_single_blocks, rngs)

    def embed_vec(self, t: Float[Array, " B"], y: Float[Array, "B V"], guidance: Float[Array, " B"], dtype) -> Float[Array, "B D"]:
        """The vector that modulates every block: time + guidance (where the model was distilled for it) + pooled text."""
        vec = self.time_in(sinusoid(t).astype(dtype))
        if self.guidance_in is not None:
            vec = vec + self.guidance_in(sinusoid(guidance).astype(dtype))
        return constrain_batch(vec + self.vector_in(y.astype(dtype)))

    def modulation(self, t: Float[Array, " B"], y: Float[Array, "B V"], guidance: Float[Array, " B"], dtype) -> Modulation:
        """What `__call__` computes of these three, ahead of it."""
        vec = self.embed_vec(t, y, guidance, dtype)

        def of(blocks: nnx.Module):
            return scan(lambda block, carry, _: (carry, block.modulation(vec)), blocks, None)[1]

        return Modulation(*of(self.double_blocks), of(self.single_blocks), None)

    def rows(self, modulation: Modulation) -> Float[Array, "B R D"]:
        """A modulation as one array, for tables of many.

        Its rows are filled up to a number that a TPU stores without gaps. Of arrays as (n, B, 6, D) XLA would make another copy, to lie as the
        loop over blocks wants them.
        """
        stacks = [x.swapaxes(0, 1).reshape(x.shape[1], -1, x.shape[-1]) for x in modulation[:3]]
        rows = jnp.concatenate([*stacks, *modulation[3:]] if modulation.final is not None else stacks, axis=1)
        return jnp.pad(rows, ((0, 0), (0, -rows.shape[1] % SUBLANES), (0, 0)))

    def from_rows(self, rows: Float[Array, "B R D"]) -> Modulation:
        """The inverse of `rows`."""
        double, single = 6 * self.cfg.depth, 3 * self.cfg.depth_single_blocks

        def of(start: int, count: int, each: int) -> jax.Array:
            return rows[:, start : start + count].reshape(rows.shape[0], count // each, each, rows.shape[-1]).swapaxes(0, 1)

        return Modulation(of(0, double, 6), of(double, double, 6), of(2 * double, single, 3), None)


class Flux(MMDiT):
    """The base model: predicts the velocity of the image tokens."""

    def __init__(self, cfg: FluxConfig, *, rngs: nnx.Rngs):
        super().__init__(cfg, rngs=rngs)
        self.final_layer = FinalLayer(cfg, rngs=rngs)

    def __call__(
        self,
        img: Float[Array, "B L C"],
        txt: Float[Array, "B T E"],
        pe: RoPE,
        t: Float[Array, " B"],
        y: Float[Array, "B V"],
        guidance: Float[Array, " B"],
        residuals: Residuals | None = None,
        *,
        modulation: Modulation | None = None,
        remat: Remat = "block",
    ) -> Float[Array, "B L C"]:
        """Velocity of `img` at time `t`, computed in img's dtype.

        Args:
            img: packed latents.
            txt: T5 features of the prompt.
            pe: rotary angles of text and image tokens, from `rope`.
            t: times in [0, 1], 1 is noise.
            y: pooled CLIP vector of the prompt.
            guidance: distilled guidance scale; ignored by models without guidance embedding (schnell).
            residuals: added to the image tokens, entry b // ceil(depth / n) after block b.
            modulation: from the method of this name; `t`, `y`, `guidance` and the parameters in `MODULATION` are then not used.
            remat: what the backward pass keeps, see `layers.scan`.
        """
        txt_tokens = txt.shape[1]
        vec = None if modulation else self.embed_vec(t, y, guidance, img.dtype)
        given = BlockInputs(vec, joined_rope(pe, txt_tokens))
        added = residuals or Residuals((), ())
        of = lambda stack, index: stack[index] if len(stack) else None  # noqa: E731

        def double(block, carry, x):
            index, mods = x
            return double_block(block, carry, mods, given, of(added.double, index)), None

        indices = np.arange(self.cfg.depth) // interval(self.cfg.depth, len(added.double))
        mods = modulation and (modulation.img, modulation.txt)
        (img, txt), _ = scan(double, self.double_blocks, self.embed(img, txt), (indices, mods), remat=remat)

        def single(block, x, xs):
            index, mod = xs
            return single_block(block, x, mod, given, txt_tokens, of(added.single, index)), None

        indices = np.arange(self.cfg.depth_single_blocks) // interval(self.cfg.depth_single_blocks, len(added.single))
        x, _ = scan(single, self.single_blocks, constrain_tokens(join(txt, img)), (indices, modulation and modulation.single), remat=remat)
        return self.finish(x, txt_tokens, modulation, vec)

    def embed(self, img: Float[Array, "B L C"], txt: Float[Array, "B T E"]) -> tuple[Float[Array, "B L D"], Float[Array, "B T D"]]:
        """Image tokens and text tokens as the first block gets them."""
        return constrain_tokens(self.img_in(img)), constrain_tokens(self.txt_in(txt.astype(img.dtype)))

    def finish(self, x: Float[Array, "B S D"], txt_tokens: int, modulation: Modulation | None, vec: Float[Array, "B D"] | None) -> Float[Array, "B L C"]:
        """The velocity, from what the last block gives."""
        return self.final_layer(streams(x, txt_tokens)[1], modulation.final if modulation else self.final_layer.modulation(vec))

    def modulation(self, t: Float[Array, " B"], y: Float[Array, "B V"], guidance: Float[Array, " B"], dtype) -> Modulation:
        """As MMDiT's, and of the final layer."""
        return super().modulation(t, y, guidance, dtype)._replace(final=self.final_layer.modulation(self.embed_vec(t, y, guidance, dtype)))

    def from_rows(self, rows: Float[Array, "B R D"]) -> Modulation:
        """As MMDiT's, and of the final layer."""
        before = 12 * self.cfg.depth + 3 * self.cfg.depth_single_blocks
        return super().from_rows(rows)._replace(final=rows[:, before : before + 2])


class BlockInputs(NamedTuple):
    """What every block of a model is given."""

    vec: Float[Array, "B D"] | None  # None: its modulation is given
    pe: RoPE  # from `joined_rope`
    scale: Float[Array, ""] | None = None  # of InfuseNet's residuals


def double_block(block, carry, mods, given: BlockInputs, residual=None):
    """One of the base's double stack: (image tokens, text tokens) -> the same, and what InfuseNet adds to them."""
    img, txt = block(*carry, mods or block.modulation(given.vec), given.pe)
    img = img if residual is None else img + residual.astype(img.dtype)
    return constrain_tokens(img), constrain_tokens(txt)


def single_block(block, x, mod, given: BlockInputs, txt_tokens: int, residual=None):
    """One of the base's single stack: text tokens and image tokens in one, and what InfuseNet adds to the latter."""
    x = block(x, block.modulation(given.vec) if mod is None else mod, given.pe)
    return constrain_tokens(x if residual is None else add_to_second(x, txt_tokens, residual.astype(x.dtype)))


class DoubleStreamBlock(nnx.Module):
    """MMDiT block: image and text keep separate weights and attend jointly."""

    def __init__(self, cfg: FluxConfig, *, rngs: nnx.Rngs):
        self.img, self.txt = Stream(cfg, rngs=rngs), Stream(cfg, rngs=rngs)

    def modulation(self, vec: Float[Array, "B D"]) -> tuple[Float[Array, "B 6 D"], Float[Array, "B 6 D"]]:
        """Of the image's side and of the text's: shift, scale and gate of the attention, then of the MLP."""
        return self.img.modulation(vec), self.txt.modulation(vec)

    def __call__(
        self, img: Float[Array, "B L D"], txt: Float[Array, "B T D"], mods: tuple[Float[Array, "B 6 D"], Float[Array, "B 6 D"]], pe: RoPE
    ) -> tuple[Float[Array, "B L D"], Float[Array, "B T D"]]:
        img_mod, txt_mod = (jnp.split(mod, 6, axis=1) for mod in mods)  # six of (B, 1, D) each
        txt_qkv = self.txt.project(txt, *txt_mod[:2])
        img_qkv = self.img.project(img, *img_mod[:2])
        # Text first: the checkpoints and the position ids assume this order.
        q, k, v = (join(*pair) for pair in zip(txt_qkv, img_qkv))
        attn = attention(apply_rope(q, pe), apply_rope(k, pe), v)
        txt_attn, img_attn = streams(attn, txt.shape[1])
        return self.img.finish(img, img_attn, *img_mod[2:]), self.txt.finish(txt, txt_attn, *txt_mod[2:])


class Stream(nnx.Module):
    """One side of a double-stream block."""

    def __init__(self, cfg: FluxConfig, *, rngs: nnx.Rngs):
        size = cfg.hidden_size
        self.mod = Linear(size, (6, size), rngs=rngs)
        self.norm1 = LayerNorm(size, eps=EPS, affine=False)
        self.qkv = Linear(size, (3, cfg.num_heads, cfg.head_dim), rngs=rngs)
        self.q_norm, self.k_norm = RMSNorm(cfg.head_dim, eps=EPS), RMSNorm(cfg.head_dim, eps=EPS)
        self.attn_out = Linear((cfg.num_heads, cfg.head_dim), size, rngs=rngs)
        self.norm2 = LayerNorm(size, eps=EPS, affine=False)
        self.mlp_in = Linear(size, cfg.mlp_size, rngs=rngs)
        self.mlp_out = Linear(cfg.mlp_size, size, rngs=rngs)

    def modulation(self, vec):
        return modulate(self.mod, vec)

    def project(self, x, shift, scale):
        """Queries, keys and values: three of (B, S, H, K)."""
        q, k, v = jnp.unstack(self.qkv((1 + scale) * self.norm1(x) + shift), axis=2)
        return self.q_norm(q), self.k_norm(k), v

    def finish(self, x, attn, attn_gate, shift, scale, mlp_gate):
        x = x + attn_gate * self.attn_out(attn)
        return x + mlp_gate * self.mlp_out(self.mlp_in.gelu((1 + scale) * self.norm2(x) + shift))


class SingleStreamBlock(nnx.Module):
    """Text and image as one sequence; attention and MLP in parallel, one output projection over both."""

    def __init__(self, cfg: FluxConfig, *, rngs: nnx.Rngs):
        size = cfg.hidden_size
        self.mod = Linear(size, (3, size), rngs=rngs)
        self.norm = LayerNorm(size, eps=EPS, affine=False)
        self.qkv = Linear(size, (3, cfg.num_heads, cfg.head_dim), rngs=rngs)
        self.q_norm, self.k_norm = RMSNorm(cfg.head_dim, eps=EPS), RMSNorm(cfg.head_dim, eps=EPS)
        self.mlp_in = Linear(size, cfg.mlp_size, rngs=rngs)
        # The checkpoints' one projection of [attention, MLP], kept as two so that heads stay an axis; the bias is the MLP's.
        self.attn_out = Linear((cfg.num_heads, cfg.head_dim), size, bias=False, rngs=rngs)
        self.mlp_out = Linear(cfg.mlp_size, size, rngs=rngs)

    def modulation(self, vec: Float[Array, "B D"]) -> Float[Array, "B 3 D"]:
        """Shift, scale and gate."""
        return modulate(self.mod, vec)

    def __call__(self, x: Float[Array, "B S D"], mod: Float[Array, "B 3 D"], pe: RoPE) -> Float[Array, "B S D"]:
        shift, scale, gate = jnp.split(mod, 3, axis=1)
        h = (1 + scale) * self.norm(x) + shift
        q, k, v = jnp.unstack(self.qkv(h), axis=2)
        attn = attention(apply_rope(self.q_norm(q), pe), apply_rope(self.k_norm(k), pe), v)
        return x + gate * self.mlp_out.plus_bias(self.attn_out(attn) + self.mlp_out.product(self.mlp_in.gelu(h)))


def modulate(mod: Linear, vec: Float[Array, "B D"]) -> Float[Array, "B n D"]:
    """Shifts, scales and gates of one layer.

    A TPU multiplies a single row by a matrix in its vector unit, and XLA first copies the whole stack of kernels to where that wants them: 10 GiB
    for FLUX.1 and InfuseNet. Two rows go to the matrix unit, which takes the kernels as they lie. A batch with one row for
    each of several devices is left alone: with two for each, simulated devices could wait for each other for ever (docs/performance.md).
    """
    rows = jnp.repeat(nnx.silu(vec), 2, axis=0) if vec.shape[0] == 1 else nnx.silu(vec)
    return constrain_batch(mod(rows)[: vec.shape[0]])


class FinalLayer(nnx.Module):
    """Modulated norm and projection to patches. Our order is (shift, scale), as in BFL's files."""

    def __init__(self, cfg: FluxConfig, *, rngs: nnx.Rngs):
        self.mod = Linear(cfg.hidden_size, (2, cfg.hidden_size), rngs=rngs)
        self.norm = LayerNorm(cfg.hidden_size, eps=EPS, affine=False)
        self.linear = Linear(cfg.hidden_size, cfg.out_channels, rngs=rngs)

    def modulation(self, vec: Float[Array, "B D"]) -> Float[Array, "B 2 D"]:
        return modulate(self.mod, vec)

    def __call__(self, x: Float[Array, "B L D"], mod: Float[Array, "B 2 D"]) -> Float[Array, "B L C"]:
        shift, scale = jnp.split(mod, 2, axis=1)
        return self.linear((1 + scale) * self.norm(x) + shift)


class MLPEmbedder(nnx.Module):
    """Two linear layers with SiLU between: time, guidance or pooled text -> D."""

    def __init__(self, inputs: int, size: int, *, rngs: nnx.Rngs):
        self.in_layer, self.out_layer = Linear(inputs, size, rngs=rngs), Linear(size, size, rngs=rngs)

    def __call__(self, x: Float[Array, "B I"]) -> Float[Array, "B D"]:
        return self.out_layer(constrain_batch(nnx.silu(constrain_batch(self.in_layer(x)))))


# A quarter of the parameters: those that only make a `Modulation`.
MODULATION = re.compile(r"((double|single)_blocks\.(.*\.)?|final_layer\.)mod\..*|(time|vector|guidance)_in\..*")
EPS = 1e-6
TIME_CHANNELS = 256


def sinusoid(t: Float[Array, " B"]) -> Float[Array, "B 256"]:
    """Features of a time or guidance value, multiplied by 1000 first; cosines, then sines; float32 always.

    In bfloat16 1000 * 3.5 would round to 3504, as it does in the official run; we do not copy that.
    """
    half = TIME_CHANNELS // 2
    # The exponents are rounded to float32 as the reference rounds them: angles reach 3500, where that is 1e-4 in the cosine.
    exponents = np.float32(-math.log(10_000)) * np.arange(half, dtype=np.float32) / np.float32(half)
    freqs = np.exp(exponents.astype(np.float64)).astype(np.float32)
    angles = 1000.0 * t.astype(jnp.float32)[:, None] * freqs
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def rope(ids: np.ndarray, cfg: FluxConfig) -> RoPE:
    """Rotary angles of positions `ids` (S, axes), computed on the host in float64 and rounded once."""
    angles = [ids[:, a, None] * cfg.theta ** -(np.arange(0, dim, 2) / dim) for a, dim in enumerate(cfg.axes_dim)]
    angles = np.concatenate(angles, axis=-1)
    return RoPE(jnp.asarray(np.cos(angles), jnp.float32), jnp.asarray(np.sin(angles), jnp.float32))


def joined_rope(pe: RoPE, first: int) -> RoPE:
    """Angles of two streams, `first` tokens and the rest, in the order in which `sharding.join` has their tokens."""
    return RoPE(*(join(*jnp.split(angle, [first]), axis=0) for angle in pe))


def apply_rope(x: Float[Array, "B S H K"], pe: RoPE) -> Float[Array, "B S H K"]:
    """Rotate the channel pairs (0, 1), (2, 3), ... of each head."""
    rotate = {"tpu": _rotate_by_product, "gpu": _rotate_by_swap}.get(platform(), _rotate_pairs)
    return rotate(x, pe.cos[:, None], pe.sin[:, None])


def _rotate_pairs(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    even, odd = x[..., 0::2].astype(jnp.float32), x[..., 1::2].astype(jnp.float32)
    return jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1).reshape(x.shape).astype(x.dtype)


def _rotate_by_swap(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """The same in one pass over x, which strides are not on a GPU."""
    x = jax.lax.optimization_barrier(x)  # or XLA computes x twice, here and where it is turned around
    swapped = x.reshape(*x.shape[:-1], -1, 2)[..., ::-1].reshape(x.shape)  # (odd, even)
    cos, sin = jnp.repeat(cos, 2, axis=-1), jnp.stack([-sin, sin], axis=-1).reshape(*sin.shape[:-1], -1)
    return (x.astype(jnp.float32) * cos + swapped.astype(jnp.float32) * sin).astype(x.dtype)


def _rotate_by_product(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """The same where every second channel cannot be taken cheaply: XLA lays all of x out anew for that on a TPU, four times for queries and keys.

    A product with zeros and ones, exact in every dtype, puts (-odd, even) in the place of (even, odd), for 2 % of the FLOPs of the projection to
    queries, keys and values.
    """
    size = x.shape[-1]
    swap = np.kron(np.eye(size // 2), [[0, 1], [-1, 0]])
    swapped = jnp.dot(x, jnp.asarray(swap, x.dtype), precision=jax.lax.Precision.HIGHEST)
    cos, sin = (jnp.repeat(angle, 2, axis=-1) for angle in (cos, sin))
    return (x.astype(jnp.float32) * cos + swapped.astype(jnp.float32) * sin).astype(x.dtype)


def interval(depth: int, residuals: int) -> int:
    """How many of `depth` blocks after each other get the same of so many residuals; the last may be fewer."""
    return max(math.ceil(depth / max(residuals, 1)), 1)
