"""LoRAs without PyTorch: every name a file may use, arithmetic, what is refused, and the commands."""

import dataclasses
import json
import re
import shutil

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import convert_weights
import sample
from infu_jax import checkpoint, lora, pictures
from infu_jax.cli import file_and_scale
from infu_jax.convert import lora_files, rules, safetensors, source
from infu_jax.convert.errors import ConversionError
from infu_jax.errors import InputError
from infu_jax.sharding import make_mesh
from tests.test_sample_cli import FLUX, INFU, SMALL, assert_one_line, changed, command, edit_keys, listing, one_device, only, pixels  # noqa: F401  (one_device is a fixture)

DRAW = np.random.default_rng(0)
MODELS = ("--base", FLUX, "--infu", INFU)


@pytest.fixture(scope="module")
def models():
    return {name: checkpoint.load_model(FLUX, name, dtype=jnp.float32) for name in lora.MODELS}


def plan_of(model, name):
    layout = next(x for x in source.LAYOUTS if (x.model, x.name) == (model, name))
    found = checkpoint.open_model(FLUX, model)
    return rules.plan(layout.rules(found.cfg), {k: v.shape for k, v in checkpoint.param_shapes(checkpoint.check(found)).items()})


def pair(outputs, inputs, rank=3):
    return DRAW.standard_normal((rank, inputs), np.float32), DRAW.standard_normal((outputs, rank), np.float32)


def write(path, tensors, metadata=None):
    safetensors.write_file(path, tensors, metadata)
    return path


def weights(models, model, name):
    """All weights of a model in a layout."""
    plan, params = plan_of(model, name), {k: np.asarray(v) for k, v in checkpoint.params_of(models[model]).items()}
    return {key: plan.read_theirs(key, params, np.float32) for key in plan.their_shapes}


def merged(models, *files):
    read = [lora.read(path, scale, models) for path, scale in files]
    return {name: lora.merge(model, lora.together(read, name), keep=True)[0] for name, model in models.items()}


# (the file's prefix and name of a layer, model, layout, its weight)
NAMES = {
    "kohya": ("lora_unet_double_blocks_1_txt_attn_qkv", "flux", "bfl", "double_blocks.1.txt_attn.qkv.weight"),
    "kohya single": ("lora_unet_single_blocks_7_linear1", "flux", "bfl", "single_blocks.7.linear1.weight"),
    "kohya embedder": ("lora_unet_guidance_in_in_layer", "flux", "bfl", "guidance_in.in_layer.weight"),
    "kohya final": ("lora_unet_final_layer_adaLN_modulation_1", "flux", "bfl", "final_layer.adaLN_modulation.1.weight"),
    "kohya of diffusers": ("lora_unet_transformer_blocks_0_attn_to_q", "flux", "diffusers", "transformer_blocks.0.attn.to_q.weight"),
    "kohya CLIP": ("lora_te1_text_model_encoder_layers_1_mlp_fc1", "clip", "transformers", "text_model.encoder.layers.1.mlp.fc1.weight"),
    "kohya T5": ("lora_te3_encoder_block_1_layer_0_SelfAttention_q", "t5", "transformers", "encoder.block.1.layer.0.SelfAttention.q.weight"),
    "OneTrainer": ("lora_transformer_single_transformer_blocks_2_proj_out", "flux", "diffusers", "single_transformer_blocks.2.proj_out.weight"),
    "diffusers": ("transformer.norm_out.linear", "flux", "diffusers", "norm_out.linear.weight"),
    "diffusers embedder": ("transformer.x_embedder", "flux", "diffusers", "x_embedder.weight"),
    "diffusers CLIP": ("text_encoder.text_model.encoder.layers.0.self_attn.out_proj", "clip", "transformers", None),
    "PEFT": ("base_model.model.transformer_blocks.3.ff.net.0.proj", "flux", "diffusers", "transformer_blocks.3.ff.net.0.proj.weight"),
    "ComfyUI": ("diffusion_model.double_blocks.0.img_mod.lin", "flux", "bfl", "double_blocks.0.img_mod.lin.weight"),
    "ComfyUI of diffusers": ("diffusion_model.transformer_blocks.0.attn.add_v_proj", "flux", "diffusers", "transformer_blocks.0.attn.add_v_proj.weight"),
    "ComfyUI CLIP": ("text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc2", "clip", "transformers", None),
    "ComfyUI T5": ("text_encoders.t5xxl.transformer.encoder.block.0.layer.1.DenseReluDense.wi_1", "t5", "transformers", None),
    "bare": ("single_transformer_blocks.0.proj_mlp", "flux", "diffusers", "single_transformer_blocks.0.proj_mlp.weight"),
    "XLabs": ("double_blocks.2.processor.proj_lora2", "flux", "bfl", "double_blocks.2.txt_attn.proj.weight"),
    "XLabs in ComfyUI": ("diffusion_model.single_blocks.2.processor.proj_lora", "flux", "bfl", "single_blocks.2.linear2.weight"),
}
PARTS = [
    ("lora_down.weight", "lora_up.weight"),
    ("lora_A.weight", "lora_B.weight"),
    ("lora_A.default.weight", "lora_B.default.weight"),
    ("lora.down.weight", "lora.up.weight"),
]


