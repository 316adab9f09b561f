"""CLIPTextEncoder against transformers' CLIPTextModel."""

import gzip
import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from safetensors.torch import load_file
from transformers import CLIPTextConfig as TheirConfig
from transformers import CLIPTextModel

from infu_jax.config import CLIPTextConfig
from infu_jax.convert import rules
from infu_jax.convert.clip import LAYOUTS
from infu_jax.convert.errors import ConversionError
from infu_jax.models.clip import CLIPTextEncoder
from tests.parity.tools import assert_close, port, randomize

PREFIXED, PLAIN = LAYOUTS
EOS = 59
CFG = CLIPTextConfig(vocab_size=60, hidden_size=24, intermediate_size=40, num_layers=3, num_heads=4, max_positions=11, eos_token_id=EOS)

run = nnx.jit(CLIPTextEncoder.__call__, static_argnames="dtype")


@pytest.fixture(scope="module")
def models():
    theirs = randomize(CLIPTextModel(TheirConfig(**PREFIXED.to_config(CFG))), scale=0.3)
    return theirs, port(CLIPTextEncoder, CFG, PLAIN, theirs.state_dict())


def prompt_ids(length=11):
    """Rows that end at different places and are padded with end-of-text."""
    ids = np.random.default_rng(0).integers(0, EOS, (3, length))
    for row, end in enumerate((length // 2, length - 1, 1)):
        ids[row, end:] = EOS
    return ids


def reference(model, ids):
    with torch.no_grad():
        out = model(torch.tensor(ids))
    return out.last_hidden_state, out.pooler_output


@pytest.mark.parametrize("length", [11, 6])
def test_matches_transformers(models, length):
    theirs, ours = models
    ids = prompt_ids(length)
    features, pooled = run(ours, ids)
    their_features, their_pooled = reference(theirs, ids)
    assert_close(features, their_features)
    assert_close(pooled, their_pooled)
    assert_close(pooled, np.asarray(features)[np.arange(3), [length // 2, length - 1, 1]], 1e-6)  # rounded apart, in two outputs of one program


def test_legacy_end_of_text_id_finds_the_same_token(models):
    """FLUX.1's config.json states eos_token_id 2, where transformers takes the largest id. 2 inside a prompt must not be taken for the end."""
    theirs, ours = models
    config = {**PREFIXED.to_config(CFG), "eos_token_id": 2}
    assert PREFIXED.from_config(config) == CFG
    legacy = CLIPTextModel(TheirConfig(**config)).eval()
    legacy.load_state_dict(theirs.state_dict())
    ids = prompt_ids()
    ids[:, 0] = 2
    assert_close(run(ours, ids)[1], reference(legacy, ids)[1])


def test_bfloat16(models):
    theirs, ours = models
    features, pooled = run(ours, prompt_ids(), dtype=jnp.bfloat16)
    their_features, their_pooled = reference(theirs, prompt_ids())
    assert features.dtype == pooled.dtype == jnp.bfloat16
    # 8 bits of mantissa through three blocks: about 1 % of the maximum.
    assert_close(features, their_features, 3e-2)
    assert_close(pooled, their_pooled, 3e-2)


def test_too_many_tokens_is_an_error(models):
    with pytest.raises(ValueError, match="12 token ids; this CLIP text encoder has 11 positions"):
        models[1](jnp.zeros((1, 12), jnp.int32))


def test_both_key_forms_and_what_transformers_saves(models, tmp_path):
    theirs, ours = models
    theirs.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    cfg = PREFIXED.from_config(json.loads((tmp_path / "config.json").read_text()))
    assert cfg == CFG
    # Older files have the prefix and the table of position numbers; transformers 5 has neither.
    older = {f"text_model.{k}": v for k, v in saved.items()} | {"text_model.embeddings.position_ids": torch.arange(11)[None]}
    for layout, tensors in ((PLAIN, saved), (PREFIXED, older)):
        others = [other for other in LAYOUTS if other is not layout]
        assert set(layout.signature) <= set(tensors) and not any(set(o.signature) <= set(tensors) for o in others)
        np.testing.assert_array_equal(run(port(CLIPTextEncoder, cfg, layout, tensors), prompt_ids())[1], run(ours, prompt_ids())[1])


def test_config_round_trip_and_what_it_refuses():
    for cfg in (CFG, CLIPTextConfig()):
        assert PREFIXED.from_config(PREFIXED.to_config(cfg)) == cfg
    full = PREFIXED.to_config(CLIPTextConfig())
    assert PREFIXED.from_config({**full, "eos_token_id": 2}) == CLIPTextConfig()
    for change, message in [({"hidden_act": "gelu"}, "'gelu', expected 'quick_gelu'"), ({"model_type": "siglip"}, "'siglip', expected 'clip_text_model'")]:
        with pytest.raises(ConversionError, match=message):
            PREFIXED.from_config({**full, **change})
    with pytest.raises(ConversionError, match="lacks hidden_size"):
        PREFIXED.from_config({k: v for k, v in full.items() if k != "hidden_size"})
    with pytest.raises(ConversionError, match="id 2 cannot be written"):
        PREFIXED.to_config(CLIPTextConfig(eos_token_id=2))


def test_full_size_table():
    manifest = json.loads(gzip.decompress(pathlib.Path(__file__).parents[1].joinpath("data/full_size_keys.json.gz").read_bytes()))
    expected = {k: tuple(v) for k, v in manifest["clip_l_text"]["shapes"].items()}
    cfg = CLIPTextConfig()
    state = nnx.state(nnx.eval_shape(lambda: CLIPTextEncoder(cfg, rngs=nnx.Rngs(0))))
    shapes = {".".join(map(str, path)): v.shape for path, v in nnx.to_flat_state(state)}
    assert rules.plan(PREFIXED.rules(cfg), shapes).their_shapes == expected
    assert rules.plan(PLAIN.rules(cfg), shapes).their_shapes == {k.removeprefix("text_model."): v for k, v in expected.items()}
