"""Models in and out of storage: PyTorch files streamed into sharded arrays, and our own Orbax folders.

A converted model is a folder with `config.json` (which model, which sizes) and `weights/` (Orbax). The models that a run trained
are read from its checkpoints in the same way.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Mapping
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
from infu_jax import run_state, runs, storage
from infu_jax.convert import numbers, rules, safetensors, source
from infu_jax.convert.errors import ConversionError
from infu_jax.convert.layout import Layout
from infu_jax.errors import InputError
from infu_jax.models import MODELS
from infu_jax.sharding import RULES, make_mesh, on_chip, param_shardings
from infu_jax.storage import HostParam

FORMAT = "infu_jax"
CONVERTED, RUN = "infu_jax (Orbax)", "infu_jax training run (Orbax)"  # the names of our own layouts


@functools.cache
def abstract(model: str, cfg) -> nnx.Module:
    """The model with shapes in the place of arrays: nothing is allocated."""
    _, module = MODELS[model]
    return nnx.eval_shape(lambda: module(cfg, rngs=nnx.Rngs(0)))


def param_shapes(module: nnx.Module) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape and dtype of every parameter, by its path, e.g. `double_blocks.img.qkv.kernel`."""
    return {name: jax.ShapeDtypeStruct(v.shape, v.dtype) for name, v in params_of(module).items()}


def open_model(path: str | os.PathLike, model: str | None = None, *, ema: bool = True) -> source.Source:
    """Open a checkpoint of any kind, PyTorch's or ours; its tensors have shapes and dtypes, but are not read.

    path: the model's file or folder, which may be that in a run's checkpoint; with `model` given, also a release folder that has it in
        its usual place, a training run (its newest checkpoint) or one checkpoint of a run.
    model: a name of `infu_jax.models.MODELS`; anything else there is an error.
    ema: of a run, take the average of the weights where it keeps one.
    """
    path = Path(path)
    if model is not None:
        _check_model(model)
        if runs.is_run(path):
            path = runs.find_model(path, model, ema=ema).weights
    if runs.is_model(path):
        layout, name = RUN, path.name.removesuffix(runs.EMA)
        cfg = _parse_config(name, runs.read_meta(path.parent)["models"][name], path)
    else:
        path = path if model is None else source.find(path, model)
        if not is_converted(path):
            return source.open_source(path, model)
        layout, (name, cfg) = CONVERTED, _read_config(path)
    if model not in (None, name):
        raise ConversionError(f"{path} is a checkpoint of {name}; {model} is needed here")
    return _open_orbax(path, name, cfg, layout)


def _open_orbax(path: Path, name: str, cfg: Any, layout: str) -> source.Source:
    weights = _weights(path, layout)
    with ocp.StandardCheckpointer() as reader:
        found = reader.metadata(weights).item_metadata
    if found is None:
        raise ConversionError(
            f"{weights} is missing or damaged; {'use another checkpoint of the run' if layout == RUN else 'convert the original files again'}"
        )
    # Arrays of one element each, stretched: only Orbax reads the real ones.
    tensors = {k: np.broadcast_to(np.zeros((), v.dtype), v.shape) for k, v in found.tree.items()}
    _check_layers(cfg, path, max([len(tensors), *(x.shape[0] for x in tensors.values() if x.ndim)]))  # stacks have an axis of layers
    ours = {k: v for k, v in param_shapes(_build(name, cfg, path)).items() if v.size}
    layout = Layout(name, layout, (), lambda _: [rule for name in ours for rule in rules.same(name, name)])
    return source.Source(path, layout, cfg, tensors)


def check(found: source.Source, mesh: Mesh | None = None) -> nnx.Module:
    """The model of an opened checkpoint, with shapes in the place of arrays, after all that can be known without reading them.

    Raises ConversionError where something is missing, unexpected, of another shape or of integers, InputError where `mesh` does not divide it.
    """
    model = found.layout.model
    if found.layout.name not in (CONVERTED, RUN):
        _check_layers(found.cfg, found.path, len(found.tensors))
    module = _build(model, found.cfg, found.path)
    plan = _plan(found, module)
    rules.check_file(plan, {k: v.shape for k, v in found.tensors.items()}, ignore=found.layout.ignore, source=str(found.path))
    floats = {k for k, v in param_shapes(module).items() if jnp.issubdtype(v.dtype, jnp.floating)}
    wrong = {p.theirs: str(found.tensors[p.theirs].dtype) for p in plan.pieces if p.ours in floats and not numbers.is_float(found.tensors[p.theirs].dtype)}
    if wrong:
        some = ", ".join(f"{key} is {dtype}" for key, dtype in sorted(wrong.items())[:4])
        raise ConversionError(f"{found.path}: {len(wrong)} weights are not floating-point numbers: {some}; quantized files are not read, take the original")
    if mesh is not None:
        _shardings(model, module, mesh)
    return module