@pytest.mark.parametrize("name", NAMES)
def test_every_name_leads_to_its_weight(models, tmp_path, name):
    """scale * alpha / rank * up @ down is added to that weight, and to no other."""
    module, model, layout, key = NAMES[name]
    key = key or re.sub(r"^.*?(text_model|encoder\.block)", r"\1", module) + ".weight"
    before = weights(models, model, layout)
    down, up = pair(*before[key].shape)
    parts = ("down.weight", "up.weight") if "processor" in module else PARTS[len(name) % len(PARTS)]
    tensors = {f"{module}.{parts[0]}": down, f"{module}.{parts[1]}": up}
    if "processor" not in module:
        tensors[f"{module}.alpha"] = np.float32(1.5)
    strength = 0.7 * (1.0 if "processor" in module else 1.5 / 3)
    after = weights(merged(models, (write(tmp_path / "l.safetensors", tensors), 0.7)), model, layout)
    for other in before:
        if other != key:
            np.testing.assert_array_equal(after[other], before[other])
    np.testing.assert_allclose(after[key], before[key] + strength * (up.astype(np.float64) @ down), rtol=0, atol=3e-6)


def test_the_final_layers_halves(models, tmp_path):
    """BFL's (shift, scale) and diffusers' (scale, shift) are the same change."""
    down, up = pair(128, 64)
    bfl = write(
        tmp_path / "a.safetensors",
        {"lora_unet_final_layer_adaLN_modulation_1.lora_down.weight": down, "lora_unet_final_layer_adaLN_modulation_1.lora_up.weight": up},
    )
    swapped = np.concatenate([up[64:], up[:64]])
    diffusers = write(tmp_path / "b.safetensors", {"transformer.norm_out.linear.lora_A.weight": down, "transformer.norm_out.linear.lora_B.weight": swapped})
    a, b = (weights(merged(models, (path, 1.0)), "flux", "bfl") for path in (bfl, diffusers))
    for key in a:
        np.testing.assert_array_equal(a[key], b[key])


def test_one_rounding(tmp_path):
    """In bfloat16 weights the sum of all LoRAs is float32 until it is stored."""
    flux = checkpoint.load_model(FLUX, "flux")
    key, module = "transformer_blocks.0.ff.net.2.weight", "transformer.transformer_blocks.0.ff.net.2"
    plan, (down, up) = plan_of("flux", "diffusers"), pair(64, 256)
    path = write(tmp_path / "l.safetensors", {f"{module}.lora_A.weight": down.astype(ml_dtypes.bfloat16), f"{module}.lora_B.weight": up.astype(np.float16)})
    read = lambda m: plan.read_theirs(key, {k: np.asarray(v) for k, v in checkpoint.params_of(m).items()}, ml_dtypes.bfloat16)  # noqa: E731
    changes = lora.together([lora.read(path, scale, {"flux": flux}) for scale in (1e-3, 0.25)], "flux")
    wide = np.float32(down.astype(ml_dtypes.bfloat16)), np.float32(up.astype(np.float16))
    expected = (np.float32(read(flux)) + np.float32(0.251) * (wide[1] @ wide[0])).astype(ml_dtypes.bfloat16)
    found = read(lora.merge(flux, changes, keep=True)[0])
    off = np.abs(np.float32(found) - np.float32(expected)) / np.abs(np.float32(expected))
    assert (off > 0).mean() < 1e-3 and off.max() < 2**-7  # a tie here and there


