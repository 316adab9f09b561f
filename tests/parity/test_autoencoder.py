"""The autoencoder against diffusers' AutoencoderKL, through both conversion tables."""

import gzip
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from flax import nnx

from infu_jax.config import AutoencoderConfig
from infu_jax.convert import rules
from infu_jax.convert.autoencoder import LAYOUTS
from infu_jax.convert.errors import ConversionError
from infu_jax.models import autoencoder
from infu_jax.models.autoencoder import Attention, Autoencoder, GroupNorm, sample_latents
from tests.parity import tools

DIFFUSERS, BFL = LAYOUTS
# Widths that change at several levels, one level that keeps its width, and a latent size no other number equals.
CFG = AutoencoderConfig(channels=(16, 32, 32, 48), num_res_blocks=1, z_channels=6, norm_groups=8, scale_factor=0.4, shift_factor=0.2)


@pytest.fixture(scope="module")
def theirs():
    config = {k: v for k, v in DIFFUSERS.to_config(CFG).items() if not k.startswith("_")}
    return tools.randomize(AutoencoderKL(**config))


@pytest.fixture(scope="module")
def ours(theirs):
    return tools.port(Autoencoder, CFG, DIFFUSERS, theirs.state_dict())


def nchw(x) -> torch.Tensor:
    return torch.from_numpy(np.array(x)).permute(0, 3, 1, 2)


def nhwc(x: torch.Tensor) -> np.ndarray:
    return x.detach().permute(0, 2, 3, 1).numpy()


def shapes(model) -> dict:
    return {".".join(map(str, path)): v.shape for path, v in nnx.to_flat_state(nnx.state(model))}


def test_encode(theirs, ours):
    image = jax.random.uniform(jax.random.key(0), (2, 48, 32, 3), minval=-1, maxval=1)
    noise = jax.random.normal(jax.random.key(1), (2, 6, 4, 6))
    with torch.no_grad():
        distribution = theirs.encode(nchw(image)).latent_dist
        # diffusers clamps the log-variance when it makes the distribution; the raw value is the encoder's second half.
        mean, logvar = theirs.encoder(nchw(image)).chunk(2, dim=1)
    ours_mean, ours_logvar = nnx.jit(Autoencoder.moments)(ours, image)
    tools.assert_close(ours_mean, nhwc(mean))
    tools.assert_close(ours_logvar, nhwc(logvar))
    sample = distribution.mean + distribution.std * nchw(noise)
    tools.assert_close(sample_latents(CFG, ours_mean, ours_logvar, noise), (nhwc(sample) - 0.2) * 0.4)
    tools.assert_close(sample_latents(CFG, ours_mean, ours_logvar, None), (nhwc(mean) - 0.2) * 0.4)
    np.testing.assert_allclose(nnx.jit(Autoencoder.encode)(ours, image, noise), sample_latents(CFG, ours_mean, ours_logvar, noise), rtol=1e-5, atol=1e-6)


def test_decode(theirs, ours):
    latents = jax.random.normal(jax.random.key(2), (2, 6, 4, 6))
    with torch.no_grad():
        image = theirs.decode(nchw(latents) / 0.4 + 0.2).sample
    tools.assert_close(nnx.jit(Autoencoder.decode)(ours, latents), nhwc(image))


def test_logvar_is_clipped():
    mean, noise = jnp.zeros((1, 1, 2, 1)), jnp.ones((1, 1, 2, 1))
    logvar = jnp.array([-60.0, 40.0]).reshape(1, 1, 2, 1)
    sample = sample_latents(AutoencoderConfig(scale_factor=1.0, shift_factor=0.0), mean, logvar, noise)
    np.testing.assert_allclose(sample.ravel(), np.exp([-15.0, 10.0]), rtol=1e-5)


def test_attention_in_portions_is_attention(monkeypatch):
    """15 cells in portions of 4: three full ones and a rest; gradients too."""
    attention = nnx.jit(lambda: Attention(16, 4, rngs=nnx.Rngs(0)))()
    x = jax.random.normal(jax.random.key(0), (2, 5, 3, 16))

    def run():
        return nnx.jit(nnx.value_and_grad(lambda m, x: jnp.square(m(x)).mean()))(attention, x)

    whole, whole_grads = run()
    monkeypatch.setattr(autoencoder, "QUERIES_AT_ONCE", 4)
    parts, parts_grads = run()
    np.testing.assert_allclose(parts, whole, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), parts_grads, whole_grads)


