"""The projection network against diffusers' IP-Adapter Plus projection, which is the same resampler under other names."""

import gzip
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.models.embeddings import IPAdapterPlusImageProjection
from flax import nnx

from infu_jax.config import ResamplerConfig
from infu_jax.convert import rules
from infu_jax.convert.errors import ConversionError
from infu_jax.convert.resampler import LAYOUTS
from infu_jax.models.resampler import Resampler
from tests.parity import tools

[LAYOUT] = LAYOUTS
# Heads times head size differs from the width, so that no two axes can be taken for each other.
CFG = ResamplerConfig(dim=48, depth=3, dim_head=64, heads=2, num_queries=5, embedding_dim=24, output_dim=40, ff_mult=3)


@pytest.fixture(scope="module")
def theirs():
    return tools.randomize(
        IPAdapterPlusImageProjection(embed_dims=24, output_dims=40, hidden_dims=48, depth=3, dim_head=64, heads=2, num_queries=5, ffn_ratio=3)
    )


def released_names(state_dict) -> dict:
    """diffusers' names -> the released file's, where k and v are one tensor."""
    renames = {
        "ln0": "0.norm1",
        "ln1": "0.norm2",
        "attn.to_q": "0.to_q",
        "attn.to_out.0": "0.to_out",
        "ff.0": "1.0",
        "ff.1.net.0.proj": "1.1",
        "ff.1.net.2": "1.3",
    }
    out = {}
    for key, tensor in state_dict.items():
        if not key.startswith("layers."):
            out[key] = tensor
            continue
        _, layer, rest = key.split(".", 2)
        name, kind = rest.rsplit(".", 1)
        if name == "attn.to_k":
            out[f"layers.{layer}.0.to_kv.{kind}"] = torch.cat([tensor, state_dict[f"layers.{layer}.attn.to_v.{kind}"]])
        elif name != "attn.to_v":
            out[f"layers.{layer}.{renames[name]}.{kind}"] = tensor
    return out


def shapes(cfg: ResamplerConfig) -> dict:
    state = nnx.state(nnx.eval_shape(lambda: Resampler(cfg, rngs=nnx.Rngs(0))))
    return {".".join(map(str, path)): v.shape for path, v in nnx.to_flat_state(state)}


@pytest.mark.parametrize("embeddings", [1, 3])
def test_tokens(theirs, embeddings):
    ours = tools.port(Resampler, CFG, LAYOUT, released_names(theirs.state_dict()))
    x = jax.random.normal(jax.random.key(0), (2, embeddings, 24))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(np.array(x)))
    tokens = nnx.jit(lambda model, x: model(x))(ours, x)
    assert tokens.shape == (2, 5, 40)
    tools.assert_close(tokens, expected)
    # Different faces give different tokens, and so do different queries of one face.
    assert np.abs(tokens[0] - tokens[1]).max() > 0.01 and np.abs(tokens[0, 0] - tokens[0, 1]).max() > 0.01


def test_bfloat16_and_gradients():
    model = nnx.jit(lambda: Resampler(CFG, rngs=nnx.Rngs(0)))()
    x = jax.random.normal(jax.random.key(0), (2, 1, 24))
    tokens = nnx.jit(lambda m, x: m(x))
    half = tokens(model, x.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    tools.assert_close(half.astype(jnp.float32), tokens(model, x), 0.05)
    weight = jax.random.normal(jax.random.key(1), (2, 5, 40))
    gradients = nnx.jit(nnx.grad(lambda m: (m(x) * weight).mean()))(model)
    assert all(np.abs(g[...]).max() > 0 for _, g in nnx.to_flat_state(gradients))


def test_round_trip(theirs):
    released = released_names(theirs.state_dict())
    ours = tools.port(Resampler, CFG, LAYOUT, released)
    flat = {".".join(map(str, path)): np.asarray(v[...]) for path, v in nnx.to_flat_state(nnx.state(ours))}
    plan = rules.plan(LAYOUT.rules(CFG), shapes(CFG))
    for key, tensor in released.items():
        np.testing.assert_array_equal(plan.read_theirs(key, flat, np.float32), tensor)


def test_full_size_keys():
    manifest = json.loads(gzip.decompress(pathlib.Path(__file__).parents[1].joinpath("data/full_size_keys.json.gz").read_bytes()))
    manifest = {k: tuple(v) for k, v in manifest["resampler"]["shapes"].items()}
    cfg = ResamplerConfig()
    assert rules.plan(LAYOUT.rules(cfg), shapes(cfg)).their_shapes == manifest
    assert LAYOUT.from_shapes(manifest) == cfg
    assert set(LAYOUT.signature) <= set(manifest)


def test_sizes_from_shapes():
    theirs = rules.plan(LAYOUT.rules(CFG), shapes(CFG)).their_shapes
    assert LAYOUT.from_shapes(theirs) == CFG
    with pytest.raises(ConversionError, match="has 96 rows; expected a multiple of the head size, 64"):
        LAYOUT.from_shapes(theirs | {"layers.0.0.to_q.weight": (96, 48)})
