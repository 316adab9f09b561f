"""ArcFace against facexlib's Backbone: inference at full size, training statistics at a small one."""

import gzip
import importlib.util
import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from infu_jax.config import ArcFaceConfig
from infu_jax.convert import rules
from infu_jax.convert.arcface import LAYOUTS
from infu_jax.convert.errors import ConversionError
from infu_jax.models.arcface import ArcFace, BatchNorm
from tests.parity import tools

[LAYOUT] = LAYOUTS
# IR-SE50's shape, and one with two units in some stages so that strides and shortcuts differ inside a stage.
FULL = ArcFaceConfig()
TINY = ArcFaceConfig(widths=(16, 32, 64), units=(2, 1, 2), embedding_dim=24, image_size=40)


def facexlib():
    """facexlib's architecture file alone: the package's __init__ needs torchvision, of which there is no CPU build."""
    package = importlib.util.find_spec("facexlib")
    assert package, "facexlib is missing: pip install --no-deps facexlib==0.3.0"
    spec = importlib.util.spec_from_file_location("facexlib_arcface_arch", pathlib.Path(package.origin).parent / "recognition/arcface_arch.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def randomize(model: torch.nn.Module) -> torch.nn.Module:
    """Random everywhere, but with kernels that neither blow up nor saturate the gates over 24 residual units."""
    tools.randomize(model)
    with torch.no_grad():
        for x in model.parameters():
            if x.ndim > 1:
                x.div_(0.1 * math.sqrt(x[0].numel()))
        for module in model.modules():
            if isinstance(module, torch.nn.PReLU):
                module.weight.sub_(0.75)  # near 1 a slope would be hard to tell from none
            if hasattr(module, "num_batches_tracked"):
                module.num_batches_tracked.fill_(7)
    return model


def tiny_backbone() -> torch.nn.Module:
    """facexlib's units in TINY's sizes; its own Backbone knows three sizes only."""
    arch, nn = facexlib(), torch.nn
    model = nn.Module()
    first, last = TINY.widths[0], TINY.widths[-1]
    model.input_layer = nn.Sequential(nn.Conv2d(3, first, 3, 1, 1, bias=False), nn.BatchNorm2d(first), nn.PReLU(first))
    sizes = zip((first, *TINY.widths[:-1]), TINY.widths, TINY.units, strict=True)
    model.body = nn.Sequential(*(arch.bottleneck_IR_SE(*block) for i, o, n in sizes for block in arch.get_block(i, o, n)))
    model.output_layer = nn.Sequential(
        nn.BatchNorm2d(last), nn.Dropout(0.0), nn.Flatten(), nn.Linear(last * 25, TINY.embedding_dim), nn.BatchNorm1d(TINY.embedding_dim)
    )
    return randomize(model)


def forward(model: torch.nn.Module, x) -> torch.Tensor:
    x = torch.from_numpy(np.array(x)).permute(0, 3, 1, 2)
    return torch.nn.functional.normalize(model.output_layer(model.body(model.input_layer(x))))


def crops(batch: int, size: int) -> jax.Array:
    return jax.random.uniform(jax.random.key(0), (batch, size, size, 3), minval=-1, maxval=1)


def shapes(cfg: ArcFaceConfig) -> dict:
    state = nnx.state(nnx.eval_shape(lambda: ArcFace(cfg, rngs=nnx.Rngs(0))))
    return {".".join(map(str, path)): v.shape for path, v in nnx.to_flat_state(state)}


def test_full_size():
    theirs = randomize(facexlib().Backbone(num_layers=50, drop_ratio=0.6, mode="ir_se"))
    ours = tools.port(ArcFace, FULL, LAYOUT, theirs.state_dict())
    x = crops(2, 112)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(np.array(x)).permute(0, 3, 1, 2).contiguous())
    embed = nnx.jit(lambda model, x: model(x))
    embedding = embed(ours, x)
    tools.assert_close(embedding, expected)
    np.testing.assert_allclose(jnp.linalg.norm(embedding, axis=-1), 1, rtol=1e-6)
    assert int(ours.body[5].norm2.count[...]) == 7
    # The two faces must not share an embedding, or the comparison above would say little.
    assert abs(float(embedding[0] @ embedding[1])) < 0.99

    half = embed(ours, x.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    cosine = (half.astype(jnp.float32) * embedding).sum(-1)
    assert cosine.min() > 0.99, cosine


def test_small_sizes_and_round_trip():
    theirs = tiny_backbone()
    state_dict = theirs.state_dict()
    ours = tools.port(ArcFace, TINY, LAYOUT, state_dict)
    x = crops(3, 40)
    with torch.no_grad():
        tools.assert_close(nnx.jit(lambda model, x: model(x))(ours, x), forward(theirs, x))

    plan = rules.plan(LAYOUT.rules(TINY), shapes(TINY))
    flat = {".".join(map(str, path)): np.asarray(v[...]) for path, v in nnx.to_flat_state(nnx.state(ours))}
    assert set(plan.their_shapes) == set(state_dict)
    for key, tensor in state_dict.items():
        np.testing.assert_array_equal(plan.read_theirs(key, flat, tensor.numpy().dtype), tensor)


def test_training_statistics():
    """One training step's forward: the batch's statistics are used, and the running ones move as PyTorch's do."""
    theirs = tiny_backbone().train()
    ours = tools.port(ArcFace, TINY, LAYOUT, theirs.state_dict())
    x = crops(6, 40)
    with torch.no_grad():
        expected = forward(theirs, x)
    embedding = nnx.jit(lambda model, x: model(x, train=True))(ours, x)
    tools.assert_close(embedding, expected)
    for mine, other in ((ours.norm_in, theirs.input_layer[1]), (ours.body[2].shortcut_norm, theirs.body[2].shortcut_layer[1])):
        tools.assert_close(mine.mean[...], other.running_mean)
        tools.assert_close(mine.var[...], other.running_var)
        assert int(mine.count[...]) == int(other.num_batches_tracked) == 8


def test_statistics_stay_in_inference():
    norm = BatchNorm(3)
    norm(jnp.full((4, 3), 5.0), train=False)
    assert int(norm.count[...]) == 0 and not norm.mean[...].any()


def test_full_size_keys():
    manifest = json.loads(gzip.decompress(pathlib.Path(__file__).parents[1].joinpath("data/full_size_keys.json.gz").read_bytes()))
    manifest = {k: tuple(v) for k, v in manifest["arcface_ir_se50"]["shapes"].items()}
    assert rules.plan(LAYOUT.rules(FULL), shapes(FULL)).their_shapes == manifest
    assert LAYOUT.from_shapes(manifest) == FULL
    assert set(LAYOUT.signature) <= set(manifest)


def test_sizes_from_shapes():
    theirs = rules.plan(LAYOUT.rules(TINY), shapes(TINY)).their_shapes
    assert LAYOUT.from_shapes(theirs) == TINY
    with pytest.raises(ConversionError, match="takes 1000 inputs, which is no square picture of 64 channels"):
        LAYOUT.from_shapes(theirs | {"output_layer.3.weight": (24, 1000)})


def test_errors():
    with pytest.raises(ValueError, match="image_size 100 must be a multiple of 16"):
        ArcFace(ArcFaceConfig(image_size=100), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="one number for each stage"):
        ArcFace(ArcFaceConfig(units=(1, 1)), rngs=nnx.Rngs(0))
    model = nnx.eval_shape(lambda: ArcFace(TINY, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match=r"crops are \(48, 48, 3\); expected \(40, 40, 3\)"):
        model(jnp.zeros((1, 48, 48, 3)))
    with pytest.raises(ValueError, match="batch of 2 or more"):
        BatchNorm(3)(jnp.zeros((1, 3)), train=True)
