"""The denoising loop: base model and InfuseNet as one velocity, followed from noise to latents.

Source: InfiniteYou's `pipeline_flux_infusenet.py`; BFL flux `sampling.denoise`.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from infu_jax.config import FluxConfig, InfuseNetConfig, Remat
from infu_jax.flow import Schedule, euler_step
from infu_jax.latents import position_ids
from infu_jax.models.flux import BlockInputs, Flux, Modulation, Residuals, RoPE, double_block, interval, joined_rope, rope, single_block
from infu_jax.models.infusenet import InfuseNet, double_residual, single_residual
from infu_jax.models.layers import part, scan
from infu_jax.sharding import constrain_tokens, join, platform

# What the loops over parts of the base's blocks are called in a compiled program (`_beside`): it does not tell how often they run.
BESIDE = ("base_double_blocks", "base_single_blocks")


class Text(NamedTuple):
    """A prompt as the transformers take it."""

    txt: Float[Array, "B T E"]  # T5 features
    y: Float[Array, "B V"]  # pooled CLIP vector


class Identity(NamedTuple):
    """What InfuseNet is given."""

    id_tokens: Float[Array, "B Q E"]
    control: Float[Array, "B L C"]  # packed latents of the control image
    pe: RoPE  # of ID tokens and image tokens
    guidance: Float[Array, " B"]
    scale: Float[Array, ""]


class Conditions(NamedTuple):
    """Everything that the velocity depends on besides latents and time."""

    text: Text
    pe: RoPE  # of text and image tokens
    guidance: Float[Array, " B"]
    identity: Identity | None  # None: the base model alone
    negative: Text | None  # None: no true classifier-free guidance
    true_cfg: Float[Array, ""]


class Tables(NamedTuple):
    """The models' modulations as rows (`MMDiT.rows`), made ahead of the loop; each array may have an axis of times in front."""

    flux: Float[Array, "*times B R D"]
    infusenet: Float[Array, "*times B Q D"] | None  # None: the base model alone
    negative: Float[Array, "*times B R D"] | None  # the base model's for the negative prompt


def identity(cfg: InfuseNetConfig, id_tokens, control, h: int, w: int, *, guidance: float, scale: float) -> Identity:
    """InfuseNet's conditions for latents of h x w cells, from ID tokens (B, Q, E) and packed control latents (B, L, C)."""
    return Identity(
        id_tokens=id_tokens,
        control=control,
        pe=rope(position_ids(id_tokens.shape[1], h, w), cfg),
        guidance=jnp.full(len(id_tokens), guidance, jnp.float32),
        scale=jnp.asarray(scale, jnp.float32),
    )


def conditions(
    cfg: FluxConfig, text: Text, h: int, w: int, *, guidance: float, identity: Identity | None = None, negative: Text | None = None, true_cfg: float = 1.0
) -> Conditions:
    """Everything the velocity of latents of h x w cells depends on."""
    return Conditions(
        text=text,
        pe=rope(position_ids(text.txt.shape[1], h, w), cfg),
        guidance=jnp.full(len(text.txt), guidance, jnp.float32),
        identity=identity,
        negative=negative,
        true_cfg=jnp.asarray(true_cfg, jnp.float32),
    )


def velocity(
    flux: Flux,
    infusenet: InfuseNet | None,
    img: Float[Array, "B L C"],
    t: Float[Array, "*each"],
    given: Conditions,
    dtype,
    *,
    tables: Tables | None = None,
    residuals: Residuals | None = None,
    beside: bool = False,
    remat: Remat = "block",
) -> tuple[Float[Array, "B L C"], Residuals | None]:
    """Velocity of `img` at time `t` in float32, and the residuals that went into it; the models compute in `dtype`.

    t: one time for all pictures, or one for each (B,).
    tables: the models' modulations at `t`; by default they are computed here.
    residuals: InfuseNet's, where they have been computed already and `given` has no identity.
    beside: InfuseNet runs beside the base, see `_beside`: the same velocity in less memory, without residuals to return and without gradient.
    remat: what a backward pass keeps, see `layers.scan`.
    """
    from_rows = lambda model, rows: None if rows is None else model.from_rows(rows)  # noqa: E731
    mods, own, opposed = map(from_rows, (flux, infusenet, flux), tables or (None, None, None))
    t, x = jnp.broadcast_to(t, len(img)), img.astype(dtype)
    if given.identity is not None and beside:
        v = _beside(flux, infusenet, x, t, given, mods, own)
    else:
        if given.identity is not None:
            who = given.identity
            residuals = infusenet(x, who.id_tokens, who.control, who.pe, t, given.text.y, who.guidance, who.scale, modulation=own, remat=remat)
        v = flux(x, given.text.txt, given.pe, t, given.text.y, given.guidance, residuals, modulation=mods, remat=remat)
    v = v.astype(jnp.float32)
    if given.negative is not None:
        # The negative branch is the base model's own: no InfuseNet, the same distilled guidance.
        away = flux(x, given.negative.txt, given.pe, t, given.negative.y, given.guidance, modulation=opposed, remat=remat).astype(jnp.float32)
        v = away + given.true_cfg * (v - away)
    return v, residuals


