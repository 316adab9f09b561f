"""The safetensors reader and writer against the reference library, and every fault a file can have."""

import json
import struct
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
import safetensors.torch
import torch

from infu_jax.convert import safetensors as st
from infu_jax.convert.errors import ConversionError

SHAPES = [(), (1,), (7,), (2, 3), (0,), (3, 0, 2), (2, 3, 4, 5)]
FLOATS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
INTEGERS = {
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
TORCH = FLOATS | INTEGERS


def random_array(rng, name: str, shape) -> np.ndarray:
    dtype = st.DTYPES[name]
    return np.asarray(rng.integers(0, 2, shape) if name == "BOOL" else rng.normal(size=shape) * 10 if name in FLOATS else rng.integers(0, 100, shape)).astype(
        dtype
    )


def everything(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {f"{name}.{n}": random_array(rng, name, shape) for name in TORCH for n, shape in enumerate(SHAPES)}


def assert_same(found, expected):
    assert set(found) == set(expected)
    for key, value in expected.items():
        assert found[key].dtype == value.dtype and found[key].shape == value.shape, key
        assert found[key].tobytes() == np.ascontiguousarray(value).tobytes(), key


def to_torch(array: np.ndarray) -> torch.Tensor:
    """Through bytes, because torch takes no arrays of ml_dtypes."""
    flat = torch.from_numpy(np.frombuffer(array.tobytes() or b"", np.uint8).copy()) if array.size else torch.empty(0, dtype=torch.uint8)
    name = next(n for n, d in st.DTYPES.items() if d == array.dtype)
    return flat.view(TORCH[name]).reshape(array.shape)


def handmade(path, header, data: bytes = b""):
    """A file with just this header: a dict, or bytes that may not be JSON at all."""
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


# Agreement with the reference library --------------------------------------------------------------


def test_reads_what_the_library_writes(tmp_path):
    arrays = everything()
    safetensors.torch.save_file({k: to_torch(v) for k, v in arrays.items()}, tmp_path / "t.safetensors", {"format": "pt"})
    assert_same(st.open_file(tmp_path / "t.safetensors"), arrays)
    assert st.read_metadata(tmp_path / "t.safetensors") == {"format": "pt"}
    numpy_only = {k: v for k, v in arrays.items() if v.dtype.kind in "fiub" and not k.startswith(("BF16", "F8"))}
    safetensors.numpy.save_file(numpy_only, tmp_path / "n.safetensors")
    assert_same(st.open_file(tmp_path / "n.safetensors"), numpy_only)
    assert st.read_metadata(tmp_path / "n.safetensors") == {}


def test_library_reads_what_we_write(tmp_path):
    arrays, path = everything(), tmp_path / "ours.safetensors"
    st.write_file(path, arrays, {"format": "pt", "ä": "ö"})
    assert_same(st.open_file(path), arrays)
    loaded = safetensors.torch.load_file(path)
    assert set(loaded) == set(arrays)
    for key, value in arrays.items():
        assert loaded[key].dtype == TORCH[key.split(".")[0]] and tuple(loaded[key].shape) == value.shape
        assert torch.equal(loaded[key].reshape(-1).view(torch.uint8), to_torch(value).reshape(-1).view(torch.uint8)), key
    with safetensors.safe_open(path, "numpy") as file:
        assert file.metadata() == {"format": "pt", "ä": "ö"}
        assert (file.get_tensor("F32.3") == arrays["F32.3"]).all()


def test_bytes_equal_the_library_s_for_one_dtype(tmp_path):
    arrays = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.ones(5, np.float32)}
    st.write_file(tmp_path / "ours", arrays)
    assert (tmp_path / "ours").read_bytes() == safetensors.numpy.save(arrays)


# The reader ----------------------------------------------------------------------------------------


def test_arrays_are_read_only_views_of_one_map(tmp_path):
    st.write_file(tmp_path / "f", {"a": np.ones((2, 3), np.float32), "b": np.ones(3, ml_dtypes.bfloat16)})
    arrays = st.open_file(tmp_path / "f")

    def root(array):
        while not isinstance(array, np.memmap):
            array = array.base
        return array.base if isinstance(array.base, np.memmap) else array

    assert root(arrays["a"]) is root(arrays["b"])
    with pytest.raises(ValueError, match="read-only"):
        arrays["a"][0] = 0


def test_nothing_is_read_before_use(tmp_path):
    """A file of 64 GB, a hole but for its header and last element, opens at once and within a small memory."""
    size = 64 << 30
    path = handmade(tmp_path / "f", {"a": entry("U8", (size,), (0, size))})
    start = path.stat().st_size
    with open(path, "r+b") as file:
        file.seek(start + size - 1)
        file.write(b"\x07")
    array = st.open_file(path)["a"]
    path.unlink()  # the map stays; no copy of the tree should meet such a file
    assert array.shape == (size,) and array[-1] == 7 and array[size // 2] == 0


WEB_PAGE = b"\n<!DOCTYPE html><html><body>Sign in</body></html>"
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123\n"
EIGHT = b"\0" * 8
FAULTS = {
    "empty": (b"", "the file is empty"),
    "short": (b"abc", "3 bytes are too few"),
    "header beyond the file": (struct.pack("<Q", 100) + b"{}", "needs 108 bytes, the file has 10"),
    "header beyond the limit": (struct.pack("<Q", 100_000_001) + b"{}", "the limit is 100000000"),
    "a torch file": (b"PK\x03\x04\0\0\x08\x08" + EIGHT, "looks like a PyTorch file"),
    "a web page": (WEB_PAGE, "web page"),
    "a web page with a byte order mark": (b"\xef\xbb\xbf<html>", "web page"),
    "a git-lfs pointer": (LFS_POINTER, "git-lfs pointer"),
}
HEADER_FAULTS = {
    "not JSON": (b"{hello}", b"", "not JSON"),
    "not UTF-8": (b'{"\xff": 1}', b"", "not JSON in UTF-8"),
    "UTF-16": ("{}".encode("utf-16"), b"", "not JSON in UTF-8"),
    "too deep": (b"[" * 100_000, b"", "not JSON"),
    "a number of many digits": (b'{"a": ' + b"1" * 5000 + b"}", b"", "not JSON"),
    "a list": (b"[]", b"", "not a JSON object"),
    "twice the same tensor": (b'{"a": %b, "a": %b}' % ((json.dumps(entry()).encode(),) * 2), EIGHT, "'a' is there twice"),
    "twice the same field": (b'{"a": {"dtype": "F32", "dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}', EIGHT, "'dtype' is there twice"),
    "metadata not text": ({"__metadata__": {"a": 1}}, b"", "__metadata__"),
    "entry not an object": ({"a": 3}, b"", "expected dtype, shape and data_offsets"),
    "field missing": ({"a": {"dtype": "F32", "shape": [2]}}, EIGHT, "expected dtype, shape and data_offsets"),
    "field unknown": ({"a": entry() | {"strides": [1]}}, EIGHT, "and nothing else"),
    "dtype unknown": ({"a": entry("F4")}, EIGHT, "unknown dtype 'F4'"),
    "dtype not text": ({"a": entry(["F32"])}, EIGHT, "unknown dtype"),
    "shape negative": ({"a": entry(shape=(-1, -2))}, EIGHT, "shape is not"),
    "shape fractional": ({"a": entry(shape=(2.0,))}, EIGHT, "shape is not"),
    "shape true": ({"a": entry(shape=(True, 2))}, EIGHT, "shape is not"),
    "shape huge": ({"a": entry(shape=(2**62,))}, EIGHT, "shape is not"),
    "shape huge and empty": ({"a": entry(shape=(0, 2**50, 2**50), offsets=(0, 0))}, b"", "impossibly large"),
    "shape of 65 axes": ({"a": entry(shape=(1,) * 65, offsets=(0, 4))}, b"\0" * 4, "shape is not"),
    "shape not a list": ({"a": entry() | {"shape": "22"}}, EIGHT, "shape is not"),
    "offsets unlike the shape": ({"a": entry(shape=(3,))}, EIGHT, "needs 12 bytes"),
    "offsets reversed": ({"a": entry(offsets=(8, 0))}, EIGHT, "needs 8 bytes"),
    "offsets negative": ({"a": entry(offsets=(-8, 0))}, EIGHT, "data_offsets are not"),
    "offsets fractional": ({"a": entry(offsets=(0, 8.0))}, EIGHT, "data_offsets are not"),
    "offsets three": ({"a": entry(offsets=(0, 4, 8))}, EIGHT, "data_offsets are not"),
    "overlap": ({"a": entry(), "b": entry(offsets=(4, 12))}, b"\0" * 12, "'b' overlaps"),
    "the same bytes twice": ({"a": entry(), "b": entry()}, EIGHT, "overlaps"),
    "gap": ({"a": entry(), "b": entry(offsets=(12, 20))}, b"\0" * 20, "'b' leaves a gap"),
    "gap at the start": ({"a": entry(offsets=(4, 12))}, b"\0" * 12, "'a' leaves a gap"),
    "trailing bytes": ({"a": entry()}, b"\0" * 9, "1 bytes follow the last tensor"),
}


@pytest.mark.parametrize("name", FAULTS | HEADER_FAULTS)
def test_faults(name, tmp_path):
    path = tmp_path / "bad.safetensors"
    if name in FAULTS:
        content, message = FAULTS[name]
        path.write_bytes(content)
    else:
        header, data, message = HEADER_FAULTS[name]
        handmade(path, header, data)
    with pytest.raises(ConversionError) as caught:
        st.open_file(path)
    assert str(path) in str(caught.value) and message in str(caught.value) and "\n" not in str(caught.value)


def test_good_handmade_file_is_accepted(tmp_path):
    """So that the faults above are refused for their fault."""
    path = handmade(tmp_path / "f", {"a": entry(), "b": entry("U8", (0,), (8, 8)), "c": entry(offsets=(8, 16))}, np.arange(4, dtype="<f4").tobytes())
    assert [st.open_file(path)[k].tolist() for k in "abc"] == [[0, 1], [], [2, 3]]
    assert st.open_file(handmade(tmp_path / "g", {})) == {}


def test_every_truncation_is_noticed(tmp_path):
    st.write_file(tmp_path / "f", {"a": np.ones(4, np.float32)})
    data = (tmp_path / "f").read_bytes()
    for n in range(len(data)):
        (tmp_path / "cut").write_bytes(data[:n])
        with pytest.raises(ConversionError, match="truncated|too few|empty"):
            st.open_file(tmp_path / "cut")
    with pytest.raises(ConversionError, match=f"truncated: {len(data) - 1} of {len(data)} bytes; download it again"):
        st.open_file(tmp_path / "cut")


def test_missing_file_and_folder(tmp_path):
    for path, message in ((tmp_path / "absent", "no such file"), (tmp_path, "this is a folder")):
        with pytest.raises(ConversionError, match=message):
            st.open_file(path)


def test_mutated_files(tmp_path):
    """Whatever happens to a file, it reads or it is a ConversionError."""
    rng, path, outcomes = np.random.default_rng(0), tmp_path / "f", []
    small = {k: v for k, v in everything().items() if k.startswith(("BF16", "BOOL", "F32"))}
    st.write_file(path, small, {"format": "pt"})
    good = path.read_bytes()
    for n in range(500):
        data = bytearray(good)
        for _ in range(rng.integers(1, 4)):
            data[rng.integers(0, 8 if n % 5 == 0 else len(data))] = rng.integers(0, 256)
        if n % 7 == 0:
            data = data[: rng.integers(0, len(data))]
        path.write_bytes(data)
        try:
            for array in st.open_file(path).values():
                array.tobytes()
            outcomes.append(True)
        except ConversionError as error:
            assert "\n" not in str(error)
            outcomes.append(False)
    assert 20 < sum(outcomes) < 480


# Shards --------------------------------------------------------------------------------------------


def some_tensors():
    return {f"layer.{n}": np.full((10, 10), n, np.float32) for n in range(7)}  # 400 bytes each


def test_shards_round_trip(tmp_path):
    tensors = some_tensors()
    path = st.write_sharded(tmp_path, "model", tensors, 1000, {"format": "pt"})
    shards = [f"model-0000{n}-of-00004.safetensors" for n in (1, 2, 3, 4)]
    assert sorted(p.name for p in tmp_path.iterdir()) == [*shards, "model.safetensors.index.json"] and path.name == "model.safetensors.index.json"
    index = json.loads(path.read_text())
    assert index["metadata"] == {"total_size": 2800}
    assert index["weight_map"] == {f"layer.{n}": shards[n // 2] for n in range(7)}
    assert_same(st.open_sharded(path), tensors)
    assert_same(st.open_folder(tmp_path, "model"), tensors)
    assert safetensors.safe_open(tmp_path / shards[0], "np").metadata() == {"format": "pt"}
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    st.write_sharded(tmp_path, "model", dict(reversed(tensors.items())), 1000, {"format": "pt"})  # over itself, in another order
    assert before == {p.name: p.read_bytes() for p in tmp_path.iterdir()}


def test_transformers_reads_our_shards(tmp_path):
    import transformers

    model = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=5)
    )
    model.config.save_pretrained(tmp_path)
    state = {k: v.detach().numpy() for k, v in model.state_dict().items()}
    st.write_sharded(tmp_path, "model", state, 2000, {"format": "pt"})
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    again = transformers.CLIPTextModel.from_pretrained(tmp_path).state_dict()
    assert set(again) == set(state) and all((again[k].numpy() == state[k]).all() for k in state)


def test_one_file_where_one_is_enough(tmp_path):
    assert st.write_sharded(tmp_path, "model", some_tensors(), 2800) == tmp_path / "model.safetensors"
    assert_same(st.open_folder(tmp_path, "model"), some_tensors())
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_tensor_beyond_the_limit_gets_its_own_shard(tmp_path):
    tensors = {"a": np.ones(1), "b": np.ones(100), "c": np.ones(1)}
    st.write_sharded(tmp_path, "m", tensors, 100)
    assert len(list(tmp_path.glob("m-*.safetensors"))) == 3
    assert_same(st.open_folder(tmp_path, "m"), tensors)


def test_stale_shards_are_refused(tmp_path):
    st.write_sharded(tmp_path, "model", some_tensors(), 1000)
    with pytest.raises(ConversionError, match="already has model-00001-of-00004.safetensors"):
        st.write_sharded(tmp_path, "model", some_tensors(), 2800)
    st.write_sharded(tmp_path, "other_model", some_tensors(), 2800)  # another stem is none of its business


def rewrite_index(folder, change):
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))
    return path


