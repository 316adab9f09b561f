"""Models in and out of storage: PyTorch files streamed into sharded arrays, and our own Orbax folders.

A converted model is a folder with `config.json` (which model, which sizes) and `weights/` (Orbax).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes  # noqa: F401  (teaches NumPy bfloat16 and float8)
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from infu_jax import config as configs
from infu_jax.convert import rules, source
from infu_jax.convert.errors import ConversionError
from infu_jax.errors import InputError
from infu_jax.models import MODELS
from infu_jax.sharding import RULES, make_mesh, param_shardings

FORMAT = "infu_jax"


def abstract(model: str, cfg) -> nnx.Module:
    """The model with shapes in the place of arrays: nothing is allocated."""
    _, module = MODELS[model]
    return nnx.eval_shape(lambda: module(cfg, rngs=nnx.Rngs(0)))


def param_shapes(module: nnx.Module) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape and dtype of every parameter, by its path, e.g. `double_blocks.img.qkv.kernel`."""
    return {name: jax.ShapeDtypeStruct(v.shape, v.dtype) for name, v in _params(module).items()}


def load_model(path: str | os.PathLike, model: str, *, mesh: Mesh | None = None, dtype: Any = None) -> nnx.Module:
    """Load one model from a PyTorch file or folder, or from our own folder, straight into its sharding.

    Args:
        path: the model's file or folder, or a release folder that has it in its usual place.
        model: a name of `infu_jax.models.MODELS`.
        mesh: where the parameters go; by default one device.
        dtype: of the floating-point parameters; by default as stored.
    Raises:
        ConversionError: what is there is not this model, whole and of the stated sizes.
    """
    _check_model(model)
    place = source.find(path, model)
    if is_converted(place):
        cfg = _read_config(place, model)
        read = _orbax_reader(place)
    else:
        found = source.open_source(place, model)
        cfg = found.cfg
        read = _torch_reader(found)
    try:
        empty = abstract(model, cfg)
    except (TypeError, ValueError, ArithmeticError) as e:  # sizes that do not go together
        raise ConversionError(f"{place}: its configuration makes no sense: {e}") from e
    shapes = param_shapes(empty)
    shardings = param_shardings(mesh or make_mesh(devices=jax.devices()[:1]), RULES[model], {k: v.shape for k, v in shapes.items()})
    arrays = read(shapes, shardings, dtype)
    return jax.tree_util.tree_map_with_path(lambda path, _: arrays[_name(path)], empty)


