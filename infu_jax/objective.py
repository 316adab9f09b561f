"""The training objective: the rectified-flow loss of a batch, with everything random given or drawn.

Source: paper section 3.4; diffusers `train_controlnet_flux.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from infu_jax import flow, latents, sampler
from infu_jax.identity_loss import identity_loss
from infu_jax.models.autoencoder import sample_latents
from infu_jax.models.flux import Residuals
from infu_jax.train_config import ObjectiveConfig, TrainConfig

# Model -> parameter path -> array: what is trained, and what has its shape (gradients, moments, averages).
Params = Mapping[str, Mapping[str, Any]]
Models = Mapping[str, nnx.Module]
Batch = Mapping[str, jax.Array]  # see `data_pipeline.loader.Loader`


class Draws(NamedTuple):
    """What is drawn for each picture of a batch."""

    t: Float[Array, " B"]  # time in (0, 1), 1 is noise
    noise: Float[Array, "B h w z"]
    latent_noise: Float[Array, "B h w z"]  # for sampling the target's latents from their moments
    control_noise: Float[Array, "B h w z"]  # the same for the control image


class Encoded(NamedTuple):
    """A batch after the frozen encoders."""

    x0: Float[Array, "B h w z"]  # latents of the target
    control: Float[Array, "B h w z"] | None
    text: sampler.Text
    id_embedding: Float[Array, "B E"] | None  # zero where the identity was dropped
    face_box: Float[Array, "B 4"] | None  # left, top, right, bottom in pixels of the target; None: the loss has no weights
    face_points: Float[Array, "B 5 2"] | None  # the target's five keypoints, in its pixels; None: there is no identity loss


class Losses(NamedTuple):
    """Of each picture."""

    total: Float[Array, " B"]
    identity: Float[Array, " B"] | None  # as it is in `total`, but for its weight


def draw(key: Key[Array, ""], shape: tuple[int, ...], cfg: ObjectiveConfig, schedule: flow.ScheduleConfig) -> Draws:
    """Times and noises for latents of `shape` (B, h, w, z)."""
    keys = jax.random.split(key, 4)
    t = flow.logit_normal_times(keys[0], shape[0], cfg.time_mean, cfg.time_std)
    if cfg.shift_times:
        t = flow.shift_times(t, (shape[1] // latents.PATCH) * (shape[2] // latents.PATCH), schedule)
    return Draws(t, *(jax.random.normal(k, shape) for k in keys[1:]))


def encode(models: Models, batch: Batch, draws: Draws, dtype) -> Encoded:
    """What the transformers are given, from a batch's features or, where it has none, from its pictures and token ids."""
    vae = models["autoencoder"]

    def sample(name: str, pixels: str, noise):
        if f"{name}_mean" in batch:
            mean, logvar = batch[f"{name}_mean"], batch[f"{name}_logvar"]
        else:
            mean, logvar = vae.moments(batch[pixels].astype(dtype) / 127.5 - 1)
        return sample_latents(vae.cfg, mean.astype(jnp.float32), logvar.astype(jnp.float32), noise)

    txt = batch["txt"].astype(dtype) if "txt" in batch else models["t5"](batch["t5_ids"], dtype=dtype)
    y = batch["y"].astype(dtype) if "y" in batch else models["clip"](batch["clip_ids"], dtype=dtype)[1]
    x0, text = sample("latent", "pixels", draws.latent_noise), sampler.Text(txt, y)
    face = batch.get("face_box"), batch.get("face_points")
    if "infusenet" not in models:
        return Encoded(x0, None, text, None, *face)
    if "id_embedding" in batch:
        id_embedding = batch["id_embedding"].astype(jnp.float32)
    else:
        id_embedding = models["arcface"](2 * (batch["id_crop"].astype(jnp.float32) / 255) - 1)  # as `face.arcface_input`
    id_embedding = jnp.where(batch["id_keep"][:, None], id_embedding, 0.0)
    return Encoded(x0, sample("control", "control", draws.control_noise), text, id_embedding, *face)


