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
import fcntl
import itertools
import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tqdm import tqdm

import infu_jax
from data_pipeline.filters import Filters
from infu_jax.cli import check_writable, run
from infu_jax.errors import InputError

if TYPE_CHECKING:
    from data_pipeline.chunks import Settings
    from data_pipeline.manifest import Source
    from data_pipeline.plan import Candidates, SplitPlan
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
    """Share of the people whose records go to the split validation; at least one person unless it is 0."""
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
        for name, least, most in (
            ("workers", 1, 4096), ("validation_share", 0, 1), ("max_side", 64, 65535), ("quality", 1, 100), ("max_megapixels", 1e-3, 1000),
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
    with _work_folder(work, stated, args.restart):
        if not ready.exists():
            with _pool(args.workers, source, settings) as pool:
                count = _make_chunks(pool, source, rows, args, work / "chunks")
                candidates, plans = _plan(source, rows, count, args, settings, stated, work)
                directory = _make_shards(pool, candidates, plans, work)
            (work / "report").rename(directory / "report")
            directory.rename(ready)
        totals = report.read_totals(ready / "report" / "report.json")
        for name in ("chunks", "shards", "dataset"):
            shutil.rmtree(work / name)
        ready.rename(args.out)
    shutil.rmtree(work)
    return totals


# The work folder ------------------------------------------------------------------------------------


@contextlib.contextmanager
def _work_folder(work: Path, stated: dict[str, Any], restart: bool) -> Iterator[None]:
    """Makes the work folder, or opens the one that is there if it was made with the same source and settings. Nobody else may work in it."""
    work.mkdir(parents=True, exist_ok=True)
    with (work / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with this process, however it ends
        except BlockingIOError:
            raise InputError(f"another build works in {work}; wait for it, or choose another output folder") from None
        said = work / "settings.json"
        ours = {"lock", "settings.json", "settings.json.partial", "chunks", "shards", "report", "dataset", "ready"}
        if foreign := sorted({path.name for path in work.iterdir()} - ours):
            raise InputError(f"{work} holds {foreign[0]}, which no build made; move it away, or choose another output folder")
        if restart or not said.exists():
            for path in work.iterdir():
                if path.name != "lock":
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            partial = work / "settings.json.partial"
            partial.write_text(json.dumps(stated, indent=2) + "\n")
            partial.rename(said)
        elif differences := _differences(json.loads(said.read_text()), stated):
            raise InputError(
                f"{work} holds an interrupted build with other settings: {'; '.join(differences)}. Give the old ones to go on, or --restart to begin again"
            )
        for folder in (work / "chunks", work / "shards", work / "dataset"):
            folder.mkdir(exist_ok=True)
            for path in folder.glob(".*.partial"):
                path.unlink()
        yield


def _differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for name in dict.fromkeys((*old, *new)):
        a, b = old.get(name), new.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            found += _differences(a, b, f"{prefix}{name}.")
        elif a != b:
            found.append(f"{prefix}{name} was {str(a):.20}, now {str(b):.20}")
    return found


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


def _plan(
    source: "Source", rows: int, count: int, args: Args, settings: "Settings", stated: dict[str, Any], work: Path
) -> tuple["Candidates", dict[str, "SplitPlan"]]:
    """Decides over all chunks together, and writes the report. Raises InputError when nothing is kept."""
    import numpy as np

    from data_pipeline import report
    from data_pipeline.chunks import gather
    from data_pipeline.index import INLINE_IDENTITY, SYNTHETIC
    from data_pipeline.plan import arrange, find_repeats, load_candidates, read_lines
    from data_pipeline.records import decode

    folder = work / "report"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    candidates = load_candidates(work / "chunks", count)
    same_key, duplicate_of = find_repeats(candidates, args.filters.duplicate_distance)
    kept = ~same_key & (duplicate_of < 0)

    def lines() -> Iterator[dict[str, Any]]:
        number = -1
        for _, line in read_lines(work / "chunks", count):
            number += "reason" not in line
            if "reason" not in line and not kept[number]:
                if same_key[number]:
                    line |= {"reason": "same_key", "detail": f"an earlier row has the key {line['key']}"}
                else:
                    line |= {"reason": "duplicate", "detail": f"looks like row {candidates['row'][duplicate_of[number]]}, which is kept"}
            yield line

    with tqdm(total=rows, desc="report", unit="", leave=False, disable=None) as bar:
        counts, first = report.write_rejected(folder / "rejected.jsonl", lines(), bar)
    report.write_rejected_sheet(folder / "rejected.jpg", source, counts, first, settings.max_pixels)
    if not kept.any():
        reasons = ", ".join(f"{reason} {counts[reason]}" for reason, _ in counts.most_common(3))
        raise InputError(f"none of the {rows} rows is kept ({reasons}); see {folder}, change source or filters, and build with --restart")
    plans = arrange(candidates, kept, args.validation_share, round(args.shard_megabytes * 2**20))
    splits = {}
    for split, plan in plans.items():
        of = {name: candidates[name][plan.chosen] for name in ("flags", "captions", "bytes")}
        splits[split] = {
            "records": len(plan.chosen),
            "people": int(plan.persons[-1]) + 1,
            "shards": len(plan.bounds) - 1,
            "bytes": int(of["bytes"].sum()),
            "without_caption": int((of["captions"] == 0).sum()),
            "synthetic": int((of["flags"] & SYNTHETIC > 0).sum()),
            "inline_identity": int((of["flags"] & INLINE_IDENTITY > 0).sum()),
        }
    report.write_report(folder / "report.json", report.Totals(rows, counts, splits), stated)
    chosen = np.concatenate([plan.chosen for plan in plans.values()])
    shown = chosen[np.unique(np.linspace(0, len(chosen) - 1, report.KEPT_SHOWN).astype(int))]
    report.write_kept_sheet(folder / "kept.jpg", map(decode, gather(work / "chunks", candidates.places(shown))))
    return candidates, plans


def _make_shards(pool: ProcessPoolExecutor, candidates: "Candidates", plans: dict[str, "SplitPlan"], work: Path) -> Path:
    """Copies the kept records to their shards, those that are not done yet, and puts the dataset together; returns where it is."""
    import numpy as np

    from data_pipeline.chunks import copy_shard
    from data_pipeline.spms import Split, assemble

    futures: dict[str, list[Future]] = {}
    total = sum(len(plan.chosen) for plan in plans.values())
    with tqdm(total=total, desc="shards", unit="", disable=None) as bar:
        for split, plan in plans.items():
            bounds = itertools.pairwise(plan.bounds.tolist())
            futures[split] = [
                pool.submit(copy_shard, work / "shards" / f"{split}-{number:05d}", work / "chunks", candidates.places(plan.chosen[a:b]))
                for number, (a, b) in enumerate(bounds)
            ]
        shards = {}
        for split, of_split in futures.items():
            shards[split] = []
            for future in of_split:
                shards[split].append(future.result())
                bar.update(shards[split][-1].records)
    splits = {}
    for split, plan in plans.items():
        size = np.stack([candidates["height"], candidates["width"]], axis=1)[plan.chosen]
        splits[split] = Split(shards[split], plan.persons, size, candidates["flags"][plan.chosen], candidates["captions"][plan.chosen])
    return assemble(work / "dataset", splits)


if __name__ == "__main__":
    run(main)
