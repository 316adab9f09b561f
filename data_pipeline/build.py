"""Build a dataset from pictures of people.

    python -m data_pipeline.build --source people/ --out data/people
    python -m data_pipeline.build --source people.jsonl --out data/people --workers 16 --filters.min-face 96

A folder has a folder for each person; the caption of 1.jpg is in 1.txt beside it. A manifest is a .jsonl or .csv file with `image` (a path
relative to it) and `person` in each row; `caption` or `captions`, `identity` (the photo that shows who it is), `synthetic`, `keypoints` and
anything else are welcome. See data_pipeline/README.md.

Each picture is checked, its face found, and kept or rejected with a reason. OUT/report/ shows what became of every row. The work is done in
chunks: after an interruption, even kill -9, the same command goes on, and gives the same bytes as if nothing had happened.
"""

import contextlib
import dataclasses
import itertools
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from tqdm import tqdm

import infu_jax
from data_pipeline.filters import Filters
from infu_jax.cli import check_writable, run
from infu_jax.errors import InputError

if TYPE_CHECKING:
    from data_pipeline.chunks import Settings
    from data_pipeline.manifest import Source
    from data_pipeline.report import Totals


@dataclass(frozen=True)
class Args:
    source: Annotated[Path, tyro.conf.arg(aliases=("--manifest",), metavar="PATH")]
    """Folder with a folder for each person, or a manifest: a .jsonl or .csv file."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """Folder for the dataset; it must not exist. While it is built, .DIR.building stands beside it."""
    workers: int = os.cpu_count() or 1
    """Processes."""
    root: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """Folder that a manifest's paths are relative to and may not leave; by default the manifest's own."""
    validation_share: float = 0.01
    """Share of the people whose records go to the split validation; of several at least one person unless it is 0."""
    filters: Filters = field(default_factory=Filters)
    max_side: int = 2048
    """Pictures with a longer side are scaled down to this many pixels."""
    quality: int = 95
    """JPEG quality of the pictures that must be encoded again: scaled or turned ones, and those that are not plain 8-bit grey or RGB."""
    max_megapixels: float = 50.0
    """Pictures with more are refused before they are decoded."""
    max_megabytes: float = 100.0
    """Picture files with more are refused before they are read."""
    detector: Literal["yunet", "antelopev2"] = "yunet"
    """Face detector. yunet comes with the installation; antelopev2 is the one of InfiniteYou and needs --detector-root."""
    detector_root: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """Folder with models/antelopev2/*.onnx (InfiniteYou's supports/insightface)."""
    chunk_rows: int = 256
    """Rows that a worker does at once, so what an interruption may lose for each worker."""
    shard_megabytes: float = 256.0
    """Size of the dataset's files, about."""
    restart: bool = False
    """Throw away what an interrupted build has done, and begin again."""

    def __post_init__(self):
        # Stored pictures must stay below records.MAX_PIXELS, which readers refuse, and Pillow itself decodes no more than 178 megapixels.
        for name, least, most in (
            ("workers", 1, 4096), ("validation_share", 0, 1), ("max_side", 64, 7000), ("quality", 1, 100), ("max_megapixels", 1e-3, 178),
            ("max_megabytes", 1e-3, 2000), ("chunk_rows", 1, 10**6), ("shard_megabytes", 1e-3, 10**5),
        ):  # fmt: skip
            if not least <= (value := getattr(self, name)) <= most:
                raise InputError(f"{name.replace('_', '-')} is {value}; {least:g} to {most:g} is possible")
        if self.max_side < self.filters.min_side:
            raise InputError(f"max-side is {self.max_side}, filters.min-side {self.filters.min_side}: no picture could be kept")


def main() -> None:
    args = tyro.cli(Args, prog="python -m data_pipeline.build", description=__doc__)
    totals = build(args)
    from data_pipeline.report import table

    print(table(totals))
    print(f"{args.out}  dataset; {args.out / 'report'}  what became of every row")


def build(args: Args) -> "Totals":
    """Builds a dataset, or goes on with one. Raises InputError when source, settings or output cannot be used."""
    # Heavy imports come after the command line was read, so that --help and mistakes answer at once.
    from data_pipeline import chunks, manifest, records, report
    from data_pipeline.assembly import decide, hand_over, make_ready
    from data_pipeline.work import work_folder

    if args.out.exists() or args.out.is_symlink():
        raise InputError(f"{args.out} exists already and is not overwritten; choose another folder")
    source = manifest.open_source(args.source, args.root)
    if source.kind == "folder" and args.out.resolve().is_relative_to(source.root):
        raise InputError(f"{args.out} lies inside the source {args.source}; choose a folder outside")
    settings = chunks.Settings(
        filters=args.filters, max_side=args.max_side, quality=args.quality, max_pixels=round(args.max_megapixels * 1e6),
        max_bytes=round(args.max_megabytes * 1e6), detector=args.detector, detector_root=args.detector_root,
    )  # fmt: skip
    chunks.check_detector(settings)
    check_writable(args.out)
    digest, rows = manifest.fingerprint(source)
    stated = {
        "software": f"infu_jax {infu_jax.__version__}, records {records.VERSION}",
        "source": {"kind": source.kind, "rows": rows, "sha256": digest},
        "chunk_rows": args.chunk_rows,
        "shard_megabytes": args.shard_megabytes,
        "validation_share": args.validation_share,
        **{name: value for name, value in dataclasses.asdict(settings).items() if name != "detector_root"},
    }
    work = args.out.parent / f".{args.out.name}.building"
    ready = work / "ready"
    with work_folder(work, stated, args.restart, maker="build"):
        if not ready.exists():
            with _pool(args.workers, source, settings) as pool:
                count = _make_chunks(pool, source, rows, args, work / "chunks")
                decided = decide(
                    work, count, rows, stated, duplicate_distance=args.filters.duplicate_distance, validation_share=args.validation_share,
                    shard_bytes=round(args.shard_megabytes * 2**20),
                    sheet=lambda path, counts, first: report.write_rejected_sheet(path, source, counts, first, settings.max_pixels),
                )  # fmt: skip
                make_ready(pool.submit, decided, work)
        totals = hand_over(work, args.out)
    shutil.rmtree(work)
    return totals


# Stages ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _pool(workers: int, source: "Source", settings: "Settings") -> Iterator[ProcessPoolExecutor]:
    """Processes start when they are first needed. On an error or Ctrl-C nothing new is begun."""
    from data_pipeline.chunks import start_worker

    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=start_worker, initargs=(source, settings))
    try:
        yield pool
    except BrokenProcessPool as error:
        raise InputError("a worker process died (too little memory?); run the same command again to go on, with fewer --workers") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _make_chunks(pool: ProcessPoolExecutor, source: "Source", rows: int, args: Args, folder: Path) -> int:
    """Does all chunks that are not done yet; returns the number of chunks."""
    from data_pipeline.chunks import chunk_path, make_chunk
    from data_pipeline.manifest import raw_rows

    pending: set[Future[int]] = set()
    count, stream = 0, raw_rows(source)
    with tqdm(total=rows, desc="pictures", unit="", disable=None) as bar:
        while batch := list(itertools.islice(stream, args.chunk_rows)):
            path = chunk_path(folder, count)
            count += 1
            if path.with_suffix(".jsonl").exists():
                bar.update(len(batch))
                continue
            pending.add(pool.submit(make_chunk, path, batch))
            if len(pending) >= 2 * args.workers:
                pending = _finish(pending, bar, FIRST_COMPLETED)
        while pending:
            pending = _finish(pending, bar, FIRST_COMPLETED)
    return count


def _finish(pending: set[Future[int]], bar: tqdm, when: str) -> set[Future[int]]:
    done, pending = wait(pending, return_when=when)
    for future in done:
        bar.update(future.result())
    return pending


if __name__ == "__main__":
    run(main)
