"""Models in and out of storage: streamed, sharded, exact, and never half written."""

import gc
import json
import math
import shutil
import tracemalloc

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from infu_jax import checkpoint
from infu_jax.checkpoint import abstract, is_converted, load_model, param_shapes, save_model
from infu_jax.config import FluxConfig, InfuseNetConfig
from infu_jax.convert import rules, safetensors, source
from infu_jax.convert.errors import ConversionError
from infu_jax.errors import InputError
from infu_jax.sharding import RULES, make_mesh, param_shardings

WHERE = {model: 1 if model in ("infusenet", "resampler", "arcface") else 0 for model in source.PLACES}  # which of the two folders


def params(module):
    return {".".join(map(str, path)): v[...] for path, v in nnx.to_flat_state(nnx.state(module))}


def assert_same(a, b):
    a, b = params(a), params(b)
    assert a.keys() == b.keys()
    for name, x in a.items():
        assert x.dtype == b[name].dtype and x.shape == b[name].shape, name
        assert np.asarray(x).tobytes() == np.asarray(b[name]).tobytes(), name


# From PyTorch files -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A Flux of 36 million parameters in bfloat16, as diffusers stores it, every number different from its neighbour."""
    folder = tmp_path_factory.mktemp("large") / "transformer"
    folder.mkdir()
    cfg = FluxConfig(vec_in_dim=32, context_in_dim=64, hidden_size=256, num_heads=4, depth=8, depth_single_blocks=16, axes_dim=(16, 24, 24))
    [layout, _] = [layout for layout in source.LAYOUTS if layout.model == "flux"]
    plan = rules.plan(layout.rules(cfg), {name: s.shape for name, s in param_shapes(abstract("flux", cfg)).items()})
    make = lambda shape: lambda: np.resize(np.arange(251, dtype=np.float32), shape).astype(ml_dtypes.bfloat16)  # noqa: E731
    tensors = {key: safetensors.LazyTensor(shape, np.dtype(ml_dtypes.bfloat16), make(shape)) for key, shape in plan.their_shapes.items()}
    safetensors.write_sharded(folder, "diffusion_pytorch_model", tensors, max_bytes=30 << 20, metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(layout.to_config(cfg)))
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


@pytest.mark.parametrize(("sizes", "dtype"), [((1, 1, 1), None), ((1, 1, 1), jnp.float32), ((2, 2, 2), None)])
def test_loading_streams(large, monkeypatch, sizes, dtype):
    """Never more of NumPy's memory than one parameter takes, on any mesh."""
    mesh, empty = make_mesh(*sizes, devices=jax.devices()[: math.prod(sizes)]), np.empty

    def unaligned(shape, dtype=float, **options):  # on a CPU, JAX keeps NumPy's memory for its own wherever it happens to be aligned to 64 bytes
        if options or np.dtype(dtype).hasobject:
            return empty(shape, dtype, **options)
        raw = empty(math.prod(np.atleast_1d(shape)) * np.dtype(dtype).itemsize + 64, np.uint8)
        return raw[(16 - raw.ctypes.data) % 64 :][: raw.size - 64].view(dtype).reshape(shape)

    monkeypatch.setattr(np, "empty", unaligned)
    tracemalloc.start()
    try:
        loaded = params(load_model(large, "flux", mesh=mesh, dtype=dtype))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    largest, whole = max(x.nbytes for x in loaded.values()), sum(x.nbytes for x in loaded.values())
    print(f"peak {peak / 1e6:.1f} MB, largest parameter {largest / 1e6:.1f} MB, model {whole / 1e6:.1f} MB")
    assert peak < largest + 2e6  # what Python and JAX themselves take
    assert peak < whole / 5


def test_every_device_gets_its_shard(large, monkeypatch):
    """Each part is read once, whatever number of devices holds it, and no more than that part is read."""
    mesh, boxes = make_mesh(2, 2, 2), {}
    read = rules.Plan.read_ours

    def watch(self, name, box, *args):
        boxes.setdefault(name, []).append(box)
        return read(self, name, box, *args)

    monkeypatch.setattr(rules.Plan, "read_ours", watch)
    module = load_model(large, "flux", mesh=mesh)
    loaded = params(module)
    wanted = param_shardings(mesh, RULES["flux"], {name: x.shape for name, x in loaded.items()})
    for name, x in loaded.items():
        assert x.sharding == wanted[name] and x.dtype == jnp.bfloat16
        parts = {tuple(s.indices(n)[:2] for s, n in zip(index, x.shape)) for index in wanted[name].devices_indices_map(x.shape).values()}
        assert len(boxes[name]) == len(parts) and set(boxes[name]) == parts, name
    assert len(boxes["single_blocks.mlp_in.kernel"]) == 4
    monkeypatch.undo()
    assert_same(module, load_model(large, "flux"))


