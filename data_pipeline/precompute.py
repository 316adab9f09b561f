"""Run the frozen encoders over a dataset once, and keep what they say beside the records; the loader then reads it instead of pictures.

With the released weights on disk:

    python -m data_pipeline.precompute DATASET --base FLUX.1-dev --arcface recognition_arcface_ir_se50.pth --resolution 1024

Without --base the embedded tiny stack is used, which shows that everything works. A run that was stopped, even by kill -9, goes on
where it was when the same command is given again. Several machines share the work if each is told its --process-index.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import tyro
from etils import epath
from tqdm import tqdm

from data_pipeline import features, processes
from data_pipeline.encoders import ENCODERS, Encoder, load_encoder
from infu_jax.assets import TINY
from infu_jax.cli import memory_advice, run
from infu_jax.config import MeshConfig
from infu_jax.errors import InputError
from infu_jax.train_config import DataConfig, DistributedConfig, Feature

if TYPE_CHECKING:
    from data_pipeline.feature_rows import Work

OptionalPath = Annotated[Path | None, tyro.conf.arg(metavar="PATH")]
DEFAULTS = DataConfig()
PART_ROWS = 4096  # of small rows: bounds the work that is lost when a run is killed


@dataclass(frozen=True)
class Args:
    dataset: tyro.conf.Positional[str]
    """Dataset that python -m data_pipeline.build wrote. The features go into its folder features/."""
    features: tuple[Feature, ...] = ("latents", "control", "clip", "arcface")
    """What to compute. latents: VAE mean and log-variance of the target, fitted to its bucket. control: the same of the keypoint image.
    t5: text features (4 MiB a caption with the released T5, which is why it is not among the defaults). clip: pooled text vector.
    arcface: face embedding."""
    split: tuple[str, ...] = ()
    """Parts of the dataset; by default all it has."""

    base: Path = TINY / "FLUX.1-tiny"
    """FLUX.1 folder in diffusers layout, or a converted one: VAE, text encoders, tokenizers."""
    autoencoder: OptionalPath = None
    """Another VAE than --base has, e.g. ae.safetensors."""
    infu: Path = TINY / "InfiniteYou-tiny"
    """InfiniteYou folder, where ArcFace is looked for if --arcface is not given."""
    arcface: OptionalPath = None
    """recognition_arcface_ir_se50.pth or its converted folder."""

    resolution: int = DEFAULTS.resolution
    """Class of the aspect-ratio buckets, as data.resolution of the run that will read latents or control."""
    bucket_step: int = DEFAULTS.bucket_step
    """As data.bucket_step of that run."""
    max_aspect: float = DEFAULTS.max_aspect
    """As data.max_aspect of that run."""
    t5_length: int = DEFAULTS.t5_length
    """As data.t5_length of that run."""

    batch: int = 4
    """Pictures or captions computed at once on each device."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Of weights and computation; ArcFace is float32 always. auto: bfloat16 on TPU and GPU, float32 on CPU."""
    store: Literal["auto", "float16", "float32"] = "auto"
    """How features are kept. auto: latents, control and t5 in float16, clip and arcface, which are small, in float32."""
    part_mib: float = 256.0
    """Largest size of a file. What is lost when a run is killed is one part for each feature and process."""
    threads: int = 0
    """Threads that read and decode ahead; 0 is twice the number of cores, at most 32."""
    mesh: MeshConfig = field(default_factory=lambda: MeshConfig(data=-1))
    """How this process's devices share the work. By default each has all weights and its part of the batch; --mesh.data 1 --mesh.fsdp -1
    splits the weights of T5 and CLIP too."""
    process_index: int = 0
    """Which of --process-count processes this is, where they know nothing of each other but the folder; each computes its own parts."""
    process_count: int = 1
    """Processes that share the work and see the same DATASET folder. On TPU pods, Slurm, GKE and Open MPI both are found out."""
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    replace: bool = False
    """Remove what is there of these features first. For one process."""


