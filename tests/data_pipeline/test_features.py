"""Precomputed features on disk: what is written is what is read, half of it is never taken for whole, foreign ones are refused."""

import dataclasses
import json
import pickle

import numpy as np
import pytest
from etils import epath

from data_pipeline import features
from infu_jax.errors import InputError
from infu_jax.train_config import DataConfig

GROUPS = (features.Group("64x80", 7, (2, 8, 10, 4), 3), features.Group("80x64", 5, (2, 10, 8, 4), 2), features.Group("black-64x80", 1, (2, 8, 10, 4), 1))
SETTINGS = features.settings_of("control", DataConfig())
PLAN = features.Plan("control", "train", "data0", 12, "model0", SETTINGS, "float16", "float32", GROUPS)


def write(dataset, plan=PLAN, rows=None, skip=()):
    """A feature whose row r holds only r. Returns its folder and how many parts are missing."""
    folder = features.folder_of(dataset, plan.feature, plan.split)
    features.begin(folder, plan, np.arange(plan.records) if rows is None else rows)
    for group, number in plan.parts():
        if (group.name, number) not in skip:
            first = int(plan.starts[plan.groups.index(group)])
            features.write_part(folder, plan, group, number, np.stack([np.full(group.shape, first + row) for row in group.part(number)]))
    return folder, features.seal(folder, plan)


def read(dataset, plan=PLAN, **asked):
    asked = {"fingerprint": plan.dataset, "settings": plan.settings, "model": plan.model, **asked}
    return features.open_features(dataset, plan.split, plan.feature, **asked)


def test_rows_come_back(tmp_path):
    order = np.random.default_rng(0).permutation(12)
    assert write(tmp_path, rows=order)[1] == 0
    for found in (read(tmp_path), pickle.loads(pickle.dumps(read(tmp_path)))):
        for record, row in enumerate(order):
            values = found.read(record)
            assert values.dtype == np.float16 and values.shape == (GROUPS[0] if row < 7 else GROUPS[1]).shape
            assert (values == row).all()
        assert (found.constant("black-64x80") == 12).all()
    with pytest.raises(InputError, match="holds no black-96x64; it has 64x80, 80x64, black-64x80"):
        found.constant("black-96x64")
    assert features.available(tmp_path, "train") == ("control",)


def test_items_of_a_record(tmp_path):
    """Records with 2, 0, 3 and 1 captions: none reads into the next."""
    groups = (features.Group("captions", 6, (5,), 4), features.Group("empty", 1, (5,), 1))
    plan = dataclasses.replace(PLAN, feature="clip", settings={}, records=4, groups=groups, dtype="float32")
    write(tmp_path, plan, np.array([0, 2, 2, 5, 6]))
    found = read(tmp_path, plan)
    assert [[int(found.read(record, n)[0]) for n in range(count)] for record, count in enumerate((2, 0, 3, 1))] == [[0, 1], [], [2, 3, 4], [5]]
    assert found.constant("empty")[0] == 6
    for record, item in ((0, 2), (0, -1), (1, 0), (2, 3), (3, 1), (4, 0), (-1, 0)):
        with pytest.raises(IndexError):
            found.read(record, item)


def test_parts_are_plain_npy(tmp_path):
    folder, _ = write(tmp_path)
    loaded = np.load(folder / "64x80" / "00002.npy", mmap_mode="r", allow_pickle=False)
    assert loaded.shape == (1, 2, 8, 10, 4) and (loaded == 6).all()


def test_what_is_missing_is_seen(tmp_path):
    folder, missing = write(tmp_path, skip={("64x80", 1), ("80x64", 2)})
    assert missing == 2 and features.available(tmp_path, "train") == ()
    with pytest.raises(InputError, match="control is not complete; run the same command"):
        read(tmp_path)
    (folder / "64x80" / ".00009.npy.host.1.partial").write_bytes(b"of a killed run")
    assert write(tmp_path)[1] == 0
    assert not list(tmp_path.rglob(".*"))
    assert (read(tmp_path).read(0) == 0).all()
    short = folder / "64x80" / "00000.npy"
    short.write_bytes(short.read_bytes()[:200])
    with pytest.raises(InputError, match="00000.npy is damaged"):
        read(tmp_path).read(2)
    rows = folder / "rows.npy"
    rows.write_bytes(rows.read_bytes()[:-4])
    with pytest.raises(InputError, match="rows.npy is missing or damaged .*; copy the feature again"):
        read(tmp_path)
    rows.unlink()
    with pytest.raises(InputError, match="rows.npy is missing or damaged"):
        read(tmp_path)
    with pytest.raises(InputError, match="has no feature t5 of split train; compute it: python -m data_pipeline.precompute"):
        features.open_features(tmp_path, "train", "t5", fingerprint="data0", settings={})


