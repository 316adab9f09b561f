"""Layers that every model here is made of.

Computation happens in the dtype of the activations that come in; weights may be kept in another
dtype (float32 masters, bfloat16 copies) and are cast where they are used. Norms compute in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from infu_jax import attention
from infu_jax.config import Remat
from infu_jax.sharding import in_chip_order

Init = Callable[..., jax.Array]
fan_in = nnx.initializers.lecun_normal
zeros = nnx.initializers.zeros_init


class Linear(nnx.Module):
    """y = x W + b over the last axes of x.

    `inputs` and `outputs` are an axis size or several: `Linear((H, K), D)` contracts heads and head
    size, and its kernel keeps them apart, so that sharding over heads is one letter in a rule.
    kernel: (*inputs, *outputs); bias: (*outputs). A kernel of integers (`infu_jax.quantize`) has a kernel_scale, of size 1 along the
    inputs, and kernel_steps, whole numbers by which groups along the last input are multiplied.
    """

    def __init__(self, inputs: int | Sequence[int], outputs: int | Sequence[int], *, bias: bool = True, kernel_init: Init | None = None, rngs: nnx.Rngs):
        inputs, outputs = _axes(inputs), _axes(outputs)
        if kernel_init is None:
            kernel_init = fan_in(in_axis=tuple(range(len(inputs))), out_axis=tuple(range(len(inputs), len(inputs) + len(outputs))))
        self.input_axes = len(inputs)
        self.kernel = nnx.Param(kernel_init(rngs.params(), (*inputs, *outputs), jnp.float32))
        self.kernel_steps = self.kernel_scale = None
        self.bias = nnx.Param(jnp.zeros(outputs)) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.plus_bias(self.product(x))

    def product(self, x: jax.Array) -> jax.Array:
        """x W alone."""
        n, kernel = self.input_axes, in_chip_order(self.kernel[...])
        if self.kernel_steps is not None:
            # Integers until here, so that the product is exact and no copy of it waits for the backward pass (`_all_but_weights`).
            steps = self.kernel_steps[...].astype(jnp.int16)
            kernel = kernel.astype(jnp.int16) * jnp.repeat(steps, kernel.shape[n - 1] // steps.shape[n - 1], n - 1)
        contract = (tuple(range(x.ndim - n, x.ndim)), tuple(range(n)))
        y = jax.lax.dot_general(x, kernel.astype(x.dtype), (contract, ((), ())))
        if self.kernel_scale is not None:
            # The output is scaled, not the kernel, which is then made of integers alone: TPUs make it as they read it.
            scale = self.kernel_scale[...]
            y = (y.astype(jnp.float32) * scale.reshape(scale.shape[n:])).astype(x.dtype)
        return y

    def plus_bias(self, y: jax.Array) -> jax.Array:
        """y + b, for y from `product`."""
        if self.bias is None:
            return y
        # The same number as a sum in y's dtype. But that XLA would make a part of cuBLAS's product, and first copy the block's weights out of the stack.
        return (y.astype(jnp.float32) + self.bias[...].astype(y.dtype).astype(jnp.float32)).astype(y.dtype)

    def gelu(self, x: jax.Array) -> jax.Array:
        """gelu(x W + b), by its approximation with tanh. This cuBLAS computes as one, which is worth the copy."""
        return nnx.gelu(self.product(x) + self.bias[...].astype(x.dtype), approximate=True)


class Conv(nnx.Module):
    """2-D convolution, NHWC. kernel: (height, width, in, out). `padding` is ((top, bottom), (left, right)) or one number."""

    def __init__(self, inputs: int, outputs: int, kernel_size: int = 3, *, stride: int = 1, padding=None, bias: bool = True, rngs: nnx.Rngs):
        padding = kernel_size // 2 if padding is None else padding
        self.padding = ((padding, padding), (padding, padding)) if isinstance(padding, int) else padding
        self.stride = stride
        self.kernel = nnx.Param(fan_in()(rngs.params(), (kernel_size, kernel_size, inputs, outputs), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(outputs)) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        y = jax.lax.conv_general_dilated(x, self.kernel[...].astype(x.dtype), (self.stride,) * 2, self.padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)


class LayerNorm(nnx.Module):
    """Layer norm over the last axis; without `affine` it has no parameters (the modulation scales and shifts instead)."""

    def __init__(self, size: int, *, eps: float, affine: bool = True):
        self.eps = eps
        self.scale = nnx.Param(jnp.ones(size)) if affine else None
        self.bias = nnx.Param(jnp.zeros(size)) if affine else None

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        y = y - y.mean(-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.eps)
        if self.scale is not None:
            y = y * self.scale[...].astype(jnp.float32) + self.bias[...].astype(jnp.float32)
        return y.astype(x.dtype)


class RMSNorm(nnx.Module):
    """x / rms(x) * scale over the last axis."""

    def __init__(self, size: int, *, eps: float = 1e-6):
        self.eps = eps
        self.scale = nnx.Param(jnp.ones(size))

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.eps)
        return (y * self.scale[...].astype(jnp.float32)).astype(x.dtype)


class Embedding(nnx.Module):
    """Rows of a table by index. table: (entries, size)."""

    def __init__(self, entries: int, size: int, *, rngs: nnx.Rngs):
        self.table = nnx.Param(jax.random.normal(rngs.params(), (entries, size)) / math.sqrt(size))

    def __call__(self, ids: jax.Array | np.ndarray) -> jax.Array:
        return self.table[...][ids]


def stack(make: Callable[[nnx.Rngs], nnx.Module], n: int, rngs: nnx.Rngs) -> nnx.Module:
    """`n` modules of one shape as one module whose parameters have a leading layer axis."""

    @nnx.split_rngs(splits=n)
    @nnx.vmap(in_axes=(0,), out_axes=0, axis_size=n)
    def build(rngs: nnx.Rngs) -> nnx.Module:
        return make(rngs)

    return build(rngs)


def _all_but_weights(operation, *inputs, **_) -> bool:
    """Everything, but for what is made of small integers, which are kernels: those of all blocks at once would be the copy that int8 is there to avoid."""
    return not any(x.dtype in (jnp.int8, jnp.uint8, jnp.int16) for x in inputs)


# What the backward pass keeps of a block besides its input, which `offload` has wait in host memory; it computes the rest again.
_KEPT = {
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[], names_which_can_be_offloaded=["input"], offload_src="device", offload_dst="pinned_host"
    ),
    "block": jax.checkpoint_policies.nothing_saveable,
    "attention": attention.kept,
    "dots": jax.checkpoint_policies.save_from_both_policies(jax.checkpoint_policies.dots_with_no_batch_dims_saveable, attention.kept),
    "none": _all_but_weights,
}


def scan(step: Callable, blocks: nnx.Module, carry, xs=None, *, remat: Remat = "block"):
    """`carry, y = step(block, carry, x)` for each of the stacked `blocks`, compiled once; returns (carry, stacked ys).

    Weights that lie in host memory come to the device one block at a time.
    remat: what the backward pass keeps of each block, see `TrainConfig.remat`; the forward pass is the same in any case.
    """
    graph, weights = nnx.split(blocks)

    def body(carry, layer):
        weights, x = layer
        if remat == "offload":
            carry = jax.tree.map(lambda x: checkpoint_name(x, "input"), carry)
        return step(nnx.merge(graph, jax.tree.map(_on_device, weights)), carry, x)

    # A loop cannot undo the rematerialisation anyway, and without barriers against that the compiler need not copy a layer's weights.
    return jax.lax.scan(jax.checkpoint(body, policy=_KEPT[remat], prevent_cse=False), carry, (weights, xs))


def part(step: Callable, blocks: nnx.Module, carry, xs, first, last):
    """`carry = step(block, carry, x)` for the stacked blocks `first` to `last` - 1, numbers that may be traced. It has no gradient."""
    graph, weights = nnx.split(blocks)

    def body(k, carry):
        layer, x = jax.tree.map(lambda w: jax.lax.dynamic_index_in_dim(w, k, keepdims=False), (weights, xs))
        return step(nnx.merge(graph, jax.tree.map(_on_device, layer)), carry, x)

    return jax.lax.fori_loop(first, last, body, carry)


def _on_device(w: jax.Array) -> jax.Array:
    return jax.device_put(w, jax.memory.Space.Device) if jax.typeof(w).memory_space == jax.memory.Space.Host else w


def _axes(sizes: int | Sequence[int]) -> tuple[int, ...]:
    return (sizes,) if isinstance(sizes, int) else tuple(sizes)
