"""LoRA files for FLUX: which layers a file changes, and by what.

A LoRA adds scale * alpha / rank * up @ down to some weight matrices. Files name those matrices in their own ways; here a name is
looked up among the names of diffusers' and Black Forest Labs' layouts. A key that leads nowhere is an error, never dropped in silence.

Read are: kohya's sd-scripts (`lora_unet_*`, `lora_te*_*`, with `.alpha`), OneTrainer (`lora_transformer_*`), XLabs
(`*.processor.*`), diffusers and PEFT (`transformer.*`, `base_model.model.*`, with `.alpha` keys, `lora_adapter_metadata` in the header or
adapter_config.json), and ComfyUI's `diffusion_model.*` and `text_encoders.*` in the place of any of these prefixes.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infu_jax.convert import numbers, rules, safetensors, source
from infu_jax.convert.errors import ConversionError, shown

Plans = Mapping[tuple[str, str], rules.Plan]  # by model and name of the layout


@dataclass(frozen=True)
class Change:
    """What a file adds to one weight: scale * up @ down, with down (rank, inputs) and up (outputs, rank) in float32.

    key: the weight's name in the layout `layout` of `model`; name: the file's own for the layer.
    """

    model: str
    layout: str
    key: str
    name: str
    down: np.ndarray
    up: np.ndarray
    scale: float


def read(path: str | Path, plans: Plans) -> list[Change]:
    """All that a file changes. `plans` are those of the models at hand, in every layout whose names a file may use.

    Raises:
        ConversionError: a key matches nothing, a shape does not fit, a part is missing, or numbers are not finite.
    """
    path = Path(path)
    tensors, settings = _open(path)
    return [
        Change(model, layout, key, found.name, *_weights(found, plans[model, layout].their_shapes[key], settings, f"{path}: {found.name}"))
        for (model, layout, key), found in _match(tensors, plans, path).items()
    ]


@dataclass
class _Found:
    """The tensors of one changed layer. `name` is the file's own."""

    name: str
    down: np.ndarray | None = None
    up: np.ndarray | None = None
    alpha: np.ndarray | None = None
    adapter: str | None = None


# (pattern, part): the module's name is group 1, PEFT's name of the adapter group 2.
_PARTS = (
    (re.compile(r"(.+)\.(?:lora_down|lora_A|lora\.down|lora_linear_layer\.down)(?:\.(\w+))?\.weight"), "down"),
    (re.compile(r"(.+)\.(?:lora_up|lora_B|lora\.up|lora_linear_layer\.up)(?:\.(\w+))?\.weight"), "up"),
    (re.compile(r"(.+\.processor\.\w+)()\.down\.weight"), "down"),
    (re.compile(r"(.+\.processor\.\w+)()\.up\.weight"), "up"),
    (re.compile(r"(.+?)(?:\.lora_A|\.lora_B)?()\.alpha"), "alpha"),
)
# Prefixes of dotted names, and of names with underscores for dots, for each model.
_DOTTED = {
    "flux": ("", "transformer.", "diffusion_model.", "model.diffusion_model.", "base_model.model.", "base_model.model.transformer.", "unet."),
    "clip": ("text_encoder.", "text_encoders.clip_l.transformer.", "clip_l.transformer."),
    "t5": ("text_encoder_2.", "text_encoders.t5xxl.transformer.", "t5xxl.transformer."),
}
_UNDERSCORED = {
    "flux": ("lora_unet_", "lora_transformer_"),
    "clip": ("lora_te1_", "lora_te_", "lora_text_encoder_"),
    "t5": ("lora_te3_", "lora_te2_", "lora_text_encoder_2_"),
}
# XLabs names the processors of BFL's blocks. The single block's qkv is the first part of linear1.
_XLABS = {
    "double": {"qkv_lora1": "img_attn.qkv", "qkv_lora2": "txt_attn.qkv", "proj_lora1": "img_attn.proj", "proj_lora2": "txt_attn.proj"},
    "single": {"qkv_lora": "linear1", "proj_lora": "linear2"},
}
# What other methods write, by a part of their keys.
_FOREIGN = {
    "lokr_": "LoKr",
    "hada_": "LoHa",
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "oft_": "OFT",
    "ia3_": "IA3",
    "query_norm": "a FLUX control LoRA",
}
_FOREIGN |= {".diff": "full differences", "lora_B.bias": "LoRA with biases"}


def _open(path: Path) -> tuple[Mapping[str, np.ndarray], dict[str, Any]]:
    """The tensors of a file or of PEFT's folder, and the settings that PEFT or diffusers keep beside them."""
    file = path / "adapter_model.safetensors" if path.is_dir() and not (path / "pytorch_lora_weights.safetensors").exists() else path
    file = path / "pytorch_lora_weights.safetensors" if file.is_dir() else file
    tensors = source.open_tensors(file)
    if file.name == "adapter_model.safetensors" and (file.parent / "adapter_config.json").exists():
        return tensors, _json((file.parent / "adapter_config.json").read_bytes(), file.parent / "adapter_config.json")
    stored = safetensors.read_metadata(file).get("lora_adapter_metadata") if file.suffix == ".safetensors" else None
    if stored is None:
        return tensors, {}
    settings = _json(stored, file)
    if others := {k.partition(".")[0] for k in settings if not k.startswith("transformer.")}:
        raise ConversionError(f"{file}: its metadata are about {', '.join(map(shown, sorted(others)))} besides transformer; only the transformer's are read")
    return tensors, {k.removeprefix("transformer."): v for k, v in settings.items()}


