"""Where arrays live: one mesh of axes (data, fsdp, tensor, sequence), rules for parameters, specs for batches and tokens.

- data: copies of the weights, each with its part of the batch.
- fsdp: weights are split and gathered block by block; the batch is split over this axis too.
- tensor: heads and MLP channels are split; one picture is computed by several devices.
- sequence: tokens are split, but for the attention, which splits heads instead (DeepSpeed-Ulysses, arXiv 2309.14509). One picture is
  computed by several devices as well, that send each other less but have all weights each.

This file knows parameter names (as regular expressions) but imports no model, so models may use it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Format, Layout, with_layout_constraint
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from infu_jax.errors import InputError

AXES = ("data", "fsdp", "tensor", "sequence")
HEADS = ("tensor", "sequence")  # what the heads of an attention are split over
LANES, SUBLANES = 128, 8  # of a TPU's vector unit


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, sequence: int = 1, *, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over `devices` (all by default). One of the sizes may be -1: the rest of the devices."""
    devices = jax.devices() if devices is None else devices
    sizes = [data, fsdp, tensor, sequence]
    asked = f"mesh ({', '.join(AXES)}) = {tuple(sizes)}"
    if any(s < 1 and s != -1 for s in sizes):
        raise InputError(f"{asked}: sizes are 1 or more, or -1 for the rest of the devices")
    if sizes.count(-1) > 1:
        raise InputError(f"{asked}: only one size may be -1")
    known = math.prod(s for s in sizes if s != -1)
    if -1 in sizes and len(devices) % known == 0:
        sizes[sizes.index(-1)] = len(devices) // known
    if math.prod(sizes) != len(devices):
        raise InputError(f"{asked} does not fit {len(devices)} devices")
    return Mesh(np.asarray(devices).reshape(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def platform() -> str:
    """What the program being traced is for, "cpu", "gpu" or "tpu": the mesh in use, which need not be of this machine (`infu_jax.plan`), or else
    JAX's default."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def batch_axes(mesh: Mesh | AbstractMesh, batch: int) -> tuple[str, ...]:
    """The mesh axes that a batch of this size is split over: of data and fsdp what divides it into most parts."""
    devices = lambda axes: math.prod(mesh.shape[a] for a in axes)  # noqa: E731
    return max((axes for axes in (("data", "fsdp"), ("data",), ("fsdp",), ()) if batch % devices(axes) == 0), key=devices)


def batch_sharding(mesh: Mesh, batch: int) -> NamedSharding:
    """Split over the first axis of an array, the batch."""
    return NamedSharding(mesh, P(batch_axes(mesh, batch)))


def batch_part(mesh: Mesh, batch: int) -> tuple[int, int]:
    """(index, count): of `count` equal parts of a batch, the one whose rows this process's devices need.

    Processes that compute the same pictures together (along `tensor`) need the same part.
    """
    spans = [index[0].indices(batch)[:2] for index in batch_sharding(mesh, batch).addressable_devices_indices_map((batch,)).values()]
    first, last = min(start for start, _ in spans), max(stop for _, stop in spans)
    return first // (last - first), batch // (last - first)


def place_batch(mesh: Mesh, part: Mapping[str, np.ndarray], batch: int) -> dict[str, jax.Array]:
    """This process's part of a batch (see `batch_part`) -> global arrays of `batch` rows."""
    return {name: jax.make_array_from_process_local_data(batch_sharding(mesh, batch), x, (batch, *x.shape[1:])) for name, x in part.items()}


def constrain_batch(x: jax.Array) -> jax.Array:
    """Keep activations split over the batch inside a jitted function; nothing outside `jax.set_mesh`.

    Without it the compiler may gather the whole batch on every device.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, P(batch_axes(mesh, x.shape[0])))


# Tokens -------------------------------------------------------------------------------------------


def constrain_tokens(x: jax.Array) -> jax.Array:
    """As `constrain_batch` for tokens (B, S, ...), which are split over `sequence` too."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, P(batch_axes(mesh, x.shape[0]), "sequence"))


def check_heads(mesh: Mesh | AbstractMesh, heads: int) -> None:
    """Raise where so many heads cannot be split over the devices that compute one picture."""
    devices = math.prod(mesh.shape[axis] for axis in HEADS)
    if heads % devices:
        raise InputError(f"{heads} heads are not a multiple of mesh axes {' x '.join(HEADS)} = {devices}; choose another mesh")


def check_tokens(mesh: Mesh | AbstractMesh, *counts: int) -> None:
    """Raise where so many tokens, of text, identity or picture, cannot be split over `sequence`."""
    if wrong := [n for n in counts if n % mesh.shape["sequence"]]:
        raise InputError(f"{wrong[0]} tokens are not a multiple of mesh axis 'sequence' = {mesh.shape['sequence']}; choose another mesh")


def join(first: jax.Array, second: jax.Array, axis: int = 1) -> jax.Array:
    """Two streams of tokens as one, each device's own tokens together: with `sequence` 2 first[:n/2], second[:m/2], first[n/2:], second[m/2:].

    What looks at all tokens alike may have them in any order, and nothing is sent for this one. Without a mesh, or where `sequence` is 1, it
    is plain concatenation.
    """
    parts = [_by_device(x, axis) for x in (first, second)]
    whole = jnp.concatenate(parts, axis + 1)
    return whole.reshape(*first.shape[:axis], -1, *first.shape[axis + 1 :])


def streams(joined: jax.Array, first: int) -> tuple[jax.Array, jax.Array]:
    """The two streams of (B, S, ...) that `join` made one of; `first`: tokens of the first."""
    by_device = _by_device(joined, 1)
    cut = first // by_device.shape[1]
    return tuple(x.reshape(len(x), -1, *x.shape[3:]) for x in (by_device[:, :, :cut], by_device[:, :, cut:]))


def add_to_second(joined: jax.Array, first: int, more: jax.Array) -> jax.Array:
    """Add `more` to the second stream of those that `join` made one of."""
    by_device = _by_device(joined, 1)
    if by_device.shape[1] == 1:  # The same numbers, but so XLA rounds what comes after as it does where nothing is added: bit for bit, for zeros.
        return joined.at[:, first:].add(more)
    return by_device.at[:, :, first // by_device.shape[1] :].add(_by_device(more, 1)).reshape(joined.shape)


def _by_device(x: jax.Array, axis: int) -> jax.Array:
    """Tokens (..., S, ...) as (..., devices, S / devices, ...)."""
    mesh = jax.sharding.get_abstract_mesh()
    devices = 1 if mesh.empty else mesh.shape["sequence"]
    return x.reshape(*x.shape[:axis], devices, -1, *x.shape[axis + 1 :])


# Parameters ---------------------------------------------------------------------------------------

Rules = Sequence[tuple[str, P]]

_MMDIT: Rules = (
    (r".*_blocks\..*qkv\.kernel", P(None, "fsdp", None, "tensor")),  # (layer, D, qkv, H, K)
    (r".*_blocks\..*qkv\.bias", P(None, None, "tensor")),
    (r".*_blocks\..*attn_out\.kernel", P(None, "tensor", None, "fsdp")),  # (layer, H, K, D)
    (r".*_blocks\..*mlp_in\.kernel", P(None, "fsdp", "tensor")),
    (r".*_blocks\..*mlp_in\.bias", P(None, "tensor")),
    (r".*_blocks\..*mlp_out\.kernel", P(None, "tensor", "fsdp")),
    # Outputs over fsdp, as those of attn_out and mlp_out, which they are multiplied with. With outputs over tensor, XLA permutes the
    # pictures of a batch that is split over both data and fsdp when it computes attn_out (jaxlib 0.10.2, Shardy and GSPMD): wrong pictures.
    (r".*_blocks\..*mod\.kernel", P(None, "tensor", None, "fsdp")),  # (layer, D, 6 or 3, D)
    (r".*_blocks\..*mod\.bias", P(None, None, "fsdp")),
    (r".*_blocks\..*((attn_out|mlp_out)\.bias|norm\.scale)", P()),
    (r"(img|txt|time|vector|guidance)_in\..*kernel", P(None, "fsdp")),
    (r"(img|txt|time|vector|guidance)_in\..*bias", P()),
)

RULES: Mapping[str, Rules] = {
    "flux": (
        *_MMDIT,
        (r"final_layer\.mod\.kernel", P("tensor", None, "fsdp")),
        (r"final_layer\.linear\.kernel", P("fsdp")),
        (r"final_layer\..*bias", P()),
    ),
    "infusenet": (
        *_MMDIT,
        (r"control_in\.kernel", P(None, "fsdp")),
        (r"(double|single)_out\.kernel", P(None, "fsdp", "tensor")),
        (r"(control_in|double_out|single_out)\.bias", P()),
    ),
    "t5": (
        (r"blocks\.(qkv|mlp_in)\.kernel", P(None, "fsdp", None, "tensor")),  # (layer, D, qkv, H, K), (layer, D, gate and value, F)
        (r"blocks\.attn_out\.kernel", P(None, "tensor", None, "fsdp")),
        (r"blocks\.mlp_out\.kernel", P(None, "tensor", "fsdp")),
        (r"embedding\.table", P(None, "fsdp")),
        (r"relative_bias\.table", P(None, "tensor")),
        (r".*norm\.scale", P()),
    ),
    # CLIP-L and the resampler have 12 and 20 heads, which few tensor axes divide, and are small: fsdp only.
    "clip": (
        (r"blocks\.(qkv|mlp_in)\.kernel", P(None, "fsdp")),
        (r"blocks\.attn_out\.kernel", P(None, None, None, "fsdp")),
        (r"blocks\.mlp_out\.kernel", P(None, None, "fsdp")),
        (r"(token|position)_embedding\.table", P(None, "fsdp")),
        (r".*(bias|scale)", P()),
    ),
    "clip_model": (
        (r"(text|vision)\.blocks\.(qkv|mlp_in)\.kernel", P(None, "fsdp")),
        (r"(text|vision)\.blocks\.attn_out\.kernel", P(None, None, None, "fsdp")),
        (r"(text|vision)\.blocks\.mlp_out\.kernel", P(None, None, "fsdp")),
        (r"text\.token_embedding\.table", P(None, "fsdp")),
        (r"(text|vision)_projection\.kernel", P("fsdp")),
        (r".*position_embedding\.table|vision\.(patches\.kernel|class_embedding)|logit_scale|.*(bias|scale)", P()),
    ),
    "resampler": (
        (r"blocks\.(attn\.q|attn\.kv|mlp_in)\.kernel", P(None, "fsdp")),
        (r"blocks\.attn\.proj\.kernel", P(None, None, None, "fsdp")),
        (r"blocks\.mlp_out\.kernel", P(None, None, "fsdp")),
        (r"proj_(in|out)\.kernel", P(None, "fsdp")),
        (r"latents|.*(bias|scale)", P()),
    ),
    # Convolutions of 84 and 44 million parameters: gathering them would cost more than keeping them.
    "autoencoder": ((r".*", P()),),
    "arcface": ((r".*", P()),),
}


def param_specs(rules: Rules, paths: Sequence[str]) -> dict[str, P]:
    """A spec for every parameter path: the first rule that matches it whole.

    A path without a rule and a rule without a path are errors, so that nothing is replicated by accident.
    """
    used, specs, bare = set(), {}, []
    for path in paths:
        for n, (pattern, spec) in enumerate(rules):
            if re.fullmatch(pattern, path):
                used.add(n)
                specs[path] = spec
                break
        else:
            bare.append(path)
    idle = [pattern for n, (pattern, _) in enumerate(rules) if n not in used]
    if bare or idle:
        raise ValueError(f"sharding rules do not fit the model: parameters without a rule {bare}, rules without a parameter {idle}")
    return specs


# Kernels that lie on TPUs in another order of axes. The matrix unit wants the two axes of the matrix innermost; given anything else, XLA copies the
# whole first: for queries, keys and values (layer, D, 3, H, K) 5 GiB of FLUX.1 and InfuseNet, for the final layer's shift and scale (D, 2, D) 36 MiB.
_ORDERS = ((re.compile(r".*_blocks\..*qkv\.kernel"), (0, 2, 3, 1, 4)), (re.compile(r"final_layer\.mod\.kernel"), (1, 0, 2)))


def on_chip(path: str, sharding: NamedSharding) -> NamedSharding | Format:
    """Where a parameter goes and, on TPUs, in which order its axes lie in memory: as the programs that use it want them."""
    order = next((order for kernel, order in _ORDERS if kernel.fullmatch(path)), None)
    return Format(Layout(order), sharding) if order is not None and _in_tpu(sharding) else sharding


def _in_tpu(sharding: NamedSharding) -> bool:
    return sharding.mesh.devices.flat[0].platform == "tpu" and sharding.memory_kind == "device"


def in_chip_order(kernel: jax.Array) -> jax.Array:
    """The kernel of one block where it is used: that of queries, keys and values (D, 3, H, K) in the order of `on_chip` in forward and backward pass.

    Left to itself XLA has the backward pass read it in another, and copies the stack of all blocks for that: 2 GiB for FLUX.1's single blocks.
    """
    if platform() != "tpu" or kernel.ndim != 4 or kernel.shape[-1] % LANES:
        return kernel
    return with_layout_constraint(kernel, Layout((1, 2, 0, 3)))


def in_host(a: jax.Array | jax.ShapeDtypeStruct) -> NamedSharding | Format:
    """Where a parameter waits in host memory and, on TPUs, how stacks of eight-bit kernels lie there: as a program takes them that fetches one block at a time.

    By default they lie in tiles of 32 x 128. The program wants 8 x 128, and XLA would send the whole stack to the chip, and back, for that.
    """
    host = a.sharding.with_memory_kind("pinned_host")
    if a.sharding.mesh.devices.flat[0].platform != "tpu" or a.dtype.itemsize != 1:
        return host
    # Both as XLA has them by default: no axis of few numbers is one of the innermost two, nor one of 64 the last.
    order = (0, 2, 3, 4, 1) if a.ndim == 5 else (0, 2, 1, 3) if a.ndim == 4 and a.shape[2] < 8 else tuple(range(a.ndim))
    return Format(Layout(order, tiling=((8 if a.shape[order[-2]] > 4 else 4, 128), (4, 1))), host)


def param_shardings(mesh: Mesh | AbstractMesh, rules: Rules, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, NamedSharding]:
    """`param_specs` on a mesh; an axis that the mesh does not divide is an error that names the parameter."""
    shardings = {path: NamedSharding(mesh, spec) for path, spec in param_specs(rules, list(shapes)).items()}
    for path, sharding in shardings.items():
        for size, axis in zip(shapes[path], sharding.spec):
            if axis is not None and size % mesh.shape[axis]:
                raise InputError(f"{path} {shapes[path]}: size {size} is not a multiple of mesh axis {axis!r} = {mesh.shape[axis]}; choose another mesh")
    return shardings
