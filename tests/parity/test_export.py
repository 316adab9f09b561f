"""What leaves this project, in the hands of diffusers, transformers and torch: no warning, no missing key, the same numbers."""

import json
import logging

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, FluxControlNetModel, FluxTransformer2DModel
from transformers import CLIPTextModel, T5EncoderModel

import convert_weights
from infu_jax import checkpoint, latents
from infu_jax.convert import safetensors
from infu_jax.models.flux import rope
from tests.parity.release import make_release
from tests.parity.tools import assert_close
from tests.test_sample_cli import command

PLACES = {
    "flux": ("FLUX.1/transformer", FluxTransformer2DModel),
    "autoencoder": ("FLUX.1/vae", AutoencoderKL),
    "clip": ("FLUX.1/text_encoder", CLIPTextModel),
    "t5": ("FLUX.1/text_encoder_2", T5EncoderModel),
    "infusenet": ("InfiniteYou/InfuseNetModel", FluxControlNetModel),
}
B, T, H, W = 2, 5, 6, 8


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """What torch, diffusers and transformers saved, and what came back after a round through our own format."""
    folder = tmp_path_factory.mktemp("export")
    release = make_release(folder / "before")
    for name in ("FLUX.1", "InfiniteYou"):
        assert command(convert_weights, "to-jax", folder / "before" / name, folder / "jax" / name).code == 0
        assert command(convert_weights, "to-torch", folder / "jax" / name, folder / "after" / name, "--shard-size", "300KB").code == 0
    return folder, release


