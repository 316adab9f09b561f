"""PyTorch checkpoints (.bin, .pt, .pth) written without PyTorch, in the zip format of torch >= 1.6."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from infu_jax.convert.errors import ConversionError
from infu_jax.convert.safetensors import Tensor, contents, replacing, write_pieces
from infu_jax.convert.torch_pickle import DTYPES, ORDERED_DICT, TYPED, UNTYPED


def write_file(path: str | Path, tree: Mapping[Any, Any]) -> None:
    """Write nested dicts, lists and tuples of arrays (or lazy tensors), numbers and text so that torch.load(weights_only=True) reads them.

    The bytes depend on the contents only. Storages are aligned to 64 bytes, as torch.save does.
    """
    tensors: list[Tensor] = []
    program = b"\x80\x02" + _encode(tree, tensors, path) + b"."
    with replacing(path) as file, zipfile.ZipFile(file, "w") as archive:
        _add(archive, "data.pkl", np.frombuffer(program, np.uint8))
        _add(archive, "byteorder", np.frombuffer(b"little", np.uint8))
        for n, tensor in enumerate(tensors):
            _add(archive, f"data/{n}", contents(tensor, f"{path}: tensor {n}"))
        _add(archive, "version", np.frombuffer(b"3\n", np.uint8))


def _add(archive: zipfile.ZipFile, name: str, data: np.ndarray) -> None:
    info = zipfile.ZipInfo(f"archive/{name}", (1980, 1, 1, 0, 0, 0))
    info.create_system = 3
    # The local header: 30 bytes, the name, 20 bytes of 64-bit sizes, and a field FB of padding as torch.save writes it.
    padding = -(archive.fp.tell() + 30 + len(info.filename) + 20 + 4) % 64
    info.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
    with archive.open(info, "w", force_zip64=True) as record:
        write_pieces(record.write, data)


def _encode(value: Any, tensors: list[Tensor], path: str | Path) -> bytes:
    """Pickle instructions (protocol 2) that build `value`; its tensors are appended to `tensors`."""
    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if isinstance(value, int):
        data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
        return b"\x8a" + struct.pack("B", len(data)) + data
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, str):
        return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
    if isinstance(value, Mapping):
        return b"}(" + b"".join(_encode(x, tensors, path) for item in value.items() for x in item) + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(_encode(x, tensors, path) for x in value) + b"e"
    if isinstance(value, tuple):
        return b"(" + b"".join(_encode(x, tensors, path) for x in value) + b"t"
    return _encode_tensor(value, tensors, path)


def _encode_tensor(value: Any, tensors: list[Tensor], path: str | Path) -> bytes:
    dtype, shape = getattr(value, "dtype", None), getattr(value, "shape", None)
    kind = next((name for name, d in TYPED.items() if dtype is not None and d == dtype), None)
    late = next((name for name, d in DTYPES.items() if dtype is not None and d == dtype), None)
    if shape is None or not (kind or late):
        raise ConversionError(f"{path}: cannot write a {type(value).__name__}{f' of {dtype}' if dtype is not None else ''} into a PyTorch file")
    count, strides = 1, []
    for n in reversed(shape):
        strides.insert(0, count)
        count *= max(int(n), 1)
    total = count if 0 not in shape else 0
    name = lambda full: b"c%s\n%s\n" % tuple(part.encode() for part in full.rsplit(".", 1))  # noqa: E731
    plain = lambda x: _encode(x, tensors, path)  # noqa: E731
    key = str(len(tensors))
    tensors.append(value)
    storage = plain("storage") + name(kind or UNTYPED) + plain(key) + plain("cpu") + plain(total if kind else total * dtype.itemsize)
    view = plain(0) + plain(tuple(int(n) for n in shape)) + plain(tuple(strides)) + plain(False) + name(ORDERED_DICT) + b")R"
    rebuild = name(f"torch._utils._rebuild_tensor_v{2 if kind else 3}")
    return rebuild + b"((" + storage + b"tQ" + view + (b"" if kind else name(late)) + b"tR"
