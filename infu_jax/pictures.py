"""Pictures on disk: PNG files that say how they were made, and contact sheets."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin, UnidentifiedImageError

from infu_jax.errors import InputError

KEY = "infu_jax"
# IPTC's term for pictures made by a trained model; viewers and platforms read it from the XMP packet.
SYNTHETIC = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
_XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
    f'Iptc4xmpExt:DigitalSourceType="{SYNTHETIC}"/></rdf:RDF></x:xmpmeta>'
)


def save_png(path: Path, image: np.ndarray, recipe: Mapping[str, Any]) -> None:
    """Write (h, w, 3) uint8 RGB with `recipe` as JSON in its metadata, marked as synthetic. Never overwrites."""
    info = PngImagePlugin.PngInfo()
    info.add_itxt(KEY, json.dumps(recipe, ensure_ascii=False))
    info.add_itxt("XML:com.adobe.xmp", _XMP)
    info.add_text("Description", "Synthetic picture made by a generative model (infu_jax)")
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        Image.fromarray(image).save(partial, format="PNG", pnginfo=info)
        os.link(partial, path)  # unlike a rename, this fails if the name has been taken
    except FileExistsError:
        raise FileExistsError(f"{path} exists already and is not overwritten") from None
    finally:
        partial.unlink(missing_ok=True)


def read_recipe(path: Path) -> dict[str, Any]:
    """What `save_png` stored."""
    try:
        with Image.open(path) as image:
            stored = image.info.get(KEY)
    except UnidentifiedImageError:
        raise InputError(f"{path} is not a picture") from None
    if stored is None:
        raise InputError(f"{path} carries no infu_jax settings; only pictures that sample.py wrote do, as PNG files with their metadata kept")
    return json.loads(stored)


def first_free_number(folder: Path) -> int:
    """One more than the largest number that a file name in `folder` begins with."""
    numbers = [int(p.name[:4]) for p in folder.iterdir() if p.name[:4].isdigit()]
    return max(numbers, default=0) + 1


def contact_sheet(rows: Sequence[tuple[str, Sequence[tuple[np.ndarray, str]]]], *, cell: int = 256) -> np.ndarray:
    """A sheet of pictures with captions: rows of (title, [(picture, caption), ...]) -> (h, w, 3) uint8 RGB."""
    font, small = ImageFont.load_default(15), ImageFont.load_default(13)
    margin, line = 12, 20
    heights = [max(round(cell * image.shape[0] / image.shape[1]) for image, _ in cells) for _, cells in rows]
    width = margin + max(len(cells) for _, cells in rows) * (cell + margin)
    sheet = Image.new("RGB", (width, margin + sum(h + 2 * line + margin for h in heights)), "white")
    draw, top = ImageDraw.Draw(sheet), margin
    for (title, cells), height in zip(rows, heights):
        draw.text((margin, top), _cut(title, font, width - 2 * margin), fill="black", font=font)
        for n, (image, caption) in enumerate(cells):
            left = margin + n * (cell + margin)
            scaled = Image.fromarray(image).resize((cell, round(cell * image.shape[0] / image.shape[1])), Image.Resampling.LANCZOS)
            sheet.paste(scaled, (left, top + line))
            draw.text((left, top + line + height + 2), _cut(caption, small, cell), fill="#444444", font=small)
        top += height + 2 * line + margin
    return np.asarray(sheet)


def _cut(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """`text` on one line, shortened to `width` pixels."""
    text = " ".join(text.split())
    while font.getlength(text) > width and text:
        text = text[:-2].rstrip("…") + "…" if len(text) > 2 else ""
    return text
