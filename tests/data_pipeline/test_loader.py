"""data_pipeline.loader: what a batch holds, that processes and workers agree, resuming, features, errors, and how it ends."""

import dataclasses
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from data_pipeline import features, samples, spms, transforms
from data_pipeline.index import open_index
from data_pipeline.loader import open_loader
from data_pipeline.records import Caption, Record, Records, encode, open_records
from infu_jax import face
from infu_jax.errors import InputError
from infu_jax.tokenizers import load_clip_tokenizer, load_t5_tokenizer
from infu_jax.train_config import DataConfig
from tests.conftest import ROOT

SMALL = DataConfig(resolution=128, bucket_step=32, t5_length=64, threads=3, prefetch=3)


@pytest.fixture(scope="module")
def tokenizers(tiny):
    return {"t5_tokenizer": load_t5_tokenizer(tiny[0] / "tokenizer_2"), "clip_tokenizer": load_clip_tokenizer(tiny[0] / "tokenizer")}


@pytest.fixture
def load(tokenizers):
    """Opens loaders, and closes them."""
    opened = []

    def load(*paths, batch_size=2, seed=0, process=(0, 1), tokens=True, faces=(), **settings):
        cfg = dataclasses.replace(SMALL, paths=tuple(map(str, paths)), **settings)
        given = (tokenizers if tokens else {}) | {"faces": faces}
        opened.append(open_loader(cfg, batch_size=batch_size, seed=seed, process_index=process[0], process_count=process[1], **given))
        return opened[-1]

    yield load
    for loader in opened:
        loader.close()


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].dtype == other[name].dtype, name
        np.testing.assert_array_equal(one[name], other[name], name)


def take(loader, count, start=0):
    return list(itertools.islice(loader.iterate(start), count))


# What a batch holds -------------------------------------------------------------------------------


@pytest.mark.parametrize("which, pairing", [("pairs_dataset", "spss"), ("pairs_dataset", "spms"), ("dataset", "spss")])
def test_rows_are_made_of_their_records(load, request, tokenizers, which, pairing):
    """`dataset` has larger pictures, which are decoded at a quarter for the target and in full for the crop."""
    path = request.getfixturevalue(which)
    loader = load(path, pairing=pairing, batch_size=1)
    records, index = open_records(path, "train"), open_index(path, "train")
    kept, shown, texts, inline = set(), set(), set(), set()
    for step in range(3 * loader.steps_per_epoch()):
        batch, rows, bucket = loader.dataset[step], loader.plan.rows(step), loader.bucket_of(step)
        number = int(batch["record"][0])
        record = records[number]
        assert [number] == rows.targets and batch["epoch"] == step // loader.steps_per_epoch()
        pixels, points = transforms.fitted(record.target, record.target_size, bucket, record.target_keypoints, record.target_face)
        np.testing.assert_array_equal(batch["pixels"][0], pixels)
        drawn = transforms.control_image(bucket, points)
        control = batch["control"][0]
        assert not control.any() or np.array_equal(control, drawn)
        shown.add(bool(control.any()))
        other = records[int(rows.identities[0])]
        if rows.inline[0]:
            assert other.key == record.key
            crop = transforms.identity_crop(other.identity, other.identity_size, other.identity_keypoints)
        else:
            assert other.person == record.person and (other.key == record.key) == (pairing == "spss")
            crop = transforms.identity_crop(other.target, other.target_size, other.target_keypoints)
        np.testing.assert_array_equal(batch["id_crop"][0], crop)
        inline.add(bool(rows.inline[0]))
        possible = {text: tokenizers["t5_tokenizer"].encode([text], 64)[0] for text in ("", *(caption.text for caption in record.captions))}
        (text,) = [text for text, ids in possible.items() if np.array_equal(ids, batch["t5_ids"][0])]
        np.testing.assert_array_equal(batch["clip_ids"], tokenizers["clip_tokenizer"].encode([text], 77))
        assert len(record.captions) == index.captions[number] and (record.captions or text == "")
        texts.add(text)
        kept.add(bool(batch["id_keep"][0]))
    assert kept == shown == {True, False} and "" in texts and len(texts) > 5
    assert inline == ({True, False} if pairing == "spms" else {False})


