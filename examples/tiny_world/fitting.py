"""A plain training loop for the small networks that `train.py` does not train: recogniser, autoencoder, attribute classifier.

A run has the layout of `train.py`'s, so `--arcface RUN`, `--autoencoder RUN` and `convert_weights.py to-torch RUN` read it, and like there the same
call goes on from the newest checkpoint, to the same result as without the interruption.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from tqdm import tqdm

from infu_jax import checkpoint, config, runs
from infu_jax.errors import InputError
from infu_jax.metrics import RunLog
from infu_jax.run_state import Checkpoints
from infu_jax.sharding import batch_sharding, make_mesh
from infu_jax.train_config import CheckpointConfig

Batch = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Fit:
    """How long and how fast."""

    steps: int
    batch_size: int
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    weight_decay: float = 0.01
    seed: int = 0


def fit(
    out: Path,
    make: Callable[[nnx.Rngs], Mapping[str, nnx.Module]],
    loss: Callable[[Mapping[str, nnx.Module], Mapping[str, jax.Array], jax.Array, jax.Array], tuple[jax.Array, Mapping[str, jax.Array]]],
    batch: Callable[[np.random.Generator], Batch],
    how: Fit,
    look: Callable[[Mapping[str, nnx.Module]], tuple[Mapping[str, float], np.ndarray | None]],
) -> Path:
    """Train modules with AdamW, a linear rise and a cosine fall, each batch split over all devices, and return `out`.

    make: the modules, by their name in the run; norms among them may move their running statistics in place.
    loss: (modules, batch, key, progress from 0 to 1) -> (loss, other numbers for the log).
    batch: one batch, a function of the random generator alone.
    look: numbers on held-out people, and a picture, at each checkpoint.
    """
    whole = nnx.jit(lambda: dict(make(nnx.Rngs(how.seed))))()
    graph, params, rest = nnx.split(whole, nnx.Param, ...)
    schedule = optax.warmup_cosine_decay_schedule(0, how.learning_rate, min(how.warmup_steps, how.steps // 4), how.steps, 0)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.99, weight_decay=how.weight_decay))

    @jax.jit
    def update(state, batch, step):
        params, rest, moments = state

        def objective(params):
            modules = nnx.merge(graph, params, rest, copy=True)
            value, numbers = loss(modules, batch, jax.random.fold_in(jax.random.key(how.seed), step), step / how.steps)
            return value, (numbers, nnx.split(modules, nnx.Param, ...)[2])

        (value, (numbers, rest)), grads = jax.value_and_grad(objective, has_aux=True)(params)
        updates, moments = optimizer.update(grads, moments, params)
        return (optax.apply_updates(params, updates), rest, moments), {"loss": value, **numbers}

    state = (params, rest, jax.jit(optimizer.init)(params))
    mesh = make_mesh()
    every = max(how.steps // 8, 25)
    settings = {name: getattr(how, name) for name in how.__dataclass_fields__}
    sizes = {name: config.to_json(module.cfg) for name, module in whole.items() if hasattr(module, "cfg")}

    def items(state) -> dict[str, dict[str, Any]]:
        modules = nnx.merge(graph, *state[:2])
        return {**{name: checkpoint.params_of(module) for name, module in modules.items()}, "optimizer": _flat(state[2])}

    with Checkpoints(out, CheckpointConfig(every_steps=every, keep=1)) as checkpoints:
        start = 0
        if found := checkpoints.restore(items(state), lambda meta: _check(out, settings, meta["settings"])):
            start, saved = found
            modules = {name: checkpoint.with_params(module, saved[name]) for name, module in whole.items()}
            params, rest = nnx.split(modules, nnx.Param, ...)[1:]
            state = (params, rest, jax.tree.unflatten(jax.tree.structure(state[2]), [saved["optimizer"][k] for k in _flat(state[2])]))
        state = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
        runs.write_run(out, {"settings": settings, "models": sizes})
        with RunLog(out, start) as log, tqdm(total=how.steps, initial=start, desc=out.name, unit="step", disable=None) as bar:
            seen = []
            for step in range(start + 1, how.steps + 1):
                shown = jax.device_put(batch(np.random.default_rng([how.seed, step])), batch_sharding(mesh, how.batch_size))
                state, numbers = update(state, shown, jnp.int32(step - 1))
                seen.append(numbers)
                bar.update()
                if step % 50 == 0 or step == how.steps:
                    means = {k: float(np.mean([jax.device_get(n[k]) for n in seen])) for k in numbers}
                    if not np.isfinite(means["loss"]):
                        raise FloatingPointError(f"{out}: the loss at step {step} is not a number; lower the learning rate")
                    log.scalars(step, {**means, "learning_rate": float(schedule(step - 1))})
                    bar.set_postfix(loss=f"{means['loss']:.4f}")
                    seen.clear()
                if step % every == 0 or step == how.steps:
                    checkpoints.save(step, items(state), {"settings": settings, "models": sizes})
                    values, picture = look(nnx.merge(graph, *state[:2]))
                    log.scalars(step, values)
                    tqdm.write(f"{out.name} step {step}: " + ", ".join(f"{k} {v:.4f}" for k, v in values.items()))
                    if picture is not None:
                        log.picture(step, "validation", picture)
    return out


def restore(run: Path, make: Callable[[nnx.Rngs], Mapping[str, nnx.Module]]) -> dict[str, nnx.Module]:
    """The modules of a finished run."""
    whole = nnx.jit(lambda: dict(make(nnx.Rngs(0))))()
    with Checkpoints(run, CheckpointConfig(every_steps=1, keep=1)) as checkpoints:
        found = checkpoints.restore({name: checkpoint.params_of(module) for name, module in whole.items()}, lambda meta: None)
    if found is None:
        raise InputError(f"{run} has no whole checkpoint; train it first (python -m examples.tiny_world)")
    return {name: checkpoint.with_params(module, found[1][name]) for name, module in whole.items()}


def _flat(tree) -> dict[str, jax.Array]:
    return {f"{n:04d}": leaf for n, leaf in zip(itertools.count(), jax.tree.leaves(tree), strict=False)}


def _check(out: Path, new: Mapping[str, Any], old: Mapping[str, Any]) -> None:
    """Only the number of steps may be changed; the learning rate then goes on along the new fall."""
    if {**new, "steps": 0} != {**old, "steps": 0}:
        raise InputError(f"{out} was begun with other settings ({old}; now {new}); use another folder")
