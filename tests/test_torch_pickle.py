"""The PyTorch checkpoint reader and writer against torch itself, and against files that want to do harm."""

import collections
import copyreg
import io
import os
import pickle
import resource
import struct
import time
import zipfile

import ml_dtypes
import numpy as np
import pytest
import torch

from infu_jax.convert import safetensors as st
from infu_jax.convert import torch_pickle as tp
from infu_jax.convert import torch_writer
from infu_jax.convert.errors import ConversionError

FORMATS = [True, False]  # zip archive, older
DTYPES = {
    torch.float64: np.float64,
    torch.float32: np.float32,
    torch.float16: np.float16,
    torch.bfloat16: ml_dtypes.bfloat16,
    torch.float8_e4m3fn: ml_dtypes.float8_e4m3fn,
    torch.float8_e5m2: ml_dtypes.float8_e5m2,
    torch.int64: np.int64,
    torch.int32: np.int32,
    torch.int16: np.int16,
    torch.int8: np.int8,
    torch.uint8: np.uint8,
    torch.uint16: np.uint16,
    torch.uint32: np.uint32,
    torch.uint64: np.uint64,
    torch.bool: np.bool_,
}
SHAPES = [(), (1,), (7,), (2, 3), (0,), (3, 0, 2), (2, 3, 4, 5)]


def bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def assert_same(array, tensor, key=""):
    assert array.dtype == DTYPES[tensor.dtype] and array.shape == tuple(tensor.shape), key
    assert array.tobytes() == bytes_of(tensor), key
    assert not array.flags.writeable


def everything():
    torch.manual_seed(0)
    return {f"{dtype}.{n}": (torch.randn(shape) * 10).abs().to(dtype) for dtype in DTYPES for n, shape in enumerate(SHAPES)}


def save(path, obj, zipped=True, **options):
    torch.save(obj, path, _use_new_zipfile_serialization=zipped, **options)
    return path


# Files that torch writes ---------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("zipped", FORMATS)
def test_every_dtype_and_shape(zipped, protocol, tmp_path):
    tensors = everything()
    found = tp.open_file(save(tmp_path / "f.pt", tensors, zipped, pickle_protocol=protocol))
    assert list(found) == list(tensors)
    for key, tensor in tensors.items():
        assert_same(found[key], tensor, key)


@pytest.mark.parametrize("zipped", FORMATS)
def test_state_dict_of_a_module(zipped, tmp_path):
    """An OrderedDict that carries `_metadata` as an attribute, with an int64 scalar among its tensors."""
    module = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3), torch.nn.Linear(2, 2))
    found = tp.open_file(save(tmp_path / "f.pt", module.state_dict(), zipped))
    assert list(found) == list(module.state_dict()) and type(found) is dict
    for key, tensor in module.state_dict().items():
        assert_same(found[key], tensor, key)


@pytest.mark.parametrize("zipped", FORMATS)
def test_views_parameters_and_plain_values(zipped, tmp_path):
    x = torch.arange(24.0).reshape(4, 6)
    tensors = {
        "whole": x,
        "transposed": x.T,
        "strided": x[1::2, ::3],
        "row": x[2],
        "last": x[3, 5],
        "none": x[4:],
        "one row": torch.arange(77).expand(1, -1),
        "parameter": torch.nn.Parameter(x),
        "grad": torch.ones(3, requires_grad=True),
        "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "bf16 part": torch.randn(4, 4).bfloat16()[1:, 1:],
        "fp8 part": torch.randn(4, 4).to(torch.float8_e4m3fn)[1:, 1:],
    }
    plain = {"text": "ä\n", "numbers": [1, -1, 255, 65536, 2**40, -(2**70), 2.5, float("inf")], "rest": (None, True, False, ()), 7: {"deep": [{}]}}
    found = tp.open_file(save(tmp_path / "f.pt", {"tensors": tensors, "plain": plain, "ordered": collections.OrderedDict(b=1, a=2)}, zipped))
    for key, tensor in tensors.items():
        assert_same(found["tensors"][key], tensor, key)
    assert found["plain"] == plain and list(found["ordered"].items()) == [("b", 1), ("a", 2)]
    assert np.shares_memory(found["tensors"]["whole"], found["tensors"]["strided"])


