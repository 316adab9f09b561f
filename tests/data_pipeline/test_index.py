"""The index sidecar against the records it speaks of, and against damage."""

import json
import shutil
import time

import numpy as np
import pytest

from data_pipeline.index import INLINE_IDENTITY, SYNTHETIC, make_index, open_index, read_index, write_index
from data_pipeline.records import open_records
from infu_jax.errors import InputError


def example(seed=0, records=1000, people=70):
    rng = np.random.default_rng(seed)
    persons = rng.permutation(np.concatenate([np.arange(people), rng.integers(0, people, records - people)]))
    return make_index(persons, rng.integers(64, 4000, (records, 2)), rng.integers(0, 4, records), rng.integers(0, 9, records), "abc")


def test_what_goes_in_comes_out(tmp_path):
    index = example()
    write_index(tmp_path, "train", index)
    back = read_index(tmp_path, "train")
    for name in ("persons", "sizes", "flags", "captions", "order", "offsets"):
        stored = getattr(back, name)
        assert isinstance(stored, np.memmap) and stored.dtype == getattr(index, name).dtype
        np.testing.assert_array_equal(stored, getattr(index, name))
    assert (back.records, back.people, back.fingerprint) == (1000, 70, "abc")
    assert sum(path.stat().st_size for path in (tmp_path / "index" / "train").iterdir()) < 14 * 1000 + 8 * 71 + 2000
    with pytest.raises(FileExistsError):
        write_index(tmp_path, "train", index)


def test_records_of_each_person():
    index = example()
    seen = []
    for person in range(index.people):
        of = index.records_of(person)
        np.testing.assert_array_equal(of, np.flatnonzero(index.persons == person))
        seen.extend(of.tolist())
    assert sorted(seen) == list(range(index.records))


def test_numbers_without_gaps():
    with pytest.raises(ValueError, match="no gaps"):
        make_index(np.array([0, 2]), np.ones((2, 2), int), np.zeros(2, int), np.zeros(2, int), "")
    assert make_index(np.zeros(0, int), np.ones((0, 2), int), np.zeros(0, int), np.zeros(0, int), "").people == 0


def test_it_says_what_the_records_say(dataset):
    for split, people in (("train", 5), ("validation", 1)):
        index, stored = open_index(dataset, split), open_records(dataset, split)
        assert index.records == len(stored) and index.people == people
        names = {}
        for number in range(len(stored)):
            record = stored[number]
            assert names.setdefault(int(index.persons[number]), record.person) == record.person
            assert tuple(index.sizes[number]) == record.target_size and index.captions[number] == len(record.captions)
            assert bool(index.flags[number] & SYNTHETIC) == record.synthetic and bool(index.flags[number] & INLINE_IDENTITY) == bool(record.identity)
        assert len(set(names.values())) == people


def test_other_shards_are_noticed(dataset, tmp_path):
    copy = shutil.copytree(dataset, tmp_path / "copy")
    assert open_index(copy, "train").records == 14
    with pytest.raises(InputError, match="index/test has no index.json"):
        open_index(copy, "test")
    shutil.rmtree(copy / "index" / "train")
    shutil.copytree(dataset / "index" / "validation", copy / "index" / "train")
    with pytest.raises(InputError, match="belongs to other shards"):
        open_index(copy, "train")
    info = json.loads((copy / "metadata.json").read_text())
    info["sha256"]["validation"] = info["sha256"]["train"]  # as many and as large records, but others
    (copy / "metadata.json").write_text(json.dumps(info))
    with pytest.raises(InputError, match="belongs to other shards"):
        open_index(copy, "validation")
    (copy / "metadata.json").write_text("{}")
    with pytest.raises(InputError, match="metadata.json is damaged"):
        open_index(copy, "validation")
    (copy / "metadata.json").unlink()
    with pytest.raises(InputError, match="metadata.json is missing"):
        open_index(copy, "validation")


def test_damage_is_noticed(tmp_path):
    write_index(tmp_path, "train", example())
    folder = tmp_path / "index" / "train"
    np.save(folder / "flags.npy", np.zeros(999, np.uint8))
    with pytest.raises(InputError, match=r"flags.npy holds uint8 \(999,\); expected uint8 \(1000,\)"):
        read_index(tmp_path, "train")
    np.save(folder / "flags.npy", np.array([{}] * 1000), allow_pickle=True)
    with pytest.raises(InputError, match="flags.npy is missing or damaged"):
        read_index(tmp_path, "train")
    (folder / "flags.npy").unlink()
    with pytest.raises(InputError, match="flags.npy is missing or damaged"):
        read_index(tmp_path, "train")
    (folder / "index.json").write_text('{"version": 2, "records": 1, "people": 1, "fingerprint": ""}')
    with pytest.raises(InputError, match="version 2 of the index"):
        read_index(tmp_path, "train")
    (folder / "index.json").write_text("{")
    with pytest.raises(InputError, match="index.json is damaged"):
        read_index(tmp_path, "train")


def test_millions_open_at_once(tmp_path):
    """Two million records: 28 MB of files, of which opening reads next to nothing."""
    persons = np.arange(2_000_000) // 3
    write_index(tmp_path, "train", make_index(persons, np.full((2_000_000, 2), 1024), np.zeros(2_000_000, int), np.ones(2_000_000, int), ""))
    size = sum(path.stat().st_size for path in (tmp_path / "index" / "train").iterdir())
    assert size < 17 * 2_000_000  # 14 bytes a record, 8 a person
    began = time.perf_counter()
    index = read_index(tmp_path, "train")
    assert index.records_of(600_000).tolist() == [1_800_000, 1_800_001, 1_800_002]
    assert time.perf_counter() - began < 1
