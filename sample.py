"""Make pictures of the person in a photo.

With the released weights on disk:

    python sample.py --base FLUX.1-dev --infu InfiniteYou/infu_flux_v1.0/aes_stage2 \\
        --arcface recognition_arcface_ir_se50.pth --id-image me.jpg --prompt "A knight in silver armour, castle hall"

Wherever weights are wanted, a Hugging Face id will do: black-forest-labs/FLUX.1-dev, ByteDance/InfiniteYou/infu_flux_v1.0/aes_stage2.

Without --base and --infu the embedded tiny stack is used, which shows that everything works and takes seconds. Its pictures are of 128x128 pixels by
default, those of --base as large as the release's, those of a training run as large as the ones it was trained on; --help shows the defaults that go
with what is given beside it.
Several prompts and seeds make every combination, and a contact sheet of them.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import math
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tqdm import tqdm

from infu_jax import runs
from infu_jax.assets import ASSETS, TINY
from infu_jax.cli import check_writable, file_and_scale, keep_programs, memory_advice, run, user_cache
from infu_jax.config import MeshConfig, SamplingConfig, Weights, check_types, from_json, is_of
from infu_jax.errors import InputError
from infu_jax.prompts import lines_of
from infu_jax.stack_options import with_defaults

ADVICE = "try --offload, --weights int8, --dtype bfloat16, a smaller --batch or picture, or more devices"
MAX_IMAGES = 100_000  # per prompt and seed: what nobody waits for is a slip, and its list of seeds could fill the memory
OptionalPath = Annotated[Path | None, tyro.conf.arg(metavar="PATH")]


@dataclass(frozen=True)
class Args:
    id_image: Path = ASSETS / "faces" / "ada.png"
    """Photo of the person. The largest face in it counts."""
    prompt: Annotated[tuple[str, ...], tyro.conf.arg(metavar="TEXT ...")] = ()
    """What to paint; several prompts make several pictures."""
    prompts_file: OptionalPath = None
    """Text file with one prompt a line; empty lines and lines that begin with # are skipped."""
    seed: Annotated[tuple[int, ...], tyro.conf.arg(metavar="INT ...")] = (0,)
    """Seeds; every prompt is painted with each. 0 means a new random seed for every picture."""
    num_images: int = 1
    """Pictures per prompt and seed; they take the seeds seed, seed + 1, ..."""
    negative_prompt: Annotated[str | None, tyro.conf.arg(metavar="TEXT")] = None
    """What to move away from; needs --true-cfg above 1."""
    control_image: OptionalPath = None
    """Photo whose largest face says where the face goes and how it is turned. Without it the model decides."""
    keypoints: Annotated[tuple[float, ...], tyro.conf.arg(metavar="X Y ...")] = ()
    """Instead of --control-image: x y of left eye, right eye, nose, left and right mouth corner, in pixels of the result."""
    out: Path = Path("outputs")
    """Folder for the pictures. Nothing in it is overwritten."""
    like: OptionalPath = None
    """A picture that this script made: take all settings from its metadata. Other options still override them."""

    base: Path = TINY / "FLUX.1-tiny"
    """FLUX.1 folder in diffusers layout, or a folder that convert_weights.py to-jax made of it."""
    infu: Path = TINY / "InfiniteYou-tiny"
    """InfiniteYou folder with InfuseNetModel and image_proj_model.bin, a converted one, or a training run (its newest checkpoint) or one of
    its checkpoints; --base, --transformer, --autoencoder and --arcface are then the run's own by default."""
    arcface: OptionalPath = None
    """recognition_arcface_ir_se50.pth or its converted folder; by default looked for inside --infu."""
    transformer: OptionalPath = None
    """Another transformer than --base has, e.g. flux1-schnell.safetensors, or a run that trained the base model."""
    autoencoder: OptionalPath = None
    """Another VAE than --base has, e.g. ae.safetensors."""
    ema: bool = True
    """Of a training run, take the average of the weights where it keeps one."""
    lora: Annotated[tuple[str, ...], tyro.conf.arg(metavar="FILE[:SCALE] ...")] = ()
    """LoRA files for FLUX (kohya, XLabs, diffusers, PEFT, ComfyUI), each with a scale, 1 if not given."""
    detector: Literal["yunet", "antelopev2"] = "yunet"
    """Face detector. yunet comes with the installation; antelopev2 is the release's and needs --detector-root."""
    detector_root: OptionalPath = None
    """Folder with models/antelopev2/*.onnx (InfiniteYou's supports/insightface)."""

    batch: int = 1
    """Pictures computed at once."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Of weights and computation. auto: bfloat16 on TPU and GPU, float32 on CPU."""
    weights: Weights = "auto"
    """How the blocks of the base model, InfuseNet and T5 are kept. auto: in --dtype. int8: in eight bits, computed in --dtype; half the memory of
    bfloat16 (FLUX.1-dev 11.2 GiB for 22.2), and an error about as large as that of computing in bfloat16 (docs/sampling.md)."""
    offload: bool = False
    """Keep text encoders, VAE and ArcFace in host memory while the transformer runs."""
    compilation_cache: OptionalPath = field(default_factory=lambda: user_cache() / "programs")
    """Folder in which compiled programs are kept, so that the next start with the same sizes need not compile; None keeps none."""
    sampling: Annotated[SamplingConfig, tyro.conf.arg(name="")] = field(default_factory=SamplingConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)

    @property
    def embedded(self) -> bool:
        """Whether all weights are the toy ones that come with the package."""
        return self.base == Args.base and self.infu == Args.infu and not (self.arcface or self.transformer or self.autoencoder)


