"""Identity loss: how unlike a person the face is in the picture that a predicted velocity leads to.

Not in the paper, whose objective is the velocity's error alone (section 3.4). PuLID (arXiv 2404.16022) compares the faces of pictures
sampled in a few steps; here the picture is the prediction of one, so that a training step has no loop of samplings in it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Float

from infu_jax.face import ARCFACE_POINTS
from infu_jax.models.arcface import ArcFace
from infu_jax.models.autoencoder import Autoencoder

BLACK = -1.0


def identity_loss(
    arcface: ArcFace, vae: Autoencoder, x0: Float[Array, "B h w z"], points: Float[Array, "B 5 2"], id_embedding: Float[Array, "B E"], dtype
) -> Float[Array, " B"]:
    """1 - cosine of each picture's face and its identity; 0 where the embedding is zero, i.e. where the identity was dropped.

    x0: latents; they are decoded in `dtype`. points: where the faces are, in pixels of the picture.
    """
    images = vae.decode(x0.astype(dtype)).astype(jnp.float32).clip(BLACK, 1)  # as when saved: beyond white and black nothing is gained
    made = arcface(align(images, points, arcface.cfg.image_size)).astype(jnp.float32)
    return ((id_embedding - made) * id_embedding).sum(1)


def align(images: Float[Array, "B H W 3"], points: Float[Array, "B 5 2"], size: int) -> Float[Array, "B S S 3"]:
    """`face.align` of RGB pictures in [-1, 1], with gradients: **BGR** crops whose five points lie on ArcFace's, black outside the picture."""
    turned, shift = _similarity(points, jnp.asarray(ARCFACE_POINTS * (size / 112)))
    y, x = jnp.mgrid[:size, :size].astype(jnp.float32)
    at = (x + 1j * y - shift[:, None, None]) / turned[:, None, None]  # where each of a crop's pixels is in the picture

    def crop(image: Float[Array, "H W 3"], at) -> Float[Array, "S S 3"]:
        take = lambda channel: map_coordinates(channel, (at.imag, at.real), order=1, mode="constant", cval=BLACK)  # noqa: E731
        return jax.vmap(take, in_axes=-1, out_axes=-1)(image)

    return jax.vmap(crop)(images[..., ::-1], at)


def _similarity(source: Float[Array, "B n 2"], target: Float[Array, "n 2"]):
    """Complex (turn and scale, shift) that take each `source` nearest to `target` in the mean square: a plane's rotation is a product there."""
    source, target = source[..., 0] + 1j * source[..., 1], target[..., 0] + 1j * target[..., 1]
    middle, centred = target.mean(), source - source.mean(1, keepdims=True)
    turned = (centred.conj() * (target - middle)).sum(1) / jnp.square(jnp.abs(centred)).sum(1)
    return turned, middle - turned * source.mean(1)
