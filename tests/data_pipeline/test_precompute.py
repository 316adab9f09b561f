"""Features computed ahead are those that training would compute, whatever happened on the way."""

import dataclasses
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipeline import buckets, features, index, loader, precompute, records, transforms
from infu_jax import checkpoint, face, objective
from infu_jax.errors import InputError
from infu_jax.tokenizers import load_clip_tokenizer, load_t5_tokenizer
from infu_jax.train_config import DataConfig
from tests import random_stack
from tests.conftest import ROOT, assert_close

CFG = DataConfig(resolution=96, bucket_step=32, t5_length=40)
FLUX, INFU = random_stack.folders()
OPTIONS = ("--base", FLUX, "--infu", INFU, "--resolution", "96", "--bucket-step", "32", "--t5-length", "40", "--batch", "1")
SMALL = ("--features", "clip", "arcface", "--part-mib", "0.0005", *OPTIONS)  # compiled in a second; parts of 2 rows


def run(*options):
    """The command, here."""
    before, sys.argv = sys.argv, ["precompute", *map(str, options)]
    try:
        precompute.main()
    finally:
        sys.argv = before


def contents(dataset):
    """Every file of the features, hidden ones too."""
    folder = dataset / "features"
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def copy(dataset, folder):
    return Path(shutil.copytree(dataset, folder / "people"))


@pytest.fixture(scope="module")
def everything(pairs_dataset, tmp_path_factory):
    """All features in float32."""
    dataset = copy(pairs_dataset, tmp_path_factory.mktemp("everything"))
    run(dataset, "--features", *features.FEATURES, "--store", "float32", *OPTIONS)
    return dataset


@pytest.fixture(scope="module")
def undisturbed(pairs_dataset, tmp_path_factory):
    """What `SMALL` gives."""
    dataset = copy(pairs_dataset, tmp_path_factory.mktemp("undisturbed"))
    run(dataset, *SMALL)
    return contents(dataset)


def opened(dataset, feature, split="train", cfg=CFG):
    fingerprint = index.open_index(dataset, split).fingerprint
    return features.open_features(dataset, split, feature, fingerprint=fingerprint, settings=features.settings_of(feature, cfg))


@pytest.mark.parametrize("split", ["train", "validation"])
def test_agrees_with_the_training_step(everything, tiny, split):
    """Every row of every feature, computed one by one from the records: the models' own numbers within 1e-5 of the largest (here 1e-7 to 1e-6)."""
    base, infu = tiny
    vae, t5, clip, arcface = (checkpoint.load_model(path, name) for path, name in ((base, "autoencoder"), (base, "t5"), (base, "clip"), (infu, "arcface")))
    moments = jax.jit(lambda pixels: jnp.stack(vae.moments(pixels[None].astype(jnp.float32) / 127.5 - 1))[:, 0])
    embed = jax.jit(lambda crop: arcface(crop[None])[0])
    encode_t5, encode_clip = jax.jit(lambda ids: t5(ids)[0]), jax.jit(lambda ids: clip(ids)[1][0])
    t5_tokenizer, clip_tokenizer = load_t5_tokenizer(base / "tokenizer_2"), load_clip_tokenizer(base / "tokenizer")
    found = {feature: opened(everything, feature, split) for feature in features.FEATURES}
    pairs = {feature: [] for feature in features.FEATURES}
    table = buckets.buckets(96, 32)
    source = records.open_records(everything, split)
    used = set()
    for number in range(len(source)):
        record = source[number]
        bucket = table[int(buckets.nearest(np.array([record.target_size]), table)[0])]
        used.add(bucket)
        pixels, points = transforms.fitted(record.target, record.target_size, bucket, record.target_keypoints, record.target_face)
        pairs["latents"].append((found["latents"].read(number), moments(pixels)))
        pairs["control"].append((found["control"].read(number), moments(transforms.control_image(bucket, points))))
        faces = [(record.target, record.target_size, record.target_keypoints)]
        faces += [(record.identity, record.identity_size, record.identity_keypoints)] if record.identity else []
        for item, photo in enumerate(faces):
            pairs["arcface"].append((found["arcface"].read(number, item), embed(face.arcface_input(transforms.identity_crop(*photo)))))
        for item, caption in enumerate(record.captions):
            pairs["t5"].append((found["t5"].read(number, item), encode_t5(t5_tokenizer.encode([caption.text], 40))))
            pairs["clip"].append((found["clip"].read(number, item), encode_clip(clip_tokenizer.encode([caption.text], 77))))
    pairs["t5"].append((found["t5"].constant("empty"), encode_t5(t5_tokenizer.encode([""], 40))))
    pairs["clip"].append((found["clip"].constant("empty"), encode_clip(clip_tokenizer.encode([""], 77))))
    for height, width in used:
        pairs["control"].append((found["control"].constant(f"black-{height}x{width}"), moments(transforms.control_image((height, width), None))))
    assert len(used) == (3 if split == "train" else 2)
    for feature, both in pairs.items():
        assert len(both) == found[feature].plan.starts[-1], f"{feature}: rows that belong to nothing"
        for ours, theirs in both:
            assert ours.dtype == np.float32
            assert_close(ours, np.asarray(theirs), 1e-5)


