"""Files of CLIP's two towers: transformers' `CLIPModel`, e.g. `openai/clip-vit-large-patch14` or PickScore."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from infu_jax.config import CLIPModelConfig
from infu_jax.convert import clip
from infu_jax.convert.errors import ConversionError
from infu_jax.convert.layout import Layout
from infu_jax.convert.rules import Rule, conv, linear, norm, same, under


def _rules(cfg: CLIPModelConfig) -> list[Rule]:
    return [
        *under("text.", "text_model.", clip.MODEL),
        *under(
            "vision.",
            "vision_model.",
            [
                *conv("patches", "embeddings.patch_embedding", bias=False),
                *same("class_embedding", "embeddings.class_embedding"),
                *same("position_embedding.table", "embeddings.position_embedding.weight"),
                *norm("pre_norm", "pre_layrnorm"),  # spelled so in the files
                *under("blocks.", "encoder.layers.{i}.", clip.BLOCK),
                *norm("post_norm", "post_layernorm"),
            ],
        ),
        *linear("text_projection", "text_projection", bias=False),
        *linear("vision_projection", "visual_projection", bias=False),
        *same("logit_scale", "logit_scale"),
    ]


# Their name, ours, and what transformers takes where a file leaves it out (it saves only what differs).
_TEXT = (
    ("vocab_size", "text_vocab_size", 49_408),
    ("hidden_size", "text_hidden_size", 512),
    ("intermediate_size", "text_intermediate_size", 2048),
    ("num_hidden_layers", "text_num_layers", 12),
    ("num_attention_heads", "text_num_heads", 8),
    ("max_position_embeddings", "text_max_positions", 77),
    ("layer_norm_eps", "text_layer_norm_eps", 1e-5),
)
_VISION = (
    ("hidden_size", "vision_hidden_size", 768),
    ("intermediate_size", "vision_intermediate_size", 3072),
    ("num_hidden_layers", "vision_num_layers", 12),
    ("num_attention_heads", "vision_num_heads", 12),
    ("num_channels", "vision_channels", 3),
    ("image_size", "vision_image_size", 224),
    ("patch_size", "vision_patch_size", 32),
    ("layer_norm_eps", "vision_layer_norm_eps", 1e-5),
)
_GELU = {"quick_gelu": True, "gelu": False}


def _from_config(config: Mapping[str, Any]) -> CLIPModelConfig:
    if config.get("model_type") != "clip":
        raise ConversionError(f"config.json has model_type {config.get('model_type')!r}, expected 'clip': a folder of transformers' CLIPModel")
    text, vision = _section(config, "text_config"), _section(config, "vision_config")
    eos = text.get("eos_token_id", 49_407)
    vocab_size = text.get("vocab_size", 49_408)
    return CLIPModelConfig(
        **{ours: text.get(theirs, default) for theirs, ours, default in _TEXT},
        **{ours: vision.get(theirs, default) for theirs, ours, default in _VISION},
        text_quick_gelu=_quick(text, "text_config"),
        vision_quick_gelu=_quick(vision, "vision_config"),
        text_eos_token_id=vocab_size - 1 if eos == clip.LEGACY_EOS else eos,  # see clip.py
        projection_dim=config.get("projection_dim", 512),
    )


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Old files say it twice, and then transformers believes the second."""
    found = {**(config.get(name) or {}), **(config.get(f"{name}_dict") or {})}
    if not found:
        raise ConversionError(f"config.json has no {name}: it is not that of a CLIP of two towers (FLUX.1's text_encoder/ has one)")
    return found


def _quick(section: Mapping[str, Any], name: str) -> bool:
    act = section.get("hidden_act", "quick_gelu")
    if act not in _GELU:
        raise ConversionError(f"config.json has hidden_act {act!r} in {name}, expected one of {', '.join(_GELU)}")
    return _GELU[act]


def _to_config(cfg: CLIPModelConfig) -> dict[str, Any]:
    if cfg.text_eos_token_id == clip.LEGACY_EOS:
        raise ConversionError(f"end-of-text id {clip.LEGACY_EOS} cannot be written: in a config.json it means the largest id of the prompt")
    names = {quick: name for name, quick in _GELU.items()}
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": cfg.projection_dim,
        "text_config": {
            "model_type": "clip_text_model",
            **{theirs: getattr(cfg, ours) for theirs, ours, _ in _TEXT},
            "hidden_act": names[cfg.text_quick_gelu],
            "eos_token_id": cfg.text_eos_token_id,
            "projection_dim": cfg.projection_dim,
        },
        "vision_config": {
            "model_type": "clip_vision_model",
            **{theirs: getattr(cfg, ours) for theirs, ours, _ in _VISION},
            "hidden_act": names[cfg.vision_quick_gelu],
            "projection_dim": cfg.projection_dim,
        },
    }


LAYOUTS = (
    Layout(
        model="clip_model",
        name="transformers",
        signature=("text_model.final_layer_norm.weight", "vision_model.pre_layrnorm.weight", "visual_projection.weight", "logit_scale"),
        rules=_rules,
        from_config=_from_config,
        to_config=_to_config,
        ignore=(r"(text|vision)_model\.embeddings\.position_ids",),  # 0, 1, 2, ... in older files
    ),
)
