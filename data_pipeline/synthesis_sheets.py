"""Contact sheets of a synthesis: what was kept and what was not, beside the photo it was made from."""

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from data_pipeline.chunks import chunk_path, gather
from data_pipeline.gates import REASONS
from data_pipeline.photos import Photos
from data_pipeline.records import Record, decode, read_picture
from data_pipeline.report import CELL, grey, in_order, save_sheet
from infu_jax.pictures import thumbnail

PEOPLE_SHOWN = 12


def shown_people(people: int) -> frozenset[int]:
    """Those that the sheet shows, from first to last."""
    return frozenset(np.unique(np.linspace(0, people - 1, min(people, PEOPLE_SHOWN)).astype(int)).tolist())


def write_people(report: Path, chunks: Path, photos: Photos, shown: Sequence[int], pictures: int, chunk_rows: int) -> None:
    """people.jpg: a row for each of some people, with their photos and all pictures that were made of them."""
    with (report / "rejected.jsonl").open() as file:
        reasons = {line["row"]: line["reason"] for line in map(json.loads, file) if line["given"]["at"] in set(shown)}
    rows = []
    for at in sorted(shown):
        person = photos[at]
        cells = [(_photo(photo), "photo") for photo in person.photos[:pictures]] or [(_photo(None), person.problem)]
        for line, place in _lines(chunks, range(at * pictures, (at + 1) * pictures), chunk_rows):
            image = _small(chunks, line, place)
            if image is None:
                continue  # nothing was made
            reason, likeness = reasons.get(line["row"]), line["scores"].get("similarity")
            cells.append((image, (f"NOT {reason}" if reason else "kept") + ("" if likeness is None else f", similarity {likeness:.2f}")))
        kept = sum(row + 1 not in reasons for row in range(at * pictures, (at + 1) * pictures))
        rows.append((f"{person.name}: {kept} of {pictures} kept", cells))
    save_sheet(report / "people.jpg", rows)


def write_rejected(path: Path, chunks: Path, photos: Photos, counts: Mapping[str, int], first: Mapping[str, list[dict[str, Any]]]) -> None:
    """rejected.jpg: the first pictures of each reason, each after its photo."""
    rows = []
    for reason, count in in_order(counts, REASONS).items():
        cells = []
        for line in first[reason]:
            image = _small(chunks, line, line.get("place"))
            found = {photo.key: photo for photo in photos[line["given"]["at"]].photos}
            cells.append((_photo(found.get(line["given"].get("photo", ""))), f"{line['given']['person']}: photo"))
            cells.append((grey() if image is None else image, f"{line['row']}: {line['detail']}"))
        rows.append((f"{reason} ({count}): {REASONS[reason]}", cells))
    save_sheet(path, rows or [("nothing was rejected", [(grey(), "")])])


def _lines(chunks: Path, rows: range, chunk_rows: int) -> Iterator[tuple[dict[str, Any], tuple[int, int] | None]]:
    """The lines of some rows, with the place of those that have a record."""
    for chunk in range(rows.start // chunk_rows, (rows.stop - 1) // chunk_rows + 1):
        number = -1
        with chunk_path(chunks, chunk).with_suffix(".jsonl").open() as file:
            for line in map(json.loads, file):
                number += "reason" not in line
                if line["row"] - 1 in rows:
                    yield line, None if "reason" in line else (chunk, number)


def _small(chunks: Path, line: Mapping[str, Any], place: tuple[int, int] | None) -> UInt8[np.ndarray, "h w 3"] | None:
    if place is not None:
        (example,) = gather(chunks, [place])
        return thumbnail(read_picture(decode(example).target, line["key"]), CELL)
    return read_picture(base64.b64decode(line["thumbnail"]), str(line["row"])) if "thumbnail" in line else None


def _photo(record: Record | None) -> UInt8[np.ndarray, "h w 3"]:
    return grey() if record is None else thumbnail(read_picture(record.target, record.key), CELL)
