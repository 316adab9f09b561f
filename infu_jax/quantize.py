"""Frozen transformers with their blocks' weights in eight bits: half the memory of bfloat16, for sampling and beneath a trained InfuseNet.

A kernel is kept as integers from -127 to 127 and one float32 scale for each output channel, the channel's largest weight / 127.
Computation stays in the activations' dtype; `layers.Linear` says where the scale comes in. Only the large kernels are kept like this,
those of the stacked blocks: embedders, norms, biases and the final layer stay as they are. Rounding depends on nothing but the weights,
so every mesh has the same integers.

Clipping the largest weights does not help at eight bits: for normal, Laplace and Student-t (5) weights, 3072 to a channel, any clip to 0.95 of
the largest or less has a greater squared error than none.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental.layout import Format
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from infu_jax import checkpoint, run_state
from infu_jax.checkpoint import HostParam, param_shapes, params_of, with_params
from infu_jax.models.layers import Linear
from infu_jax.sharding import RULES, on_chip, param_shardings

MODELS = ("flux", "infusenet", "t5")  # which can be kept so
LARGEST = 127
_KERNEL, _SCALE = "kernel", "kernel_scale"


def quantized(module: nnx.Module) -> nnx.Module:
    """A model with int8 kernels and their scales where its blocks have kernels, and shapes in the place of arrays."""
    module = nnx.clone(module)
    for path, layer in nnx.iter_modules(module):
        if isinstance(layer, Linear) and path[0].endswith("blocks"):
            layers, n, shape = layer.kernel.shape[0], layer.input_axes, layer.kernel.shape[1:]
            layer.kernel = nnx.Param(jax.ShapeDtypeStruct((layers, *shape), jnp.int8))
            layer.kernel_scale = nnx.data(nnx.Param(jax.ShapeDtypeStruct((layers, *(1,) * n, *shape[n:]), jnp.float32)))
    return module


def targets(model: str, module: nnx.Module, mesh: Mesh, dtype: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape, dtype, sharding and layout of each parameter of `quantized(module)`; what is not quantized is in `dtype`.

    A scale is split as the output axes of its kernel are.
    """
    shardings = param_shardings(mesh, RULES[model], {path: s.shape for path, s in param_shapes(module).items()})

    def target(path: str, s: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        if path.endswith(_SCALE):
            spec = shardings[_kernel_of(path)].spec
            return jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=NamedSharding(mesh, P(*(axis if n > 1 else None for n, axis in zip(s.shape, spec)))))
        return jax.ShapeDtypeStruct(s.shape, dtype if jnp.issubdtype(s.dtype, jnp.floating) else s.dtype, sharding=on_chip(path, shardings[path]))

    return {path: target(path, s) for path, s in param_shapes(quantized(module)).items()}


# Loading ------------------------------------------------------------------------------------------


def open_params(path: str | os.PathLike, model: str, *, ema: bool = True) -> dict[str, HostParam]:
    """The parameters of a stored model in float32, to be changed by LoRAs before `load` rounds them; arguments as `checkpoint.load_model` has them.

    Those of a training run are compared with their fingerprints first, one after the other. Raises as `checkpoint.load_model` does.
    """
    found = checkpoint.open_model(path, model, ema=ema)
    params = checkpoint.open_params(found, np.float32)
    if found.layout.name == checkpoint.RUN:
        for name, param in params.items():
            if 0 not in param.shape:
                run_state.check_model(found.path, {name: np.asarray(param)})
    return params


def load(model: str, module: nnx.Module, params: Mapping[str, HostParam], mesh: Mesh, dtype: Any) -> nnx.Module:
    """Read and round a model: besides the result there is never more of it in memory than one layer of one kernel, or one embedder.

    module: the model with shapes in the place of arrays, not quantized.
    params: its parameters in storage.
    dtype: of what is not quantized.
    """
    wanted = targets(model, module, mesh, dtype)
    arrays = {}
    for path, param in params.items():
        arrays |= _place(path, param, wanted)
    return with_params(quantized(module), arrays)


def replace(module: nnx.Module, params: Mapping[str, HostParam]) -> tuple[nnx.Module, dict[str, jax.Array]]:
    """A loaded model with these parameters in the place of its own, rounded as `load` does; and its own, in host memory, for `lora.restore`."""
    arrays, made = params_of(module), {}
    for path, param in params.items():
        made |= _place(path, param, arrays)
    former = {path: jax.device_put(arrays[path], arrays[path].sharding.with_memory_kind("pinned_host")) for path in made}
    return with_params(module, {**arrays, **made}), former


def _place(path: str, param: HostParam, wanted: Mapping[str, Any]) -> dict[str, jax.Array]:
    """One parameter on its devices, with its scale if it has one. `wanted` are shapes, dtypes, shardings and layouts: arrays will do."""
    target, scale_path = wanted[path], path.removesuffix(_KERNEL) + _SCALE
    if target.dtype != jnp.int8:
        made = _array(target.shape, target.sharding, lambda index: param[index].astype(target.dtype))
        return {path: jax.device_put(made, target.format)}
    scale = wanted[scale_path]
    write = _writer(target.format, scale.sharding, tuple(a for a in range(1, len(scale.shape)) if scale.shape[a] != target.shape[a]))
    zeros = lambda: (jnp.zeros(target.shape, target.dtype), jnp.zeros(scale.shape, scale.dtype))  # noqa: E731
    held = jax.jit(zeros, out_shardings=(target.format, scale.sharding))()
    for i in range(target.shape[0]):
        held = write(*held, _array((1, *target.shape[1:]), target.sharding, lambda index, i=i: param[slice(i, i + 1), *index[1:]]), i)
        held[0].block_until_ready()  # so that only one layer's copy is alive
    return {path: held[0], scale_path: held[1]}


def _array(shape: tuple[int, ...], sharding: jax.sharding.Sharding, read: Callable[[tuple[slice, ...]], np.ndarray]) -> jax.Array:
    """An array of what `read` gives for each device's part; devices that hold the same part share one reading."""
    parts: dict[str, np.ndarray] = {}

    def part(index: tuple[slice, ...]) -> np.ndarray:
        if str(index) not in parts:
            parts[str(index)] = read(index)
        return parts[str(index)]

    return jax.make_array_from_callback(shape, sharding, part)


@functools.cache
def _writer(kernel: Format, scale: NamedSharding, inputs: tuple[int, ...]):
    """The program that rounds one layer and puts it into the stacks of kernels and scales."""

    def write(kernels: jax.Array, scales: jax.Array, layer: jax.Array, i: jax.Array):
        values, s = quantize(layer, inputs)
        return jax.lax.dynamic_update_slice_in_dim(kernels, values, i, 0), jax.lax.dynamic_update_slice_in_dim(scales, s, i, 0)

    return jax.jit(write, out_shardings=(kernel, scale), donate_argnums=(0, 1))


def quantize(weights: jax.Array, inputs: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """(int8 values, float32 scales of size 1 along the axes `inputs`): values * scales is nearest to `weights`. Zero stays zero, and NaN is not hidden."""
    weights = weights.astype(jnp.float32)
    scale = jnp.abs(weights).max(inputs, keepdims=True) / LARGEST
    scale = jnp.where(scale == 0, 1, scale)
    return jnp.clip(jnp.round(weights / scale), -LARGEST, LARGEST).astype(jnp.int8), scale


def _kernel_of(scale: str) -> str:
    return scale.removesuffix(_SCALE) + _KERNEL
