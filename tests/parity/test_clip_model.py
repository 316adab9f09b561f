"""CLIPModel, both towers, against transformers' CLIPModel; its preparation of pictures against the image processor on Pillow."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig as TheirConfig
from transformers import CLIPModel as TheirModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from infu_jax import checkpoint
from infu_jax.config import CLIPModelConfig
from infu_jax.convert import rules, source
from infu_jax.convert.clip_model import LAYOUTS
from infu_jax.convert.errors import ConversionError
from infu_jax.errors import InputError
from infu_jax.evaluation.clip import CLIP, Preparation
from infu_jax.models.clip_model import CLIPModel
from infu_jax.sharding import make_mesh
from tests.conftest import ROOT
from tests.parity.tools import assert_close, port, randomize

[LAYOUT] = LAYOUTS
EOS = 59
# Sizes that are all different, so that a mistaken one shows; one tower with each kind of GELU.
SIZES = dict(
    text_vocab_size=60, text_hidden_size=24, text_intermediate_size=40, text_num_layers=3, text_num_heads=4, text_max_positions=11, text_eos_token_id=EOS,
    vision_hidden_size=32, vision_intermediate_size=56, vision_num_layers=2, vision_num_heads=2, vision_image_size=30, vision_patch_size=6, projection_dim=20,
    text_layer_norm_eps=1e-4, vision_layer_norm_eps=3e-5,
)  # fmt: skip
QUICK = CLIPModelConfig(**SIZES, text_quick_gelu=True, vision_quick_gelu=False)
EXACT = CLIPModelConfig(**SIZES, text_quick_gelu=False, vision_quick_gelu=True)

texts = nnx.jit(CLIPModel.embed_text, static_argnames="dtype")
images = nnx.jit(CLIPModel.embed_images, static_argnames="dtype")


def pair(cfg):
    theirs = randomize(TheirModel(TheirConfig(**LAYOUT.to_config(cfg))), scale=0.3)
    return theirs, port(CLIPModel, cfg, LAYOUT, theirs.state_dict())


@pytest.fixture(scope="module", params=[QUICK, EXACT], ids=["quick text, exact vision", "exact text, quick vision"])
def models(request):
    return pair(request.param)


def inputs():
    draw = np.random.default_rng(0)
    ids = draw.integers(0, EOS, (3, 11))
    for row, end in enumerate((5, 10, 1)):
        ids[row, end:] = EOS
    return ids, draw.standard_normal((3, 30, 30, 3), np.float32)


def reference(theirs):
    ids, pixels = inputs()
    with torch.no_grad():
        return theirs(input_ids=torch.tensor(ids), pixel_values=torch.tensor(pixels).permute(0, 3, 1, 2))


def test_matches_transformers(models):
    theirs, ours = models
    ids, pixels = inputs()
    expected = reference(theirs)
    text, image = texts(ours, ids), images(ours, pixels)
    assert_close(text, expected.text_embeds)
    assert_close(image, expected.image_embeds)
    assert_close(np.exp(float(ours.logit_scale[...])) * np.asarray(text) @ np.asarray(image).T, expected.logits_per_text)
    assert_close(ours.text(jnp.asarray(ids))[1], expected.text_model_output.last_hidden_state[torch.arange(3), torch.tensor([5, 10, 1])])
    with torch.no_grad():  # before the norm of the vector
        unnormalised = theirs.get_text_features(torch.tensor(ids))
        assert_close(ours.text_projection(ours.text(jnp.asarray(ids))[1]), getattr(unnormalised, "pooler_output", unnormalised))
        seen = theirs.get_image_features(torch.tensor(pixels).permute(0, 3, 1, 2))
        assert_close(ours.vision_projection(ours.vision(jnp.asarray(pixels))), getattr(seen, "pooler_output", seen))
    np.testing.assert_allclose(np.linalg.norm(text, axis=1), 1, rtol=1e-6)


def test_the_kinds_of_gelu_differ():
    """A test that cannot tell them apart would not see the wrong one."""
    theirs, _ = pair(QUICK)
    other = port(CLIPModel, EXACT, LAYOUT, theirs.state_dict())
    with pytest.raises(AssertionError, match="relative error"):
        assert_close(texts(other, inputs()[0]), reference(theirs).text_embeds, 1e-3)


def test_bfloat16(models):
    theirs, ours = models
    text = texts(ours, inputs()[0], dtype=jnp.bfloat16)
    assert text.dtype == jnp.float32
    assert_close(text, reference(theirs).text_embeds, 4e-2)  # 8 bits of mantissa through three blocks


def test_a_picture_of_another_size(models):
    with pytest.raises(ValueError, match="pictures are 24x30; this CLIP takes 30x30"):
        models[1].embed_images(jnp.zeros((1, 30, 24, 3)))


def test_what_transformers_saves(tmp_path):
    theirs, ours = pair(QUICK)
    theirs.save_pretrained(tmp_path)
    found = checkpoint.open_model(tmp_path)
    assert (found.layout.model, found.cfg) == ("clip_model", QUICK)
    loaded = checkpoint.load_model(tmp_path, "clip_model", mesh=make_mesh(2, 4, 1))  # in shards
    np.testing.assert_allclose(texts(loaded, inputs()[0]), texts(ours, inputs()[0]), atol=1e-6)
    with pytest.raises(ConversionError, match="is a checkpoint of clip_model .* clip is needed here"):
        checkpoint.open_model(tmp_path, "clip")
    # Older files hold tables of position numbers too, and their configuration says some things twice.
    tensors = load_file(tmp_path / "model.safetensors")
    tensors |= {f"{tower}_model.embeddings.position_ids": torch.arange(n)[None] for tower, n in (("text", 11), ("vision", 26))}
    save_file(tensors, tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config_dict"] = {"hidden_size": config["text_config"].pop("hidden_size")}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert checkpoint.open_model(tmp_path, "clip_model").cfg == QUICK
    again = checkpoint.load_model(tmp_path, "clip_model")
    np.testing.assert_array_equal(images(again, inputs()[1]), images(ours, inputs()[1]))
    checkpoint.save_model(tmp_path / "ours", "clip_model", again)
    np.testing.assert_array_equal(images(checkpoint.load_model(tmp_path / "ours", "clip_model"), inputs()[1]), images(ours, inputs()[1]))


def test_config_round_trip_and_what_it_refuses():
    for cfg in (QUICK, EXACT, CLIPModelConfig()):
        assert LAYOUT.from_config(LAYOUT.to_config(cfg)) == cfg
    full = LAYOUT.to_config(CLIPModelConfig())
    legacy = {**full, "text_config": {**full["text_config"], "eos_token_id": 2}}
    assert LAYOUT.from_config(legacy) == CLIPModelConfig()
    # What a file leaves out is what transformers takes: ViT-B/32.
    bare = LAYOUT.from_config({"model_type": "clip", "text_config": {"model_type": "clip_text_model"}, "vision_config": {"model_type": "clip_vision_model"}})
    theirs = TheirConfig()
    assert (bare.text_hidden_size, bare.text_num_heads, bare.projection_dim) == (
        theirs.text_config.hidden_size, theirs.text_config.num_attention_heads, theirs.projection_dim,
    )  # fmt: skip
    assert (bare.vision_hidden_size, bare.vision_patch_size) == (theirs.vision_config.hidden_size, theirs.vision_config.patch_size)
    for change, message in (
        ({"model_type": "siglip"}, "model_type 'siglip', expected 'clip'"),
        ({"vision_config": None}, "has no vision_config"),
        ({"text_config": {**full["text_config"], "hidden_act": "relu"}}, "hidden_act 'relu' in text_config"),
    ):
        with pytest.raises(ConversionError, match=message):
            LAYOUT.from_config({**full, **change})


@pytest.mark.parametrize("name", ["ViT-L/14", "ViT-H/14"])
def test_full_size_table(name):
    """Every key of the files of OpenAI's CLIP-L and of PickScore's CLIP-H, with its shape."""
    huge = dict(
        text_hidden_size=1024, text_intermediate_size=4096, text_num_layers=24, text_num_heads=16, vision_hidden_size=1280, vision_intermediate_size=5120,
        vision_num_layers=32, text_quick_gelu=False, vision_quick_gelu=False, projection_dim=1024,
    )  # fmt: skip
    cfg = CLIPModelConfig(**(huge if name == "ViT-H/14" else {}))
    with torch.device("meta"):
        theirs = TheirModel(TheirConfig(**LAYOUT.to_config(cfg))).state_dict()
    shapes = {k: v.shape for k, v in checkpoint.param_shapes(checkpoint.abstract("clip_model", cfg)).items()}
    assert rules.plan(LAYOUT.rules(cfg), shapes).their_shapes == {k: tuple(v.shape) for k, v in theirs.items()}


# Pictures -----------------------------------------------------------------------------------------


def picture(height, width, seed=0):
    """Noise over a gradient: every step of interpolation shows."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3))
    ramp = np.linspace(0, 255, width)[None, :, None]
    return ((noise + ramp) / 2).astype(np.uint8)


