"""Every kernel computes the same attention, both ways to rotate queries and keys rotate them alike, and all have the same gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infu_jax import attention
from infu_jax.config import FluxConfig
from infu_jax.latents import position_ids
from infu_jax.models import flux
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


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rotations_agree(dtype):
    """That by a product, which TPUs take, rotates as that by strides, which this machine takes; so does its gradient."""
    pe, draw = flux.rope(position_ids(16, 12, 8), FluxConfig()), np.random.default_rng(0).standard_normal
    x, weights = (jnp.asarray(draw((2, 40, 3, 128)), dtype) for _ in range(2))
    assert pe.cos.shape == (40, 64) and 0.1 < np.abs(pe.sin).max()

    def both(rotate):
        return jax.jit(jax.value_and_grad(lambda x: (rotate(x, pe.cos[:, None], pe.sin[:, None]) * weights).sum().astype(jnp.float32)))(x)[1], jax.jit(rotate)(
            x, pe.cos[:, None], pe.sin[:, None]
        )

    for a, b in zip(both(flux._rotate_by_product), both(flux._rotate_pairs), strict=True):
        assert a.dtype == b.dtype == dtype
        assert_close(np.float32(a), np.float32(b), {jnp.float32: 1e-6, jnp.bfloat16: 4e-3}[dtype])
    np.testing.assert_array_equal(jax.jit(flux.apply_rope)(x, pe), both(flux._rotate_pairs)[1])
