"""The autoencoder: FLUX.1's architecture at small size, trained on crops of drawn pictures, then scaled so that its latents have mean 0 and deviation 1.

What counts is not only how well pictures come back but how easily a small base model learns to paint latents. So there are 8 channels, not 16, the
prior weighs much, and latents of half the size shall decode to the picture at half the size, which keeps structure in them smooth and detail out
(EQ-VAE, arXiv 2502.09509). That leaves the decoder soft: what the latents do not say it paints as the mean of all that might be there. So it is then
trained further alone, on the finished latents, as VQGAN's is (arXiv 2012.09841): its pictures shall have the features of the drawings, and a critic
that learns beside it shall not tell the two apart. Its latents are noisy, since those that a base model paints are not quite those of pictures either
(RAE, arXiv 2510.11690).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from examples.tiny_world import faces
from examples.tiny_world.fitting import Fit, fit
from infu_jax import checkpoint
from infu_jax.config import AutoencoderConfig
from infu_jax.models.arcface import ArcFace
from infu_jax.models.autoencoder import Autoencoder
from infu_jax.models.layers import Conv

CROP = 64  # pixels: four crops teach more than one whole picture that costs the same
KL_WEIGHT = 2e-3
HALF_WEIGHT = 0.5  # of the picture at half the size
FEATURE_WEIGHT, CRITIC_WEIGHT = 0.5, 0.1  # of the decoder alone
CRITIC_BEGINS = 0.05  # part of the steps in which the critic learns before it is listened to
LATENT_NOISE = 0.4  # each crop has as much as a normal number of this deviation says, in deviations of the latents


def train(out: Path, cfg: AutoencoderConfig, folders: list[Path], held_out: Path, how: Fit, most: int) -> Path:
    """Train on at most `most` pictures of each folder."""

    def loss(modules, batch, key, progress):
        model, x = modules["autoencoder"], batch["images"].astype(jnp.float32) / 127.5 - 1
        mean, logvar = model.moments(x)
        z = mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape)
        error, at_half = difference(model.decoder(z), x), difference(model.decoder(half(z)), half(x))
        kl = 0.5 * (mean**2 + jnp.exp(logvar) - 1 - logvar).mean()
        return error + HALF_WEIGHT * at_half + KL_WEIGHT * kl, {"error": error, "at_half": at_half, "kl": kl}

    return _fit(out, lambda rngs: {"autoencoder": Autoencoder(cfg, rngs=rngs)}, loss, folders, held_out, how, most)


def train_decoder(out: Path, trained: Path, arcface: Path, folders: list[Path], held_out: Path, how: Fit, most: int) -> Path:
    """Train the decoder of the run `trained` further. The encoder stays as it is, to the bit, if there is no weight decay: its gradients are zero.

    arcface: the recogniser whose features are compared.
    """
    begun, eyes = checkpoint.load_model(trained, "autoencoder"), checkpoint.load_model(arcface, "arcface")

    def loss(modules, batch, key, progress):
        model, x = modules["autoencoder"], batch["images"].astype(jnp.float32) / 127.5 - 1
        mean, logvar = jax.lax.stop_gradient(model.moments(x))
        how_much, noise = (jax.random.normal(k, shape) for k, shape in zip(jax.random.split(key), ((len(x), 1, 1, 1), mean.shape)))
        made = model.decoder(mean + jnp.sqrt(jnp.exp(logvar) + (LATENT_NOISE * mean.std() * how_much) ** 2) * noise)
        error, seen = difference(made, x), unlike(eyes, made, x)
        said, fooled = verdicts(modules["critic"], made, x)
        listened = CRITIC_WEIGHT * (progress > CRITIC_BEGINS)
        return error + FEATURE_WEIGHT * seen + listened * fooled + said, {"error": error, "features": seen, "critic": said, "fooled": fooled}

    def make(rngs):
        return {"autoencoder": checkpoint.with_params(Autoencoder(begun.cfg, rngs=rngs), checkpoint.params_of(begun)), "critic": Critic(rngs=rngs)}

    return _fit(out, make, loss, folders, held_out, how, most)


class Critic(nnx.Module):
    """Says of each patch of a picture how much it looks drawn (PatchGAN, arXiv 1611.07004): above 0 drawn, below 0 decoded."""

    def __init__(self, widths: Sequence[int] = (32, 64, 96), *, rngs: nnx.Rngs):
        self.convs = nnx.List(Conv(i, o, 4, stride=2, padding=1, rngs=rngs) for i, o in zip((3, *widths), widths))
        self.verdict = Conv(widths[-1], 1, rngs=rngs)

    def __call__(self, x):
        for conv in self.convs:
            x = nnx.leaky_relu(conv(x), 0.2)
        return self.verdict(x)


def verdicts(critic: Critic, made, x):
    """The critic's hinge loss, without gradients to the pictures, and the decoder's, without gradients to the critic."""
    graph, params = nnx.split(critic)
    still = nnx.merge(graph, jax.tree.map(jax.lax.stop_gradient, params))
    return nnx.relu(1 - critic(x)).mean() + nnx.relu(1 + critic(jax.lax.stop_gradient(made))).mean(), -still(made).mean()


def unlike(eyes: ArcFace, made, x):
    """How far the directions of a recogniser's features are apart, of each place and stage (LPIPS, arXiv 1801.03924, without its learnt weights)."""
    along = lambda y: y / jnp.sqrt((y**2).sum(-1, keepdims=True) + 1e-6)  # noqa: E731
    pairs = zip(eyes.features(made[..., ::-1]), eyes.features(x[..., ::-1]))  # it takes BGR
    return sum(((along(a) - along(b)) ** 2).sum(-1).mean() for a, b in pairs)


