"""LoRAs: merged into models that are loaded or in storage, taken off again, and extracted from two checkpoints.

Where a change belongs in our parameters follows from the conversion rules. Which layers a file means: `convert/lora_files.py`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from infu_jax import checkpoint
from infu_jax.convert import lora_files, numbers, rules, source
from infu_jax.convert.errors import ConversionError
from infu_jax.convert.layout import Layout
from infu_jax.storage import HostParam

MODELS = ("flux", "clip", "t5")  # what a LoRA for FLUX may change


@dataclass(frozen=True)
class Factors:
    """What is added to each layer of one of our parameters: the product of `a` and `b` over the rank, in float32.

    a: (layers, *inputs, rank); b: (layers, rank, *outputs). `layers` is 1 where the parameter is not `stacked`, that is, has no layer axis.
    """

    a: np.ndarray
    b: np.ndarray
    stacked: bool


@dataclass(frozen=True)
class Lora:
    """One file's changes: our parameters' factors by model and path. `summary` says what matched, in a few words."""

    path: Path
    scale: float
    changes: Mapping[str, Mapping[str, Factors]]
    summary: str


def read(path: str | Path, scale: float, models: Mapping[str, nnx.Module]) -> Lora:
    """Read a file and find what it changes in `models` (their shapes are enough), which are some of `MODELS`.

    Raises:
        ConversionError: a key matches nothing, a shape does not fit, a part is missing, or numbers are not finite.
    """
    plans = {(layout.model, layout.name): _plan(layout, models[layout.model]) for layout in source.LAYOUTS if layout.model in models}
    found = lora_files.read(path, plans)
    changes = {}
    for name, model in models.items():
        mine = [change for change in found if change.model == name]
        if made := _factors([part for c in mine for p in plans[name, c.layout].by_theirs[c.key] if (part := _part(p, c, scale))], model):
            changes[name] = made
    counted = Counter((change.model, change.layout) for change in found)
    return Lora(Path(path), scale, changes, ", ".join(f"{n} layers of {model} ({layout} names)" for (model, layout), n in sorted(counted.items())))


def _plan(layout: Layout, model: nnx.Module) -> rules.Plan:
    return rules.plan(layout.rules(model.cfg), {k: v.shape for k, v in checkpoint.param_shapes(model).items()})


def _part(piece: rules.Piece, change: lora_files.Change, scale: float) -> tuple[rules.Piece, np.ndarray, np.ndarray] | None:
    """What one piece of a changed weight gets; None where it gets nothing."""
    (o0, o1), (i0, i1) = piece.their_box
    with np.errstate(over="ignore", invalid="ignore"):  # said below, with the name
        down, up = change.down[:, i0:i1], change.up[o0:o1] * np.float32(change.scale * scale)
    if not numbers.all_finite(up):
        raise ConversionError(f"{change.name}: at scale {scale:g}, with alpha / rank {change.scale:g}, its numbers are not finite; choose a smaller scale")
    used = up.any(axis=0)  # kohya can train q, k and v apart and stores them as one, with zeros
    return (piece, down[used], up[:, used]) if used.any() else None


def _factors(parts: Iterable[tuple[rules.Piece, np.ndarray, np.ndarray]], model: nnx.Module) -> dict[str, Factors]:
    """The parts of every parameter side by side along the rank."""
    shapes = {k: v.shape for k, v in checkpoint.param_shapes(model).items()}
    grouped: dict[str, dict[int, list]] = {}
    for piece, down, up in parts:
        layer = piece.our_box[0][0] if piece.has_layer_axis else 0
        grouped.setdefault(piece.ours, {}).setdefault(layer, []).append((piece, down, up))
    made = {}
    for path, layers in grouped.items():
        stacked = next(iter(layers.values()))[0][0].has_layer_axis
        shape = shapes[path][1:] if stacked else shapes[path]
        n = _input_axes(model, path)
        rank = max(sum(len(down) for _, down, _ in entries) for entries in layers.values())
        a = np.zeros((shapes[path][0] if stacked else 1, *shape[:n], rank), np.float32)
        b = np.zeros((len(a), rank, *shape[n:]), np.float32)
        for layer, entries in layers.items():
            at = 0
            for piece, down, up in entries:
                box = piece.our_box[1:] if stacked else piece.our_box
                ins, outs = (tuple(slice(*side) for side in part) for part in (box[:n], box[n:]))
                ranks = slice(at, at := at + len(down))
                a[(layer, *ins, ranks)] = down.T.reshape(*(s.stop - s.start for s in ins), len(down))
                b[(layer, ranks, *outs)] = up.T.reshape(len(down), *(s.stop - s.start for s in outs))
        made[path] = Factors(a, b, stacked)
    return made


def _input_axes(model: nnx.Module, path: str) -> int:
    module: Any = model
    for name in path.split(".")[:-1]:
        module = module[int(name)] if name.isdecimal() else getattr(module, name)
    return module.input_axes


# Merging ------------------------------------------------------------------------------------------


def together(loras: Sequence[Lora], model: str) -> dict[str, Factors]:
    """The sum of several files' changes to one model."""
    paths = dict.fromkeys(path for lora in loras for path in lora.changes.get(model, {}))
    every = {path: [lora.changes[model][path] for lora in loras if path in lora.changes.get(model, {})] for path in paths}
    return {path: Factors(np.concatenate([f.a for f in fs], axis=-1), np.concatenate([f.b for f in fs], axis=1), fs[0].stacked) for path, fs in every.items()}