def main() -> None:
    args = tyro.cli(Args, prog="python -m data_pipeline.precompute", description=__doc__)
    _check_options(args)

    from data_pipeline import index

    splits = args.split or _splits(args.dataset)
    indices = {split: index.open_index(args.dataset, split) for split in splits}

    # The heavy imports and the devices come after what can be wrong.
    import jax
    import jax.numpy as jnp
    from jax.experimental import multihost_utils

    from infu_jax.sharding import make_mesh

    together, place = processes.join(args.distributed, processes.Place(args.process_index, args.process_count))
    args = dataclasses.replace(args, process_index=place.index, process_count=place.count)
    mesh = make_mesh(**dataclasses.asdict(args.mesh), devices=jax.local_devices())
    dtype = {"auto": jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16, "bfloat16": jnp.bfloat16, "float32": jnp.float32}[args.dtype]
    if args.base == Args.base:
        print("using the embedded tiny stack; give --base for the released models", file=sys.stderr)
    for name in dict.fromkeys(ENCODERS[feature] for feature in args.features):
        wanted = [feature for feature in args.features if ENCODERS[feature] == name]  # latents and control share a model and its programs
        with memory_advice(f"that was {' and '.join(wanted)}; try a smaller --batch, --dtype bfloat16, or --mesh.data 1 --mesh.fsdp -1"):
            encoder = load_encoder(name, mesh, dtype, base=args.base, infu=args.infu, autoencoder=args.autoencoder, arcface=args.arcface)
            for feature, (split, found) in itertools.product(wanted, indices.items()):
                if args.replace:
                    _remove(features.folder_of(args.dataset, feature, split))
                compute(feature, args, split, found, encoder)
    if together:
        multihost_utils.sync_global_devices("features")  # JAX ends all processes when one has gone


def _check_options(args: Args) -> None:
    """What can be known before anything is read."""
    cfg(args)
    for name in ("batch", "part_mib", "process_count"):
        if getattr(args, name) <= 0:
            raise InputError(f"--{name.replace('_', '-')} is {getattr(args, name)}; more than 0 is needed")
    processes.Place(args.process_index, args.process_count)
    if args.replace and args.process_count > 1:
        raise InputError("--replace is for one process: others may have begun already. Remove the folders of the features first, then start all")
    if "arcface" in args.features and args.base != Args.base and args.arcface is None and args.infu == Args.infu:
        raise InputError("--base is given, but ArcFace would be the embedded tiny one; give --arcface (or --infu) too, or leave the feature out")
    if not args.features:
        raise InputError(f"no feature was named; --features takes some of {', '.join(features.FEATURES)}")


def cfg(args: Args) -> DataConfig:
    """The settings of a run that reads these features."""
    return DataConfig(resolution=args.resolution, bucket_step=args.bucket_step, max_aspect=args.max_aspect, t5_length=args.t5_length)


def _splits(dataset: str) -> list[str]:
    folder = epath.Path(dataset) / "index"
    if not folder.is_dir():
        raise InputError(f"{dataset} is no dataset: it has no folder index; give a folder that python -m data_pipeline.build wrote")
    return sorted(path.name for path in folder.iterdir())


def _remove(folder: epath.Path) -> None:
    if folder.exists():
        (folder / features.COMPLETE).unlink(missing_ok=True)  # first, so that what is half removed is not taken for whole
        folder.rmtree()


# Computing ----------------------------------------------------------------------------------------


def compute(feature: Feature, args: Args, split: str, index, encoder: Encoder) -> None:
    """Compute this process's parts of one feature of one split that are not there yet, and say what was done."""
    from data_pipeline import records
    from data_pipeline.feature_rows import plan_work

    work = plan_work(feature, cfg(args), records.open_records(args.dataset, split), index, encoder.tokenizer)
    plan = _plan(feature, args, split, index, encoder, work)
    folder = features.folder_of(args.dataset, feature, split)
    features.begin(folder, plan, work.rows)
    mine = [part for n, part in enumerate(plan.parts()) if n % args.process_count == args.process_index]
    there = features.finished(folder, plan)
    todo = [(group, number) for group, number in mine if (group.name, number) not in there]
    count = sum(len(group.part(number)) for group, number in todo)
    _check_room(folder, sum(len(group.part(number)) * plan.row_bytes(group) for group, number in todo))
    began = time.perf_counter()
    with tqdm(total=count, desc=f"{feature} {split}", unit=f" {work.unit}", disable=None, leave=False, smoothing=0.05) as bar:
        for group, number, values in _parts(todo, work, encoder, args, bar.update):
            features.write_part(folder, plan, group, number, values)
    missing = features.seal(folder, plan)
    seconds = time.perf_counter() - began
    rate = f"{count} {work.unit} in {seconds:.1f} s, {count / seconds:.1f} a second" if count else "nothing to compute"
    before = f"; {len(mine) - len(todo)} of {len(mine)} parts were there" if len(todo) < len(mine) else ""
    left = f"; {missing} parts are left to other processes" if missing else ""
    print(f"{feature} {split}: {rate}{before}{left}", flush=True)


