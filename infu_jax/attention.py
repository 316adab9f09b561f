"""Scaled dot-product attention, one function for every model and backend."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from infu_jax.sharding import HEADS, LANES, batch_axes, platform

BLOCK = 256  # queries at a time on a CPU: their logits stay in its cache
TPU_BLOCK = 512
KEPT = "attention"  # what the arrays are called that `kept` keeps


def attention(q: Float[Array, "B S H K"], k: Float[Array, "B S H K"], v: Float[Array, "B S H K"]) -> Float[Array, "B S H K"]:
    """softmax(q k^T / sqrt(K)) v without a mask; logits and softmax in float32, the result in v's dtype.

    Under a mesh every device attends for its own pictures and heads.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        out = _local(q, k, v)
    else:
        rows = batch_axes(mesh, q.shape[0])
        # Devices with a part of the tokens each exchange it for a part of the heads, and back. Left to itself XLA gathers all tokens instead.
        tokens, heads = (lambda x: jax.lax.with_sharding_constraint(x, P(rows, "sequence", "tensor"))), P(rows, None, HEADS)
        q, k, v = map(tokens, (q, k, v))
        out = tokens(jax.shard_map(_local, mesh=mesh, in_specs=(heads,) * 3, out_specs=heads, check_vma=False)(q, k, v))
    return out


def _local(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    where = platform()
    if where == "tpu" and q.shape[-1] % LANES == 0:
        return _splash(q, k, v)
    if where == "gpu" and _cudnn_has(q):
        return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
    return checkpoint_name((_blockwise if where == "cpu" else jax.nn.dot_product_attention)(q, k, v), KEPT)


def kept(primitive: Any, *_, **params) -> bool:
    """The rematerialisation policy that keeps what attention gives, and what its backward pass needs besides, so that it is not computed again."""
    return primitive.name.startswith("dot_product_attention_fwd") or params.get("name") == KEPT  # the first is cuDNN's


def _cudnn_has(q: jax.Array) -> bool:
    """Whether the GPUs have cuDNN's flash attention for such queries: from Ampere on, of 16 bits and heads of up to 128.

    JAX would raise for any other, and does not choose by itself.
    """
    here = jax.devices()[0]
    capability = getattr(here, "compute_capability", "")  # "9.0"; AMD's have names
    # Where there is no GPU, the program is for one that `infu_jax.plan` knows. It knows none before Ampere.
    ampere = here.platform != "gpu" or (capability[:1].isdigit() and float(capability) >= 8)
    return ampere and q.dtype in (jnp.bfloat16, jnp.float16) and q.shape[-1] <= 128 and q.shape[-1] % 8 == 0


def _splash(q: jax.Array, k: jax.Array, v: jax.Array, *, interpret: bool = False) -> jax.Array:
    """JAX's flash attention kernel for TPUs: no (S, S) array in the forward or the backward pass.

    Its blocks must divide the length, so tokens are padded, and a second segment keeps the padding apart.
    """
    length, heads, size = q.shape[1:]
    padded = -(-length // TPU_BLOCK) * TPU_BLOCK
    names = ("block_q", "block_kv", "block_kv_compute", "block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute", "block_q_dq", "block_kv_dq")
    mask = splash.MultiHeadMask([splash.FullMask((padded, padded))] * heads)
    kernel = splash.make_splash_mha_single_device(
        mask, block_sizes=splash.BlockSizes(**dict.fromkeys(names, TPU_BLOCK)), residual_checkpoint_name=KEPT, interpret=interpret
    )
    segments = (jnp.arange(padded) < length).astype(jnp.int32)

    def fit(x: jax.Array) -> jax.Array:  # (B, H, padded S, K)
        return jnp.pad(x.swapaxes(1, 2), ((0, 0), (0, 0), (0, padded - length), (0, 0)))

    attend = jax.vmap(lambda q, k, v: kernel(q, k, v, segment_ids=splash.SegmentIds(segments, segments)))
    return attend(fit(q * size**-0.5), fit(k), fit(v))[:, :, :length].swapaxes(1, 2)


def _blockwise(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """One head and one block of queries at a time: no (S, S) array, and twice as fast as XLA's own on a CPU."""
    batch, length, heads, size = q.shape
    block = min(BLOCK, length)
    q = jnp.pad(q, ((0, 0), (0, -length % block), (0, 0), (0, 0)))  # padded queries are cut off again
    q, k, v = (x.swapaxes(1, 2).reshape(batch * heads, -1, size) for x in (q, k, v))

    @jax.checkpoint
    def one_block(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        logits = jax.lax.dot_general(q * size**-0.5, k, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
        weights = jnp.exp(logits - logits.max(-1, keepdims=True))
        out = jax.lax.dot_general(weights.astype(v.dtype), v, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32)
        return (out / weights.sum(-1, keepdims=True)).astype(v.dtype)

    def one_head(qkv: tuple[jax.Array, ...]) -> jax.Array:
        q, k, v = qkv
        return jax.lax.map(lambda q: one_block(q, k, v), q.reshape(-1, block, size)).reshape(-1, size)

    out = jax.lax.map(one_head, (q, k, v))
    return out.reshape(batch, heads, -1, size).swapaxes(1, 2)[:, :length]
