"""Every kernel computes the same attention, both ways to rotate queries and keys rotate them alike, and all have the same gradients."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax._src.core import jaxprs_in_params
from jax._src.cudnn import fused_attention_stablehlo

from infu_jax import attention
from infu_jax.checkpoint import with_params
from infu_jax.config import FluxConfig
from infu_jax.latents import position_ids
from infu_jax.models import flux, layers
from tests.conftest import assert_close


def pretend(monkeypatch, where, capability):
    """That programs are for another platform; a GPU has this capability, None: there is none, as where `infu_jax.plan` compiles for one."""
    monkeypatch.setattr(attention, "platform", lambda: where)
    here = SimpleNamespace(platform="cpu") if capability is None else SimpleNamespace(platform="gpu", compute_capability=capability)
    monkeypatch.setattr(jax, "devices", lambda: [here])
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(fused_attention_stablehlo, "check_compute_capability", lambda _: True)


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


@pytest.mark.parametrize(
    ("capability", "dtype", "flash"),
    [("9.0", "bfloat16", True), ("9.0", "float32", False), ("7.5", "bfloat16", False), ("gfx90a", "bfloat16", False), (None, "bfloat16", True)],
)
def test_gpus_take_cudnn_where_it_can(monkeypatch, capability, dtype, flash):
    """Lowered for a GPU that is not here, in the forward and the backward pass."""
    pretend(monkeypatch, "gpu", capability)
    x = jax.ShapeDtypeStruct((1, 300, 2, 128), dtype)
    step = jax.jit(jax.grad(lambda *qkv: attention._local(*qkv).astype(jnp.float32).sum()))
    text = step.trace(x, x, x).lower(lowering_platforms=("cuda",)).as_text()
    assert ("__cudnn$fmhaSoftmax(" in text, "__cudnn$fmhaSoftmaxBackward(" in text) == (flash, flash)


@pytest.mark.parametrize(("where", "kernel"), [("gpu", "dot_product_attention_fwd_wrapper"), ("tpu", "splash_mha_fwd")])
@pytest.mark.parametrize(("remat", "times"), [("block", 2), ("attention", 1), ("dots", 1)])
def test_what_is_kept_is_not_computed_again(monkeypatch, where, kernel, remat, times):
    """Kernels that compute attention's forward pass, in a step that has a backward pass."""
    pretend(monkeypatch, where, "9.0")

    def loss(weights, x):
        step = lambda block, x, _: (jnp.sin(attention._local(*(block.kernel[...] @ x for _ in range(3)))), None)  # noqa: E731
        return layers.scan(step, with_params(blocks, {"kernel": weights}), x, remat=remat)[0].astype(jnp.float32).sum()

    blocks = layers.stack(lambda rngs: layers.Linear(2, 2, bias=False, rngs=rngs), 3, nnx.Rngs(0))
    x = jnp.ones((1, 16, 2, 128), jnp.bfloat16)
    assert count(kernel, jax.make_jaxpr(jax.grad(loss))(blocks.kernel[...].astype(x.dtype), x).jaxpr) == times


def count(kernel, jaxpr):
    """How often the kernel is called in one turn of every loop."""
    used = [eqn for eqn in jaxpr.eqns if eqn.outvars]  # the compiler drops what gives nothing
    own = [f"{eqn.primitive} {eqn.params.get('name', '')}".startswith((kernel, f"pallas_call {kernel}")) for eqn in used]
    return sum(own) + sum(count(kernel, inner) for eqn in used for inner in jaxprs_in_params(eqn.params))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rotations_agree(dtype):
    """Those of TPUs and GPUs rotate as that by strides, which this machine takes; so do their gradients."""
    pe, draw = flux.rope(position_ids(16, 12, 8), FluxConfig()), np.random.default_rng(0).standard_normal
    x, weights = (jnp.asarray(draw((2, 40, 3, 128)), dtype) for _ in range(2))
    assert pe.cos.shape == (40, 64) and 0.1 < np.abs(pe.sin).max()

    def both(rotate):
        return jax.jit(jax.value_and_grad(lambda x: (rotate(x, pe.cos[:, None], pe.sin[:, None]) * weights).sum().astype(jnp.float32)))(x)[1], jax.jit(rotate)(
            x, pe.cos[:, None], pe.sin[:, None]
        )

    for other in (flux._rotate_by_product, flux._rotate_by_swap):
        for a, b in zip(both(other), both(flux._rotate_pairs), strict=True):
            assert a.dtype == b.dtype == dtype
            assert_close(np.float32(a), np.float32(b), {jnp.float32: 1e-6, jnp.bfloat16: 4e-3}[dtype])
    np.testing.assert_array_equal(jax.jit(flux.apply_rope)(x, pe), both(flux._rotate_pairs)[1])
