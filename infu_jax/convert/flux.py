"""FLUX.1 transformer files: diffusers' `transformer/` folder and BFL's `flux1-*.safetensors`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from infu_jax.config import FluxConfig
from infu_jax.convert.errors import ConversionError
from infu_jax.convert.layout import Layout
from infu_jax.convert.rules import Rule, Shape, linear, norm, under


def diffusers_trunk(guidance_embed: bool) -> list[Rule]:
    """What `FluxTransformer2DModel` and `FluxControlNetModel` share: embedders and blocks."""
    return [
        *linear("img_in", "x_embedder"),
        *linear("txt_in", "context_embedder"),
        *_embedder("time_in", "time_text_embed.timestep_embedder", "linear_1", "linear_2"),
        *_embedder("vector_in", "time_text_embed.text_embedder", "linear_1", "linear_2"),
        *(_embedder("guidance_in", "time_text_embed.guidance_embedder", "linear_1", "linear_2") if guidance_embed else ()),
        *under("double_blocks.", "transformer_blocks.{i}.", _DIFFUSERS_DOUBLE),
        *under("single_blocks.", "single_transformer_blocks.{i}.", _DIFFUSERS_SINGLE),
    ]


def diffusers_sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of our FluxConfig that a diffusers config.json of either class states."""
    if config.get("patch_size", 1) != 1:
        raise ConversionError(f"config.json has patch_size {config['patch_size']}; only 1 is supported (FLUX.1 packs patches in the pipeline)")
    heads, head_dim = config["num_attention_heads"], config["attention_head_dim"]
    return dict(
        in_channels=config["in_channels"],
        out_channels=config.get("out_channels") or config["in_channels"],
        vec_in_dim=config["pooled_projection_dim"],
        context_in_dim=config["joint_attention_dim"],
        hidden_size=heads * head_dim,
        num_heads=heads,
        depth=config["num_layers"],
        depth_single_blocks=config["num_single_layers"],
        axes_dim=tuple(config.get("axes_dims_rope", (16, 56, 56))),
        guidance_embed=config["guidance_embeds"],
    )


def diffusers_config(cfg: FluxConfig) -> dict[str, Any]:
    """The inverse of `diffusers_sizes`."""
    return dict(
        patch_size=1,
        in_channels=cfg.in_channels,
        pooled_projection_dim=cfg.vec_in_dim,
        joint_attention_dim=cfg.context_in_dim,
        num_attention_heads=cfg.num_heads,
        attention_head_dim=cfg.head_dim,
        num_layers=cfg.depth,
        num_single_layers=cfg.depth_single_blocks,
        axes_dims_rope=list(cfg.axes_dim),
        guidance_embeds=cfg.guidance_embed,
    )


def _embedder(ours: str, theirs: str, first: str, second: str) -> list[Rule]:
    return linear(f"{ours}.in_layer", f"{theirs}.{first}") + linear(f"{ours}.out_layer", f"{theirs}.{second}")


