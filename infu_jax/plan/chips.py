"""TPU chips and GPUs that need not be there: their devices, their memory, and the compiler for them."""

from __future__ import annotations

import math
import re
import time
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies

from infu_jax.errors import InputError
from infu_jax.plan import gpus
from infu_jax.sharding import platform

GIB = 2**30
# What programs may use of a chip's memory in GiB, by the beginning of JAX's name for it: what the compiler names when a program does not fit.
MEMORY = {"TPU v4": 30.75, "TPU v5 lite": 15.75, "TPU v5e": 15.75, "TPU v5": 95.74, "TPU v6 lite": 31.25, "TPU v6e": 31.25}

NO_HOST = "For GPUs that are not here JAX does not compile what uses host memory"


@dataclass(frozen=True)
class Compiled:
    """What the compiler says of a program. Bytes a chip; `peak` is arguments + temporary + results that are no arguments."""

    arguments: int
    temporary: int
    peak: int
    seconds: float
    text: str
    live: int = 0  # bytes in use at once, at most; the peak is what is set aside for them


def devices(topology: str) -> list[jax.Device]:
    """The chips of a topology, such as v6e:4x4, or the GPUs, such as h100:8."""
    if gpus.named(topology):
        return gpus.devices(topology)
    one = math.prod(map(int, re.findall(r"\d+", topology.partition(":")[2]) or [2])) == 1
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology, **({"chips_per_host_bounds": [1, 1, 1]} if one else {})).devices
    except Exception as e:  # what libtpu raises for a name that it does not know, and JAX where there is no libtpu
        known = f"expected such as v5p:2x2x1 or v6e:4x4, and libtpu installed, or such as h100:8, of {', '.join(gpus.GPUS)}"
        raise InputError(f"topology {topology}: {' '.join(str(e).split())[:200]}; {known}") from None


def memory_gib(device: jax.Device) -> float:
    """What programs may use of a chip's memory."""
    if device.platform == "gpu":
        return gpus.memory_gib(device.device_kind)
    return next(gib for name, gib in MEMORY.items() if device.device_kind.startswith(name))


def lower(program: Any, *args: Any, **kwargs: Any) -> Any:
    """As a jitted function's own `lower`, for the devices of the mesh in use."""
    traced = program.trace(*args, **kwargs)
    # Else JAX looks among this machine's devices for what "gpu" stands for.
    return traced.lower(lowering_platforms=("cuda",)) if platform() == "gpu" else traced.lower()


def compiled(lowered: Any, effort: str) -> Compiled:
    """Compile for the devices that the arguments' shardings name. InputError where the program does not fit into their memory."""
    began = time.perf_counter()
    options = {"exec_time_optimization_effort": -1.0} if effort == "quick" else None
    if platform() == "gpu":
        # cuBLAS alone. Between it and products of its own XLA chooses by trying them; where it cannot, it may take one that does not compile.
        options = {"xla_gpu_enable_triton_gemm": False}
    try:
        program = lowered.compile(options)
    except jax.errors.JaxRuntimeError as e:
        if "RESOURCE_EXHAUSTED" not in str(e) and "Ran out of memory" not in str(e):
            raise
        used = re.search(r"Used ([\d.]+)G of ([\d.]+)G", str(e)) or re.search(r"\(([\d.]+)G\) exceeds available HBM \(([\d.]+)G\)", str(e))
        said = f"it takes {used[1]} GiB of {used[2]}" if used else " ".join(str(e).split())[:200]
        raise InputError(f"the program does not fit into a chip: {said}; try more chips, or a smaller batch or picture") from None
    stats = program.memory_analysis()
    peak = stats.argument_size_in_bytes + stats.temp_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes
    return Compiled(stats.argument_size_in_bytes, stats.temp_size_in_bytes, peak, time.perf_counter() - began, program.as_text(), stats.peak_memory_in_bytes)


def held(tree: Any) -> int:
    """Bytes that abstract arrays take of one chip."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * np.dtype(x.dtype).itemsize for x in jax.tree.leaves(tree))