def merge(module: nnx.Module, changes: Mapping[str, Factors], *, keep: bool = False) -> tuple[nnx.Module, dict[str, jax.Array]]:
    """A model with `together`'s changes added to its weights, where they lie and in their dtype; the sums are float32.

    keep: return the former values of the changed parameters, in host memory, for `restore`. Otherwise the model that was given
        gives its memory to the new one and must not be used again.
    """
    params, former = checkpoint.params_of(module), {}
    for path, factors in changes.items():
        old = params[path]
        if keep:
            former[path] = jax.device_put(old, old.sharding.with_memory_kind("pinned_host"))
        everywhere = NamedSharding(old.sharding.mesh, P()) if isinstance(old.sharding, NamedSharding) else old.sharding
        a, b = (jax.device_put(x, everywhere) for x in (factors.a, factors.b))
        near = old.sharding.with_memory_kind("device")  # a parameter that waits in host memory comes over for the sum
        params[path] = jax.device_put(_adder(near, factors.stacked, keep)(jax.device_put(old, near), a, b), old.format)
    return checkpoint.with_params(module, params), former


def restore(module: nnx.Module, former: Mapping[str, jax.Array]) -> nnx.Module:
    """The model as it was before `merge(..., keep=True)`, bit for bit."""
    now = checkpoint.params_of(module)
    return checkpoint.with_params(module, {**now, **{path: jax.device_put(old, now[path].format) for path, old in former.items()}})


@functools.cache
def _adder(sharding: jax.sharding.Sharding, stacked: bool, keep: bool):
    """The program that adds one parameter's change, layer by layer, so that a float32 copy is never larger than a layer."""

    def add(weight, a, b):
        def one(i, layers):
            layer = jax.lax.dynamic_index_in_dim(layers, i, keepdims=False)
            change = jnp.tensordot(a[i], b[i], 1, precision=jax.lax.Precision.HIGHEST)
            return jax.lax.dynamic_update_index_in_dim(layers, (layer.astype(jnp.float32) + change).astype(weight.dtype), i, 0)

        layers = jax.lax.fori_loop(0, len(a), one, weight if stacked else weight[None])
        return layers if stacked else layers[0]

    return jax.jit(add, out_shardings=sharding, donate_argnums=() if keep else 0)


