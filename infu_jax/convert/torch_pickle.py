"""PyTorch checkpoints (.bin, .pt, .pth) without PyTorch, and without running what a pickle asks for.

A pickle is a program. `_unpickle` knows only the instructions that `torch.save` writes for tensors, dicts,
lists, tuples, numbers and text, and a name in the file (`os.system`) is looked up in a table here, never
imported. Everything else is a `ConversionError`.

Two formats: a zip archive of `<name>/data.pkl` and one uncompressed record per storage (torch >= 1.6), and
five pickles followed by the storages (older). Storages stay in the mapped file until they are used.
"""

from __future__ import annotations

import io
import pickletools
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import ml_dtypes
import numpy as np

from infu_jax.convert.errors import ConversionError
from infu_jax.convert.safetensors import check_shape, map_file

# Storages whose class says the dtype ...
TYPED = {
    "torch.DoubleStorage": np.dtype("<f8"),
    "torch.FloatStorage": np.dtype("<f4"),
    "torch.HalfStorage": np.dtype("<f2"),
    "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch.LongStorage": np.dtype("<i8"),
    "torch.IntStorage": np.dtype("<i4"),
    "torch.ShortStorage": np.dtype("<i2"),
    "torch.CharStorage": np.dtype("i1"),
    "torch.ByteStorage": np.dtype("u1"),
    "torch.BoolStorage": np.dtype("?"),
}
# ... and dtypes that have no such class: their storage is bytes, and the tensor says the dtype.
UNTYPED = "torch.storage.UntypedStorage"
DTYPES = {
    "torch.float8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
    "torch.float8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
    "torch.uint16": np.dtype("<u2"),
    "torch.uint32": np.dtype("<u4"),
    "torch.uint64": np.dtype("<u8"),
}
ORDERED_DICT = "collections.OrderedDict"
_TENSOR = {"torch._utils._rebuild_tensor": 4, "torch._utils._rebuild_tensor_v2": 6, "torch._utils._rebuild_tensor_v3": 7}  # arguments at least
_PARAMETER = "torch._utils._rebuild_parameter"
_GLOBALS = {*TYPED, UNTYPED, *DTYPES, ORDERED_DICT, *_TENSOR, _PARAMETER}

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of the older format
# A checkpoint of a thousand tensors has 25,000 instructions in 200 kB.
_MAX_PICKLE = 64 << 20  # bytes
_MAX_STEPS = 1_000_000  # instructions of one pickle, and values in the result
_MAX_DEPTH = 64  # of nested containers
_MAX_DIRECTORY = 8 << 20  # bytes of a zip archive's list of records


@dataclass(frozen=True)
class _Global:
    """A name that the pickle refers to, one of `_GLOBALS`."""

    name: str


@dataclass(frozen=True)
class _Storage:
    """A flat run of elements that lies elsewhere in the file."""

    key: str
    dtype: np.dtype | None  # None: bytes
    count: int

    @property
    def size(self) -> int:
        return self.count * (self.dtype.itemsize if self.dtype else 1)


@dataclass(frozen=True)
class _View:
    """A tensor: a strided view of a storage. Offset and strides count elements and are not yet checked."""

    storage: _Storage
    dtype: np.dtype
    offset: Any
    shape: Any
    strides: Any


def open_file(path: str | Path) -> dict[Any, Any]:
    """The dictionary in a checkpoint: tensors as read-only views of the mapped file, in plain (nested) dicts, lists and tuples."""
    raw = map_file(path)
    head = raw[:9].tobytes()
    if head.startswith(b"PK"):
        tree, storages = _read_zip(raw, path)
    elif head.startswith(b"\x80"):
        tree, storages = _read_legacy(raw, path)
    else:
        guess = "it looks like a safetensors file" if head[8:] == b"{" else f"it starts with {head[:4]!r}"
        raise ConversionError(f"{path}: not a PyTorch checkpoint: {guess}")
    if not isinstance(tree, dict):
        raise ConversionError(f"{path}: holds a {type(tree).__name__.lstrip('_')}, expected a dictionary of tensors")
    return _resolve(tree, storages, path)