def test_older_files_in_the_dialects_of_their_time(tmp_path):
    """Python 2 wrote text as byte strings and an OrderedDict with its items as an argument; torch 0.3 had _rebuild_tensor."""

    def text(s):
        return b"U" + bytes([len(s)]) + s.encode()

    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("k") + text("cpu") + b"K\x06Nt" + b"Q"
    tensor = b"ctorch._utils\n_rebuild_tensor\n(" + storage + b"K\x02K\x02K\x02\x86K\x02K\x01\x86tR"
    tree = b"\x80\x02ccollections\nOrderedDict\n](](" + text("w") + tensor + b"ee\x85R."
    head = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)
    data = head + tree + pickle.dumps(["k"], 2) + struct.pack("<q6f", 6, *range(6))
    (tmp_path / "f.pth").write_bytes(data)
    assert tp.open_file(tmp_path / "f.pth")["w"].tolist() == [[2, 3], [4, 5]]


def test_storages_stay_in_the_file(tmp_path):
    """The bytes of a tensor are those of the mapped file: changing the file changes the array."""
    path = save(tmp_path / "f.pt", {"a": torch.full((100,), 7.0)})
    array = tp.open_file(path)["a"]
    at = path.read_bytes().index(struct.pack("<2f", 7, 7))
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(struct.pack("<f", 9))
    assert array[0] == 9 and array[1] == 7


# Files that do harm --------------------------------------------------------------------------------


