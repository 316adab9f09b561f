"""The face recogniser: ArcFace's architecture and its additive angular margin (arXiv 1801.07698, equation 3), at small size, on drawn people."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from examples.tiny_world import faces
from examples.tiny_world.fitting import Fit, fit
from infu_jax.config import ArcFaceConfig
from infu_jax.models.arcface import ArcFace

SCALE, MARGIN = 24.0, 0.35
"""The paper has 64 and 0.5, for millions of photos; a short training does not converge with them. The margin grows from nothing in the last 30 %."""
SHIFT = 4  # pixels that a crop is moved by at most: detectors are not exact


class Centres(nnx.Module):
    """One direction for each person of the training set, of length 1 at first: Adam's steps do not grow with the length, so long ones hardly turn."""

    def __init__(self, people: int, size: int, *, rngs: nnx.Rngs):
        self.directions = nnx.Param(jax.random.normal(rngs.params(), (people, size)) / size**0.5)

    def __call__(self, embeddings):
        """Cosines to all centres, (B, people)."""
        directions = self.directions[...]
        return embeddings @ (directions / jnp.linalg.norm(directions, axis=-1, keepdims=True)).T


def margin_loss(cosines, people, margin):
    """Cross-entropy in which the angle to the own centre counts as `margin` more than it is."""
    own = jnp.take_along_axis(cosines, people[:, None], axis=1)[:, 0].clip(-0.999, 0.999)
    harder = jnp.where(own > jnp.cos(jnp.pi - margin), jnp.cos(jnp.arccos(own) + margin), own - margin * jnp.sin(margin))
    logits = SCALE * cosines.at[jnp.arange(len(people)), people].set(harder)
    return optax.softmax_cross_entropy_with_integer_labels(logits, people).mean()


def train(out: Path, cfg: ArcFaceConfig, folder: Path, held_out: Path, how: Fit, most: int) -> Path:
    """Train a recogniser on the first `most` pictures of `folder`; it is looked at on the people of `held_out`."""
    shown = faces.read(folder, most)
    crops, people = faces.crops(shown), shown.people
    others = faces.read(held_out)
    other_crops, other_people = faces.crops(others), others.people

    def batch(rng: np.random.Generator) -> dict[str, np.ndarray]:
        rows = rng.integers(len(crops), size=how.batch_size)
        return {"crops": crops[rows], "people": people[rows]}

    def loss(modules, batch, key, progress):
        x = augment(key, batch["crops"].astype(jnp.float32) / 127.5 - 1)
        cosines = modules["centres"](modules["arcface"](x, train=True))
        value = margin_loss(cosines, batch["people"], MARGIN * jnp.clip((progress - 0.7) / 0.3, 0, 1))
        return value, {"accuracy": (cosines.argmax(-1) == batch["people"]).mean()}

    embed = nnx.jit(lambda arcface, x: arcface(x.astype(jnp.float32) / 127.5 - 1))

    def look(modules):
        made = np.concatenate([embed(modules["arcface"], part) for part in np.array_split(other_crops, max(len(other_crops) // 64, 1))])
        return separation(made, other_people), None

    make = lambda rngs: {"arcface": ArcFace(cfg, rngs=rngs), "centres": Centres(int(people.max()) + 1, cfg.embedding_dim, rngs=rngs)}  # noqa: E731
    return fit(out, make, loss, batch, how, look)


def augment(key, x):
    """Shifts, mirror images, colour, brightness, contrast, blur and noise, each crop its own: what is painted is softer than what is drawn."""
    n, size = x.shape[0], x.shape[1]
    keys = iter(jax.random.split(key, 7))
    padded = jnp.pad(x, ((0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT), (0, 0)), mode="edge")
    corners = jax.random.randint(next(keys), (n, 2), 0, 2 * SHIFT + 1)
    x = jax.vmap(lambda image, at: jax.lax.dynamic_slice(image, (at[0], at[1], 0), (size, size, 3)))(padded, corners)
    x = jnp.where(jax.random.bernoulli(next(keys), shape=(n, 1, 1, 1)), x[:, :, ::-1], x)
    soft = jax.random.uniform(next(keys), (n, 1, 1, 1)) ** 2
    x = x + soft * (_blurred(x) - x)
    contrast, brightness = 0.8 + 0.4 * jax.random.uniform(next(keys), (n, 1, 1, 1)), 0.2 * jax.random.uniform(next(keys), (n, 1, 1, 1)) - 0.1
    contrast *= 1 + 0.05 * jax.random.normal(next(keys), (n, 1, 1, 3))
    return x * contrast + brightness + 0.03 * jax.random.normal(next(keys), x.shape)


def _blurred(x):
    """By a binomial filter of seven pixels, along both sides."""
    weights = jnp.array([1, 6, 15, 20, 15, 6, 1]) / 64
    for axis in (1, 2):
        padded = jnp.pad(x, [(3, 3) if k == axis else (0, 0) for k in range(4)], mode="edge")
        x = sum(weight * jax.lax.slice_in_dim(padded, k, k + x.shape[axis], axis=axis) for k, weight in enumerate(weights))
    return x


def separation(embeddings: np.ndarray, people: np.ndarray) -> dict[str, float]:
    """How well embeddings tell people apart: mean cosine of the same and of different people, and rank 1 (each picture against one of each person)."""
    cosines = embeddings @ embeddings.T
    same = people[:, None] == people[None]
    different = ~same
    np.fill_diagonal(same, False)
    first = np.array([np.flatnonzero(people == p)[0] for p in np.unique(people)])
    queries = np.setdiff1d(np.arange(len(people)), first)
    rank1 = float((people[first][cosines[np.ix_(queries, first)].argmax(1)] == people[queries]).mean())
    return {"same": float(cosines[same].mean()), "different": float(cosines[different].mean()), "rank1": rank1, "of": float(len(first))}