def load_model(
    path: str | os.PathLike, model: str, *, mesh: Mesh | None = None, dtype: Any = None, ema: bool = True, host: re.Pattern | None = None
) -> nnx.Module:
    """Load one model from a PyTorch file or folder, from our own folder, or from a training run, straight into its sharding.

    Args:
        path: the model's file or folder, or a release folder that has it in its usual place, or a run.
        model: a name of `infu_jax.models.MODELS`.
        mesh: where the parameters go; by default one device.
        dtype: of the floating-point parameters; by default as stored.
        ema: of a run, take the average of the weights where it keeps one.
        host: parameters whose whole path it matches go to host memory.
    Raises:
        ConversionError: what is there is not this model, whole and of the stated sizes.
    """
    found = open_model(path, model, ema=ema)
    module = check(found)
    shardings = _shardings(model, module, mesh or make_mesh(devices=jax.devices()[:1]))
    final = {k: s.with_memory_kind("pinned_host") if host is not None and host.fullmatch(k) else on_chip(k, s) for k, s in shardings.items()}
    if found.layout.name != RUN:  # a run's are checked on the device first
        shardings |= {k: s for k, s in final.items() if isinstance(s, NamedSharding)}
    plan = _plan(found, module)
    targets = {k: jax.ShapeDtypeStruct(v.shape, _dtype(plan, found, k, v.dtype, dtype), sharding=shardings[k]) for k, v in param_shapes(module).items()}
    if found.layout.name == CONVERTED:
        arrays = storage.read_arrays(_weights(found.path, CONVERTED), targets)
    elif found.layout.name == RUN:
        stored = {k: jax.ShapeDtypeStruct(v.shape, found.tensors[k].dtype if k in found.tensors else v.dtype, sharding=v.sharding) for k, v in targets.items()}
        arrays = storage.read_arrays(found.path, stored)
        run_state.check_model(found.path, {k: v for k, v in arrays.items() if v.size})
        arrays = {k: v.astype(targets[k].dtype) for k, v in arrays.items()}
    else:
        arrays = _read_torch(found, plan, targets)
    return with_params(module, {k: jax.device_put(v, final[k]) if v.size else v for k, v in arrays.items()})


def params_of(module: nnx.Module) -> dict[str, Any]:
    """Every parameter by its path, e.g. `double_blocks.img.qkv.kernel`."""
    # As a pytree: Flax's to_flat_state and merge leave cycles of references, which hold the arrays on the device until Python collects them.
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(module)}


def with_params(module: nnx.Module, params: Mapping[str, Any]) -> nnx.Module:
    """The module with these parameters in the place of its own; the inverse of `params_of`."""
    return jax.tree_util.tree_map_with_path(lambda path, _: params[_name(path)], module)


def open_params(found: source.Source, dtype: Any = None) -> dict[str, HostParam]:
    """The parameters of an opened checkpoint, each read when it is asked for and only as far as it is: for work that needs no device.

    dtype: of the floating-point parameters; by default as stored.
    """
    module = check(found)
    plan = _plan(found, module)
    kept = {k: _dtype(plan, found, k, v.dtype, dtype) for k, v in param_shapes(module).items()}
    if found.layout.name in (CONVERTED, RUN):
        weights = _weights(found.path, found.layout.name)
        return {k: HostParam(plan.our_shapes[k], kept[k], storage.box_reader(weights, k, plan.our_shapes[k], kept[k])) for k in kept}

    def reader(name: str) -> Callable[[rules.Box], np.ndarray]:
        def read(box: rules.Box) -> np.ndarray:
            with np.errstate(over="ignore", invalid="ignore"):  # said below, with the names
                values = plan.read_ours(name, box, found.tensors, kept[name])
            parts = sorted({p.theirs for p in plan.by_ours.get(name, ())})
            if not numbers.all_finite(values):
                for key in parts:
                    numbers.cast(found.tensors[key], kept[name], f"{found.path}: {key}")
                storage.warn_not_finite(found.path, [key for key in parts if not numbers.all_finite(found.tensors[key])])
            safetensors.release(found.tensors[key] for key in parts)
            return values

        return read

    return {k: HostParam(plan.our_shapes[k], kept[k], reader(k)) for k in kept}


def save_model(folder: str | os.PathLike, model: str, module: nnx.Module) -> None:
    """Write our own folder. It appears under its name only when it is whole; an existing one is an error. For one process."""
    _check_model(model)
    if type(module) is not MODELS[model][1]:
        raise TypeError(f"{type(module).__name__} cannot be saved as {model}, which is a {MODELS[model][1].__name__}")
    if params_of(module).keys() != params_of(abstract(model, module.cfg)).keys():
        raise TypeError(f"this {model} is rounded to eight bits (`quantize`); save it as it was before")
    read = lambda array: lambda box: np.asarray(array)[tuple(slice(*b) for b in box)]  # noqa: E731
    save_params(folder, model, module.cfg, {k: HostParam(v.shape, np.dtype(v.dtype), read(v)) for k, v in params_of(module).items()})