def test_shapes_and_types_are_those_of_the_example(load, dataset):
    loader = load(dataset)
    seen = set()
    for step in range(loader.steps_per_epoch()):
        batch, bucket = loader.dataset[step], loader.bucket_of(step)
        seen.add(bucket)
        example = loader.example(bucket)
        assert {name: (array.shape, array.dtype) for name, array in batch.items()} == {name: (array.shape, array.dtype) for name, array in example.items()}
        assert {name: (array.shape, str(array.dtype)) for name, array in example.items()} == {
            "pixels": ((2, *bucket, 3), "uint8"),
            "control": ((2, *bucket, 3), "uint8"),
            "id_crop": ((2, 112, 112, 3), "uint8"),
            "t5_ids": ((2, 64), "int32"),
            "clip_ids": ((2, 77), "int32"),
            "id_keep": ((2,), "bool"),
            "record": ((2,), "int64"),
            "epoch": ((2,), "int32"),
        }
    assert seen == set(loader.buckets) and len(seen) > 1


def test_where_faces_are(load, dataset, with_features):
    """Of pictures and of features, in pixels of the bucket; the rest of a batch is as it is without them."""
    for path, more in ((dataset, {}), (with_features[0], {"tokens": False})):
        plain, loader, records = load(path, **more), load(path, faces=("face_box", "face_points"), **more), open_records(path, "train")
        for step in range(loader.steps_per_epoch()):
            batch, bucket = dict(loader.dataset[step]), loader.bucket_of(step)
            boxes, points = batch.pop("face_box"), batch.pop("face_points")
            assert_same(batch, plain.dataset[step])
            for box, five, number in zip(boxes, points, batch["record"]):
                record = records[number]
                how = transforms.fit(record.target_size, bucket, record.target_keypoints, record.target_face)
                left, top, right, bottom = record.target_face / how.reduction
                scale = bucket[1] / (how.box[2] - how.box[0]), bucket[0] / (how.box[3] - how.box[1])
                expected = [(left - how.box[0]) * scale[0], (top - how.box[1]) * scale[1], (right - how.box[0]) * scale[0], (bottom - how.box[1]) * scale[1]]
                np.testing.assert_allclose(box, expected, atol=1e-3)
                assert box.dtype == np.float32 and box[0] < box[2] and box[1] < box[3]
                np.testing.assert_allclose(five, (record.target_keypoints / how.reduction - how.box[:2]) * scale, atol=1e-3)
                assert five.dtype == np.float32


def lots(count=20000, captions=(), seed=0, **settings):
    """What `Draw` decides for many records."""
    step = samples.Draw(seed, settings.pop("weights", {}), **{"prompt_dropout": 0.1, "id_dropout": 0.1, "keypoint_share": 0.5, **settings})
    record = Record("k", "p", b"x", (9, 9), np.zeros((5, 2), np.float32), np.zeros(4, np.float32), captions=captions) if captions else None
    caption, keep, keypoints = [], [], []
    for number in range(count):
        out = {name: np.zeros((), dtype) for name, (_, dtype) in step.arrays((8, 8)).items()}
        sample = samples.Sample(number % 7, (8, 8), (0, number), (0, number), False, number, 3, out, target_record=record)
        step(sample)
        caption.append(-1 if sample.caption is None else sample.caption)
        keep.append(bool(out["id_keep"]))
        keypoints.append(sample.keypoints)
    return np.array(caption), np.array(keep), np.array(keypoints)


def assert_share(found, expected):
    """Within four standard deviations; the seed is fixed."""
    assert abs(found.mean() - expected) < 4 * np.sqrt(expected * (1 - expected) / len(found)), (found.mean(), expected)


