"""A training step that keeps no gradients: every block of InfuseNet is updated in the backward pass, as soon as its own are known.

In float32 the gradients of three billion parameters are 11 GiB; of one block they are a tenth of that. The numbers are those of the ordinary
step, but for the random rounding of moments in bfloat16, whose draws the layers of a stack then share. Clipping needs the global norm, which is
known only when the backward pass is over; so where there is a `clip_norm` InfuseNet's backward pass runs twice, first for the norm alone. The
base's, most of the work, runs once.

Source: Lv et al. 2023 (arXiv 2306.09782), which does the same with SGD.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from infu_jax import objective
from infu_jax.checkpoint import with_params
from infu_jax.models.flux import BlockInputs, Residuals, joined_rope
from infu_jax.models.infusenet import double_residual, single_residual
from infu_jax.objective import Batch, Draws, Models, Params
from infu_jax.optimizer import average, make_optimizer
from infu_jax.sharding import constrain_tokens, join, streams
from infu_jax.train_config import TrainConfig


class Optimized(NamedTuple):
    """Some parameters, and all that the optimizer changes with them."""

    params: Params
    mu: Params
    nu: Params
    ema: Params | None


class Result(NamedTuple):
    """Of one step."""

    params: Params
    opt_state: optax.OptState
    ema: Params | None
    grad_norm: Float[Array, ""]
    each: objective.Losses


def make_update(cfg: TrainConfig, trained: Models, shardings: Params, dtype) -> Callable[..., Result]:
    """(step, parameters, optimizer's state, their average, frozen modules, batch, draws) -> `Result`, of InfuseNet and resampler under AdamW.

    trained: modules of what is trained, whose arrays may be abstract.
    shardings: of the parameters.
    """
    tx = make_optimizer(dataclasses.replace(cfg.optimizer, clip_norm=None), cfg.steps)
    net = trained["infusenet"]
    stacked = {kind: (f"{kind}_blocks.", f"{kind}_out.") for kind in ("double", "single")}

    def part(tree: Params | None, kind: str) -> Params | None:
        """Of all parameters, or what has their shape, those of one stack; `rest`: those of none."""
        of = lambda name: next((kind for kind, prefixes in stacked.items() if name.startswith(prefixes)), "rest")  # noqa: E731
        return None if tree is None else {model: {k: v for k, v in arrays.items() if of(k) == kind} for model, arrays in tree.items()}

    def block(kind: str, params: Params) -> tuple:
        """One block and the projection of its residual."""
        names = zip((f"{kind}_blocks", f"{kind}_out"), stacked[kind])
        within = lambda prefix: {k.removeprefix(prefix): v for k, v in params["infusenet"].items() if k.startswith(prefix)}  # noqa: E731
        return tuple(with_params(getattr(net, name), within(prefix)) for name, prefix in names)

    def run(step, params: Params, opt_state: optax.OptState, ema: Params | None, frozen: Models, batch: Batch, draws: Draws) -> Result:
        mu, nu = optax.tree.get(opt_state, "mu"), optax.tree.get(opt_state, "nu")
        parts = {kind: Optimized(*(part(tree, kind) for tree in (params, mu, nu, ema))) for kind in ("rest", "double", "single")}
        given = objective.encode({**frozen, **trained}, batch, draws, dtype)
        z, _ = objective.interpolated(given, draws)

        def begin(rest: Params):
            models = {name: with_params(trained[name], {**params[name], **rest[name]}) for name in rest}
            who = objective.identity(models, given, *given.x0.shape[1:3], cfg, dtype)
            infusenet = models["infusenet"]
            vec = infusenet.embed_vec(draws.t, given.text.y, who.guidance, dtype)
            pe = joined_rope(who.pe, who.id_tokens.shape[1])
            return (infusenet.embed(z.astype(dtype), who.id_tokens, who.control), vec), (pe, who.scale.astype(dtype))

        ((x, txt), vec), back_to_begin, (pe, scale) = jax.vjp(begin, parts["rest"].params, has_aux=True)
        ids = txt.shape[1]
        double = lambda p, carry, vec: double_residual(block("double", p), carry, None, BlockInputs(vec, pe, scale))  # noqa: E731
        single = lambda p, x, vec: single_residual(block("single", p), x, None, BlockInputs(vec, pe, scale), ids)  # noqa: E731
        (x, txt), double_inputs, double_residuals = forward(double, parts["double"].params, (x, txt), vec)
        x, single_inputs, single_residuals = forward(single, parts["single"].params, constrain_tokens(join(txt, x)), vec)

        def base(residuals: Residuals):
            each = objective.losses(frozen, given, draws, cfg, dtype, residuals)
            return each.total.mean(), each

        (_, each), residuals = jax.value_and_grad(base, has_aux=True)(Residuals(double_residuals, single_residuals))

        def sweep(update: Callable[[Optimized, Params], Optimized] | None) -> tuple[Float[Array, ""], dict[str, Optimized], Params]:
            """Backward through InfuseNet: the sum of the squared gradients, the updated parts, the gradients of the rest."""
            back = Backward(jnp.zeros_like(x), jnp.zeros_like(vec), jnp.zeros(()))
            back, new_single = backward(single, update, parts["single"], shardings, single_inputs, vec, back, residuals.single)
            back = back._replace(carry=streams(back.carry, ids)[::-1])
            back, new_double = backward(double, update, parts["double"], shardings, double_inputs, vec, back, residuals.double)
            (grads,) = back_to_begin((back.carry, back.vec))
            grads = jax.lax.with_sharding_constraint(grads, part(shardings, "rest"))
            return back.squares + optax.tree.norm(grads, squared=True), {"double": new_double, "single": new_single}, grads

        def updated(old: Optimized, grads: Params, clip) -> tuple[Optimized, optax.OptState]:
            state = optax.tree.set(opt_state, mu=old.mu, nu=old.nu)
            updates, state = tx.update(jax.tree.map(lambda g: g * clip, grads), state, old.params)
            new = optax.apply_updates(old.params, updates)
            mean = None if old.ema is None else average(old.ema, new, step, cfg.optimizer.ema_decay)
            return Optimized(new, optax.tree.get(state, "mu"), optax.tree.get(state, "nu"), mean), state

        clip = jnp.ones(())
        if cfg.optimizer.clip_norm is not None:
            squares, _, _ = sweep(None)
            clip = jnp.minimum(clip, cfg.optimizer.clip_norm / jnp.sqrt(squares))
        squares, new, grads = sweep(lambda old, grads: updated(old, grads, clip)[0])
        new["rest"], state = updated(parts["rest"], grads, clip)

        whole = lambda name: {model: {k: v for kind in new.values() for k, v in getattr(kind, name)[model].items()} for model in params}  # noqa: E731
        return Result(whole("params"), optax.tree.set(state, mu=whole("mu"), nu=whole("nu")), None if ema is None else whole("ema"), jnp.sqrt(squares), each)

    return run


class Backward(NamedTuple):
    """What the backward pass carries from block to block."""

    carry: Any  # gradient of what the block hands on
    vec: Float[Array, "B D"]  # so far, of what all blocks share
    squares: Float[Array, ""]  # of all gradients so far


def forward(apply: Callable, params: Params, carry: Any, vec: Float[Array, "B D"]) -> tuple[Any, Any, Any]:
    """`carry, y = apply(block, carry, vec)` for each of the stacked blocks: the last carry, what each block was given, and all y."""

    def body(carry, block):
        new, y = apply(block, carry, vec)
        return new, (carry, y)

    carry, (inputs, ys) = jax.lax.scan(body, carry, params)
    return carry, inputs, ys


def backward(
    apply: Callable, update: Callable[[Optimized, Params], Optimized] | None, stack: Optimized, shardings: Params, inputs: Any, vec, back: Backward, d_ys: Any
) -> tuple[Backward, Optimized]:
    """`forward` backwards. Each block is computed again from its input and, where there is an `update`, replaced in its place in the stack."""
    count = len(jax.tree.leaves(inputs)[0])

    def body(k, carried):
        back, stack = carried
        at = lambda tree: jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, count - 1 - k, keepdims=False), tree)  # noqa: E731
        old = at(stack)
        _, pull = jax.vjp(apply, old.params, at(inputs), vec)
        grads, d_carry, d_vec = pull((back.carry, at(d_ys)))
        grads = {model: {name: _whole_of_a_layer(g, shardings[model][name]) for name, g in arrays.items()} for model, arrays in grads.items()}
        if update is not None:
            # Moments and averages are taken out of their stacks one after the other, each before its place there is written: else XLA copies
            # the whole stacks for each block.
            take = lambda x, g: jax.lax.optimization_barrier((x, g))[0]  # noqa: E731
            old = Optimized(old.params, *(part and jax.tree.map(take, part, grads) for part in old[1:]))
            put = lambda whole, x: jax.lax.dynamic_update_index_in_dim(whole, x, count - 1 - k, axis=0)  # noqa: E731
            stack = jax.tree.map(put, stack, update(old, grads))
        return Backward(d_carry, back.vec + d_vec, back.squares + optax.tree.norm(grads, squared=True)), stack

    return jax.lax.fori_loop(0, count, body, (back, stack)) if count else (back, stack)


def _whole_of_a_layer(grad: jax.Array, stacked: NamedSharding) -> jax.Array:
    """One layer's gradient, divided as its place in the stack is."""
    return jax.lax.with_sharding_constraint(grad, NamedSharding(stacked.mesh, P(*stacked.spec[1:])))
