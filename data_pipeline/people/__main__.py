"""Draw people: a folder of pictures and a manifest that python -m data_pipeline.build reads.

    python -m data_pipeline.people OUT --people 100 --pictures 8 --size 128
    python -m data_pipeline.people --sheet people.png --people 6 --pictures 6      # only look

writes OUT/<person>/<picture>.jpg and OUT/manifest.jsonl: captions, exact keypoints, and every attribute. A picture depends on its numbers,
its size, look and shots alone: in another run, with other workers, it is the same.

The builder's usual limits are those of photographs; for small pictures lower them:

    python -m data_pipeline.build --source OUT/manifest.jsonl --out data/people --filters.min-side 96 --filters.min-face 16 \\
        --filters.min-sharpness 0
"""

from __future__ import annotations

import json
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tqdm import tqdm

from data_pipeline.people.folder import Job, draw_person
from infu_jax.cli import appearing, check_writable, run
from infu_jax.errors import InputError

SHEET_ROWS, SHEET_COLUMNS = 24, 8


@dataclass(frozen=True)
class Args:
    out: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")] = None
    """New folder for the pictures. May be left out with --sheet."""
    people: int = 16
    """How many people."""
    pictures: int = 4
    """How many pictures of each."""
    first_person: int = 0
    """Number of the first person. Keep training and test people apart by it."""
    first_picture: int = 0
    """Number of everybody's first picture."""
    size: int = 512
    """Height and width in pixels."""
    height: int = 0
    """Instead of --size."""
    width: int = 0
    """Instead of --size."""
    look: Literal["snapshot", "clean", "mixed"] = "snapshot"
    """snapshot: noise, blur, dull colours, JPEG: what stands for real photos in this world. clean: none of it. mixed: half and half."""
    shots: tuple[Literal["close-up", "portrait", "half-length"], ...] = ("close-up", "portrait", "half-length")
    """Which may be drawn. In small pictures faces are clearer without half-length."""
    captions: int = 2
    """Captions a picture; the first names every attribute."""
    synthetic: bool = False
    """Mark the pictures as generated. By default they count as real photos of drawn people."""
    format: Literal["jpg", "png"] = "jpg"
    """Of the files; jpg is written with quality 95."""
    sheet: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Also a contact sheet (PNG): a row for each of the first people, a column for each of their first pictures."""
    workers: int = 0
    """Processes that draw; 0 is one for each core."""


def main() -> None:
    args = tyro.cli(Args, prog="python -m data_pipeline.people", description=__doc__)
    height, width = args.height or args.size, args.width or args.size
    _check(args, height, width)
    if args.out is not None:
        _write_folder(args, height, width)
    if args.sheet is not None:
        _write_sheet(args, height, width)


def _check(args: Args, height: int, width: int) -> None:
    if args.out is None and args.sheet is None:
        raise InputError("nothing to do: give an output folder OUT, --sheet FILE, or both")
    for name in ("people", "pictures", "captions"):
        if getattr(args, name) < 1:
            raise InputError(f"{name} is {getattr(args, name)}; at least 1 is needed")
    if not args.shots:
        raise InputError("shots is empty; name at least one of close-up, portrait and half-length")
    if args.captions > 255:
        raise InputError(f"captions is {args.captions}; a record keeps at most 255")
    for name in ("first_person", "first_picture", "workers"):
        if getattr(args, name) < 0:
            raise InputError(f"{name} is {getattr(args, name)}; 0 or more is needed")
    if not 32 <= min(height, width) <= max(height, width) <= 4096:
        raise InputError(f"pictures of {width}x{height} pixels; sides go from 32 to 4096")
    for path in (args.out, args.sheet):
        if path is None:
            continue
        if path.exists():
            raise InputError(f"{path} exists already; remove it or choose another name")
        check_writable(path if path is args.out else path.parent)


def _write_folder(args: Args, height: int, width: int) -> None:
    numbers = range(args.first_person, args.first_person + args.people)
    workers = min(args.workers or os.cpu_count() or 1, args.people)
    how = (height, width, args.look, args.shots, args.captions, args.synthetic, args.format)
    with appearing(args.out) as partial:
        partial.mkdir(parents=True)
        jobs = [Job(partial, n, args.first_picture, args.pictures, *how) for n in numbers]
        with (
            ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool,
            tqdm(total=args.people * args.pictures, desc="drawing", unit="picture", disable=None) as bar,
            (partial / "manifest.jsonl").open("x", encoding="utf-8") as manifest,
        ):
            for rows in pool.map(draw_person, jobs):
                manifest.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
                bar.update(len(rows))
    print(f"{args.out}  {args.people} people, {args.people * args.pictures} pictures of {width}x{height}, manifest.jsonl")


def _write_sheet(args: Args, height: int, width: int) -> None:
    from PIL import Image

    from data_pipeline import people
    from infu_jax import pictures

    rows = []
    numbers = range(args.first_person, args.first_person + min(args.people, SHEET_ROWS))
    for number in tqdm(numbers, desc="contact sheet", leave=False, disable=None):
        who = people.person(number)
        cells = []
        for k in range(args.first_picture, args.first_picture + min(args.pictures, SHEET_COLUMNS)):
            shown = people.render(who, people.picture(number, k, args.look, args.shots), height, width)
            cells.append((pictures.thumbnail(shown.image, min(256, width)), shown.caption))
        rows.append((f"person {number}: {who.gender}, {who.age}, {who.hair_colour} hair ({who.hair_style})", cells))
    args.sheet.parent.mkdir(parents=True, exist_ok=True)
    with appearing(args.sheet) as partial:
        Image.fromarray(pictures.contact_sheet(rows, cell=min(256, width))).save(partial, format="PNG")
    print(f"{args.sheet}  contact sheet of {len(rows)} people")


if __name__ == "__main__":
    run(main)
