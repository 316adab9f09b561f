"""What the embedded stack can do: three people in four scenes each, on one contact sheet.

    python -m infu_jax.demo --out outputs/demo

The stack was trained from nothing on drawn people (docs/tiny_world.md); the three were drawn for this and never seen in training. The same with
weights and photos of your own: sample.py.
"""

from __future__ import annotations

import csv
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

from infu_jax.assets import ASSETS
from infu_jax.cli import check_writable, run
from infu_jax.config import SamplingConfig
from infu_jax.errors import InputError

CFG = 2.0  # guidance away from the empty prompt: the stack is small and its base not distilled
PROMPTS = (
    "A portrait of a {} smiling, wearing a red sweater, in a garden, in soft daylight.",
    "A close-up of a {} looking surprised, wearing glasses, in front of a blue wall.",
    "A photo of a {} with a calm face, in a black suit, turned to the left, in a library, in warm light.",
    "A half-length portrait of a {} laughing, in a yellow t-shirt, at the beach.",
)


@dataclass(frozen=True)
class Args:
    out: Path = Path("outputs/demo")
    """Folder for the sheet. Nothing in it is overwritten."""
    seed: int = 1
    """Of the first picture; the others count up."""
    steps: int = 20
    """Denoising steps."""


def main() -> None:
    args = tyro.cli(Args, prog="python -m infu_jax.demo", description=__doc__)
    if args.steps < 1 or not 0 <= args.seed < 2**32 - 100:
        raise InputError(f"steps is {args.steps} and seed {args.seed}; at least 1 step and a seed from 0 to {2**32 - 101} are needed")
    check_writable(args.out)

    import numpy as np
    from tqdm import tqdm

    from infu_jax import face, pictures
    from infu_jax.pipeline import InfUPipeline

    with (ASSETS / "faces" / "genders.csv").open(encoding="utf-8") as file:
        people = {row["name"]: row["gender"] for row in csv.DictReader(file)}
    settings = SamplingConfig(width=128, height=128, steps=args.steps, t5_length=56, true_cfg=CFG)
    began = time.perf_counter()
    with tqdm(total=7, desc="loading", leave=False, disable=None) as bar:
        pipeline = InfUPipeline.load(ASSETS / "tiny" / "FLUX.1-tiny", ASSETS / "tiny" / "InfiniteYou-tiny", progress=lambda _: bar.update())
    photos = {name: face.read_image(ASSETS / "faces" / f"{name}.png") for name in people}
    identities = {name: pipeline.embed_face(photo) for name, photo in photos.items()}
    jobs = [(name, prompt.format(gender)) for name, gender in people.items() for prompt in PROMPTS]
    with tqdm(total=settings.steps, desc=f"{len(jobs)} pictures", leave=False, disable=None) as bar:
        made = pipeline(
            [prompt for _, prompt in jobs], id_embedding=np.stack([identities[name] for name, _ in jobs]), negative_prompt="" if CFG > 1 else None,
            seeds=[args.seed + n for n in range(len(jobs))], settings=settings, progress=lambda done, _: bar.update(done - bar.n),
        )  # fmt: skip
    cells = {name: [(pictures.thumbnail(photo), "photo")] for name, photo in photos.items()}
    for (name, prompt), image in zip(jobs, made.images, strict=True):
        likeness = pipeline.similarity(image, identities[name])
        said = "no face found" if likeness is None else f"similarity {likeness:.2f}"
        cells[name].append((pictures.thumbnail(image), said))
        print(f"{name}: {prompt}  {said}", file=sys.stderr)
    sheet = pictures.contact_sheet(list(cells.items()))
    path = pictures.save_next(args.out, "demo", sheet, {"synthetic": True, "demo": [prompt for _, prompt in jobs], "seed": args.seed, "steps": args.steps})
    print(f"{path}  {len(jobs)} pictures of {len(people)} people in {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    run(main)
