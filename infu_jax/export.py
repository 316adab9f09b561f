"""Models out of this project, as the PyTorch files that diffusers, the original repositories and ComfyUI read.

The tables are those of the import, run backwards (`infu_jax.convert`). Tensors are made one at a time while they
are written, so a model may be larger than the memory.
"""

from __future__ import annotations

import dataclasses
import json
import math
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from infu_jax.convert import numbers, rules, safetensors, source, torch_writer
from infu_jax.convert.layout import Layout
from infu_jax.errors import InputError
from infu_jax.storage import HostParam

STYLES = ("diffusers", "bfl", "comfyui")
# Folders of diffusers and transformers: the first part of their weights' name.
STEMS = {
    "flux": "diffusion_pytorch_model",
    "infusenet": "diffusion_pytorch_model",
    "autoencoder": "diffusion_pytorch_model",
    "t5": "model",
    "clip": "model",
    "clip_model": "model",
}
# The release pickles these two; the first as a dictionary under this key.
PICKLED = {"resampler": "image_proj", "arcface": None}
_SHORT = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "float8_e4m3fn": "fp8e4m3fn", "float8_e5m2": "fp8e5m2"}


def layout_for(model: str, style: str) -> Layout:
    """The layout of one model in a style; models that it says nothing about are written as released."""
    layouts = [layout for layout in source.LAYOUTS if layout.model == model]
    return next((layout for layout in layouts if layout.name == "bfl" and style != "diffusers"), layouts[0])


def is_file(model: str, style: str) -> bool:
    """Whether a model in this style is one file, not a folder with config.json."""
    return model in PICKLED or style == "comfyui" or layout_for(model, style).to_config is None


def place(model: str, style: str, cfg: Any, dtype: np.dtype) -> str:
    """The name of a model inside a release folder."""
    if model == "flux" and is_file(model, style):
        return "flux1-dev.safetensors" if cfg.guidance_embed else "flux1-schnell.safetensors"
    if model == "autoencoder" and is_file(model, style):
        return "ae.safetensors"
    if style == "comfyui" and model not in PICKLED:
        short = {"infusenet": "infusenet", "t5": "t5xxl", "clip": "clip_l"}[model]
        return f"{short}_{_SHORT[str(dtype)]}.safetensors"
    return source.PLACES[model][0]


def main_dtype(params: Mapping[str, HostParam], dtype: Any) -> np.dtype:
    """The dtype that most numbers of a model will have: for its name."""
    if dtype is not None:
        return np.dtype(dtype)
    sizes: dict[np.dtype, int] = {}
    for p in params.values():
        sizes[p.dtype] = sizes.get(p.dtype, 0) + math.prod(p.shape)
    return max(sizes, key=sizes.__getitem__)


def tensors(
    layout: Layout, cfg: Any, params: Mapping[str, HostParam], dtype: Any = None, wrote: Callable[[int], Any] = lambda size: None
) -> dict[str, safetensors.LazyTensor]:
    """The tensors of a model in a layout, by their names, each made when it is written.

    Args:
        params: from `checkpoint.open_params`.
        dtype: of the floating-point tensors; by default that of our parameters. In float8 only tensors of two axes or more
            are, and vectors are bfloat16. Counters are int64, as PyTorch keeps them. Or the dtype of every tensor, by its name.
        wrote: called with the bytes of every tensor that was made.
    """
    plan = rules.plan(layout.rules(cfg), {k: p.shape for k, p in params.items()})
    if layout.from_shapes is not None and (lost := _lost(layout, cfg, plan.their_shapes)):
        warnings.warn(f"{layout.model} in {layout.name} layout: such files have no config.json, and readers will take {lost}", stacklevel=2)

    def lazy(key: str) -> safetensors.LazyTensor:
        shape, stored = plan.their_shapes[key], numbers.join(params[p.ours].dtype for p in plan.by_theirs[key])
        target = dtype[key] if isinstance(dtype, Mapping) else _target(stored, shape, dtype)

        def read() -> np.ndarray:
            made = numbers.cast(plan.read_theirs(key, params, stored), target, key)
            wrote(made.nbytes)
            return made

        return safetensors.LazyTensor(shape, target, read)

    return {key: lazy(key) for key in sorted(plan.their_shapes)}


def write(target: Path, layout: Layout, cfg: Any, made: Mapping[str, safetensors.Tensor], shard_bytes: int, single: bool) -> None:
    """Write `tensors` to `target`: one file, or a folder with config.json and shards of at most `shard_bytes`."""
    if layout.model in PICKLED:
        key = PICKLED[layout.model]
        torch_writer.write_file(target, {key: made} if key else made)
    elif single:
        safetensors.write_file(target, made, {"format": "pt"})
    else:
        safetensors.write_sharded(target, STEMS[layout.model], made, shard_bytes, {"format": "pt"})
        (target / "config.json").write_text(json.dumps(layout.to_config(cfg), indent=2) + "\n", encoding="utf-8")


def total_bytes(made: Mapping[str, safetensors.Tensor]) -> int:
    """What the tensors will take on disk."""
    return sum(math.prod(t.shape) * t.dtype.itemsize for t in made.values())


def _lost(layout: Layout, cfg: Any, shapes: Mapping[str, rules.Shape]) -> str:
    """What a reader, who has only the shapes of the tensors, would take for something else than it is."""
    try:
        read = layout.from_shapes(shapes)
    except InputError as e:
        return f"it for another model ({e})"
    fields = {f.name: (getattr(read, f.name), getattr(cfg, f.name)) for f in dataclasses.fields(cfg)}
    return ", ".join(f"{name} to be {theirs}, not {ours}" for name, (theirs, ours) in fields.items() if theirs != ours)


def _target(stored: np.dtype, shape: tuple[int, ...], dtype: Any) -> np.dtype:
    if not numbers.is_float(stored):
        return np.dtype(np.int64)
    if dtype is None:
        return stored
    dtype = np.dtype(dtype)
    return numbers.VECTORS if dtype in numbers.FLOAT8 and len(shape) < 2 else dtype
