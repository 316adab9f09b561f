"""LoRAs against diffusers' `load_lora_weights`: the same file, the same velocity and the same pooled text."""

import inspect
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from diffusers.loaders import lora_conversion_utils
from safetensors.torch import save_file

from infu_jax import checkpoint, latents, lora
from infu_jax.config import FluxConfig
from infu_jax.convert import lora_files, rules, source
from infu_jax.convert.errors import ConversionError
from infu_jax.models.flux import rope
from infu_jax.sharding import make_mesh
from tests.parity.release import make_release
from tests.parity.tools import TOLERANCE, assert_close

T, H, W, B = 5, 6, 10, 2
DRAW = np.random.default_rng(7)


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return make_release(tmp_path_factory.mktemp("release"))


@pytest.fixture(scope="module")
def ours(release):
    return {name: checkpoint.load_model(release.base, name) for name in lora.MODELS}


def tensor(*shape):
    return torch.from_numpy(DRAW.standard_normal(shape, np.float32) * 0.15)


def layers(plan_of, cfg, pattern=""):
    """(outputs, inputs) of every weight matrix of a layout."""

    shapes = {k: v.shape for k, v in checkpoint.param_shapes(checkpoint.abstract(plan_of.model, cfg)).items()}

    plan = rules.plan(plan_of.rules(cfg), shapes)
    return {k.removesuffix(".weight"): s for k, s in plan.their_shapes.items() if plan.by_theirs[k][0].kind == "linear" and re.search(pattern, k)}


def layout(model, name):
    return next(x for x in source.LAYOUTS if (x.model, x.name) == (model, name))


def pairs(names, down="lora_A.weight", up="lora_B.weight", rank=4):
    made = {}
    for n, (name, (outputs, inputs)) in enumerate(sorted(names.items())):
        r = rank + n % 2  # of unequal ranks
        made |= {f"{name}.{down}": tensor(r, inputs), f"{name}.{up}": tensor(outputs, r)}
    return made


def kohya(names, alpha=lambda n: 2.0 + n % 3, prefix="lora_unet_"):
    made = pairs({prefix + name.replace(".", "_"): s for name, s in names.items()}, "lora_down.weight", "lora_up.weight")
    downs = [key for key in made if "lora_down" in key]
    return made | {key.replace("lora_down.weight", "alpha"): torch.tensor(alpha(n)) for n, key in enumerate(downs) if alpha(n) is not None}


def family(name, cfg, clip_cfg) -> dict:
    """A file's tensors as each family of trainers writes them."""
    bfl, diffusers, clip = layout("flux", "bfl"), layout("flux", "diffusers"), layout("clip", "transformers")
    hidden, both = cfg.hidden_size, cfg.hidden_size + cfg.mlp_size
    if name == "diffusers":
        return pairs({f"transformer.{k}": s for k, s in layers(diffusers, cfg, r"blocks|norm_out|proj_out|embedder").items()})
    if name == "diffusers with alpha":
        made = pairs({f"transformer.{k}": s for k, s in layers(diffusers, cfg, r"transformer_blocks\..*attn").items()})
        downs = [k for k in made if "lora_A" in k]
        return made | {k.replace("lora_A.weight", "alpha"): torch.tensor(3.0 + n % 2) for n, k in enumerate(downs)}
    if name == "kohya":  # diffusers' converter loses embedders and the final layer; ours are checked in tests/test_lora.py
        return kohya(layers(bfl, cfg, r"blocks"))
    if name == "kohya without alpha":
        return kohya(layers(bfl, cfg, r"double_blocks.*(img|txt)_(attn|mlp)"), alpha=lambda n: None)
    if name == "kohya with split qkv":  # q, k, v trained apart: zeros off the diagonal
        made = {}
        for key, (outputs, inputs) in layers(bfl, cfg, r"img_attn\.qkv").items():
            module, up = "lora_unet_" + key.replace(".", "_"), torch.zeros(outputs, 6)
            for n in range(3):
                up[n * hidden : (n + 1) * hidden, 2 * n : 2 * n + 2] = tensor(hidden, 2)
            made |= {f"{module}.lora_down.weight": tensor(6, inputs), f"{module}.lora_up.weight": up, f"{module}.alpha": torch.tensor(3.0)}
        return made
    if name == "kohya with CLIP":
        return kohya(layers(bfl, cfg, r"double_blocks.*mlp")) | kohya(layers(clip, clip_cfg, r"encoder\.layers"), prefix="lora_te1_")
    if name == "ComfyUI":
        return pairs(
            {f"diffusion_model.{k}": s for k, s in layers(bfl, cfg, r"(img|txt)_(attn|mlp|mod)|linear2").items()}, "lora_down.weight", "lora_up.weight"
        )
    if name == "XLabs":
        made = {}
        for n in range(cfg.depth):
            for side in (1, 2):
                made |= pairs({f"double_blocks.{n}.processor.qkv_lora{side}": (3 * hidden, hidden)}, "down.weight", "up.weight")
                made |= pairs({f"double_blocks.{n}.processor.proj_lora{side}": (hidden, hidden)}, "down.weight", "up.weight")
        for n in range(cfg.depth_single_blocks):
            made |= pairs({f"single_blocks.{n}.processor.qkv_lora": (3 * hidden, hidden)}, "down.weight", "up.weight")
            made |= pairs({f"single_blocks.{n}.processor.proj_lora": (hidden, both)}, "down.weight", "up.weight")
        return made
    raise AssertionError(name)


