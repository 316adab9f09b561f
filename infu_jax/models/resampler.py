"""Projection network: a face embedding -> the ID tokens that InfuseNet takes in place of text tokens.

Source: paper section 3.2; IP-Adapter `ip_adapter/resampler.py` (arXiv 2308.06721), after Flamingo's perceiver resampler (arXiv 2204.14198).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from infu_jax.config import ResamplerConfig
from infu_jax.models.layers import LayerNorm, Linear, scan, stack
from infu_jax.sharding import constrain_batch

EPS = 1e-5


class Resampler(nnx.Module):
    """Learned queries that gather from the embedding, block by block, and become the ID tokens."""

    def __init__(self, cfg: ResamplerConfig, *, rngs: nnx.Rngs):
        self.cfg = cfg
        # (1, Q, D), with the axis of one that the released file has.
        self.latents = nnx.Param(jax.random.normal(rngs.params(), (1, cfg.num_queries, cfg.dim)) / cfg.dim**0.5)
        self.proj_in = Linear(cfg.embedding_dim, cfg.dim, rngs=rngs)
        self.blocks = stack(lambda rngs: Block(cfg, rngs=rngs), cfg.depth, rngs)
        self.proj_out = Linear(cfg.dim, cfg.output_dim, rngs=rngs)
        self.norm_out = LayerNorm(cfg.output_dim, eps=EPS)

    def __call__(self, id_embedding: Float[Array, "B N E"]) -> Float[Array, "B Q O"]:
        """ID tokens from N embeddings a sample; the release was trained with N = 1."""
        x = self.proj_in(id_embedding)
        latents = jnp.broadcast_to(self.latents[...].astype(x.dtype), (x.shape[0], *self.latents.shape[1:]))
        latents, _ = scan(lambda block, latents, _: (block(x, latents), None), self.blocks, latents)
        return self.norm_out(constrain_batch(self.proj_out(latents)))


class Block(nnx.Module):
    """Perceiver attention, then an MLP; both residual."""

    def __init__(self, cfg: ResamplerConfig, *, rngs: nnx.Rngs):
        self.attn = PerceiverAttention(cfg, rngs=rngs)
        self.norm = LayerNorm(cfg.dim, eps=EPS)
        self.mlp_in = Linear(cfg.dim, cfg.dim * cfg.ff_mult, bias=False, rngs=rngs)
        self.mlp_out = Linear(cfg.dim * cfg.ff_mult, cfg.dim, bias=False, rngs=rngs)

    def __call__(self, x: Float[Array, "B N D"], latents: Float[Array, "B Q D"]) -> Float[Array, "B Q D"]:
        latents = latents + self.attn(x, latents)
        return latents + self.mlp_out(jax.nn.gelu(self.mlp_in(self.norm(latents)), approximate=False))


class PerceiverAttention(nnx.Module):
    """The latents ask; the inputs and the latents themselves answer."""

    def __init__(self, cfg: ResamplerConfig, *, rngs: nnx.Rngs):
        heads = (cfg.heads, cfg.dim_head)
        self.norm1 = LayerNorm(cfg.dim, eps=EPS)
        self.norm2 = LayerNorm(cfg.dim, eps=EPS)
        self.q = Linear(cfg.dim, heads, bias=False, rngs=rngs)
        self.kv = Linear(cfg.dim, (2, *heads), bias=False, rngs=rngs)
        self.proj = Linear(heads, cfg.dim, bias=False, rngs=rngs)

    def __call__(self, x: Float[Array, "B N D"], latents: Float[Array, "B Q D"]) -> Float[Array, "B Q D"]:
        x, latents = self.norm1(x), self.norm2(latents)
        q = self.q(latents)  # (B, Q, H, K)
        k, v = jnp.moveaxis(self.kv(jnp.concatenate([x, latents], axis=1)), 2, 0)  # (B, N + Q, H, K) each
        return self.proj(jax.nn.dot_product_attention(q, k, v))  # softmax in float32, scale 1 / sqrt(K)
