"""From finished chunks to a dataset with its report: what `build` and `synthesize` do last.

Everything is a function of the chunks, so an interruption costs what was being written and changes nothing.
"""

import itertools
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data_pipeline import filters, report
from data_pipeline.chunks import copy_shard, gather
from data_pipeline.index import INLINE_IDENTITY, SYNTHETIC
from data_pipeline.plan import Candidates, SplitPlan, arrange, find_repeats, load_candidates, read_lines
from data_pipeline.records import decode
from data_pipeline.spms import Split, assemble
from infu_jax.errors import InputError

Sheet = Callable[[Path, Mapping[str, int], Mapping[str, list[dict[str, Any]]]], None]
"""Draws the rejected rows: where to, how many for each reason, the first lines of each reason."""


class NothingKept(InputError):
    """There is no dataset to make."""

    def __init__(self, counts: Mapping[str, int], message: str):
        super().__init__(message)
        self.counts = counts


@dataclass(frozen=True, eq=False)
class Decided:
    """Which candidates stay and where each goes."""

    counts: Mapping[str, int]
    """Of rejected rows, for each reason."""
    candidates: Candidates
    plans: Mapping[str, SplitPlan]


def decide(
    work: Path,
    count: int,
    rows: int,
    stated: Mapping[str, Any],
    *,
    duplicate_distance: int | None,
    validation_share: float,
    shard_bytes: int,
    sheet: Sheet,
    reasons: Mapping[str, str] = filters.REASONS,
) -> Decided:
    """Decides over all `count` chunks together, and writes WORK/report. Raises NothingKept.

    reasons: what the reasons of rejected rows mean, in their order.
    sheet: draws the rejected rows; those that were rejected only here have their `place` among the chunks' records.
    """
    folder = work / "report"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    candidates = load_candidates(work / "chunks", count)
    same_key, duplicate_of = find_repeats(candidates, duplicate_distance)
    kept = ~same_key & (duplicate_of < 0)

    def lines() -> Iterator[dict[str, Any]]:
        number = -1
        for _, line in read_lines(work / "chunks", count):
            number += "reason" not in line
            if "reason" not in line and not kept[number]:
                (line["place"],) = candidates.places(np.array([number]))
                if same_key[number]:
                    line |= {"reason": "same_key", "detail": f"an earlier row has the key {line['key']}"}
                else:
                    line |= {"reason": "duplicate", "detail": f"looks like row {candidates['row'][duplicate_of[number]]}, which is kept"}
            yield line

    with tqdm(total=rows, desc="report", unit="", leave=False, disable=None) as bar:
        counts, first = report.write_rejected(folder / "rejected.jsonl", lines(), bar)
    sheet(folder / "rejected.jpg", counts, first)
    if not kept.any():
        most = ", ".join(f"{reason} {counts[reason]}" for reason, _ in counts.most_common(3))
        raise NothingKept(counts, f"none of the {rows} rows is kept ({most}); see {folder}, change source or filters, and begin again with --restart")
    plans = arrange(candidates, kept, validation_share, shard_bytes)
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
    report.write_report(folder / "report.json", report.Totals(rows, counts, splits), stated, reasons)
    chosen = np.concatenate([plan.chosen for plan in plans.values()])
    shown = chosen[np.unique(np.linspace(0, len(chosen) - 1, report.KEPT_SHOWN).astype(int))]
    report.write_kept_sheet(folder / "kept.jpg", map(decode, gather(work / "chunks", candidates.places(shown))))
    return Decided(counts, candidates, plans)


def make_ready(submit: Callable[..., Future], decided: Decided, work: Path) -> None:
    """Copies the kept records to their shards, those that are not done yet, and puts WORK/ready together: the dataset with its report.

    submit: as an executor's, so that several shards are copied at once.
    """
    candidates, plans = decided.candidates, decided.plans
    futures: dict[str, list[Future]] = {}
    total = sum(len(plan.chosen) for plan in plans.values())
    with tqdm(total=total, desc="shards", unit="", disable=None) as bar:
        for split, plan in plans.items():
            bounds = itertools.pairwise(plan.bounds.tolist())
            futures[split] = [
                submit(copy_shard, work / "shards" / f"{split}-{number:05d}", work / "chunks", candidates.places(plan.chosen[a:b]))
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
    directory = assemble(work / "dataset", splits)
    (work / "report").rename(directory / "report")
    directory.rename(work / "ready")


def hand_over(work: Path, out: Path) -> report.Totals:
    """Gives WORK/ready its final name. What is left of the work folder may then be removed."""
    totals = report.read_totals(work / "ready" / "report" / "report.json")
    for name in ("chunks", "shards", "dataset"):
        shutil.rmtree(work / name)
    (work / "ready").rename(out)
    return totals