class Call:
    """Pickles as `function(*args)`."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def as_zip(path, program: bytes, **records: bytes):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program)
        for name, data in records.items():
            archive.writestr(f"archive/{name.replace('_', '/')}", data)
    return path


def as_legacy(path, program: bytes):
    head = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)
    path.write_bytes(head + program + pickle.dumps([], 2))
    return path


TOUCH = "touch mark"


def hostile_pickles():
    od = b"ccollections\nOrderedDict\n"
    return {
        "system": (pickle.dumps(Call(os.system, TOUCH), 2), "system"),
        "system, protocol 4": (pickle.dumps(Call(os.system, TOUCH), 4), "system"),
        "system, protocol 0": (pickle.dumps(Call(os.system, TOUCH), 0), "system"),
        "eval": (pickle.dumps(Call(eval, f"__import__('os').system('{TOUCH}')"), 2), "__builtin__.eval"),
        "exec, protocol 4": (pickle.dumps(Call(exec, "1"), 4), "builtins.exec"),
        "getattr": (pickle.dumps(Call(getattr, Call(__import__, "os"), "system"), 4), "builtins.getattr"),
        "nested": (pickle.dumps({"a": [{"b": (Call(os.system, TOUCH),)}]}, 2), "system"),
        "dotted name": (b"\x80\x04\x8c\x05torch\x8c\x09os.system\x93\x8c\x04true\x85R.", "torch.os.system"),
        "module in the name": (b"\x80\x04\x8c\x00\x8c\x1ctorch._utils._rebuild_tensor\x93.", "'.torch"),
        "torch.load": (b"\x80\x02ctorch\nload\nX\x01\x00\x00\x00x\x85R.", "torch.load"),
        "torch.storage._load_from_bytes": (b"\x80\x02ctorch.storage\n_load_from_bytes\nX\x01\x00\x00\x00x\x85R.", "_load_from_bytes"),
        "only copyreg": (pickle.dumps(Call(copyreg._reconstructor, dict, dict, {}), 2), "_reconstructor"),
        "an object": (pickle.dumps(torch.nn.ReLU(), 2), "torch.nn.modules.activation.ReLU"),
        "a numpy array": (pickle.dumps({"a": np.ones(2)}, 2), "_reconstruct"),
        "INST in protocol 0": (b"(S'true'\nios\nsystem\n.", "the instruction STRING"),
        "INST": (b"\x80\x02(X\x04\x00\x00\x00trueios\nsystem\n.", "the instruction INST"),
        "OBJ": (b"\x80\x02(" + od + b"o.", "the instruction OBJ"),
        "NEWOBJ": (b"\x80\x02" + od + b")\x81.", "the instruction NEWOBJ"),
        "EXT1": (b"\x80\x02\x82\x01.", "the instruction EXT1"),
        "a call of a string": (b"\x80\x02X\x02\x00\x00\x00os)R.", "a call of a str"),
        "a call of a dict": (b"\x80\x02})R.", "a call of a dict"),
        "a call of a call": (b"\x80\x02" + od + b")R)R.", "a call of a dict"),
        "call with a list for arguments": (b"\x80\x02" + od + b"]R.", "a call of a _Global"),
        "BUILD on a function": (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}b.", "the instruction BUILD"),
        "BUILD with a pair": (b"\x80\x02}N}\x86b.", "the instruction BUILD"),
        "OrderedDict of text": (b"\x80\x02" + od + b"X\x02\x00\x00\x00ab\x85R.", "OrderedDict with 1 arguments"),
        "FloatStorage called": (b"\x80\x02ctorch\nFloatStorage\nK\x05\x85R.", "FloatStorage with 1 arguments"),
        "_rebuild_parameter of a dict": (b"\x80\x02ctorch._utils\n_rebuild_parameter\n(}\x89}tR.", "_rebuild_parameter with 3 arguments"),
        "a bare name": (b"\x80\x02}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\ns.", "holds torch._utils._rebuild_tensor_v2"),
        "persistent id of text": (b"\x80\x02X\x01\x00\x00\x00aQ.", "refers to a storage"),
        "persistent id as text": (b"\x80\x02Pa\n.", "the instruction PERSID"),
        "bytes": (pickle.dumps({"a": b"x"}, 4), "BINBYTES"),
        "a key that is a list": (b"\x80\x02}]Ns.", "key of type list"),
        "a key that is a tuple": (b"\x80\x02})Ns.", "key of type tuple"),
        "a set": (b"\x80\x04\x8f.", "EMPTY_SET"),
        "a number of 2000 bits": (b"\x80\x02\x8a\xfa" + b"\x11" * 250 + b".", "a number of 1997 bits"),
        "not a dictionary": (pickle.dumps([1], 2), "holds a list"),
        "append to a tuple": (b"\x80\x02)Na.", "appends to a tuple"),
        "items of a list": (b"\x80\x02]NNs.", "of a list"),
        "an odd number of items": (b"\x80\x02}(Nu.", "sets 1 keys and values"),
        "POP": (b"\x80\x02}0.", "the instruction POP"),
        "an empty stack": (b"\x80\x02a.", "damaged"),
        "nothing": (b"\x80\x02.", "leaves 0 values"),
        "two values": (b"\x80\x02}}.", "leaves 2 values"),
        "an open mark": (b"\x80\x02(}.", "1 marks"),
        "no mark": (b"\x80\x02}u.", "damaged"),
        "an unset memo": (b"\x80\x02h\x05.", "damaged"),
        "no end": (b"\x80\x02}", "damaged"),
        "text beyond the end": (b"\x80\x02X\xff\xff\xff\x7fa.", "damaged"),
        "no instruction": (b"\x80\x02\xff.", "damaged"),
        "holds itself": (b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.", "in themselves"),
        "too deep": (b"\x80\x02}X\x01\x00\x00\x00a" + b"N" + b"\x85" * 100_000 + b"s.", "deep"),
    }


HOSTILE = hostile_pickles()


@pytest.mark.parametrize("wrap", [as_zip, as_legacy], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles(name, wrap, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    program, message = HOSTILE[name]
    with pytest.raises(ConversionError, match=message) as caught:
        tp.open_file(wrap(tmp_path / "f.pt", program))
    assert not os.path.exists("mark")
    assert "\n" not in str(caught.value) and str(tmp_path / "f.pt") in str(caught.value)


def test_forbidden_global_is_said_to_run_code(tmp_path):
    (tmp_path / "f.pt").write_bytes(pickle.dumps(Call(os.system, TOUCH), 2))  # not even in a torch format
    with pytest.raises(ConversionError, match=f"this file would run code: '{os.system.__module__}.system'"):
        tp.open_file(tmp_path / "f.pt")


@pytest.mark.parametrize("name", ["system", "system, protocol 4", "system, protocol 0", "eval", "nested"])
def test_the_hostile_files_are_really_hostile(name, tmp_path, monkeypatch):
    """Python's own unpickler does run them, so the tests above refuse something."""
    monkeypatch.chdir(tmp_path)
    pickle.loads(HOSTILE[name][0])
    assert os.path.exists("mark")


def billion_laughs() -> bytes:
    """{"a": list}: nine levels of lists, each of which holds the one before ten times over."""
    program = b"]q\x00"
    for n in range(9):
        program = b"](" + program + (b"h" + bytes([n])) * 9 + b"eq" + bytes([n + 1])
    return b"\x80\x02}X\x01\x00\x00\x00a" + program + b"s."