def save_params(folder: str | os.PathLike, model: str, cfg, params: Mapping[str, HostParam]) -> None:
    """As `save_model`, from parameters that are read one after the other while they are written: no more than one is in memory."""
    folder = Path(folder).absolute()
    if folder.exists():
        raise FileExistsError(f"{folder} exists already; choose another name or remove it first")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    partial.mkdir()
    try:
        # Orbax refuses arrays without elements (a stack of zero blocks); their shape is in config.json anyway.
        storage.write(_weights(partial, CONVERTED), {k: v for k, v in params.items() if math.prod(v.shape)})
        values = {"format": FORMAT, "model": model, "config": configs.to_json(cfg)}
        (partial / "config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def is_ours(path: Path) -> bool:
    """Whether `path` is a model's folder that `save_model` or a training run wrote."""
    return is_converted(path) or runs.is_model(path)


def is_converted(path: Path) -> bool:
    """Whether `path` is a folder that `save_model` wrote."""
    return path.is_dir() and (path / "config.json").exists() and source.read_config(path).get("format") == FORMAT


def _read_config(folder: Path) -> tuple[str, Any]:
    """Model name and config of one of our folders."""
    stored = source.read_config(folder)
    name, values = stored.get("model"), stored.get("config")
    if name not in MODELS or not isinstance(values, dict):
        raise ConversionError(f"{folder / 'config.json'} says model {name!r}; expected one of {', '.join(MODELS)} and its config")
    return name, _parse_config(name, values, folder)


def _parse_config(name: str, values: Mapping[str, Any], place: Path) -> Any:
    try:
        cfg = configs.from_json(MODELS[name][0], values)
    except (TypeError, ValueError, ArithmeticError) as e:
        raise ConversionError(f"{place}: its configuration makes no sense: {e}") from None
    source.check_values(cfg, place)
    return cfg


def _build(model: str, cfg, path: Path) -> nnx.Module:
    try:
        return abstract(model, cfg)
    except (TypeError, ValueError, ArithmeticError) as e:  # sizes that do not go together
        raise ConversionError(f"{path}: its configuration makes no sense: {e}") from None


def _check_layers(cfg, path: Path, most: int) -> None:
    """Raise where a configuration has more layers than its tensors leave room for: a plan of a thousand million of them does not fit into memory."""
    for field in dataclasses.fields(cfg):
        value = getattr(cfg, field.name)
        if re.search("depth|num_layers|num_res_blocks", field.name) and value > most:
            raise ConversionError(f"{path} does not fit its configuration: {field.name} is {value}, its tensors are enough for {most} at most")


def _plan(found: source.Source, module: nnx.Module) -> rules.Plan:
    return rules.plan(found.layout.rules(found.cfg), {k: v.shape for k, v in param_shapes(module).items()})


def _shardings(model: str, module: nnx.Module, mesh: Mesh) -> dict[str, NamedSharding]:
    return param_shardings(mesh, RULES[model], {k: v.shape for k, v in param_shapes(module).items()})


def _read_torch(found: source.Source, plan: rules.Plan, targets: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    arrays = {}
    for name, target in targets.items():
        boxes: dict[rules.Box, np.ndarray] = {}  # devices that hold the same part share one host copy

        def shard(index, name=name, target=target, boxes=boxes):
            box = tuple(s.indices(n)[:2] for s, n in zip(index, target.shape))
            if box not in boxes:
                boxes[box] = plan.read_ours(name, box, found.tensors, target.dtype)
            return boxes[box]

        arrays[name] = jax.make_array_from_callback(target.shape, target.sharding, shard)
        arrays[name].block_until_ready()  # so that only one parameter's host copy is alive
    return arrays


def _weights(folder: Path, layout: str) -> Path:
    return (folder / "weights" if layout == CONVERTED else folder).absolute()


def _check_model(model: str) -> None:
    if model not in MODELS:
        raise InputError(f"there is no model {model!r}; the models are {', '.join(MODELS)}")


def _dtype(plan: rules.Plan, found: source.Source, name: str, model_dtype, wanted) -> np.dtype:
    """Integers stay what the model says; floating-point parameters become `wanted`, or stay as stored."""
    if not jnp.issubdtype(model_dtype, jnp.floating):
        return np.dtype(model_dtype)
    if wanted is None:  # JAX has no float64, unless it is told to
        return np.dtype(jax.dtypes.canonicalize_dtype(plan.stored_dtype(name, found.tensors, model_dtype)))
    return np.dtype(wanted)


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path[:-1], simple=True, separator=".")  # the last step leads from a variable to its array