def test_sharded_and_stored_merges_are_the_same(models, tmp_path):
    tensors = {}
    for module, outputs, inputs in (
        ("double_blocks_0_img_attn_qkv", 192, 64),
        ("single_blocks_3_linear1", 448, 64),
        ("single_blocks_3_linear2", 64, 320),
        ("txt_in", 64, 32),
    ):
        tensors[f"lora_unet_{module}.lora_down.weight"], tensors[f"lora_unet_{module}.lora_up.weight"] = pair(outputs, inputs)
    path = write(tmp_path / "l.safetensors", tensors)
    one = checkpoint.params_of(merged(models, (path, 1.0))["flux"])
    spread = checkpoint.load_model(FLUX, "flux", dtype=jnp.float32, mesh=make_mesh(2, 2, 2))
    where = {k: v.sharding for k, v in checkpoint.params_of(spread).items()}
    changes = lora.together([lora.read(path, 1.0, {"flux": spread})], "flux")
    many = checkpoint.params_of(lora.merge(spread, changes)[0])
    stored = lora.merge_stored(checkpoint.open_params(checkpoint.open_model(FLUX, "flux"), np.float32), changes)
    assert set(changes) == {"double_blocks.img.qkv.kernel", "single_blocks.qkv.kernel", "single_blocks.mlp_in.kernel", "single_blocks.attn_out.kernel"} | {
        "single_blocks.mlp_out.kernel", "txt_in.kernel",
    }  # fmt: skip
    for name, x in one.items():
        assert many[name].sharding == where[name]
        np.testing.assert_allclose(np.asarray(many[name]), np.asarray(x), rtol=0, atol=2e-6)
        np.testing.assert_allclose(np.asarray(stored[name]), np.asarray(x), rtol=0, atol=2e-6)
    # A box of a stored one is the whole, sliced.
    box = stored["single_blocks.qkv.kernel"][slice(3, 4), slice(5, 20), slice(1, 3), slice(0, 1), slice(4, 9), ...]
    np.testing.assert_array_equal(box, np.asarray(stored["single_blocks.qkv.kernel"])[3:4, 5:20, 1:3, 0:1, 4:9])


# Refused ------------------------------------------------------------------------------------------

