"""Pictures per second and core: our loader beside torch's DataLoader with Pillow, and beside decoding alone, which is the limit.

    python benchmarks/loader.py             # speed, from JPEG and from features computed ahead
    python benchmarks/loader.py --index     # how a run on 43 million records starts
    python benchmarks/loader.py --flat      # memory over 10,000 batches

Everything is made in a temporary folder. Every contender runs in a process of its own on the same core(s); rounds alternate, so that a
busy machine is unfair to all alike.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

JPEG = {
    "decode_opencv": "decoding alone, OpenCV (the limit)",
    "scale_opencv": "decoding and scaling alone, OpenCV",
    "decode_pillow": "decoding alone, Pillow",
    "ours": "data_pipeline.loader",
    "torch": "torch DataLoader, Pillow",
}
FEATURES = {
    "read": "reading the files alone (the limit)",
    "ours_features": "data_pipeline.loader, features",
    "torch_features": "torch DataLoader, features as .npy files",
}
ROOT = Path(__file__).parents[1]
T5, CLIP, ARCFACE, CHANNELS = (512, 4096), (768,), (512,), 16  # FLUX.1-dev's


@dataclass(frozen=True)
class Args:
    pictures: int = 64
    """JPEG files, of 1024 to 1400 pixels a side."""
    resolution: int = 1024
    batch: int = 8
    cores: int = 1
    """Cores that a contender may use: threads of ours, worker processes of the DataLoader (none for one core)."""
    seconds: float = 5.0
    """How long a contender is timed in a round."""
    rounds: int = 3
    contenders: tuple[str, ...] = tuple(JPEG | FEATURES)
    index: bool = False
    """Time the start on an index of --records instead."""
    records: int = 43_000_000
    """Stage 1's."""
    flat: bool = False
    """Watch memory over --batches of small pictures instead."""
    batches: int = 10_000
    workers: int = 0
    """Worker processes for --flat; their memory is counted too."""
    only: str | None = None
    """Run this contender alone on --folder, and print JSON."""
    folder: Path | None = None


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    if args.only:
        print(json.dumps(run(args)))
        return
    with tempfile.TemporaryDirectory(prefix="infu_jax-loader-") as name:
        folder = Path(name)
        if args.index:
            index_table(args, folder)
        elif args.flat:
            flat_table(args, folder)
        else:
            speed_tables(args, folder)


# Speed --------------------------------------------------------------------------------------------


def speed_tables(args: Args, folder: Path) -> None:
    print("drawing pictures ...", file=sys.stderr)
    size = make_dataset(folder, args.pictures, (1024, 1400))
    if set(args.contenders) & set(FEATURES):
        make_features(folder, args.resolution)
    reports: dict[str, list[dict]] = {name: [] for name in args.contenders}
    for number in range(args.rounds):
        for name in args.contenders:
            print(f"round {number + 1} of {args.rounds}: {name} ...", file=sys.stderr)
            reports[name].append(alone(name, folder))
    median = {name: {key: statistics.median(report[key] for report in found) for key in found[0]} for name, found in reports.items()}
    print(f"\n{args.pictures} JPEG files of 1024 to 1400 pixels a side ({size / 2**10:.0f} KiB each) to {args.resolution}-class buckets, ", end="")
    print(f"batches of {args.batch}, {args.cores} core(s), medians of {args.rounds} rounds\n")
    print("| | pictures a second and core | the same by processor time | beside the limit | beside the DataLoader | peak memory, MiB |")
    print("|---|---|---|---|---|---|")
    for names, limit, peer in ((JPEG, "decode_opencv", "torch"), (FEATURES, "read", "torch_features")):
        for name in (name for name in names if name in median):
            rate, cpu = median[name]["rate"], f"{median[name]['cpu']:.1f}" if args.cores == 1 else ""  # without worker processes, that is
            beside = (f"{rate / median[other]['rate']:.2f}" if other in median else "" for other in (limit, peer))
            print(f"| {names[name]} | {rate / args.cores:.1f} | {cpu} | {' | '.join(beside)} | {median[name]['peak'] / 2**20:.0f} |")
    print(f"\n{need({name: median[name]['rate'] / args.cores for name in ('ours', 'ours_features') if name in median})}")


