"""InfuseNet files: the release's `InfuseNetModel/` folder, a diffusers `FluxControlNetModel`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from infu_jax.config import InfuseNetConfig
from infu_jax.convert.errors import ConversionError
from infu_jax.convert.flux import diffusers_config, diffusers_sizes, diffusers_trunk
from infu_jax.convert.layout import Layout
from infu_jax.convert.rules import Rule, linear


def _rules(cfg: InfuseNetConfig) -> list[Rule]:
    return [
        *diffusers_trunk(cfg.guidance_embed),
        *linear("control_in", "controlnet_x_embedder"),
        *linear("double_out", "controlnet_blocks.{i}"),
        *linear("single_out", "controlnet_single_blocks.{i}"),
    ]


def _from_config(config: Mapping[str, Any]) -> InfuseNetConfig:
    for name in ("num_mode", "conditioning_embedding_channels"):
        if config.get(name) is not None:
            raise ConversionError(f"config.json has {name} {config[name]}; InfuseNet has none (this is another kind of ControlNet)")
    return InfuseNetConfig(**diffusers_sizes(config))


LAYOUTS = (
    Layout(
        model="infusenet",
        name="diffusers",
        signature=("controlnet_x_embedder.weight", "controlnet_blocks.0.weight"),
        rules=_rules,
        from_config=_from_config,
        to_config=lambda cfg: {"_class_name": "FluxControlNetModel", **diffusers_config(cfg), "num_mode": None},
    ),
)
