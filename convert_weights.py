"""Convert checkpoints both ways, and say what they are.

    python convert_weights.py inspect FLUX.1-dev/transformer
    python convert_weights.py inspect --diff before.safetensors after.safetensors
    python convert_weights.py to-jax FLUX.1-dev flux-dev-jax
    python convert_weights.py to-jax flux1-dev.safetensors flux-dev-jax/transformer
    python convert_weights.py to-torch infu-jax infu_flux_v1.0/mine
    python convert_weights.py to-torch infu-jax/InfuseNetModel infusenet_fp8.safetensors --style comfyui --dtype float8_e4m3fn
    python convert_weights.py merge-lora FLUX.1-dev flux-realism --lora realism.safetensors:0.8

sample.py also reads the PyTorch files directly; a converted copy starts faster and loads onto any mesh.
"""

from __future__ import annotations

import dataclasses
import math
import re
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tqdm import tqdm

from infu_jax.cli import appearing, check_writable, file_and_scale, run
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
    ema: bool = True
    """Of a training run, take the average of the weights where it keeps one."""


@dataclass(frozen=True)
class ToTorch:
    """Write PyTorch files, which diffusers, the original repositories and ComfyUI read, from any checkpoint.

    SRC is a training run or one of its checkpoints, what to-jax wrote, or any PyTorch checkpoint, of one model or a folder of several.
    OUT must not exist; it appears when it is whole.
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
    ema: bool = True
    """Of a training run, take the average of the weights where it keeps one."""


@dataclass(frozen=True)
class MergeLora:
    """Write a checkpoint with LoRAs merged into it, in SRC's own layout and dtypes.

    SRC is a transformer or a FLUX folder, of PyTorch or of to-jax. A LoRA that also changes text encoders needs the folder.
    """

    src: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SRC")]
    """What to read."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """What to write: a folder, or a file where SRC is one."""
    lora: Annotated[tuple[str, ...], tyro.conf.arg(metavar="FILE[:SCALE] ...")]
    """LoRA files for FLUX (kohya, XLabs, diffusers, PEFT, ComfyUI), each with a scale, 1 if not given."""
    shard_size: Annotated[str, tyro.conf.arg(metavar="SIZE")] = "5GB"
    """Most bytes of tensors in one file of a folder, such as 500MB or 10GB."""


@dataclass(frozen=True)
class ExtractLora:
    """Write the difference of two transformers as a LoRA, in diffusers' names."""

    base: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="BASE")]
    """The transformer that the LoRA will be added to."""
    tuned: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="TUNED")]
    """The transformer that the sum should be."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT.safetensors")]
    """File to write."""
    rank: int = 32
    """Of every layer. A higher one holds more of the difference and takes more room."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the written tensors."""