def _read_zip(raw: np.ndarray, path: str | Path) -> tuple[Any, dict[str, np.ndarray]]:
    """The object, with `_View`s, and the storages' bytes by key."""
    records = _zip_records(raw, path)
    pickles = [name for name in records if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise ConversionError(f"{path}: a zip archive with {len(pickles)} records `<name>/data.pkl`, expected one; this is not a PyTorch checkpoint")
    prefix = pickles[0].removesuffix("data.pkl")
    if f"{prefix}constants.pkl" in records:
        raise ConversionError(f"{path}: this is a TorchScript program; expected a checkpoint (torch.save of a state dict)")
    if f"{prefix}byteorder" in records and records[f"{prefix}byteorder"].tobytes() != b"little":
        raise ConversionError(f"{path}: written on a big-endian machine; only little-endian files are read")
    if records[pickles[0]].size > _MAX_PICKLE:
        raise ConversionError(f"{path}: {pickles[0]} has {records[pickles[0]].size} bytes, the limit is {_MAX_PICKLE}")
    tree = _unpickle(io.BytesIO(records[pickles[0]].tobytes()), path)
    return tree, {name.removeprefix(f"{prefix}data/"): record for name, record in records.items() if name.startswith(f"{prefix}data/")}


def _zip_records(raw: np.ndarray, path: str | Path) -> dict[str, np.ndarray]:
    """Every record's bytes, where they lie in the file. Records are never unpacked, so a zip bomb has nothing to explode."""

    class Bounded(io.FileIO):
        def read(self, size=-1):
            if size > _MAX_DIRECTORY:
                raise zipfile.BadZipFile(f"its list of records takes {size} bytes, the limit is {_MAX_DIRECTORY}")
            return super().read(size)

    try:
        with Bounded(path) as file, zipfile.ZipFile(file) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, OSError, struct.error) as error:
        raise ConversionError(f"{path}: a truncated or damaged zip archive ({error}); download it again") from error
    records: dict[str, np.ndarray] = {}
    for info in infos:
        name, where = info.filename, f"{path}: record {info.filename!r:.120}"
        if name in records or name.startswith("/") or "\\" in name or ".." in name.split("/"):
            raise ConversionError(f"{where}: names must be unique, relative and without `..`")
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size or info.flag_bits & 1:
            raise ConversionError(f"{where} is compressed or encrypted, which torch.save never does; load and save the file with PyTorch")
        at, header = info.header_offset, b""
        if 0 <= at <= raw.size - 30:
            header = raw[at : at + 30].tobytes()
        if not header.startswith(b"PK\x03\x04"):
            raise ConversionError(f"{where} does not start at byte {at}; the file is damaged, download it again")
        start = at + 30 + sum(struct.unpack("<2H", header[26:]))
        if start + info.file_size > raw.size:
            raise ConversionError(f"{where} ends at byte {start + info.file_size}, the file has {raw.size}; download it again")
        records[name] = raw[start : start + info.file_size]
    return records


def _read_legacy(raw: np.ndarray, path: str | Path) -> tuple[Any, dict[str, np.ndarray]]:
    """As `_read_zip`: magic number, protocol, machine, object, storage keys, then per key a count (int64) and the elements."""
    stream = io.BytesIO(raw[:_MAX_PICKLE].tobytes())
    if _unpickle(stream, path) != _MAGIC or _unpickle(stream, path) != _PROTOCOL:
        raise ConversionError(f"{path}: a pickle, but not one that torch.save wrote")
    machine = _unpickle(stream, path)
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise ConversionError(f"{path}: not written on a little-endian machine; only such files are read")
    found: dict[str, _Storage] = {}
    tree = _unpickle(stream, path, found)
    keys = _unpickle(stream, path)
    if not isinstance(keys, list) or not all(isinstance(key, str) and key in found for key in keys) or sorted(keys) != sorted(found):
        raise ConversionError(f"{path}: its list of storages is not the list of those that its tensors use")
    at, storages = stream.tell(), {}
    for key in keys:
        count, at = int.from_bytes(raw[at : at + 8].tobytes(), "little"), at + 8
        if at > raw.size or at + found[key].size > raw.size:
            raise ConversionError(f"{path}: truncated: {raw.size} of at least {at + found[key].size} bytes; download it again")
        if count != found[key].count:
            raise ConversionError(f"{path}: storage {key!r:.120} has {count} elements, its tensors expect {found[key].count}")
        storages[key] = raw[at : at + found[key].size]
        at += found[key].size
    if at != raw.size:
        raise ConversionError(f"{path}: {raw.size - at} bytes follow the last storage")
    return tree, storages


