"""Make synthetic pictures of people from their photos (SPMS), and keep those that pass the gates.

With the released weights on disk, or with a training run of your own:

    python -m data_pipeline.synthesize data/photos --out data/spms --pictures 16 --prompts-file prompts.txt \\
        --base FLUX.1-dev --infu InfiniteYou/infu_flux_v1.0/sim_stage1 --arcface recognition_arcface_ir_se50.pth

PHOTOS is a dataset that data_pipeline.build wrote, or what it reads: a folder with a folder for each person, or a manifest. Each picture is
made from one photo of the person and a prompt. It is kept if it shows one face, turned not too far and sharp, which is like the photo's but
no copy of it, if your scorers say so, and if no other kept picture looks the same. OUT is a dataset of pairs, for training with
--data.pairing spms; OUT/report/ shows what became of every picture.

Prompt and noise are functions of (seed, person, number). A run that was stopped, even by kill -9, goes on where it was when the same command
is given again, and gives the same bytes as if nothing had happened. Several machines share the work if each is told its --process-index.

Hooks are functions in your own Python files, found as for `import` (start in their folder, or set PYTHONPATH). They are run as they are, so
name none that you have not read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tqdm import tqdm

import infu_jax
from data_pipeline.filters import Filters
from data_pipeline.gates import Gates
from infu_jax.cli import check_writable, run
from infu_jax.config import MeshConfig, SamplingConfig
from infu_jax.errors import InputError
from infu_jax.train_config import DistributedConfig

if TYPE_CHECKING:
    from data_pipeline.chunks import Settings
    from data_pipeline.photos import Photos
    from data_pipeline.processes import Place
    from data_pipeline.report import Totals
    from data_pipeline.studio import Models, Order
    from infu_jax import face

OptionalPath = Annotated[Path | None, tyro.conf.arg(metavar="PATH")]
Functions = Annotated[tuple[str, ...], tyro.conf.arg(metavar="MODULE:FUNCTION ...")]


@dataclass(frozen=True)
class Args:
    photos: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PHOTOS")]
    """Real photos of people: a dataset of data_pipeline.build, a folder with a folder for each person, or a .jsonl or .csv manifest."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """Folder for the dataset; it must not exist. While it is made, .DIR.synthesizing stands beside it."""
    pictures: int = 8
    """Pictures to make of each person, before the gates."""
    prompts_file: OptionalPath = None
    """Text file with one prompt a line, `woman<TAB>prompt` or `man<TAB>prompt` for one gender only; or a .csv file with the columns prompt
    and gender. By default the captions of the person's own photos."""
    controls: OptionalPath = None
    """Folder of photos of anybody, whose faces say where the face goes: by name the first for the first prompt of --prompts-file and so on, from the
    first again where there are fewer. Without it the model is left to choose."""
    genders: OptionalPath = None
    """A .csv file with the columns person and gender (woman or man), where the photos' manifest had no column gender. People whose gender is
    not known get the prompts for everybody."""
    photos_per_person: int = 4
    """At most so many photos of a person are used, in turn: the first ones."""
    seed: int = 0
    """Another seed gives other prompts and other noise."""

    base: OptionalPath = None
    """FLUX.1 folder in diffusers layout, or a converted one; by default the run's own, or the embedded tiny one."""
    infu: OptionalPath = None
    """The stage-1 model: an InfiniteYou folder, a converted one, or a training run (its newest checkpoint) or one of its checkpoints. By
    default the embedded tiny one, which knows drawn people only."""
    arcface: OptionalPath = None
    """recognition_arcface_ir_se50.pth or its converted folder; by default looked for inside --infu."""
    judge: OptionalPath = None
    """Another ArcFace for the gates on similarity than the one that pictures are conditioned on."""
    transformer: OptionalPath = None
    """Another transformer than --base has, e.g. flux1-schnell.safetensors, or a run that trained the base model."""
    autoencoder: OptionalPath = None
    """Another VAE than --base has, e.g. ae.safetensors."""
    lora: Annotated[tuple[str, ...], tyro.conf.arg(metavar="FILE[:SCALE] ...")] = ()
    """LoRA files of the transformer and the text encoders, with their strengths (1 by default): the paper takes aesthetic and enhancing ones."""
    ema: bool = True
    """Of a training run, take the average of the weights where it keeps one."""
    sampling: Annotated[SamplingConfig, tyro.conf.arg(name="")] = field(default_factory=SamplingConfig)
    negative_prompt: Annotated[str | None, tyro.conf.arg(metavar="TEXT")] = None
    """What to move away from; needs --true-cfg above 1."""

    before: Functions = ()
    """Your functions that change the photo before its identity is taken: photo -> photo, RGB uint8 arrays (height, width, 3). Face
    restoration, for instance. The record keeps the photo itself."""
    after: Functions = ()
    """Your functions that change each picture before the gates: (picture, photo) -> picture. Face swap, upscaling, face restoration."""
    scorers: Annotated[tuple[str, ...], tyro.conf.arg(metavar="MODULE:FUNCTION=LEAST ...")] = ()
    """Your functions (picture, prompt) -> number, each with the least that is kept: `--scorers scores:aesthetic=5.5`."""
    gates: Gates = field(default_factory=Gates)
    photo_filters: Filters = field(default_factory=Filters)
    """What photos must be that are in no dataset yet."""
    detector: Literal["yunet", "antelopev2"] = "yunet"
    """Face detector. yunet comes with the installation; antelopev2 is the one of InfiniteYou and needs --detector-root."""
    detector_root: OptionalPath = None
    """Folder with models/antelopev2/*.onnx (InfiniteYou's supports/insightface)."""

    format: Literal["jpeg", "png"] = "jpeg"
    """Of the stored pictures."""
    quality: int = 95
    """Of JPEG."""
    validation_share: float = 0.01
    """Share of the people whose records go to the split validation, drawn by their names as build does: with its value the same people,
    but for the one who is moved where a split would be empty."""
    shard_megabytes: float = 256.0
    """Size of the dataset's files, about."""

    batch: int = 1
    """Pictures computed at once on each device."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Of weights and computation. auto: bfloat16 on TPU and GPU, float32 on CPU."""
    offload: bool = False
    """Keep text encoders, VAE and ArcFace in host memory while the transformer runs."""
    mesh: MeshConfig = field(default_factory=lambda: MeshConfig(data=-1))
    """How this process's devices share the work. By default each has all weights and its part of the batch; --mesh.data 1 --mesh.fsdp -1
    splits the weights too."""
    chunk_pictures: int = 32
    """Pictures that are made before they are written, in whole batches: what an interruption may lose for each process."""
    threads: int = 0
    """Threads that look at pictures; 0 is one for each core, at most 16."""
    process_index: int = 0
    """Which of --process-count processes this is, where they know nothing of each other but the folder of --out."""
    process_count: int = 1
    """Processes that share the work and see the same folder of --out. On TPU pods, Slurm, GKE and Open MPI both are found out."""
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    restart: bool = False
    """Throw away what an interrupted run has done, and begin again. For one process."""

    def __post_init__(self):
        for name, least, most in (
            ("pictures", 1, 10**6), ("photos_per_person", 1, 10**4), ("seed", 0, 2**32 - 1), ("quality", 1, 100), ("validation_share", 0, 1),
            ("shard_megabytes", 1e-3, 10**5), ("batch", 1, 10**4), ("chunk_pictures", 1, 10**5), ("threads", 0, 1024),
        ):  # fmt: skip
            if not least <= (value := getattr(self, name)) <= most:
                raise InputError(f"{name.replace('_', '-')} is {value}; {least:g} to {most:g} is possible")
        if self.sampling.true_cfg > 1 and self.negative_prompt is None:
            raise InputError(f"true-cfg is {self.sampling.true_cfg} but there is no --negative-prompt; give one (it may be empty) or leave --true-cfg at 1")
        if self.restart and self.process_count > 1:
            raise InputError("--restart is for one process: others may have begun already. Remove the work folder first, then start all")


