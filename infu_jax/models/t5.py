"""T5 v1.1 encoder: FLUX's text features (Raffel et al. 2020, Shazeer 2020; reference: transformers' T5EncoderModel)."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from infu_jax.config import T5Config
from infu_jax.models.layers import Embedding, Linear, RMSNorm, scan, stack


class T5Encoder(nnx.Module):
    """Token ids -> features.

    There is no attention mask: FLUX was trained with padding tokens as ordinary tokens, so the padded length changes
    the result. Distances between tokens enter as a bias of the logits, from one table that all blocks share.
    """

    def __init__(self, cfg: T5Config, *, rngs: nnx.Rngs):
        self.cfg = cfg
        self.embedding = Embedding(cfg.vocab_size, cfg.d_model, rngs=rngs)
        self.relative_bias = Embedding(cfg.relative_attention_num_buckets, cfg.num_heads, rngs=rngs)
        self.blocks = stack(lambda rngs: T5Block(cfg, rngs=rngs), cfg.num_layers, rngs)
        self.final_norm = RMSNorm(cfg.d_model, eps=cfg.layer_norm_eps)

    def __call__(self, ids: Int[Array, "B T"], *, dtype: DTypeLike = jnp.float32) -> Float[Array, "B T D"]:
        """`dtype`: what the blocks compute in. Norms, logits and softmax stay float32. float16 overflows with the released weights."""
        bias = self.relative_bias(
            relative_buckets(ids.shape[1], self.cfg.relative_attention_num_buckets, self.cfg.relative_attention_max_distance)
        )  # (T, T, H)
        bias = bias.astype(jnp.float32).transpose(2, 0, 1)[None]
        x = self.embedding(ids).astype(dtype)
        x, _ = scan(lambda block, x, _: (block(x, bias), None), self.blocks, x)
        return self.final_norm(x)


class T5Block(nnx.Module):
    """Self-attention, then a gated MLP, each after an RMS norm and around a residual. No biases anywhere."""

    def __init__(self, cfg: T5Config, *, rngs: nnx.Rngs):
        heads = (cfg.num_heads, cfg.d_kv)
        self.attn_norm = RMSNorm(cfg.d_model, eps=cfg.layer_norm_eps)
        self.qkv = Linear(cfg.d_model, (3, *heads), bias=False, rngs=rngs)
        self.attn_out = Linear(heads, cfg.d_model, bias=False, rngs=rngs)
        self.mlp_norm = RMSNorm(cfg.d_model, eps=cfg.layer_norm_eps)
        self.mlp_in = Linear(cfg.d_model, (2, cfg.d_ff), bias=False, rngs=rngs)  # gate, value
        self.mlp_out = Linear(cfg.d_ff, cfg.d_model, bias=False, rngs=rngs)

    def __call__(self, x: Float[Array, "B T D"], bias: Float[Array, "1 H T T"]) -> Float[Array, "B T D"]:
        q, k, v = jnp.moveaxis(self.qkv(self.attn_norm(x)), 2, 0)  # three of (B, T, H, K)
        # Scale 1: T5 folds 1/sqrt(K) into the initial weights. Logits and softmax are float32 inside.
        x = x + self.attn_out(jax.nn.dot_product_attention(q, k, v, bias, scale=1.0, implementation="xla"))
        gate, value = jnp.moveaxis(self.mlp_in(self.mlp_norm(x)), 2, 0)
        return x + self.mlp_out(jax.nn.gelu(gate, approximate=True) * value)


def relative_buckets(length: int, num_buckets: int, max_distance: int) -> Int[np.ndarray, "T T"]:
    """The bias table's row for every (query, key): one per distance up to a quarter of the table, then logarithmic up to `max_distance`.

    Keys after the query use the second half of the table. float32, as the reference, which decides some borders.
    """
    half = num_buckets // 2
    exact = half // 2
    offset = np.arange(length)[None, :] - np.arange(length)[:, None]  # key - query
    distance = np.abs(offset)
    octaves = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact)) / np.float32(math.log(max_distance / exact))
    far = np.minimum(exact + (octaves * np.float32(half - exact)).astype(np.int64), half - 1)
    return np.where(offset > 0, half, 0) + np.where(distance < exact, distance, far)
