"""Flux and InfuseNet against diffusers' FluxTransformer2DModel and FluxControlNetModel."""

import gzip
import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import FluxControlNetModel, FluxTransformer2DModel
from flax import nnx

from infu_jax import latents
from infu_jax.config import FluxConfig, InfuseNetConfig
from infu_jax.convert import flux as flux_table
from infu_jax.convert import infusenet as infusenet_table
from infu_jax.convert import rules
from infu_jax.models.flux import Flux, Residuals, rope
from infu_jax.models.infusenet import InfuseNet
from tests.parity.tools import assert_close, port, randomize

SIZES = dict(in_channels=16, num_attention_heads=2, attention_head_dim=32, joint_attention_dim=24, pooled_projection_dim=12, axes_dims_rope=(4, 14, 14))
DIFFUSERS, BFL = flux_table.LAYOUTS
H, W, T, B = 6, 10, 5, 2  # latent cells, text tokens, batch: 15 image tokens


def make_flux(depth=5, singles=7, guidance=True):
    config = dict(SIZES, num_layers=depth, num_single_layers=singles, guidance_embeds=guidance, patch_size=1)
    theirs = randomize(FluxTransformer2DModel(**config))
    return theirs, port(Flux, DIFFUSERS.from_config(config), DIFFUSERS, theirs.state_dict())


def make_infusenet(depth=2, singles=3, guidance=True):
    config = dict(SIZES, num_layers=depth, num_single_layers=singles, guidance_embeds=guidance, patch_size=1)
    theirs = randomize(FluxControlNetModel(**config), seed=1)
    [layout] = infusenet_table.LAYOUTS
    return theirs, port(InfuseNet, layout.from_config(config), layout, theirs.state_dict())


