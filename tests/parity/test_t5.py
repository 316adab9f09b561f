"""T5Encoder against transformers' T5EncoderModel."""

import gzip
import json
import pathlib

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from safetensors.torch import load_file
from transformers import T5Config as TheirConfig
from transformers import T5EncoderModel
from transformers.models.t5.modeling_t5 import T5Attention

from infu_jax.config import T5Config
from infu_jax.convert import rules
from infu_jax.convert.errors import ConversionError
from infu_jax.convert.t5 import LAYOUTS
from infu_jax.models.t5 import T5Encoder, relative_buckets
from tests.parity.tools import assert_close, port, randomize

[LAYOUT] = LAYOUTS
# Few buckets and a short reach, so that 21 tokens meet exact, logarithmic and clipped distances.
CFG = T5Config(vocab_size=50, d_model=24, d_kv=6, d_ff=40, num_layers=3, num_heads=4, relative_attention_num_buckets=12, relative_attention_max_distance=16)

run = nnx.jit(T5Encoder.__call__, static_argnames="dtype")


@pytest.fixture(scope="module")
def models():
    theirs = randomize(T5EncoderModel(TheirConfig(**LAYOUT.to_config(CFG))), scale=0.2)
    return theirs, port(T5Encoder, CFG, LAYOUT, theirs.state_dict())


def prompt_ids(batch=2, length=21):
    """Random ids, each row ended by padding (0), as FLUX pads prompts."""
    ids = np.random.default_rng(0).integers(3, CFG.vocab_size, (batch, length))
    for row in range(batch):
        ids[row, length - 4 * (row + 1) :] = 0
    return ids


@pytest.mark.parametrize("length", [1, 21, 40])
def test_matches_transformers(models, length):
    theirs, ours = models
    ids = prompt_ids(length=length)
    with torch.no_grad():
        expected = theirs(torch.tensor(ids)).last_hidden_state
    assert_close(run(ours, ids), expected)


def test_padding_is_not_masked(models):
    """The reference with an attention mask is far away: the agreement above is about the unmasked model."""
    theirs, ours = models
    ids = prompt_ids()
    with torch.no_grad():
        masked = theirs(torch.tensor(ids), attention_mask=torch.tensor(ids != 0)).last_hidden_state
    difference = np.abs(np.asarray(run(ours, ids)) - masked.numpy()).max() / np.abs(masked.numpy()).max()
    assert difference > 0.01


@pytest.mark.parametrize(("buckets", "reach"), [(32, 128), (12, 16), (16, 64), (64, 512)])
def test_buckets_match_at_every_distance(buckets, reach):
    length = 600
    offset = torch.arange(length)[None, :] - torch.arange(length)[:, None]
    expected = T5Attention._relative_position_bucket(offset, True, buckets, reach)
    np.testing.assert_array_equal(relative_buckets(length, buckets, reach), expected.numpy())


def test_bfloat16_stays_as_close_as_the_reference_does(models):
    """Both in bfloat16 against both in float32. Large logits (scale 1 instead of 1/sqrt(K)) make a bfloat16 softmax visible."""
    theirs, ours = models
    ids = prompt_ids(length=40)
    with torch.no_grad():
        exact = theirs(torch.tensor(ids)).last_hidden_state.numpy()
        low = T5EncoderModel(theirs.config).eval()
        low.load_state_dict(theirs.state_dict())
        their_error = np.abs(low.to(torch.bfloat16)(torch.tensor(ids)).last_hidden_state.float().numpy() - exact).mean()
    result = run(ours, ids, dtype=jnp.bfloat16)
    assert result.dtype == jnp.bfloat16
    assert 0 < np.abs(np.asarray(result, np.float32) - exact).mean() <= 1.1 * their_error


def test_bfloat16_keeps_norms_and_softmax_in_float32(models):
    graph, state = nnx.split(models[1])
    jaxpr = jax.make_jaxpr(lambda state, ids: nnx.merge(graph, state)(ids, dtype=jnp.bfloat16))(state, jnp.zeros((2, 5), jnp.int32))
    sensitive = [(e.primitive.name, e.invars[0].aval.dtype) for e in equations(jaxpr.jaxpr) if e.primitive.name in ("exp", "rsqrt", "reduce_sum")]
    assert {name for name, _ in sensitive} == {"exp", "rsqrt", "reduce_sum"}
    assert all(dtype == jnp.float32 for _, dtype in sensitive), sensitive
    matmuls = [e.invars[0].aval.dtype for e in equations(jaxpr.jaxpr) if e.primitive.name == "dot_general"]
    assert matmuls and all(dtype == jnp.bfloat16 for dtype in matmuls), matmuls


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from equations(inner)


def test_reads_what_transformers_saves(models, tmp_path):
    theirs, ours = models
    theirs.save_pretrained(tmp_path)
    cfg = LAYOUT.from_config(json.loads((tmp_path / "config.json").read_text()))
    assert cfg == CFG
    again = port(T5Encoder, cfg, LAYOUT, load_file(tmp_path / "model.safetensors"))
    np.testing.assert_array_equal(run(again, prompt_ids()), run(ours, prompt_ids()))


def test_config_round_trip_and_what_it_refuses():
    for cfg in (CFG, T5Config()):
        assert LAYOUT.from_config(LAYOUT.to_config(cfg)) == cfg
    full = LAYOUT.to_config(T5Config())
    without = {k: v for k, v in full.items() if k != "relative_attention_max_distance"}
    assert LAYOUT.from_config(without) == T5Config()
    for change, message in [({"feed_forward_proj": "relu"}, "'relu', expected 'gated-gelu'"), ({"model_type": "umt5"}, "'umt5', expected 't5'")]:
        with pytest.raises(ConversionError, match=message):
            LAYOUT.from_config({**full, **change})
    with pytest.raises(ConversionError, match="lacks d_kv, layer_norm_epsilon"):
        LAYOUT.from_config({k: v for k, v in full.items() if k not in ("d_kv", "layer_norm_epsilon")})


def test_full_size_table():
    manifest = json.loads(gzip.decompress(pathlib.Path(__file__).parents[1].joinpath("data/full_size_keys.json.gz").read_bytes()))
    expected = {k: tuple(v) for k, v in manifest["t5_xxl_encoder"]["shapes"].items()}
    cfg = T5Config()
    state = nnx.state(nnx.eval_shape(lambda: T5Encoder(cfg, rngs=nnx.Rngs(0))))
    plan = rules.plan(LAYOUT.rules(cfg), {".".join(map(str, path)): v.shape for path, v in nnx.to_flat_state(state)})
    assert expected.pop("encoder.embed_tokens.weight") == plan.their_shapes["shared.weight"]  # tied: not in the file
    assert plan.their_shapes == expected
    tied = {"encoder.embed_tokens.weight": (cfg.vocab_size, cfg.d_model)}
    rules.check_file(plan, expected | tied, ignore=LAYOUT.ignore)
