"""See what is in a dataset: pairs as training would show them, and how many there are of what.

    python -m data_pipeline.show DATASET
    python -m data_pipeline.show DATASET --out pairs.png --pairing spms

writes a page that needs no network and no other file, or a PNG sheet. It holds photographs: treat it as you treat the dataset.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from data_pipeline.overview import Wanted, look
from infu_jax.cli import appearing, check_writable, run
from infu_jax.errors import InputError


@dataclass(frozen=True)
class Args(Wanted):
    out: Path = Path("outputs/dataset.html")
    """What to write: a page (.html) or a sheet of pictures (.png)."""
    overwrite: bool = False
    """Replace OUT if it is there."""


def main() -> None:
    args = tyro.cli(Args, prog="python -m data_pipeline.show", description=__doc__)
    if args.out.suffix.lower() not in (".html", ".png"):
        raise InputError(f"--out is {args.out}; a name that ends in .html or .png is needed")
    if args.out.exists() and not args.overwrite:
        raise InputError(f"{args.out} exists; choose another --out, or give --overwrite")
    if args.pairs < 1 or args.scan < 1:
        raise InputError(f"--pairs is {args.pairs} and --scan is {args.scan}; at least 1 is needed")
    check_writable(args.out.parent)
    from data_pipeline import overview_page, overview_sheet

    found = look(args)
    data = overview_page.page(found).encode() if args.out.suffix.lower() == ".html" else overview_sheet.sheet(found)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with appearing(args.out, args.overwrite) as partial:
        partial.write_bytes(data)
    print(f"{args.out}  {len(found.pairs)} of {found.targets:,} {found.pairing} pairs, {len(data) / 2**20:.1f} MiB")


if __name__ == "__main__":
    run(main)