QKV = "lora_unet_double_blocks_0_img_attn_qkv"
GOOD = {f"{QKV}.lora_down.weight": np.ones((2, 64), np.float32), f"{QKV}.lora_up.weight": np.ones((192, 2), np.float32), f"{QKV}.alpha": np.float32(2)}
FAULTS = {
    "an unknown layer": (
        {"lora_unet_double_blocks_9_img_mlp_0.alpha": np.float32(1)},
        r"matched 3 keys of flux \(bfl names\); 1 of 4 keys match no layer: lora_unet_double_blocks_9",
    ),
    "another model": ({"lora_unet_down_blocks_0_attentions_0.lora_up.weight": np.ones(2)}, "1 of 4 keys match no layer: lora_unet_down_blocks_0"),
    "LoHa": ({f"{QKV}.hada_w1_a": np.ones((2, 2))}, "it seems to hold LoHa, which is not supported"),
    "LoKr": ({f"{QKV}.lokr_w1": np.ones((2, 2))}, "it seems to hold LoKr, which is not supported"),
    "DoRA": ({f"{QKV}.dora_scale": np.ones(2)}, "it seems to hold DoRA, which is not supported"),
    "a bias": ({"lora_unet_double_blocks_0_img_attn_qkv.diff_b": np.ones(2)}, "it seems to hold full differences, which is not supported"),
    "a norm": (
        {"transformer.transformer_blocks.0.attn.norm_q.weight": np.ones(32)},
        "1 of 4 keys match no layer: transformer.transformer_blocks.0.attn.norm_q.weight",
    ),
    "down alone": ({f"{QKV}.lora_up.weight": None}, f"{QKV} has down without up; the file is incomplete"),
    "alpha alone": ({f"{QKV}.lora_up.weight": None, f"{QKV}.lora_down.weight": None}, "without"),
    "twice": ({"diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight": np.ones((2, 64))}, "change the same layer twice"),
    "two adapters": ({f"{QKV}.lora_A.other.weight": np.ones((2, 64))}, "change the same layer twice"),
    "of another size": ({f"{QKV}.lora_up.weight": np.ones((384, 2))}, r"is \[384, 2\] x \[2, 64\]; the layer is \[192, 64\] .*this LoRA is for another model"),
    "of unequal ranks": ({f"{QKV}.lora_up.weight": np.ones((192, 3))}, "this LoRA is for another model"),
    "of three axes": ({f"{QKV}.lora_up.weight": np.ones((192, 2, 1))}, "this LoRA is for another model"),
    "alpha of two numbers": ({f"{QKV}.alpha": np.ones(2)}, "its alpha is not a number"),
    "alpha NaN": ({f"{QKV}.alpha": np.float32("nan")}, "its alpha is nan"),
    "NaN": ({f"{QKV}.lora_up.weight": np.full((192, 2), np.nan)}, "not all numbers are finite"),
    "a large alpha": (
        {f"{QKV}.alpha": np.float32(3e38), f"{QKV}.lora_up.weight": np.full((192, 2), 99.0)},
        r"img_attn_qkv: at scale 1, with alpha / rank 1.5e\+38, its numbers are not finite; choose a smaller scale",
    ),
    "nothing": ({key: None for key in GOOD}, "matched nothing; 0 of 0 keys"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_refused(models, tmp_path, case):
    change, message = FAULTS[case]
    path = write(tmp_path / "l.safetensors", {k: np.asarray(v) for k, v in {**GOOD, **change}.items() if v is not None})
    with pytest.raises(ConversionError, match=message):
        lora.read(path, 1.0, models)
    assert lora.read(write(tmp_path / "good.safetensors", GOOD), 1.0, models).summary == "1 layers of flux (bfl names)"


def test_a_linear_layer_as_a_convolution(models, tmp_path):
    square = {k: v[..., None, None] if v.ndim == 2 else v for k, v in GOOD.items()}
    a, b = (weights(merged(models, (write(tmp_path / f"{n}.safetensors", x), 1.0)), "flux", "bfl") for n, x in enumerate((GOOD, square)))
    assert all((a[key] == b[key]).all() for key in a)


@pytest.mark.parametrize(
    ("settings", "strength"),
    [
        ({"lora_alpha": 4}, 2),
        ({"lora_alpha": 4, "use_rslora": True}, 4 / 2**0.5),
        ({"lora_alpha": 4, "alpha_pattern": {"attn.to_q": 6}}, 3),
        ({"lora_alpha": 4, "alpha_pattern": {"to_k|to_q": 6}}, 3),
        ({"lora_alpha": 4, "alpha_pattern": {"to_q|to_k": 6}}, 3),
        ({"lora_alpha": 4, "alpha_pattern": {"^transformer_blocks.0.attn.to_q": 6}}, 3),
        ({"lora_alpha": 4, "alpha_pattern": {"^to_q": 6, "o_q": 6, "attn": 6}}, 2),
        ({}, 1),
    ],
)
def test_peft_folder(models, tmp_path, settings, strength):
    """adapter_model.safetensors with adapter_config.json, as PEFT saves a model."""
    down, up = pair(64, 64, 2)
    module = "base_model.model.transformer_blocks.0.attn.to_q"
    write(tmp_path / "adapter_model.safetensors", {f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up})
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 2, **settings}))
    key = "transformer_blocks.0.attn.to_q.weight"
    found = weights(merged(models, (tmp_path, 1.0)), "flux", "diffusers")[key]
    np.testing.assert_allclose(found, weights(models, "flux", "diffusers")[key] + strength * (up @ down), atol=1e-5)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"use_dora": True}))
    with pytest.raises(ConversionError, match="DoRA is not supported"):
        lora.read(tmp_path, 1.0, models)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (b"\xff\xfe{}", "adapter_config.json: its LoRA settings are not JSON"),
        (b"[" * 100_000, "adapter_config.json: its LoRA settings are not JSON: maximum recursion depth"),
        (b"[]", "adapter_config.json: its LoRA settings are not an object"),
        (b'{"lora_alpha": 1' + b"0" * 400 + b"}", "to_q: its alpha is not a number"),
        (b'{"lora_alpha": 1, "alpha_pattern": [1]}', "to_q: its alpha is not a number"),
        (b'{"lora_alpha": 1, "alpha_pattern": {"(": 1}}', "to_q: its alpha is not a number"),
    ],
)
def test_damaged_peft_folder(models, tmp_path, settings, message):
    module = "base_model.model.transformer_blocks.0.attn.to_q"
    down, up = pair(64, 64)
    write(tmp_path / "adapter_model.safetensors", {f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up})
    (tmp_path / "adapter_config.json").write_bytes(settings)
    with pytest.raises(ConversionError, match=message):
        lora.read(tmp_path, 1.0, models)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.safetensors", ("a.safetensors", 1.0)),
        ("a.safetensors:0.8", ("a.safetensors", 0.8)),
        ("d:/a.safetensors", ("d:/a.safetensors", 1.0)),
        ("a:b:-2", ("a:b", -2.0)),
    ],
)
def test_file_and_scale(text, expected):
    path, scale = file_and_scale(text)
    assert (str(path), scale) == expected


