"""Frozen transformers with their blocks' weights in eight bits: half the memory of bfloat16, for sampling and beneath a trained InfuseNet.

A kernel is kept as integers from -127 to 127. Each 32 of them that follow one another along the inputs are a group with a step of its own: a whole
number from 1 to 255 times one float32 scale of the output channel, the least that the group's largest weight allows (two levels of scales, as
QLoRA's double quantisation and llama.cpp's k-quants have them). So a large weight coarsens its own group and not the thousands of others of its
channel, and memory is 33 / 32 bytes a weight.

Computation stays in the activations' dtype; `layers.Linear` says where the scales come in. Only the large kernels are kept like this, those of
the stacked blocks: embedders, norms, biases and the final layer stay as they are. Rounding depends on nothing but the weights, so every mesh
has the same integers.
"""

from __future__ import annotations

import functools
import math
import os
import re
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
GROUP = 32  # weights of one step; fewer where the inputs are no multiple of it
BYTES = 1 + 1 / GROUP  # of a weight
LARGEST, STEPS = 127, 255
_KERNEL, _SCALE, _STEPS = "kernel", "kernel_scale", "kernel_steps"


def quantized(module: nnx.Module) -> nnx.Module:
    """A model with int8 kernels, their steps and their scales where its blocks have kernels, and shapes in the place of arrays."""
    module = nnx.clone(module)
    for path, layer in nnx.iter_modules(module):
        if isinstance(layer, Linear) and path[0].endswith("blocks"):
            layers, n, shape = layer.kernel.shape[0], layer.input_axes, layer.kernel.shape[1:]
            layer.kernel = nnx.Param(jax.ShapeDtypeStruct((layers, *shape), jnp.int8))
            groups = (*shape[: n - 1], shape[n - 1] // _group(shape[n - 1]), *shape[n:])
            layer.kernel_steps = nnx.data(nnx.Param(jax.ShapeDtypeStruct((layers, *groups), jnp.uint8)))
            layer.kernel_scale = nnx.data(nnx.Param(jax.ShapeDtypeStruct((layers, *(1,) * n, *shape[n:]), jnp.float32)))
    return module


def targets(model: str, module: nnx.Module, mesh: Mesh, dtype: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape, dtype, sharding and layout of each parameter of `quantized(module)`; what is not quantized is in `dtype`.

    Steps are split as their kernel is where a mesh axis divides them, and lie in memory in its order; scales are split as its outputs are.
    """
    shardings = param_shardings(mesh, RULES[model], {path: s.shape for path, s in param_shapes(module).items()})

    def target(path: str, s: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        scale, kernel = path.endswith(_SCALE), _kernel_of(path)
        axes = zip(s.shape, shardings[kernel].spec)
        spec = P(*(axis if axis is not None and n % mesh.shape[axis] == 0 else None for n, axis in axes))
        kept = dtype if jnp.issubdtype(s.dtype, jnp.floating) and not scale else s.dtype
        return jax.ShapeDtypeStruct(s.shape, kept, sharding=on_chip(path if scale else kernel, NamedSharding(mesh, spec)))

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
    """One parameter on its devices, with its steps and scale if it has them. `wanted` are shapes, dtypes, shardings and layouts: arrays will do."""
    target = wanted[path]
    if target.dtype != jnp.int8:
        made = _array(target.shape, target.sharding, lambda index: param[index].astype(target.dtype))
        return {path: jax.device_put(made, target.format)}
    paths = [path.removesuffix(_KERNEL) + name for name in (_KERNEL, _STEPS, _SCALE)]
    stacks = [wanted[path] for path in paths]
    formats = tuple(stack.format for stack in stacks)
    inputs = tuple(a for a in range(1, len(target.shape)) if stacks[2].shape[a] != target.shape[a])
    held = jax.jit(lambda: [jnp.zeros(stack.shape, stack.dtype) for stack in stacks], out_shardings=list(formats))()
    for i in range(target.shape[0]):
        layer = _array((1, *target.shape[1:]), target.sharding, lambda index, i=i: param[slice(i, i + 1), *index[1:]])
        held = _writer(formats, inputs)(held, layer, i)
        held[0].block_until_ready()  # so that only one layer's copy is alive
    return dict(zip(paths, held))


def _array(shape: tuple[int, ...], sharding: jax.sharding.Sharding, read: Callable[[tuple[slice, ...]], np.ndarray]) -> jax.Array:
    """An array of what `read` gives for each device's part; devices that hold the same part share one reading."""
    parts: dict[str, np.ndarray] = {}

    def part(index: tuple[slice, ...]) -> np.ndarray:
        if str(index) not in parts:
            parts[str(index)] = read(index)
        return parts[str(index)]

    return jax.make_array_from_callback(shape, sharding, part)


@functools.cache
def _writer(formats: tuple[Format, ...], inputs: tuple[int, ...]):
    """The program that rounds one layer and puts it into the stacks of kernels, steps and scales."""

    def write(stacks: list[jax.Array], layer: jax.Array, i: jax.Array):
        return [jax.lax.dynamic_update_slice_in_dim(stack, part, i, 0) for stack, part in zip(stacks, quantize(layer, inputs))]

    return jax.jit(write, out_shardings=list(formats), donate_argnums=0)


def quantize(weights: jax.Array, inputs: tuple[int, ...]) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(int8 values, uint8 steps, float32 scales): values * steps * scales is near to `weights`. Zero stays zero, and NaN is not hidden.

    inputs: axes over which a channel extends, in order; its groups lie along the last of them. Steps have that axis shorter by the groups' size,
        scales are of size 1 along all inputs.
    """
    axis = inputs[-1]
    size = _group(weights.shape[axis])
    groups = weights.astype(jnp.float32).reshape(*weights.shape[:axis], -1, size, *weights.shape[axis + 1 :])
    largest = jnp.abs(groups).max(axis + 1, keepdims=True)
    scale = largest.max(inputs, keepdims=True) / (LARGEST * STEPS)
    scale = jnp.where(scale == 0, 1, scale)
    scale = jnp.where(jnp.isnan(groups).any((*inputs, axis + 1), keepdims=True), jnp.nan, scale)  # a maximum on CPUs may overlook NaN
    # Rounded up: the largest weight of a group must not be clipped. No value times step can then be more than 127 * 255, which int16 holds.
    steps = jnp.clip(jnp.ceil(largest / (LARGEST * scale)), 1, STEPS)
    values = jnp.clip(jnp.round(groups / (steps * scale)), -LARGEST, LARGEST)
    return values.astype(jnp.int8).reshape(weights.shape), steps.astype(jnp.uint8).squeeze(axis + 1), scale.squeeze(axis + 1)


def _group(size: int) -> int:
    return math.gcd(size, GROUP)


def _kernel_of(path: str) -> str:
    """The path of the kernel that steps or a scale belong to; any other path as it is."""
    return re.sub(f"({_STEPS}|{_SCALE})$", _KERNEL, path)