FIRST = "model-00001-of-00004.safetensors"
INDEX_FAULTS = {
    "shard in a parent folder": (lambda m: m.update({"layer.0": "../model.safetensors"}), "plain name"),
    "shard elsewhere": (lambda m: m.update({"layer.0": "/etc/model.safetensors"}), "plain name"),
    "shard in a backslash folder": (lambda m: m.update({"layer.0": "a\\model.safetensors"}), "plain name"),
    "shard of another kind": (lambda m: m.update({"layer.0": ".."}), "plain name"),
    "shard missing": (lambda m: m.update({"layer.9": "model-9.safetensors"}), "1 of 5 shards are missing: model-9.safetensors"),
    "key in another shard": (lambda m: m.update({"layer.6": FIRST}), "1 tensors are not in the shard that the index says, e.g. 'layer.6' in model-00001"),
    "key in no shard": (lambda m: m.update({"layer.9": FIRST}), "1 tensors are not in the shard that the index says"),
    "key not in the index": (lambda m: m.pop("layer.1"), "the index does not name it"),
    "map of numbers": (lambda m: m.update({"layer.0": 3}), "no weight_map"),
    "empty": (lambda m: m.clear(), "no weight_map"),
}


@pytest.mark.parametrize("name", INDEX_FAULTS)
def test_index_faults(name, tmp_path):
    change, message = INDEX_FAULTS[name]
    st.write_sharded(tmp_path, "model", some_tensors(), 1000)
    with pytest.raises(ConversionError, match=message):
        st.open_sharded(rewrite_index(tmp_path, change))


