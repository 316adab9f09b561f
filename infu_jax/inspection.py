"""What a file or folder holds, and whether it is whole, without reading its numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
from flax import nnx

from infu_jax import checkpoint
from infu_jax import config as configs
from infu_jax.convert import rules, source
from infu_jax.convert.errors import ConversionError
from infu_jax.convert.layout import Layout
from infu_jax.errors import InputError

# What sample.py needs from --base and from --infu. ArcFace may lie elsewhere.
BASE, INFU = ("flux", "autoencoder", "clip", "t5"), ("infusenet", "resampler")
TOKENIZERS = ("tokenizer", "tokenizer_2")


def parts(path: Path) -> dict[str, Path]:
    """The models under `path` by name, where it is a release folder; empty where it is one model."""
    if path.is_file() or (path / "config.json").exists():
        return {}
    found = {model: next((path / place for place in places if (path / place).exists()), None) for model, places in source.PLACES.items()}
    return {model: place for model, place in found.items() if place is not None}


def absent(path: Path) -> list[str]:
    """What a release folder should have and has not; empty where `path` is one model."""
    found = parts(path)
    wanted = [model for group in (BASE, INFU) if set(group) & set(found) for model in group]
    tokenizers = [name for name in TOKENIZERS if set(BASE) & set(found) and not (path / name).is_dir()]
    return [f"{model} ({' or '.join(source.PLACES[model])})" for model in wanted if model not in found] + tokenizers


def check(path: Path, model: str | None = None) -> nnx.Module:
    """The model that is stored at `path`, with shapes in the place of arrays, after all that names, shapes and settings can tell.

    model: what it must be; `path` may then be a release folder that has it in its usual place.
    Raises ConversionError where something is missing, unexpected or of another size.
    """
    return _check(_open(path if model is None else source.find(path, model), model))


def model_name(path: Path) -> str:
    """Which model a file or folder holds."""
    return _open(path).layout.model


def stored_bytes(path: Path, dtype: Any = None) -> int:
    """What the arrays of one model take on disk, as stored or in another dtype."""
    return sum(a.size * np.dtype(dtype or a.dtype).itemsize for a in _open(path).tensors.values())


def describe(path: Path) -> tuple[list[str], bool]:
    """Lines about one model's file or folder, and whether it is whole and fits its configuration."""
    lines: list[str] = []
    try:
        lines = _numbers(_stored_arrays(path) if checkpoint.is_converted(path) else source.open_tensors(path))
        found = _open(path)
        sizes = ", ".join(f"{name}={value}" for name, value in configs.to_json(found.cfg).items())
        lines = [f"model: {found.layout.model}", f"layout: {found.layout.name}", *lines, f"sizes: {sizes}"]
        _check(found)
    except InputError as e:
        return [*lines, f"problem: {e}"], False
    return [*lines, "complete: every key is there, has the shape its configuration asks for, and is used once"], True


def _open(path: Path, model: str | None = None) -> source.Source:
    """A checkpoint of either kind, ours with the parameters under their own names."""
    if not checkpoint.is_converted(path):
        return source.open_source(path, model)
    name = model or str(source.read_config(path).get("model"))
    cfg = checkpoint._read_config(path, name)
    ours = checkpoint.param_shapes(_build(name, cfg, path))
    layout = Layout(name, "infu_jax (Orbax)", (), lambda _: [rule for path, v in ours.items() if v.size for rule in rules.same(path, path)])
    return source.Source(path, layout, cfg, _stored_arrays(path))


def _check(found: source.Source) -> nnx.Module:
    module = _build(found.layout.model, found.cfg, found.path)
    plan = rules.plan(found.layout.rules(found.cfg), {k: v.shape for k, v in checkpoint.param_shapes(module).items()})
    rules.check_file(plan, {k: v.shape for k, v in found.tensors.items()}, ignore=found.layout.ignore, source=str(found.path))
    return module


def _build(model: str, cfg, path: Path) -> nnx.Module:
    try:
        return checkpoint.abstract(model, cfg)
    except (TypeError, ValueError, ArithmeticError) as e:  # sizes that do not go together
        raise ConversionError(f"{path}: its configuration makes no sense: {e}") from None


def _stored_arrays(folder: Path) -> dict[str, np.ndarray]:
    """Stand-ins of one element for the arrays of an Orbax checkpoint: its shapes and dtypes, not its numbers."""
    with ocp.StandardCheckpointer() as reader:
        stored = reader.metadata((folder / "weights").absolute()).item_metadata
    if stored is None:
        raise ConversionError(f"{folder / 'weights'} is missing or damaged; convert the original files again")
    return {k: np.broadcast_to(np.zeros((), v.dtype), v.shape) for k, v in stored.tree.items()}


def _numbers(arrays: Mapping[str, np.ndarray]) -> list[str]:
    count, size = sum(a.size for a in arrays.values()), sum(a.size * a.itemsize for a in arrays.values())
    kinds = ", ".join(f"{n} {dtype}" for dtype, n in Counter(str(a.dtype) for a in arrays.values()).most_common())
    return [f"tensors: {len(arrays)} ({kinds})", f"parameters: {count:,} ({size / 2**20:,.1f} MiB)"]