def save_model(folder: str | os.PathLike, model: str, module: nnx.Module) -> None:
    """Write our own folder. It appears under its name only when it is whole; an existing one is an error. For one process."""
    _check_model(model)
    if type(module) is not MODELS[model][1]:
        raise TypeError(f"{type(module).__name__} cannot be saved as {model}, which is a {MODELS[model][1].__name__}")
    folder = Path(folder).absolute()
    if folder.exists():
        raise FileExistsError(f"{folder} exists already; choose another name or remove it first")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    partial.mkdir()
    try:
        weights = _params(module)
        with ocp.StandardCheckpointer() as writer:
            # Orbax refuses arrays without elements (a stack of zero blocks); their shape is in config.json anyway.
            writer.save(partial / "weights", {k: v for k, v in weights.items() if v.size})
        values = {"format": FORMAT, "model": model, "config": configs.to_json(module.cfg)}
        (partial / "config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def is_converted(path: Path) -> bool:
    """Whether `path` is a folder that `save_model` wrote."""
    return path.is_dir() and (path / "config.json").exists() and source.read_config(path).get("format") == FORMAT


def _read_config(folder: Path, model: str):
    stored = source.read_config(folder)
    name, values = stored.get("model"), stored.get("config")
    if name not in MODELS or not isinstance(values, dict):
        raise ConversionError(f"{folder / 'config.json'} says model {name!r}; expected one of {', '.join(MODELS)} and its config")
    if name != model:
        raise ConversionError(f"{folder} is a checkpoint of {name}; {model} is needed here")
    try:
        cfg = configs.from_json(MODELS[model][0], values)
    except (TypeError, ValueError, ArithmeticError) as e:
        raise ConversionError(f"{folder}: its configuration makes no sense: {e}") from None
    source.check_values(cfg, folder)
    return cfg


def _torch_reader(found: source.Source):
    def read(shapes: Mapping[str, jax.ShapeDtypeStruct], shardings: Mapping[str, NamedSharding], dtype) -> dict[str, jax.Array]:
        plan = rules.plan(found.layout.rules(found.cfg), {k: v.shape for k, v in shapes.items()})
        rules.check_file(plan, {k: v.shape for k, v in found.tensors.items()}, ignore=found.layout.ignore, source=str(found.path))
        arrays = {}
        for name, wanted in shapes.items():
            target = _dtype(wanted.dtype, dtype, lambda name=name, wanted=wanted: plan.stored_dtype(name, found.tensors, wanted.dtype))
            boxes: dict[rules.Box, np.ndarray] = {}  # devices that hold the same part share one host copy

            def shard(index, name=name, shape=wanted.shape, target=target, boxes=boxes):
                box = tuple(s.indices(n)[:2] for s, n in zip(index, shape))
                if box not in boxes:
                    boxes[box] = plan.read_ours(name, box, found.tensors, target)
                return boxes[box]

            arrays[name] = jax.make_array_from_callback(wanted.shape, shardings[name], shard)
            arrays[name].block_until_ready()  # so that only one parameter's host copy is alive
        return arrays

    return read


def _orbax_reader(folder: Path):
    def read(shapes: Mapping[str, jax.ShapeDtypeStruct], shardings: Mapping[str, NamedSharding], dtype) -> dict[str, jax.Array]:
        with ocp.StandardCheckpointer() as reader:
            weights = (folder / "weights").absolute()
            found = reader.metadata(weights).item_metadata
            if found is None:
                raise ConversionError(f"{weights} is missing or damaged; convert the model again")
            stored = found.tree
            wanted = {k: v for k, v in shapes.items() if v.size}
            if {k: tuple(v.shape) for k, v in stored.items()} != {k: v.shape for k, v in wanted.items()}:
                raise ConversionError(f"{folder}: the weights do not have the names and shapes that its config.json asks for; convert it again")
            target = {k: jax.ShapeDtypeStruct(v.shape, _dtype(v.dtype, dtype, lambda k=k: stored[k].dtype), sharding=shardings[k]) for k, v in wanted.items()}
            try:
                arrays = reader.restore(weights, target)
            except jax.errors.JaxRuntimeError:
                raise  # such as a device without enough memory
            except Exception as e:  # Orbax raises this very class where data are missing or unreadable
                raise ConversionError(f"{weights} cannot be read ({str(e).splitlines()[0][:120]}); if it is damaged, convert the model again") from e
        empty = {k: jnp.zeros(v.shape, v.dtype) for k, v in shapes.items() if not v.size}
        return {**arrays, **empty}

    return read


def _check_model(model: str) -> None:
    if model not in MODELS:
        raise InputError(f"there is no model {model!r}; the models are {', '.join(MODELS)}")


def _dtype(model_dtype, wanted, stored):
    """Integers stay what the model says; floating-point parameters become `wanted`, or stay as stored."""
    if not jnp.issubdtype(model_dtype, jnp.floating):
        return np.dtype(model_dtype)
    return np.dtype(stored() if wanted is None else wanted)


def _params(module: nnx.Module) -> dict[str, Any]:
    # As a pytree: Flax's to_flat_state and merge leave cycles of references, which hold the arrays on the device until Python collects them.
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(module)}


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path[:-1], simple=True, separator=".")  # the last step leads from a variable to its array