def loaded(cls, path, caplog):
    """from_pretrained, which must have nothing to complain about."""
    names = [n for n in logging.root.manager.loggerDict if n.split(".")[0] in ("diffusers", "transformers")]
    spread = {n: logging.getLogger(n).propagate for n in names}
    for n in names:
        logging.getLogger(n).propagate = True
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        model, info = cls.from_pretrained(path, output_loading_info=True)
    for n, value in spread.items():
        logging.getLogger(n).propagate = value
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    assert not [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    return model.eval()


@pytest.mark.parametrize("name", PLACES)
def test_loads_without_a_warning_and_is_the_same(folders, caplog, name):
    folder, release = folders
    place, cls = PLACES[name]
    model = loaded(cls, folder / "after" / place, caplog)
    before = {"flux": release.flux, "autoencoder": release.vae, "clip": release.clip, "t5": release.t5, "infusenet": release.infusenet}[name].state_dict()
    after = model.state_dict()
    assert after.keys() == before.keys()
    for key, x in before.items():
        assert after[key].dtype == x.dtype and torch.equal(after[key], x), key
    # What diffusers reads from config.json is what it wrote itself.
    theirs, ours = (json.loads((folder / which / place / "config.json").read_text()) for which in ("before", "after"))
    for key, value in ours.items():
        if key in theirs and key not in (
            "sample_size",
            "force_upcast",
            "bos_token_id",
            "pad_token_id",
            "tie_word_embeddings",
            "is_encoder_decoder",
        ):  # which nothing reads in an encoder or a VAE
            assert theirs[key] == value, key


def test_the_same_velocity_and_residuals(folders, caplog):
    """As ours, from the same export."""
    folder, _ = folders
    flux, net = (loaded(PLACES[name][1], folder / "after" / PLACES[name][0], caplog) for name in ("flux", "infusenet"))
    ours = [checkpoint.load_model(folder / "jax" / PLACES[name][0], name) for name in ("flux", "infusenet")]
    cfg, draw, length = ours[0].cfg, np.random.default_rng(0).standard_normal, (H // 2) * (W // 2)
    x = dict(img=draw((B, length, 64), np.float32), txt=draw((B, T, cfg.context_in_dim), np.float32), y=draw((B, cfg.vec_in_dim), np.float32))
    t, guidance, control, ids = np.float32([0.7, 0.2]), np.float32([3.5, 1.0]), draw((B, length, 64), np.float32), latents.position_ids(T, H, W)
    common = dict(
        hidden_states=torch.tensor(x["img"]), encoder_hidden_states=torch.tensor(x["txt"]), timestep=torch.tensor(t), guidance=torch.tensor(guidance),
        pooled_projections=torch.tensor(x["y"]), txt_ids=torch.tensor(ids[:T]).float(), img_ids=torch.tensor(ids[T:]).float(), return_dict=False,
    )  # fmt: skip
    with torch.no_grad():
        double, single = net(**common, controlnet_cond=torch.tensor(control), conditioning_scale=0.9)
        (v,) = flux(**common, controlnet_block_samples=double, controlnet_single_block_samples=single)
    img, txt, y, pe = jnp.asarray(x["img"]), jnp.asarray(x["txt"]), jnp.asarray(x["y"]), rope(ids, cfg)
    residuals = ours[1](img, txt, jnp.asarray(control), pe, jnp.asarray(t), y, jnp.asarray(guidance), scale=0.9)
    assert_close(residuals.double, torch.stack(double))
    assert_close(residuals.single, torch.stack(single))
    assert_close(ours[0](img, txt, pe, jnp.asarray(t), y, jnp.asarray(guidance), residuals), v)


def test_the_projection_networks_pickle(folders):
    """As the original repository reads it, and with nothing allowed but tensors."""
    folder, _ = folders
    before, after = (torch.load(folder / which / "InfiniteYou" / "image_proj_model.bin", weights_only=True) for which in ("before", "after"))
    assert list(after) == ["image_proj"] and after["image_proj"].keys() == before["image_proj"].keys()
    for key, x in before["image_proj"].items():
        assert after["image_proj"][key].dtype == x.dtype and torch.equal(after["image_proj"][key], x), key
    before, after = (torch.load(folder / which / "InfiniteYou" / "recognition_arcface_ir_se50.pth", weights_only=True) for which in ("before", "after"))
    assert after.keys() == before.keys() and all(after[k].dtype == x.dtype and torch.equal(after[k], x) for k, x in before.items())


@pytest.mark.parametrize(("dtype", "theirs"), [("bfloat16", torch.bfloat16), ("float8_e4m3fn", torch.float8_e4m3fn)])
def test_comfyui_file(folders, tmp_path, dtype, theirs):
    """One file with diffusers' names, each tensor rounded as torch rounds it."""
    from safetensors.torch import load_file

    folder, release = folders
    out = tmp_path / "infusenet.safetensors"
    assert command(convert_weights, "to-torch", folder / "jax" / "InfiniteYou" / "InfuseNetModel", out, "--style", "comfyui", "--dtype", dtype).code == 0
    found, state = load_file(out), release.infusenet.state_dict()
    assert found.keys() == state.keys() and safetensors.read_metadata(out) == {"format": "pt"}
    for key, x in state.items():
        wanted = x.to(theirs if x.ndim > 1 else torch.bfloat16)
        assert found[key].dtype == wanted.dtype and torch.equal(found[key].view(torch.uint8), wanted.view(torch.uint8)), key


def test_bfl_file_is_diffusers_own_conversion(folders, tmp_path, caplog):
    """diffusers reads the single file by its own rules (`from_single_file`) and finds the model that was exported."""
    from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers
    from safetensors.torch import load_file

    folder, release = folders
    out = tmp_path / "flux1-dev.safetensors"
    assert command(convert_weights, "to-torch", folder / "jax" / "FLUX.1" / "transformer", out, "--style", "bfl").code == 0
    import inspect

    from diffusers.loaders import single_file_utils

    # Its converter has FLUX.1's hidden size and MLP ratio written into it; here they are the model's.
    text = inspect.getsource(convert_flux_transformer_checkpoint_to_diffusers)
    assert text.count("inner_dim = 3072") == 1
    scope = dict(vars(single_file_utils))
    exec(text.replace("inner_dim = 3072", f"inner_dim = {release.flux.inner_dim}"), scope)
    made = scope["convert_flux_transformer_checkpoint_to_diffusers"](load_file(out))
    state = release.flux.state_dict()
    assert made.keys() == state.keys() and all(torch.equal(made[key], x) for key, x in state.items())