@pytest.mark.parametrize(
    "program, message",
    [
        (billion_laughs(), "more than 1000000 values"),
        (b"\x80\x02}" + b"]" * 1_500_000 + b".", "more than 1000000 instructions"),
        (b"\x80\x02}r\xff\xff\xff\x7fj\xff\xff\xff\x7e.", "damaged"),  # a memo of 2**31 entries takes 16 GB in Python's own unpickler
    ],
    ids=["values", "instructions", "memo"],
)
def test_memory_and_time_are_bounded(program, message, tmp_path):
    path = as_zip(tmp_path / "f.pt", program)
    limits, start = resource.getrlimit(resource.RLIMIT_AS), time.monotonic()
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), limits[1]))
    try:
        with pytest.raises(ConversionError, match=message):
            tp.open_file(path)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert time.monotonic() - start < 20


def tensor_program(numel=6, offset=0, shape=(2, 3), strides=(3, 1), kind="FloatStorage", key="0", extra=b""):
    """data.pkl of {"a": tensor}; `extra` goes behind the arguments of _rebuild_tensor_v2."""
    enc = lambda x: pickle.dumps(x, 2)[2:-1]  # noqa: E731  (memo entries are written, never read)
    pid = b"(" + enc("storage") + b"ctorch\n" + kind.encode() + b"\n" + enc(key) + enc("cpu") + enc(numel) + b"tQ"
    return b"\x80\x02}" + enc("a") + b"ctorch._utils\n_rebuild_tensor_v2\n(" + pid + enc(offset) + enc(shape) + enc(strides) + b"\x89}" + extra + b"tRs."


def test_handmade_tensor_is_accepted(tmp_path):
    data = np.arange(6, dtype="<f4").tobytes()
    assert tp.open_file(as_zip(tmp_path / "f.pt", tensor_program(), data_0=data))["a"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert tp.open_file(as_zip(tmp_path / "f.pt", tensor_program(shape=(3, 2), strides=(1, 3), extra=b"}"), data_0=data))["a"].tolist() == [
        [0, 3],
        [1, 4],
        [2, 5],
    ]


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(offset=1), "needs more than its 6 elements"),
        (dict(offset=-1), "whole numbers"),
        (dict(offset=2**70), "whole numbers"),
        (dict(offset=1.0), "whole numbers"),
        (dict(shape=(3, 3)), "needs more than its 6 elements"),
        (dict(strides=(4, 1)), "needs more than its 6 elements"),
        (dict(strides=(-3, 1)), "whole numbers"),
        (dict(strides=(3,)), "whole numbers"),
        (dict(strides="31"), "whole numbers"),
        (dict(strides=(True, 1)), "whole numbers"),
        (dict(shape=(2**50, 3), strides=(0, 1)), "needs more than its 6 elements"),
        (dict(shape=(2**40, 2**40), strides=(0, 0)), "impossibly large"),
        (dict(shape=(0, 2**40, 2**40), strides=(0, 0, 0)), "impossibly large"),
        (dict(shape=(-2, 3)), "shape is not"),
        (dict(shape=(1,) * 65, strides=(1,) * 65), "shape is not"),
        (dict(shape=None), "shape is not"),
        (dict(numel=7), "has 24 bytes, expected 28"),
        (dict(numel=2**50), "has 24 bytes, expected"),
        (dict(numel=-6), "refers to a storage"),
        (dict(numel=2**61), "refers to a storage"),
        (dict(kind="DoubleStorage"), "has 24 bytes, expected 48"),
        (dict(kind="ComplexFloatStorage"), "torch.ComplexFloatStorage"),
        (dict(key="1"), "which the file does not have"),
        (dict(key="../0"), "which the file does not have"),
        (dict(key=0), "refers to a storage"),
        (dict(extra=pickle.dumps({"conj": True}, 2)[2:-1]), "conjugate"),
        (dict(extra=b"}}"), "_rebuild_tensor_v2 with 8 arguments"),
    ],
)
def test_tensors_outside_their_storage(change, message, tmp_path):
    with pytest.raises(ConversionError, match=message):
        tp.open_file(as_zip(tmp_path / "f.pt", tensor_program(**change), data_0=np.arange(6, dtype="<f4").tobytes()))