FAMILIES = [
    "diffusers", "diffusers with alpha", "kohya", "kohya without alpha", "kohya with split qkv", "kohya with CLIP", "ComfyUI", "XLabs",
]  # fmt: skip


@pytest.fixture
def theirs(release, monkeypatch, ours):
    """diffusers' pipeline with fresh copies of the models. Its converter has FLUX.1's sizes written into it; here they are the model's."""
    cfg = ours["flux"].cfg
    convert = lora_conversion_utils._convert_kohya_flux_lora_to_diffusers
    text = inspect.getsource(convert)
    assert text.count("[3072, 3072, 3072, 12288]") == 1
    scope = dict(vars(lora_conversion_utils))
    exec(text.replace("[3072, 3072, 3072, 12288]", str([cfg.hidden_size] * 3 + [cfg.mlp_size])), scope)
    monkeypatch.setattr("diffusers.loaders.lora_pipeline._convert_kohya_flux_lora_to_diffusers", scope[convert.__name__])
    from transformers import CLIPTextModel

    return FluxPipeline(
        scheduler=None, vae=None, tokenizer=None, text_encoder_2=None, tokenizer_2=None,
        transformer=FluxTransformer2DModel.from_pretrained(release.base / "transformer"),
        text_encoder=CLIPTextModel.from_pretrained(release.base / "text_encoder"),
    )  # fmt: skip


def their_velocity(pipe, x, ids):
    with torch.no_grad():
        (v,) = pipe.transformer(
            hidden_states=torch.tensor(x["img"]), encoder_hidden_states=torch.tensor(x["txt"]), timestep=torch.tensor(x["t"]),
            pooled_projections=torch.tensor(x["y"]), guidance=torch.tensor(x["guidance"]), txt_ids=torch.tensor(ids[:T]).float(),
            img_ids=torch.tensor(ids[T:]).float(), return_dict=False,
        )  # fmt: skip
        return v, pipe.text_encoder(torch.tensor(x["ids"])).pooler_output


def our_velocity(models, x, ids):
    flux = models["flux"]
    v = flux(jnp.asarray(x["img"]), jnp.asarray(x["txt"]), rope(ids, flux.cfg), jnp.asarray(x["t"]), jnp.asarray(x["y"]), jnp.asarray(x["guidance"]))
    return np.asarray(v), np.asarray(models["clip"](jnp.asarray(x["ids"]), dtype=jnp.float32)[1])