def _json(text: str | bytes, path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise ConversionError(f"{path}: its LoRA settings are not JSON: {e}") from None
    if not isinstance(settings, dict) or settings.get("use_dora"):
        raise ConversionError(f"{path}: {'DoRA is not supported' if isinstance(settings, dict) else 'its LoRA settings are not an object'}")
    return settings


def _match(tensors: Mapping[str, np.ndarray], plans: Plans, path: Path) -> dict[tuple[str, str, str], _Found]:
    """The changed layers by (model, layout, weight's name)."""
    names = _names(plans)
    matches: dict[tuple[str, str, str], _Found] = {}
    unmatched, counted = [], Counter()
    for key, tensor in tensors.items():
        module, adapter, part = next(((m[1], m[2], part) for pattern, part in _PARTS if (m := pattern.fullmatch(key))), (None, None, None))
        where = names.get(module)
        if where is None:
            unmatched.append(key)
            continue
        found = matches.setdefault(where, _Found(module))
        if getattr(found, part) is not None or found.name != module:
            raise ConversionError(f"{path}: {module} and {found.name} change the same layer twice ({key}); merge them into one file for each")
        setattr(found, part, tensor)
        counted[where[:2]] += 1
    if unmatched or not matches:
        said = ", ".join(f"{n} keys of {model} ({layout} names)" for (model, layout), n in sorted(counted.items())) or "nothing"
        foreign = sorted({name for part, name in _FOREIGN.items() if any(part in key for key in unmatched)})
        text = [key for key in unmatched if key.startswith(("lora_te", "text_encoder", "clip_l", "t5xxl"))]
        hint = f"; it seems to hold {', '.join(foreign)}, which is not supported" if foreign else ""
        if text and not any(model in ("clip", "t5") for model, _ in plans):
            hint += f"; {len(text)} of them are for text encoders, which are not part of this checkpoint"
        raise ConversionError(f"{path}: matched {said}; {len(unmatched)} of {len(tensors)} keys match no layer: {_some(sorted(map(shown, unmatched)))}{hint}")
    return matches


def _names(plans: Plans) -> dict[str, tuple[str, str, str]]:
    """Every name that a file may give a weight matrix -> (model, layout, the weight's name)."""
    names: dict[str, tuple[str, str, str]] = {}
    for (model, layout), plan in plans.items():
        for key, pieces in plan.by_theirs.items():
            if pieces[0].kind != "linear":
                continue
            module, where = key.removesuffix(".weight"), (model, layout, key)
            forms = [prefix + module for prefix in _DOTTED[model]] + [prefix + module.replace(".", "_") for prefix in _UNDERSCORED[model]]
            if layout == "bfl" and (block := re.fullmatch(r"(double|single)_blocks\.(\d+)\.(.+)", module)):
                processors = [name for name, target in _XLABS[block[1]].items() if target == block[3]]
                forms += [f"{prefix}{block[1]}_blocks.{block[2]}.processor.{name}" for prefix in _DOTTED[model] for name in processors]
            for form in forms:
                names.setdefault(form, where)
    return names


def _weights(found: _Found, shape: rules.Shape, settings: Mapping[str, Any], where: str) -> tuple[np.ndarray, np.ndarray, float]:
    """(rank, inputs) and (outputs, rank) of a layer whose weight has this shape, in float32, and alpha / rank."""
    if found.down is None or found.up is None:
        raise ConversionError(f"{where} has {'up' if found.down is None else 'down'} without {'down' if found.down is None else 'up'}; the file is incomplete")
    # Some trainers store linear layers as 1x1 convolutions.
    down, up = (x.reshape(x.shape[:2]) if x.ndim == 4 and x.shape[2:] == (1, 1) else x for x in (found.down, found.up))
    outputs, inputs = shape
    if found.name.endswith("processor.qkv_lora") and up.ndim == 2 and up.shape[0] == 3 * inputs:
        up = np.concatenate([up, np.zeros((outputs - len(up), up.shape[1]), up.dtype)])
    if down.ndim != 2 or up.ndim != 2 or down.shape[0] != up.shape[1] or (up.shape[0], down.shape[1]) != (outputs, inputs):
        raise ConversionError(f"{where} is {list(up.shape)} x {list(down.shape)}; the layer is {list(shape)} (outputs, inputs): this LoRA is for another model")
    rank = down.shape[0]
    down, up = np.ascontiguousarray(down, np.float32), np.ascontiguousarray(up, np.float32)
    if not numbers.all_finite(down) or not numbers.all_finite(up):
        raise ConversionError(f"{where}: not all numbers are finite (NaN or infinity); the file is damaged or its training failed")
    return down, up, _alpha(found, rank, settings, where)


def _alpha(found: _Found, rank: int, settings: Mapping[str, Any], where: str) -> float:
    """alpha / rank: from the layer's own key, else from PEFT's settings, else 1."""
    if not rank:
        return 0.0
    try:
        if found.alpha is not None:
            alpha = float(np.asarray(found.alpha, np.float32).reshape(()))
        elif "lora_alpha" in settings:
            patterns, module = settings.get("alpha_pattern") or {}, found.name.removeprefix("base_model.model.").removeprefix("transformer.")
            alpha = float(next((v for k, v in patterns.items() if re.fullmatch(rf"(?:.*\.)?(?:{k})", module)), settings["lora_alpha"]))
            if settings.get("use_rslora"):
                return alpha / math.sqrt(rank)
        else:
            return 1.0
    except (ValueError, TypeError, AttributeError, OverflowError, re.error) as e:
        raise ConversionError(f"{where}: its alpha is not a number ({e})") from None
    if not math.isfinite(alpha):
        raise ConversionError(f"{where}: its alpha is {alpha}")
    return alpha / rank


def _some(items: Sequence[str], most: int = 6) -> str:
    return ", ".join(items[:most]) + (f", ... ({len(items) - most} more)" if len(items) > most else "")