def test_unsupported_tensors_name_the_reason(tmp_path):
    for value, message in (
        (torch.ones(2, dtype=torch.complex64), "torch.ComplexFloatStorage"),
        (torch.ones(2).to_sparse(), "torch._utils._rebuild_sparse_tensor"),
        (torch.empty(2, device="meta"), "_rebuild_meta_tensor_no_storage"),
        (torch.zeros(1).expand(5), "needs more than its 1 elements"),
        (torch.Size([1]), "torch.Size"),
        (torch.float32, "torch.float32"),
        (torch.float8_e5m2, "holds torch.float8_e5m2"),
    ):
        with pytest.raises(ConversionError, match=message):
            tp.open_file(save(tmp_path / "f.pt", {"a": value}))


# Damaged files -------------------------------------------------------------------------------------


def good_zip(tmp_path) -> bytes:
    return save(tmp_path / "good.pt", {"a": torch.arange(6.0), "b": {"c": torch.ones(2, 3).bfloat16(), "d": [1, "x"]}}).read_bytes()


def good_legacy(tmp_path) -> bytes:
    return save(tmp_path / "good.pt", {"a": torch.arange(6.0), "b": {"c": torch.ones(2, 3).bfloat16(), "d": [1, "x"]}}, False).read_bytes()


@pytest.mark.parametrize("good", [good_zip, good_legacy])
def test_every_truncation_is_noticed(good, tmp_path):
    data = good(tmp_path)
    for n in range(0, len(data), 3):
        (tmp_path / "cut.pt").write_bytes(data[:n])
        with pytest.raises(ConversionError, match="truncated|damaged|empty|not a PyTorch"):
            tp.open_file(tmp_path / "cut.pt")


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "the file is empty"),
        (b"\x00\x01\x02garbage", "not a PyTorch checkpoint: it starts with"),
        (b"<!doctype html>\n<html>", "this looks like a web page, not a checkpoint"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "git-lfs pointer"),
        (struct.pack("<Q", 8) + b'{"a": 1}', "safetensors"),
        (b"PK\x05\x06" + b"\0" * 18, "0 records `<name>/data.pkl`"),
        (b"PK\x03\x04 and then nothing", "truncated or damaged zip"),
        (pickle.dumps({"a": 1}, 2), "not one that torch.save wrote"),
        (pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1002, 2), "not one that torch.save wrote"),
    ],
)
def test_other_files(content, message, tmp_path):
    (tmp_path / "f.pt").write_bytes(content)
    with pytest.raises(ConversionError, match=message):
        tp.open_file(tmp_path / "f.pt")