def test_dtypes(tiny):
    base, infu = tiny
    kept, cast = params(load_model(base, "t5")), params(load_model(base, "t5", dtype=jnp.float32))
    assert {x.dtype for x in kept.values()} == {jnp.dtype(jnp.bfloat16)} and {x.dtype for x in cast.values()} == {jnp.dtype(jnp.float32)}
    for name, x in kept.items():
        np.testing.assert_array_equal(np.float32(x), cast[name])
    for dtype in (None, jnp.bfloat16):  # a counter stays a counter
        kinds = {name.rpartition(".")[2]: x.dtype for name, x in params(load_model(infu, "arcface", dtype=dtype)).items()}
        assert kinds["count"] == jnp.int32 and kinds["kernel"] == kinds["var"] == (dtype or jnp.float32)


def test_what_is_let_go_is_freed(tiny):
    """At once, not when Python next collects cycles: a device may have no room for two models."""
    alive = lambda: sum(a.nbytes for a in jax.live_arrays() if a.dtype == jnp.float16)  # noqa: E731
    gc.collect()
    before = alive()
    gc.disable()
    try:
        module = load_model(tiny[0], "t5", dtype=jnp.float16)
        assert alive() == before + sum(x.nbytes for x in jax.tree.leaves(module))
        del module
        assert alive() == before
    finally:
        gc.enable()


# Our own folders ----------------------------------------------------------------------------------


@pytest.mark.parametrize("model", source.PLACES)
def test_round_trip(tiny, tmp_path, model):
    module = load_model(tiny[WHERE[model]], model)
    save_model(tmp_path / "new" / model, model, module)
    assert is_converted(tmp_path / "new" / model) and [p.name for p in (tmp_path / "new").iterdir()] == [model]
    again = load_model(tmp_path / "new" / model, model)
    assert again.cfg == module.cfg
    assert_same(again, module)
    spread = load_model(tmp_path / "new" / model, model, mesh=make_mesh(2, 2, 2))
    assert_same(spread, module)
    wanted = param_shardings(make_mesh(2, 2, 2), RULES[model], {name: x.shape for name, x in params(spread).items()})
    assert all(x.sharding.is_equivalent_to(wanted[name], x.ndim) for name, x in params(spread).items())
    cast = params(load_model(tmp_path / "new" / model, model, dtype=jnp.float32))
    for name, x in params(module).items():
        np.testing.assert_array_equal(np.asarray(x, cast[name].dtype), cast[name])


def test_from_one_mesh_to_another(tiny, tmp_path):
    module = load_model(tiny[0], "t5", mesh=make_mesh(2, 2, 2))
    save_model(tmp_path / "t5", "t5", module)
    there = load_model(tmp_path / "t5", "t5", mesh=make_mesh(1, 4, 2))
    assert_same(there, module)
    assert params(there)["blocks.mlp_in.kernel"].sharding.shard_shape((2, 32, 2, 64)) == (2, 8, 2, 32)
    assert_same(load_model(tmp_path / "t5", "t5"), module)


def test_any_name_of_a_folder(tiny, tmp_path):
    """What means something in a URL is a name here."""
    module = load_model(tiny[1], "resampler")
    folder = tmp_path / "50% of run#3?" / "a%20b"
    save_model(folder, "resampler", module)
    assert_same(load_model(folder, "resampler"), module)
    stored = checkpoint.open_params(checkpoint.open_model(folder))
    for name, x in params(module).items():
        assert np.asarray(stored[name]).tobytes() == np.asarray(x).tobytes(), name


def test_stacks_of_no_blocks(tmp_path):
    cfg = InfuseNetConfig(vec_in_dim=8, context_in_dim=8, hidden_size=32, num_heads=2, depth=1, depth_single_blocks=0, axes_dim=(4, 6, 6))
    module = jax.tree.map(lambda s: jnp.asarray(np.random.default_rng(s.size).standard_normal(s.shape, np.float32)), abstract("infusenet", cfg))
    assert any(not x.size for x in params(module).values())
    save_model(tmp_path / "net", "infusenet", module)
    assert_same(load_model(tmp_path / "net", "infusenet"), module)
    assert_same(load_model(tmp_path / "net", "infusenet", mesh=make_mesh(2, 2, 2)), module)


