"""Convert checkpoints both ways, and say what they are.

    python convert_weights.py inspect FLUX.1-dev/transformer
    python convert_weights.py to-jax FLUX.1-dev flux-dev-jax
    python convert_weights.py to-jax flux1-dev.safetensors flux-dev-jax/transformer
    python convert_weights.py to-torch infu-jax infu_flux_v1.0/mine
    python convert_weights.py to-torch infu-jax/InfuseNetModel infusenet_fp8.safetensors --style comfyui --dtype float8_e4m3fn

sample.py also reads the PyTorch files directly; a converted copy starts faster and loads onto any mesh.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tqdm import tqdm

from infu_jax.cli import appearing, check_writable, run
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
class ToTorch:
    """Write PyTorch files, which diffusers, the original repositories and ComfyUI read, from any checkpoint.

    SRC is what to-jax or training wrote, or any PyTorch checkpoint, of one model or a folder of several. OUT must not exist; it
    appears when it is whole.
    """

    src: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SRC")]
    """What to read."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """Folder to write, or the file where a model is one file."""
    style: Literal["diffusers", "bfl", "comfyui"] = "diffusers"
    """diffusers: as released, FLUX in diffusers' folders; InfuseNetModel and image_proj_model.bin serve as the original's --model_dir.
    bfl: FLUX and VAE as Black Forest Labs' single files. comfyui: every model as the single file that ComfyUI's nodes read."""
    dtype: Literal["keep", "float32", "bfloat16", "float16", "float8_e4m3fn"] = "keep"
    """Of the written tensors; keep: as they are. In float8, biases and norms are bfloat16. ArcFace is always kept."""
    shard_size: Annotated[str, tyro.conf.arg(metavar="SIZE")] = "5GB"
    """Most bytes of tensors in one file of a folder, such as 500MB or 10GB."""


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
    with appearing(args.out) as partial:
        for f in found:
            began = time.perf_counter()
            model = f.layout.model
            place = "" if f.path == args.src else Path(source.PLACES[model][0]).stem
            params = checkpoint.open_params(f, dtypes[model])
            with _bar(f"{model} to JAX", inspection.stored_bytes(f, dtypes[model])) as bar:
                checkpoint.save_params(partial / place, model, f.cfg, {k: dataclasses.replace(p, read=_counted(p.read, bar)) for k, p in params.items()})
            print(f"{f.path}: {model} converted in {time.perf_counter() - began:.1f} s", file=sys.stderr, flush=True)
        _copy_companions(args.src, partial)
    print(f"{args.out}: {', '.join(dtypes)}")


def to_torch(args: ToTorch) -> None:
    _check_out(args.out)
    if not args.src.exists():
        raise InputError(f"{args.src} does not exist")
    shard_bytes = _size(args.shard_size)
    from infu_jax import checkpoint, export, inspection

    found = [checkpoint.open_model(path, model) for model, path in inspection.parts(args.src).items()] or [checkpoint.open_model(args.src)]
    one = found[0] if found[0].path == args.src else None
    single = {f.layout.model: export.is_file(f.layout.model, args.style) for f in found}
    if one is not None:
        _check_name(args.out, one.layout.model, single)
    plans = []
    for f in found:
        params = checkpoint.open_params(f)
        dtype = None if args.dtype == "keep" or f.layout.model == "arcface" else np_dtype(args.dtype)
        layout = export.layout_for(f.layout.model, args.style)
        bar = _bar(f"{f.layout.model} to PyTorch")
        made = export.tensors(layout, f.cfg, params, dtype, bar.update)
        place = "" if one is f else export.place(f.layout.model, args.style, f.cfg, export.main_dtype(params, dtype))
        plans.append((f, layout, made, place, bar))
    check_writable(args.out, sum(export.total_bytes(made) for _, _, made, _, _ in plans))
    with appearing(args.out) as partial:
        for f, layout, made, place, bar in plans:
            began = time.perf_counter()
            (partial / place).parent.mkdir(parents=True, exist_ok=True)
            bar.reset(export.total_bytes(made))
            with bar:
                export.write(partial / place, layout, f.cfg, made, shard_bytes, single[f.layout.model])
            print(f"{f.path}: {f.layout.model} written in {time.perf_counter() - began:.1f} s", file=sys.stderr, flush=True)
        if args.style != "comfyui":
            _copy_companions(args.src, partial)
    print(f"{args.out}: {', '.join(single)}")


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


# Odds and ends of the commands -------------------------------------------------------------------


def _check_out(out: Path) -> None:
    if out.exists():
        raise InputError(f"{out} exists already; choose another name or remove it first")
    check_writable(out)


def _check_name(out: Path, model: str, single: dict[str, bool]) -> None:
    """A file is named as one, a folder is not: readers go by it."""
    wanted = {"resampler": (".bin",), "arcface": (".pth",)}.get(model, (".safetensors",) if single[model] else ())
    if wanted and out.suffix not in wanted:
        raise InputError(f"{out}: {model} is written as one file here; give a name that ends in {' or '.join(wanted)}")
    if not wanted and out.suffix in (".safetensors", ".bin", ".pth"):
        raise InputError(f"{out}: {model} is written as a folder here; give the name of a folder, or choose another --style")


def _size(text: str) -> int:
    """Bytes of "5GB", counted in thousands as Hugging Face does."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", text.strip().upper())
    size = int(float(match[1]) * 1000 ** " KMGT".index(match[2] or " ")) if match else 0
    if size < 1:
        raise InputError(f"--shard-size is {text!r}; something like 500MB or 5GB is needed")
    return size


def np_dtype(name: str):
    """The NumPy dtype of a name on the command line."""
    import ml_dtypes  # noqa: F401  (teaches NumPy bfloat16 and float8)
    import numpy as np

    return np.dtype(name)


def _copy_companions(src: Path, out: Path) -> None:
    for name in COMPANIONS if src.is_dir() else ():
        if (src / name).is_dir():
            shutil.copytree(src / name, out / name)
        elif (src / name).exists():
            shutil.copy(src / name, out / name)


def _bar(what: str, total: int | None = None) -> tqdm:
    return tqdm(total=total, desc=what, unit="B", unit_scale=True, leave=False, disable=None, delay=0.5)


def _counted(read, bar: tqdm):
    def counted(box):
        values = read(box)
        bar.update(values.nbytes)
        return values

    return counted


COMMANDS = {ToJax: to_jax, ToTorch: to_torch, Inspect: inspect}


def main() -> None:
    args = tyro.cli(ToJax | ToTorch | Inspect, description=__doc__)
    COMMANDS[type(args)](args)


if __name__ == "__main__":
    run(main)
