"""T5 v1.1 encoder files: the `text_encoder_2/` folder of FLUX.1, transformers' `T5EncoderModel`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from infu_jax.config import T5Config
from infu_jax.convert.errors import ConversionError
from infu_jax.convert.layout import Layout
from infu_jax.convert.rules import Rule, linear, norm, same, under

_ATTENTION, _MLP = "layer.0.SelfAttention", "layer.1.DenseReluDense"
_BLOCK = [
    *norm("attn_norm", "layer.0.layer_norm", bias=False),
    *linear("qkv", (f"{_ATTENTION}.q", f"{_ATTENTION}.k", f"{_ATTENTION}.v"), bias=False),
    *linear("attn_out", f"{_ATTENTION}.o", bias=False, join="in"),
    *norm("mlp_norm", "layer.1.layer_norm", bias=False),
    *linear("mlp_in", (f"{_MLP}.wi_0", f"{_MLP}.wi_1"), bias=False),
    *linear("mlp_out", f"{_MLP}.wo", bias=False),
]


def _rules(cfg: T5Config) -> list[Rule]:
    return [
        *same("embedding.table", "shared.weight"),
        # Block 0 holds the one table that every block uses.
        *same("relative_bias.table", f"encoder.block.0.{_ATTENTION}.relative_attention_bias.weight"),
        *under("blocks.", "encoder.block.{i}.", _BLOCK),
        *norm("final_norm", "encoder.final_layer_norm", bias=False),
    ]


_SIZES = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads", "relative_attention_num_buckets")


def _from_config(config: Mapping[str, Any]) -> T5Config:
    # UMT5 and the like have a bias table per block; T5 v1.0 has a ReLU MLP of two layers.
    for name, expected in (("model_type", "t5"), ("feed_forward_proj", "gated-gelu")):
        if config.get(name) != expected:
            raise ConversionError(f"config.json has {name} {config.get(name)!r}, expected {expected!r}: only the T5 v1.1 encoder is supported")
    missing = [name for name in (*_SIZES, "layer_norm_epsilon") if name not in config]
    if missing:
        raise ConversionError(f"config.json lacks {', '.join(missing)}: it is not that of a T5 encoder (FLUX.1's lies in text_encoder_2/)")
    return T5Config(
        **{name: config[name] for name in _SIZES},
        # The first T5 v1.1 files do not state it; 128 is what their code had.
        relative_attention_max_distance=config.get("relative_attention_max_distance", 128),
        layer_norm_eps=config["layer_norm_epsilon"],
    )


def _to_config(cfg: T5Config) -> dict[str, Any]:
    return {
        "architectures": ["T5EncoderModel"],
        "model_type": "t5",
        **{name: getattr(cfg, name) for name in _SIZES},
        "relative_attention_max_distance": cfg.relative_attention_max_distance,
        "layer_norm_epsilon": cfg.layer_norm_eps,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        "is_encoder_decoder": True,  # as in FLUX.1's file
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
        "eos_token_id": 1,
    }


LAYOUTS = (
    Layout(
        model="t5",
        name="transformers",
        signature=("shared.weight", f"encoder.block.0.{_ATTENTION}.relative_attention_bias.weight", "encoder.final_layer_norm.weight"),
        rules=_rules,
        from_config=_from_config,
        to_config=_to_config,
        ignore=(r"encoder\.embed_tokens\.weight",),  # shared.weight again
    ),
)
