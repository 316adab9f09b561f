"""What a file or folder holds, whether it is whole, and how two of them differ."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infu_jax import checkpoint, runs
from infu_jax import config as configs
from infu_jax.convert import source
from infu_jax.errors import InputError
from infu_jax.storage import HostParam

# What sample.py needs from --base and from --infu. ArcFace may lie elsewhere.
BASE, INFU = ("flux", "autoencoder", "clip", "t5"), ("infusenet", "resampler")
TOKENIZERS = ("tokenizer", "tokenizer_2")


def parts(path: Path, *, ema: bool = True) -> dict[str, Path]:
    """The models under `path` by name, where it is a release folder or a training run; empty where it is one model.

    ema: of a run, the averaged weights, where it keeps them.
    """
    if runs.is_run(path):
        return runs.models(path, ema=ema)
    if path.is_file() or (path / "config.json").exists():
        return {}
    found = {model: next((path / place for place in places if (path / place).exists()), None) for model, places in source.PLACES.items()}
    return {model: place for model, place in found.items() if place is not None}


def absent(path: Path) -> list[str]:
    """What a release folder should have and has not; empty where `path` is one model or a training run."""
    found = {} if runs.is_run(path) else parts(path)
    wanted = [model for group in (BASE, INFU) if set(group) & set(found) for model in group]
    tokenizers = [name for name in TOKENIZERS if set(BASE) & set(found) and not (path / name).is_dir()]
    return [f"{model} ({' or '.join(source.PLACES[model])})" for model in wanted if model not in found] + tokenizers


def describe(path: Path, *, with_hash: bool = False) -> tuple[list[tuple[str, str]], bool]:
    """What there is to say of one model's file or folder, as (name, value), and whether it is whole and fits its configuration.

    with_hash: read all of it, for a SHA-256 of the parameters that is the same in every layout. Otherwise only headers are read.
    """
    rows: list[tuple[str, str]] = []
    try:
        if not checkpoint.is_ours(path):
            rows = _numbers(source.open_tensors(path))  # said of files that are no model we know, too
        found = checkpoint.open_model(path)
        sizes = ", ".join(f"{name}={value}" for name, value in configs.to_json(found.cfg).items())
        rows = [("model", found.layout.model), ("layout", found.layout.name), *_numbers(found.tensors), *_blocks(found.cfg), ("sizes", sizes)]
        rows.append(("full size", _full_size(found)))
        checkpoint.check(found)
        if with_hash:
            rows.append(("hash", hash_of(found)))
    except InputError as e:
        return [*rows, ("problem", str(e))], False
    return [*rows, ("complete", "every key is there, has the shape its configuration asks for, and is used once")], True


def hash_of(found: source.Source) -> str:
    """SHA-256 of names, shapes, dtypes and numbers of our parameters."""
    digest = hashlib.sha256()
    for name, param in sorted(checkpoint.open_params(found).items()):
        digest.update(f"{name} {list(param.shape)} {param.dtype};".encode())
        for _, values in _by_layer(name, param):
            digest.update(np.ascontiguousarray(values).reshape(-1).view(np.uint8))
    return digest.hexdigest()


@dataclass(frozen=True)
class Difference:
    """Of one parameter, or of one layer of a stack: max |a - b|, and that over max |a|."""

    name: str
    largest: float
    relative: float


def differences(a: source.Source, b: source.Source) -> tuple[list[Difference], int]:
    """What differs between two checkpoints of one model, in whatever layouts, the relatively largest first; and how many
    there are to compare: layers of stacks, and other parameters.

    Raises InputError where they are of different models or sizes, and so have no differences that could be counted.
    """
    if a.layout.model != b.layout.model:
        raise InputError(f"{a.path} is {a.layout.model} and {b.path} is {b.layout.model}; only checkpoints of one model can be compared")
    if a.cfg != b.cfg:
        theirs = configs.to_json(b.cfg)
        fields = ", ".join(f"{name} {value} and {theirs[name]}" for name, value in configs.to_json(a.cfg).items() if value != theirs[name])
        raise InputError(f"{a.path} and {b.path} are of different sizes: {fields}")
    ours, others, found, count = checkpoint.open_params(a), checkpoint.open_params(b), [], 0
    for name, param in sorted(ours.items()):
        for (layer, x), (_, y) in zip(_by_layer(name, param), _by_layer(name, others[name]), strict=True):
            count += 1
            x, y = x.astype(np.float32), y.astype(np.float32)
            if x.size and not np.array_equal(x, y, equal_nan=True):
                largest, scale = float(np.abs(x - y).max()), float(np.abs(x).max())
                found.append(Difference(name if layer is None else f"{name}[{layer}]", largest, largest / scale if scale else math.inf))
    return sorted(found, key=lambda d: -d.relative if d.relative == d.relative else -math.inf), count


def _by_layer(name: str, param: HostParam) -> Iterator[tuple[int | None, np.ndarray]]:
    """Stacks of blocks layer by layer, all else whole."""
    whole = tuple((0, n) for n in param.shape)
    if not re.match(r"(\w+_)?blocks\.|(double|single)_out\.", name):
        yield None, param.read(whole)
    else:
        for n in range(param.shape[0]):
            yield n, param.read(((n, n + 1), *whole[1:]))


def _blocks(cfg: Any) -> list[tuple[str, str]]:
    if not isinstance(cfg, configs.FluxConfig):
        return []
    return [("blocks", f"{cfg.depth} double, {cfg.depth_single_blocks} single"), ("guidance", "embedded" if cfg.guidance_embed else "none")]


def _full_size(found: source.Source) -> str:
    """Whether it is of the released size."""
    released, name = type(found.cfg)(), found.layout.model
    if isinstance(found.cfg, configs.FluxConfig):
        released = dataclasses.replace(released, guidance_embed=found.cfg.guidance_embed)
        name = "InfuseNet" if isinstance(found.cfg, configs.InfuseNetConfig) else "FLUX.1-dev" if found.cfg.guidance_embed else "FLUX.1-schnell"
    theirs = configs.to_json(released)
    other = [f"{field} {value} ({theirs[field]})" for field, value in configs.to_json(found.cfg).items() if value != theirs[field]]
    return f"no, released is another: {', '.join(other)}" if other else f"yes, as the released {name}"


def _numbers(arrays: Mapping[str, np.ndarray]) -> list[tuple[str, str]]:
    count, size = sum(a.size for a in arrays.values()), sum(a.size * a.itemsize for a in arrays.values())
    kinds = ", ".join(f"{n} {dtype}" for dtype, n in Counter(str(a.dtype) for a in arrays.values()).most_common())
    return [("tensors", f"{len(arrays)} ({kinds})"), ("parameters", f"{count:,} ({size / 2**20:,.1f} MiB)")]
