"""What a file or folder holds, and whether it is whole, without reading its numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from infu_jax import checkpoint
from infu_jax import config as configs
from infu_jax.convert import source
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


def stored_bytes(found: source.Source, dtype: Any = None) -> int:
    """What the arrays of one model take on disk, as stored or in another dtype."""
    return sum(a.size * np.dtype(dtype or a.dtype).itemsize for a in found.tensors.values())


def describe(path: Path) -> tuple[list[str], bool]:
    """Lines about one model's file or folder, and whether it is whole and fits its configuration."""
    lines: list[str] = []
    try:
        if not checkpoint.is_converted(path):
            lines = _numbers(source.open_tensors(path))  # said of files that are no model we know, too
        found = checkpoint.open_model(path)
        sizes = ", ".join(f"{name}={value}" for name, value in configs.to_json(found.cfg).items())
        lines = [f"model: {found.layout.model}", f"layout: {found.layout.name}", *_numbers(found.tensors), f"sizes: {sizes}"]
        checkpoint.check(found)
    except InputError as e:
        return [*lines, f"problem: {e}"], False
    return [*lines, "complete: every key is there, has the shape its configuration asks for, and is used once"], True


def _numbers(arrays: Mapping[str, np.ndarray]) -> list[str]:
    count, size = sum(a.size for a in arrays.values()), sum(a.size * a.itemsize for a in arrays.values())
    kinds = ", ".join(f"{n} {dtype}" for dtype, n in Counter(str(a.dtype) for a in arrays.values()).most_common())
    return [f"tensors: {len(arrays)} ({kinds})", f"parameters: {count:,} ({size / 2**20:,.1f} MiB)"]
