"""CLIP text encoder files: the `text_encoder/` folder of FLUX.1, transformers' `CLIPTextModel`.

The keys of released files begin with `text_model.`; transformers 5 saves the same tensors without it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from infu_jax.config import CLIPTextConfig
from infu_jax.convert.errors import ConversionError
from infu_jax.convert.layout import Layout
from infu_jax.convert.rules import linear, norm, same, under

BLOCK = [
    *norm("attn_norm", "layer_norm1"),
    *linear("qkv", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    *linear("attn_out", "self_attn.out_proj", join="in"),
    *norm("mlp_norm", "layer_norm2"),
    *linear("mlp_in", "mlp.fc1"),
    *linear("mlp_out", "mlp.fc2"),
]
MODEL = [
    *same("token_embedding.table", "embeddings.token_embedding.weight"),
    *same("position_embedding.table", "embeddings.position_embedding.weight"),
    *under("blocks.", "encoder.layers.{i}.", BLOCK),
    *norm("final_norm", "final_layer_norm"),
]

_SIZES = {  # theirs: ours
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "max_position_embeddings": "max_positions",
}
LEGACY_EOS = 2


def _from_config(config: Mapping[str, Any]) -> CLIPTextConfig:
    """config.json of a `CLIPTextModel`.

    Files written before transformers 4.31, FLUX.1's among them, state an end-of-text id of 2, which is wrong: their model
    takes the largest id of a prompt instead, and in CLIP's vocabularies end-of-text is the last entry.
    """
    for name, expected in (("model_type", "clip_text_model"), ("hidden_act", "quick_gelu")):
        if config.get(name, expected) != expected:
            raise ConversionError(f"config.json has {name} {config[name]!r}, expected {expected!r}: only CLIP-L's kind of text encoder is supported")
    missing = [name for name in _SIZES if name not in config]
    if missing:
        raise ConversionError(f"config.json lacks {', '.join(missing)}: it is not that of a CLIP text encoder (FLUX.1's lies in text_encoder/)")
    eos = config.get("eos_token_id", CLIPTextConfig.eos_token_id)
    return CLIPTextConfig(
        **{ours: config[theirs] for theirs, ours in _SIZES.items()},
        eos_token_id=config["vocab_size"] - 1 if eos == LEGACY_EOS else eos,
        layer_norm_eps=config.get("layer_norm_eps", CLIPTextConfig.layer_norm_eps),
    )


def _to_config(cfg: CLIPTextConfig) -> dict[str, Any]:
    if cfg.eos_token_id == LEGACY_EOS:
        raise ConversionError(f"end-of-text id {LEGACY_EOS} cannot be written: in a config.json it means the largest id of the prompt")
    return {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        **{theirs: getattr(cfg, ours) for theirs, ours in _SIZES.items()},
        "bos_token_id": 0,  # this and the next as in FLUX.1's file; nothing reads them
        "pad_token_id": 1,
        "eos_token_id": cfg.eos_token_id,
        "layer_norm_eps": cfg.layer_norm_eps,
        "hidden_act": "quick_gelu",
    }


def _layout(name: str, prefix: str) -> Layout:
    return Layout(
        model="clip",
        name=name,
        signature=(f"{prefix}embeddings.token_embedding.weight", f"{prefix}embeddings.position_embedding.weight", f"{prefix}final_layer_norm.weight"),
        rules=lambda cfg: under("", prefix, MODEL),
        from_config=_from_config,
        to_config=_to_config,
        ignore=(re.escape(f"{prefix}embeddings.position_ids"),),  # 0, 1, 2, ... in older files
    )


LAYOUTS = (_layout("transformers", "text_model."), _layout("transformers5", ""))