def main() -> None:
    args = tyro.cli(Args, description=__doc__, default=_defaults(sys.argv[1:]))
    # So that the picture's metadata say which checkpoint it was.
    args = dataclasses.replace(args, infu=runs.pinned(args.infu), transformer=runs.pinned(args.transformer))
    # Everything that can be wrong is looked at before the models are loaded, the quickest first.
    jobs = _jobs(args)
    _check_options(args)
    check_writable(args.out)
    photo, control = _read_photos(args)

    # Heavy imports come after the checks above, so that --help and mistakes answer at once.
    import jax
    import jax.numpy as jnp
    import numpy as np

    from infu_jax import face, hub, pictures
    from infu_jax.pipeline import InfUPipeline
    from infu_jax.sharding import check_tokens, make_mesh

    keep_programs(args.compilation_cache)
    detector = face.load_detector(args.detector, args.detector_root and hub.local(args.detector_root, ["detector"]))
    keypoints = np.reshape(args.keypoints, (5, 2)) if args.keypoints else None
    _check_faces(args, detector, photo, control, keypoints)
    dtype = {"auto": jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16, "bfloat16": jnp.bfloat16, "float32": jnp.float32}[args.dtype]
    args = dataclasses.replace(args, mesh=_mesh(args, jax.device_count(), _room(), str(jnp.dtype(dtype))))
    mesh = make_mesh(**dataclasses.asdict(args.mesh))
    check_tokens(mesh, args.sampling.t5_length, args.sampling.height // 16 * (args.sampling.width // 16))
    loras = [file_and_scale(text) for text in args.lora]
    recipe = _recipe(args, str(jnp.dtype(dtype)))

    began = time.perf_counter()
    with memory_advice(ADVICE), tqdm(total=7, desc="loading", leave=False, disable=None) as bar:
        pipeline = InfUPipeline.load(
            args.base, args.infu, arcface=args.arcface, transformer=args.transformer, autoencoder=args.autoencoder, detector=detector,
            loras=loras, mesh=mesh, dtype=dtype, ema=args.ema, offload=args.offload, weights=args.weights,
            progress=lambda name: (bar.set_postfix_str(name), bar.update()),
        )  # fmt: skip
        id_embedding = pipeline.embed_face(photo)
    if args.embedded:
        print("using the embedded tiny stack; give --base and --infu for the released models", file=sys.stderr)
    print(f"models loaded in {time.perf_counter() - began:.1f} s", file=sys.stderr)

    writes = jax.process_index() == 0
    cells: dict[str, list] = {prompt: [(pictures.thumbnail(photo), "photo")] for prompt, _ in jobs}
    for start in range(0, len(jobs), args.batch):
        now = jobs[start : start + args.batch]
        # A last batch that is not full is filled up: pictures that are dropped cost less than compiling for another size.
        batch_prompts, batch_seeds = zip(*now, *now[-1:] * (min(args.batch, len(jobs)) - len(now)))
        began = time.perf_counter()
        with (
            memory_advice(ADVICE),
            tqdm(total=args.sampling.steps, desc=f"pictures {start + 1}-{start + len(now)} of {len(jobs)}", leave=False, disable=None) as bar,
        ):
            made = pipeline(
                batch_prompts, id_embedding=id_embedding, control_image=control, keypoints=keypoints, negative_prompt=args.negative_prompt,
                seeds=batch_seeds, settings=args.sampling, progress=lambda done, _: bar.update(done - bar.n),
            )  # fmt: skip
        seconds = (time.perf_counter() - began) / len(now)
        for image, (prompt, seed) in zip(made.images, now):
            likeness = pipeline.similarity(image, id_embedding)
            said = "no face found" if likeness is None else f"identity similarity {likeness:.3f}"
            cells[prompt].append((pictures.thumbnail(image), f"seed {seed}, {said}"))
            if writes:
                path = pictures.save_next(args.out, f"seed{seed}", image, {**recipe, "prompt": prompt, "seed": seed, "identity_similarity": likeness})
                print(f"{path}  seed {seed}  {seconds:.1f} s  {said}", flush=True)
    if len(jobs) > 1 and writes:
        path = pictures.save_next(args.out, "sheet", pictures.contact_sheet(list(cells.items())), {**recipe, "contact_sheet_of": jobs})
        print(f"{path}  contact sheet of {len(jobs)} pictures", flush=True)


# Options ------------------------------------------------------------------------------------------


def _defaults(argv: list[str]) -> Args:
    """The defaults of all options; with `--like picture.png` those of that picture, so that other options still override them."""
    given = Counter(arg.partition("=")[0].replace("_", "-") for arg in argv if arg.startswith("--"))
    if twice := [name for name, times in given.items() if times > 1]:
        raise InputError(f"{twice[0]} is given {given[twice[0]]} times; give it once, with all its values after it")
    scan = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    scan.add_argument("--like", type=Path)
    scan.add_argument("--detector", nargs="?")
    scanned = scan.parse_known_args(argv)[0]
    path = scanned.like
    if path is None:
        return with_defaults(Args(), argv)
    from infu_jax import pictures

    recipe = pictures.read_recipe(path)
    if "contact_sheet_of" in recipe:
        raise InputError(f"{path} is a contact sheet; give one of its pictures to --like")
    try:
        stored = Args(
            **{name: _path_from(recipe[name]) for name in _PATHS},
            prompt=(recipe["prompt"],),
            seed=(recipe["seed"],),
            negative_prompt=recipe["negative_prompt"],
            keypoints=_tuple(recipe["keypoints"]),
            sampling=from_json(SamplingConfig, recipe["sampling"]),
            ema=recipe.get("ema", True),
            lora=_tuple(recipe.get("lora", [])),  # pictures of older versions have none
            detector=recipe["detector"],
            dtype=recipe["dtype"],
            weights=recipe.get("weights", "auto"),
        )
        check_types(stored)
        check_types(stored.sampling)
        lora_sha256 = _tuple(recipe.get("lora_sha256", []))
        if not is_of(lora_sha256, tuple[str | None, ...]):
            raise TypeError(f"lora_sha256 is {lora_sha256!r:.80}")
    except (KeyError, TypeError, OverflowError) as e:
        raise InputError(f"{path}: its settings are not those of this version ({e!r}); give the options themselves instead of --like") from None
    if (scanned.detector or stored.detector) == "yunet":
        stored = dataclasses.replace(stored, detector_root=None)
    for name in ("id_image", "control_image"):
        file, digest = getattr(stored, name), recipe.get(f"{name}_sha256")
        if _flag(name) not in given and file is not None and file.is_file() and _sha256(file) != digest:
            raise InputError(f"{file} is not the file that {path} was made from; give the right one with {_flag(name)} (or this one, if you mean it)")
    for text, digest in zip(stored.lora, lora_sha256):
        file = file_and_scale(text)[0]
        if "--lora" not in given and file.is_file() and digest is not None and _sha256(file) != digest:
            raise InputError(f"{file} is not the file that {path} was made with; give the right one with --lora (or this one, if you mean it)")
    # Options that replace others, rather than add to them.
    replaced = {"prompts_file": "prompt", "keypoints": "control_image", "control_image": "keypoints"}
    return dataclasses.replace(stored, **{old: getattr(Args(), old) for new, old in replaced.items() if _flag(new) in given})


def _tuple(stored: Any) -> Any:
    """JSON's list as the tuple that it was."""
    return tuple(stored) if isinstance(stored, list) else stored


def _jobs(args: Args) -> list[tuple[str, int]]:
    """Prompt and seed of every picture, the pictures of one prompt together."""
    prompts = list(args.prompt)
    if args.prompts_file is not None:
        found = [line.strip() for line in lines_of(args.prompts_file) if line.strip() and not line.lstrip().startswith("#")]
        if not found:
            raise InputError(f"{args.prompts_file} has no prompts; write one a line")
        prompts += found
    if not prompts:
        raise InputError('no prompt was given; use --prompt "..." or --prompts-file FILE')
    for what, texts in (("prompt", prompts), ("negative prompt", [args.negative_prompt or ""])):
        if broken := [text for text in texts if any("\ud800" <= c <= "\udfff" for c in text)]:
            raise InputError(f"the {what} {broken[0]!r} is not UTF-8 text")
    if not args.seed:
        raise InputError("no seed was given; use --seed INT, or leave it out for random ones")
    if not 1 <= args.num_images <= MAX_IMAGES:
        raise InputError(f"num_images is {args.num_images}; from 1 to {MAX_IMAGES} are possible")
    if wrong := [seed for seed in args.seed if not 0 <= seed <= 2**32 - args.num_images]:
        raise InputError(f"seed {wrong[0]} with num_images {args.num_images} is out of range; seeds go from 0 to {2**32 - 1}")
    jobs = [(prompt, seed) for prompt in dict.fromkeys(prompts) for given in args.seed for seed in _seeds(given, args.num_images)]
    return list(dict.fromkeys(jobs))


def _seeds(given: int, count: int) -> list[int]:
    return list(range(given, given + count)) if given else random.SystemRandom().sample(range(1, 2**31), count)


def _check_options(args: Args) -> None:
    """Options that do not go together."""
    if args.batch < 1:
        raise InputError(f"batch is {args.batch}; at least 1 is needed")
    if args.keypoints and len(args.keypoints) != 10:
        raise InputError(f"keypoints has {len(args.keypoints)} numbers; 10 are needed: x y of left eye, right eye, nose, left and right mouth corner")
    if args.keypoints and args.control_image is not None:
        raise InputError("give --control-image or --keypoints, not both")
    if args.detector == "yunet" and args.detector_root is not None:
        raise InputError(f"detector_root is {args.detector_root} but yunet needs none; give --detector antelopev2, or leave --detector-root out")
    true_cfg = args.sampling.true_cfg
    if true_cfg > 1 and args.negative_prompt is None:
        raise InputError(f"true_cfg is {true_cfg} but there is no negative prompt; give --negative-prompt (it may be empty) or leave --true-cfg at 1")
    if true_cfg == 1 and args.negative_prompt is not None:
        raise InputError("the negative prompt has no effect while true_cfg is 1; give --true-cfg above 1, or leave --negative-prompt out")


def _mesh(args: Args, devices: int, room: int | None, dtype: str) -> MeshConfig:
    """The mesh that was asked for. Or, where each of the devices has `room` bytes, what `plan` proposes: a picture's tokens are split where all weights
    fit on a device, and its heads otherwise. Or, where that is not known or nothing fits, one that splits heads as far as FLUX's 24 and T5's 64 allow
    and weights over the rest."""
    if args.mesh != MeshConfig():
        return args.mesh
    if devices == 1 or args.base == Args.base:
        return MeshConfig(data=-1)  # a copy on each device: the embedded models are too small to split
    if room is not None:
        from infu_jax.plan import budget, settings
        from infu_jax.plan.sampling import model_sizes

        asked = settings.SampleArgs(batch=args.batch, sampling=args.sampling, dtype=dtype, weights=args.weights, offload=args.offload)
        choice = budget.choose_sampling(asked, model_sizes(asked), devices, float(room))  # for models of the release's sizes
        if choice.fits:
            return choice.mesh
    return MeshConfig(fsdp=-1, tensor=math.gcd(devices, 8))


def _room() -> int | None:
    """Bytes of a device's memory that programs may use, where it says so: TPUs and GPUs do."""
    import jax

    return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")


# Pictures and weights that are given --------------------------------------------------------------


def _read_photos(args: Args):
    from infu_jax import face

    return tuple(None if path is None else face.read_image(path) for path in (args.id_image, args.control_image))


def _check_faces(args: Args, detector, photo, control, keypoints) -> None:
    """Say which picture has no face, before anything slow."""
    from infu_jax import face

    height, width = args.sampling.height, args.sampling.width
    path = args.id_image
    try:
        face.largest_face(detector, photo)
        path = args.control_image
        if control is not None:
            face.control_image(control, height, width, detector)
    except face.FaceError as e:
        raise InputError(f"{path}: {e}") from None
    if keypoints is not None:
        face.control_image_from_keypoints(keypoints, height, width)


# Metadata of the pictures -------------------------------------------------------------------------

_PATHS = ("id_image", "control_image", "base", "infu", "arcface", "transformer", "autoencoder", "detector_root")
_EMBEDDED = "embedded:"  # instead of where this machine has the package


def _recipe(args: Args, dtype: str) -> dict[str, Any]:
    """Everything needed to make the pictures again, but for prompt and seed, which differ between them."""
    import jax

    import infu_jax

    return {
        "synthetic": True,
        "software": f"infu_jax {infu_jax.__version__}, jax {jax.__version__}, {jax.default_backend()}",
        **{name: _path_text(getattr(args, name)) for name in _PATHS},
        "lora": args.lora,
        "lora_sha256": [_sha256(path) if path.is_file() else None for path, _ in map(file_and_scale, args.lora)],
        "id_image_sha256": _sha256(args.id_image),
        "control_image_sha256": None if args.control_image is None else _sha256(args.control_image),
        "negative_prompt": args.negative_prompt,
        "keypoints": args.keypoints,
        "sampling": dataclasses.asdict(args.sampling),
        "ema": args.ema,
        "detector": args.detector,
        "dtype": dtype,
        "weights": args.weights,
        "batch": args.batch,
        "mesh": dataclasses.asdict(args.mesh),
    }


def _path_text(path: Path | None) -> str | None:
    if path is None:
        return None
    return _EMBEDDED + path.relative_to(ASSETS).as_posix() if path.is_relative_to(ASSETS) else str(path)


def _path_from(text: str | None) -> Path | None:
    if text is None:
        return None
    if not isinstance(text, str):
        raise TypeError(f"the path {text!r:.80}")
    return ASSETS / text.removeprefix(_EMBEDDED) if text.startswith(_EMBEDDED) else Path(text)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


if __name__ == "__main__":
    run(main)
