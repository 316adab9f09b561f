"""Training upon a base in eight bits: the run, its start, going on, and what is refused."""

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from infu_jax import initial, quantize, training
from infu_jax.checkpoint import params_of
from infu_jax.errors import InputError
from infu_jax.plan import training as plan
from infu_jax.sharding import make_mesh
from infu_jax.train_config import ModelsConfig, TrainConfig, changes, settings
from tests.training.conftest import assert_same, flip_a_bit, saved
from tests.training.test_plan import args

INT8 = ("--models.base-weights", "int8")


def test_a_run_goes_on(train, tmp_path):
    """Two steps and two are four, bit for bit; with other weights it does not go on; its InfuseNet can be rounded, if it is undamaged."""
    out = tmp_path / "run"
    train(out, *INT8)
    whole = saved(out, 4)
    shutil.rmtree(out / "checkpoints" / "4")
    assert "going on from step 2 of 4 steps" in train(out, *INT8).err
    assert_same(saved(out, 4), whole)
    with pytest.raises(InputError, match="other settings: models.base_weights int8 -> auto"):
        train(out, "--steps", 5)
    params = quantize.open_params(out, "infusenet", ema=False)
    np.testing.assert_array_equal(np.asarray(params["single_blocks.mlp_in.kernel"]), whole["infusenet/single_blocks.mlp_in.kernel"])
    flip_a_bit(out / "checkpoints" / "4" / "infusenet")
    with pytest.raises(InputError, match="infusenet is damaged"):
        quantize.open_params(out, "infusenet", ema=False)


def test_a_new_infusenet_is_not_rounded(tiny):
    """It starts from the stored base: the same numbers as when the base is not rounded."""
    mesh, made = make_mesh(1, 2, 2, devices=jax.devices()[:4]), []
    for weights in ("auto", "int8"):
        models = ModelsConfig(base=tiny[0], arcface=tiny[1] / "recognition_arcface_ir_se50.pth", infusenet_blocks=(1, 2), base_weights=weights)
        cfg = TrainConfig(out=Path("unused"), models=models)
        frozen = initial.frozen_models(cfg, {"flux", "autoencoder"}, mesh, "float32", lambda name: None)
        assert {x.dtype for x in jax.tree.leaves(frozen["autoencoder"])} == {jnp.dtype("float32")}
        kept = {x.dtype for path, x in params_of(frozen["flux"]).items() if path.startswith("single_blocks") and path.endswith("kernel")}
        assert kept == {jnp.dtype("int8" if weights == "int8" else "float32")}
        trained = {"infusenet": initial.trained_models(cfg)["infusenet"]}
        made.append(initial.initial_params(cfg, trained, frozen, mesh, lambda name: None)["infusenet"])
    assert made[0].keys() == made[1].keys()
    for path, x in made[0].items():
        np.testing.assert_array_equal(x, made[1][path])
        assert x.sharding == made[1][path].sharding and x.dtype == made[1][path].dtype == jnp.float32


def test_plan(monkeypatch):
    """It plans for a base in int8, sharded as it will be, and for everything else as it is."""

    class Planned(Exception):
        pass

    class Step:
        def trace(self, state, frozen, batch, draws):
            raise Planned(frozen)

    monkeypatch.setattr(training, "make_step", lambda *_: Step())
    found = {}
    for weights in ("auto", "int8"):
        given = args(models=ModelsConfig(**{**vars(args().models), "base_weights": weights}))
        with pytest.raises(Planned) as planned:
            plan.compile_step(given, plan.model_sizes(given), make_mesh(1, 4, 2))
        found[weights] = {name: {path: (x.shape, x.dtype, x.sharding.spec) for path, x in params_of(m).items()} for name, m in planned.value.args[0].items()}
    assert found["int8"].keys() == found["auto"].keys() > {"flux", "t5"}
    assert all(found["int8"][name] == found["auto"][name] for name in found["auto"] if name != "flux")
    kernel, steps, scale = (found["int8"]["flux"]["double_blocks.txt.attn_out." + name] for name in ("kernel", "kernel_steps", "kernel_scale"))
    assert kernel == (found["auto"]["flux"]["double_blocks.txt.attn_out.kernel"][0], jnp.int8, P(None, "tensor", None, "fsdp"))
    assert steps == ((*kernel[0][:2], kernel[0][2] // 32, kernel[0][3]), jnp.uint8, kernel[2])
    assert scale == ((kernel[0][0], 1, 1, kernel[0][3]), jnp.float32, P(None, None, None, "fsdp"))


def test_settings():
    """A frozen base only; runs of versions that did not know the setting had no int8."""
    with pytest.raises(InputError, match="models.base_weights is int8, which is for a frozen base"):
        TrainConfig(out=Path("unused"), trainable="base", models=ModelsConfig(base_weights="int8"))
    usual, rounded = (settings(TrainConfig(out=Path("unused"), models=ModelsConfig(base_weights=w))) for w in ("auto", "int8"))
    old = {name: value for name, value in usual.items() if name != "models.base_weights"}
    assert changes(old, usual) == [] and changes(usual, usual) == []
    assert changes(old, rounded) == changes(usual, rounded) == ["models.base_weights auto -> int8"]