def main() -> None:
    args = tyro.cli(Args, prog="python -m data_pipeline.synthesize", description=__doc__)

    def open_models(args: Args) -> Models:
        from data_pipeline import synthesis_models  # heavy, and needed only where photos and settings are good

        return synthesis_models.open_models(args)

    synthesize(args, open_models)


@dataclass(frozen=True)
class _Job:
    """What is known before models are loaded."""

    photos: Photos
    order: Order
    place: Place
    stated: dict[str, Any]


def synthesize(args: Args, models: Callable[[Args], Models]) -> Totals | None:
    """Makes a dataset, or goes on with one; None while other processes are still at it.

    models: loads what makes and judges pictures, see `studio.Models`. Raises InputError when photos, settings or output cannot be used,
    and when no picture is kept.
    """
    from data_pipeline import gates
    from data_pipeline.assembly import NothingKept
    from data_pipeline.processes import Place, join
    from data_pipeline.work import work_folder

    place = Place(args.process_index, args.process_count)
    if args.out.exists() or args.out.is_symlink():
        raise InputError(f"{args.out} exists already and is not overwritten; choose another folder")
    check_writable(args.out)
    photos, order = _order(args)
    together, place = join(args.distributed, place)
    loaded = models(args)
    batches = -(-args.chunk_pictures // loaded.batch)
    stated = {**_stated(args, photos, order), "chunk_rows": batches * loaded.batch, "models": dict(loaded.stated)}
    order = dataclasses.replace(order, provenance={name: stated[name] for name in ("software", "before", "after")})
    job = _Job(photos, order, place, stated)
    work = args.out.parent / f".{args.out.name}.synthesizing"
    shared = place.count > 1
    lock = f"lock-{place.index}-of-{place.count}" if shared else "lock"
    try:
        with work_folder(work, stated, args.restart, maker="synthesis", lock=lock, shared=shared):
            missing = _make(args, job, loaded, work)
            if together:
                from jax.experimental import multihost_utils

                multihost_utils.sync_global_devices("pictures")
                missing = 0  # all have done theirs
            if missing and not ((work / "ready").exists() or args.out.exists()):  # in this order: the one becomes the other
                print(f"{missing} chunks are left to other processes")
                return None
            totals = _finish(args, job, work)
    except NothingKept as error:
        print(gates.table(len(photos) * args.pictures, error.counts))
        raise
    if work.exists():
        shutil.rmtree(work, ignore_errors=shared)  # by several at once
    print(gates.table(totals.rows, totals.rejected))
    print(f"{args.out}  dataset; {args.out / 'report'}  what became of every picture")
    return totals


# What is to be made -------------------------------------------------------------------------------


def _order(args: Args) -> tuple[Photos, Order]:
    """Everything that can be wrong with the input, before a model is loaded."""
    from data_pipeline import hooks, synthesis_sheets
    from data_pipeline.chunks import check_detector
    from data_pipeline.photos import SourcePhotos, open_photos
    from data_pipeline.studio import Order
    from infu_jax import prompts

    said = None if args.prompts_file is None else prompts.read_prompts(args.prompts_file)
    genders = {} if args.genders is None else prompts.read_genders(args.genders, "person")
    before, after = (tuple(hooks.load_hook(name) for name in names) for names in (args.before, args.after))
    scorers = tuple(hooks.load_scorer(given) for given in args.scorers)
    if twice := [scorer.name for n, scorer in enumerate(scorers) if scorer.name in [other.name for other in scorers[:n]]]:
        raise InputError(f"the scorer {twice[0]} is given twice")
    settings = _photo_settings(args)
    check_detector(settings)
    controls = _controls(args)
    photos = open_photos(args.photos, args.photos_per_person, settings)
    if not len(photos):
        raise InputError(f"{args.photos} shows nobody")
    if isinstance(photos, SourcePhotos) and photos.source.kind == "folder" and args.out.resolve().is_relative_to(photos.source.root):
        raise InputError(f"{args.out} lies inside {args.photos}; choose a folder outside")
    order = Order(
        pictures=args.pictures, seed=args.seed, gates=args.gates, prompts=said, genders=genders, format=args.format, quality=args.quality,
        before=before, after=after, scorers=scorers, shown=synthesis_sheets.shown_people(len(photos)), controls=controls,
    )  # fmt: skip
    return photos, order


def _controls(args: Args) -> list[face.Control]:
    """The photos that say where faces go; each must show one at the size that is made."""
    from infu_jax import face

    if args.controls is None:
        return []
    if args.prompts_file is None:
        raise InputError("--controls go with the prompts of --prompts-file, one by one; give that too")
    return face.read_controls(args.controls, args.sampling.height, args.sampling.width, face.load_detector(args.detector, args.detector_root))


def _photo_settings(args: Args) -> Settings:
    """Of the builder, with its defaults."""
    from data_pipeline import build
    from data_pipeline.chunks import Settings

    usual = build.Args(args.photos, args.out)
    return Settings(
        filters=args.photo_filters, max_side=usual.max_side, quality=usual.quality, max_pixels=round(usual.max_megapixels * 1e6),
        max_bytes=round(usual.max_megabytes * 1e6), detector=args.detector, detector_root=args.detector_root,
    )  # fmt: skip


def _stated(args: Args, photos: Photos, order: Order) -> dict[str, Any]:
    """What the result depends on, beside the models and the size of chunks."""
    from data_pipeline import records

    said = repr(([(prompt.text, prompt.gender) for prompt in order.prompts or ()], sorted(order.genders.items())))
    return {
        "software": f"infu_jax {infu_jax.__version__}, records {records.VERSION}",
        "photos": photos.stated()
        | ({} if "most" in photos.stated() and photos.stated()["kind"] == "dataset" else {"filters": dataclasses.asdict(args.photo_filters)}),
        "prompts": "captions of the photos" if order.prompts is None else f"{len(order.prompts)} prompts, sha256 {hashlib.sha256(said.encode()).hexdigest()}",
        "controls": [control.digest for control in order.controls],
        "before": [hook.stated() for hook in order.before],
        "after": [hook.stated() for hook in order.after],
        "scorers": [f"{scorer.stated()} at least {scorer.least:g}" for scorer in order.scorers],
        "gates": dataclasses.asdict(args.gates),
        **{name: getattr(args, name) for name in ("pictures", "seed", "detector", "format", "quality", "validation_share", "shard_megabytes")},
    }


# Making -------------------------------------------------------------------------------------------


def _make(args: Args, job: _Job, models: Models, work: Path) -> int:
    """Does this process's chunks that are not done yet; returns how many chunks are still missing."""
    from data_pipeline.chunks import chunk_path
    from data_pipeline.studio import Maker
    from infu_jax import face

    total, size, folder = len(job.photos) * args.pictures, job.stated["chunk_rows"], work / "chunks"
    if (work / "ready").exists():
        return 0
    chunks = {number: range(at, min(at + size, total)) for number, at in enumerate(range(0, total, size))}
    done = lambda number: chunk_path(folder, number).with_suffix(".jsonl").exists()  # noqa: E731
    mine = list(job.place.share(chunks))
    todo = [number for number in mine if not done(number)]
    made, accepted, began = 0, 0, time.perf_counter()
    kept_before = sum(_passed(chunk_path(folder, number).with_suffix(".jsonl")) for number in mine if number not in set(todo))
    before = sum(len(chunks[number]) for number in mine) - sum(len(chunks[number]) for number in todo)
    load_detector = partial(face.load_detector, args.detector, args.detector_root)
    with (
        Maker(job.photos, job.order, models, load_detector, args.threads or min(16, os.cpu_count() or 1)) as maker,
        tqdm(total=sum(len(chunks[number]) for number in mine), initial=before, desc="pictures", unit="", disable=None, smoothing=0.05) as bar,
    ):
        for number in todo:
            accepted += maker.make_chunk(chunk_path(folder, number), chunks[number], bar.update)
            made += len(chunks[number])
            bar.set_postfix_str(f"passed {(kept_before + accepted) / (before + made):.0%}")
    seconds = time.perf_counter() - began
    if made:
        print(f"{made} pictures in {seconds:.1f} s, {made / seconds:.2f} a second, {accepted} passed ({accepted / made:.1%})", flush=True)
    if before:
        print(f"{before} pictures were there already", flush=True)
    return sum(not done(number) for number in chunks)


def _passed(path: Path) -> int:
    with path.open() as file:
        return sum('"reason":' not in line for line in file)


def _finish(args: Args, job: _Job, work: Path) -> Totals:
    """Duplicates, report, sheets, shards. Of several processes one does it, while the others wait."""
    from data_pipeline import gates, report, synthesis_sheets
    from data_pipeline.assembly import decide, hand_over, make_ready
    from data_pipeline.work import locked

    chunks, size = work / "chunks", job.stated["chunk_rows"]
    rows = len(job.photos) * args.pictures
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(FileNotFoundError):  # whoever finished may have removed the work folder
            stack.enter_context(locked(work / "lock-finish"))
        if args.out.exists():
            return report.read_totals(args.out / "report" / "report.json")
        if not (work / "ready").exists():
            sheet = lambda path, counts, first: synthesis_sheets.write_rejected(path, chunks, job.photos, counts, first)  # noqa: E731
            people = lambda: synthesis_sheets.write_people(work / "report", chunks, job.photos, sorted(job.order.shown), args.pictures, size)  # noqa: E731
            try:
                decided = decide(
                    work, -(-rows // size), rows, job.stated, duplicate_distance=args.gates.duplicate_distance,
                    validation_share=args.validation_share, shard_bytes=round(args.shard_megabytes * 2**20), sheet=sheet, reasons=gates.REASONS,
                )  # fmt: skip
            finally:
                if (work / "report" / "rejected.jsonl").exists():
                    people()
            with ThreadPoolExecutor(2) as pool:
                make_ready(pool.submit, decided, work)
        return hand_over(work, args.out)


if __name__ == "__main__":
    run(main)
