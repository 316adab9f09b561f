"""What became of every row: rejected.jsonl, report.json, two contact sheets, and a table for the terminal."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from data_pipeline.filters import REASONS, Rejected
from data_pipeline.manifest import Source, inside
from data_pipeline.records import PictureError, Record, read_picture
from infu_jax.pictures import contact_sheet, thumbnail

CELL = 224
SHOWN = 6  # rejected pictures for each reason
KEPT_SHOWN = 48


@dataclass(frozen=True)
class Totals:
    """What report.json says and `table` prints."""

    rows: int
    rejected: Mapping[str, int]
    splits: Mapping[str, Mapping[str, int]]
    """For each split: records, people, shards, bytes, records without a caption, synthetic ones, ones with an identity photo of their own."""


def write_rejected(path: Path, lines: Iterable[dict[str, Any]], bar: Any) -> tuple[Counter[str], dict[str, list[dict[str, Any]]]]:
    """Writes a line for each rejected row; returns counts for each reason, and its first rows."""
    counts: Counter[str] = Counter()
    first: dict[str, list[dict[str, Any]]] = {}
    with path.open("w") as file:
        for line in lines:
            bar.update()
            if "reason" not in line:
                continue
            counts[line["reason"]] += 1
            if len(examples := first.setdefault(line["reason"], [])) < SHOWN:
                examples.append(line)
            file.write(json.dumps({name: line[name] for name in ("row", "reason", "detail", "given", "scores") if name in line}) + "\n")
    return counts, first


def write_report(path: Path, totals: Totals, settings: Mapping[str, Any], reasons: Mapping[str, str] = REASONS) -> None:
    """report.json: the same for the same source and settings, so it holds no times and no paths of the machine."""
    said = {"rows": totals.rows, "splits": totals.splits, "rejected": in_order(totals.rejected, reasons), "settings": settings}
    path.write_text(json.dumps(said, indent=2) + "\n")


def read_totals(path: Path) -> Totals:
    """What `write_report` wrote."""
    said = json.loads(path.read_text())
    return Totals(said["rows"], said["rejected"], said["splits"])


def write_kept_sheet(path: Path, records: Iterator[Record]) -> None:
    """Some kept pictures with the face and its points drawn in, each beside its identity photo where it has one."""
    cells = []
    for record in records:
        if record.identity:
            cells.append((thumbnail(read_picture(record.identity, record.key), CELL), f"photo of {record.person}"))
        image = read_picture(record.target, record.key)
        small = thumbnail(image, CELL)
        scale = small.shape[1] / image.shape[1]
        drawn = Image.fromarray(small)
        draw = ImageDraw.Draw(drawn)
        draw.rectangle([float(v) * scale for v in record.target_face], outline=(255, 255, 255))
        for x, y in record.target_keypoints * scale:
            draw.ellipse([float(x) - 2, float(y) - 2, float(x) + 2, float(y) + 2], fill=(255, 60, 60))
        cells.append((np.asarray(drawn), f"{record.person} {image.shape[1]}x{image.shape[0]}"))
    save_sheet(path, [("some of the pictures that are kept", cells)])


def write_rejected_sheet(path: Path, source: Source, counts: Mapping[str, int], first: Mapping[str, list[dict[str, Any]]], max_pixels: int) -> None:
    """The first pictures of each reason; grey where one cannot be shown."""
    rows = []
    for reason, count in in_order(counts, REASONS).items():
        cells = [(_show(source, line["given"], max_pixels), f"{line['row']}: {line['detail']}") for line in first[reason]]
        rows.append((f"{reason} ({count}): {REASONS[reason]}", cells))
    save_sheet(path, rows or [("nothing was rejected", [(grey(), "")])])


def _show(source: Source, given: str | dict[str, Any], max_pixels: int) -> UInt8[np.ndarray, "h w 3"]:
    try:
        values = json.loads(given) if source.kind == "jsonl" else {"image": given} if isinstance(given, str) else given
        name = values["image"]
        path = inside(source.root, name)
        if path.stat().st_size > 2**27:
            return grey()  # it was not read before either
        return thumbnail(read_picture(path.read_bytes(), name, max_pixels=max_pixels), CELL)
    except (Rejected, PictureError, OSError, ValueError, RecursionError, KeyError, TypeError):  # which is why it was rejected, and was said
        return grey()


def grey() -> UInt8[np.ndarray, "h w 3"]:
    """In the place of a picture that cannot be shown."""
    return np.full((CELL // 2, CELL, 3), 200, np.uint8)


def save_sheet(path: Path, rows: list) -> None:
    """Rows as `contact_sheet` takes them, as a JPEG file."""
    Image.fromarray(contact_sheet(rows, cell=CELL)).save(path, "JPEG", quality=85)


def in_order(counts: Mapping[str, int], reasons: Mapping[str, str]) -> dict[str, int]:
    """The reasons that occur, in the order of `reasons`."""
    return {reason: counts[reason] for reason in reasons if counts.get(reason)}


def table(totals: Totals) -> str:
    """Several lines for the terminal."""
    lines = [f"{'':20}{'records':>10}{'people':>10}{'shards':>8}{'MiB':>10}"]
    for split, said in totals.splits.items():
        lines.append(f"{split:20}{said['records']:>10,}{said['people']:>10,}{said['shards']:>8,}{said['bytes'] / 2**20:>10,.1f}")
    rejected = sum(totals.rejected.values())
    lines.append(f"{'rejected':20}{rejected:>10,}  of {totals.rows:,} rows" + (", for these reasons:" if rejected else ""))
    for reason, count in in_order(totals.rejected, REASONS).items():
        lines.append(f"  {reason:18}{count:>10,}  {REASONS[reason]}")
    bare = sum(said["without_caption"] for said in totals.splits.values())
    if bare:
        lines.append(f"{bare:,} records have no caption")
    return "\n".join(lines)