def test_training_sees_no_difference(everything, tiny):
    """The loader's batches with features and without, after the encoders of the training step: empty prompts and black control images too."""
    base, infu = tiny
    cfg = dataclasses.replace(CFG, paths=(str(everything),), pairing="spms", prompt_dropout=0.3, id_dropout=0.3, caption_weights={"user": 2.0})
    models = {name: checkpoint.load_model(infu if name == "arcface" else base, name) for name in ("autoencoder", "t5", "clip", "arcface")}
    models["infusenet"] = None  # encode asks whether there is one
    tokenizers = dict(t5_tokenizer=load_t5_tokenizer(base / "tokenizer_2"), clip_tokenizer=load_clip_tokenizer(base / "tokenizer"))
    encode = jax.jit(lambda batch, draws: objective.encode(models, batch, draws, jnp.float32))
    kept, empty = set(), 0
    with (
        loader.open_loader(cfg, batch_size=1, seed=3) as ahead,
        loader.open_loader(dataclasses.replace(cfg, features=()), batch_size=1, seed=3, **tokenizers) as live,
    ):
        assert ahead.features == features.FEATURES and live.features == () and ahead.steps_per_epoch() == 12
        for step in range(18):
            given, computed = ahead.dataset[step], live.dataset[step]
            assert set(given) & set(computed) == {"id_keep", "record", "epoch"} and given["record"] == computed["record"]
            shape = given["latent_mean"].shape
            noise = jax.random.normal(jax.random.key(step), (3, *shape))
            draws = objective.Draws(jnp.zeros(1), *noise)
            for a, b in zip(jax.tree.leaves(encode(given, draws)), jax.tree.leaves(encode(computed, draws)), strict=True):
                assert_close(np.asarray(a), np.asarray(b), 1e-5) if np.any(b) else np.testing.assert_array_equal(a, b)
            kept.add((bool(computed["id_keep"][0]), bool(computed["control"].any())))
            empty += computed["t5_ids"][0, 0] == tokenizers["t5_tokenizer"].encode([""], 1)[0, 0]
    assert len(kept) == 4 and 0 < empty < 18, "all kinds of dropout occur"


def test_differing_inputs_give_differing_rows(everything):
    """Or else the test above could pass with models that ignore their input."""
    for feature in features.FEATURES:
        found = opened(everything, feature)
        group = found.plan.groups[0]
        rows = [found._row(group, row) for row in range(group.rows)]
        assert min(np.abs(a - b).max() for n, a in enumerate(rows) for b in rows[:n]) > 1e-4, feature


def test_float16_is_close(everything, pairs_dataset, tmp_path):
    """The default for moments: half the bytes, 11 bits."""
    dataset = copy(pairs_dataset, tmp_path)
    run(dataset, "--features", "latents", "--split", "validation", *OPTIONS)
    half, whole = opened(dataset, "latents", "validation"), opened(everything, "latents", "validation")
    assert features.available(dataset, "train") == () and half.read(0).dtype == np.float16
    for number in range(half.plan.records):
        assert_close(half.read(number).astype(np.float32), whole.read(number), 2**-11)


def test_done_is_done(everything, capsys):
    before = contents(everything)
    run(everything, "--features", "clip", "--store", "float32", *OPTIONS)
    assert "clip train: nothing to compute" in capsys.readouterr().out
    assert contents(everything) == before


KILLED = """
import os, signal, sys
from data_pipeline import features, precompute
whole, calls = features._write, 0
def write(path, fill):
    global calls
    calls += 1
    def die(file):
        file.write(b"half a part"), file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    whole(path, die if calls == int(os.environ["WRITES"]) else fill)
features._write = write
precompute.main()
"""


