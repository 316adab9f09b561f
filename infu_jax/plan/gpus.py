"""NVIDIA's GPUs that need not be there: what XLA's compiler has to know of one to compile for it.

Sources: NVIDIA's data sheets and the CUDA C++ Programming Guide, table "Technical Specifications per Compute Capability"; the fields are those of
XLA's `GpuTargetConfigProto` (openxla/xla, `xla/backends/gpu/target_config`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import jax
from jax.experimental import topologies

from infu_jax.cli import GPU_SHARE
from infu_jax.errors import InputError


@dataclass(frozen=True)
class Gpu:
    """One kind. `memory_gib` is what CUDA reports of it, bandwidth in bytes a second."""

    name: str  # as JAX calls it
    capability: str
    multiprocessors: int
    clock_ghz: float
    l2: int
    bandwidth: float
    memory_gib: float


GPUS = {
    "a100-40gb": Gpu("NVIDIA A100-SXM4-40GB", "8.0", 108, 1.41, 40 * 2**20, 1.555e12, 39.4),
    "a100-80gb": Gpu("NVIDIA A100-SXM4-80GB", "8.0", 108, 1.41, 40 * 2**20, 2.039e12, 79.2),
    "a6000": Gpu("NVIDIA RTX A6000", "8.6", 84, 1.8, 6 * 2**20, 0.768e12, 47.4),
    "l40s": Gpu("NVIDIA L40S", "8.9", 142, 2.52, 96 * 2**20, 0.864e12, 44.4),
    "rtx4090": Gpu("NVIDIA GeForce RTX 4090", "8.9", 128, 2.52, 72 * 2**20, 1.008e12, 23.5),
    "rtx5090": Gpu("NVIDIA GeForce RTX 5090", "12.0", 170, 2.41, 96 * 2**20, 1.792e12, 31.4),
    "h100": Gpu("NVIDIA H100 80GB HBM3", "9.0", 132, 1.98, 50 * 2**20, 3.352e12, 79.1),
    "h200": Gpu("NVIDIA H200", "9.0", 132, 1.98, 50 * 2**20, 4.8e12, 139.7),
    "b200": Gpu("NVIDIA B200", "10.0", 148, 1.965, 126 * 2**20, 7.672e12, 178.3),
}
# By compute capability: threads and 32-bit operations a clock of a multiprocessor, and the KiB of its shared memory.
MULTIPROCESSORS = {
    "8.0": (2048, 64, 164),
    "8.6": (1536, 128, 100),
    "8.9": (1536, 128, 100),
    "9.0": (2048, 128, 228),
    "10.0": (2048, 128, 228),
    "12.0": (1536, 128, 100),
}


def named(topology: str) -> bool:
    """Whether a topology is of GPUs."""
    return topology.partition(":")[0] in GPUS


def devices(topology: str) -> list[jax.Device]:
    """The GPUs of a topology such as h100:8 (of one host) or h100:2x8 (hosts x GPUs of each)."""
    kind, _, count = topology.partition(":")
    found = re.fullmatch(r"(?:([1-9]\d*)x)?([1-9]\d*)", count)
    if found is None:
        raise InputError(f"topology {topology}: expected how many GPUs after {kind}:, such as {kind}:8, or {kind}:2x8 for two hosts of eight")
    hosts, each = (int(n or 1) for n in found.groups())
    try:
        return topologies.get_topology_desc(platform="cuda", topology=f"1x{hosts}x{each}", target_config=target_config(GPUS[kind])).devices
    except NotImplementedError:
        raise InputError(f'topology {topology}: JAX\'s CUDA plugin is not installed; it needs no GPU: pip install -e ".[gpu]"') from None


def memory_gib(name: str) -> float:
    """What programs take of the memory of the GPU that JAX calls so; the rest is CUDA's own and its libraries'."""
    return next(gpu.memory_gib for gpu in GPUS.values() if gpu.name == name) * GPU_SHARE


def target_config(gpu: Gpu) -> str:
    """A `GpuTargetConfigProto` as text."""
    major, minor = gpu.capability.split(".")
    threads, operations, shared = MULTIPROCESSORS[gpu.capability]
    return f"""
    platform_name: "CUDA"
    device_description_str: "{gpu.name}"
    dnn_version_info {{ major: 9 minor: 10 }}
    runtime_version {{ major: 13 }}
    gpu_device_info {{
      cuda_compute_capability {{ major: {major} minor: {minor} }}
      core_count: {gpu.multiprocessors}
      fpus_per_core: {operations}
      clock_rate_ghz: {gpu.clock_ghz}
      memory_bandwidth: {gpu.bandwidth:.0f}
      device_memory_size: {gpu.memory_gib * 2**30:.0f}
      l2_cache_size: {gpu.l2}
      threads_per_warp: 32
      threads_per_block_limit: 1024
      threads_per_core_limit: {threads}
      block_dim_limit_x: {2**31 - 1}
      block_dim_limit_y: {2**16 - 1}
      block_dim_limit_z: {2**16 - 1}
      registers_per_core_limit: {2**16}
      registers_per_block_limit: {2**16}
      shared_memory_per_core: {shared * 1024}
      shared_memory_per_block: {48 * 1024}
      shared_memory_per_block_optin: {(shared - 1) * 1024}
    }}
    """