@pytest.mark.parametrize("size", [(300, 224), (97, 150), (224, 224), (512, 333), (31, 30)])
def test_preparation_matches_the_processor_on_pillow(size, tmp_path):
    for theirs, edge in ((CLIPImageProcessorPil(), 224), (CLIPImageProcessorPil(size={"shortest_edge": 35}, crop_size=30, image_mean=[0.1, 0.5, 0.4]), 30)):
        theirs.save_pretrained(tmp_path)
        image = picture(*size)
        expected = theirs(Image.fromarray(image), return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
        np.testing.assert_array_equal(Preparation.read(tmp_path, edge)(image), expected)
    (tmp_path / "preprocessor_config.json").unlink()
    usual = CLIPImageProcessorPil(size={"shortest_edge": 30}, crop_size=30)(Image.fromarray(image), return_tensors="np")["pixel_values"][0]
    np.testing.assert_array_equal(Preparation.read(tmp_path, 30)(image), usual.transpose(1, 2, 0))


def test_preparations_that_are_refused(tmp_path):
    path = tmp_path / "preprocessor_config.json"
    for content, message in (
        ({"do_center_crop": False}, f"^{path} turns do_center_crop off"),
        ({"do_rescale": False}, "turns do_rescale off"),
        ({"rescale_factor": 1 / 127.5}, "rescale_factor 0.0078"),
        ({"crop_size": {"height": 20, "width": 20}}, "crops to 20x20; the model takes 30x30"),
        ({"size": {"longest_edge": 30}, "crop_size": 30}, "not the configuration of a CLIPImageProcessor"),
        ([], "not the configuration of a CLIPImageProcessor"),
    ):
        path.write_text(json.dumps(content))
        with pytest.raises(InputError, match=message):
            Preparation.read(tmp_path, 30)
    path.write_text(json.dumps({"size": 20, "crop_size": 30}))
    with pytest.raises(InputError, match="resized to 20x26 and then cropped to 30x30, which is more"):
        Preparation.read(tmp_path, 30)(picture(40, 30))


# Both together ------------------------------------------------------------------------------------


def test_from_a_folder_to_cosines(tmp_path):
    """Prompts and pictures as users have them, in batches that do not divide, against transformers on the same ids and pixels."""
    tokens = ROOT / "infu_jax" / "assets" / "tiny" / "FLUX.1-tiny" / "tokenizer"
    vocabulary = json.loads((tokens / "vocab.json").read_text())
    end = vocabulary["<|endoftext|>"]
    cfg = CLIPModelConfig(**{**SIZES, "text_vocab_size": len(vocabulary), "text_eos_token_id": end, "text_max_positions": 9})
    theirs, _ = pair(cfg)
    theirs.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="has no tokenizer"):
        CLIP.load(tmp_path)
    clip = CLIP.load(tmp_path, tokenizer=tokens)
    prompts, pictures = ["portrait of a woman in a garden", "a man", "in the rain at night " * 5], [picture(64, 50, n) for n in range(3)]
    assert clip.too_long(prompts) == 1 and clip.scale == pytest.approx(np.exp(theirs.logit_scale.item()))
    ids = torch.tensor(clip.tokenizer.encode(prompts, 9)).long()
    assert (ids[:, -1] == end).all()
    pixels = CLIPImageProcessorPil(size={"shortest_edge": 30}, crop_size=30)([Image.fromarray(p) for p in pictures], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = theirs(input_ids=ids, pixel_values=pixels)
    assert_close(clip.embed_texts(prompts, batch=2), expected.text_embeds)
    assert_close(clip.embed_images(pictures, batch=2), expected.image_embeds)
    assert not jax.sharding.get_abstract_mesh().shape  # no mesh is left behind


def test_a_tokenizer_of_another_model(tmp_path):
    pair(QUICK)[0].save_pretrained(tmp_path)
    with pytest.raises(InputError, match="do not belong together"):
        CLIP.load(tmp_path, tokenizer=ROOT / "infu_jax" / "assets" / "tiny" / "FLUX.1-tiny" / "tokenizer")


def test_tower_before_text_encoder():
    """A file of both towers has every key of CLIP's text encoder, so it must be looked for first."""
    models = [layout.model for layout in source.LAYOUTS]
    assert models.index("clip_model") < models.index("clip")