def test_shares_are_those_of_the_settings():
    caption, keep, keypoints = lots(prompt_dropout=0.2, id_dropout=0.05, keypoint_share=0.7)
    assert_share(caption == -1, 0.2)
    assert_share(~keep, 0.05)
    assert_share(keypoints, 0.7)
    for number in range(3):
        assert_share(caption == number, 0.8 / 3)
    # Independent of each other.
    assert_share((caption == -1) & ~keep, 0.2 * 0.05)
    assert_share(keypoints & ~keep, 0.7 * 0.05)
    for share in (0.0, 1.0):
        caption, keep, keypoints = lots(200, prompt_dropout=share, id_dropout=share, keypoint_share=share)
        assert ((caption == -1) == share).all() and (keep == (share == 0)).all() and (keypoints == share).all()


def test_captions_are_drawn_by_the_weights_of_their_sources():
    captions = (Caption("a", "user"), Caption("b", "blip"), Caption("c", "blip"), Caption("d", "other"))
    caption = lots(captions=captions, prompt_dropout=0.0, weights={"user": 3.0, "blip": 0.5})[0]
    for number, share in enumerate((0.6, 0.1, 0.1, 0.2)):
        assert_share(caption == number, share)
    assert set(lots(500, captions=captions, prompt_dropout=0.0, weights={"user": 0.0, "other": 0.0})[0]) == {1, 2}
    assert set(lots(500, captions=captions[:1], prompt_dropout=0.0, weights={"user": 0.0})[0]) == {-1}
    # Equal weights need no record: the same captions are drawn where features replace it.
    three = tuple(Caption(text, "user") for text in "abc")
    np.testing.assert_array_equal(lots(500, captions=three)[0], lots(500)[0])


def test_one_share_does_not_change_the_other_lots():
    caption, keep, keypoints = lots(1000)
    other = lots(1000, prompt_dropout=0.5, id_dropout=0.1, keypoint_share=0.5)
    np.testing.assert_array_equal(other[1], keep)
    np.testing.assert_array_equal(other[2], keypoints)
    both = (caption >= 0) & (other[0] >= 0)
    np.testing.assert_array_equal(other[0][both], caption[both])
    assert (lots(1000, seed=1)[2] != keypoints).mean() > 0.3


# Processes, workers, resuming ---------------------------------------------------------------------


