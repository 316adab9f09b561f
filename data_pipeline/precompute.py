"""Run the frozen encoders over a dataset once, and keep what they say beside the records; the loader then reads it instead of pictures.

With the released weights on disk:

    python -m data_pipeline.precompute DATASET --base FLUX.1-dev --arcface recognition_arcface_ir_se50.pth --resolution 1024

Without --base the embedded tiny stack is used, which shows that everything works. A run that was stopped, even by kill -9, goes on
where it was when the same command is given again. Several machines share the work if each is told its --process-index.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import os
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from etils import epath
from tqdm import tqdm

from data_pipeline import features, processes
from infu_jax.assets import ASSETS
from infu_jax.cli import memory_advice, run
from infu_jax.config import MeshConfig
from infu_jax.errors import InputError
from infu_jax.train_config import DataConfig, DistributedConfig, Feature

OptionalPath = Annotated[Path | None, tyro.conf.arg(metavar="PATH")]
DEFAULTS = DataConfig()
CLIP_LENGTH = 77  # as in infu_jax.pipeline
ENCODERS: Mapping[Feature, str] = {"latents": "autoencoder", "control": "autoencoder", "t5": "t5", "clip": "clip", "arcface": "arcface"}
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

    base: Path = ASSETS / "tiny" / "FLUX.1-tiny"
    """FLUX.1 folder in diffusers layout, or a converted one: VAE, text encoders, tokenizers."""
    autoencoder: OptionalPath = None
    """Another VAE than --base has, e.g. ae.safetensors."""
    infu: Path = ASSETS / "tiny" / "InfiniteYou-tiny"
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
            encoder = load_encoder(name, args, mesh, dtype)
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


# Encoders -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Encoder:
    """A model with its tokenizer, and the program that turns a batch of inputs into rows."""

    model: Any
    tokenizer: Any
    encode: Callable[[Any, Any], Any]
    mesh: Any
    dtype: str
    fingerprint: str

    def __call__(self, inputs: np.ndarray):
        """(B, ...) inputs -> (B, ...) rows, float32, still being computed."""
        import jax

        from infu_jax.sharding import batch_sharding

        with jax.set_mesh(self.mesh):
            return self.encode(self.model, jax.device_put(inputs, batch_sharding(self.mesh, len(inputs))))

    def row_shape(self, inputs: Sequence[int], dtype: Any) -> tuple[int, ...]:
        """The shape of a row, for inputs of this shape. Computes nothing."""
        import jax

        return jax.eval_shape(self.encode, self.model, jax.ShapeDtypeStruct((1, *inputs), dtype)).shape[1:]


def load_encoder(name: str, args: Args, mesh, dtype) -> Encoder:
    """One of the models in ENCODERS, on the devices of `mesh`. It computes what the training step does without features."""
    import jax
    import jax.numpy as jnp

    from infu_jax import checkpoint
    from infu_jax.tokenizers import load_clip_tokenizer, load_t5_tokenizer

    path, tokenizer = args.base, None
    match name:
        case "autoencoder":
            path = args.autoencoder or args.base

            def encode(autoencoder, pixels):
                return jnp.stack(autoencoder.moments((pixels.astype(jnp.float32) / 127.5 - 1).astype(dtype)), axis=1)

        case "t5":
            tokenizer = load_t5_tokenizer(args.base / "tokenizer_2")

            def encode(t5, ids):
                return t5(ids, dtype=dtype)

        case "clip":
            tokenizer = load_clip_tokenizer(args.base / "tokenizer")

            def encode(clip, ids):
                return clip(ids, dtype=dtype)[1]

        case "arcface":
            path, dtype = args.arcface or args.infu, jnp.float32

            def encode(arcface, crops):
                return arcface(2 * (crops.astype(jnp.float32) / 255) - 1)  # as face.arcface_input

    model = checkpoint.load_model(path, name, mesh=mesh, dtype=dtype)
    program = jax.jit(lambda model, inputs: encode(model, inputs).astype(jnp.float32))
    return Encoder(model, tokenizer, program, mesh, jnp.dtype(dtype).name, features.model_fingerprint(model))


# What the rows of a feature are -------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """The rows of one feature of one split: where they go, and what the encoder is to be given for each."""

    rows: np.ndarray
    """See `features.Features.read`."""
    groups: tuple[tuple[str, int], ...]
    """Name and number of rows of each group."""
    load: Callable[[str, int], np.ndarray]
    """The encoder's input for a row: group and row inside the group -> array. Threads call it."""
    unit: str


