"""Meshes, rules for parameters, and the pipeline on eight devices and in two processes."""

import math
import os
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from infu_jax.checkpoint import abstract, load_model, param_shapes, params_of
from infu_jax.config import FluxConfig, SamplingConfig
from infu_jax.convert.source import PLACES
from infu_jax.errors import InputError
from infu_jax.latents import position_ids
from infu_jax.models import MODELS
from infu_jax.models.flux import Residuals, rope
from infu_jax.parking import PARKED, PARKED_PARAMETERS
from infu_jax.pipeline import InfUPipeline
from infu_jax.plan.collectives import collective_bytes
from infu_jax.sharding import (
    AXES,
    RULES,
    add_to_second,
    batch_axes,
    batch_sharding,
    check_tokens,
    constrain_batch,
    join,
    make_mesh,
    param_shardings,
    param_specs,
    streams,
)
from tests.conftest import ROOT, assert_close, programs, unit_vector

PROMPTS = ["a man in a garden", "a chef"]


# Meshes -------------------------------------------------------------------------------------------


def test_make_mesh():
    for sizes, found in (((), (8, 1, 1, 1)), ((2, 2, 2), (2, 2, 2, 1)), ((2, -1, 2), (2, 2, 2, 1)), ((1, 1, 2, -1), (1, 1, 2, 4)), ((-1, 8, 1), (1, 8, 1, 1))):
        mesh = make_mesh(*sizes)
        assert tuple(mesh.shape[axis] for axis in AXES) == found
        assert set(mesh.devices.flat) == set(jax.devices())
    assert make_mesh(devices=jax.devices()[:1]).size == 1
    assert make_mesh(1, -1, 1, devices=jax.devices()[:6]).shape["fsdp"] == 6


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((3, -1, 1), r"mesh \(data, fsdp, tensor, sequence\) = \(3, -1, 1, 1\) does not fit 8 devices"),
        ((2, 2, 1), r"\(2, 2, 1, 1\) does not fit 8 devices"),
        ((-1, -1, 1), "only one size may be -1"),
        ((0, -1, 1), "sizes are 1 or more"),
        ((-2, -2, 2, 1), "sizes are 1 or more"),
    ],
)
def test_bad_meshes(sizes, message):
    with pytest.raises(InputError, match=message):
        make_mesh(*sizes)


def test_batches():
    for sizes, parts in (((2, 2, 2), {1: 1, 2: 2, 3: 1, 4: 4, 6: 2, 8: 4}), ((2, 4, 1), {1: 1, 2: 2, 4: 4, 8: 8}), ((8, 1, 1), {4: 1, 8: 8, 16: 8})):
        mesh = make_mesh(*sizes)
        for batch, expected in parts.items():
            assert math.prod(mesh.shape[axis] for axis in batch_axes(mesh, batch)) == expected, (sizes, batch)
            assert batch_sharding(mesh, batch).shard_shape((batch, 5)) == (batch // expected, 5)
    mesh = make_mesh(2, 2, 2)
    with jax.set_mesh(mesh):
        whole = jax.jit(constrain_batch)(jax.device_put(jnp.ones((4, 3)), jax.NamedSharding(mesh, P())))
    assert whole.sharding.is_equivalent_to(batch_sharding(mesh, 4), 2)
    x = jnp.ones((4, 3))
    assert constrain_batch(x) is x  # without a mesh there is nothing to do


# Rules --------------------------------------------------------------------------------------------

FULL_SIZE = {model: param_shapes(abstract(model, config())) for model, (config, _) in MODELS.items()}


@pytest.mark.parametrize("model", MODELS)
def test_rules_fit_the_full_size_models(model):
    shapes = {name: s.shape for name, s in FULL_SIZE[model].items()}
    specs = param_specs(RULES[model], list(shapes))  # raises where a parameter has no rule, or a rule no parameter
    assert all(len(spec) <= len(shapes[name]) for name, spec in specs.items())
    for sizes in ((1, 4, 1, 1), (1, 16, 1, 2), (2, 4, 2, 1), (1, 1, 8, 1), (1, 256, 1, 1)):
        mesh = AbstractMesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES))
        for name, sharding in param_shardings(mesh, RULES[model], shapes).items():
            sharding.shard_shape(shapes[name])


