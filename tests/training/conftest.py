"""A small dataset of drawn people with its features, and training runs on it, in this process and in others."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import train as script
from infu_jax import run_state, runs
from tests.conftest import ROOT

ARCFACE = "recognition_arcface_ir_se50.pth"
RECIPE = '''
"""Toy sizes for tests."""
from pathlib import Path
from infu_jax.config import ResamplerConfig
from infu_jax.train_config import CheckpointConfig, DataConfig, ModelsConfig, OptimizerConfig, TrainConfig, ValidationConfig

def get_config():
    return TrainConfig(
        out=Path("unset"), steps=4, batch_size=8, log_every_steps=1, compilation_cache=Path({cache!r}),
        models=ModelsConfig(
            base=Path({base!r}), arcface=Path({arcface!r}),
            infusenet_blocks=(1, 2), resampler=ResamplerConfig(dim=64, depth=1, heads=1),
        ),
        data=DataConfig(paths=({data!r},), resolution=64, bucket_step=16, t5_length=16, max_aspect=1.0, threads=2),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=2, ema_decay=0.9),
        checkpoint=CheckpointConfig(every_steps=2), validation=ValidationConfig(every_steps=None),
    )
'''


@pytest.fixture(scope="session")
def people(tmp_path_factory):
    """39 pictures of 13 people to train on, 9 of 3 others, 96 pixels wide, without features: by the commands that users give."""
    folder = tmp_path_factory.mktemp("people")
    build = ["--source", folder / "drawn/manifest.jsonl", "--out", folder / "data", "--validation-share", "0.2"]
    small = ["--filters.min-side", "64", "--filters.min-face", "24", "--filters.min-sharpness", "0"]
    python("-m", "data_pipeline.people", folder / "drawn", "--people", 16, "--pictures", 3, "--size", 96, "--look", "clean")
    python("-m", "data_pipeline.build", *build, *small)
    return folder / "data"


@pytest.fixture(scope="session")
def featured(people, tiny, tmp_path_factory):
    """The same dataset with all features, so that a step's program is the transformers' alone."""
    import shutil

    data = tmp_path_factory.mktemp("featured") / "data"
    shutil.copytree(people, data)
    options = ["--resolution", 64, "--bucket-step", 16, "--max-aspect", "1.0", "--t5-length", 16]
    models = ["--base", tiny[0], "--arcface", tiny[1] / ARCFACE]
    python("-m", "data_pipeline.precompute", data, "--features", "latents", "control", "t5", "clip", "arcface", *models, *options)
    return data


@pytest.fixture(scope="session")
def recipe(featured, tiny, tmp_path_factory):
    """Path of a recipe for `featured`: 4 steps of 8 pictures, a checkpoint every 2."""
    folder = tmp_path_factory.mktemp("recipe")
    path = folder / "recipe.py"
    path.write_text(RECIPE.format(cache=str(folder / "cache"), data=str(featured), base=str(tiny[0]), arcface=str(tiny[1] / ARCFACE)))
    return path


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory):
    """Tests here compile the same steps again and again."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("programs")))
    yield
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.fixture
def train(recipe, monkeypatch, capsys):
    """Trains in this process, on its eight devices: train(out, *options) -> what was printed."""
    before = jax.config.jax_compilation_cache_dir

    def train(out, *options):
        monkeypatch.setattr(sys, "argv", ["train.py", *map(str, [recipe, "--out", out, *options])])
        script.main()
        return capsys.readouterr()

    yield train
    jax.config.update("jax_compilation_cache_dir", before)


def start(recipe, out, *options, devices=1, preexec_fn=None):
    """Begins training in another process."""
    flags = re.sub(r"device_count=\d+", f"device_count={devices}", os.environ["XLA_FLAGS"])
    command = [sys.executable, ROOT / "train.py", recipe, "--out", out, *options]
    return subprocess.Popen(
        list(map(str, command)),
        env={**os.environ, "XLA_FLAGS": flags},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=preexec_fn,
    )


def finish(process, code=0, timeout=300):
    """Waits for it; returns (stdout, stderr)."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        out, err = process.communicate()
    assert process.returncode == code, f"exit {process.returncode}\n{out}\n{err[-5000:]}"
    return out, err


def python(*arguments):
    """Runs a command as users do."""
    done = subprocess.run([sys.executable, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def saved(out: Path, step: int) -> dict[str, np.ndarray]:
    """Every number of a checkpoint, by item and name, read without its sharding."""
    folder = out / "checkpoints" / str(step)
    meta = runs.read_meta(folder)
    found = {}
    for item in meta["fingerprints"]:
        arrays = read(folder / item)
        assert run_state.fingerprints(arrays) == meta["fingerprints"][item]
        found |= {f"{item}/{name}": np.asarray(x) for name, x in arrays.items()}
    return found


def read(item: Path) -> dict[str, jax.Array]:
    """One item of a checkpoint, on one device."""
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as reader:
        shapes, where = reader.metadata(item.absolute()).item_metadata.tree, jax.sharding.SingleDeviceSharding(jax.devices()[0])
        return reader.restore(item.absolute(), {k: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=where) for k, v in shapes.items()})


def assert_same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]):
    """Bit for bit."""
    assert a.keys() == b.keys()
    assert not [name for name in a if a[name].tobytes() != b[name].tobytes()]


def flip_a_bit(item: Path):
    """One bit of the largest file: of a number, where the item can still be read. In the storage's own words it would be another error."""
    path = max((p for p in item.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data, before = path.read_bytes(), run_state.fingerprints(read(item))
    for place in range(len(data) // 2, len(data), 101):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        try:
            if run_state.fingerprints(read(item)) != before:
                return
        except ValueError:
            continue
    raise AssertionError(f"no bit of a number found in {path}")
