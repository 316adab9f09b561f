"""Parameters in Orbax's files, one or a part of one at a time, so that no model has to fit into host memory."""

from __future__ import annotations

import asyncio
import functools
import json
import math
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import tensorstore

from infu_jax.convert import numbers, rules, safetensors
from infu_jax.convert.errors import ConversionError
from infu_jax.errors import InputError

CHUNK_BYTES = 16 << 20  # of our stored arrays, at most, where their shape allows; larger buffers are dear to allocate
WAITING_BYTES = 128 << 20  # that are read and not yet written: waiting for each small array alone would take long
DAMAGED = "if it is damaged, convert the model again, or take another checkpoint of its run"


@dataclass(frozen=True)
class HostParam:
    """One of our parameters in storage: `param[slices]` reads a box of it into host memory, and nothing else.

    read: the contents of a box, in this dtype.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[rules.Box], np.ndarray]

    def __getitem__(self, index: tuple) -> np.ndarray:
        return self.read(tuple(s.indices(n)[:2] for s, n in zip(index, self.shape)))  # an ellipsis at the end has no size to go with

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.asarray(self.read(tuple((0, n) for n in self.shape)), dtype)


def read_arrays(weights: Path, targets: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """Whole arrays, straight onto the devices of their shardings, in the dtypes of `targets`."""
    with ocp.StandardCheckpointer() as reader:
        try:
            arrays = reader.restore(weights, {k: v for k, v in targets.items() if v.size})
        except jax.errors.JaxRuntimeError:
            raise  # such as a device without enough memory
        except Exception as e:  # Orbax raises this very class where data are missing or unreadable
            raise ConversionError(f"{weights} cannot be read ({str(e).splitlines()[0][:120]}); {DAMAGED}") from e
    return {**arrays, **{k: jnp.zeros(v.shape, v.dtype) for k, v in targets.items() if not v.size}}


def box_reader(weights: Path, name: str, shape: rules.Shape, dtype: np.dtype) -> Callable[[rules.Box], np.ndarray]:
    """Reads boxes of one array. Orbax itself restores whole arrays only; what it writes are Zarr arrays in an OCDBT store."""
    driver = "zarr3" if json.loads((weights / "_METADATA").read_text()).get("use_zarr3") else "zarr"
    spec = {"driver": driver, "kvstore": {"driver": "ocdbt", "base": _folder(weights), "path": f"{name}/"}}

    def read(box: rules.Box) -> np.ndarray:
        if 0 in shape:
            return np.zeros([b - a for a, b in box], dtype)
        try:
            stored = tensorstore.open(spec, read=True).result()
            values = np.empty([b - a for a, b in box], stored.dtype.numpy_dtype)  # ours: NumPy asks for large pages, TensorStore does not
            tensorstore.array(values, write=True, copy=False).write(stored[tuple(slice(*b) for b in box)].translate_to[0]).result()
            values = values.astype(dtype, copy=False)
        except ValueError as e:  # TensorStore has no finer class for data that are missing or unreadable
            raise ConversionError(f"{weights} cannot be read ({str(e).splitlines()[0][:120]}); {DAMAGED}") from e
        if not numbers.all_finite(values):
            warn_not_finite(weights, [name])
        return values

    return read


def _folder(path: os.PathLike) -> dict[str, str]:
    """A folder as TensorStore takes it. Not as a URL, in which %, # and ? mean something."""
    return {"driver": "file", "path": f"{path}/"}


def warn_not_finite(path: Path, names: list[str]) -> None:
    """To be called by what `HostParam.read` is."""
    warnings.warn(f"{path}: {', '.join(sorted(names))}: not all numbers are finite (NaN or infinity); the model will not work", stacklevel=4)


class _Streamed(ocp.type_handlers.NumpyHandler):
    """Writes `HostParam`s as Orbax writes NumPy arrays (Zarr in OCDBT), but reads, writes and forgets one layer at a time.

    Uncompressed, which is several times as fast both ways, and in chunks of a layer, so that boxes are quick to read.
    """

    async def serialize(self, values, infos, args=None):
        waiting: list = []
        try:
            arrays = await _all(self._create(param, info) for param, info in zip(values, infos, strict=True))
            places = [(param, array, box) for param, array in zip(values, arrays, strict=True) for box in _layers(param.shape)]
            size, made = 0, safetensors.ahead(functools.partial(param.read, box) for param, _, box in places)
            for (_, array, box), part in zip(places, made, strict=True):
                waiting.append(array[tuple(slice(*b) for b in box)].write(part))
                size += part.nbytes
                if size > WAITING_BYTES:
                    await _all(waiting)
                    waiting, size = [], 0
            await _all(waiting)
        except InputError:
            raise
        except ValueError as e:  # TensorStore's only class; its message ends with the system's: "...: No space left on device [...]"
            reason = str(e).splitlines()[0].partition(" [")[0].rpartition(": ")[2]
            raise InputError(f"{infos[0].parent_dir} cannot be written ({reason}); make room or choose another output folder") from e
        finally:
            await asyncio.gather(*waiting, return_exceptions=True)
        return []

    async def _create(self, param: HostParam, info) -> tensorstore.TensorStore:
        await info.await_path_creation()
        chunks = [1, *param.shape[1:]] if len(param.shape) > 2 else list(param.shape)
        if len(chunks) > 3 and chunks[2] <= 6:
            chunks[2] = 1  # q, k and v, or shift, scale and gate, which other layouts keep apart
        while len(chunks) > 1 and math.prod(chunks) * param.dtype.itemsize > CHUNK_BYTES and chunks[1] > 1:
            chunks[1] = -(-chunks[1] // 2)
        spec = {
            "driver": "zarr",
            "kvstore": {"driver": "ocdbt", "base": _folder(info.parent_dir / f"ocdbt.process_{jax.process_index()}"), "path": f"{info.name}/"},
            "metadata": {"shape": list(param.shape), "chunks": chunks, "compressor": None},
            "dtype": str(param.dtype),
            "store_data_equal_to_fill_value": True,  # so that missing data are never taken for zeros
        }
        return await tensorstore.open(spec, create=True, context=info.ts_context)


async def _all(work) -> list:
    """What each gives, once all have ended: a write that is left alone after another has failed complains when the event loop is gone."""
    ended = await asyncio.gather(*work, return_exceptions=True)
    for one in ended:
        if isinstance(one, BaseException):
            raise one
    return ended


def _layers(shape: rules.Shape) -> list[rules.Box]:
    """A parameter of three axes or more in slices of the first, which is the layer where it is large."""
    whole = tuple((0, n) for n in shape)
    return [((n, n + 1), *whole[1:]) for n in range(shape[0])] if len(shape) > 2 else [whole]


def write(weights: Path, params: Mapping[str, HostParam]) -> None:
    """A folder of arrays by name, read from their parameters one after the other."""
    handlers = ocp.type_handlers.create_type_handler_registry((HostParam, _Streamed()))
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(type_handler_registry=handlers)) as writer:
        writer.save(weights, args=ocp.args.PyTreeSave(dict(params)))
