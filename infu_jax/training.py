"""What one training step computes: the rectified-flow loss of a batch, its gradients, the new state.

Weights come in two kinds. Trained ones are float32, flat dicts of parameters in `TrainState`; frozen ones are modules, an argument of
their own that the optimizer never sees. Everything random is a function of (seed, step) and can be given instead.

Source: paper section 3.4 and 4.1; diffusers `train_controlnet_flux.py` for what a ControlNet's step consists of.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from infu_jax import flow, in_backward
from infu_jax.checkpoint import param_shapes, with_params
from infu_jax.errors import InputError
from infu_jax.objective import Batch, Draws, Models, Params, draw, encode, latent_shape, losses
from infu_jax.optimizer import average, learning_rate, make_optimizer
from infu_jax.runs import EMA
from infu_jax.sharding import RULES, batch_axes, batch_sharding, param_shardings
from infu_jax.train_config import TrainConfig

TRAINED = {"infusenet": ("infusenet", "resampler"), "base": ("flux",)}
STACKED_KERNEL = re.compile(r"(double|single)_(blocks|out)\..*kernel")
TIME_BINS = 10


class TrainState(NamedTuple):
    """Everything that training changes."""

    step: Int[Array, ""]
    params: Params
    opt_state: optax.OptState
    ema: Params | None


class Metrics(NamedTuple):
    """Of one step. bin_loss and bin_count are sums over the pictures whose time falls into each tenth of [0, 1]."""

    loss: Float[Array, ""]
    grad_norm: Float[Array, ""]
    param_norm: Float[Array, ""]
    learning_rate: Float[Array, ""]
    bin_loss: Float[Array, " bins"]
    bin_count: Float[Array, " bins"]
    id_loss: Float[Array, ""] | None  # identity loss, without its weight; None: there is none
    each: Float[Array, " B"]  # loss of each picture


class NotFiniteError(InputError):
    """The loss or a gradient is infinite or no number."""


# The step -----------------------------------------------------------------------------------------


def abstract_state(cfg: TrainConfig, trained: Models, mesh: Mesh) -> TrainState:
    """The state's shapes, dtypes and shardings; `trained` are modules, whose arrays may be abstract."""
    replicated = NamedSharding(mesh, P())
    params = {}
    for model, module in trained.items():
        shapes = {name: s.shape for name, s in param_shapes(module).items()}
        shardings = param_shardings(mesh, RULES[model], shapes)
        params[model] = {name: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=shardings[name]) for name, shape in shapes.items()}
    tx = make_optimizer(cfg.optimizer, cfg.steps)
    opt_state = optax.tree_map_params(
        tx,
        lambda moment, p: moment if isinstance(moment, optax.MaskedNode) else jax.ShapeDtypeStruct(moment.shape, moment.dtype, sharding=p.sharding),
        jax.eval_shape(tx.init, params),
        params,
        transform_non_params=lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated),
        is_leaf=lambda x: isinstance(x, optax.MaskedNode),  # what another part of the optimizer has
    )
    ema = params if cfg.optimizer.ema_decay is not None else None
    return TrainState(jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated), params, opt_state, ema)


def init_state(cfg: TrainConfig, params: Params, abstract: TrainState) -> TrainState:
    """The state before the first step. `params` are handed over: do not use them afterwards."""
    shardings = jax.tree.map(lambda s: s.sharding, abstract)

    @partial(jax.jit, out_shardings=shardings, donate_argnums=0)
    def make(params):
        ema = jax.tree.map(jnp.copy, params) if abstract.ema is not None else None
        return TrainState(jnp.zeros((), jnp.int32), params, make_optimizer(cfg.optimizer, cfg.steps).init(params), ema)

    return make(params)


def to_items(state: TrainState) -> dict[str, dict[str, Any]]:
    """The state as `runs.Checkpoints` keeps it: arrays by name in one dict for each model, its average, and the optimizer."""
    ema = {} if state.ema is None else {name + EMA: arrays for name, arrays in state.ema.items()}
    leaves = jax.tree_util.tree_leaves_with_path(state.opt_state)
    return {**state.params, **ema, "optimizer": {"step": state.step, **{jax.tree_util.keystr(path): leaf for path, leaf in leaves}}}


