"""Checkpoints on small arrays: fingerprints, damage, a full disk, what is kept."""

import resource
import shutil
import time
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from infu_jax import run_state, runs
from infu_jax.errors import InputError
from infu_jax.sharding import make_mesh
from infu_jax.train_config import CheckpointConfig
from tests.training.conftest import flip_a_bit

MESH = make_mesh(2, 4, 1)


def items(value=0.0):
    """Two models and an optimizer: float32, bfloat16, integers, an array without elements."""
    big = jax.random.normal(jax.random.key(0), (16, 4096)) + value  # each shard is larger than `test_a_full_disk` allows, compressed too
    return {
        "infusenet": {"a.kernel": jax.device_put(big, NamedSharding(MESH, P(None, "fsdp"))), "none.kernel": jnp.zeros((0, 4))},
        "resampler": {"b.scale": jnp.ones(3, jnp.bfloat16) * value},
        "optimizer": {"step": jnp.asarray(int(value), jnp.int32)},
    }


def abstract():
    place = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(MESH, P("data") if x.ndim == 2 and x.size else P()))  # noqa: E731
    return jax.tree.map(place, items())


def save(folder, *steps, keep=5, every=None):
    checkpoints = run_state.Checkpoints(folder, CheckpointConfig(keep=keep, keep_every_steps=every))
    for step in steps:
        checkpoints.save(step, items(float(step)), {"note": step})
    checkpoints.wait()
    return checkpoints


def test_round_trip_onto_another_sharding(tmp_path):
    checkpoints, seen = save(tmp_path, 1, 2), []
    step, found = checkpoints.restore(abstract(), seen.append)
    assert step == 2 and seen[0]["note"] == 2 and seen[0]["step"] == 2
    for name, arrays in items(2.0).items():
        for key, value in arrays.items():
            assert found[name][key].dtype == value.dtype
            np.testing.assert_array_equal(found[name][key], value)
    assert found["infusenet"]["a.kernel"].sharding.spec == P("data")
    assert run_state.Checkpoints(tmp_path / "empty", CheckpointConfig()).restore(abstract(), seen.append) is None


def test_a_check_that_fails_stops_before_anything_is_read(tmp_path):
    def refuse(meta):
        raise InputError("another run")

    with pytest.raises(InputError, match="another run"):
        save(tmp_path, 1).restore(abstract(), refuse)


def test_what_is_kept(tmp_path):
    assert save(tmp_path, 1, 2, 3, 4, 5, 6, 7, keep=2, every=3).steps == [3, 6, 7]


@pytest.mark.parametrize("change", [("a.kernel", (3, 17)), ("b.scale", 1), ("step", ())])
def test_any_bit_changes_a_fingerprint(change):
    name, place = change
    arrays = {k: np.asarray(v) for item in items(3.0).values() for k, v in item.items() if v.size}
    before = run_state.fingerprints({k: jnp.asarray(v) for k, v in arrays.items()})
    for bit in range(arrays[name].itemsize * 8):
        changed = arrays[name].copy()
        words = changed.view({2: np.uint16, 4: np.uint32}[changed.itemsize])
        words[place] ^= np.array(1 << bit, words.dtype)
        after = run_state.fingerprints({**{k: jnp.asarray(v) for k, v in arrays.items()}, name: jnp.asarray(changed)})
        assert [k for k in before if before[k] != after[k]] == [name]


def test_a_fingerprint_knows_places_and_no_mesh():
    x = np.random.default_rng(0).standard_normal((16, 8)).astype(np.float32)
    places = [jax.device_put(x, NamedSharding(make_mesh(*mesh), P("data", "fsdp"))) for mesh in ((8, 1, 1), (2, 4, 1), (1, 8, 1))]
    assert len({run_state.fingerprints({"x": y})["x"] for y in places}) == 1
    assert run_state.fingerprints({"x": jnp.asarray(x)}) != run_state.fingerprints({"x": jnp.asarray(x[::-1])})