def test_bfloat16(ours):
    """Norms stay in float32, so bfloat16 costs its own rounding only; the output has the input's dtype."""
    image = jax.random.uniform(jax.random.key(3), (2, 16, 16, 3), minval=-1, maxval=1)
    full = nnx.jit(Autoencoder.encode)(ours, image)
    half = nnx.jit(Autoencoder.encode)(ours, image.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    tools.assert_close(half.astype(jnp.float32), full, 0.05)


def test_errors(ours):
    with pytest.raises(ValueError, match="50x32; sides must be multiples of 8 .try 48x32"):
        ours.encode(jnp.zeros((1, 32, 50, 3)))
    with pytest.raises(ValueError, match="20 channels do not divide into norm_groups = 8"):
        GroupNorm(20, 8)


@pytest.mark.parametrize("layout, file", [(DIFFUSERS, "flux_vae"), (BFL, "bfl_ae")])
def test_full_size_keys(layout, file):
    manifest = json.loads(gzip.decompress(pathlib.Path(__file__).parents[1].joinpath("data/full_size_keys.json.gz").read_bytes()))[file]["shapes"]
    cfg = AutoencoderConfig()
    plan = rules.plan(layout.rules(cfg), shapes(nnx.eval_shape(lambda: Autoencoder(cfg, rngs=nnx.Rngs(0)))))
    assert plan.their_shapes == {k: tuple(v) for k, v in manifest.items()}
    assert [other.name for other in LAYOUTS if set(other.signature) <= set(manifest)] == [layout.name]
    if layout.from_shapes:
        assert layout.from_shapes(plan.their_shapes) == cfg


def test_round_trip_through_both_layouts(theirs, ours):
    """diffusers -> ours -> BFL -> ours -> diffusers gives every bit back."""
    flat = {".".join(map(str, path)): np.asarray(v[...]) for path, v in nnx.to_flat_state(nnx.state(ours))}
    to_bfl = rules.plan(BFL.rules(CFG), shapes(ours))
    bfl = {k: to_bfl.read_theirs(k, flat, np.float32) for k in to_bfl.their_shapes}
    # One tensor by hand: BFL's highest level is diffusers' first, and its q is a 1x1 convolution.
    state_dict = theirs.state_dict()
    np.testing.assert_array_equal(bfl["decoder.up.3.block.0.conv1.weight"], state_dict["decoder.up_blocks.0.resnets.0.conv1.weight"])
    np.testing.assert_array_equal(bfl["encoder.mid.attn_1.k.weight"][:, :, 0, 0], state_dict["encoder.mid_block.attentions.0.to_k.weight"])

    again = {path: to_bfl.read_ours(path, None, bfl, np.float32) for path in flat}
    to_diffusers = rules.plan(DIFFUSERS.rules(CFG), shapes(ours))
    assert set(to_diffusers.their_shapes) == set(state_dict)
    for key, tensor in state_dict.items():
        np.testing.assert_array_equal(to_diffusers.read_theirs(key, again, np.float32), tensor)


def test_config_json(theirs):
    assert DIFFUSERS.from_config(theirs.config) == CFG
    assert DIFFUSERS.from_config(DIFFUSERS.to_config(AutoencoderConfig())) == AutoencoderConfig()
    assert DIFFUSERS.from_config(dict(theirs.config) | {"shift_factor": None}).shift_factor == 0.0


@pytest.mark.parametrize(
    "change, message",
    [
        ({"act_fn": "relu"}, "act_fn = 'relu'; only 'silu'"),
        ({"use_quant_conv": True}, "use_quant_conv = True; only False"),
        ({"mid_block_add_attention": False}, "mid_block_add_attention = False; only True"),
        ({"latents_mean": [0.0] * 6}, "latents_mean"),
        ({"up_block_types": ["AttnUpDecoderBlock2D"] * 4}, "up_block_types"),
        ({"_class_name": "AsymmetricAutoencoderKL"}, "AsymmetricAutoencoderKL; expected AutoencoderKL"),
        ({"time_compression": 4}, "unknown fields .'time_compression'."),
    ],
)
def test_other_autoencoders_are_refused(change, message):
    with pytest.raises(ConversionError, match=message):
        DIFFUSERS.from_config(DIFFUSERS.to_config(CFG) | change)


def test_incomplete_config_is_refused():
    config = DIFFUSERS.to_config(CFG)
    # diffusers takes an absent use_quant_conv for true.
    with pytest.raises(ConversionError, match="use_quant_conv = True"):
        DIFFUSERS.from_config({k: v for k, v in config.items() if k != "use_quant_conv"})
    with pytest.raises(ConversionError, match="missing fields .'latent_channels'."):
        DIFFUSERS.from_config({k: v for k, v in config.items() if k != "latent_channels"})


def test_bfl_sizes_from_shapes():
    cfg = AutoencoderConfig(channels=(32, 64, 64), num_res_blocks=3, z_channels=5, in_channels=4, out_channels=2)
    plan = rules.plan(BFL.rules(cfg), shapes(nnx.eval_shape(lambda: Autoencoder(cfg, rngs=nnx.Rngs(0)))))
    assert BFL.from_shapes(plan.their_shapes) == cfg
    with pytest.raises(ConversionError, match="no multiples of 32"):
        BFL.from_shapes(rules.plan(BFL.rules(CFG), shapes(nnx.eval_shape(lambda: Autoencoder(CFG, rngs=nnx.Rngs(0))))).their_shapes)