_DIFFUSERS_DOUBLE = [
    *linear("img.mod", "norm1.linear"),
    *linear("txt.mod", "norm1_context.linear"),
    *linear("img.qkv", ("attn.to_q", "attn.to_k", "attn.to_v")),
    *linear("txt.qkv", ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")),
    *norm("img.q_norm", "attn.norm_q", bias=False),
    *norm("img.k_norm", "attn.norm_k", bias=False),
    *norm("txt.q_norm", "attn.norm_added_q", bias=False),
    *norm("txt.k_norm", "attn.norm_added_k", bias=False),
    *linear("img.attn_out", "attn.to_out.0", join="in"),
    *linear("txt.attn_out", "attn.to_add_out", join="in"),
    *linear("img.mlp_in", "ff.net.0.proj"),
    *linear("img.mlp_out", "ff.net.2"),
    *linear("txt.mlp_in", "ff_context.net.0.proj"),
    *linear("txt.mlp_out", "ff_context.net.2"),
]
_DIFFUSERS_SINGLE = [
    *linear("mod", "norm.linear"),
    *linear("qkv", ("attn.to_q", "attn.to_k", "attn.to_v")),
    *norm("q_norm", "attn.norm_q", bias=False),
    *norm("k_norm", "attn.norm_k", bias=False),
    *linear("mlp_in", "proj_mlp"),
    Rule(("attn_out.kernel", "mlp_out.kernel"), ("proj_out.weight",), join="in"),
    Rule(("mlp_out.bias",), ("proj_out.bias",), "vector"),
]


def _diffusers_rules(cfg: FluxConfig) -> list[Rule]:
    return [
        *diffusers_trunk(cfg.guidance_embed),
        *linear(("final_layer.mod[1]", "final_layer.mod[0]"), "norm_out.linear"),  # theirs: scale, then shift
        *linear("final_layer.linear", "proj_out"),
    ]


def _bfl_stream(side: str) -> list[Rule]:
    return [
        *linear(f"{side}.mod", f"{side}_mod.lin"),
        *linear(f"{side}.qkv", f"{side}_attn.qkv"),
        *norm(f"{side}.q_norm", f"{side}_attn.norm.query_norm", bias=False, scale_name="scale"),
        *norm(f"{side}.k_norm", f"{side}_attn.norm.key_norm", bias=False, scale_name="scale"),
        *linear(f"{side}.attn_out", f"{side}_attn.proj", join="in"),
        *linear(f"{side}.mlp_in", f"{side}_mlp.0"),
        *linear(f"{side}.mlp_out", f"{side}_mlp.2"),
    ]


_BFL_SINGLE = [
    *linear("mod", "modulation.lin"),
    *linear(("qkv", "mlp_in"), "linear1"),
    *norm("q_norm", "norm.query_norm", bias=False, scale_name="scale"),
    *norm("k_norm", "norm.key_norm", bias=False, scale_name="scale"),
    Rule(("attn_out.kernel", "mlp_out.kernel"), ("linear2.weight",), join="in"),
    Rule(("mlp_out.bias",), ("linear2.bias",), "vector"),
]


def _bfl_rules(cfg: FluxConfig) -> list[Rule]:
    embedders = ("time_in", "vector_in", "guidance_in") if cfg.guidance_embed else ("time_in", "vector_in")
    return [
        *linear("img_in", "img_in"),
        *linear("txt_in", "txt_in"),
        *(rule for name in embedders for rule in _embedder(name, name, "in_layer", "out_layer")),
        *under("double_blocks.", "double_blocks.{i}.", _bfl_stream("img") + _bfl_stream("txt")),
        *under("single_blocks.", "single_blocks.{i}.", _BFL_SINGLE),
        *linear("final_layer.mod", "final_layer.adaLN_modulation.1"),  # theirs: shift, then scale, as ours
        *linear("final_layer.linear", "final_layer.linear"),
    ]


def _bfl_config(shapes: Mapping[str, Shape]) -> FluxConfig:
    """Sizes from the tensors themselves. RoPE's split of the head size is FLUX.1's (1/8, 7/16, 7/16), in even numbers."""
    hidden, in_channels = shapes["img_in.weight"]
    head_dim = shapes["double_blocks.0.img_attn.norm.query_norm.scale"][0]
    side = head_dim * 7 // 32 * 2
    return FluxConfig(
        in_channels=in_channels,
        out_channels=shapes["final_layer.linear.weight"][0],
        vec_in_dim=shapes["vector_in.in_layer.weight"][1],
        context_in_dim=shapes["txt_in.weight"][1],
        hidden_size=hidden,
        mlp_ratio=shapes["double_blocks.0.img_mlp.0.weight"][0] / hidden,
        num_heads=hidden // head_dim,
        depth=_count(shapes, "double_blocks"),
        depth_single_blocks=_count(shapes, "single_blocks"),
        axes_dim=(head_dim - 2 * side, side, side),
        guidance_embed="guidance_in.in_layer.weight" in shapes,
    )


def _count(shapes: Mapping[str, Shape], prefix: str) -> int:
    return len({key.split(".")[1] for key in shapes if key.startswith(prefix + ".")})


LAYOUTS = (
    Layout(
        model="flux",
        name="diffusers",
        signature=("x_embedder.weight", "norm_out.linear.weight", "transformer_blocks.0.attn.add_q_proj.weight"),
        rules=_diffusers_rules,
        from_config=lambda config: FluxConfig(**diffusers_sizes(config)),
        to_config=lambda cfg: {"_class_name": "FluxTransformer2DModel", **diffusers_config(cfg)},
    ),
    Layout(
        model="flux",
        name="bfl",
        signature=("img_in.weight", "final_layer.adaLN_modulation.1.weight", "double_blocks.0.img_attn.qkv.weight"),
        rules=_bfl_rules,
        from_shapes=_bfl_config,
    ),
)