@pytest.mark.parametrize("pairing", ["spss", "spms"])
def test_processes_share_the_global_batch(load, pairs_dataset, dataset, pairing):
    paths, settings = (pairs_dataset, dataset), {"pairing": pairing, "batch_size": 4}
    whole = load(*paths, **settings)
    halves = [load(*paths, process=(n, 2), **settings) for n in range(2)]
    shown = []
    for step in range(2 * whole.steps_per_epoch()):
        parts = [half.dataset[step] for half in halves]
        assert parts[0]["pixels"].shape == parts[1]["pixels"].shape == (2, *whole.bucket_of(step), 3)
        assert_same({name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, whole.dataset[step])
        if step < whole.steps_per_epoch():
            shown += [set(part["record"]) for part in parts]
    assert sum(map(len, shown)) == len(set.union(*shown)) == 4 * whole.steps_per_epoch()


def test_resuming_equals_going_on(load, pairs_dataset):
    """With 0 and with 2 workers, and from one to the other: 10 batches, over the end of an epoch."""
    expected = take(load(pairs_dataset, pairing="spms"), 10)
    assert expected[-1]["epoch"].max() >= 1
    for workers, start in ((0, 4), (2, 0), (2, 3)):
        with load(pairs_dataset, pairing="spms", workers=workers) as loader:
            for batch, other in zip(take(loader, 10 - start, start), expected[start:], strict=True):
                assert_same(batch, other)


@pytest.mark.parametrize("workers", [0, 2])
def test_grains_own_state(load, pairs_dataset, workers):
    with load(pairs_dataset, workers=workers) as loader:
        iterator = loader.iterate(start=1)
        for _ in range(3):
            next(iterator)
        state = json.loads(json.dumps(iterator.get_state()))  # as a checkpoint would keep it
        expected = [next(iterator) for _ in range(4)]
        iterator.set_state(state)
        for batch in expected:
            assert_same(next(iterator), batch)
        assert_same(expected[0], loader.dataset[4])


def test_another_seed_gives_another_order(load, dataset):
    orders = [[batch["record"].tolist() for batch in take(load(dataset, seed=seed), 6)] for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]


def test_the_fingerprint_tells_what_changes_the_data(load, dataset, pairs_dataset):
    first = load(dataset).fingerprint
    assert json.loads(json.dumps(first)) == first
    assert load(dataset, workers=1, threads=1, prefetch=1, process=(0, 2)).fingerprint == first
    others = [{"pairing": "spms"}, {"batch_size": 4}, {"seed": 1}, {"prompt_dropout": 0.3}, {"caption_weights": {"text": 2.0}}, {"max_per_person": 1}]
    for settings in others:
        assert load(dataset, **settings).fingerprint != first, settings
    assert load(pairs_dataset).fingerprint != first != load(dataset, pairs_dataset).fingerprint


# Features -----------------------------------------------------------------------------------------


LATENT = (3, 4)  # any h, w, as long as a bucket has one


def write_feature(dataset, feature, groups, rows, settings):
    """A feature whose every value is the number of its row, in all groups together."""
    folder = features.folder_of(dataset, feature, "train")
    index = open_index(dataset, "train")
    plan = features.Plan(
        feature, "train", index.fingerprint, index.records, "some model", settings, "float16", "float32", tuple(features.Group(*g, 4) for g in groups)
    )
    features.begin(folder, plan, np.asarray(rows, np.int64))
    at = 0
    for group, number in plan.parts():
        count = len(group.part(number))
        values = np.arange(at, at + count, dtype=np.float32).reshape(count, *[1] * len(group.shape))
        moments = len(group.shape) == 4  # the log-variance is 0.5 more, to tell it apart
        values = values + 0.5 * np.arange(2).reshape(2, 1, 1, 1) if moments else values
        features.write_part(folder, plan, group, number, np.broadcast_to(values, (count, *group.shape)))
        at += count
    assert features.seal(folder, plan) == 0
    return plan


@pytest.fixture
def with_features(pairs_dataset, tmp_path):
    """`pairs_dataset` with every feature; where they are comes back too."""
    from data_pipeline.buckets import buckets, nearest
    from data_pipeline.index import INLINE_IDENTITY

    copy = Path(shutil.copytree(pairs_dataset, tmp_path / "with_features"))
    index = open_index(copy, "train")
    table = buckets(SMALL.resolution, SMALL.bucket_step, SMALL.max_aspect)
    numbers = nearest(index.sizes, table)
    used = np.unique(numbers)
    order = np.argsort(numbers, kind="stable")
    names = [f"{table[n][0]}x{table[n][1]}" for n in used]
    latents = [(name, int((numbers == n).sum()), (2, *LATENT, 5)) for n, name in zip(used, names)]
    blacks = [(f"black-{name}", 1, (2, *LATENT, 5)) for name in names]
    captions = np.concatenate([[0], np.cumsum(index.captions, dtype=np.int64)])
    faces = np.concatenate([[0], np.cumsum(1 + (index.flags & INLINE_IDENTITY > 0))])
    shape = {"resolution": 128, "bucket_step": 32, "max_aspect": 2.0}
    write_feature(copy, "latents", latents, np.argsort(order), shape)
    write_feature(copy, "control", latents + blacks, np.argsort(order), shape)
    write_feature(copy, "t5", [("captions", int(captions[-1]), (64, 6)), ("empty", 1, (64, 6))], captions, {"t5_length": 64})
    write_feature(copy, "clip", [("captions", int(captions[-1]), (7,)), ("empty", 1, (7,))], captions, {})
    write_feature(copy, "arcface", [("faces", int(faces[-1]), (16,))], faces, {})
    return copy, np.argsort(order), {name: index.records + n for n, name in enumerate(names)}, captions, faces


@pytest.mark.parametrize("pairing", ["spss", "spms"])
def test_features_are_read_instead_of_pictures(load, with_features, tokenizers, pairing, monkeypatch):
    path, latents, blacks, captions, faces = with_features
    pictures = load(path, pairing=pairing, features=())
    loader = load(path, pairing=pairing, tokens=False)
    assert loader.features == features.FEATURES and pictures.features == ()
    reference = [pictures.dataset[step] for step in range(2 * loader.steps_per_epoch())]
    records = open_records(path, "train")
    texts = {n: [tokenizers["clip_tokenizer"].encode([c.text], 77)[0] for c in records[n].captions] for n in range(len(records))}
    monkeypatch.setattr(Records, "__getitem__", lambda self, number: pytest.fail("a record was read"))
    empty = black = 0
    for step, expected in enumerate(reference):
        batch, rows = loader.dataset[step], loader.plan.rows(step)
        example = loader.example(loader.bucket_of(step))
        assert {name: (a.shape, a.dtype) for name, a in batch.items()} == {name: (a.shape, a.dtype) for name, a in example.items()}
        assert batch["latent_mean"].shape == (2, *LATENT, 5) and batch["latent_mean"].dtype == np.float32
        assert batch["txt"].shape == (2, 64, 6) and batch["txt"].dtype == np.float16
        assert batch["y"].shape == (2, 7) and batch["id_embedding"].shape == (2, 16) and batch["y"].dtype == batch["id_embedding"].dtype == np.float32
        for name in ("id_keep", "record", "epoch"):  # the same lots and rows as from pictures
            np.testing.assert_array_equal(batch[name], expected[name])
        for row, number in enumerate(batch["record"]):
            assert (batch["latent_mean"][row] == latents[number]).all() and (batch["latent_logvar"][row] == latents[number] + 0.5).all()
            height, width = loader.bucket_of(step)
            shown = expected["control"][row].any()
            at = latents[number] if shown else blacks[f"{height}x{width}"]
            assert (batch["control_mean"][row] == at).all() and (batch["control_logvar"][row] == at + 0.5).all()
            black += not shown
            assert (batch["id_embedding"][row] == faces[rows.identities[row]] + rows.inline[row]).all()
            chosen = [n for n, ids in enumerate(texts[number]) if np.array_equal(ids, expected["clip_ids"][row])]
            at = captions[number] + chosen[0] if chosen else captions[-1]
            assert (batch["txt"][row] == at).all() and (batch["y"][row] == at).all()
            empty += not chosen
    assert empty and black


def test_moments_are_widened_exactly():
    every = np.arange(2**16, dtype=np.uint16).view(np.float16).reshape(2, 4, 128, 64)
    np.testing.assert_array_equal(samples._float32(every), every.astype(np.float32))
    assert samples._float32(np.ones(3, np.float32)).dtype == np.float32


def test_worker_processes_read_features(load, with_features):
    here, there = (load(with_features[0], pairing="spms", workers=workers, tokens=False) for workers in (0, 1))
    for batch, other in zip(take(here, 3), take(there, 3), strict=True):
        assert_same(batch, other)


def test_only_the_features_that_are_asked_for(load, with_features):
    path = with_features[0]
    loader = load(path, features=("clip", "latents"))
    assert loader.features == ("latents", "clip")
    assert {"latent_mean", "y", "control", "id_crop", "t5_ids"} < loader.dataset[0].keys()
    assert_same({"c": loader.dataset[0]["control"]}, {"c": load(path, features=()).dataset[0]["control"]})
    # Sources of captions are in the records: they are read where these weigh differently.
    weighed = load(path, caption_weights={"user": 0.0}, prompt_dropout=0.0)
    records, captions = open_records(path, "train"), with_features[3]
    for batch in take(weighed, weighed.steps_per_epoch()):
        for number, y in zip(batch["record"], batch["y"][:, 0]):
            sources = [caption.source for caption in records[number].captions]
            assert sources[int(y) - captions[number]] == "model" if "model" in sources else y == captions[-1]


def test_features_that_are_not_there(load, with_features, dataset, tmp_path):
    path = with_features[0]
    with pytest.raises(InputError, match=r"has no feature arcface .*python -m data_pipeline.precompute .*--features arcface"):
        load(dataset, features=("arcface",))
    with pytest.raises(InputError, match=r"computed with resolution 128, the run asks for resolution 256"):
        load(path, resolution=256)
    with pytest.warns(UserWarning, match=f"features latents, control, t5, clip, arcface are not used: {dataset} lacks") as said:
        loader = load(path, dataset)
    assert loader.features == () and len(said) == 1
    with pytest.raises(InputError, match="feature t5 is not read, so t5_tokenizer is needed"):
        load(dataset, tokens=False)


# Errors -------------------------------------------------------------------------------------------


def test_settings_that_cannot_be(load, dataset, tmp_path):
    with pytest.raises(InputError, match="data.paths is empty"):
        load()
    for size, process in ((3, (0, 2)), (2, (2, 2)), (2, (-1, 2))):
        with pytest.raises(InputError, match=f"batch size {size}, process {process[0]} of {process[1]}"):
            load(dataset, batch_size=size, process=process)
    with pytest.raises(InputError, match="too few for a batch of 1000"):
        load(dataset, batch_size=1000)
    with pytest.raises(InputError, match="index/test has no index.json"):
        load(dataset, split="test")
    with pytest.raises(InputError, match="index/train has no index.json"):
        load(tmp_path)


def test_unseen_pictures_are_said_once(load, pairs_dataset):
    with pytest.warns(UserWarning, match=r"\d+ of 12 records are never seen: their buckets hold fewer than a batch of 4") as said:
        loader = load(pairs_dataset, batch_size=4)
    assert len(said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loader.dataset[0]
        load(pairs_dataset, batch_size=1)


@pytest.fixture
def damaged(tmp_path):
    """Two records, the second of which holds no picture."""
    picture = np.zeros((64, 64, 3), np.uint8)
    points = (face.ARCFACE_POINTS / 4 + 10).astype(np.float32)
    import cv2

    good = cv2.imencode(".png", picture)[1].tobytes()
    made = [Record(f"key{n}", "p", data, (64, 64), points, np.array([10, 10, 40, 40], np.float32)) for n, data in enumerate((good, good[:40]))]
    shard = spms.write_shard(tmp_path / "shard", map(encode, made))
    split = spms.Split([shard], np.zeros(2, int), np.full((2, 2), 64), np.zeros(2, int), np.zeros(2, int))
    return spms.assemble(tmp_path / "work", {"train": split}).rename(tmp_path / "damaged")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_picture_that_cannot_be_decoded_is_named(load, damaged, workers):
    for pairing in ("spss", "spms"):
        with load(damaged, pairing=pairing, workers=workers) as loader:
            with pytest.raises(InputError, match=rf"{damaged}, split train, record 1 \(key key1\): its 40 bytes are no picture"):
                take(loader, 1)


# How it ends --------------------------------------------------------------------------------------

SCRIPT = """
import os, signal, sys
from pathlib import Path
from data_pipeline.loader import open_loader
from infu_jax.tokenizers import load_clip_tokenizer, load_t5_tokenizer
from infu_jax.train_config import DataConfig

def main(dataset, tiny, closes, workers):
    tokenizers = dict(t5_tokenizer=load_t5_tokenizer(f"{tiny}/tokenizer_2"), clip_tokenizer=load_clip_tokenizer(f"{tiny}/tokenizer"))
    cfg = DataConfig(paths=(str(dataset),), resolution=128, bucket_step=32, workers=int(workers), t5_length=64)
    loader = open_loader(cfg, batch_size=2, seed=0, **tokenizers)
    iterator = loader.iterate()
    global kept
    kept = [next(iterator) for _ in range(3)]
    if closes == "close":
        loader.close()
        import psutil
        left = [process for process in psutil.Process().children() if "resource_tracker" not in " ".join(process.cmdline())]
        print("left:", left)
    if closes == "raise":
        raise SystemExit(7)
    if closes == "signals":
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, lambda *_: None)
            os.killpg(0, name)
        kept = [next(iterator) for _ in range(40)]  # many more than had been made
        print("batches:", len(kept))
    if closes == "killed":
        os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    main(*sys.argv[1:])
"""


@pytest.fixture
def run_script(dataset, tiny, tmp_path):
    """Runs SCRIPT in a process group of its own until all its processes have ended, as they hold its output: return code, stdout, stderr."""

    def run_script(closes, workers):
        (tmp_path / "script.py").write_text(SCRIPT)
        command = [sys.executable, str(tmp_path / "script.py"), str(dataset), str(tiny[0]), closes, str(workers)]
        how = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
        with subprocess.Popen(command, **how) as script:
            try:
                out, errors = script.communicate(timeout=120)
            except BaseException:
                os.killpg(script.pid, signal.SIGKILL)
                raise
        return script.returncode, out, errors

    before = set(os.listdir("/dev/shm"))
    yield run_script
    assert {name for name in os.listdir("/dev/shm") if name.startswith("psm_")} <= before


@pytest.mark.parametrize("closes, workers", [("close", 2), ("forget", 2), ("raise", 2), ("forget", 0)])
def test_everything_ends_with_the_script(run_script, closes, workers):
    """No process, no shared memory and no complaint is left, whether a loader is closed or not."""
    code, out, errors = run_script(closes, workers)
    assert (code, errors) == (7 if closes == "raise" else 0, "")
    assert closes != "close" or out.startswith("left: []\n")


def test_workers_leave_signals_to_their_parent(run_script):
    """Ctrl-C and scancel signal them, too; batches still come, and workers end when the parent does."""
    assert run_script("signals", 2) == (0, "batches: 40\n", "")


def test_workers_end_when_their_parent_is_killed(run_script):
    assert run_script("killed", 2)[0] == -signal.SIGKILL


# Its benchmark ------------------------------------------------------------------------------------


def benchmark(*options):
    """The rows of the table that benchmarks/loader.py prints."""
    done = subprocess.run([sys.executable, str(ROOT / "benchmarks" / "loader.py"), *options], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in done.stdout.splitlines() if line.startswith("|")]
    return [dict(zip(rows[0], row, strict=True)) for row in rows[2:]]


def test_a_large_index_opens_at_once_and_takes_little_memory():
    """A tenth of a second and some 10 MB for half a million records, so 43 million (benchmarks/loader.py --index) stay below a minute and 2 GB."""
    few, many = (benchmark("--index", "--records", str(records))[0] for records in (1000, 500_000))
    assert 500_000 * 14 < 1e6 * float(many["index on disk, MB"]) < 500_000 * 2e9 / 43e6
    assert float(many["seconds to the first batch's records"]) < 500_000 * 60 / 43e6 * 5  # of which most is the same for any size
    more = float(many["peak resident memory, MB"]) - float(few["peak resident memory, MB"])
    assert 0 < more < 500_000 * 2e9 / 43e6 / 1e6


def test_memory_stays_flat_over_a_thousand_batches():
    rows = benchmark("--flat", "--batches", "1000", "--batch", "2")  # fails by itself if it grows by 5 %
    assert [row["after batch"] for row in rows] == [f"{n:,}" for n in range(100, 1001, 100)]
    assert float(rows[-1]["resident memory, MB"]) - float(rows[0]["resident memory, MB"]) < 10