def merge_stored(params: Mapping[str, HostParam], changes: Mapping[str, Factors]) -> dict[str, HostParam]:
    """As `merge`, for parameters in storage: each box is changed when it is read."""
    return {path: dataclasses.replace(p, read=_changed(path, p, changes[path])) if path in changes else p for path, p in params.items()}


def _changed(path: str, param: HostParam, factors: Factors) -> Callable[[rules.Box], np.ndarray]:
    n = factors.a.ndim - 2

    def read(box: rules.Box) -> np.ndarray:
        layers, inner = (range(*box[0]), box[1:]) if factors.stacked else (range(1), box)
        ins, outs = (tuple(slice(*side) for side in part) for part in (inner[:n], inner[n:]))
        values = param.read(box)
        with np.errstate(over="ignore", invalid="ignore"):  # said below, with the name
            change = [np.tensordot(factors.a[(i, *ins)], factors.b[(i, slice(None), *outs)], 1) for i in layers]
            total = values.astype(np.float32) + np.reshape(change, values.shape)
        if not numbers.all_finite(total) and numbers.all_finite(values):
            raise ConversionError(f"{path} with its LoRAs has values that float32 does not hold; choose a smaller scale")
        return numbers.cast(total, values.dtype, f"{path} with its LoRAs")

    return read


# Extracting ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Extracted:
    """tensors: a LoRA in diffusers' names, float32. captured: the part of the difference's squared sum that it holds, from 0 to 1.

    left: names of differing weights that are no matrices, which a LoRA cannot hold.
    """

    tensors: dict[str, np.ndarray]
    captured: float
    left: tuple[str, ...]


def extract(
    base: Mapping[str, HostParam], tuned: Mapping[str, HostParam], model: nnx.Module, rank: int, progress: Callable[[int], Any] = lambda done: None
) -> Extracted:
    """The LoRA of this rank that is nearest to the difference of two transformers, by a truncated SVD of each matrix.

    progress: called with 1 after each weight, of as many as the model has in diffusers' layout.
    Raises ConversionError where the difference is not finite.
    """
    layout = next(layout for layout in source.LAYOUTS if layout.model == "flux")
    plan, tensors, left = _plan(layout, model), {}, []
    whole, held = 0.0, 0.0
    for key in sorted(plan.their_shapes):
        change = plan.read_theirs(key, tuned, np.float32) - plan.read_theirs(key, base, np.float32)
        if not numbers.all_finite(change):
            raise ConversionError(f"{key}: the difference of the two is not finite (NaN or infinity), so there is no LoRA of it; inspect --diff says more")
        if change.any() and plan.by_theirs[key][0].kind != "linear":
            left.append(key)
        elif change.any():
            up, sizes, down = _svd(change, rank)
            name, root = f"transformer.{key.removesuffix('.weight')}", np.sqrt(sizes)
            tensors |= {f"{name}.lora_A.weight": root[:, None] * down, f"{name}.lora_B.weight": up * root}
            whole, held = whole + float(np.sum(np.square(change), dtype=np.float64)), held + float(np.sum(np.square(sizes), dtype=np.float64))
        progress(1)
    return Extracted(tensors, held / whole if whole else 1.0, tuple(left))


def _svd(matrix: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The `rank` largest singular triplets; for large matrices by random projection (Halko et al. 2011), which is hundreds of times as fast."""
    rank, width = min(rank, *matrix.shape), rank + 16
    if width * 4 < min(matrix.shape):
        basis, _ = np.linalg.qr(matrix @ np.random.default_rng(0).standard_normal((matrix.shape[1], width), np.float32))
        for _ in range(2):
            basis, _ = np.linalg.qr(matrix.T @ basis)
            basis, _ = np.linalg.qr(matrix @ basis)
        up, sizes, down = np.linalg.svd(basis.T @ matrix, full_matrices=False)
        up = basis @ up
    else:
        up, sizes, down = np.linalg.svd(matrix, full_matrices=False)
    return up[:, :rank], sizes[:rank], down[:rank]
