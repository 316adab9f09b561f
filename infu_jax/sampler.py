"""The denoising loop: base model and InfuseNet as one velocity, followed from noise to latents.

Source: InfiniteYou's `pipeline_flux_infusenet.py`; BFL flux `sampling.denoise`.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from infu_jax.config import FluxConfig, InfuseNetConfig, Remat
from infu_jax.flow import Schedule, euler_step
from infu_jax.latents import position_ids
from infu_jax.models.flux import Flux, Modulation, Residuals, RoPE, rope
from infu_jax.models.infusenet import InfuseNet


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
    """The models' modulations, made ahead of the loop; each array may have an axis of times in front."""

    flux: Modulation
    infusenet: Modulation | None  # None: the base model alone
    negative: Modulation | None  # the base model's for the negative prompt


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
    remat: Remat = "block",
) -> tuple[Float[Array, "B L C"], Residuals | None]:
    """Velocity of `img` at time `t` in float32, and the residuals that went into it; the models compute in `dtype`.

    t: one time for all pictures, or one for each (B,).
    tables: the models' modulations at `t`; by default they are computed here.
    residuals: InfuseNet's, where they have been computed already and `given` has no identity.
    remat: what a backward pass keeps, see `layers.scan`.
    """
    mods = tables or Tables(None, None, None)
    t, x = jnp.broadcast_to(t, len(img)), img.astype(dtype)
    if given.identity is not None:
        who = given.identity
        residuals = infusenet(x, who.id_tokens, who.control, who.pe, t, given.text.y, who.guidance, who.scale, modulation=mods.infusenet, remat=remat)
    v = flux(x, given.text.txt, given.pe, t, given.text.y, given.guidance, residuals, modulation=mods.flux, remat=remat).astype(jnp.float32)
    if given.negative is not None:
        # The negative branch is the base model's own: no InfuseNet, the same distilled guidance.
        away = flux(x, given.negative.txt, given.pe, t, given.negative.y, given.guidance, modulation=mods.negative, remat=remat).astype(jnp.float32)
        v = away + given.true_cfg * (v - away)
    return v, residuals


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

    def step(k, z):
        v, _ = velocity(flux, infusenet, z, schedule.model_times[k], given, dtype, tables=tables and at_step(tables, k))
        return euler_step(z, v, schedule.times[k], schedule.times[k + 1])

    return jax.lax.fori_loop(first, last, step, latents)


def at_step(tables: Tables, k: Int[Array, ""] | int) -> Tables:
    """The modulations of step k; see `denoise`."""
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, k % len(x), keepdims=False), tables)


def segments(steps: int, first: int, last: int, most: int) -> list[tuple[int, int, bool]]:
    """The loop split at InfuseNet's window [first, last) and at multiples of `most`: (from, to, whether InfuseNet acts), empty parts left out."""
    cuts = sorted({0, first, last, steps, *range(0, steps, most)})
    return [(start, stop, first <= start < last) for start, stop in zip(cuts, cuts[1:])]
