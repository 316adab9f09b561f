"""Scaled dot-product attention, one function for every model and backend."""

from __future__ import annotations

import jax
from jaxtyping import Array, Float


def attention(q: Float[Array, "B S H K"], k: Float[Array, "B S H K"], v: Float[Array, "B S H K"]) -> Float[Array, "B S H K"]:
    """softmax(q k^T / sqrt(K)) v without a mask; logits and softmax in float32, the result in v's dtype."""
    return jax.nn.dot_product_attention(q, k, v)
