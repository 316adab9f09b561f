"""What a file or folder holds, said in a few lines, without reading its numbers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp

from infu_jax import checkpoint
from infu_jax import config as configs
from infu_jax.convert import rules, source
from infu_jax.convert.errors import ConversionError
from infu_jax.convert.rules import Shape


def parts(path: Path) -> dict[str, Path]:
    """The models under `path` by name, where it is a release folder; empty where it is one model."""
    if path.is_file() or (path / "config.json").exists():
        return {}
    found = {model: next((path / place for place in places if (path / place).exists()), None) for model, places in source.PLACES.items()}
    return {model: place for model, place in found.items() if place is not None}


def describe(path: Path) -> tuple[list[str], bool]:
    """Lines about one model's file or folder, and whether it is whole and fits its configuration."""
    if checkpoint.is_converted(path):
        return _describe_converted(path)
    tensors = source.open_tensors(path)
    lines = _numbers({k: v.shape for k, v in tensors.items()}, {k: v.dtype for k, v in tensors.items()})
    try:
        found = source.open_source(path)
    except ConversionError as e:
        return [*lines, f"problem: {e}"], False
    lines = [f"model: {found.layout.model}", f"layout: {found.layout.name}", *lines, f"sizes: {configs.to_json(found.cfg)}"]
    try:
        ours = checkpoint.param_shapes(checkpoint.abstract(found.layout.model, found.cfg))
        plan = rules.plan(found.layout.rules(found.cfg), {k: v.shape for k, v in ours.items()})
        rules.check_file(plan, {k: v.shape for k, v in tensors.items()}, ignore=found.layout.ignore, source=str(path))
    except ConversionError as e:
        return [*lines, f"problem: {e}"], False
    return [*lines, "complete: every key is there, has the shape its configuration asks for, and is used once"], True


def _describe_converted(path: Path) -> tuple[list[str], bool]:
    stored = source.read_config(path)
    with ocp.StandardCheckpointer() as reader:
        arrays = reader.metadata((path / "weights").absolute()).item_metadata.tree
    lines = _numbers({k: v.shape for k, v in arrays.items()}, {k: np.dtype(v.dtype) for k, v in arrays.items()})
    return [f"model: {stored['model']}", "layout: infu_jax (Orbax)", *lines, f"sizes: {stored['config']}"], True


def _numbers(shapes: Mapping[str, Shape], dtypes: Mapping[str, np.dtype]) -> list[str]:
    count = sum(math.prod(s) for s in shapes.values())
    size = sum(math.prod(s) * dtypes[k].itemsize for k, s in shapes.items())
    kinds = ", ".join(f"{n} {dtype}" for dtype, n in Counter(str(d) for d in dtypes.values()).most_common())
    return [f"tensors: {len(shapes)} ({kinds})", f"parameters: {count:,} ({size / 2**20:,.1f} MiB)"]
