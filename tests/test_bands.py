"""Decoding in bands of rows gives the picture that decoding at once gives, in less memory."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from infu_jax import programs
from infu_jax.config import AutoencoderConfig, SamplingConfig
from infu_jax.models.autoencoder import Autoencoder
from infu_jax.sharding import batch_sharding, make_mesh
from tests.conftest import assert_close, unit_vector

CFG = AutoencoderConfig(channels=(16, 32, 32), num_res_blocks=1, z_channels=6, norm_groups=8)
DRAW = np.random.default_rng(0)


@pytest.fixture(scope="module")
def autoencoder():
    """With biases and norms that are not the identity, so that a padded row would show."""
    graph, weights = nnx.split(Autoencoder(CFG, rngs=nnx.Rngs(0)))
    return nnx.merge(graph, jax.tree.map(lambda x: x + 0.1 * DRAW.standard_normal(x.shape, np.float32), weights))


decode = jax.jit(lambda model, z, at_once: model.decode(z, at_once=at_once), static_argnums=2)


def test_bands(autoencoder):
    """Two levels in bands, the larger of them in bands of a few rows; the smallest at once."""
    z = DRAW.standard_normal((2, 14, 6, 6), np.float32)
    whole = decode(autoencoder, z, None)
    assert whole.shape == (2, 56, 24, 3)
    assert_close(np.asarray(decode(autoencoder, z, 2 * 24 * 8)), np.asarray(whole), 1e-5)
    # What a band may not do: take its own statistics, or see zeros where its neighbours are.
    assert np.abs(decode(autoencoder, z[:, :7], None) - whole[:, :28]).max() > 0.01


def test_bands_of_pictures_on_several_devices(autoencoder):
    z, mesh = DRAW.standard_normal((4, 8, 6, 6), np.float32), make_mesh(2, 2, 1, devices=jax.devices()[:4])
    with jax.set_mesh(mesh):
        made = decode(jax.device_put(autoencoder, jax.NamedSharding(mesh, jax.P())), jax.device_put(z, batch_sharding(mesh, 4)), 4 * 24 * 16)
    assert made.sharding.is_equivalent_to(batch_sharding(mesh, 4), 4)
    assert_close(np.asarray(made), np.asarray(decode(autoencoder, z, None)), 1e-5)


def test_memory():
    """Where full-size arrays are large beside the attention in the middle, as those of the release's autoencoder are."""
    cfg = AutoencoderConfig(channels=(96, 32, 32), num_res_blocks=1, z_channels=6, norm_groups=8)
    autoencoder, z = nnx.eval_shape(lambda: Autoencoder(cfg, rngs=nnx.Rngs(0))), jax.ShapeDtypeStruct((1, 64, 64, 6), jnp.float32)
    whole, banded = (decode.lower(autoencoder, z, n).compile().memory_analysis().temp_size_in_bytes for n in (None, 256 * 16))
    assert banded < 0.6 * whole, (banded, whole)


def test_large_pictures_are_decoded_in_bands(pipeline, monkeypatch):
    mesh = make_mesh(2, 2, 2)
    usual, large = SamplingConfig(), SamplingConfig(width=2048, height=2048)
    assert programs.decoded_at_once(mesh, 1, usual) is None and programs.decoded_at_once(mesh, 4, usual) is None
    assert programs.decoded_at_once(mesh, 1, large) == programs.DECODED_AT_ONCE // 4  # one device decodes it, while its neighbours do the same
    assert programs.decoded_at_once(mesh, 4, large) == programs.DECODED_AT_ONCE
    assert math.prod((usual.width, usual.height)) < programs.DECODED_AT_ONCE
    decode, asked = programs.decode, []

    def recording(*args, at_once, **options):
        asked.append(at_once)
        return decode(*args, **options)

    monkeypatch.setattr(programs, "decode", recording)
    pipeline(["a", "b"], id_embedding=unit_vector(128), settings=SamplingConfig(64, 80, 1, t5_length=24))
    monkeypatch.setattr(programs, "DECODED_AT_ONCE", 8000)  # two pictures of 64 x 80 have more
    pipeline(["a", "b"], id_embedding=unit_vector(128), settings=SamplingConfig(64, 80, 1, t5_length=24))
    assert asked == [None, 2000]