@pytest.mark.parametrize("scale", ["nan", "-inf", "1e39", "3.41e38"])
def test_scale_that_float32_does_not_hold(scale):
    with pytest.raises(InputError, match=f"the scale of a is {scale}; a finite number is needed"):
        file_and_scale(f"a:{scale}")


# The commands -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loras")
    strong = {}
    for n in range(8):
        down, up = pair(64, 320, 4)
        strong |= {
            f"transformer.single_transformer_blocks.{n}.proj_out.lora_A.weight": down,
            f"transformer.single_transformer_blocks.{n}.proj_out.lora_B.weight": up / 4,
        }
    down, up = pair(64, 32)
    text = {"lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": down, "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": up}
    return write(folder / "strong.safetensors", strong), write(folder / "both.safetensors", GOOD | text)


def test_sample(files, tmp_path):
    """A LoRA changes the picture, at scale 0 it does not, its file is in the recipe, and --like makes the same picture again."""
    out = tmp_path / "out"
    given = (*MODELS, *SMALL, "--prompt", "a chef", "--seed", 3, "--out", out)
    plain = only(command(sample, *given))
    changed = only(command(sample, *given, "--lora", f"{files[0]}:0.5", files[1]))
    assert np.abs(np.int32(pixels(changed)) - pixels(plain)).max() > 8
    np.testing.assert_array_equal(pixels(only(command(sample, *given, "--lora", f"{files[0]}:0"))), pixels(plain))
    recipe = pictures.read_recipe(changed)
    assert recipe["lora"] == [f"{files[0]}:0.5", str(files[1])] and all(len(digest) == 64 for digest in recipe["lora_sha256"])
    np.testing.assert_array_equal(pixels(only(command(sample, "--like", changed, "--out", out))), pixels(changed))
    other = shutil.copy(files[1], tmp_path / "other.safetensors")
    again = only(command(sample, *given, "--lora", other))
    write(tmp_path / "other.safetensors", GOOD)
    assert_one_line(command(sample, "--like", again, "--out", out), "other.safetensors is not the file that .* was made with")


def test_sample_says_what_is_wrong(files, tmp_path):
    given = (*MODELS, *SMALL, "--prompt", "a chef", "--out", tmp_path / "out", "--lora")
    assert_one_line(command(sample, *given, tmp_path / "no.safetensors"), "no.safetensors does not exist")
    assert_one_line(command(sample, *given, f"{files[0]}:nan"), "the scale of .* is nan; a finite number is needed")
    path = write(tmp_path / "l.safetensors", GOOD | {"what.is.this": np.ones(1)})
    assert_one_line(command(sample, *given, path), r"matched 3 keys of flux \(bfl names\); 1 of 4 keys match no layer: what.is.this")
    assert not (tmp_path / "out").exists()


