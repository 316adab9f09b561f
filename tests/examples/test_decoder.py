"""What the tiny world's decoder learns from, beside pixels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from examples.tiny_world.autoencoder import Critic, unlike, verdicts
from infu_jax import checkpoint
from infu_jax.assets import TINY


@pytest.fixture(scope="module")
def pictures():
    """Made and drawn ones."""
    return jax.random.uniform(jax.random.key(0), (2, 2, 32, 32, 3), minval=-1.0)


def test_critic_and_decoder_learn_apart(pictures):
    """Each of the two losses moves its own side and leaves the other alone."""
    critic, (made, drawn) = Critic((4, 8), rngs=nnx.Rngs(1)), pictures

    @nnx.jit(static_argnums=0)
    def moved(side, critic, made):
        """Whether this loss moves the critic, and the pictures."""
        gradients = nnx.grad(lambda critic, made: verdicts(critic, made, drawn)[side], argnums=(0, 1))(critic, made)
        return [jnp.stack([jnp.abs(x).max() for x in jax.tree.leaves(each)]).max() > 0 for each in gradients]

    assert moved(0, critic, made) == [True, False]
    assert moved(1, critic, made) == [False, True]


def test_features_tell_pictures_apart(pictures):
    eyes, (other, drawn) = checkpoint.load_model(TINY / "InfiniteYou-tiny", "arcface"), pictures
    near, far = (float(jax.jit(unlike)(eyes, x, drawn)) for x in (drawn + 0.05 * (other - drawn), other))
    assert float(unlike(eyes, drawn, drawn)) == 0 < near < far / 2
    assert np.isfinite(jax.jit(jax.grad(unlike, argnums=1))(eyes, drawn, drawn)).all()  # where both are alike