@pytest.mark.parametrize("model", ["flux", "infusenet", "t5"])
def test_nothing_large_is_replicated(model):
    for axis, sizes in (("fsdp", (1, 16, 1, 1)), ("tensor", (1, 1, 8, 1))):
        shapes = {name: s.shape for name, s in FULL_SIZE[model].items()}
        mesh = AbstractMesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES))
        shardings = param_shardings(mesh, RULES[model], shapes)
        if axis == "fsdp":
            assert not [name for name, s in shapes.items() if math.prod(s) >= 1e6 and axis not in shardings[name].spec]
        here = sum(math.prod(shardings[name].shard_shape(s)) for name, s in shapes.items())
        assert here < sum(map(math.prod, shapes.values())) * {"fsdp": 0.0635, "tensor": 0.17}[axis]


def test_schnell_has_rules_too():
    shapes = {name: s.shape for name, s in param_shapes(abstract("flux", FluxConfig(guidance_embed=False))).items()}
    assert not any(name.startswith("guidance_in") for name in shapes)
    param_specs(RULES["flux"], list(shapes))


def test_rules_that_do_not_fit():
    rules = ((r"a\.kernel", P("fsdp")), (r".*bias", P()))
    assert param_specs(rules, ["a.kernel", "a.bias"]) == {"a.kernel": P("fsdp"), "a.bias": P()}
    with pytest.raises(ValueError, match=r"parameters without a rule \['b.kernel'\], rules without a parameter \[\]"):
        param_specs(rules, ["a.kernel", "a.bias", "b.kernel"])
    with pytest.raises(ValueError, match=r"without a rule \['xa.kernelx'\], rules without a parameter \['a.*kernel', '.*bias'\]"):
        param_specs(rules, ["xa.kernelx"])  # whole names only
    assert param_specs(((r".*", P()), (r".*kernel", P("fsdp")))[::-1], ["kernel", "bias"]) == {"kernel": P("fsdp"), "bias": P()}  # the first wins
    with pytest.raises(InputError, match=r"a.kernel \(6, 4\): size 6 is not a multiple of mesh axis 'fsdp' = 4; choose another mesh"):
        param_shardings(make_mesh(2, 4, 1), rules, {"a.kernel": (6, 4), "a.bias": (5,)})


def test_a_mesh_that_does_not_divide_the_heads(tiny):
    with pytest.raises(InputError, match=r"img.attn_out.kernel \(4, 2, 32, 64\): size 2 is not a multiple of mesh axis 'tensor' = 8; choose another mesh"):
        load_model(tiny[0], "flux", mesh=make_mesh(1, 1, 8))


# The pipeline on eight devices --------------------------------------------------------------------


@pytest.fixture(scope="module")
def split(tiny):
    return InfUPipeline.load(*tiny, mesh=make_mesh(2, 2, 2))


