"""Every kernel computes the same attention, and the same gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infu_jax import attention
from tests.conftest import assert_close

KERNELS = {"blockwise": attention._blockwise, "splash": lambda q, k, v: attention._splash(q, k, v, interpret=True)}


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("length", [40, 512, 600])  # below, at and above a block
def test_kernels_agree(kernel, length):
    draw = np.random.default_rng(length).standard_normal
    q, k, v, weights = (jnp.asarray(draw((2, length, 2, 128)), jnp.float32) for _ in range(4))

    def loss(attend):
        return lambda q, k, v: (attend(q, k, v) * weights).sum()

    expected = jax.nn.dot_product_attention(q, k, v)
    assert_close(np.asarray(KERNELS[kernel](q, k, v)), np.asarray(expected), 1e-5)
    found = jax.grad(loss(KERNELS[kernel]), (0, 1, 2))(q, k, v)
    for a, b in zip(found, jax.grad(loss(jax.nn.dot_product_attention), (0, 1, 2))(q, k, v)):
        assert_close(np.asarray(a), np.asarray(b), 1e-5)


def test_the_one_in_use_is_blockwise_here():
    draw = np.random.default_rng(0).standard_normal
    q, k, v = (jnp.asarray(draw((1, 300, 2, 128)), jnp.float32) for _ in range(3))
    np.testing.assert_array_equal(attention.attention(q, k, v), jax.jit(attention._blockwise)(q, k, v))
