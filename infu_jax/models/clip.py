"""CLIP text encoder: FLUX's pooled prompt vector (Radford et al. 2021; reference: transformers' CLIPTextModel)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from infu_jax.config import CLIPTextConfig
from infu_jax.models.layers import Embedding, LayerNorm, Linear, scan, stack


class CLIPTextEncoder(nnx.Module):
    """Token ids -> (features, pooled vector).

    The pooled vector is the feature of the first end-of-text token; the padding after it is end-of-text too. A row without
    one gives its first token's feature, as the reference does. Attention is causal, so padding changes nothing before it.
    quick: see `CLIPBlock`; FLUX's encoder has it.
    """

    def __init__(self, cfg: CLIPTextConfig, *, quick: bool = True, rngs: nnx.Rngs):
        self.cfg = cfg
        self.token_embedding = Embedding(cfg.vocab_size, cfg.hidden_size, rngs=rngs)
        self.position_embedding = Embedding(cfg.max_positions, cfg.hidden_size, rngs=rngs)
        sizes = cfg.hidden_size, cfg.num_heads, cfg.intermediate_size
        self.blocks = stack(lambda rngs: CLIPBlock(*sizes, eps=cfg.layer_norm_eps, causal=True, quick=quick, rngs=rngs), cfg.num_layers, rngs)
        self.final_norm = LayerNorm(cfg.hidden_size, eps=cfg.layer_norm_eps)

    def __call__(self, ids: Int[Array, "B T"], *, dtype: DTypeLike = jnp.float32) -> tuple[Float[Array, "B T D"], Float[Array, "B D"]]:
        """`dtype`: what the blocks compute in; norms, logits and softmax stay float32. ValueError if T exceeds the table of positions."""
        length = ids.shape[1]
        if length > self.cfg.max_positions:
            raise ValueError(f"{length} token ids; this CLIP text encoder has {self.cfg.max_positions} positions: truncate the prompt to that length")
        x = (self.token_embedding(ids) + self.position_embedding(jnp.arange(length))).astype(dtype)
        x, _ = scan(lambda block, x, _: (block(x), None), self.blocks, x)
        x = self.final_norm(x)
        first_eos = jnp.argmax(ids == self.cfg.eos_token_id, axis=1)
        return x, jnp.take_along_axis(x, first_eos[:, None, None], axis=1)[:, 0]


class CLIPBlock(nnx.Module):
    """Self-attention, then an MLP, each after a layer norm and around a residual: the block of both towers.

    causal: a token sees only those before it (text). quick: `quick_gelu` in the MLP, or else the exact GELU.
    """

    def __init__(self, hidden: int, num_heads: int, intermediate: int, *, eps: float, causal: bool, quick: bool, rngs: nnx.Rngs):
        self.causal, self.quick = causal, quick
        heads = (num_heads, hidden // num_heads)
        self.attn_norm = LayerNorm(hidden, eps=eps)
        self.qkv = Linear(hidden, (3, *heads), rngs=rngs)
        self.attn_out = Linear(heads, hidden, rngs=rngs)
        self.mlp_norm = LayerNorm(hidden, eps=eps)
        self.mlp_in = Linear(hidden, intermediate, rngs=rngs)
        self.mlp_out = Linear(intermediate, hidden, rngs=rngs)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        q, k, v = jnp.moveaxis(self.qkv(self.attn_norm(x)), 2, 0)  # three of (B, T, H, K)
        x = x + self.attn_out(jax.nn.dot_product_attention(q, k, v, is_causal=self.causal, implementation="xla"))
        y = self.mlp_in(self.mlp_norm(x))
        return x + self.mlp_out(quick_gelu(y) if self.quick else jax.nn.gelu(y, approximate=False))


def quick_gelu(x: jax.Array) -> jax.Array:
    """x * sigmoid(1.702 x), the GELU that CLIP was trained with."""
    return x * jax.nn.sigmoid(1.702 * x)
