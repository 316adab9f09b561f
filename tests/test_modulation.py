"""Modulation tables: the loop gives the pictures that it gives when each step computes its own modulations, with fewer weights."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from infu_jax import parking, programs, sampler
from infu_jax import pipeline as module
from infu_jax.checkpoint import load_model, params_of, save_model
from infu_jax.models.flux import MODULATION, modulate
from infu_jax.models.layers import Linear
from infu_jax.parking import PARKED_PARAMETERS
from infu_jax.pipeline import InfUPipeline
from infu_jax.sharding import SUBLANES, make_mesh
from tests.conftest import assert_close, unit_vector


@partial(jax.jit, static_argnames="dtype")
def step_by_step(flux, infusenet, img, schedule, first, last, given, tables, *, dtype):
    return sampler.denoise(flux, infusenet, img, schedule, first, last, given, dtype)


CASES = {
    "plain": {},
    "true_cfg": {"true_cfg": 2.5, "given": {"id_embedding": unit_vector(128), "negative_prompt": "cut off"}},
    "window": {"steps": 5, "guidance_start": 0.2, "guidance_end": 0.8},
}


@pytest.mark.parametrize("sizes", [(1, 1, 1), (1, 2, 2)])
def test_pictures(tiny, paint, monkeypatch, sizes):
    """With the tables of two steps at a time, and weights that wait in host memory; batches of two prompts."""
    mesh = make_mesh(*sizes, devices=jax.devices()[: math.prod(sizes)])
    parked = InfUPipeline.load(*tiny, mesh=mesh, offload=True)
    monkeypatch.setattr(module, "TABLE_STEPS", 4)
    monkeypatch.setattr(module, "LOOP_STEPS", 2)
    made = {name: paint(parked, **case) for name, case in CASES.items()}
    resident = InfUPipeline.load(*tiny, mesh=mesh)
    monkeypatch.setattr(programs, "steps", lambda: step_by_step)
    monkeypatch.setattr(parking, "without_modulations", lambda model: model)
    for name, case in CASES.items():
        assert_close(made[name], paint(resident, **case), 1e-5)
    assert all(np.abs(made[name] - made["plain"]).max() > 0.01 for name in ("true_cfg", "window"))


def test_the_loop_takes_no_weights_of_modulations(pipeline, paint, monkeypatch):
    steps, seen = programs.steps(), []

    def keep(flux, infusenet, *args, **options):
        whole = step_by_step.lower(pipeline.flux, pipeline.infusenet, *args, **options)
        seen.extend(lowered.compile().memory_analysis().argument_size_in_bytes for lowered in (whole, steps.lower(flux, infusenet, *args, **options)))
        seen.append(sum(t.nbytes for t in jax.tree.leaves(args[-1])))
        return steps(flux, infusenet, *args, **options)

    monkeypatch.setattr(programs, "steps", lambda: keep)
    paint(pipeline)
    whole, with_tables, tables = seen
    weights = [(path, w.nbytes) for model in (pipeline.flux, pipeline.infusenet) for path, w in params_of(model).items()]
    dropped = sum(n for path, n in weights if MODULATION.fullmatch(path))
    assert dropped > 0.2 * sum(n for _, n in weights)
    # But for the pooled vectors and guidance, a few bytes which only modulations need.
    assert abs((whole - with_tables) - (dropped - tables)) < 8192, (whole, with_tables, dropped, tables)


def test_nothing_but_modulations_waits(pipeline):
    for model in (pipeline.flux, pipeline.infusenet):
        found = [path for path in params_of(model) if PARKED_PARAMETERS.fullmatch(path)]
        assert found == [f"{path}.mod.kernel" for path in ("double_blocks.img", "double_blocks.txt", "single_blocks")]


def test_loaded_into_host_memory(tiny, tmp_path):
    """From PyTorch files and from converted ones, where each parameter belongs."""
    models = {"torch": load_model(tiny[0], "flux", host=PARKED_PARAMETERS)}
    save_model(tmp_path / "flux", "flux", models["torch"])
    models["converted"] = load_model(tmp_path / "flux", "flux", host=PARKED_PARAMETERS)
    whole = params_of(load_model(tiny[0], "flux"))
    for model in models.values():
        for path, w in params_of(model).items():
            assert w.sharding.memory_kind == ("pinned_host" if PARKED_PARAMETERS.fullmatch(path) else "device"), path
            np.testing.assert_array_equal(w, whole[path])


def test_bfloat16_modulations_are_the_blocks_own(pipeline):
    """Computed for many times at once they are what a step computes for its own, to rounding."""
    times, y, guidance = jnp.linspace(1, 0.1, 5), jnp.asarray(np.random.default_rng(0).standard_normal((2, 32)), jnp.float32), jnp.full(2, 3.5)
    for model in (pipeline.flux, pipeline.infusenet):
        table = programs.modulation(model, times, y, guidance, dtype=jnp.bfloat16)
        for k in (0, 3):
            own = model.modulation(jnp.full(2, times[k]), y, guidance, jnp.bfloat16)
            for a, b in zip(jax.tree.leaves(model.from_rows(table[k])), jax.tree.leaves(own), strict=True):
                assert a.dtype == jnp.bfloat16 and a.shape == b.shape
                assert_close(np.asarray(a, np.float32), np.asarray(b, np.float32), 2e-2)
        assert table.shape[2] % SUBLANES == 0


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_no_product_of_a_single_row(batch):
    """For it XLA would copy all kernels on a TPU; what comes out are the rows of the plain product."""
    mod, vec = Linear(8, (6, 8), rngs=nnx.Rngs(0)), jax.random.normal(jax.random.key(0), (batch, 8))
    product = next(e for e in jax.make_jaxpr(modulate)(mod, vec).eqns if e.primitive.name == "dot_general")
    assert product.invars[0].aval.shape == (max(batch, 2), 8)
    np.testing.assert_allclose(modulate(mod, vec), mod(jax.nn.silu(vec)), atol=1e-6)
