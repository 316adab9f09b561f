"""What a path holds: which model, in which layout, of which size, and its tensors, none of them read yet."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infu_jax.convert import arcface, autoencoder, clip, clip_model, flux, infusenet, resampler, safetensors, t5, torch_pickle
from infu_jax.convert.errors import ConversionError, shown
from infu_jax.convert.layout import Layout

# CLIP's two towers come before its text encoder, of which they have every key.
_TABLES = (flux, infusenet, autoencoder, t5, clip_model, clip, resampler, arcface)
LAYOUTS: tuple[Layout, ...] = tuple(layout for table in _TABLES for layout in table.LAYOUTS)

# Where a release folder keeps each model: diffusers' FLUX.1 folder, BFL's files in its root, InfiniteYou's
# `infu_flux_v1.0/*` folder, and our own converted copies of them, which keep the names. CLIP's two towers, which only
# the evaluation needs, have a folder of their own.
PLACES: Mapping[str, tuple[str, ...]] = {
    "flux": ("transformer", "flux1-dev.safetensors", "flux1-schnell.safetensors"),
    "autoencoder": ("vae", "ae.safetensors"),
    "clip": ("text_encoder",),
    "t5": ("text_encoder_2",),
    "infusenet": ("InfuseNetModel",),
    "resampler": ("image_proj_model.bin", "image_proj_model"),
    "arcface": ("recognition_arcface_ir_se50.pth", "recognition_arcface_ir_se50"),
}
_STEMS = ("diffusion_pytorch_model", "model")
_PICKLES = (".bin", ".pth", ".pt", ".ckpt")


@dataclass(frozen=True)
class Source:
    """A PyTorch checkpoint found on disk. `cfg` is our config; `tensors` are memory-mapped."""

    path: Path
    layout: Layout
    cfg: Any
    tensors: Mapping[str, np.ndarray]


def find(path: str | os.PathLike, model: str) -> Path:
    """The file or folder of one model: `path` itself, or its usual place inside a release folder `path`."""
    path = Path(path)
    if not path.exists():
        raise ConversionError(f"{path} does not exist; give the path of a {model} checkpoint or of the folder that was downloaded")
    if path.is_file() or (path / "config.json").exists():
        return path
    places = PLACES.get(model, ())
    for place in places:
        if (path / place).exists():
            return path / place
    raise ConversionError(f"{path} holds no {model}: expected {', or one of '.join(filter(None, ('config.json', ', '.join(places))))}; found {_listing(path)}")


def read_config(folder: Path) -> dict[str, Any]:
    """A folder's config.json."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConversionError(f"{folder} has no config.json; found {_listing(folder)}") from None
    except (ValueError, RecursionError) as e:
        raise ConversionError(f"{folder / 'config.json'} is not JSON: {e}") from None
    if not isinstance(config, dict):
        raise ConversionError(f"{folder / 'config.json'} holds {type(config).__name__}, expected an object")
    return config


def open_source(path: str | os.PathLike, model: str | None = None) -> Source:
    """Open a PyTorch file or folder. With `model` given, anything else than that model is an error."""
    path = Path(path)
    tensors = open_tensors(path)
    layout = identify(tensors, path)
    if model not in (None, layout.model):
        raise ConversionError(f"{path} is a checkpoint of {layout.model} ({layout.name} layout); {model} is needed here")
    shapes = {key: array.shape for key, array in tensors.items()}
    folder = path if path.is_dir() else path.parent
    try:
        cfg = layout.from_config(read_config(folder)) if layout.from_config else layout.from_shapes(shapes)
    except KeyError as e:
        what = f"{folder / 'config.json'} lacks the field" if layout.from_config else f"{path} lacks the tensor"
        raise ConversionError(f"{what} {e}, which every {layout.model} checkpoint in {layout.name} layout has") from None
    except ConversionError as e:
        raise ConversionError(f"{path}: {e}") from None
    except (TypeError, ValueError, ArithmeticError, AttributeError, IndexError) as e:
        raise ConversionError(f"{path}: its configuration makes no sense: {e}") from None
    check_values(cfg, path)
    return Source(path, layout, cfg, tensors)


def check_values(cfg, path: Path) -> None:
    """Raise unless sizes are whole numbers of 1 or more (numbers of blocks and token ids may be 0), and factors finite numbers."""
    for field in dataclasses.fields(cfg):
        value, least = getattr(cfg, field.name), 0 if "depth" in field.name or field.name.endswith("_id") else 1
        if not _fits(value, field.default, least):
            raise ConversionError(f"{path}: its configuration makes no sense: {field.name} is {value!r}, something like {field.default!r} is expected")


def _fits(value: Any, default: Any, least: int) -> bool:
    if isinstance(default, tuple):
        return isinstance(value, tuple) and len(value) > 0 and all(_fits(v, default[0], least) for v in value)
    if isinstance(default, float):
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is type(default) and (isinstance(value, bool) or value >= least)


def open_tensors(path: Path) -> Mapping[str, np.ndarray]:
    """All tensors of a file, a shard index, or a folder, whatever they are."""
    if not path.exists():
        raise ConversionError(f"{path} does not exist")
    if path.is_dir():
        for stem in _STEMS:
            if any(path.glob(f"{stem}*.safetensors*")):
                return safetensors.open_folder(path, stem)
        expected = " or ".join(f"{stem}.safetensors[.index.json]" for stem in _STEMS)
        raise ConversionError(f"{path} is not a checkpoint folder: expected {expected}; found {_listing(path)}")
    if path.name.endswith(".safetensors.index.json"):
        return safetensors.open_sharded(path)
    if path.suffix == ".safetensors":
        return safetensors.open_file(path)
    if path.suffix in _PICKLES:
        return _unwrap(torch_pickle.open_file(path), path)
    raise ConversionError(f"{path} is no checkpoint by its name; expected .safetensors, .safetensors.index.json, {', '.join(_PICKLES)} or a folder")


def identify(tensors: Mapping[str, np.ndarray], path: Path) -> Layout:
    """The layout whose signature keys are all there."""
    for layout in LAYOUTS:
        if all(key in tensors for key in layout.signature):
            return layout
    known = ", ".join(sorted({f"{layout.model} ({layout.name})" for layout in LAYOUTS}))
    some = ", ".join(map(shown, sorted(tensors)[:4]))
    raise ConversionError(f"{path} is none of the known models: its {len(tensors)} keys begin {some}; known are {known}")


def _unwrap(content: Any, path: Path) -> Mapping[str, np.ndarray]:
    """A state dict out of wrappers such as `{"image_proj": state_dict}`."""
    while isinstance(content, dict) and len(content) == 1 and isinstance(next(iter(content.values())), dict):
        [content] = content.values()
    if not isinstance(content, dict) or not content or not all(isinstance(v, np.ndarray) for v in content.values()):
        raise ConversionError(f"{path} holds no state dict: expected names and tensors, found {_kind(content)}")
    return content


def _kind(content: Any) -> str:
    if not isinstance(content, dict):
        return type(content).__name__
    return "a dict of " + ", ".join(f"{shown(str(k))}: {type(v).__name__}" for k, v in list(content.items())[:4])


def _listing(folder: Path) -> str:
    names = sorted(p.name for p in folder.iterdir())
    return ", ".join(names[:8]) + (f", ... ({len(names)} in all)" if len(names) > 8 else "") if names else "nothing"