def _beside(
    flux: Flux, infusenet: InfuseNet, x: Float[Array, "B L C"], t: Float[Array, " B"], given: Conditions, mods: Modulation | None, own: Modulation | None
) -> Float[Array, "B L C"]:
    """The base's velocity with InfuseNet's residuals, each of which is made just before the blocks that it is added after.

    So there is one of them at a time. Together those of the release, 14, are as large as all else that a picture takes beside the weights.
    """
    who, text = given.identity, given.text
    base = BlockInputs(None if mods else flux.embed_vec(t, text.y, given.guidance, x.dtype), joined_rope(given.pe, text.txt.shape[1]))
    vec = None if own else infusenet.embed_vec(t, text.y, who.guidance, x.dtype)
    branch = BlockInputs(vec, joined_rope(who.pe, who.id_tokens.shape[1]), who.scale.astype(x.dtype))

    def stage(name: str, base_step, branch_step, base_blocks, branch_blocks, depth: int, count: int, carry, base_mods, branch_mods):
        """One stack of the base and one of InfuseNet, of `depth` and `count` blocks."""
        if not count:
            return part(lambda *xs: base_step(*xs, None), base_blocks, carry[0], base_mods, 0, depth), carry[1]
        every = interval(depth, count)

        def step(pair, carry, xs):
            n, mod = xs
            tokens, residual = branch_step(pair, carry[1], mod)
            first, last = n * every, jnp.minimum((n + 1) * every, depth)
            with jax.named_scope(name):
                return (part(lambda *xs: base_step(*xs, residual), base_blocks, carry[0], base_mods, first, last), tokens), None

        return scan(step, branch_blocks, carry, (jnp.arange(count), branch_mods))[0]

    txt_count, id_count = text.txt.shape[1], who.id_tokens.shape[1]
    (img, txt), (own_img, ids) = stage(
        BESIDE[0],
        lambda block, carry, mod, residual: double_block(block, carry, mod, base, residual),
        lambda pair, carry, mod: double_residual(pair, carry, mod, branch),
        flux.double_blocks, nnx.List([infusenet.double_blocks, infusenet.double_out]), flux.cfg.depth, infusenet.cfg.depth,
        (flux.embed(x, text.txt), infusenet.embed(x, who.id_tokens, who.control)), mods and (mods.img, mods.txt), own and (own.img, own.txt),
    )  # fmt: skip
    y, _ = stage(
        BESIDE[1],
        lambda block, y, mod, residual: single_block(block, y, mod, base, txt_count, residual),
        lambda pair, y, mod: single_residual(pair, y, mod, branch, id_count),
        flux.single_blocks, nnx.List([infusenet.single_blocks, infusenet.single_out]), flux.cfg.depth_single_blocks, infusenet.cfg.depth_single_blocks,
        tuple(constrain_tokens(join(*pair)) for pair in ((txt, img), (ids, own_img))), mods and mods.single, own and own.single,
    )  # fmt: skip
    return flux.finish(y, txt_count, mods, base.vec)


def denoise(
    flux: Flux,
    infusenet: InfuseNet | None,
    latents: Float[Array, "B L C"],
    schedule: Schedule,
    first: Int[Array, ""] | int,
    last: Int[Array, ""] | int,
    given: Conditions,
    dtype,
    tables: Tables | None = None,
) -> Float[Array, "B L C"]:
    """Euler steps first .. last - 1 along `schedule`. The bounds may be traced, so any part of the loop is one program.

    tables: modulations of n steps, the first of which is a multiple of n; all steps must be of these. By default each step computes its own.
    """
    beside = platform() != "gpu"  # whose loops of a length that is known only when they run wait for the host before each turn

    def step(k, z):
        v, _ = velocity(flux, infusenet, z, schedule.model_times[k], given, dtype, tables=tables and at_step(tables, k), beside=beside)
        return euler_step(z, v, schedule.times[k], schedule.times[k + 1])

    return jax.lax.fori_loop(first, last, step, latents)


def at_step(tables: Tables, k: Int[Array, ""] | int) -> Tables:
    """The modulations of step k; see `denoise`."""
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, k % len(x), keepdims=False), tables)


def segments(steps: int, first: int, last: int, most: int) -> list[tuple[int, int, bool]]:
    """The loop split at InfuseNet's window [first, last) and at multiples of `most`: (from, to, whether InfuseNet acts), empty parts left out."""
    cuts = sorted({0, first, last, steps, *range(0, steps, most)})
    return [(start, stop, first <= start < last) for start, stop in zip(cuts, cuts[1:])]
