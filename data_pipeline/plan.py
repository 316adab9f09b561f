"""Which candidates stay, and where each one goes: keys and duplicates over all chunks, the split by person, the order, the shards.

Everything here is a function of what the chunks say, so it is the same after any interruption and with any number of workers.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64, Integer, UInt64

from data_pipeline.chunks import chunk_path
from data_pipeline.duplicates import find_duplicates
from data_pipeline.records import VERSION

COLUMNS = ("row", "chunk", "place", "person", "height", "width", "flags", "captions", "bytes")


@dataclass(frozen=True, eq=False)
class Candidates:
    """What chunks say of the records in them, in the order of rows. 80 bytes a candidate."""

    table: Int64[np.ndarray, "N 9"]
    """COLUMNS; `place` is the record's number in its chunk, `person` a number in the order of first appearance."""
    hashes: UInt64[np.ndarray, "N"]
    keys: UInt64[np.ndarray, "N"]
    """The first 64 bits of the keys' digests."""
    people: list[str]

    def __getitem__(self, column: str) -> Int64[np.ndarray, "N"]:
        return self.table[:, COLUMNS.index(column)]

    def places(self, chosen: Integer[np.ndarray, "M"]) -> list[tuple[int, int]]:
        """(chunk, record of the chunk) of some candidates."""
        return list(zip(self["chunk"][chosen].tolist(), self["place"][chosen].tolist()))


@dataclass(frozen=True, eq=False)
class SplitPlan:
    """The candidates of a split in the order of its records, and where its shards begin and end."""

    chosen: Integer[np.ndarray, "M"]
    persons: Integer[np.ndarray, "M"]
    """Numbered from 0 in this split."""
    bounds: Integer[np.ndarray, "S_plus_1"]


def read_lines(chunks: Path, count: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """The chunk and the line of every row."""
    for chunk in range(count):
        with chunk_path(chunks, chunk).with_suffix(".jsonl").open() as file:
            for line in file:
                yield chunk, json.loads(line)


def load_candidates(chunks: Path, count: int) -> Candidates:
    """Reads the lines of all chunks."""
    people: dict[str, int] = {}
    tables, hashes, keys = [np.zeros((0, len(COLUMNS)), np.int64)], [np.zeros(0, np.uint64)], [np.zeros(0, np.uint64)]
    rows: list[tuple[int, ...]] = []
    looks: list[int] = []
    names: list[int] = []
    current = place = 0

    def flush():
        tables.append(np.array(rows, np.int64).reshape(-1, len(COLUMNS)))
        hashes.append(np.array(looks, np.uint64))
        keys.append(np.array(names, np.uint64))
        rows.clear(), looks.clear(), names.clear()

    for chunk, line in read_lines(chunks, count):
        if chunk != current:
            flush()
            current, place = chunk, 0
        if "reason" in line:
            continue
        person = people.setdefault(line["person"], len(people))
        rows.append((line["row"], chunk, place, person, *line["size"], line["flags"], line["captions"], line["bytes"]))
        looks.append(int(line["hash"], 16))
        names.append(int.from_bytes(hashlib.sha256(line["key"].encode()).digest()[:8], "big"))
        place += 1
    flush()
    return Candidates(np.concatenate(tables), np.concatenate(hashes), np.concatenate(keys), list(people))


def find_repeats(candidates: Candidates, distance: int | None) -> tuple[Bool[np.ndarray, "N"], Int64[np.ndarray, "N"]]:
    """Which candidates have the key of an earlier one, and of which kept candidate each is a duplicate (-1: of none).

    Of pictures that look the same the one with most pixels is kept, of those the earliest.
    """
    total = len(candidates.keys)
    first = np.unique(candidates.keys, return_index=True)[1]
    same_key = np.ones(total, bool)
    same_key[first] = False
    duplicate_of = np.full(total, -1)
    if distance is not None:
        pixels = candidates["height"] * candidates["width"]
        best = np.lexsort((np.arange(total), -pixels))
        best = best[~same_key[best]]
        found = find_duplicates(candidates.hashes[best], distance)
        duplicate_of[best[found >= 0]] = best[found[found >= 0]]
    return same_key, duplicate_of


def arrange(candidates: Candidates, kept: Bool[np.ndarray, "N"], validation_share: float, shard_bytes: int) -> dict[str, SplitPlan]:
    """The splits that have records: people in the order of their first row, each one's records together, shards of about equal size."""
    present = np.unique(candidates["person"][kept])
    in_validation = np.zeros(len(candidates.people), bool)
    in_validation[present] = [_validates(candidates.people[person], validation_share) for person in present]
    digests = sorted((_digest(candidates.people[person]), int(person)) for person in present)
    if 0 < validation_share and len(present) > 1:  # neither split is empty
        in_validation[digests[0][1]] = True
    if validation_share < 1:  # one person alone is for training
        in_validation[digests[-1][1]] = False
    plans = {}
    for split, wanted in (("train", False), ("validation", True)):
        chosen = np.flatnonzero(kept & (in_validation[candidates["person"]] == wanted))
        if not len(chosen):
            continue
        people, first, numbers = np.unique(candidates["person"][chosen], return_index=True, return_inverse=True)
        place = np.empty(len(people), np.int64)
        place[np.argsort(first)] = np.arange(len(people))
        persons = place[numbers]
        order = np.argsort(persons, kind="stable")
        ends = np.cumsum(candidates["bytes"][chosen[order]])
        shards = max(1, -(-int(ends[-1]) // shard_bytes))
        cuts = np.searchsorted(ends, ends[-1] / shards * np.arange(1, shards)) + 1
        plans[split] = SplitPlan(chosen[order], persons[order], np.unique([0, *cuts, len(chosen)]))
    return plans


def _digest(person: str) -> int:
    return int.from_bytes(hashlib.sha256(f"split {VERSION.split('.')[0]}: {person}".encode()).digest()[:8], "big")


def _validates(person: str, share: float) -> bool:
    """By name alone, so that a person stays in its split when a dataset grows."""
    return _digest(person) < share * 2**64