def from_items(items: Mapping[str, Mapping[str, Any]], abstract: TrainState) -> TrainState:
    """The inverse of `to_items`."""
    optimizer = dict(items["optimizer"])
    return TrainState(
        step=optimizer["step"],
        params={name: items[name] for name in abstract.params},
        opt_state=jax.tree_util.tree_map_with_path(lambda path, _: optimizer[jax.tree_util.keystr(path)], abstract.opt_state),
        ema=None if abstract.ema is None else {name: items[name + EMA] for name in abstract.ema},
    )


def make_step(
    cfg: TrainConfig, trained: Models, abstract: TrainState, mesh: Mesh, schedule: flow.ScheduleConfig, dtype
) -> Callable[[TrainState, Models, Batch, Draws | None], tuple[TrainState, Metrics]]:
    """The jitted step (state, frozen modules, batch, draws or None) -> (state, metrics); the old state is consumed.

    It must run under `jax.set_mesh(mesh)`. Another shape of the batch, i.e. another bucket, compiles another program.
    """
    tx, rate = make_optimizer(cfg.optimizer, cfg.steps), learning_rate(cfg.optimizer, cfg.steps)
    shardings = jax.tree.map(lambda s: s.sharding, abstract)
    replicated = NamedSharding(mesh, P())

    def loss(params: Params, frozen: Models, batch: Batch, draws: Draws):
        ready = {name: rounded(arrays, dtype) if rounds_ahead(cfg) else arrays for name, arrays in params.items()}
        models = {**frozen, **{name: with_params(trained[name], arrays) for name, arrays in ready.items()}}
        each = losses(models, encode(models, batch, draws, dtype), draws, cfg, dtype)
        return each.total.mean(), each

    def gradients(params: Params, frozen: Models, batch: Batch, draws: Draws):
        (_, each), grads = jax.value_and_grad(loss, has_aux=True)(params, frozen, batch, draws)
        # Without this the compiler may sum whole gradients on every device.
        return jax.lax.with_sharding_constraint(grads, shardings.params), each

    def accumulated(params: Params, frozen: Models, batch: Batch, draws: Draws):
        def body(total, part):
            grads, each = gradients(params, frozen, *part)
            return jax.tree.map(lambda a, g: a + g / cfg.accumulate, total, grads), each

        zeros = jax.lax.with_sharding_constraint(jax.tree.map(jnp.zeros_like, params), shardings.params)
        every = cfg.objective.id_every
        grads, each = jax.lax.scan(body, zeros, jax.tree.map(lambda x: _parts(x, cfg.accumulate, every), (batch, draws)))
        return grads, jax.tree.map(lambda x: _in_order(x, every), each)

    def all_at_once(step, params: Params, opt_state: optax.OptState, ema: Params | None, frozen: Models, batch: Batch, draws: Draws) -> in_backward.Result:
        grads, each = (gradients if cfg.accumulate == 1 else accumulated)(params, frozen, batch, draws)
        updates, opt_state = tx.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        ema = None if ema is None else average(ema, params, step, cfg.optimizer.ema_decay)
        return in_backward.Result(params, opt_state, ema, optax.global_norm(grads), each)

    update = in_backward.make_update(cfg, trained, shardings.params, dtype) if cfg.optimizer.in_backward else all_at_once

    def step(state: TrainState, frozen: Models, batch: Batch, draws: Draws | None) -> tuple[TrainState, Metrics]:
        if draws is None:
            key = jax.random.fold_in(jax.random.key(cfg.seed), state.step)
            draws = draw(key, latent_shape(frozen, batch), cfg.objective, schedule)
            draws = jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, P(batch_axes(mesh, len(x)))), draws)
        params, opt_state, ema, norm, each = update(*state, frozen, batch, draws)
        bins = jax.nn.one_hot(jnp.clip((draws.t * TIME_BINS).astype(jnp.int32), 0, TIME_BINS - 1), TIME_BINS)
        metrics = Metrics(
            loss=each.total.mean(),
            grad_norm=norm,
            param_norm=optax.global_norm(params),
            learning_rate=jnp.asarray(rate(state.step), jnp.float32),
            bin_loss=each.total @ bins,
            bin_count=bins.sum(0),
            id_loss=None if each.identity is None else each.identity.mean(),
            each=each.total,
        )
        return TrainState(state.step + 1, params, opt_state, ema), metrics

    metric_shardings = Metrics(*(replicated,) * 7, each=batch_sharding(mesh, cfg.batch_size))
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, metric_shardings))


