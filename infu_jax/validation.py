"""How good a model in training is, on people it never sees: its loss at fixed times and noises, and pictures beside the photo."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from infu_jax import face, flow, latents, objective, pictures, sampler
from infu_jax.checkpoint import with_params
from infu_jax.objective import Batch, Draws, Models, Params
from infu_jax.sharding import batch_axes
from infu_jax.train_config import TrainConfig

# Steps count up from 0 and never get here: noises of their own, the same at every validation.
_STREAM = 2**31 - 1


class Validation:
    """The jitted programs of a validation. All processes call both methods, under `jax.set_mesh(mesh)`."""

    def __init__(self, cfg: TrainConfig, trained: Models, mesh: Mesh, schedule: flow.ScheduleConfig, dtype: Any, detector: face.Detector):
        self._cfg, self._mesh, self._detector, self._schedule = cfg, mesh, detector, schedule
        self._keys = jax.random.fold_in(jax.random.key(cfg.seed), _STREAM)
        models = lambda params, frozen: {**frozen, **{name: with_params(trained[name], params[name]) for name in params}}  # noqa: E731

        @jax.jit
        def loss(params: Params, frozen: Models, batch: Batch, t: jax.Array, key: jax.Array):
            draws = self._draws(key, objective.latent_shape(frozen, batch))._replace(t=t)
            everything = models(params, frozen)
            return objective.losses(everything, objective.encode(everything, batch, draws, dtype), draws, cfg, dtype).total.mean()

        @partial(jax.jit, static_argnames="steps")
        def paint(params: Params, frozen: Models, batch: Batch, key: jax.Array, schedule: flow.Schedule, steps: int):
            everything = models(params, frozen)
            shape = objective.latent_shape(frozen, batch)
            draws = self._draws(key, shape)
            given = objective.encode(everything, batch, draws, dtype)
            told = objective.conditions(everything, given, *shape[1:3], cfg, cfg.validation.guidance, dtype)
            img = sampler.denoise(everything["flux"], everything.get("infusenet"), latents.pack(draws.noise), schedule, 0, steps, told, dtype)
            decode = lambda z: everything["autoencoder"].decode(z.astype(dtype)).astype(jnp.float32)  # noqa: E731
            return decode(latents.unpack(img, *shape[1:3])), decode(given.x0), given.id_embedding

        self._loss, self._paint = loss, paint
        self._embed = jax.jit(lambda arcface, crops: arcface(crops))

    def _draws(self, key: jax.Array, shape: tuple[int, ...]) -> Draws:
        drawn = objective.draw(key, shape, self._cfg.objective, self._schedule)
        return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, P(batch_axes(self._mesh, len(x)))), drawn)

    def loss(self, params: Params, frozen: Models, batches: Sequence[Batch]) -> dict[str, float]:
        """Mean loss over the batches: `validation/loss`, and `validation/loss_t0.1` and so on for each time."""
        sums = np.zeros(len(self._cfg.validation.times))
        for n, batch in enumerate(batches):
            size = len(batch["record"])
            for k, t in enumerate(self._cfg.validation.times):
                sums[k] += self._loss(params, frozen, batch, jnp.full(size, t, jnp.float32), jax.random.fold_in(self._keys, n))
        each = sums / len(batches)
        return {"validation/loss": float(each.mean()), **{f"validation/loss_t{t:g}": float(x) for t, x in zip(self._cfg.validation.times, each)}}

    def pictures(self, params: Params, frozen: Models, batch: Batch) -> tuple[np.ndarray, dict[str, float]]:
        """A sheet of photo, target and picture of the batch's first people, and their mean `validation/similarity` to the photo.

        A picture without a face counts as similarity 0, and its share is `validation/faces`.
        """
        h, w = objective.latent_shape(frozen, batch)[1:3]
        steps = self._cfg.validation.sampling_steps
        schedule = jax.tree.map(jnp.asarray, flow.schedule(steps, (h // latents.PATCH) * (w // latents.PATCH), self._schedule))
        made, target, id_embedding = (None if x is None else self._fetch(x) for x in self._paint(params, frozen, batch, self._keys, schedule, steps))
        made, target = _bytes(made), self._fetch(batch["pixels"]) if "pixels" in batch else _bytes(target)
        count = min(self._cfg.validation.pictures, len(made))
        likeness = [self._similarity(frozen, image, who) for image, who in zip(made[:count], id_embedding[:count])] if id_embedding is not None else []
        photos = self._fetch(batch["id_crop"])[..., ::-1] if "id_crop" in batch else [None] * count
        records = self._fetch(batch["record"])
        rows = []
        for n in range(count):
            cells = [] if photos[n] is None else [(pictures.thumbnail(np.ascontiguousarray(photos[n])), "identity")]
            said = "picture" if not likeness else "picture, no face found" if likeness[n] is None else f"picture, identity similarity {likeness[n]:.3f}"
            rows.append((f"record {records[n]}", [*cells, (pictures.thumbnail(target[n]), "target"), (pictures.thumbnail(made[n]), said)]))
        values = {}
        if likeness:
            values = {
                "validation/similarity": float(np.mean([x or 0.0 for x in likeness])),
                "validation/faces": float(np.mean([x is not None for x in likeness])),
            }
        return pictures.contact_sheet(rows), values

    def _similarity(self, frozen: Models, image: np.ndarray, id_embedding: np.ndarray) -> float | None:
        """Cosine of the face in a picture and an identity; None where no face is found."""
        arcface = frozen["arcface"]
        try:
            found = face.largest_face(self._detector, image)
        except face.NoFaceError:
            return None
        crop = face.arcface_input(face.align(image, found.keypoints, arcface.cfg.image_size))
        return float(face.cosine(np.asarray(self._embed(arcface, crop[None]))[0], id_embedding))

    def _fetch(self, x: jax.Array) -> np.ndarray:
        """The whole array, on every process."""
        return np.asarray(x if x.is_fully_addressable else jax.device_put(x, NamedSharding(self._mesh, P())))


def _bytes(image: np.ndarray) -> np.ndarray:
    return np.round(np.clip(image * 0.5 + 0.5, 0.0, 1.0) * 255.0).astype(np.uint8)