def need(rates: dict[str, float]) -> str:
    """What a host of a v5p pod asks of its loader, as an estimate."""
    from infu_jax.config import FluxConfig, InfuseNetConfig
    from infu_jax.flops import PEAKS, train_flops

    flops = train_flops(FluxConfig(), InfuseNetConfig(), (1024 // 16) ** 2, 512, 8)
    chips, share = 4, 0.5
    pictures = chips * share * PEAKS["TPU v5"] / flops
    has = ", ".join(f"{pictures / rate:.2f} cores {'from JPEG' if name == 'ours' else 'from features'}" for name, rate in rates.items())
    return (
        f"A host of a v5p pod, estimated: a stage-1 step computes {flops / 1e12:.0f} TFLOP a picture of 1024 x 1024 (infu_jax.flops); {chips} chips of "
        f"{PEAKS['TPU v5'] / 1e12:.0f} TFLOP/s, {share:.0%} of which would be good, need {chips} x {share} x {PEAKS['TPU v5'] / 1e12:.0f} / {flops / 1e12:.0f} "
        f"= {pictures:.1f} pictures a second. At the rates above that is {has} of the host's 208 vCPUs."
    )


def alone(name: str, folder: Path, *more: str) -> dict:
    command = [sys.executable, __file__, *sys.argv[1:], "--only", name, "--folder", str(folder), *more]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}).stdout
    return json.loads(out.splitlines()[-1])


def run(args: Args) -> dict:
    contenders: dict[str, Callable[[Args], Iterator[int]]] = {
        "decode_opencv": decode_opencv,
        "scale_opencv": scale_opencv,
        "decode_pillow": decode_pillow,
        "ours": ours,
        "torch": torch_loader,
        "read": read_files,
        "ours_features": ours,
        "torch_features": torch_loader,
    }
    if args.only == "index":
        return start_index(args)
    if args.only == "flat":
        return watch_memory(args)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cores])
    return {**timed(contenders[args.only](args), args), "peak": peak()}


def timed(shown: Iterator[int], args: Args) -> dict[str, float]:
    """Pictures a second, by the clock and by this process's use of processors, after one pass to warm up. shown: pictures of each turn."""
    began, done = time.perf_counter(), 0
    while done < args.pictures or time.perf_counter() - began < 1:
        done += next(shown)
    began, used, done = time.perf_counter(), time.process_time(), 0
    while (elapsed := time.perf_counter() - began) < args.seconds:
        done += next(shown)
    return {"rate": done / elapsed, "cpu": done / (time.process_time() - used)}


def peak() -> int:
    """Resident memory of this process, in bytes. Not getrusage's, which begins with that of the process that started it."""
    return 1024 * int(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")).split()[1])


def files(args: Args, suffix: str) -> list[Path]:
    return sorted((args.folder / "files").glob(f"*{suffix}"))


def in_threads(args: Args, work: Callable[[bytes], object]) -> Iterator[int]:
    from concurrent.futures import ThreadPoolExecutor

    import cv2

    cv2.setNumThreads(1)
    data = [path.read_bytes() for path in files(args, ".jpg")]
    with ThreadPoolExecutor(args.cores) as pool:
        while True:
            for _ in pool.map(work, data) if args.cores > 1 else map(work, data):
                yield 1


def decode_opencv(args: Args) -> Iterator[int]:
    import cv2

    return in_threads(args, lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB))


def scale_opencv(args: Args) -> Iterator[int]:
    """What no loader that shows such pictures at such sizes can do without, by the fastest filter that there is."""
    import cv2

    def work(data: bytes) -> np.ndarray:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
        return cv2.resize(image, (args.resolution, args.resolution), interpolation=cv2.INTER_LINEAR)

    return in_threads(args, work)