def inputs(models):
    cfg, draw = models["flux"].cfg, np.random.default_rng(1).standard_normal
    ids = np.random.default_rng(2).integers(3, models["clip"].cfg.eos_token_id, (B, 77))
    ids[:, 20:] = models["clip"].cfg.eos_token_id
    return dict(
        img=draw((B, (H // 2) * (W // 2), cfg.in_channels), np.float32), txt=draw((B, T, cfg.context_in_dim), np.float32),
        y=draw((B, cfg.vec_in_dim), np.float32), t=np.float32([0.8, 0.3]), guidance=np.float32([3.5, 1.0]), ids=ids,
    )  # fmt: skip


def merged(models, files, keep=True):
    read = [lora.read(path, scale, models) for path, scale in files]
    return {name: lora.merge(model, lora.together(read, name), keep=keep) for name, model in models.items()}


@pytest.mark.parametrize("name", FAMILIES)
def test_velocity(release, ours, theirs, tmp_path, name):
    save_file(family(name, ours["flux"].cfg, ours["clip"].cfg), tmp_path / "lora.safetensors")
    x, ids = inputs(ours), latents.position_ids(T, H, W)
    plain = our_velocity(ours, x, ids)
    for a, b in zip(plain, their_velocity(theirs, x, ids)):
        assert_close(a, b)
    theirs.load_lora_weights(str(tmp_path / "lora.safetensors"))
    changed = merged(ours, [(tmp_path / "lora.safetensors", 1.0)])
    found = our_velocity({k: m for k, (m, _) in changed.items()}, x, ids)
    for a, b in zip(found, their_velocity(theirs, x, ids)):
        assert_close(a, b)
    moved = [np.abs(a - b).max() / np.abs(b).max() for a, b in zip(found, plain)]
    assert moved[0] > 100 * TOLERANCE and (moved[1] > 100 * TOLERANCE) == ("CLIP" in name)
    # And off again, to the bit.
    for a, b in zip(our_velocity({k: lora.restore(m, former) for k, (m, former) in changed.items()}, x, ids), plain):
        np.testing.assert_array_equal(a, b)


def test_two_with_scales(release, ours, theirs, tmp_path):
    """Of different families, on some of the same layers; merged into sharded weights as well."""
    files = [(tmp_path / "a.safetensors", 0.7), (tmp_path / "b.safetensors", -0.4)]
    for (path, _), name in zip(files, ("kohya", "diffusers with alpha")):
        save_file(family(name, ours["flux"].cfg, ours["clip"].cfg), path)
        theirs.load_lora_weights(str(path), adapter_name=path.stem)
    theirs.set_adapters(["a", "b"], [0.7, -0.4])
    x, ids = inputs(ours), latents.position_ids(T, H, W)
    expected = their_velocity(theirs, x, ids)[0]
    assert_close(our_velocity({k: m for k, (m, _) in merged(ours, files).items()}, x, ids)[0], expected)
    mesh = make_mesh(2, 2, 2)
    spread = {name: checkpoint.load_model(release.base, name, mesh=mesh) for name in ("flux", "clip")}
    before = {k: v.sharding for k, v in checkpoint.params_of(spread["flux"]).items()}
    both = {name: model for name, (model, _) in merged(spread, files, keep=False).items()}
    assert {k: v.sharding for k, v in checkpoint.params_of(both["flux"]).items()} == before
    with jax.set_mesh(mesh):
        assert_close(our_velocity(both, x, ids)[0], expected)


def test_settings_in_the_metadata(ours, theirs, tmp_path):
    """diffusers keeps PEFT's alpha and rank patterns in the file's metadata."""
    made = family("diffusers with alpha", ours["flux"].cfg, ours["clip"].cfg)
    weights = {k: v for k, v in made.items() if "alpha" not in k}
    ranks = {k.split(".lora_")[0].removeprefix("transformer."): v.shape[0] for k, v in weights.items() if "lora_A" in k}
    odd = sorted(name for name, r in ranks.items() if r != 4)
    settings = {
        "r": 4, "lora_alpha": 6, "rank_pattern": {name: 5 for name in odd}, "alpha_pattern": {odd[0]: 11}, "target_modules": sorted(ranks),
    }  # fmt: skip
    stored = json.dumps({f"transformer.{k}": v for k, v in settings.items()})
    save_file(weights, tmp_path / "lora.safetensors", {"format": "pt", "lora_adapter_metadata": stored})
    theirs.load_lora_weights(str(tmp_path / "lora.safetensors"))
    x, ids = inputs(ours), latents.position_ids(T, H, W)
    changed = merged(ours, [(tmp_path / "lora.safetensors", 1.0)])
    assert_close(our_velocity({k: m for k, (m, _) in changed.items()}, x, ids)[0], their_velocity(theirs, x, ids)[0])


def test_what_diffusers_saves(release, ours, theirs, tmp_path):
    """A LoRA trained with PEFT and saved by FluxPipeline."""
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    theirs.transformer.add_adapter(LoraConfig(r=3, lora_alpha=5, init_lora_weights=False, target_modules=["to_q", "to_out.0", "proj_mlp", "ff.net.2"]))
    FluxPipeline.save_lora_weights(tmp_path / "saved", transformer_lora_layers=get_peft_model_state_dict(theirs.transformer))
    x, ids = inputs(ours), latents.position_ids(T, H, W)
    # Such a file says nothing of alpha: diffusers, too, reads it as alpha = rank.
    theirs.unload_lora_weights()
    theirs.load_lora_weights(str(tmp_path / "saved"))
    changed = merged(ours, [(tmp_path / "saved", 1.0)])
    assert_close(our_velocity({k: m for k, (m, _) in changed.items()}, x, ids)[0], their_velocity(theirs, x, ids)[0])


def test_text_encoder_keys_are_never_dropped(ours, tmp_path):
    save_file(family("kohya with CLIP", ours["flux"].cfg, ours["clip"].cfg), tmp_path / "lora.safetensors")
    with pytest.raises(ConversionError, match="36 of 96 keys match no layer: lora_te1_.*; 36 of them are for text encoders, which are not part"):
        lora.read(tmp_path / "lora.safetensors", 1.0, {"flux": ours["flux"]})


def test_full_size_names():
    """Of kohya's and XLabs' files for the real FLUX, each key is known."""

    cfg = FluxConfig()
    shapes = {k: v.shape for k, v in checkpoint.param_shapes(checkpoint.abstract("flux", cfg)).items()}
    plans = {("flux", x.name): rules.plan(x.rules(cfg), shapes) for x in source.LAYOUTS if x.model == "flux"}
    names = lora_files._names(plans)
    for n in range(19):
        for side in ("img", "txt"):
            for part in ("attn_qkv", "attn_proj", "mlp_0", "mlp_2", "mod_lin"):
                assert f"lora_unet_double_blocks_{n}_{side}_{part}" in names
        assert {f"double_blocks.{n}.processor.{p}" for p in ("qkv_lora1", "qkv_lora2", "proj_lora1", "proj_lora2")} <= set(names)
    for n in range(38):
        assert {f"lora_unet_single_blocks_{n}_{p}" for p in ("linear1", "linear2", "modulation_lin")} <= set(names)
        assert {f"single_blocks.{n}.processor.{p}" for p in ("qkv_lora", "proj_lora")} <= set(names)