def test_taken_on_and_off(pipeline, files):
    """On a loaded pipeline, without loading again: to the bit as before."""
    before = {name: {k: np.asarray(v) for k, v in checkpoint.params_of(getattr(pipeline, name)).items()} for name in lora.MODELS}
    try:
        pipeline.set_loras([(files[0], 0.5), (files[1], 1.0)])
        changed = {k for k, v in checkpoint.params_of(pipeline.flux).items() if (np.asarray(v) != before["flux"][k]).any()}
        assert changed == {"single_blocks.attn_out.kernel", "single_blocks.mlp_out.kernel", "double_blocks.img.qkv.kernel"}
        pipeline.set_loras([(files[0], 2.0)])
        assert (np.asarray(checkpoint.params_of(pipeline.clip)["blocks.mlp_in.kernel"]) == before["clip"]["blocks.mlp_in.kernel"]).all()
    finally:
        pipeline.set_loras([])
    for name, params in before.items():
        for k, v in checkpoint.params_of(getattr(pipeline, name)).items():
            np.testing.assert_array_equal(np.asarray(v), params[k])


@pytest.mark.parametrize("kind", ["folder", "jax", "bfl"])
def test_merge_lora(files, tmp_path, kind):
    """In the layout and dtype of what was given; the same as merging when sampling does."""
    src, out = FLUX, tmp_path / "out"
    if kind == "jax":
        src = tmp_path / "jax"
        assert command(convert_weights, "to-jax", FLUX, src).code == 0
    if kind == "bfl":
        src, out = tmp_path / "flux.safetensors", tmp_path / "out.safetensors"
        assert command(convert_weights, "to-torch", FLUX / "transformer", src, "--style", "bfl").code == 0
    loras = [f"{files[0]}:0.5"] + ([str(files[1])] if kind != "bfl" else [])
    ran = command(convert_weights, "merge-lora", src, out, "--lora", *loras)
    assert ran.code == 0, ran.err
    assert f"{files[0]}: 8 layers of flux (diffusers names), scale 0.5" in ran.err
    found = checkpoint.open_model(out, "flux")
    assert found.layout.name == {"folder": "diffusers", "jax": "infu_jax (Orbax)", "bfl": "bfl"}[kind]
    flux = {"flux": checkpoint.load_model(FLUX, "flux")}
    flux |= {name: checkpoint.load_model(FLUX, name) for name in ("clip", "t5")}
    read = [lora.read(*file_and_scale(text), flux) for text in loras]
    for name in ("flux",) if kind == "bfl" else lora.MODELS:
        expected = checkpoint.params_of(lora.merge(flux[name], lora.together(read, name))[0])
        for k, v in checkpoint.params_of(checkpoint.load_model(out, name)).items():
            assert v.dtype == expected[k].dtype
            np.testing.assert_allclose(np.float32(v), np.float32(expected[k]), rtol=2**-7, atol=1e-6)
    if kind == "bfl":
        assert_one_line(
            command(convert_weights, "merge-lora", src, tmp_path / "no.safetensors", "--lora", files[1]), "2 of them are for text encoders, which are not part"
        )
        before = listing(tmp_path)
        assert_one_line(
            command(convert_weights, "merge-lora", FLUX / "vae", tmp_path / "no", "--lora", files[0]), "vae holds autoencoder; LoRAs are merged into a FLUX"
        )
        assert listing(tmp_path) == before


def test_merge_lora_keeps_mixed_dtypes(files, tmp_path):
    """Those of every tensor, where one of our parameters is made of several; what no LoRA changes is the same to the bit."""
    kinds = (ml_dtypes.float8_e4m3fn, ml_dtypes.bfloat16, np.float16)

    def mix(tensors):
        for n, key in enumerate(sorted(tensors)):
            tensors[key] = tensors[key].astype(kinds[n % 3])

    src = changed(tmp_path, FLUX, edit_keys("transformer/diffusion_pytorch_model.safetensors", mix)) / "transformer"
    assert command(convert_weights, "merge-lora", src, tmp_path / "out", "--lora", f"{files[0]}:0.5").code == 0
    before, after = source.open_tensors(src), source.open_tensors(tmp_path / "out")
    assert before.keys() == after.keys()
    for key, x in before.items():
        assert after[key].dtype == x.dtype and (after[key].tobytes() == x.tobytes()) != (".proj_out.weight" in key), key
    ran = command(convert_weights, "merge-lora", src, tmp_path / "no", "--lora", f"{files[0]}:5000")
    assert re.search(r"error: \S+.proj_out.weight has values up to .*; float8_e4m3fn ends at 448", ran.err)