def decode_pillow(args: Args) -> Iterator[int]:
    from PIL import Image

    return in_threads(args, lambda data: np.asarray(Image.open(io.BytesIO(data))))


def tokenizers() -> dict:
    from infu_jax.tokenizers import load_clip_tokenizer, load_t5_tokenizer

    tiny = ROOT / "infu_jax" / "assets" / "tiny" / "FLUX.1-tiny"
    return {"t5_tokenizer": load_t5_tokenizer(tiny / "tokenizer_2"), "clip_tokenizer": load_clip_tokenizer(tiny / "tokenizer")}


def config(args: Args, **settings):
    from infu_jax.train_config import DataConfig

    settings = {"resolution": args.resolution, "prompt_dropout": 0.0, "keypoint_share": 1.0, "threads": args.cores, "prefetch": 2, **settings}
    return DataConfig(paths=(str(args.folder / "dataset"),), **settings)


def ours(args: Args) -> Iterator[int]:
    from data_pipeline.loader import open_loader

    cfg = config(args, features="auto" if args.only == "ours_features" else ())
    with open_loader(cfg, batch_size=args.batch, seed=0, **tokenizers()) as loader:
        for batch in loader.iterate():
            yield len(batch["record"])


def torch_loader(args: Args) -> Iterator[int]:
    """The same batches by the usual means: files, Pillow, default collation. Faces are cropped and drawn by the functions that we use."""
    import torch
    from PIL import Image

    from data_pipeline.buckets import buckets, nearest
    from infu_jax import face

    torch.set_num_threads(1)
    rows = json.loads((args.folder / "files" / "rows.json").read_text())
    table = buckets(args.resolution)
    shapes = [table[n] for n in nearest(np.array([row["size"] for row in rows]), table)]
    tokens = tokenizers()

    class Pictures(torch.utils.data.Dataset):
        def __getitem__(self, number):
            row, (height, width) = rows[number], shapes[number]
            with Image.open(args.folder / "files" / row["file"]) as file:
                picture = file.convert("RGB")
            points = np.array(row["keypoints"], np.float32)
            scale = max(height / picture.height, width / picture.width)
            w, h = width / scale, height / scale
            left, top = (picture.width - w) / 2, (picture.height - h) / 2
            return {
                "pixels": np.array(picture.resize((width, height), Image.Resampling.BILINEAR, box=(left, top, left + w, top + h))),
                "control": face.draw_keypoints(height, width, ((points - (left, top)) * scale).astype(np.float32)),
                "id_crop": face.align(np.asarray(picture), points),
                "t5_ids": tokens["t5_tokenizer"].encode([row["caption"]], T5[0])[0],
                "clip_ids": tokens["clip_tokenizer"].encode([row["caption"]], 77)[0],
                "record": number,
            }

    class Stored(torch.utils.data.Dataset):
        def __getitem__(self, number):
            arrays = {name: np.load(args.folder / "files" / f"{number:04d}.{name}.npy") for name in ("latents", "control", "t5", "clip", "arcface")}
            for name in ("latents", "control"):
                mean, logvar = arrays.pop(name).astype(np.float32)
                arrays |= {f"{name}_mean": mean, f"{name}_logvar": logvar}
            return {**arrays, "record": number}

    class Batches(torch.utils.data.Sampler):
        """Batches of one bucket, for ever."""

        def __iter__(self):
            for epoch in itertools.count():
                rng, made = np.random.default_rng(epoch), []
                for shape in sorted(set(shapes)):
                    numbers = rng.permutation([n for n, other in enumerate(shapes) if other == shape])
                    made += [numbers[at : at + args.batch].tolist() for at in range(0, len(numbers) - args.batch + 1, args.batch)]
                yield from (made[n] for n in rng.permutation(len(made)))

    loader = torch.utils.data.DataLoader(
        Stored() if args.only == "torch_features" else Pictures(), batch_sampler=Batches(), num_workers=args.cores if args.cores > 1 else 0
    )
    for batch in loader:
        yield len(batch["record"])