def plan_work(feature: Feature, args: Args, split: str, index, tokenizer) -> Work:
    """See the table in `data_pipeline.features`."""
    from data_pipeline import records

    source = records.open_records(args.dataset, split)
    if feature in ("latents", "control"):
        return _pictures(feature, args, source, index)
    if feature == "arcface":
        return _faces(args, source, index)
    return _captions(args.t5_length if feature == "t5" else CLIP_LENGTH, source, index, tokenizer)


def _pictures(feature: Feature, args: Args, source, index) -> Work:
    """A row a record, sorted by bucket; for control a black image of each bucket."""
    from data_pipeline import buckets, transforms

    table = buckets.buckets(args.resolution, args.bucket_step, args.max_aspect)
    numbers = buckets.nearest(index.sizes, table)
    order = np.argsort(numbers, kind="stable").astype(np.uint32)  # the record of each row
    rows = np.empty_like(order)
    rows[order] = np.arange(len(order), dtype=np.uint32)
    counts = np.bincount(numbers, minlength=len(table))
    used = {f"{height}x{width}": (number, (height, width)) for number, (height, width) in enumerate(table) if counts[number]}
    starts = np.concatenate([[0], np.cumsum(counts)])
    groups = [(name, int(counts[number])) for name, (number, _) in used.items()]
    if feature == "control":
        groups += [(f"black-{name}", 1) for name in used]

    def load(group: str, row: int) -> np.ndarray:
        if group.startswith("black-"):
            return transforms.control_image(used[group.removeprefix("black-")][1], None)
        number, bucket = used[group]
        at = int(order[starts[number] + row])
        record = source[at]
        with _named(source, at, record):
            if feature == "latents":
                return transforms.fitted(record.target, record.target_size, bucket, record.target_keypoints, record.target_face)[0]
            fit = transforms.fit(record.target_size, bucket, record.target_keypoints, record.target_face)
            return transforms.control_image(bucket, fit.points(record.target_keypoints))

    return Work(rows, tuple(groups), load, "pictures")


def _captions(length: int, source, index, tokenizer) -> Work:
    """A row a caption, in the order of the records, and the empty prompt."""
    rows = np.concatenate([[0], np.cumsum(index.captions, dtype=np.uint64)])
    count = int(rows[-1])

    def load(group: str, row: int) -> np.ndarray:
        if group == "empty":
            return tokenizer.encode([""], length)[0]
        at = int(np.searchsorted(rows, row, side="right")) - 1
        return tokenizer.encode([source[at].captions[row - int(rows[at])].text], length)[0]

    groups = ((("captions", count),) if count else ()) + (("empty", 1),)
    return Work(rows, groups, load, "captions")


def _faces(args: Args, source, index) -> Work:
    """The face of each target, followed by that of its inline identity where there is one."""
    from data_pipeline import transforms
    from data_pipeline.index import INLINE_IDENTITY

    inline = (index.flags & INLINE_IDENTITY) > 0
    rows = np.concatenate([[0], np.cumsum(1 + inline.astype(np.uint64))])

    def load(group: str, row: int) -> np.ndarray:
        at = int(np.searchsorted(rows, row, side="right")) - 1
        record = source[at]
        with _named(source, at, record):
            if row == rows[at]:
                return transforms.identity_crop(record.target, record.target_size, record.target_keypoints)
            return transforms.identity_crop(record.identity, record.identity_size, record.identity_keypoints)

    return Work(rows, (("faces", int(rows[-1])),), load, "faces")


@contextlib.contextmanager
def _named(source, number: int, record) -> Iterator[None]:
    try:
        yield
    except InputError as e:
        raise InputError(f"{source.directory}, split {source.split}, record {number} ({record.key}): {e}") from e


# Computing ----------------------------------------------------------------------------------------


def compute(feature: Feature, args: Args, split: str, index, encoder: Encoder) -> None:
    """Compute this process's parts of one feature of one split that are not there yet, and say what was done."""
    work = plan_work(feature, args, split, index, encoder.tokenizer)
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