def _unpickle(stream: io.BytesIO, path: str | Path, storages: dict[str, _Storage] | None = None) -> Any:
    """Run one pickle from `stream`. Names become `_Global`, storages `_Storage` (also put into `storages`), tensors `_View`."""
    stack, marks, memo = [], [], {}
    storages = {} if storages is None else storages
    try:
        for step, (op, arg, _) in enumerate(pickletools.genops(stream)):
            if step >= _MAX_STEPS:
                raise ConversionError(f"{path}: its pickle has more than {_MAX_STEPS} instructions, more than any checkpoint")
            match op.name:
                case "PROTO" | "FRAME" | "STOP":
                    pass
                case "NONE" | "NEWTRUE" | "NEWFALSE":
                    stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[op.name])
                case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE" | "SHORT_BINUNICODE" | "BINSTRING" | "SHORT_BINSTRING":
                    if type(arg) is int and arg.bit_length() > 96:
                        raise ConversionError(f"{path}: a number of {arg.bit_length()} bits")
                    stack.append(arg)
                case "EMPTY_DICT" | "EMPTY_LIST" | "EMPTY_TUPLE":
                    stack.append({"EMPTY_DICT": {}, "EMPTY_LIST": [], "EMPTY_TUPLE": ()}[op.name])
                case "MARK":
                    marks.append(stack)
                    stack = []
                case "TUPLE":
                    items, stack = tuple(stack), marks.pop()
                    stack.append(items)
                case "TUPLE1" | "TUPLE2" | "TUPLE3":
                    stack.append(tuple(reversed([stack.pop() for _ in range(int(op.name[-1]))])))
                case "APPEND":
                    item = stack.pop()
                    _extend(stack[-1], [item], path)
                case "APPENDS":
                    items, stack = stack, marks.pop()
                    _extend(stack[-1], items, path)
                case "SETITEM":
                    value, key = stack.pop(), stack.pop()
                    _update(stack[-1], [key, value], path)
                case "SETITEMS":
                    items, stack = stack, marks.pop()
                    _update(stack[-1], items, path)
                case "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                    memo[len(memo) if op.name == "MEMOIZE" else arg] = stack[-1]
                case "BINGET" | "LONG_BINGET":
                    stack.append(memo[arg])
                case "GLOBAL":
                    stack.append(_global(arg.replace(" ", "."), path))
                case "STACK_GLOBAL":
                    name, module = stack.pop(), stack.pop()
                    stack.append(_global(f"{module}.{name}" if isinstance(module, str) and isinstance(name, str) else "?", path))
                case "REDUCE":
                    args, function = stack.pop(), stack.pop()
                    stack.append(_call(function, args, path))
                case "BUILD":  # attributes of an OrderedDict: a state dict's `_metadata`, which holds versions of torch's modules
                    if not isinstance(stack.pop(), dict) or not isinstance(stack[-1], dict):
                        _refuse("the instruction BUILD on something other than a dictionary", path)
                case "BINPERSID":
                    storage = _storage(stack.pop(), path)
                    if storages.setdefault(storage.key, storage) != storage:
                        raise ConversionError(f"{path}: storage {storage.key!r:.120} is described in two ways")
                    stack.append(storage)
                case "INST" | "OBJ" | "NEWOBJ" | "NEWOBJ_EX" | "EXT1" | "EXT2" | "EXT4":
                    _refuse(f"the instruction {op.name}", path)
                case _:
                    raise ConversionError(f"{path}: its pickle has the instruction {op.name}, which tensors, containers, numbers and text do not need")
    except ConversionError:
        raise
    except (ValueError, IndexError, KeyError, DeprecationWarning) as error:  # the last for a stray backslash in a name, under python -W error
        raise ConversionError(f"{path}: its pickle is damaged ({type(error).__name__}: {error!s:.120}); download it again") from error
    if len(stack) != 1 or marks:
        raise ConversionError(f"{path}: its pickle is damaged: it leaves {len(stack)} values and {len(marks)} marks, expected one value")
    return stack[0]


def _refuse(what: str, path: str | Path) -> NoReturn:
    raise ConversionError(
        f"{path}: this file would run code: {what}. Only plain tensors, dicts, lists, tuples, numbers and text are read; "
        "if you trust it, load it with PyTorch and save its state dict as safetensors"
    )


def _global(name: str, path: str | Path) -> _Global:
    return _Global(name) if name in _GLOBALS else _refuse(f"{name!r:.120}", path)


def _extend(target: Any, items: list, path: str | Path) -> None:
    if type(target) is not list:
        raise ConversionError(f"{path}: its pickle is damaged: it appends to a {type(target).__name__}")
    target.extend(items)


def _update(target: Any, items: list, path: str | Path) -> None:
    if type(target) is not dict or len(items) % 2:
        raise ConversionError(f"{path}: its pickle is damaged: it sets {len(items)} keys and values of a {type(target).__name__}")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if type(key) not in (str, int) or (type(key) is int and key.bit_length() > 63):
            raise ConversionError(f"{path}: a dictionary key of type {type(key).__name__}; expected text or a number")
        target[key] = value


