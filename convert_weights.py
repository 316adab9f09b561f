"""Convert checkpoints, and say what they are.

    python convert_weights.py inspect FLUX.1-dev/transformer
    python convert_weights.py to-jax FLUX.1-dev flux-dev-jax
    python convert_weights.py to-jax flux1-dev.safetensors flux-dev-jax/transformer

sample.py also reads the PyTorch files directly; a converted copy starts faster and loads onto any mesh.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from infu_jax.cli import check_writable, run
from infu_jax.errors import InputError


@dataclass(frozen=True)
class ToJax:
    """Write Orbax checkpoints with config.json and tokenizer files from PyTorch files.

    SRC is one model (a file or a folder with config.json) or a release folder: FLUX.1 in diffusers layout,
    or InfiniteYou's infu_flux_v1.0/aes_stage2. OUT must not exist; it appears when it is whole.
    """

    src: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SRC")]
    """What to read."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """Folder to write."""
    dtype: Literal["keep", "bfloat16", "float32"] = "keep"
    """Of the stored parameters; keep: as in the file. ArcFace, which computes in float32, is always kept."""


@dataclass(frozen=True)
class Inspect:
    """Say what a file or folder is: model, layout, parameters, dtypes, what is missing or unexpected. Exits with 1 if something is wrong."""

    path: Annotated[Path, tyro.conf.Positional]
    """A checkpoint file, a model folder, or a release folder."""


# Copied beside the converted models: what sampling needs and no conversion changes.
COMPANIONS = ("tokenizer", "tokenizer_2", "scheduler", "model_index.json")


def to_jax(args: ToJax) -> None:
    if args.out.exists():
        raise InputError(f"{args.out} exists already; choose another name or remove it first")
    if not args.src.exists():
        raise InputError(f"{args.src} does not exist")
    check_writable(args.out)
    from infu_jax import checkpoint, inspection
    from infu_jax.convert import source

    found = [checkpoint.open_model(path, model) for model, path in inspection.parts(args.src).items()] or [checkpoint.open_model(args.src)]
    dtypes = {f.layout.model: None if args.dtype == "keep" or f.layout.model == "arcface" else args.dtype for f in found}
    for f in found:
        checkpoint.check(f)  # all of them before the first is read
    check_writable(args.out, sum(inspection.stored_bytes(f, dtypes[f.layout.model]) for f in found))
    if absent := inspection.absent(args.src):
        print(f"warning: {args.src} lacks what sample.py needs: {', '.join(absent)}", file=sys.stderr)
    partial = args.out.absolute().with_name(f".{args.out.name}.{os.getpid()}.partial")
    try:
        for model, path in [(f.layout.model, f.path) for f in found]:
            began = time.perf_counter()
            place = "" if path == args.src else Path(source.PLACES[model][0]).stem
            module = checkpoint.load_model(path, model, dtype=dtypes[model])
            checkpoint.save_model(partial / place, model, module)
            del module  # before the next one is read
            print(f"{path}: {model} converted in {time.perf_counter() - began:.1f} s", file=sys.stderr, flush=True)
        for name in COMPANIONS if args.src.is_dir() else ():
            if (args.src / name).is_dir():
                shutil.copytree(args.src / name, partial / name)
            elif (args.src / name).exists():
                shutil.copy(args.src / name, partial / name)
        partial.rename(args.out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(f"{args.out}: {', '.join(dtypes)}")


def inspect(args: Inspect) -> None:
    if not args.path.exists():
        raise InputError(f"{args.path} does not exist")
    from infu_jax import inspection

    whole = True
    for path in (inspection.parts(args.path) or {None: args.path}).values():
        lines, good = inspection.describe(path)
        print("\n  ".join([str(path), *lines]))
        whole &= good
    if absent := inspection.absent(args.path):
        print(f"{args.path}\n  problem: sample.py also needs {', '.join(absent)}")
        whole = False
    if not whole:
        sys.exit(1)


def main() -> None:
    args = tyro.cli(ToJax | Inspect, description=__doc__)
    to_jax(args) if isinstance(args, ToJax) else inspect(args)


if __name__ == "__main__":
    run(main)
