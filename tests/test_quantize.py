"""Weights in eight bits: rounding, where it applies, its error, meshes, gradients, LoRAs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sample
from infu_jax import checkpoint, lora, pictures, quantize
from infu_jax.checkpoint import abstract, param_shapes, params_of, with_params
from infu_jax.config import FluxConfig, InfuseNetConfig, SamplingConfig, T5Config
from infu_jax.convert import safetensors
from infu_jax.latents import position_ids
from infu_jax.models import layers
from infu_jax.models.flux import rope
from infu_jax.pipeline import InfUPipeline
from infu_jax.sharding import make_mesh
from tests.conftest import assert_close, unit_vector
from tests.test_sample_cli import SMALL, command, one_device, only  # noqa: F401  (one_device is a fixture)

PROMPTS = ["a man in a garden", "a chef"]


@pytest.fixture(scope="module")
def rounded(tiny):
    """The embedded models in int8 on one device."""
    return InfUPipeline.load(*tiny, weights="int8")


def dequantized(module):
    """The parameters that a rounded model stands for, in float32."""
    params = params_of(module)

    def whole(path, x):
        if x.dtype != jnp.int8:
            return jnp.asarray(x, jnp.float32)
        steps, scale = np.asarray(params[path + "_steps"]), np.asarray(params[path + "_scale"])
        axis = max(a for a in range(1, x.ndim) if scale.shape[a] == 1 < x.shape[a])
        return jnp.asarray(np.asarray(x, np.float32) * np.repeat(steps, x.shape[axis] // steps.shape[axis], axis) * scale)

    return {path: whole(path, x) for path, x in params.items() if not path.endswith(("_steps", "_scale"))}


def bits(module):
    return {path: np.asarray(x) for path, x in params_of(module).items()}


def assert_same(a, b):
    assert a.keys() == b.keys()
    assert not [path for path in a if a[path].dtype != b[path].dtype or a[path].tobytes() != b[path].tobytes()]


# Rounding -----------------------------------------------------------------------------------------


def test_rounding():
    """Groups of 32 along the last input, each to the nearest of 255 values that its largest weight allows; zero is exact, NaN stays NaN."""
    weights = np.random.default_rng(0).standard_normal((2, 8, 64, 3, 5), np.float32) * np.logspace(-3, 3, 5, dtype=np.float32)
    weights[0, :, :, 1, 2] = 0
    weights[:, 3, 7] = 0
    weights[1, 5, 40:] *= 100  # all but one group of these channels must not lose by it
    weights[1, :, :, 2, 4] = np.float32(1e-44) * np.sign(weights[1, :, :, 2, 4])  # so small that its scale is zero
    made = quantize.quantize(jnp.asarray(weights), (1, 2))
    assert [(x.shape, x.dtype) for x in made] == [(weights.shape, jnp.int8), ((2, 8, 2, 3, 5), jnp.uint8), ((2, 1, 1, 3, 5), jnp.float32)]
    values, steps, scale = map(np.asarray, made)
    grouped = lambda x: x.reshape(2, 8, 2, 32, 3, 5)  # noqa: E731
    largest, usual = np.abs(grouped(weights)).max(3), np.abs(weights).max((1, 2), keepdims=True) > 1e-30
    np.testing.assert_array_equal(np.where(usual, steps, 255).max((1, 2)), np.where(weights.any((1, 2)), 255, np.where(usual[:, 0, 0], 1, 255)))
    assert np.abs(values.astype(int)).max() == 127 and np.isfinite(scale).all() and (scale > 0).all() and steps.min() >= 1
    step = steps * scale
    assert (np.abs(grouped(values * np.repeat(step, 32, 2) - weights)).max(3) <= step * 0.5001).all()
    # No step is coarser than it must be: the one below it would clip, or it is 1.
    assert ((steps == 1) | ((steps - 1.0) * scale * 127 < largest * 1.0001)).all()
    assert not values[weights == 0].any()
    weights[0, 1, 1, 0, 0] = np.nan
    scale = np.asarray(quantize.quantize(jnp.asarray(weights), (1, 2))[2])
    assert np.isnan(scale[0, 0, 0, 0, 0]) and np.isnan(scale).sum() == 1


@pytest.mark.parametrize("tails", ["normal", "heavy"])
def test_error_does_not_grow_with_inputs(tails):
    """A large weight costs its group, not its channel: products of a kernel of 12288 inputs are as near as those of one of 256, heavy-tailed ones too."""
    draw, off = np.random.default_rng(0), []
    for n in (256, 12288):
        weights = np.float32(draw.standard_normal((1, n, 64)) if tails == "normal" else draw.standard_t(5, (1, n, 64)))
        values, steps, scale = map(np.asarray, quantize.quantize(jnp.asarray(weights), (1,)))
        off.append(np.linalg.norm(values * np.repeat(steps, 32, 1) * scale - weights) / np.linalg.norm(weights))
    print(", ".join(f"{x:.2%}" for x in off))
    assert max(off) < {"normal": 0.0055, "heavy": 0.007}[tails]


@pytest.mark.parametrize(("name", "cfg", "most"), [("flux", FluxConfig(), 0.53), ("infusenet", InfuseNetConfig(), 0.56), ("t5", T5Config(), 0.54)])
def test_what_is_rounded(name, cfg, most):
    """Every kernel of the stacked blocks, at the released sizes, and nothing else; split over a mesh as its kernel's outputs are."""
    module, mesh = abstract(name, cfg), make_mesh(2, 2, 2)
    before, after = param_shapes(module), quantize.targets(name, module, mesh, jnp.bfloat16)
    kernels = {path for path in before if path.split(".")[0].endswith("blocks") and path.endswith("kernel")}
    assert len(kernels) == {"flux": 15, "infusenet": 15, "t5": 4}[name]
    assert after.keys() == before.keys() | {path + end for path in kernels for end in ("_steps", "_scale")} == param_shapes(quantize.quantized(module)).keys()
    assert {path: (s.shape, s.dtype) for path, s in after.items() if path in before} == {
        path: (s.shape, jnp.int8 if path in kernels else jnp.bfloat16) for path, s in before.items()
    }
    for path in kernels:
        kernel, scale = after[path], after[path + "_scale"]
        inputs = 2 if "attn_out" in path else 1
        assert scale.dtype == jnp.float32 and scale.shape == (kernel.shape[0], *(1,) * inputs, *kernel.shape[1 + inputs :])
        steps = after[path + "_steps"]
        grouped = [n // 32 if axis == inputs else n for axis, n in enumerate(kernel.shape)]
        assert steps.dtype == jnp.uint8 and list(steps.shape) == grouped and steps.sharding.spec == kernel.sharding.spec
        split = lambda s: s.sharding.shard_shape(s.shape)[1 + inputs :]  # noqa: B023, E731
        assert split(scale) == split(kernel) and scale.sharding.shard_shape(scale.shape)[: 1 + inputs] == scale.shape[: 1 + inputs]
    size = lambda shapes: sum(np.prod(s.shape) * s.dtype.itemsize for s in shapes.values())  # noqa: E731
    assert size(after) < most * sum(2 * np.prod(s.shape) for s in before.values())
    assert param_shapes(module) == before  # which is shared by all who ask for these sizes


def test_other_storage_same_integers(tiny, rounded, tmp_path):
    """From PyTorch files, our own folder, and on any mesh: bit for bit."""
    flux = checkpoint.load_model(tiny[0], "flux")
    checkpoint.save_model(tmp_path / "flux", "flux", flux)
    for path, mesh in ((tmp_path / "flux", make_mesh(1, 2, 2, devices=jax.devices()[:4])), (tiny[0], make_mesh(2, 2, 2))):
        module = checkpoint.check(checkpoint.open_model(path, "flux"), mesh)
        made = quantize.load("flux", module, quantize.open_params(path, "flux"), mesh, jnp.float32)
        assert_same(bits(made), bits(rounded.flux))
        wanted = quantize.targets("flux", module, mesh, jnp.float32)
        assert all(x.sharding == wanted[path].sharding for path, x in params_of(made).items())
    with pytest.raises(TypeError, match="this flux is rounded to eight bits"):
        checkpoint.save_model(tmp_path / "again", "flux", rounded.flux)


# What it costs in accuracy ------------------------------------------------------------------------


def trace(pipeline):
    """Of two pictures in three steps."""
    settings, who = SamplingConfig(64, 80, 3, t5_length=24), unit_vector(pipeline.arcface.cfg.embedding_dim)
    return pipeline(PROMPTS, id_embedding=who, seeds=[5, 6], settings=settings, trace=True).trace


@pytest.fixture(scope="module")
def near(rounded):
    return trace(rounded)


def test_pictures(pipeline, rounded, near):
    """Velocity within 1 % of float32 in each step, pictures nearly the same; both transformers and T5 rounded."""
    exact = trace(pipeline)
    for a, b in zip(exact["velocity"], near["velocity"]):
        error = np.linalg.norm(b - a) / np.linalg.norm(a)
        print(f"velocity {error:.2%}")
        assert 1e-5 < error < 1e-2
    ratio = 10 * np.log10(4 / np.square(exact["image"] - near["image"]).mean())
    print(f"PSNR {ratio:.1f} dB")
    assert ratio > 40
    assert all(x.dtype == np.float32 for x in near["velocity"])
    size = lambda p: sum(x.nbytes for name in quantize.MODELS for x in jax.tree.leaves(getattr(p, name)))  # noqa: E731
    assert size(rounded) < 0.45 * size(pipeline)
    # And it is no other model than the one that its integers and scales state.
    whole = {name: with_params(abstract(name, getattr(rounded, name).cfg), dequantized(getattr(rounded, name))) for name in quantize.MODELS}
    assert_close(near["image"], trace(dataclasses.replace(pipeline, **whole))["image"], 1e-5)


@pytest.mark.parametrize("sizes", [(1, 2, 2), (2, 2, 2)])
def test_the_same_pictures_on_many_devices(tiny, near, sizes):
    mesh = make_mesh(*sizes, devices=jax.devices()[: np.prod(sizes)])
    split = InfUPipeline.load(*tiny, weights="int8", mesh=mesh, offload=sizes[0] == 2)
    assert_close(trace(split)["image"], near["image"], 1e-5)


@pytest.fixture(scope="module")
def inputs(rounded):
    """Of the base model: latents, text, and what else it takes for two pictures of 6x8 cells."""
    cfg, draw = rounded.flux.cfg, np.random.default_rng(0).standard_normal
    img, txt, y = ((2, 12, cfg.in_channels), (2, 8, cfg.context_in_dim), (2, cfg.vec_in_dim))
    img, txt, y = (jnp.asarray(draw(shape, np.float32)) for shape in (img, txt, y))
    return img, txt, rope(position_ids(8, 8, 6), cfg), jnp.array([0.2, 0.9]), y, jnp.ones(2)


def test_bfloat16(tiny, rounded, inputs):
    """Computed in bfloat16, the rounding of weights adds little to that of the computation; scales stay float32."""
    run = jax.jit(lambda flux, dtype: flux(inputs[0].astype(dtype), *inputs[1:]), static_argnums=1)
    whole = checkpoint.load_model(tiny[0], "flux", dtype=jnp.bfloat16)
    low = with_params(
        rounded.flux,
        {k: x if x.dtype in (jnp.int8, jnp.uint8) or k.endswith("kernel_scale") else x.astype(jnp.bfloat16) for k, x in bits(rounded.flux).items()},
    )
    exact = np.asarray(run(checkpoint.load_model(tiny[0], "flux", dtype=jnp.float32), jnp.float32))
    usual, ours = (run(flux, jnp.bfloat16) for flux in (whole, low))
    assert ours.dtype == jnp.bfloat16
    off = [np.linalg.norm(np.float32(x) - exact) for x in (usual, ours)]
    print(f"bfloat16 {off[0] / np.linalg.norm(exact):.2%}, with int8 weights {off[1] / np.linalg.norm(exact):.2%}")
    assert off[1] < 2 * off[0]


# Gradients ----------------------------------------------------------------------------------------


def test_gradients(tiny, rounded, inputs):
    """They pass through to the activations as through the weights that the integers stand for, and near to those of float32."""

    @jax.jit
    def gradients(flux, img, txt):
        return jax.grad(lambda img, txt: jnp.square(flux(img, txt, *inputs[2:]) - img).mean(), (0, 1))(img, txt)

    exact, ours = (gradients(flux, *inputs[:2]) for flux in (checkpoint.load_model(tiny[0], "flux", dtype=jnp.float32), rounded.flux))
    same = gradients(with_params(abstract("flux", rounded.flux.cfg), dequantized(rounded.flux)), *inputs[:2])
    for a, b, c in zip(exact, ours, same, strict=True):
        error = np.linalg.norm(b - a) / np.linalg.norm(a)
        print(f"gradient {error:.2%}")
        assert 1e-5 < error < 5e-2
        assert_close(np.asarray(b), np.asarray(c), 1e-5)


@pytest.mark.parametrize("remat", ["offload", "block", "attention", "dots", "none"])
def test_no_copy_waits_for_the_backward_pass(rounded, inputs, remat, monkeypatch):
    """What the forward pass leaves for the backward pass has no kernel in another dtype than int8."""
    kernels = {x.shape for path, x in params_of(rounded.flux).items() if x.dtype == jnp.int8}

    def kept(remat):
        residuals = jax.eval_shape(lambda img: jax.vjp(lambda img: rounded.flux(img, *inputs[1:], remat=remat), img)[1], inputs[0])
        return [x for x in jax.tree.leaves(residuals) if x.shape in kernels and x.dtype != jnp.int8]

    assert not kept(remat)
    if remat == "none":  # which it is not by itself
        monkeypatch.setitem(layers._KEPT, "none", jax.checkpoint_policies.everything_saveable)
        assert kept("none")


# LoRAs --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def loras(rounded, tmp_path_factory):
    """Strong, of three layers of the transformer, one of which is not rounded."""
    cfg, draw, folder = rounded.flux.cfg, np.random.default_rng(1).standard_normal, tmp_path_factory.mktemp("loras")
    size = cfg.hidden_size
    names = {"single_transformer_blocks.0.proj_out": (size, size + cfg.mlp_size), "transformer_blocks.0.attn.to_k": (size, size)}
    names |= {"context_embedder": (size, cfg.context_in_dim)}
    tensors = {}
    for name, (outputs, inputs) in names.items():
        tensors |= {
            f"transformer.{name}.lora_A.weight": draw((4, inputs), np.float32) / 4,
            f"transformer.{name}.lora_B.weight": draw((outputs, 4), np.float32) / 4,
        }
    safetensors.write_file(folder / "l.safetensors", tensors, None)
    return folder / "l.safetensors"


def test_loras(tiny, rounded, loras, tmp_path):
    """Merged before rounding: as loading the merged model. Put on later: as loaded with it. Taken off: as before, bit for bit."""
    given, before = [(loras, 0.5)], bits(rounded.flux)
    loaded = InfUPipeline.load(*tiny, weights="int8", loras=given)
    flux = checkpoint.load_model(tiny[0], "flux", dtype=jnp.float32)
    added = lora.together([lora.read(*given[0], {"flux": flux})], "flux")
    checkpoint.save_params(tmp_path / "merged", "flux", flux.cfg, lora.merge_stored(quantize.open_params(tiny[0], "flux"), added))
    merged = quantize.load("flux", abstract("flux", flux.cfg), quantize.open_params(tmp_path / "merged", "flux"), rounded.mesh, jnp.float32)
    assert_same(bits(loaded.flux), bits(merged))
    changed = {path for path, x in bits(merged).items() if (x != before[path]).any()}
    assert {"single_blocks.attn_out.kernel", "single_blocks.attn_out.kernel_scale", "single_blocks.mlp_out.kernel", "txt_in.kernel"} < changed
    try:
        rounded.set_loras(given)
        assert_same(bits(rounded.flux), bits(loaded.flux))
        rounded.set_loras([(loras, 1.5)])
        assert (bits(rounded.flux)["double_blocks.img.qkv.kernel"] != before["double_blocks.img.qkv.kernel"]).any()
        loaded.set_loras([(loras, 1.0)])  # together with what it was loaded with
        assert_same(
            {path: x for path, x in bits(loaded.flux).items() if x.dtype == np.int8}, {path: x for path, x in bits(rounded.flux).items() if x.dtype == np.int8}
        )
    finally:
        rounded.set_loras([])
    assert_same(bits(rounded.flux), before)


# The command --------------------------------------------------------------------------------------


def test_sample(tmp_path, monkeypatch):
    """The option reaches the models and the picture's metadata, and --like takes it from there."""
    loaded, load = [], quantize.load
    monkeypatch.setattr(quantize, "load", lambda name, *given: loaded.append(name) or load(name, *given))
    made = only(command(sample, *SMALL, "--prompt", "a chef", "--seed", 3, "--weights", "int8", "--out", tmp_path / "out"))
    assert sorted(loaded) == ["flux", "infusenet", "t5"]
    assert pictures.read_recipe(made)["weights"] == "int8"
    assert sample._defaults(["--like", str(made)]).weights == "int8"