@pytest.mark.parametrize(
    "asked, message",
    [
        (dict(fingerprint="data1"), "was computed for dataset fingerprint data0, the dataset here is data1"),
        (dict(settings={**SETTINGS, "resolution": 512}), "computed with resolution 1024, the run asks for resolution 512"),
        (dict(settings={**SETTINGS, "max_aspect": 3.0}), "computed with max_aspect 2.0, the run asks for max_aspect 3.0"),
        (dict(model="model1"), "a model of fingerprint model0, the run's has model1"),
    ],
)
def test_mismatches_name_both(tmp_path, asked, message):
    write(tmp_path)
    with pytest.raises(InputError, match=message):
        read(tmp_path, **asked)
    read(tmp_path, model=None)


@pytest.mark.parametrize(
    "changed, message",
    [
        (dict(model="model1"), "begun with model model0, this run has model1"),
        (dict(dtype="float32"), "begun with dtype float16, this run has float32"),
        (dict(settings={**SETTINGS, "resolution": 512}), "'resolution': 1024.*'resolution': 512"),
        (dict(groups=GROUPS[:2]), "begun with groups .*; use the same command as before, or --replace"),
    ],
)
def test_another_run_does_not_go_on(tmp_path, changed, message):
    write(tmp_path, skip={("64x80", 0)})
    with pytest.raises(InputError, match=message):
        write(tmp_path, dataclasses.replace(PLAN, **changed))


def test_values_must_fit(tmp_path):
    features.begin(folder := features.folder_of(tmp_path, "control", "train"), PLAN, np.arange(12))
    too_large, bad = np.full((1, 2, 8, 10, 4), 7e4), np.full((1, 2, 8, 10, 4), np.nan)
    with pytest.raises(InputError, match="control: values of black-64x80, .* do not fit float16; store them as float32"):
        features.write_part(folder, PLAN, GROUPS[2], 0, too_large)
    with pytest.raises(InputError, match="are not finite"):
        features.write_part(folder, PLAN, GROUPS[2], 0, bad)
    with pytest.raises(ValueError, match=r"\(3, 2, 8, 10, 4\) is needed"):
        features.write_part(folder, PLAN, GROUPS[0], 0, too_large)
    assert [path.name for path in tmp_path.rglob("*.npy*")] == ["rows.npy"]


@pytest.mark.parametrize("name", ["../../etc", "a/b", "", "."])
def test_group_names_stay_inside(tmp_path, name):
    """plan.json may come from elsewhere."""
    folder, _ = write(tmp_path)
    stored = json.loads((folder / "plan.json").read_text())
    stored["groups"][0]["name"] = name
    (folder / "plan.json").write_text(json.dumps(stored))
    with pytest.raises(InputError, match="plan.json"):
        read(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"groups": 3}', '{"version": 2}'])
def test_damaged_plans(tmp_path, text):
    folder, _ = write(tmp_path)
    (folder / "plan.json").write_text(text)
    with pytest.raises(InputError, match="plan.json"):
        read(tmp_path)


def test_one_fingerprint_a_model(tiny):
    """However it was cast or sharded; another weight gives another."""
    import jax
    import jax.numpy as jnp

    from infu_jax import checkpoint
    from infu_jax.sharding import make_mesh

    model = checkpoint.load_model(tiny[0], "clip")
    told = features.model_fingerprint(model)
    assert features.model_fingerprint(checkpoint.load_model(tiny[0], "clip", mesh=make_mesh(data=2, fsdp=2, tensor=2), dtype=jnp.bfloat16)) == told
    leaves, tree = jax.tree.flatten(model)
    for n in (0, len(leaves) // 2, len(leaves) - 1):
        changed = jax.tree.unflatten(tree, [leaf + 0.5 if at == n else leaf for at, leaf in enumerate(leaves)])
        assert features.model_fingerprint(changed) != told


def test_a_folder_is_a_path(tmp_path):
    assert isinstance(features.folder_of(str(tmp_path), "t5", "train"), epath.Path)