def _fit(out: Path, make, loss, folders: list[Path], held_out: Path, how: Fit, most: int) -> Path:
    shown = [faces.read(folder, most) for folder in folders]
    images, middles = np.concatenate([each.images for each in shown]), np.concatenate([each.keypoints.mean(1) for each in shown])
    others = faces.read(held_out, 64).images

    def batch(rng: np.random.Generator) -> dict[str, np.ndarray]:
        rows, room = rng.integers(len(images), size=how.batch_size), images.shape[1] - CROP
        corners = rng.integers(room + 1, size=(how.batch_size, 2))
        # Half of the crops show the face, which is what people look at and the hardest to get right.
        around = middles[rows] - CROP / 2 + rng.uniform(-12, 12, (how.batch_size, 2))
        corners = np.where(rng.random((how.batch_size, 1)) < 0.5, around.clip(0, room).astype(int), corners)
        return {"images": np.stack([images[r, y : y + CROP, x : x + CROP] for r, (x, y) in zip(rows, corners, strict=True)])}

    rebuild = nnx.jit(lambda model, x: model.decoder(model.moments(x)[0]))

    def look(modules):
        x = others.astype(np.float32) / 127.5 - 1
        made = np.asarray(rebuild(modules["autoencoder"], jnp.asarray(x))).clip(-1, 1)
        rows = [np.concatenate(list(part[:8]), axis=1) for part in (x, made)]
        sheet = ((np.concatenate(rows) + 1) * 127.5).round().astype(np.uint8)
        return {"psnr": float(np.mean(-10 * np.log10(((x - made) ** 2).mean((1, 2, 3)) / 4)))}, sheet

    return fit(out, make, loss, batch, how, look)


def difference(made, x):
    return jnp.abs(made - x).mean() + sum(edges(made, x, n) for n in (1, 2))


def half(x):
    """Pictures or latents (B, H, W, C) at half the size."""
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))


def edges(made, x, distance: int):
    """Mean difference of the differences of pixels so far apart: without it, what is smaller than a nose comes out blurred."""
    down = lambda image: image[:, distance:] - image[:, :-distance]  # noqa: E731
    right = lambda image: image[:, :, distance:] - image[:, :, :-distance]  # noqa: E731
    return 0.25 * (jnp.abs(down(made) - down(x)).mean() + jnp.abs(right(made) - right(x)).mean())


def latent_scale(model: Autoencoder, images: np.ndarray) -> AutoencoderConfig:
    """The model's sizes with the shift and scale that give its latents mean 0 and deviation 1; FLUX.1's own are such numbers too."""
    moments = nnx.jit(lambda model, x: model.moments(x.astype(jnp.float32) / 127.5 - 1))
    parts = [moments(model, part) for part in np.array_split(images, max(len(images) // 32, 1))]
    mean = np.concatenate([np.asarray(p[0]) for p in parts])
    var = np.exp(np.concatenate([np.asarray(p[1]) for p in parts]))
    return dataclasses.replace(model.cfg, shift_factor=round(float(mean.mean()), 4), scale_factor=round(float(1 / np.sqrt(mean.var() + var.mean())), 4))