def _call(function: Any, args: Any, path: str | Path) -> Any:
    """What the four callables of a checkpoint give: a dict, a tensor or, for a Parameter, its tensor."""
    if not isinstance(function, _Global) or type(args) is not tuple:
        _refuse(f"a call of a {type(function).__name__}", path)
    name = function.name
    if name == ORDERED_DICT and not args:
        return {}
    if name == ORDERED_DICT and len(args) == 1 and type(args[0]) is list and all(type(p) in (list, tuple) and len(p) == 2 for p in args[0]):
        result: dict[Any, Any] = {}  # as Python 2 wrote it: with its items as an argument
        _update(result, [x for pair in args[0] for x in pair], path)
        return result
    if name == _PARAMETER and len(args) == 3 and isinstance(args[0], _View):
        return args[0]
    if name in _TENSOR and len(args) in (_TENSOR[name], _TENSOR[name] + 1) and isinstance(args[0], _Storage):
        if len(args) > _TENSOR[name] and args[-1]:
            raise ConversionError(f"{path}: a tensor with its conjugate or negative bit set; save it with torch.resolve_conj and torch.resolve_neg")
        storage, dtype = args[0], args[0].dtype
        if name.endswith("_v3") and dtype is None and isinstance(args[6], _Global):
            dtype = DTYPES.get(args[6].name)
        elif name.endswith("_v3"):
            dtype = None
        if dtype is not None:
            return _View(storage, dtype, *args[1:4])
    raise ConversionError(f"{path}: a call of {name} with {len(args)} arguments that are not those torch.save writes")


def _storage(pid: Any, path: str | Path) -> _Storage:
    """The storage that ("storage", class, key, device, count) stands for; the older format adds None."""
    if type(pid) is tuple and len(pid) in (5, 6) and isinstance(pid[1], _Global) and (pid[1].name in TYPED or pid[1].name == UNTYPED):
        tag, kind, key, device, count = pid[:5]
        if tag == "storage" and isinstance(key, str) and isinstance(device, str) and type(count) is int and 0 <= count < 2**60 and pid[5:] in ((), (None,)):
            return _Storage(key, TYPED.get(kind.name), count)
    raise ConversionError(f"{path}: its pickle refers to a storage in a way that torch.save does not")


def _resolve(tree: Any, storages: Mapping[str, np.ndarray], path: str | Path) -> Any:
    """`tree` with arrays for views. Containers that occur more than once are copied, within a limit that also ends loops."""
    visited = 0

    def walk(value: Any, depth: int) -> Any:
        nonlocal visited
        visited += 1
        if visited > _MAX_STEPS or depth > _MAX_DEPTH:
            raise ConversionError(f"{path}: its containers hold more than {_MAX_STEPS} values or lie more than {_MAX_DEPTH} deep, or in themselves")
        if type(value) is dict:
            return {key: walk(item, depth + 1) for key, item in value.items()}
        if type(value) in (list, tuple):
            return type(value)(walk(item, depth + 1) for item in value)
        if isinstance(value, _View):
            return _array(value, storages, path)
        if value is None or type(value) in (bool, int, float, str):
            return value
        what = value.name if isinstance(value, _Global) else "a storage without a tensor"
        raise ConversionError(f"{path}: holds {what}, expected tensors, containers, numbers and text")

    return walk(tree, 0)


def _array(view: _View, storages: Mapping[str, np.ndarray], path: str | Path) -> np.ndarray:
    """The view as an array over its storage's bytes, after checking that it stays inside them."""
    where, storage = f"{path}: a tensor in storage {view.storage.key!r:.120}", view.storage
    if storage.key not in storages:
        raise ConversionError(f"{where}, which the file does not have")
    data = storages[storage.key]
    if data.size != storage.size:
        raise ConversionError(f"{where}: the storage has {data.size} bytes, expected {storage.size}; the file is damaged, download it again")
    elements, room = check_shape(view.shape, where), data.size // view.dtype.itemsize
    numbers = (view.offset, *view.strides) if type(view.strides) is tuple and len(view.strides) == len(view.shape) else (None,)
    if not all(type(n) is int and 0 <= n < 2**60 for n in numbers):
        raise ConversionError(f"{where}: its offset and strides are not whole numbers, one stride per size")
    last = view.offset + sum((n - 1) * stride for n, stride in zip(view.shape, view.strides, strict=True))
    # Sharing elements (a stride of 0) could make a huge array of a small file.
    if elements and (last >= room or elements > room):
        raise ConversionError(f"{where}: {list(view.shape)} with strides {list(view.strides)} from {view.offset} needs more than its {room} elements")
    if not elements:
        return np.ndarray(view.shape, view.dtype, b"")
    size = view.dtype.itemsize
    return np.ndarray(view.shape, view.dtype, data, view.offset * size, tuple(stride * size for stride in view.strides))
