"""Make pictures of the person in a photo.

With the released weights on disk:

    python sample.py --base FLUX.1-dev --infu InfiniteYou/infu_flux_v1.0/aes_stage2 \\
        --arcface recognition_arcface_ir_se50.pth --id-image me.jpg --prompt "A knight in silver armour, castle hall"

Without --base and --infu the embedded tiny stack is used, which shows that everything works and takes seconds.
Several prompts and seeds make every combination, and a contact sheet of them.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import secrets
import sys
import time
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tqdm import tqdm

from infu_jax.cli import run
from infu_jax.config import MeshConfig, SamplingConfig
from infu_jax.errors import InputError

ASSETS = Path(str(files("infu_jax"))) / "assets"


@dataclass(frozen=True)
class Args:
    id_image: Path = ASSETS / "faces" / "ada.png"
    """Photo of the person. The largest face in it counts."""
    prompt: tuple[str, ...] = ()
    """What to paint; several prompts make several pictures."""
    prompts_file: Path | None = None
    """Text file with one prompt a line; empty lines and lines that begin with # are skipped."""
    seed: tuple[int, ...] = (0,)
    """Seeds; every prompt is painted with each. 0 means a new random seed for every picture."""
    num_images: int = 1
    """Pictures per prompt and seed; they take the seeds seed, seed + 1, ..."""
    negative_prompt: str | None = None
    """What to move away from; needs --true-cfg above 1."""
    control_image: Path | None = None
    """Photo whose largest face says where the face goes and how it is turned. Without it the model decides."""
    keypoints: tuple[float, float, float, float, float, float, float, float, float, float] | None = None
    """Instead of --control-image: x y of left eye, right eye, nose, left and right mouth corner, in pixels of the result."""
    like: Path | None = None
    """A picture that this script made: take all settings from its metadata. Other options still override them."""
    out: Path = Path("outputs")
    """Folder for the pictures. Nothing in it is overwritten."""
    sampling: Annotated[SamplingConfig, tyro.conf.arg(name="")] = field(default_factory=SamplingConfig)

    base: Path = ASSETS / "tiny" / "FLUX.1-tiny"
    """FLUX.1 folder in diffusers layout, or a folder that convert_weights.py to-jax made of it."""
    infu: Path = ASSETS / "tiny" / "InfiniteYou-tiny"
    """InfiniteYou folder with InfuseNetModel and image_proj_model.bin, or a converted one."""
    arcface: Path | None = None
    """recognition_arcface_ir_se50.pth or its converted folder; by default looked for inside --infu."""
    transformer: Path | None = None
    """Another transformer than --base has, e.g. flux1-schnell.safetensors."""
    autoencoder: Path | None = None
    """Another VAE than --base has, e.g. ae.safetensors."""
    detector: Literal["yunet", "antelopev2"] = "yunet"
    """Face detector. yunet comes with the installation; antelopev2 is the release's and needs --detector-root."""
    detector_root: Path | None = None
    """Folder with models/antelopev2/*.onnx (InfiniteYou's supports/insightface)."""

    batch: int = 1
    """Pictures computed at once."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Of weights and computation. auto: bfloat16 on TPU and GPU, float32 on CPU."""
    offload: bool = False
    """Keep text encoders, VAE and ArcFace in host memory while the transformer runs."""
    mesh: MeshConfig = field(default_factory=MeshConfig)