def rounds_ahead(cfg: TrainConfig) -> bool:
    """Whether the step rounds kernels before its loops over blocks (`rounded`).

    Not where the backward pass finds nearly all that it needs: there memory is full when the forward pass ends, and copies of kernels add to it.
    """
    return cfg.remat in ("block", "attention", "offload") and not cfg.optimizer.in_backward


def rounded(params: Mapping[str, jax.Array], dtype) -> dict[str, jax.Array]:
    """The kernels of stacked blocks in `dtype`, once for all that reads them; the rest as it is.

    Blocks multiply by kernels in the dtype of what comes in (`layers.Linear`), so the numbers are the same. But the stacks of gradients stay in it
    until the optimizer reads them: half the memory of float32.
    """
    return {name: x.astype(dtype) if STACKED_KERNEL.fullmatch(name) else x for name, x in params.items()}


def check_finite(step: int, metrics: Metrics, records: Any, advice: str) -> None:
    """Raise NotFiniteError where a step's loss or gradient is not a finite number. `records` are this process's rows of the batch."""
    loss, norm = float(metrics.loss), float(metrics.grad_norm)
    if math.isfinite(loss) and math.isfinite(norm):
        return
    each = multihost_utils.process_allgather(metrics.each, tiled=True)
    if jax.process_count() > 1:
        records = multihost_utils.process_allgather(records, tiled=True)
    bad = [int(record) for record, x in zip(records, each) if not math.isfinite(x)] if len(records) == len(each) else []
    where = f"the loss of records {bad} is not finite" if bad else f"no single picture stands out; the batch's records are {[int(r) for r in records]}"
    raise NotFiniteError(f"step {step}: loss {loss}, gradient norm {norm}: {where}. {advice}")


def summary(seen: Sequence[Metrics]) -> dict[str, float]:
    """Means of some steps' metrics; the loss by tenth of time too, `loss_t0.3-0.4`, where pictures fell into it."""
    names = [name for name in ("loss", "id_loss", "grad_norm", "param_norm") if getattr(seen[0], name) is not None]
    mean = {name: float(np.mean([getattr(m, name) for m in seen])) for name in names}
    sums, counts = sum(m.bin_loss for m in seen), sum(m.bin_count for m in seen)
    bins = {f"loss_t{n / TIME_BINS:.1f}-{(n + 1) / TIME_BINS:.1f}": float(s / c) for n, (s, c) in enumerate(zip(sums, counts)) if c}
    return {**mean, "learning_rate": float(seen[-1].learning_rate), **bins}


def _parts(x: jax.Array, n: int, every: int) -> jax.Array:
    """(B, ...) -> (n, B / n, ...). Part i is groups i, i + n, ... of `every` rows each, so that the same rows begin a group as in the whole.

    These the identity loss decodes. Every device keeps the rows that it has, if it has whole groups in each part.
    """
    mesh = jax.sharding.get_abstract_mesh()
    parts = x.reshape(-1, n, every, *x.shape[1:]).swapaxes(0, 1).reshape(n, -1, *x.shape[1:])
    return jax.lax.with_sharding_constraint(parts, P(None, batch_axes(mesh, len(x) // n)))


def _in_order(parts: jax.Array, every: int) -> jax.Array:
    """The inverse of `_parts`, of one number a row."""
    return parts.reshape(len(parts), -1, every).swapaxes(0, 1).reshape(-1)
