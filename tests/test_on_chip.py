"""Kernels whose axes lie in memory in another order, as they do on TPUs: nothing but their place in memory changes."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from infu_jax import checkpoint, lora, quantize, sharding
from infu_jax.checkpoint import load_model, params_of, save_model

QKV = ("double_blocks.img.qkv.kernel", "double_blocks.txt.qkv.kernel", "single_blocks.qkv.kernel")
ORDERS = {**dict.fromkeys(QKV, (0, 2, 3, 1, 4)), "final_layer.mod.kernel": (1, 0, 2)}


@pytest.fixture
def other_order(monkeypatch):
    """As on a TPU, on the devices that there are."""
    monkeypatch.setattr(sharding, "_in_tpu", lambda s: s.memory_kind == "device")


def order(x):
    return x.format.layout.major_to_minor


def test_only_on_tpus():
    plain = NamedSharding(sharding.make_mesh(devices=jax.devices()[:1]), P())
    assert all(sharding.on_chip(path, plain) is plain for path in ORDERS)


def test_loading(tiny, other_order, tmp_path):
    usual = params_of(load_model(tiny[1], "infusenet"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "on_chip", lambda path, s: s)
        plain = load_model(tiny[0], "flux")
    made = load_model(tiny[0], "flux")
    save_model(tmp_path / "flux", "flux", made)
    for model in (made, load_model(tmp_path / "flux", "flux")):
        for path, x in params_of(model).items():
            assert order(x) == ORDERS.get(path, tuple(range(x.ndim))), path
            np.testing.assert_array_equal(x, params_of(plain)[path])
    assert all(order(usual[path]) == (0, 2, 3, 1, 4) for path in QKV)


def test_rounding(tiny, other_order, monkeypatch):
    """The same integers, and LoRAs rounded into them lie as those did."""
    mesh, module = sharding.make_mesh(1, 2, 2, devices=jax.devices()[:4]), checkpoint.check(checkpoint.open_model(tiny[0], "flux"))
    params = quantize.open_params(tiny[0], "flux")
    made = quantize.load("flux", module, params, mesh, np.float32)
    again, former = quantize.replace(made, {path: params[path] for path in QKV})
    monkeypatch.undo()
    plain = params_of(quantize.load("flux", module, params, mesh, np.float32))
    for model in (made, again, lora.restore(again, former)):
        for path, x in params_of(model).items():
            assert order(x) == ORDERS.get(path.removesuffix("_steps"), tuple(range(x.ndim))), path
            np.testing.assert_array_equal(x, plain[path])


def test_loras_keep_the_order(tiny, other_order):
    model = load_model(tiny[0], "flux", dtype=np.float32)
    draw = np.random.default_rng(0).standard_normal
    layers, size, three, heads, head = params_of(model)[QKV[2]].shape
    factors = lora.Factors(draw((layers, size, 2), np.float32), draw((layers, 2, three, heads, head), np.float32), True)
    before = np.asarray(params_of(model)[QKV[2]])
    merged, former = lora.merge(model, {QKV[2]: factors}, keep=True)
    changed = params_of(merged)[QKV[2]]
    assert order(changed) == (0, 2, 3, 1, 4)
    np.testing.assert_allclose(changed, before + np.einsum("lir,lrthk->lithk", factors.a, factors.b), atol=1e-4)
    back = params_of(lora.restore(merged, former))[QKV[2]]
    assert order(back) == (0, 2, 3, 1, 4)
    np.testing.assert_array_equal(back, before)


def test_in_chip_order():
    """One block's kernel of heads of 128 goes through unchanged, and so does its gradient."""
    draw = np.random.default_rng(0).standard_normal
    kernel, weights = (draw((16, 3, 2, 128)).astype(np.float32) for _ in range(2))
    value, gradient = jax.jit(jax.value_and_grad(lambda k: (sharding.in_chip_order(k) * weights).sum()))(kernel)
    np.testing.assert_allclose(value, (kernel * weights).sum(), rtol=1e-4)
    np.testing.assert_array_equal(gradient, weights)


def test_in_host():
    """A parameter that waits in host memory lies there as it does by default, but for eight-bit stacks on TPUs."""
    one = NamedSharding(sharding.make_mesh(devices=jax.devices()[:1]), P())
    for dtype in (np.int8, np.float32):
        assert sharding.in_host(jax.ShapeDtypeStruct((4, 96, 6, 96), dtype, sharding=one)) == one.with_memory_kind("pinned_host")