def read_files(args: Args) -> Iterator[int]:
    while True:
        for number in range(args.pictures):
            for name in ("latents", "control", "t5", "clip", "arcface"):
                (args.folder / "files" / f"{number:04d}.{name}.npy").read_bytes()
            yield 1


# Datasets -----------------------------------------------------------------------------------------


def make_dataset(folder: Path, count: int, sides: tuple[int, int]) -> float:
    """A dataset of drawn faces before grainy walls, each of a person of its own, and the same as files. Returns the mean size in bytes."""
    import cv2
    from PIL import Image

    from data_pipeline import people, spms
    from data_pipeline.records import Caption, Record, encode

    rng, made, rows = np.random.default_rng(0), [], []
    (folder / "files").mkdir()
    portraits = [people.render(people.person(n), people.Picture(seed=(n, 0))) for n in range(3)]
    shapes = rng.integers(*sides, (4, 2), endpoint=True)  # few, so that buckets fill batches
    for number in range(count):
        portrait, (height, width) = portraits[number % len(portraits)], (int(side) for side in shapes[number % len(shapes)])
        picture = cv2.resize(rng.uniform(40, 220, (5, 5, 3)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
        side = int(rng.uniform(0.6, 0.95) * min(height, width))
        left, top = int(rng.uniform(0, width - side)), int(rng.uniform(0, height - side))
        picture[top : top + side, left : left + side] = cv2.resize(portrait.image, (side, side), interpolation=cv2.INTER_CUBIC)
        picture += rng.normal(0, 5, (height, width, 1)).astype(np.float32)
        data = io.BytesIO()
        Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8)).save(data, "JPEG", quality=90)
        points = ((portrait.keypoints + 0.5) * (side / len(portrait.image)) - 0.5 + (left, top)).astype(np.float32)
        box = np.array([*points.min(axis=0) - 0.2 * side, *points.max(axis=0) + 0.2 * side], np.float32)
        text = f"{portrait.caption[:-1]}, number {number}, photographed in the soft light of an afternoon, looking into the camera"
        made.append(Record(f"{number:04d}", f"person{number:04d}", data.getvalue(), (height, width), points, box, captions=(Caption(text, "user"),)))
        (folder / "files" / f"{number:04d}.jpg").write_bytes(data.getvalue())
        rows.append({"file": f"{number:04d}.jpg", "size": (height, width), "keypoints": points.tolist(), "caption": text})
    (folder / "files" / "rows.json").write_text(json.dumps(rows))
    shard = spms.write_shard(folder / "shard", map(encode, made))
    sizes = np.array([record.target_size for record in made])
    split = spms.Split([shard], np.arange(count), sizes, np.zeros(count, int), np.ones(count, int))
    spms.assemble(folder / "work", {"train": split}).rename(folder / "dataset")
    return statistics.mean(len(record.target) for record in made)