def main() -> None:
    args = tyro.cli(Args, description=__doc__, default=_defaults())
    prompts, photo, control = _prompts(args), _read(args.id_image), _read(args.control_image)
    jobs = [(prompt, seed) for prompt in prompts for given in args.seed for seed in _seeds(given, args.num_images)]
    if args.batch < 1:
        raise InputError(f"batch is {args.batch}; at least 1 is needed")
    _check_writable(args.out)

    # Heavy imports come after the checks above, so that --help and mistakes answer at once.
    import jax
    import jax.numpy as jnp
    import numpy as np

    from infu_jax import face, pictures
    from infu_jax.pipeline import InfUPipeline
    from infu_jax.sharding import make_mesh

    detector = face.load_detector(args.detector, args.detector_root)
    face.largest_face(detector, photo)
    if control is not None:
        face.largest_face(detector, control)
    dtype = {"auto": jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16, "bfloat16": jnp.bfloat16, "float32": jnp.float32}[args.dtype]
    if args.base == Args.base and args.infu == Args.infu:
        print("using the embedded tiny stack; give --base and --infu for the released models", file=sys.stderr)
    with tqdm(total=7, desc="loading", disable=None) as bar:
        pipeline = InfUPipeline.load(
            args.base, args.infu, arcface=args.arcface, transformer=args.transformer, autoencoder=args.autoencoder, detector=detector,
            mesh=make_mesh(**dataclasses.asdict(args.mesh)), dtype=dtype, offload=args.offload, progress=lambda name: (bar.set_postfix_str(name), bar.update()),
        )  # fmt: skip

    writes = jax.process_index() == 0
    keypoints = None if args.keypoints is None else np.reshape(args.keypoints, (5, 2))
    id_embedding = pipeline.embed_face(photo)
    recipe = _recipe(args, str(jnp.dtype(dtype)))
    number = pictures.first_free_number(args.out)
    cells: dict[str, list] = {prompt: [(photo, "photo")] for prompt in prompts}
    for start in range(0, len(jobs), args.batch):
        batch_prompts, batch_seeds = zip(*jobs[start : start + args.batch])
        began = time.perf_counter()
        with tqdm(total=args.sampling.steps, desc=f"pictures {start + 1}-{start + len(batch_seeds)} of {len(jobs)}", leave=False, disable=None) as bar:
            made = pipeline(
                batch_prompts, id_embedding=id_embedding, control_image=control, keypoints=keypoints, negative_prompt=args.negative_prompt,
                seeds=batch_seeds, settings=args.sampling, progress=lambda done, _: bar.update(done - bar.n),
            )  # fmt: skip
        seconds = (time.perf_counter() - began) / len(batch_seeds)
        for image, prompt, seed in zip(made.images, made.prompts, made.seeds):
            likeness = pipeline.similarity(image, id_embedding)
            said = "no face found" if likeness is None else f"identity similarity {likeness:.3f}"
            cells[prompt].append((image, f"seed {seed}, {said}"))
            path = args.out / f"{number:04d}_seed{seed}.png"
            number += 1
            if writes:
                pictures.save_png(path, image, {**recipe, "prompt": prompt, "seed": seed, "identity_similarity": likeness})
                print(f"{path}  seed {seed}  {seconds:.1f} s  {said}", flush=True)
    if len(jobs) > 1 and writes:
        path = args.out / f"{number:04d}_sheet.png"
        pictures.save_png(path, pictures.contact_sheet(list(cells.items())), {**recipe, "contact_sheet_of": [list(job) for job in jobs]})
        print(f"{path}  contact sheet of {len(jobs)} pictures")


def _defaults() -> Args:
    """The defaults of all options; with `--like picture.png` those of that picture, so that other options still override them."""
    scan = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    scan.add_argument("--like", type=Path)
    path = scan.parse_known_args()[0].like
    if path is None:
        return Args()
    from infu_jax import pictures

    recipe = pictures.read_recipe(path)
    if "seed" not in recipe:
        raise InputError(f"{path} is a contact sheet; give one of its pictures to --like")
    return dataclasses.replace(
        Args(),
        **{name: _path_from(recipe[name]) for name in _PATHS if recipe[name] is not None},
        prompt=(recipe["prompt"],),
        seed=(recipe["seed"],),
        negative_prompt=recipe["negative_prompt"],
        keypoints=None if recipe["keypoints"] is None else tuple(recipe["keypoints"]),
        sampling=SamplingConfig(**recipe["sampling"]),
        detector=recipe["detector"],
        dtype=recipe["dtype"],
    )


_PATHS = ("id_image", "control_image", "base", "infu", "arcface", "transformer", "autoencoder", "detector_root")
_EMBEDDED = "embedded:"  # instead of where this machine has the package


def _path_text(path: Path | None) -> str | None:
    if path is None:
        return None
    return _EMBEDDED + path.relative_to(ASSETS).as_posix() if path.is_relative_to(ASSETS) else str(path)


def _path_from(text: str) -> Path:
    return ASSETS / text.removeprefix(_EMBEDDED) if text.startswith(_EMBEDDED) else Path(text)


def _recipe(args: Args, dtype: str) -> dict[str, Any]:
    """Everything needed to make the pictures again, but for prompt and seed, which differ between them."""
    import jax

    import infu_jax

    return {
        "synthetic": True,
        "software": f"infu_jax {infu_jax.__version__}, jax {jax.__version__}, {jax.default_backend()}",
        **{name: _path_text(getattr(args, name)) for name in _PATHS},
        "id_image_sha256": hashlib.sha256(args.id_image.read_bytes()).hexdigest(),
        "negative_prompt": args.negative_prompt,
        "keypoints": args.keypoints,
        "sampling": dataclasses.asdict(args.sampling),
        "detector": args.detector,
        "dtype": dtype,
    }


def _prompts(args: Args) -> list[str]:
    prompts = list(args.prompt)
    if args.prompts_file is not None:
        try:
            lines = args.prompts_file.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            raise InputError(f"{args.prompts_file} is not UTF-8 text") from None
        found = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not found:
            raise InputError(f"{args.prompts_file} has no prompts; write one a line")
        prompts += found
    if not prompts:
        raise InputError('no prompt was given; use --prompt "..." or --prompts-file FILE')
    return list(dict.fromkeys(prompts))


def _seeds(given: int, count: int) -> list[int]:
    if count < 1:
        raise InputError(f"num_images is {count}; at least 1 is needed")
    return [1 + secrets.randbelow(2**31 - 1) if given == 0 else given + n for n in range(count)]


def _read(path: Path | None):
    from infu_jax import face

    return None if path is None else face.read_image(path)


def _check_writable(folder: Path) -> None:
    """Find out before the work, not after it."""
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f".{secrets.token_hex(4)}.partial"
    probe.write_text(json.dumps("can this folder be written?"))
    probe.unlink()


if __name__ == "__main__":
    run(main)
