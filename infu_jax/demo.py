"""Three drawn people, four prompts each, by a stack of the tiny world: one contact sheet, with how similar each face is to the photo's.

    python -m infu_jax.demo
    python -m infu_jax.demo --stack runs/tiny_world/release

The photos are those of `infu_jax/assets/faces`; nothing in the tiny world is trained on these people.
"""

from __future__ import annotations

import csv
import dataclasses
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import tyro

from infu_jax.assets import ASSETS, TINY, TINY_SAMPLING, TINY_TRUE_CFG
from infu_jax.cli import check_writable, keep_programs, run, user_cache

if TYPE_CHECKING:
    from infu_jax.pipeline import InfUPipeline, Pictures

PROMPTS = (
    "A close-up portrait of a {} at the beach, smiling, in a red t-shirt, in warm light.",
    "A close-up of a {} in a forest, with a neutral expression, wearing a yellow sweater, turned to the left.",
    "A {} in a city at night, looking sad, in a white turtleneck, turned to the right, in dim light, close-up.",
    "A close-up portrait of a {} in a library, with a gentle smile, wearing a blue shirt and round glasses, in soft light.",
)
"""In the words of the captions of drawn people; their stacks know no others."""

# Of each prompt, in pixels: the mean of forty drawn people in the pose that it asks for.
KEYPOINTS = np.float32([
    [[51, 49], [78, 51], [63, 63], [50, 71], [76, 73]],
    [[48, 51], [73, 49], [55, 63], [49, 75], [71, 74]],
    [[54, 50], [79, 51], [72, 63], [56, 76], [78, 77]],
    [[49, 50], [76, 49], [64, 63], [51, 72], [77, 71]],
])  # fmt: skip


@dataclass(frozen=True)
class Args:
    stack: Path = TINY
    """Folder with FLUX.1-tiny and InfiniteYou-tiny, as `python -m examples.tiny_world` writes it; by default the one that the package holds."""
    out: Path = Path("outputs/demo")
    """Folder for the pictures and the sheet. Nothing in it is overwritten."""
    seed: int = 1
    """Of the first person's pictures; the others' follow."""
    steps: int = TINY_SAMPLING.steps
    """Denoising steps."""
    compilation_cache: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = field(default_factory=lambda: user_cache() / "programs")
    """Folder in which compiled programs are kept for the next time; None keeps none."""


def people() -> dict[str, str]:
    """Who is in `infu_jax/assets/faces`: name and gender."""
    with (ASSETS / "faces" / "genders.csv").open(encoding="utf-8", newline="") as file:
        return {row["name"]: row["gender"] for row in csv.DictReader(file)}


def paint(pipeline: InfUPipeline, embedding: np.ndarray, gender: str, seed: int, steps: int = TINY_SAMPLING.steps) -> Pictures:
    """One person, once for each of PROMPTS and its KEYPOINTS, all from the same noise."""
    settings = dataclasses.replace(TINY_SAMPLING, steps=steps, true_cfg=TINY_TRUE_CFG)
    prompts = [prompt.format(gender) for prompt in PROMPTS]
    return pipeline(prompts, id_embedding=embedding, keypoints=KEYPOINTS, negative_prompt="", seeds=[seed] * len(prompts), settings=settings)


def main() -> None:
    args = tyro.cli(Args, prog="python -m infu_jax.demo", description=__doc__)
    check_writable(args.out)
    from tqdm import tqdm

    from infu_jax import face, pictures
    from infu_jax.pipeline import InfUPipeline

    keep_programs(args.compilation_cache)
    began = time.perf_counter()
    pipeline = InfUPipeline.load(args.stack / "FLUX.1-tiny", args.stack / "InfiniteYou-tiny")
    photos = {name: face.read_image(ASSETS / "faces" / f"{name}.png") for name in people()}
    cells = {prompt: [] for prompt in PROMPTS}
    for n, (name, gender) in enumerate(tqdm(people().items(), "people", leave=False, disable=None)):
        embedding = pipeline.embed_face(photos[name])
        made = paint(pipeline, embedding, gender, args.seed + n, args.steps)
        for prompt, image in zip(PROMPTS, made.images):
            text = prompt.format(gender)
            likeness = pipeline.similarity(image, embedding)
            said = "no face found" if likeness is None else f"similarity {likeness:.2f}"
            cells[prompt].append((pictures.thumbnail(image), f"{name}, {said}"))
            recipe = {"synthetic": True, "prompt": text, "seed": args.seed + n, "person": name, "steps": args.steps, "identity_similarity": likeness}
            print(f"{pictures.save_next(args.out, name, image, recipe)}  {said}  {text}", flush=True)
    rows = [("The photos", [(pictures.thumbnail(photo), name) for name, photo in photos.items()])]
    rows += [(prompt.format("woman (man)"), row) for prompt, row in cells.items()]
    sheet = pictures.save_next(args.out, "sheet", pictures.contact_sheet(rows), {"synthetic": True, "contact_sheet_of": PROMPTS, "seed": args.seed})
    print(f"{sheet}  contact sheet; {time.perf_counter() - began:.0f} s in all")


if __name__ == "__main__":
    run(main)