@pytest.mark.parametrize("writes", [5, 1])
def test_kill_9_then_the_same_again(pairs_dataset, undisturbed, tmp_path, writes, capsys):
    """Killed by SIGKILL in the middle of a part, and of the first file of all."""
    dataset = copy(pairs_dataset, tmp_path)
    env = {**os.environ, "WRITES": str(writes), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", KILLED, str(dataset), *SMALL], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == -9, done.stderr
    killed = contents(dataset)
    assert sum(name.endswith(".partial") for name in killed) == 1 and len(killed) == writes
    assert not any(name.endswith("complete") for name in killed)
    with pytest.raises(InputError, match="not complete" if writes > 1 else "has no feature clip"):
        opened(dataset, "clip")
    run(dataset, *SMALL)
    assert contents(dataset) == undisturbed
    assert ("parts were there" in capsys.readouterr().out) == (writes > 1)


@pytest.mark.parametrize("joined", [False, True])
def test_two_processes(pairs_dataset, undisturbed, tmp_path, joined):
    """At the same time, alone or joined by JAX; they give what one gives, and the last to finish seals it."""
    dataset = copy(pairs_dataset, tmp_path)
    if joined:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            place = f"127.0.0.1:{free.getsockname()[1]}"
        options = ["--distributed.coordinator", place, "--distributed.processes", "2", "--distributed.process"]
    else:
        options = ["--process-count", "2", "--process-index"]
    command = [sys.executable, "-m", "data_pipeline.precompute", str(dataset), *SMALL, *options]
    both = [subprocess.Popen([*command, str(n)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for n in range(2)]
    told = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    assert contents(dataset) == undisturbed
    faces = [int(line.split()[2]) for out, _ in told for line in out.splitlines() if line.startswith("arcface train")]
    assert sum(faces) == 15 and min(faces) >= 7, "both did their part"


def test_one_of_two_processes_is_not_all(pairs_dataset, tmp_path, capsys):
    dataset = copy(pairs_dataset, tmp_path)
    run(dataset, *SMALL, "--process-count", "2")
    assert "parts are left to other processes" in capsys.readouterr().out
    assert features.available(dataset, "train") == ()


@pytest.mark.parametrize(
    "options, message",
    [
        (["--batch", "0"], "--batch is 0"),
        (["--process-count", "2", "--process-index", "2"], "--process-index is 2; with --process-count 2 it is 0 to 1"),
        (["--replace", "--process-count", "2"], "--replace is for one process"),
        (["--resolution", "32", "--bucket-step", "64"], "data.resolution is 32"),
        (["--split", "test"], "test"),
        (["--base", "/nowhere"], "/nowhere"),
        (["--base", "/nowhere", "--features", "arcface"], "ArcFace would be the embedded tiny one; give --arcface"),
    ],
)
def test_bad_options(everything, options, message):
    before = contents(everything)
    with pytest.raises((InputError, OSError), match=message):
        run(everything, "--features", "clip", *options)
    assert contents(everything) == before


def test_other_settings_are_refused(everything, tmp_path):
    """And named, until --replace is given."""
    dataset = copy(everything, tmp_path)
    before, other = contents(dataset), ("--features", "t5", "--store", "float32", *OPTIONS, "--t5-length", "16")
    with pytest.raises(InputError, match="'t5_length': 40.*'t5_length': 16"):
        run(dataset, *other)
    assert contents(dataset) == before
    run(dataset, *other, "--replace")
    assert opened(dataset, "t5", cfg=DataConfig(resolution=96, bucket_step=32, t5_length=16)).constant("empty").shape[0] == 16
    with pytest.raises(InputError, match="computed with t5_length 16, the run asks for t5_length 40"):
        opened(dataset, "t5")
    assert set(contents(dataset)) == set(before)


def test_another_model_is_refused(everything, tiny, tmp_path, capsys):
    """The same one in another file format is not another."""
    vae = checkpoint.load_model(tiny[0], "autoencoder")
    checkpoint.save_model(tmp_path / "same", "autoencoder", vae)
    checkpoint.save_model(tmp_path / "other", "autoencoder", jax.tree.map(lambda x: x * 1.01, vae))
    before, options = contents(everything), ("--features", "latents", "--store", "float32", *OPTIONS, "--autoencoder")
    run(everything, *options, tmp_path / "same")
    assert "latents train: nothing to compute" in capsys.readouterr().out
    with pytest.raises(InputError, match="latents/train was begun with model [0-9a-f]{16}, this run has [0-9a-f]{16}"):
        run(everything, *options, tmp_path / "other")
    assert contents(everything) == before


def test_room_is_asked_for_first(pairs_dataset, tmp_path, monkeypatch):
    dataset = copy(pairs_dataset, tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(InputError, match="clip/train needs 0 MiB more and its disk has 0 MiB free; make room"):
        run(dataset, *SMALL)
    assert not any(name.endswith(".npy") and "rows" not in name for name in contents(dataset))


def test_a_damaged_picture_is_named(pairs_dataset, tmp_path, monkeypatch):
    """Builders refuse them; a copied file may rot."""
    whole = records.Records.__getitem__

    def rotten(self, number):
        record = whole(self, number)
        if number == 3:
            object.__setattr__(record, "target", record.target[:200])
        return record

    monkeypatch.setattr(records.Records, "__getitem__", rotten)
    dataset = copy(pairs_dataset, tmp_path)
    with pytest.raises(InputError, match=r"people, split train, record 3 \(0-3\): "):
        run(dataset, *SMALL)
    assert features.available(dataset, "train") == ("clip",)
