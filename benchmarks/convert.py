"""Converting a large checkpoint both ways, beside a plain copy of the same bytes and beside loading the file with torch.

    python benchmarks/convert.py

Writes an InfuseNet of the released size (5.9 GB in bfloat16, made-up numbers) and runs every contender on it in a process of its own.
Needs 24 GB of disk. Prints one table; exits with 1 if a conversion of 2 GB or more takes over 3 times as long as the copy or over 1.5 GB of memory.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

ROOT = Path(__file__).parents[1]
TORCH = "import sys, safetensors.torch as st, pathlib; print(sum(len(st.load_file(p)) for p in pathlib.Path(sys.argv[1]).glob('*.safetensors')))"


@dataclass(frozen=True)
class Args:
    depth: int = 4
    """Double blocks; the released InfuseNet has 4."""
    single: int = 10
    """Single blocks; the released InfuseNet has 10."""
    hidden: int = 3072
    """Hidden size; a smaller one makes a quick trial."""
    rounds: int = 3
    """Times each contender runs; the table shows medians."""
    folder: Path | None = None
    """Where to put the files; by default a temporary folder, removed at the end."""


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        source, made = Path(folder) / "InfuseNetModel", Path(folder) / "out"
        # In a process of its own: what this one holds would count as its children's.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            size = pool.apply(write, (source, args))
        convert = [sys.executable, str(ROOT / "convert_weights.py")]
        contenders = {
            "cp": ["cp", "-r", source, made],
            "to-jax": [*convert, "to-jax", source, made],
            "to-torch": [*convert, "to-torch", Path(folder) / "jax", made],
            "to-torch, float8, one file": [*convert, "to-torch", Path(folder) / "jax", f"{made}.safetensors", "--style", "comfyui", "--dtype", "float8_e4m3fn"],
            "torch, loading only": [sys.executable, "-c", TORCH, source],
        }
        subprocess.run([*convert, "to-jax", source, Path(folder) / "jax"], check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
        rows: dict[str, list[tuple[float, float, int]]] = {name: [] for name in contenders}
        for n in range(args.rounds):
            for name, command in contenders.items():
                print(f"round {n + 1} of {args.rounds}: {name} ...", file=sys.stderr)
                rows[name].append(timed([str(part) for part in command]))
                shutil.rmtree(made, ignore_errors=True)
                made.with_suffix(".safetensors").unlink(missing_ok=True)
    median = {name: [statistics.median(column) for column in zip(*runs)] for name, runs in rows.items()}
    copy = median["cp"][0]
    print(f"\n{size / 1e9:.2f} GB in bfloat16, medians of {args.rounds} rounds, files in the system's cache as far as it has room\n")
    print("| | seconds | x cp | of CPU | peak memory, MB |\n|---|---|---|---|---|")
    for name, (seconds, cpu, memory) in median.items():
        print(f"| {name} | {seconds:.1f} | {seconds / copy:.1f} | {cpu:.1f} | {memory / 1e6:.0f} |")
    if size > 2e9 and any(median[name][0] > 3 * copy or median[name][2] > 1.5e9 for name in ("to-jax", "to-torch")):
        raise SystemExit("a conversion took more than 3 times as long as cp, or more than 1.5 GB of memory")


def write(folder: Path, args: Args) -> int:
    """The checkpoint, in shards, with every number finite; returns its bytes."""
    import json

    import ml_dtypes
    import numpy as np

    from infu_jax.checkpoint import abstract, param_shapes
    from infu_jax.config import InfuseNetConfig
    from infu_jax.convert import infusenet, rules, safetensors

    head = args.hidden // 24
    axes = (head // 8, head * 7 // 16, head * 7 // 16)
    cfg = InfuseNetConfig(depth=args.depth, depth_single_blocks=args.single, hidden_size=args.hidden, axes_dim=axes)
    [layout] = infusenet.LAYOUTS
    plan = rules.plan(layout.rules(cfg), {name: s.shape for name, s in param_shapes(abstract("infusenet", cfg)).items()})
    noise = (np.random.default_rng(0).standard_normal(1 << 20, np.float32) * 0.02).astype(ml_dtypes.bfloat16)
    make = lambda shape: lambda: np.resize(noise, shape)  # noqa: E731
    tensors = {key: safetensors.LazyTensor(shape, noise.dtype, make(shape)) for key, shape in plan.their_shapes.items()}
    safetensors.write_sharded(folder, "diffusion_pytorch_model", tensors, 3 * 10**9, {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(layout.to_config(cfg)))
    return sum(path.stat().st_size for path in folder.iterdir())


def timed(command: list[str]) -> tuple[float, float, int]:
    """Seconds, seconds of CPU and peak resident bytes of a command. What is written waits in the system's cache; all that waits is written out before."""
    os.sync()
    began = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    error = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed: {error}")
    return time.perf_counter() - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


if __name__ == "__main__":
    main()