@pytest.mark.parametrize(
    ("dtype", "scale", "message"),
    [
        ("float8_e4m3fn", "5000", r"single_blocks.\w+.kernel with its LoRAs has values up to .*; float8_e4m3fn ends at 448, choose bfloat16"),
        ("float16", "1e6", "kernel with its LoRAs has values up to .*; float16 ends at 6.55e.04, choose bfloat16"),
        ("bfloat16", "3.4e38", "kernel with its LoRAs has values that float32 does not hold; choose a smaller scale"),
    ],
)
def test_what_the_dtype_cannot_hold(files, tmp_path, dtype, scale, message):
    src = tmp_path / "src"
    assert command(convert_weights, "to-torch", FLUX / "transformer", src, "--dtype", dtype).code == 0
    before = listing(tmp_path)
    ran = command(convert_weights, "merge-lora", src, tmp_path / "out", "--lora", f"{files[0]}:{scale}")
    *said, error = ran.err.splitlines()
    assert ran.code == 1 and re.search(f"error: .*{message}", error) and not any(line.startswith("warning") for line in said), ran.err
    assert listing(tmp_path) == before


def test_extract_lora(files, tmp_path):
    """The difference that a LoRA made, as a LoRA again: merged, it makes the same checkpoint."""
    assert command(convert_weights, "merge-lora", FLUX / "transformer", tmp_path / "tuned", "--lora", files[0]).code == 0
    ran = command(convert_weights, "extract-lora", FLUX / "transformer", tmp_path / "tuned", tmp_path / "new" / "l.safetensors", "--rank", 4)
    assert ran.code == 0 and re.fullmatch(r".*: 8 layers of rank 4, 100.0% of the squared difference\n", ran.out), ran
    assert command(convert_weights, "merge-lora", FLUX / "transformer", tmp_path / "again", "--lora", tmp_path / "new" / "l.safetensors").code == 0
    a, b = (source.open_tensors(tmp_path / name) for name in ("tuned", "again"))
    assert max(np.abs(np.float32(a[k]) - np.float32(b[k])).max() for k in a) < 0.02 < np.abs(np.float32(a["single_transformer_blocks.0.proj_out.weight"])).max()
    half = command(convert_weights, "extract-lora", FLUX / "transformer", tmp_path / "tuned", tmp_path / "l2.safetensors", "--rank", 1).out
    assert 20 < float(re.search(r"([\d.]+)% of the squared", half)[1]) < 60
    same = command(convert_weights, "extract-lora", FLUX / "transformer", FLUX / "transformer", tmp_path / "l3.safetensors")
    assert_one_line(same, "have the same matrices; there is nothing to extract")


def test_no_lora_of_a_difference_that_is_not_finite():
    found = checkpoint.open_model(FLUX / "transformer")
    stored = checkpoint.open_params(found)
    broken = stored["txt_in.kernel"]
    tuned = {**stored, "txt_in.kernel": dataclasses.replace(broken, read=lambda box: np.full_like(broken.read(box), np.nan))}
    with pytest.raises(ConversionError, match="context_embedder.weight: the difference of the two is not finite"):
        lora.extract(stored, tuned, checkpoint.check(found), 2)


def test_large_matrices_are_projected():
    """By random projection: as good as the exact decomposition where the spectrum falls."""
    x, y = DRAW.standard_normal((700, 8), np.float32), DRAW.standard_normal((8, 900), np.float32)
    matrix = x @ y + 1e-3 * DRAW.standard_normal((700, 900), np.float32)
    up, sizes, down = lora._svd(matrix, 8)
    exact = np.linalg.svd(matrix, compute_uv=False)
    np.testing.assert_allclose(sizes, exact[:8], rtol=1e-4)
    np.testing.assert_allclose(up * sizes @ down, x @ y, atol=0.02)


def test_the_names_are_unique():
    """No name may mean two layers: kohya's underscores could hide a dot."""
    plans = {key: plan_of(*key) for key in (("flux", "bfl"), ("flux", "diffusers"), ("clip", "transformers"), ("t5", "transformers"))}
    forms = [form for (model, _), plan in plans.items() for key in plan.their_shapes for form in [f"{model} {key.removesuffix('.weight').replace('.', '_')}"]]
    assert len(forms) == len(set(forms))
    assert len(lora_files._names(plans)) > 1000