@dataclass(frozen=True)
class Inspect:
    """Say what a file or folder is: model, layout, parameters, dtypes, what is missing or unexpected. Exits with 1 if something is wrong.

    With --diff, say how two checkpoints differ, in whatever layouts they are; exits with 1 if they do.
    """

    path: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PATH ...")]
    """Checkpoint files, model folders, or release folders; two of them for --diff."""
    hash: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Read everything, for a SHA-256 of each model's parameters, which is the same in every layout."""
    diff: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Compare two checkpoints, and list the largest differences."""
    top: int = 20
    """How many differences to list."""


# Copied beside the converted models: what sampling needs and no conversion changes, and what the folder of evaluation's CLIP has of it.
COMPANIONS = (
    "tokenizer", "tokenizer_2", "scheduler", "model_index.json",
    "preprocessor_config.json", "vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
)  # fmt: skip


@dataclass
class Job:
    """One model to write. `place` is its name inside OUT, empty where OUT is the model; `write` makes it under a given path."""

    path: Path
    model: str
    place: str
    size: int
    write: Callable[[Path, Callable[[int], Any]], None]


def to_jax(args: ToJax) -> None:
    _check(args.out)
    src = _here(args.src)
    from infu_jax import checkpoint

    jobs, dtypes = [], {}
    for f in _open(src, args.ema):
        dtypes[f.layout.model] = None if args.dtype == "keep" or f.layout.model == "arcface" else args.dtype
        jobs.append(_jax_job(f, checkpoint.open_params(f, dtypes[f.layout.model]), _place(src, f)))
    _write(jobs, src, args.out)


def to_torch(args: ToTorch) -> None:
    _check(args.out)
    src = _here(args.src)
    shard_bytes = _size(args.shard_size)
    from infu_jax import checkpoint, export

    jobs = []
    for f in _open(src, args.ema):
        model, single = f.layout.model, export.is_file(f.layout.model, args.style)
        params, dtype = checkpoint.open_params(f), None if args.dtype == "keep" or model == "arcface" else _dtype(args.dtype)
        if f.path == src:
            _check_name(args.out, model, single)
        place = _place(src, f) and export.place(model, args.style, f.cfg, export.main_dtype(params, dtype))
        jobs.append(_torch_job(f, params, place, export.layout_for(model, args.style), dtype, shard_bytes, single))
    _write(jobs, src, args.out, companions=args.style != "comfyui")


def merge_lora(args: MergeLora) -> None:
    _check(args.out)
    src = _here(args.src)
    shard_bytes = _size(args.shard_size)
    from infu_jax import checkpoint, lora

    found = _open(src)
    models = {f.layout.model: checkpoint.check(f) for f in found if f.layout.model in lora.MODELS}
    if "flux" not in models:
        raise InputError(f"{src} holds {', '.join(f.layout.model for f in found)}; LoRAs are merged into a FLUX transformer or a FLUX folder")
    loras = [lora.read(_here(path, ["lora"]), scale, models) for path, scale in map(file_and_scale, args.lora)]
    for each in loras:
        print(f"{each.path}: {each.summary}, scale {each.scale:g}", file=sys.stderr)
    jobs = []
    for f in found:
        model, single = f.layout.model, f.path.is_file()
        params, place = lora.merge_stored(checkpoint.open_params(f), lora.together(loras, model)), _place(src, f, keep=True)
        if f.layout.name in (checkpoint.CONVERTED, checkpoint.RUN):
            jobs.append(_jax_job(f, params, place))
        else:
            if not place:
                _check_name(args.out, model, single)
            # A parameter of ours that is made of several tensors has one dtype for all; JAX has no float64.
            kept = {k: _dtype("float32") if x.dtype == _dtype("float64") else x.dtype for k, x in f.tensors.items()}
            jobs.append(_torch_job(f, params, place, f.layout, kept, shard_bytes, single))
    _write(jobs, src, args.out)


def extract_lora(args: ExtractLora) -> None:
    if args.rank < 1:
        raise InputError(f"rank is {args.rank}; at least 1 is needed")
    if args.out.suffix != ".safetensors":
        raise InputError(f"{args.out}: a LoRA is one file; give a name that ends in .safetensors")
    _check(args.out)
    import numpy as np

    from infu_jax import checkpoint, lora
    from infu_jax.convert import numbers, safetensors

    base, tuned = (checkpoint.open_model(_here(path), "flux") for path in (args.base, args.tuned))
    if base.cfg != tuned.cfg:
        raise InputError(f"{args.base} and {args.tuned} are transformers of different sizes: {base.cfg} and {tuned.cfg}")
    model = checkpoint.check(base)
    with tqdm(desc="extracting", unit=" tensors", leave=False, disable=None) as bar:
        made = lora.extract(checkpoint.open_params(base), checkpoint.open_params(tuned), model, args.rank, bar.update)
    if not made.tensors:
        raise InputError(f"{args.base} and {args.tuned} have the same matrices; there is nothing to extract")
    if made.left:
        print(f"warning: a LoRA cannot hold the differences of {len(made.left)} vectors, such as {made.left[0]}", file=sys.stderr)
    kept = {key: numbers.cast(np.ascontiguousarray(x), _dtype(args.dtype), key) for key, x in made.tensors.items()}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    safetensors.write_file(args.out, kept, {"format": "pt"})
    print(f"{args.out}: {len(kept) // 2} layers of rank {args.rank}, {made.captured:.1%} of the squared difference")


def inspect(args: Inspect) -> None:
    if not args.path:
        raise InputError("no PATH was given; name a checkpoint file or folder")
    if args.diff and len(args.path) != 2:
        raise InputError(f"--diff compares two checkpoints; {len(args.path)} are given")
    paths = [_here(path) for path in args.path]
    same = _diff(*paths, args.top) if args.diff else all([_describe(path, args.hash) for path in paths])
    if not same:
        sys.exit(1)


def _describe(path: Path, with_hash: bool) -> bool:
    from infu_jax import inspection

    whole = True
    for place in (inspection.parts(path) or {None: path}).values():
        rows, good = inspection.describe(place, with_hash=with_hash)
        print("\n  ".join([str(place), *(f"{name + ':':<12}{value}" for name, value in rows)]))
        whole &= good
    if absent := inspection.absent(path):
        print(f"{path}\n  problem:    sample.py also needs {', '.join(absent)}")
    return whole and not absent


def _diff(a: Path, b: Path, top: int) -> bool:
    """Print the differences; whether there are none."""
    from infu_jax import checkpoint, inspection

    left, right = ({f.layout.model: f for f in _open(path)} for path in (a, b))
    same = True
    for model in {**left, **right}:
        if model not in left or model not in right:
            print(f"{model}: only in {a if model in left else b}")
            same = False
            continue
        found, count = inspection.differences(left[model], right[model])
        kinds = [{str(p.dtype) for p in checkpoint.open_params(f[model]).values()} for f in (left, right)]
        stored = "" if kinds[0] == kinds[1] else f"; stored as {' and '.join(sorted(kinds[0]))}, and as {' and '.join(sorted(kinds[1]))}"
        print(f"{model}: {f'{len(found)} of {count} parameters (of stacks: layers) differ' if found else 'the same numbers'}{stored}")
        if found:
            print(f"  {'max |a - b|':>12} {'/ max |a|':>10}  parameter")
        for each in found[:top]:
            print(f"  {each.largest:>12.4g} {each.relative:>10.2g}  {each.name}")
        if len(found) > top:
            print(f"  ... and {len(found) - top} more; --top {len(found)} lists all")
        same &= not found
    return same


# Odds and ends of the commands -------------------------------------------------------------------


def _check(out: Path) -> None:
    if out.exists():
        raise InputError(f"{out} exists already; choose another name or remove it first")
    check_writable(out)


def _here(path: Path, parts: Sequence[str] | None = None) -> Path:
    """A path that exists, from one that may be a Hugging Face id."""
    from infu_jax import hub

    path = hub.local(path, [part for part in hub.FILES if part not in ("lora", "detector")] if parts is None else parts)
    if not path.exists():
        raise InputError(f"{path} does not exist")
    return path


def _open(src: Path, ema: bool = True) -> list:
    """The models of SRC, every one of them checked before the first is read."""
    from infu_jax import checkpoint, inspection

    found = [checkpoint.open_model(path, model) for model, path in inspection.parts(src, ema=ema).items()] or [checkpoint.open_model(src)]
    for f in found:
        checkpoint.check(f)
    return found


def _place(src: Path, found, keep: bool = False) -> str:
    """Where a model goes inside OUT: nowhere, if it is all of SRC; else under the name that folders have, or as in SRC."""
    from infu_jax.convert import source

    if found.path == src:
        return ""
    return str(found.path.relative_to(src)) if keep and found.path.is_relative_to(src) else Path(source.PLACES[found.layout.model][0]).stem


def _jax_job(found, params, place: str) -> Job:
    from infu_jax import checkpoint

    def write(target: Path, wrote: Callable[[int], Any]) -> None:
        counted = {k: dataclasses.replace(p, read=_counted(p.read, wrote)) for k, p in params.items()}
        checkpoint.save_params(target, found.layout.model, found.cfg, counted)

    return Job(found.path, found.layout.model, place, sum(math.prod(p.shape) * p.dtype.itemsize for p in params.values()), write)


def _torch_job(found, params, place: str, layout, dtype, shard_bytes: int, single: bool) -> Job:
    from infu_jax import export

    def write(target: Path, wrote: Callable[[int], Any]) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        export.write(target, layout, found.cfg, export.tensors(layout, found.cfg, params, dtype, wrote), shard_bytes, single)

    size = export.total_bytes(export.tensors(layout, found.cfg, params, dtype))
    return Job(found.path, found.layout.model, place, size, write)


def _write(jobs: list[Job], src: Path, out: Path, companions: bool = True) -> None:
    """Everything under a temporary name first; OUT appears when it is whole."""
    check_writable(out, sum(job.size for job in jobs))
    from infu_jax import inspection

    if absent := inspection.absent(src):
        print(f"warning: {src} lacks what sample.py needs: {', '.join(absent)}", file=sys.stderr)
    with appearing(out) as partial:
        for job in jobs:
            began = time.perf_counter()
            with tqdm(total=job.size, desc=job.model, unit="B", unit_scale=True, leave=False, disable=None) as bar:
                job.write(partial / job.place, bar.update)
            print(f"{job.path}: {job.model} converted in {time.perf_counter() - began:.1f} s", file=sys.stderr, flush=True)
        for name in COMPANIONS if companions and src.is_dir() and partial.is_dir() else ():
            if (src / name).is_dir():
                shutil.copytree(src / name, partial / name)
            elif (src / name).exists():
                shutil.copy(src / name, partial / name)
    print(f"{out}: {', '.join(job.model for job in jobs)}")


def _check_name(out: Path, model: str, single: bool) -> None:
    """A file is named as one, a folder is not: readers go by it."""
    wanted = {"resampler": (".bin",), "arcface": (".pth",)}.get(model, (".safetensors",) if single else ())
    if wanted and out.suffix not in wanted:
        raise InputError(f"{out}: {model} is written as one file here; give a name that ends in {' or '.join(wanted)}")
    if not wanted and out.suffix in (".safetensors", ".bin", ".pth"):
        raise InputError(f"{out}: {model} is written as a folder here; give the name of a folder, or choose another --style")


def _size(text: str) -> int:
    """Bytes of "5GB", counted in thousands as Hugging Face does."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", text.strip().upper())
    size = float(match[1]) * 1000 ** " KMGT".index(match[2] or " ") if match else 0
    if not 1 <= size < 2**63:
        raise InputError(f"--shard-size is {text[:40]!r}; something like 500MB or 5GB is needed")
    return int(size)


def _dtype(name: str):
    """The NumPy dtype of a name on the command line."""
    import ml_dtypes  # noqa: F401  (teaches NumPy bfloat16 and float8)
    import numpy as np

    return np.dtype(name)


def _counted(read, wrote: Callable[[int], Any]):
    def counted(box):
        values = read(box)
        wrote(values.nbytes)
        return values

    return counted


COMMANDS = {ToJax: to_jax, ToTorch: to_torch, MergeLora: merge_lora, ExtractLora: extract_lora, Inspect: inspect}


def main() -> None:
    args = tyro.cli(ToJax | ToTorch | MergeLora | ExtractLora | Inspect, description=__doc__)
    COMMANDS[type(args)](args)


if __name__ == "__main__":
    run(main)