def losses(models: Models, given: Encoded, draws: Draws, cfg: TrainConfig, dtype, residuals: Residuals | None = None) -> Losses:
    """Mean squared error of the velocity, of each picture, in float32; weighted by `token_weights` where the batch says where faces are.

    With the faces' points, plus `identity_loss` of the picture that the velocity leads to; less of it where that is far, since it is blurred then.

    residuals: InfuseNet's, where they have been computed already; it need not be among `models` then.
    """
    h, w = given.x0.shape[1:3]
    z, velocity = interpolated(given, draws)
    told = conditions(models, given, h, w, cfg, cfg.objective.guidance, dtype)
    predicted, _ = sampler.velocity(models["flux"], models.get("infusenet"), z, draws.t, told, dtype, residuals=residuals, remat=cfg.remat)
    errors = jnp.square(predicted - velocity).mean(2)
    if given.face_box is not None:
        pixels = models["autoencoder"].cfg.downscale * latents.PATCH
        errors = errors * token_weights(given.face_box, h // latents.PATCH, w // latents.PATCH, pixels, cfg.objective.face_weight)
    if given.face_points is None:
        return Losses(errors.mean(1), None)
    every = cfg.objective.id_every
    z, predicted, t, points, who = jax.tree.map(lambda x: x[::every], (z, predicted, draws.t, given.face_points, given.id_embedding))
    x0 = latents.unpack(z - t[:, None, None] * predicted, h, w)
    unlike = every * (1 - t) * identity_loss(models["arcface"], models["autoencoder"], x0, points, who, dtype)
    unlike = jnp.zeros_like(draws.t).at[::every].set(unlike)
    return Losses(errors.mean(1) + cfg.objective.id_weight * unlike, unlike)


def token_weights(box: Float[Array, "B 4"], rows: int, columns: int, pixels: int, face_weight: float) -> Float[Array, "B L"]:
    """Weights of a picture's tokens, of `pixels` x `pixels` each: `face_weight` in the box, 1 outside, between them on its border; then scaled to mean 1."""

    def inside(low: Float[Array, " B"], high: Float[Array, " B"], count: int) -> Float[Array, "B n"]:
        """The share of each token that lies in the box, along one axis."""
        start = pixels * jnp.arange(count, dtype=jnp.float32)
        return jnp.clip(jnp.minimum(high[:, None], start + pixels) - jnp.maximum(low[:, None], start), 0, pixels) / pixels

    left, top, right, bottom = box.T
    share = inside(top, bottom, rows)[:, :, None] * inside(left, right, columns)[:, None]
    weights = 1 + (face_weight - 1) * share.reshape(len(box), -1)
    return weights / weights.mean(1, keepdims=True)


def interpolated(given: Encoded, draws: Draws) -> tuple[Float[Array, "B L C"], Float[Array, "B L C"]]:
    """The packed latents that the models see, and the velocity that they are to predict there."""
    return flow.interpolate(latents.pack(given.x0), latents.pack(draws.noise), draws.t)


def conditions(models: Models, given: Encoded, h: int, w: int, cfg: TrainConfig, guidance: float, dtype) -> sampler.Conditions:
    """What the velocity depends on besides latents (of h x w cells) and time."""
    who = identity(models, given, h, w, cfg, dtype) if "infusenet" in models else None
    return sampler.conditions(models["flux"].cfg, given.text, h, w, guidance=guidance, identity=who)


def identity(models: Models, given: Encoded, h: int, w: int, cfg: TrainConfig, dtype) -> sampler.Identity:
    """What InfuseNet is told."""
    id_tokens = models["resampler"](given.id_embedding[:, None].astype(dtype))
    control = latents.pack(given.control.astype(dtype))
    return sampler.identity(models["infusenet"].cfg, id_tokens, control, h, w, guidance=cfg.objective.infusenet_guidance, scale=1.0)


def latent_shape(frozen: Models, batch: Batch) -> tuple[int, ...]:
    """(B, h, w, z) of a batch's latents."""
    if "latent_mean" in batch:
        return batch["latent_mean"].shape
    cfg = frozen["autoencoder"].cfg
    b, height, width, _ = batch["pixels"].shape
    return b, height // cfg.downscale, width // cfg.downscale, cfg.z_channels