def zip_of(path, records, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in records:
            archive.writestr(name, data)
    return path


DATA = np.arange(6, dtype="<f4").tobytes()
EMPTY = b"\x80\x02}."


@pytest.mark.parametrize(
    "records, message",
    [
        ([("a/other.pkl", EMPTY)], "0 records"),
        ([("data.pkl", EMPTY)], "0 records"),
        ([("a/data.pkl", EMPTY), ("b/data.pkl", EMPTY)], "2 records"),
        ([("a/data.pkl", EMPTY), ("a/../../etc/passwd", b"x")], "without `..`"),
        ([("a/data.pkl", EMPTY), ("/etc/passwd", b"x")], "without `..`"),
        ([("a/data.pkl", EMPTY), ("a\\..\\b", b"x")], "without `..`"),
        ([("a/data.pkl", EMPTY), ("a/data/0", b"x"), ("a/data/0", b"y")], "must be unique"),
        ([("a/data.pkl", EMPTY), ("a/constants.pkl", EMPTY)], "TorchScript"),
        ([("a/data.pkl", EMPTY), ("a/byteorder", b"big")], "big-endian"),
        ([("a/data.pkl", tensor_program())], "storage '0', which the file does not have"),
        ([("a/data.pkl", tensor_program()), ("b/data/0", DATA)], "storage '0', which the file does not have"),
        ([("a/data.pkl", tensor_program()), ("a/data/0", DATA[:-4])], "has 20 bytes, expected 24"),
    ],
    ids=range(12),
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_zip_archives_that_are_no_checkpoints(records, message, tmp_path):
    with pytest.raises(ConversionError, match=message):
        tp.open_file(zip_of(tmp_path / "f.pt", records))


def test_long_pickle_is_not_run(tmp_path, monkeypatch):
    path = save(tmp_path / "f.pt", everything())
    monkeypatch.setattr(tp, "_MAX_PICKLE", 1000)
    with pytest.raises(ConversionError, match="the limit is 1000"):
        tp.open_file(path)
    with pytest.raises(ConversionError, match="damaged"):
        tp.open_file(save(path, everything(), False))


def test_zip_bomb(tmp_path):
    records = [("a/data.pkl", tensor_program(numel=1 << 22, shape=(1 << 22,), strides=(1,))), ("a/data/0", bytes(4 << 22))]
    path = zip_of(tmp_path / "f.pt", records, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 100_000
    with pytest.raises(ConversionError, match="is compressed or encrypted"):
        tp.open_file(path)


def patched(data: bytes, at: int, value: int, size: int) -> bytes:
    return data[:at] + value.to_bytes(size, "little") + data[at + size :]


def test_zip_directories_that_lie(tmp_path):
    path = zip_of(tmp_path / "f.pt", [("a/data.pkl", tensor_program()), ("a/data/0", DATA)])
    good = path.read_bytes()
    entry = good.rindex(b"PK\x01\x02")  # of a/data/0
    end = good.rindex(b"PK\x05\x06")
    for data, message in (
        (patched(patched(good, entry + 20, 1 << 20, 4), entry + 24, 1 << 20, 4), "ends at byte"),
        (patched(good, entry + 24, 1 << 20, 4), "is compressed"),
        (patched(good, entry + 42, 5, 4), "does not start at byte 5"),
        (patched(good, entry + 42, 1 << 30, 4), "does not start at byte|damaged"),
        (patched(good, entry + 8, 1, 2), "encrypted"),
        (patched(good, end + 12, 1 << 30, 4), "damaged zip"),
    ):
        path.write_bytes(data)
        with pytest.raises(ConversionError, match=message):
            tp.open_file(path)


def test_long_zip_directory_is_not_read(tmp_path):
    path = tmp_path / "f.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", EMPTY)
        for n in range(150):
            archive.writestr("a/" + f"{n:05}" * 13_000, b"")
    with pytest.raises(ConversionError, match="list of records takes 9"):
        tp.open_file(path)


def test_legacy_files_that_lie(tmp_path):
    path = tmp_path / "f.pt"
    good = save(path, {"a": torch.arange(6.0)}, False).read_bytes()
    end = good.index(struct.pack("<q2f", 6, 0, 1))
    for data, message in (
        (good + b"x", "1 bytes follow"),
        (good[:-1], "truncated: "),
        (patched(good, end, 2**62, 8), f"has {2**62} elements, its tensors expect 6"),
        (good.replace(b"little_endian\x94"[:-1], b"little_endiaN"), "little-endian machine"),
        (good[:end].replace(b"](", b"]0", 1)[: end - 1], "damaged|instruction|list of storages"),
    ):
        path.write_bytes(data)
        with pytest.raises(ConversionError, match=message):
            tp.open_file(path)


@pytest.mark.parametrize("good", [good_zip, good_legacy])
def test_mutated_files(good, tmp_path):
    """Whatever happens to a file, it reads or it is a ConversionError; and so for the other reader."""
    rng, data, path, outcomes = np.random.default_rng(0), good(tmp_path), tmp_path / "f.pt", []

    def touch(value):
        if isinstance(value, np.ndarray):
            value.tobytes()
        elif isinstance(value, dict | list | tuple):
            for item in value.values() if isinstance(value, dict) else value:
                touch(item)

    start = time.monotonic()
    for n in range(500):
        mutated = bytearray(data)
        for _ in range(rng.integers(1, 5)):
            mutated[rng.integers(0, len(data) if n % 2 else min(600, len(data)))] = rng.integers(0, 256)
        if n % 9 == 0:
            mutated = mutated[: rng.integers(0, len(data))]
        path.write_bytes(mutated)
        try:
            touch(tp.open_file(path))
            outcomes.append(True)
        except ConversionError as error:
            assert "\n" not in str(error)
            outcomes.append(False)
        with pytest.raises(ConversionError):
            st.open_file(path)
    assert 5 < sum(outcomes) < 450
    assert time.monotonic() - start < 20


def test_random_programs(tmp_path):
    """Instructions in random order, mostly valid ones with plausible arguments."""
    rng = np.random.default_rng(1)
    words = [
        *(
            b"(",
            b".",
            b"0",
            b"2",
            b"N",
            b"\x88",
            b"]",
            b"}",
            b")",
            b"t",
            b"\x85",
            b"\x86",
            b"\x87",
            b"a",
            b"e",
            b"s",
            b"u",
            b"R",
            b"b",
            b"Q",
            b"\x93",
            b"\x81",
            b"o",
        ),
        *(b"q\x00", b"q\x01", b"h\x00", b"h\x01", b"K\x01", b"J\xff\xff\xff\xff", b"\x8a\x01\x05", b"G" + b"\x40" * 8),
        *(b"X\x07\x00\x00\x00storage", b"X\x01\x00\x00\x000", b"X\x03\x00\x00\x00cpu", b"ctorch\nFloatStorage\n", b"ccollections\nOrderedDict\n"),
        *(b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch._utils\n_rebuild_parameter\n", b"cos\nsystem\n"),
    ]
    for _ in range(3000):
        program = b"\x80\x02}" + b"".join(words[i] for i in rng.integers(0, len(words), rng.integers(1, 30))) + b"."
        try:
            tp._unpickle(io.BytesIO(program), "f")
        except ConversionError:
            pass


# The writer ----------------------------------------------------------------------------------------


def test_torch_reads_what_we_write(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        f"{np.dtype(d)}.{n}": np.asarray(rng.normal(size=s) * 10).astype(d) for d in DTYPES.values() if np.dtype(d).kind != "u" for n, s in enumerate(SHAPES)
    }
    arrays |= {f"{np.dtype(d)}.{n}": rng.integers(0, 200, s).astype(d) for d in DTYPES.values() if np.dtype(d).kind == "u" for n, s in enumerate(SHAPES)}
    arrays |= {"transposed": np.arange(6.0).reshape(2, 3).T, "lazy": st.LazyTensor((3,), np.dtype("float32"), lambda: np.arange(3, dtype=np.float32))}
    plain = {"text": "ä", "list": [1, -129, 2**70, 2.5, None, True, (), (1, [])], 3: {}}
    path = tmp_path / "f.pt"
    torch_writer.write_file(path, {"state_dict": collections.OrderedDict(arrays), "plain": plain})
    for options in ({}, {"mmap": True}):
        loaded = torch.load(path, weights_only=True, **options)
        assert loaded["plain"] == plain and list(loaded["state_dict"]) == list(arrays)
        for key, array in arrays.items():
            array, tensor = np.asarray(array), loaded["state_dict"][key]
            assert DTYPES[tensor.dtype] == array.dtype and tuple(tensor.shape) == array.shape, key
            assert bytes_of(tensor) == np.ascontiguousarray(array).tobytes(), key
            assert tensor.is_contiguous()
    ours = tp.open_file(path)
    assert ours["plain"] == plain
    for key, array in arrays.items():
        assert ours["state_dict"][key].dtype == array.dtype and ours["state_dict"][key].tobytes() == np.asarray(array).tobytes(), key


def test_written_bytes_are_fixed_and_aligned(tmp_path):
    tree = {"a": np.ones(3, np.float32), "bb": {"c": np.ones(5, ml_dtypes.bfloat16), "d": np.zeros((0, 2))}}
    torch_writer.write_file(tmp_path / "1.pt", tree)
    time.sleep(0.01)
    torch_writer.write_file(tmp_path / "another name.pt", tree)
    data = (tmp_path / "1.pt").read_bytes()
    assert data == (tmp_path / "another name.pt").read_bytes()
    with zipfile.ZipFile(tmp_path / "1.pt") as archive:
        assert archive.testzip() is None
        names = [info.filename for info in archive.infolist()]
        assert names == [f"archive/{n}" for n in ("data.pkl", "byteorder", "data/0", "data/1", "data/2", "version")]
        for info in archive.infolist():
            lengths = struct.unpack("<2H", data[info.header_offset + 26 : info.header_offset + 30])
            assert (info.header_offset + 30 + sum(lengths)) % 64 == 0


def test_what_cannot_be_written(tmp_path):
    for tree, message in (
        ({"a": np.ones(2, np.complex64)}, "ndarray of complex64"),
        ({"a": {1, 2}}, "cannot write a set"),
        ({"a": b"x"}, "cannot write a bytes"),
    ):
        with pytest.raises(ConversionError, match=message):
            torch_writer.write_file(tmp_path / "f.pt", tree)
    assert not list(tmp_path.iterdir())