def test_key_in_two_shards(tmp_path):
    path = st.write_sharded(tmp_path, "model", some_tensors(), 1000)
    st.write_file(tmp_path / FIRST, {k: v for k, v in some_tensors().items() if k in ("layer.0", "layer.1", "layer.2")})
    with pytest.raises(ConversionError, match="'layer.2' is in model-00001-of-00004.safetensors, but the index says model-00002"):
        st.open_sharded(path)


def test_index_that_is_a_web_page(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_bytes(WEB_PAGE)
    with pytest.raises(ConversionError, match="web page"):
        st.open_folder(tmp_path, "model")


def test_shards_that_are_links(tmp_path):
    """As in the Hugging Face cache, where the files of a snapshot are links into another folder."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    st.write_sharded(tmp_path / "blobs", "model", some_tensors(), 1000)
    for path in (tmp_path / "blobs").iterdir():
        (tmp_path / "snapshot" / path.name).symlink_to(f"../blobs/{path.name}")
    assert_same(st.open_folder(tmp_path / "snapshot", "model"), some_tensors())


def test_folder_faults(tmp_path):
    with pytest.raises(ConversionError, match="no such folder"):
        st.open_folder(tmp_path / "absent", "model")
    with pytest.raises(ConversionError, match="found an empty folder"):
        st.open_folder(tmp_path, "model")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ConversionError, match=r"expected model.safetensors or model.safetensors.index.json, found pytorch_model.bin"):
        st.open_folder(tmp_path, "model")
    st.write_sharded(tmp_path, "model", some_tensors(), 1000)
    st.write_file(tmp_path / "model.safetensors", some_tensors())
    with pytest.raises(ConversionError, match="both"):
        st.open_folder(tmp_path, "model")


# The writer ----------------------------------------------------------------------------------------


def test_written_bytes_depend_on_the_contents_only(tmp_path):
    tensors = everything()
    st.write_file(tmp_path / "a", tensors, {"x": "1", "y": "2"})
    st.write_file(tmp_path / "b", dict(reversed(tensors.items())), {"y": "2", "x": "1"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_every_tensor_is_aligned(tmp_path):
    st.write_file(tmp_path / "f", everything())
    data = (tmp_path / "f").read_bytes()
    length = int.from_bytes(data[:8], "little")
    assert length % 8 == 0
    for key, value in json.loads(data[8 : 8 + length]).items():
        assert (8 + length + value["data_offsets"][0]) % st.DTYPES[value["dtype"]].itemsize == 0, key


def test_arrays_that_are_not_contiguous(tmp_path):
    x = np.arange(24, dtype=np.float32).reshape(4, 6)
    views = {"t": x.T, "s": x[::2, 1::2], "r": x[::-1], "b": np.broadcast_to(x[0], (3, 6))}
    st.write_file(tmp_path / "f", views)
    assert_same(st.open_file(tmp_path / "f"), views)


def test_lazy_tensors_are_made_when_they_are_written(tmp_path):
    """But for the two after it, which are made meanwhile."""
    made = []

    def read(n):
        made.append(n)
        return np.full((512, 512), n, np.float32)  # 1 MB

    tensors = {f"{n:02}": st.LazyTensor((512, 512), np.dtype("float32"), lambda n=n: read(n)) for n in range(20)}
    tracemalloc.start()
    st.write_file(tmp_path / "f", tensors)
    st.write_sharded(tmp_path, "m", tensors, 5 << 20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 << 20
    assert sorted(made) == sorted([*range(20)] * 2)
    assert [int(v[0, 0]) for v in st.open_folder(tmp_path, "m").values()] == [*range(20)]
    assert len(list(tmp_path.glob("m-*.safetensors"))) == 4


def test_lazy_tensor_that_breaks_its_word(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"before")
    for made in (np.ones((3,), np.float32), np.ones((2,), np.float64)):
        with pytest.raises(ConversionError, match=r"tensor 'a': announced as float32 \[2\], made as"):
            st.write_file(path, {"a": st.LazyTensor((2,), np.dtype("float32"), lambda made=made: made)})
    assert [p.name for p in tmp_path.iterdir()] == ["f"] and path.read_bytes() == b"before"  # nothing half-written is left


def test_jax_arrays(tmp_path):
    import jax.numpy as jnp

    st.write_file(tmp_path / "f", {"a": jnp.arange(3.0), "b": jnp.ones((2, 2), jnp.bfloat16)})
    assert_same(st.open_file(tmp_path / "f"), {"a": np.arange(3, dtype=np.float32), "b": np.ones((2, 2), ml_dtypes.bfloat16)})


def test_writer_faults(tmp_path, unchecked):
    for tensors, metadata, message in (
        ({"a": np.ones(2, np.complex64)}, None, "'a' is complex64"),
        ({"a": np.ones(2, ">f4")}, None, "'a' is >f4"),
        ({"__metadata__": np.ones(2)}, None, "__metadata__"),
        ({"a": np.ones(2)}, {"step": 1}, "map text to text"),
    ):
        with pytest.raises(ConversionError, match=message):
            st.write_file(tmp_path / "f", tensors, metadata)
    assert not list(tmp_path.iterdir())