def test_nothing_half_written(tiny, tmp_path, monkeypatch):
    module = load_model(tiny[0], "clip")
    for where, what in ((checkpoint.ocp.Checkpointer, "save"), (checkpoint.configs, "to_json"), (checkpoint.Path, "rename")):
        with monkeypatch.context() as patch:
            patch.setattr(where, what, lambda *args, **options: (_ for _ in ()).throw(OSError("no space left on device")))
            with pytest.raises(OSError, match="no space left"):
                save_model(tmp_path / "clip", "clip", module)
        assert not list(tmp_path.iterdir()), what
    save_model(tmp_path / "clip", "clip", module)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(FileExistsError, match="clip exists already; choose another name"):
        save_model(tmp_path / "clip", "clip", module)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


# Faults -------------------------------------------------------------------------------------------

IGNORE = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # from Orbax's coroutines that read the other arrays


@pytest.fixture
def saved(tiny, tmp_path):
    save_model(tmp_path / "clip", "clip", load_model(tiny[0], "clip"))
    return tmp_path / "clip"


def test_wrong_model(tiny, saved):
    with pytest.raises(ConversionError, match=r"vae is a checkpoint of autoencoder \(diffusers layout\); flux is needed here"):
        load_model(tiny[0] / "vae", "flux")
    with pytest.raises(ConversionError, match="clip is a checkpoint of clip; t5 is needed here"):
        load_model(saved, "t5")
    with pytest.raises(ConversionError, match="InfiniteYou-tiny holds no t5: expected config.json, or one of text_encoder_2; found InfuseNetModel"):
        load_model(tiny[1], "t5")
    with pytest.raises(ConversionError, match="no/such/place does not exist"):
        load_model("no/such/place", "t5")
    for call in (lambda: load_model(saved, "clap"), lambda: save_model(saved / "new", "clap", load_model(saved, "clip"))):
        with pytest.raises(InputError, match="there is no model 'clap'; the models are flux, infusenet, "):
            call()
    with pytest.raises(TypeError, match="CLIPTextEncoder cannot be saved as t5, which is a T5Encoder"):
        save_model(saved / "new", "t5", load_model(saved, "clip"))


def test_a_file_that_does_not_fit_its_config(tiny, tmp_path):
    folder = shutil.copytree(tiny[0] / "text_encoder", tmp_path / "text_encoder")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(ConversionError, match=r"text_encoder does not fit its configuration: 16 missing: text_model.encoder.layers.2"):
        load_model(folder, "clip")
    (folder / "config.json").write_text(json.dumps({**config, "num_attention_heads": 7}))
    with pytest.raises(ConversionError, match="text_encoder"):
        load_model(folder, "clip")


@IGNORE
@pytest.mark.parametrize("part", ["", "_METADATA", "manifest.ocdbt", "ocdbt.process_0", "d"])
def test_damaged_weights(saved, part):
    place = saved / "weights" / part
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    with pytest.raises(ConversionError, match=r"clip/weights (is missing or damaged|cannot be read \(.*\); if it is damaged).* convert the \S+ "):
        load_model(saved, "clip")
    gc.collect()


@IGNORE
def test_cut_weights(saved):
    data = max((p for p in (saved / "weights").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    with pytest.raises(ConversionError, match="clip/weights cannot be read"):
        load_model(saved, "clip")
    gc.collect()


def test_another_configs_weights(saved):
    config = json.loads((saved / "config.json").read_text())
    config["config"]["num_layers"] += 1
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConversionError, match="clip does not fit its configuration: 12 of another shape: blocks"):
        load_model(saved, "clip")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": None}, "says model None; expected one of flux, "),
        ({"model": "clap"}, "says model 'clap'; expected one of flux, "),
        ({"config": [1]}, "says model 'clip'; expected one of .* and its config"),
        ({"config": {"hidden_size": 32}}, "its configuration makes no sense: CLIPTextConfig: unknown fields .*missing fields"),
        ({"num_layers": -1}, "its configuration makes no sense: num_layers is -1"),
        ({"num_layers": "2"}, "its configuration makes no sense: num_layers is '2'"),
        ({"format": "other"}, "clip"),
    ],
)
def test_damaged_config(saved, unchecked, change, message):
    stored = json.loads((saved / "config.json").read_text())
    for name, value in change.items():
        (stored if name in stored else stored["config"])[name] = value
    (saved / "config.json").write_text(json.dumps(stored))
    with pytest.raises(ConversionError, match=message):
        load_model(saved, "clip")
