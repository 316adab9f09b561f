"""Pictures of people whom nothing else shows, drawn as prompts ask: their five points say where a face goes (`--controls`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from data_pipeline import people
from examples.tiny_world.prompts import Asked
from infu_jax import face


def draw(folder: Path, asked: Sequence[Asked], first: int) -> Path:
    """Write a picture for each prompt, of a person of its gender in whom a detector finds a face; the first such, of the numbers from `first` on."""
    if folder.exists():
        return folder
    partial = folder.with_name(f".{folder.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    detector, number = face.load_detector("yunet"), first
    for n, prompt in enumerate(tqdm(asked, desc="drawing strangers", disable=None)):
        shown = people.Picture(**{name: value for name, value in prompt.attributes.items() if name != "gender"})
        while True:
            who, number = people.person(number), number + 1
            if who.gender != prompt.gender:
                continue
            image = people.render(who, shown, 128, 128).image
            if detector.detect(image):
                break
        Image.fromarray(image).save(partial / f"{n:04d}.png")
    partial.rename(folder)
    return folder