def test_weights_are_split(split):
    for model, name, shape, part in (
        ("t5", "blocks.qkv.kernel", (2, 32, 3, 2, 16), (2, 16, 3, 1, 16)),
        ("t5", "embedding.table", None, None),
        ("flux", "double_blocks.img.qkv.kernel", (4, 64, 3, 2, 32), (4, 32, 3, 1, 32)),
        ("flux", "single_blocks.mlp_out.kernel", (8, 256, 64), (8, 128, 32)),
        ("infusenet", "single_out.kernel", (2, 64, 64), (2, 32, 32)),
    ):
        module = getattr(split, model)
        for step in name.split("."):
            module = getattr(module, step)
        array = module[...]
        if shape is None:
            shape, part = array.shape, (array.shape[0], array.shape[1] // 2)
        assert array.shape == shape and {s.data.shape for s in array.addressable_shards} == {part}, name
        assert len(array.addressable_shards) == 8
    for model in PLACES:
        arrays = jax.tree.leaves(getattr(split, model))
        here = sum(a.addressable_shards[0].data.nbytes for a in arrays) / sum(a.nbytes for a in arrays)
        limit = {"flux": 0.3, "infusenet": 0.35, "t5": 0.45, "clip": 0.6, "resampler": 0.6}.get(model, 1)  # of 1/4, or 1/2 without tensor
        assert here <= limit, (model, here)


@pytest.mark.parametrize("batch", [2, 4, 1, 3])
def test_the_same_pictures_on_eight_devices(pipeline, split, paint, batch, caplog):
    one_device = np.concatenate([paint(pipeline, PROMPTS, seeds=[5, 6]), paint(pipeline, [PROMPTS[0]] * 2, seeds=[7, 8])])
    prompts, seeds = [*PROMPTS, PROMPTS[0], PROMPTS[0]], [5, 6, 7, 8]
    with programs(caplog) as compiled:
        made = paint(split, prompts[:batch], seeds=seeds[:batch])
    assert_close(made, one_device[:batch], 1e-5)
    assert compiled["steps"] == 1
    with programs(caplog) as again:
        np.testing.assert_array_equal(
            paint(split, prompts[:batch], seeds=seeds[:batch], given={"id_embedding": unit_vector(128), "progress": lambda *_: None}), made
        )
    assert not again


def test_prompts_in_order(pipeline, split, paint):
    """Pictures of one prompt lie together, and seeds count up over the batch."""
    one_device = np.concatenate([paint(pipeline, [p] * 2, seeds=s) for p, s in zip(PROMPTS, ([5, 6], [7, 8]))])
    assert_close(paint(split, PROMPTS, num_images=2, seeds=[5, 6, 7, 8]), one_device, 1e-5)
    made = split(PROMPTS, id_embedding=unit_vector(128), num_images=2, seeds=5, settings=SamplingConfig(64, 80, 3, t5_length=24))
    assert made.prompts == [PROMPTS[0]] * 2 + [PROMPTS[1]] * 2 and made.seeds == [5, 6, 7, 8]
    assert np.abs(made.images - np.clip(one_device * 127.5 + 127.5, 0, 255)).max() <= 0.51


def test_offload(tiny, split, paint):
    parked = InfUPipeline.load(*tiny, mesh=make_mesh(2, 2, 2), offload=True)
    for name in PLACES:
        for (path, a), b in zip(params_of(getattr(parked, name)).items(), jax.tree.leaves(getattr(split, name)), strict=True):
            waits = name in PARKED or (name in ("flux", "infusenet") and PARKED_PARAMETERS.fullmatch(path))
            assert a.sharding.memory_kind == ("pinned_host" if waits else "device"), (name, path)
            assert a.sharding.spec == b.sharding.spec
    np.testing.assert_array_equal(paint(parked), paint(split))


def test_gradients_on_eight_devices():
    """Of every parameter, for a batch that is split over two axes while a third splits the heads (see the note in RULES)."""
    cfg = FluxConfig(vec_in_dim=16, context_in_dim=32, hidden_size=64, num_heads=4, depth=1, depth_single_blocks=1, axes_dim=(4, 6, 6))
    draw, model = np.random.default_rng(0).standard_normal, abstract("flux", cfg)
    shapes = param_shapes(model)
    values = {name: draw(s.shape, np.float32) * 0.1 + name.endswith("scale") for name, s in shapes.items()}
    inputs = {"img": (12, 64), "txt": (8, 32), "y": (16,)}
    inputs = {name: draw((8, *shape), np.float32) for name, shape in inputs.items()} | {"t": np.linspace(0.1, 0.9, 8, dtype=np.float32)}

    def loss(model, img, txt, y, t):
        return jnp.square(model(img, txt, rope(position_ids(8, 8, 6), cfg), t, y, jnp.ones_like(t)) - img).mean()

    def gradients(mesh):
        shardings = param_shardings(mesh, RULES["flux"], {name: s.shape for name, s in shapes.items()})
        placed = jax.tree.unflatten(jax.tree.structure(model), [jax.device_put(values[name], shardings[name]) for name in shapes])
        with jax.set_mesh(mesh):
            return jax.tree.leaves(jax.jit(jax.grad(loss))(placed, **{k: jax.device_put(x, batch_sharding(mesh, 8)) for k, x in inputs.items()}))

    one = gradients(make_mesh(devices=jax.devices()[:1]))
    for sizes in ((2, 2, 2), (2, 1, 2, 2)):
        for name, a, b in zip(shapes, gradients(make_mesh(*sizes)), one):
            assert np.abs(np.asarray(a) - np.asarray(b)).max() <= 1e-5 * np.abs(np.asarray(b)).max(), (sizes, name)


# Tokens split over devices ------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(1, 1, 1, 2), (2, 2, 1, 2)])
def test_the_same_pictures_with_split_tokens(tiny, pipeline, paint, sizes):
    mesh = make_mesh(*sizes, devices=jax.devices()[: math.prod(sizes)])
    made = paint(InfUPipeline.load(*tiny, mesh=mesh), PROMPTS, seeds=[5, 6], true_cfg=2.0, given={"id_embedding": unit_vector(128), "negative_prompt": "dull"})
    assert_close(made, paint(pipeline, PROMPTS, seeds=[5, 6], true_cfg=2.0, given={"id_embedding": unit_vector(128), "negative_prompt": "dull"}), 1e-5)


def test_split_tokens_are_sent_for_the_attention_alone(tiny):
    """Queries, keys and values there and what the attention gives back, three quarters of each device's quarter; no weights."""
    cfg = FluxConfig(vec_in_dim=16, context_in_dim=32, hidden_size=128, num_heads=4, depth=2, depth_single_blocks=3, axes_dim=(8, 12, 12))
    mesh = make_mesh(1, 1, 1, 4, devices=jax.devices()[:4])
    everywhere = NamedSharding(mesh, P())
    model = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=everywhere), abstract("flux", cfg))
    array = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=everywhere)  # noqa: E731
    residuals = Residuals(array(1, 1, 64, 128), array(2, 1, 64, 128))
    with jax.set_mesh(mesh):
        run = jax.jit(lambda model, *xs: model(xs[0], xs[1], rope(position_ids(16, 16, 16), cfg), *xs[2:]))
        text = run.lower(model, array(1, 64, 64), array(1, 16, 32), array(1), array(1, 16), array(1), residuals).compile().as_text()
    sent = collective_bytes(text)
    assert sent.pop("all-to-all") == 4 * (cfg.depth + cfg.depth_single_blocks) * 80 * cfg.hidden_size * 4 / 4 * 3 / 4
    assert sum(sent.values()) <= 64 * 64 * 4, sent  # the velocity, gathered


