"""Safetensors files: a strict, memory-mapped reader and a streaming writer.

A file is an 8-byte little-endian header length, a JSON header {name: {dtype, shape, data_offsets}} and the
tensors' bytes, little-endian, in C order and without holes (https://huggingface.co/docs/safetensors).
Arrays are read-only views of the mapped file: nothing is read from the disk before it is used.
Every fault of a file is a `ConversionError` of one line that names the file.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import json
import math
import mmap
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol, runtime_checkable

import ml_dtypes
import numpy as np

from infu_jax.convert.errors import ConversionError, shown

DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_MAX_JSON = 100_000_000  # bytes; the reference implementation's limit for a header


@runtime_checkable
class Tensor(Protocol):
    """What the writers take: an array, or anything that has its shape and dtype and that `np.asarray` makes one of."""

    shape: tuple[int, ...]
    dtype: np.dtype

    def __array__(self, dtype=None, copy=None) -> np.ndarray: ...


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that is made while it is written: `read()` gives an array of this shape and dtype. So a model may exceed the memory."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.asarray(self.read(), dtype=dtype)


# Reading ------------------------------------------------------------------------------------------


def open_file(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors of one file, as read-only views of the mapped file."""
    raw = map_file(path)
    entries, _, start = _read_header(raw, path)
    return {key: raw[start + a : start + b].view(dtype).reshape(shape) for key, (dtype, shape, a, b) in entries.items()}


def read_metadata(path: str | Path) -> dict[str, str]:
    """The `__metadata__` of a file; empty where it has none."""
    return _read_header(map_file(path), path)[1]


