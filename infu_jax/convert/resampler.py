"""The projection network's file layout: InfiniteYou's `image_proj_model.bin` (the state dict under its key `image_proj`)."""

from __future__ import annotations

import re
from collections.abc import Mapping

from infu_jax.config import ResamplerConfig
from infu_jax.convert.errors import ConversionError
from infu_jax.convert.layout import Layout
from infu_jax.convert.rules import Rule, Shape, linear, norm, same


def _rules(cfg: ResamplerConfig) -> list[Rule]:
    return [
        *same("latents", "latents"),
        *linear("proj_in", "proj_in"),
        *linear("proj_out", "proj_out"),
        *norm("norm_out", "norm_out"),
        *norm("blocks.attn.norm1", "layers.{i}.0.norm1"),
        *norm("blocks.attn.norm2", "layers.{i}.0.norm2"),
        *linear("blocks.attn.q", "layers.{i}.0.to_q", bias=False),
        *linear("blocks.attn.kv", "layers.{i}.0.to_kv", bias=False),
        *linear("blocks.attn.proj", "layers.{i}.0.to_out", bias=False, join="in"),
        *norm("blocks.norm", "layers.{i}.1.0"),
        *linear("blocks.mlp_in", "layers.{i}.1.1", bias=False),
        *linear("blocks.mlp_out", "layers.{i}.1.3", bias=False),
    ]


def _from_shapes(shapes: Mapping[str, Shape]) -> ResamplerConfig:
    """Such files have no config.json. Shapes show only heads times head size: the head size is taken to be 64, as in IP-Adapter."""
    dim, embedding_dim = shapes["proj_in.weight"]
    rows, hidden = shapes["layers.0.0.to_q.weight"][0], shapes["layers.0.1.1.weight"][0]
    dim_head = ResamplerConfig.dim_head
    if rows % dim_head:
        raise ConversionError(f"layers.0.0.to_q.weight has {rows} rows; expected a multiple of the head size, {dim_head}")
    if hidden % dim:
        raise ConversionError(f"layers.0.1.1.weight has {hidden} rows; expected a multiple of the width, {dim}")
    return ResamplerConfig(
        dim=dim,
        depth=sum(re.fullmatch(r"layers\.\d+\.0\.to_q\.weight", key) is not None for key in shapes),
        dim_head=dim_head,
        heads=rows // dim_head,
        num_queries=shapes["latents"][1],
        embedding_dim=embedding_dim,
        output_dim=shapes["proj_out.weight"][0],
        ff_mult=hidden // dim,
    )


LAYOUTS = (
    Layout(
        model="resampler",
        name="infiniteyou",
        signature=("latents", "proj_in.weight", "proj_out.weight", "layers.0.0.to_q.weight", "layers.0.0.to_kv.weight", "layers.0.1.1.weight"),
        rules=_rules,
        from_shapes=_from_shapes,
    ),
)