def test_join():
    a, b = jnp.arange(8).reshape(1, 8, 1), -jnp.arange(4).reshape(1, 4, 1)
    assert join(a, b).ravel().tolist() == [*range(8), 0, -1, -2, -3]
    with jax.set_mesh(make_mesh(1, 1, 1, 4, devices=jax.devices()[:4])):
        joined = join(a, b)
        assert joined.ravel().tolist() == [0, 1, 0, 2, 3, -1, 4, 5, -2, 6, 7, -3]
        for found, wanted in zip(streams(joined, 8), (a, b)):
            np.testing.assert_array_equal(found, wanted)
        for counts in ((512, 6), (6, 512)):
            with pytest.raises(InputError, match="6 tokens are not a multiple of mesh axis 'sequence' = 4; choose another mesh"):
                check_tokens(jax.sharding.get_abstract_mesh(), 8, *counts)
        assert add_to_second(joined, 8, 10 * b).ravel().tolist() == [0, 1, 0, 2, 3, -11, 4, 5, -22, 6, 7, -33]


# Two processes ------------------------------------------------------------------------------------

WORKER = """
import sys
import jax, numpy as np
address, index, vector, out, base, infu = sys.argv[1:]
jax.distributed.initialize(address, num_processes=2, process_id=int(index))
from infu_jax.config import SamplingConfig
from infu_jax.pipeline import InfUPipeline
from infu_jax.plan.collectives import collective_bytes
from infu_jax.sharding import make_mesh
assert jax.device_count() == 8 and jax.local_device_count() == 4
pipeline = InfUPipeline.load(base, infu, mesh=make_mesh(2, 2, 2))
made = pipeline(["a man in a garden", "a chef"], id_embedding=np.load(vector), seeds=[5, 6], settings=SamplingConfig(64, 80, 3, t5_length=24), trace=True)
np.savez(out, images=made.images, image=made.trace["image"], txt=made.trace["txt"], single=made.trace["single_residuals"][-1])
"""


@pytest.mark.slow
def test_two_processes_make_one_picture(pipeline, tiny, paint, tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{s.getsockname()[1]}"
    env = {**os.environ, "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=4"), "PYTHONPATH": str(ROOT)}
    outs, vector = [tmp_path / f"{index}.npz" for index in range(2)], tmp_path / "vector.npy"
    np.save(vector, unit_vector(128))
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, address, str(n), str(vector), str(out), *map(str, tiny)],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for n, out in enumerate(outs)
    ]
    try:
        said = [worker.communicate(timeout=240)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0], said
    first, second = (np.load(out) for out in outs)
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])
    assert_close(first["image"], paint(pipeline), 1e-5)