def _check_room(folder: epath.Path, needed: int) -> None:
    if "://" not in str(folder) and (free := shutil.disk_usage(folder).free) < needed:
        raise InputError(f"{folder} needs {needed / 2**20:,.0f} MiB more and its disk has {free / 2**20:,.0f} MiB free; make room or compute fewer features")


def _plan(feature: Feature, args: Args, split: str, index, encoder: Encoder, work: Work) -> features.Plan:
    store = args.store if args.store != "auto" else "float32" if feature in ("clip", "arcface") else "float16"
    groups = []
    for name, rows in work.groups:
        example = work.load(name, 0)
        shape = encoder.row_shape(example.shape, example.dtype)
        fits = args.part_mib * 2**20 / (math.prod(shape) * np.dtype(store).itemsize)
        # A power of two, which batches mostly divide, so that few are filled up.
        groups.append(features.Group(name, rows, shape, 2 ** int(math.log2(min(max(1, fits), PART_ROWS)))))
    return features.Plan(
        feature=feature, split=split, dataset=index.fingerprint, records=index.records, model=encoder.fingerprint,
        settings=features.settings_of(feature, cfg(args)), dtype=store, computed_in=encoder.dtype, groups=tuple(groups),
    )  # fmt: skip


def _parts(
    todo: Sequence[tuple[features.Group, int]], work: Work, encoder: Encoder, args: Args, progress: Callable[[int], Any]
) -> Iterator[tuple[features.Group, int, np.ndarray]]:
    """The values of each part. While the devices compute a batch, threads read the next ones.

    A part is cut into the same batches whichever parts are to be made, so that its bytes do not depend on what was there before.
    """
    batch = args.batch * math.prod(encoder.mesh.shape[axis] for axis in ("data", "fsdp"))
    threads = args.threads or min(32, 2 * (os.cpu_count() or 1))
    batches = ((part, rows) for part in todo for rows in _cut(part[0].part(part[1]), batch))
    with ThreadPoolExecutor(threads) as pool:
        reading: deque[tuple[tuple[features.Group, int], range, list[Future]]] = deque()
        computing: deque[tuple[tuple[features.Group, int], range, Any]] = deque()
        values: list[np.ndarray] = []

        def read_more() -> None:
            while len(reading) < max(2, -(-2 * threads // batch)) and (following := next(batches, None)):
                part, rows = following
                reading.append((part, rows, [pool.submit(work.load, part[0].name, row) for row in rows]))

        try:
            read_more()
            while reading or computing:
                if reading and len(computing) < 2:
                    part, rows, futures = reading.popleft()
                    inputs = [future.result() for future in futures]
                    inputs += inputs[-1:] * (batch - len(inputs))  # a last batch is filled up rather than compiled for
                    computing.append((part, rows, encoder(np.stack(inputs))))
                    read_more()
                    continue
                part, rows, rest = computing.popleft()
                values.append(np.asarray(rest)[: len(rows)])
                progress(len(rows))
                if rows.stop == part[0].part(part[1]).stop:
                    yield *part, np.concatenate(values)
                    values = []
        finally:
            pool.shutdown(cancel_futures=True)


def _cut(rows: range, size: int) -> Iterator[range]:
    return (rows[at : at + size] for at in range(0, len(rows), size))


if __name__ == "__main__":
    run(main)
