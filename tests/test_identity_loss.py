"""The identity loss beside what `sample.py` and evaluation compute of a finished picture."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infu_jax import checkpoint, face
from infu_jax.assets import TINY
from infu_jax.identity_loss import align, identity_loss

POINTS = {
    "upright": face.ARCFACE_POINTS * 0.6 + [20, 15] + np.random.default_rng(0).normal(0, 2, (5, 2)),
    "turned": face.ARCFACE_POINTS @ np.array([[0.4, 0.2], [-0.2, 0.4]]) + [40, 5],
    "partly outside": face.ARCFACE_POINTS * 1.2 - [50, 20],
}


@pytest.fixture(scope="module")
def pictures():
    """Three pictures without fine structure, 128 x 160."""
    import cv2

    noise = np.random.default_rng(1).integers(0, 256, (3, 128, 160, 3)).astype(np.uint8)
    return np.stack([cv2.GaussianBlur(image, (0, 0), 3) for image in noise])


@pytest.mark.parametrize("size", [112, 224])
def test_crops_are_those_of_opencv(pictures, size):
    """To the 1/32 pixel that OpenCV rounds positions to, and the whole number that it rounds colours to; at the picture's edge it blends otherwise."""
    points = np.stack([p.astype(np.float32) for p in POINTS.values()])
    found = 127.5 * (np.asarray(align(jnp.asarray(pictures / 127.5 - 1, jnp.float32), jnp.asarray(points), size)) + 1)
    for crop, image, place in zip(found, pictures, points):
        expected = face.align(image, place, size).astype(float)
        outside = np.asarray(face.align(np.full_like(image, 255), place, size)).min(-1)
        np.testing.assert_allclose(crop[outside == 255], expected[outside == 255], atol=1.0)
        np.testing.assert_array_equal(crop[outside == 0].round(), expected[outside == 0])
    assert (outside == 0).any() and (outside == 255).any()


def test_it_is_what_a_finished_picture_says():
    """1 - cosine as of the saved picture, to its rounding; nothing where the identity was dropped; and its gradient makes the face more like."""
    vae, arcface = checkpoint.load_model(TINY / "FLUX.1-tiny", "autoencoder"), checkpoint.load_model(TINY / "InfiniteYou-tiny", "arcface")
    x0 = jax.random.normal(jax.random.key(0), (2, 16, 16, vae.cfg.z_channels)) * 0.5
    points = jnp.asarray(np.stack([face.ARCFACE_POINTS * 0.5 + [36, 20], face.ARCFACE_POINTS * 0.8 + [10, 15]]), jnp.float32)
    who = jnp.eye(2, arcface.cfg.embedding_dim)
    loss = jax.jit(lambda x0, who: identity_loss(arcface, vae, x0, points, who, jnp.float32))
    saved = np.asarray((vae.decode(x0).clip(-1, 1) + 1) * 127.5).round().astype(np.uint8)
    crops = np.stack([face.align(image, p) for image, p in zip(saved, np.asarray(points))])
    expected = 1 - (np.asarray(arcface(jnp.asarray(face.arcface_input(crops)))) * who).sum(1)
    found = loss(x0, who)
    np.testing.assert_allclose(found, expected, atol=0.01)
    np.testing.assert_array_equal(loss(x0, who.at[0].set(0)), np.asarray(found) * [0, 1])
    downhill = jax.grad(lambda x0: loss(x0, who).sum())(x0)
    assert (loss(x0 - 0.5 * downhill / jnp.abs(downhill).max(), who) < found - 0.01).all()