def open_sharded(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors of all shards that a `*.safetensors.index.json` names. Shards lie next to the index."""
    path = Path(path)
    index = _parse_json(map_file(path).tobytes(), path)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise ConversionError(f"{path}: no weight_map from tensor names to shard files; this is not the index of a sharded safetensors file")
    shards = sorted(set(weight_map.values()))
    # A plain name cannot leave the folder. Links are followed: the Hugging Face cache is made of them.
    outside = [shard for shard in shards if not re.fullmatch(r"[^/\\\0\ud800-\udfff]+\.safetensors", shard) or len(shard.encode()) > 255]
    if outside:
        raise ConversionError(f"{path}: shard {_show(outside[0])} is not the plain name of a .safetensors file in the same folder")
    missing = [shard for shard in shards if not (path.parent / shard).is_file()]
    if missing:
        raise ConversionError(f"{path}: {len(missing)} of {len(shards)} shards are missing: {', '.join(map(shown, missing))}; download them into {path.parent}")
    found = {shard: open_file(path.parent / shard) for shard in shards}
    # Every key of a shard must be assigned to that shard, so no key can be in two of them.
    for shard, tensors in found.items():
        for key in tensors:
            if weight_map.get(key) != shard:
                said = f"the index says {shown(weight_map[key])}" if key in weight_map else "the index does not name it"
                raise ConversionError(f"{path}: tensor {_show(key)} is in {shown(shard)}, but {said}; the files are of different downloads")
    absent = [key for key, shard in weight_map.items() if key not in found[shard]]
    if absent:
        some = f"{_show(absent[0])} in {shown(weight_map[absent[0]])}"
        raise ConversionError(f"{path}: {len(absent)} tensors are not in the shard that the index says, e.g. {some}")
    return {key: found[shard][key] for key, shard in weight_map.items()}


def open_folder(folder: str | Path, stem: str) -> dict[str, np.ndarray]:
    """The tensors of `<stem>.safetensors` or of the shards of `<stem>.safetensors.index.json`, whichever the folder has."""
    folder = Path(folder)
    single, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
    if not folder.is_dir():
        raise ConversionError(f"{folder}: no such folder; expected one with {single.name} or {index.name}")
    if single.is_file() and index.is_file():
        raise ConversionError(f"{folder} has both {single.name} and {index.name}; remove the one that is out of date")
    if not single.is_file() and not index.is_file():
        names = sorted(p.name for p in folder.iterdir())
        found = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
        raise ConversionError(f"{folder}: expected {single.name} or {index.name}, found {found or 'an empty folder'}")
    return open_file(single) if single.is_file() else open_sharded(index)


def map_file(path: str | Path) -> np.ndarray:
    """The bytes of a file as a read-only mapped array, after refusing what is plainly not a checkpoint."""
    path = Path(path)
    if not path.is_file():
        raise ConversionError(f"{path}: {'this is a folder' if path.is_dir() else 'no such file'}; expected a checkpoint file")
    if not path.stat().st_size:
        raise ConversionError(f"{path}: the file is empty; download it again")
    raw = np.asarray(np.memmap(path, np.uint8, "r"))
    head = raw[:512].tobytes().removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if head.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        raise ConversionError(f"{path}: this looks like a web page, not a checkpoint; download the file itself (log in first if its page asks for it)")
    if head.startswith(b"version https://git-lfs"):
        raise ConversionError(f"{path}: this is a git-lfs pointer, not the checkpoint itself; run `git lfs pull` or download the file")
    return raw


def release(arrays: Iterable[np.ndarray]) -> None:
    """Take pages of mapped files out of this process's memory again. They stay in the system's cache, and are read again when they are used."""
    maps: dict[int, mmap.mmap] = {}
    for array in arrays:
        base: Any = array
        while isinstance(base, np.ndarray):
            base = base.base
        if isinstance(base, mmap.mmap):
            maps[id(base)] = base
    for mapped in maps.values():
        mapped.madvise(mmap.MADV_DONTNEED)


def check_shape(shape: Any, where: str) -> int:
    """The number of elements of `shape`, a list or tuple from a file, after checking that it can be an array's."""
    if not isinstance(shape, list | tuple) or len(shape) > 64 or not all(type(n) is int and 0 <= n < 2**60 for n in shape):
        raise ConversionError(f"{where}: the shape is not a list of at most 64 sizes that are whole numbers from 0 to 2**60")
    if math.prod(max(n, 1) for n in shape) >= 2**60:
        raise ConversionError(f"{where}: the shape {list(shape)} is impossibly large")
    return math.prod(shape)


def _read_header(raw: np.ndarray, path: str | Path) -> tuple[dict[str, tuple[np.dtype, list[int], int, int]], dict[str, str], int]:
    """Checked entries {name: (dtype, shape, begin, end)}, the metadata, and where the data starts."""
    head = raw[:8].tobytes()
    if raw.size < 8:
        raise ConversionError(f"{path}: {raw.size} bytes are too few for a safetensors file; download it again")
    length = int.from_bytes(head, "little")
    if length > _MAX_JSON:
        kind = "it looks like a PyTorch file" if head.startswith((b"PK\x03\x04", b"\x80")) else f"it starts with {head!r}"
        raise ConversionError(f"{path}: a header of {length} bytes, the limit is {_MAX_JSON}; this is not a safetensors file, {kind}")
    if 8 + length > raw.size:
        raise ConversionError(f"{path}: the header needs {8 + length} bytes, the file has {raw.size}: truncated or no safetensors file; download it again")
    header = _parse_json(raw[8 : 8 + length].tobytes(), path)
    metadata = header.pop("__metadata__", {})
    if not _is_text_map(metadata):
        raise ConversionError(f"{path}: __metadata__ is not a map from text to text")
    entries = {key: _entry(value, f"{path}: tensor {_show(key)}") for key, value in header.items()}
    at, size = 0, raw.size - 8 - length
    for key, (_, _, begin, end) in sorted(entries.items(), key=lambda item: item[1][2:]):
        if begin != at:
            fault = "overlaps with another" if begin < at else "leaves a gap"
            raise ConversionError(f"{path}: tensor {_show(key)} {fault}: it starts at byte {begin} of the data, expected {at}")
        at = end
    if at > size:
        raise ConversionError(f"{path}: truncated: {raw.size} of {8 + length + at} bytes; download it again")
    if at < size:
        raise ConversionError(f"{path}: {size - at} bytes follow the last tensor; expected a file of {8 + length + at} bytes")
    return entries, metadata, 8 + length


def _entry(value: Any, where: str) -> tuple[np.dtype, list[int], int, int]:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise ConversionError(f"{where}: expected dtype, shape and data_offsets in the header, and nothing else")
    name, offsets = value["dtype"], value["data_offsets"]
    if not isinstance(name, str) or name not in DTYPES:
        raise ConversionError(f"{where}: unknown dtype {_show(name)}; known are {', '.join(DTYPES)}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(n) is int and 0 <= n < 2**63 for n in offsets):
        raise ConversionError(f"{where}: data_offsets are not two whole numbers from 0 to 2**63")
    needed = check_shape(value["shape"], where) * DTYPES[name].itemsize
    if offsets[1] - offsets[0] != needed:
        raise ConversionError(f"{where}: {name} {value['shape']} needs {needed} bytes, data_offsets {offsets} have {offsets[1] - offsets[0]}")
    return DTYPES[name], value["shape"], *offsets


def _parse_json(data: bytes, path: str | Path) -> dict[str, Any]:
    def unique(pairs):
        result: dict[str, Any] = {}
        for key, value in pairs:
            if key in result:
                raise ConversionError(f"{path}: the name {_show(key)} is there twice")
            result[key] = value
        return result

    if len(data) > _MAX_JSON:
        raise ConversionError(f"{path}: {len(data)} bytes of JSON are beyond the limit of {_MAX_JSON}")
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=unique)
    except ConversionError:
        raise
    except (ValueError, RecursionError) as error:
        raise ConversionError(f"{path}: the header is not JSON in UTF-8 ({error}); the file is damaged or not a safetensors file") from error
    if not isinstance(value, dict):
        raise ConversionError(f"{path}: the header is not a JSON object")
    return value


def _is_text_map(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(k, str) and isinstance(v, str) for k, v in value.items())


def _show(value: Any) -> str:
    """A value of a file as one short line, whatever it is."""
    return repr(value)[:120] if isinstance(value, str) else f"of type {type(value).__name__}"


# Writing ------------------------------------------------------------------------------------------


def write_file(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write one file, tensor by tensor. transformers wants `metadata={"format": "pt"}`.

    The bytes depend on the contents only. Every value is looked up twice (for the header, then for its
    bytes), so a mapping should hold `LazyTensor`s rather than make arrays on look-up.
    """
    # Larger elements first, as in the reference implementation, so that every tensor is aligned.
    order = sorted(tensors, key=lambda key: (-np.dtype(tensors[key].dtype).itemsize, key))
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    if not _is_text_map(metadata or {}) or "__metadata__" in tensors:
        raise ConversionError(f"{path}: metadata must map text to text, and no tensor may be called __metadata__")
    at = 0
    for key in order:
        dtype, shape = np.dtype(tensors[key].dtype), [int(n) for n in tensors[key].shape]
        if dtype not in _NAMES:
            raise ConversionError(f"{path}: tensor {_show(key)} is {dtype}, which safetensors cannot hold; it can hold {', '.join(map(str, _NAMES))}")
        size = math.prod(shape) * dtype.itemsize
        header[key] = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > _MAX_JSON:
        raise ConversionError(f"{path}: the header would take {len(text)} bytes, the limit is {_MAX_JSON}; write several files")
    with replacing(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for values in ahead(lambda key=key: contents(tensors[key], f"{path}: tensor {_show(key)}") for key in order):
            write_pieces(file.write, values)


def write_sharded(folder: str | Path, stem: str, tensors: Mapping[str, Tensor], max_bytes: int, metadata: Mapping[str, str] | None = None) -> Path:
    """Write `<stem>-00001-of-00003.safetensors` ... and their index, or `<stem>.safetensors` where one file is enough.

    max_bytes: of tensors in one file; a tensor beyond it gets a file of its own. Returns the path of the index or of the one file.
    """
    folder = Path(folder)
    shards: list[list[str]] = [[]]
    sizes = {key: math.prod(tensors[key].shape) * np.dtype(tensors[key].dtype).itemsize for key in sorted(tensors)}
    room = max_bytes
    for key, size in sizes.items():
        if size > room and shards[-1]:
            shards.append([])
            room = max_bytes
        shards[-1].append(key)
        room -= size
    single, index = f"{stem}.safetensors", f"{stem}.safetensors.index.json"
    names = [single] if len(shards) == 1 else [f"{stem}-{n:05}-of-{len(shards):05}.safetensors" for n in range(1, len(shards) + 1)]
    mine = {*names, index} if len(shards) > 1 else {single}
    folder.mkdir(parents=True, exist_ok=True)
    old = re.compile(re.escape(stem) + r"(-\d{5}-of-\d{5}\.safetensors|\.safetensors(\.index\.json)?)")
    stale = sorted(p.name for p in folder.iterdir() if old.fullmatch(p.name) and p.name not in mine)
    if stale:
        raise ConversionError(f"{folder} already has {', '.join(stale)}, which would mix with the new files; remove them or choose another folder")
    for name, keys in zip(names, shards, strict=True):
        write_file(folder / name, {key: tensors[key] for key in keys}, metadata)
    if len(shards) == 1:
        return folder / single
    weight_map = {key: name for name, keys in zip(names, shards, strict=True) for key in keys}
    with replacing(folder / index) as file:
        file.write(json.dumps({"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}, indent=2).encode() + b"\n")
    return folder / index


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[BinaryIO]:
    """A new file that takes the place of `path` when the block ends well, and is removed when it does not."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            yield file
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_pieces(write: Callable[[np.ndarray], Any], data: np.ndarray) -> None:
    """`write(data)` in pieces of 1 MiB, which Linux takes several times as fast as one of a hundred."""
    for n in range(0, data.size, 1 << 20):
        write(data[n : n + (1 << 20)])


def ahead(makers: Iterable[Callable[[], np.ndarray]]) -> Iterator[np.ndarray]:
    """What each of `makers` makes, in order; the next two are made while one is used."""
    waiting: collections.deque[concurrent.futures.Future] = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        for make in makers:
            waiting.append(threads.submit(make))
            if len(waiting) > 2:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def contents(tensor: Tensor, where: str) -> np.ndarray:
    """The bytes of a tensor in C order; a copy only where it is not stored so. Makes it, if it is lazy."""
    array = np.asarray(tensor, order="C")
    if array.shape != tuple(tensor.shape) or array.dtype != tensor.dtype:
        raise ConversionError(f"{where}: announced as {tensor.dtype} {list(tensor.shape)}, made as {array.dtype} {list(array.shape)}")
    return array.reshape(-1).view(np.uint8)