def inputs(txt_tokens=T, seed=0):
    draw = np.random.default_rng(seed).standard_normal
    length = (H // 2) * (W // 2)
    return dict(
        img=jnp.asarray(draw((B, length, 16), np.float32)),
        txt=jnp.asarray(draw((B, txt_tokens, 24), np.float32)),
        t=jnp.array([0.83, 0.27]),
        y=jnp.asarray(draw((B, 12), np.float32)),
        guidance=jnp.array([3.5, 1.0]),
    )


def torch_kwargs(x, ids, guidance=True):
    return dict(
        hidden_states=torch.tensor(x["img"]),
        encoder_hidden_states=torch.tensor(x["txt"]),
        timestep=torch.tensor(x["t"]),
        pooled_projections=torch.tensor(x["y"]),
        guidance=torch.tensor(x["guidance"]) if guidance else None,
        txt_ids=torch.tensor(ids[: x["txt"].shape[1]], dtype=torch.float32),
        img_ids=torch.tensor(ids[x["txt"].shape[1] :], dtype=torch.float32),
        return_dict=False,
    )


@pytest.mark.parametrize("guidance", [True, False])
def test_flux(guidance):
    theirs, ours = make_flux(guidance=guidance)
    x, ids = inputs(), latents.position_ids(T, H, W)
    with torch.no_grad():
        (expected,) = theirs(**torch_kwargs(x, ids, guidance))
    assert_close(ours(x["img"], x["txt"], rope(ids, ours.cfg), x["t"], x["y"], x["guidance"]), expected)


@pytest.mark.parametrize(("doubles", "singles"), [(2, 3), (4, 2), (1, 7), (2, 0), (0, 3)])
def test_residuals_at_intervals_that_do_not_divide(doubles, singles):
    theirs, ours = make_flux(depth=5, singles=7)
    x, ids = inputs(), latents.position_ids(T, H, W)
    draw = np.random.default_rng(3).standard_normal
    shape = (B, x["img"].shape[1], 64)
    double, single = draw((doubles, *shape), np.float32), draw((singles, *shape), np.float32)
    with torch.no_grad():
        (expected,) = theirs(
            **torch_kwargs(x, ids),
            controlnet_block_samples=[torch.tensor(r) for r in double] or None,
            controlnet_single_block_samples=[torch.tensor(r) for r in single] or None,
        )
    assert_close(ours(x["img"], x["txt"], rope(ids, ours.cfg), x["t"], x["y"], x["guidance"], Residuals(jnp.asarray(double), jnp.asarray(single))), expected)


@pytest.mark.parametrize(("depth", "singles", "guidance"), [(2, 3, True), (1, 2, False), (3, 0, True)])
def test_infusenet(depth, singles, guidance):
    theirs, ours = make_infusenet(depth, singles, guidance)
    x, ids = inputs(txt_tokens=3, seed=1), latents.position_ids(3, H, W)
    control = jnp.asarray(np.random.default_rng(2).standard_normal(x["img"].shape, np.float32))
    with torch.no_grad():
        double, single = theirs(**torch_kwargs(x, ids, guidance), controlnet_cond=torch.tensor(control), conditioning_scale=0.8)
    result = ours(x["img"], x["txt"], control, rope(ids, ours.cfg), x["t"], x["y"], x["guidance"], scale=0.8)
    assert_close(result.double, torch.stack(double))
    assert result.single.shape[0] == singles
    if singles:
        assert_close(result.single, torch.stack(single))


def test_fresh_infusenet_leaves_the_base_alone():
    [layout] = infusenet_table.LAYOUTS
    cfg = layout.from_config(dict(SIZES, num_layers=2, num_single_layers=3, guidance_embeds=True))
    x, ids = inputs(txt_tokens=3), latents.position_ids(3, H, W)
    result = InfuseNet(cfg, rngs=nnx.Rngs(0))(x["img"], x["txt"], x["img"], rope(ids, cfg), x["t"], x["y"], x["guidance"])
    assert not np.any(result.double) and not np.any(result.single)


def test_bfl_layout_is_the_same_model():
    theirs, _ = make_flux()
    cfg = DIFFUSERS.from_config(theirs.config)
    shapes = our_shapes(Flux, cfg)
    diffusers, bfl = rules.plan(DIFFUSERS.rules(cfg), shapes), rules.plan(BFL.rules(cfg), shapes)
    file = {k: v.numpy() for k, v in theirs.state_dict().items()}
    ours = {path: diffusers.read_ours(path, None, file, np.float32) for path in shapes}
    bfl_file = {key: bfl.read_theirs(key, ours, np.float32) for key in bfl.their_shapes}
    # The order inside BFL's joined tensors is what their code splits them into.
    np.testing.assert_array_equal(bfl_file["double_blocks.1.txt_attn.qkv.weight"][128:], file["transformer_blocks.1.attn.add_v_proj.weight"])
    np.testing.assert_array_equal(bfl_file["single_blocks.2.linear1.weight"][192:], file["single_transformer_blocks.2.proj_mlp.weight"])
    np.testing.assert_array_equal(bfl_file["single_blocks.2.linear2.weight"], file["single_transformer_blocks.2.proj_out.weight"])
    np.testing.assert_array_equal(bfl_file["final_layer.adaLN_modulation.1.weight"][:64], file["norm_out.linear.weight"][64:])
    back = {path: bfl.read_ours(path, None, bfl_file, np.float32) for path in shapes}
    for path in shapes:
        np.testing.assert_array_equal(back[path], ours[path])
    again = {key: diffusers.read_theirs(key, back, np.float32) for key in file}
    for key in file:
        np.testing.assert_array_equal(again[key], file[key])
    assert BFL.from_shapes({k: v.shape for k, v in bfl_file.items()}) == cfg


@pytest.mark.parametrize(
    ("file", "model", "layout", "guidance"),
    [
        ("flux1_dev_transformer", Flux, DIFFUSERS, True),
        ("flux1_schnell_transformer", Flux, DIFFUSERS, False),
        ("bfl_flux1_dev", Flux, BFL, True),
        ("bfl_flux1_schnell", Flux, BFL, False),
        ("infusenet_guidance", InfuseNet, infusenet_table.LAYOUTS[0], True),
        ("infusenet_noguidance", InfuseNet, infusenet_table.LAYOUTS[0], False),
    ],
)
def test_full_size_keys_and_shapes(file, model, layout, guidance):
    manifest = json.loads(gzip.decompress(pathlib.Path(__file__).parents[1].joinpath("data/full_size_keys.json.gz").read_bytes()))[file]["shapes"]
    cfg = (FluxConfig if model is Flux else InfuseNetConfig)(guidance_embed=guidance)
    plan = rules.plan(layout.rules(cfg), our_shapes(model, cfg))
    assert {k: list(v) for k, v in plan.their_shapes.items()} == manifest
    if layout.from_shapes:
        assert layout.from_shapes(plan.their_shapes) == cfg


def our_shapes(model, cfg):
    state = nnx.state(nnx.eval_shape(lambda: model(cfg, rngs=nnx.Rngs(0))))
    return {".".join(map(str, path)): v.shape for path, v in nnx.to_flat_state(state)}