def make_features(folder: Path, resolution: int) -> None:
    """Random features of the sizes that FLUX.1-dev has: 6 MiB a picture in float16. Beside the dataset, and as a file for each."""
    from data_pipeline import features
    from data_pipeline.buckets import buckets, nearest
    from data_pipeline.index import open_index
    from infu_jax.train_config import DataConfig

    rng, cfg = np.random.default_rng(0), DataConfig(resolution=resolution)
    index = open_index(folder / "dataset", "train")
    table = buckets(resolution)
    numbers = nearest(index.sizes, table)
    order = np.argsort(numbers, kind="stable")
    latents = [(f"{table[n][0]}x{table[n][1]}", int((numbers == n).sum()), (2, table[n][0] // 8, table[n][1] // 8, CHANNELS)) for n in np.unique(numbers)]
    blacks = [(f"black-{name}", 1, shape) for name, _, shape in latents]
    captions = np.arange(index.records + 1)
    groups = {
        "latents": (latents, np.argsort(order)),
        "control": (latents + blacks, np.argsort(order)),
        "t5": ([("captions", index.records, T5), ("empty", 1, T5)], captions),
        "clip": ([("captions", index.records, CLIP), ("empty", 1, CLIP)], captions),
        "arcface": ([("faces", index.records, ARCFACE)], captions),
    }
    for feature, (described, rows) in groups.items():
        target = features.folder_of(folder / "dataset", feature, "train")
        made = tuple(features.Group(*group, part_rows=64) for group in described)
        plan = features.Plan(feature, "train", index.fingerprint, index.records, "random", features.settings_of(feature, cfg), "float16", "float32", made)
        features.begin(target, plan, rows)
        for group, number in plan.parts():
            features.write_part(target, plan, group, number, rng.standard_normal((len(group.part(number)), *group.shape), np.float32))
        features.seal(target, plan)
        stored = features.open_features(folder / "dataset", "train", feature, fingerprint=index.fingerprint, settings=features.settings_of(feature, cfg))
        for number in range(index.records):
            np.save(folder / "files" / f"{number:04d}.{feature}.npy", stored.read(number))


# Start and memory ---------------------------------------------------------------------------------


def index_table(args: Args, folder: Path) -> None:
    from data_pipeline.index import make_index, write_index

    print(f"writing an index of {args.records:,} records ...", file=sys.stderr)
    rng = np.random.default_rng(0)
    sizes = rng.integers(768, 2048, (args.records, 2), dtype=np.uint16)
    few = np.ones(args.records, np.uint8)
    write_index(folder / "dataset", "train", make_index(np.arange(args.records, dtype=np.uint32), sizes, few * 0, few, "made up"))
    stored = sum(path.stat().st_size for path in (folder / "dataset").rglob("*"))
    found = alone("index", folder)
    print(f"{args.records:,} records, a person each, {args.resolution}-class buckets, batches of {args.batch}\n")
    print("| index on disk, MB | seconds to the first batch's records | peak resident memory, MB | seconds to a batch of the next epoch |\n|---|---|---|---|")
    print(f"| {stored / 1e6:.0f} | {found['start']:.2f} | {found['peak'] / 1e6:.0f} | {found['next']:.2f} |")


def start_index(args: Args) -> dict:
    from data_pipeline.index import read_index
    from data_pipeline.pairs import Plan

    began = time.perf_counter()
    cfg = config(args)
    plan = Plan(cfg, [read_index(cfg.paths[0], "train")], batch_size=args.batch, seed=0)
    plan.rows(0)
    start = time.perf_counter() - began
    began = time.perf_counter()
    plan.rows(plan.steps_per_epoch())
    return {"start": start, "next": time.perf_counter() - began, "peak": peak()}


def flat_table(args: Args, folder: Path) -> None:
    make_dataset(folder, 32, (96, 128))
    found = alone("flat", folder)
    print(f"{args.batches:,} batches of {args.batch} small pictures, {args.workers} worker processes\n")
    print("| after batch | resident memory, MB |\n|---|---|")
    for number, size in found["resident"]:
        print(f"| {number:,} | {size / 1e6:.1f} |")
    first, last = found["resident"][0][1], found["resident"][-1][1]
    if last > first * 1.05:
        sys.exit(f"error: memory has grown by {(last - first) / 1e6:.1f} MB")


def watch_memory(args: Args) -> dict:
    from data_pipeline.loader import open_loader

    cfg = config(args, resolution=96, bucket_step=32, t5_length=64, threads=2, workers=args.workers)
    resident = []
    with open_loader(cfg, batch_size=args.batch, seed=0, **tokenizers()) as loader:
        for number, _ in enumerate(itertools.islice(loader.iterate(), args.batches), 1):
            if number % (args.batches // 10) == 0:
                resident.append((number, resident_memory()))
    return {"resident": resident}


def resident_memory() -> int:
    """Of this process and its children, in bytes."""
    own = os.getpid()
    children = [child for task in Path(f"/proc/{own}/task").iterdir() for child in (task / "children").read_text().split()]
    pages = sum(int(Path(f"/proc/{process}/statm").read_text().split()[1]) for process in (own, *children))
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