def remove_data(step):
    shutil.rmtree(step / "optimizer" / "d")
    shutil.rmtree(step / "optimizer" / "ocdbt.process_0")


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (lambda step: flip_a_bit(step / "infusenet"), "infusenet a.kernel is not what was saved"),
        (remove_data, "it cannot be read"),
        (lambda step: (step / "meta" / "metadata").write_text("{"), "not a whole checkpoint"),
        (lambda step: shutil.rmtree(step / "resampler"), "it cannot be read"),
    ],
)
def test_damage(tmp_path, damage, found):
    with save(tmp_path, 1, 2):
        pass
    damage(tmp_path / "checkpoints" / "2")
    checkpoints = run_state.Checkpoints(tmp_path, CheckpointConfig())
    with pytest.warns(UserWarning, match=rf"checkpoint .*2 is damaged: .*({found}).*kept as 2.damaged, and the one before it is used"):
        step, arrays = checkpoints.restore(abstract(), lambda meta: None)
    assert step == 1 and int(arrays["optimizer"]["step"]) == 1
    checkpoints.save(2, items(2.0), {})  # its number is free again
    checkpoints.wait()
    assert checkpoints.steps == [1, 2] and (tmp_path / "checkpoints" / "2.damaged").is_dir()


def test_a_full_disk(tmp_path):
    """The old checkpoint stays whole, what was written of the new one is removed, and the next one can be saved."""
    checkpoints = save(tmp_path, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))  # writing more fails as on a full disk
    try:
        with pytest.raises(run_state.CheckpointError, match=r"could not be written .*; the last whole one is of step 1"):
            checkpoints.save(2, items(2.0), {})
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert checkpoints.steps == [1]
    with checkpoints:
        for step in range(3, 13):  # Orbax's other threads may still be writing to the failed one when the next save removes it
            checkpoints.save(step, items(float(step)), {})
            checkpoints.wait()
            if not list((tmp_path / "checkpoints").glob("2*")):
                break
            time.sleep(0.5)
        assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {str(s) for s in checkpoints.steps}
        assert checkpoints.restore(abstract(), lambda meta: None)[0] == step


@pytest.mark.parametrize("method", ["save", "wait_until_finished", "close"])
def test_what_orbax_says_a_second_time(tmp_path, monkeypatch, method):
    """On a disk that stays full it raises what its threads raised once more, as a ValueError, wherever it is called next."""
    full = mock.Mock(side_effect=ValueError("RESOURCE_EXHAUSTED: no space left on device"))
    said = r"could not be written .*no space left on device\); the last whole one is of step 1"
    with pytest.raises(run_state.CheckpointError, match=said), save(tmp_path, 1) as checkpoints:
        monkeypatch.setattr(checkpoints._manager, method, full)
        if method == "save":
            checkpoints.save(2, items(2.0), {})
    monkeypatch.undo()
    checkpoints._manager.close()


def test_finding_a_model(tmp_path):
    with pytest.raises(InputError, match="has no finished checkpoint yet"):
        runs.newest(tmp_path)
    made = items(1.0)
    made["infusenet_ema"] = made["infusenet"]
    with run_state.Checkpoints(tmp_path, CheckpointConfig()) as checkpoints:
        checkpoints.save(10, made, {"models": {"infusenet": {"depth": 1}, "resampler": {}}})
    assert runs.is_run(tmp_path / "checkpoints" / "10") and not runs.is_run(tmp_path)  # run.json is the script's to write
    runs.write_run(tmp_path, {"settings": {}})
    assert runs.is_run(tmp_path)
    assert runs.find_model(tmp_path, "infusenet").weights.name == "infusenet_ema"
    assert runs.find_model(tmp_path / "checkpoints" / "10", "infusenet", ema=False) == (
        (tmp_path / "checkpoints" / "10" / "infusenet"), "infusenet", {"depth": 1},
    )  # fmt: skip
    with pytest.raises(InputError, match="holds no flux; this run trains infusenet, resampler"):
        runs.find_model(tmp_path, "flux")


def test_the_models_of_a_run_are_found_from_elsewhere(tmp_path, monkeypatch):
    """A relative path is seen from where the run was started; one that is nowhere is a name on a hub."""
    run, there = tmp_path / "run", tmp_path / "there"
    (there / "models" / "base").mkdir(parents=True)
    run.mkdir()
    monkeypatch.chdir(there)
    hub = "black-forest-labs/FLUX.1-dev"
    runs.write_run(run, {"settings": {"models.base": "models/base", "models.transformer": hub, "models.arcface": None}})
    monkeypatch.chdir(tmp_path)
    assert runs.models_of(run) == {"base": there / "models" / "base", "transformer": Path(hub)}
