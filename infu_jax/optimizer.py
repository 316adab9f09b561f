"""AdamW with the paper's numbers: the learning rate over time, clipping, and how the moments are kept. Or Muon, for models from nothing.

Source: paper section 4.1 (beta, weight decay, learning rates); optax; Jordan 2024 and arXiv 2502.16982 (Muon).
"""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from jaxtyping import Array, Float, Int, Key

from infu_jax.train_config import OptimizerConfig


def learning_rate(cfg: OptimizerConfig, steps: int) -> optax.Schedule:
    """Linear warm-up (the first step has its share already), then constant or down.

    A decay would be at `final_rate` of the peak one step after the last of `steps`, as in PyTorch and transformers: so no step has a rate of zero.
    """
    peak, rest = cfg.learning_rate, max(steps - cfg.warmup_steps, 1)
    after = {
        "constant": optax.constant_schedule(peak),
        "cosine": optax.cosine_decay_schedule(peak, rest, alpha=cfg.final_rate),
        "linear": optax.linear_schedule(peak, peak * cfg.final_rate, rest),
    }[cfg.decay]
    if not cfg.warmup_steps:
        return after
    return optax.join_schedules([optax.linear_schedule(peak / cfg.warmup_steps, peak, cfg.warmup_steps - 1), after], [cfg.warmup_steps])


def make_optimizer(cfg: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Clipping by global norm, Adam's moments, decoupled weight decay, learning rate: AdamW; or clipping and Muon."""
    clip = optax.clip_by_global_norm(cfg.clip_norm) if cfg.clip_norm is not None else optax.identity()
    if cfg.kind == "muon":
        return optax.chain(clip, muon(cfg, steps))
    return optax.chain(
        clip,
        keep_moments_in(optax.scale_by_adam(cfg.b1, cfg.b2, cfg.eps), jnp.dtype(cfg.moment_dtype)),
        optax.add_decayed_weights(cfg.weight_decay),
        optax.scale_by_learning_rate(learning_rate(cfg, steps)),
    )


# How the kernels of stacked blocks multiply: the axes of their inputs and outputs. Layers, and queries, keys and values, or shift, scale and
# gate, are matrices of their own.
_MATRICES = (
    (re.compile(r".*blocks\..*(attn_out|attn\.proj)\.kernel"), (1, 2), (3,)),
    (re.compile(r".*blocks\..*(qkv|attn\.kv)\.kernel"), (1,), (3, 4)),
    (re.compile(r".*blocks\..*mod\.kernel"), (1,), (3,)),
    (re.compile(r".*blocks\..*attn\.q\.kernel"), (1,), (2, 3)),
    (re.compile(r".*blocks\..*mlp_(in|out)\.kernel"), (1,), (2,)),
)


def matrices(params):
    """For each parameter the axes of inputs and outputs by which Muon takes it; None where AdamW has it: all but the blocks' kernels."""

    def axes(path, _):
        found = [(inputs, outputs) for pattern, inputs, outputs in _MATRICES if pattern.fullmatch(path[-1].key)]
        return optax.contrib.MuonDimensionNumbers(*found[0]) if found else None

    return jax.tree_util.tree_map_with_path(axes, params)


def muon(cfg: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Momentum whose matrices are made orthogonal; updates are as large as AdamW's (RMS 0.2), so its learning rates will do.

    How the products of sharded kernels with themselves are shared among devices is left to the compiler.
    """
    return optax.contrib.muon(
        learning_rate(cfg, steps), beta=cfg.muon_beta, weight_decay=cfg.weight_decay, adam_b1=cfg.b1, adam_b2=cfg.b2, adam_weight_decay=cfg.weight_decay,
        eps=cfg.eps, muon_weight_dimension_numbers=matrices, consistent_rms=0.2,
    )  # fmt: skip


def average(ema, params, step: Int[Array, ""], decay: float):
    """Exponential moving average, with a shorter memory at first so that the initial weights fade."""
    decay = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, ema, params)


def keep_moments_in(adam: optax.GradientTransformation, dtype: jnp.dtype) -> optax.GradientTransformation:
    """`scale_by_adam` that computes in float32 and stores both moments in `dtype`.

    bfloat16 has 8 bits: with b2 = 0.999 a second moment changes by less than half of its last bit, and rounding to nearest would
    freeze it. So the moments are rounded up or down at random, right on average; the draw depends on the step and the parameter alone.
    """
    if dtype == jnp.float32:
        return adam

    def store(state, key):
        leaves, tree = jax.tree.flatten((state.mu, state.nu))
        mu, nu = jax.tree.unflatten(tree, [round_stochastically(x, jax.random.fold_in(key, n)) for n, x in enumerate(leaves)])
        return state._replace(mu=mu, nu=nu)

    def init(params):
        state = adam.init(params)
        return state._replace(mu=optax.tree.cast(state.mu, dtype), nu=optax.tree.cast(state.nu, dtype))

    def update(grads, state, params=None):
        wide = state._replace(mu=optax.tree.cast(state.mu, jnp.float32), nu=optax.tree.cast(state.nu, jnp.float32))
        updates, wide = adam.update(grads, wide, params)
        return updates, store(wide, jax.random.fold_in(jax.random.key(0), wide.count))

    return optax.GradientTransformation(init, update)


def round_stochastically(x: Float[Array, "*s"], key: Key[Array, ""]) -> Float[Array, "*s"]:
    """float32 -> one of the two neighbouring bfloat16 values, each as likely as it is near."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32) + jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    # bfloat16 is the upper half of a float32: what the random number carries over rounds up, the rest is cut.
    return jax.lax.bitcast_convert_type((bits >> 16).astype(jnp.uint16), jnp.bfloat16)
