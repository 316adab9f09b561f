"""Pictures on disk: PNG files that say how they were made, and contact sheets."""

from __future__ import annotations

import bisect
import json
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin, UnidentifiedImageError

from infu_jax.errors import InputError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
KEY = "infu_jax"
# IPTC's term for pictures made by a trained model; viewers and platforms read it from the XMP packet.
SYNTHETIC = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
    f'Iptc4xmpExt:DigitalSourceType="{SYNTHETIC}"/></rdf:RDF></x:xmpmeta>'
)


def is_picture(path: Path) -> bool:
    """Whether it is a file with a picture's suffix, and not hidden."""
    return path.is_file() and path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def save_png(path: Path, image: np.ndarray, recipe: Mapping[str, Any]) -> None:
    """Write (h, w, 3) uint8 RGB with `recipe` as JSON in its metadata, marked as synthetic. Never overwrites; half a file is never seen."""
    info = PngImagePlugin.PngInfo()
    # What UTF-8 cannot hold (file names may be any bytes) becomes \udc80 and the like, which JSON reads back.
    info.add_itxt(KEY, json.dumps(recipe, ensure_ascii=False).encode("utf-8", "backslashreplace"))
    info.add_itxt("XML:com.adobe.xmp", XMP)
    info.add_text("Description", "Synthetic picture made by a generative model (infu_jax)")
    # Not the process id: containers that share a folder are all process 1 to themselves.
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        Image.fromarray(image).save(partial, format="PNG", pnginfo=info)
        _rename(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _rename(partial: Path, path: Path) -> None:
    """Give a file its name, unless that has been taken."""
    taken = FileExistsError(f"{path} exists already and is not overwritten")
    try:
        os.link(partial, path)  # unlike a rename, this fails if the name has been taken
    except FileExistsError:
        raise taken from None
    except OSError:  # a file system without links, e.g. a bucket or a USB stick
        if path.exists():
            raise taken from None
        partial.rename(path)


def save_next(folder: Path, name: str, image: np.ndarray, recipe: Mapping[str, Any]) -> Path:
    """`save_png` as `0007_<name>.png` under the next number of `folder`, which is made if need be. Runs may share a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    number = max((int(m[1]) for p in folder.iterdir() if (m := re.match(r"([0-9]{4,})_", p.name))), default=0)
    while True:
        number += 1
        path = folder / f"{number:04d}_{name}.png"
        try:
            save_png(path, image, recipe)
        except FileExistsError:  # another run was faster
            continue
        return path


def read_recipe(path: Path) -> dict[str, Any]:
    """What `save_png` stored."""
    try:
        with Image.open(path) as image:
            stored = image.info.get(KEY)
    except UnidentifiedImageError:
        raise InputError(f"{path} is not a picture") from None
    except (OSError, RecursionError, MemoryError):
        raise
    except Exception as e:  # Pillow's decoders raise nearly everything for damaged files, and errors of their own for huge ones
        raise InputError(f"{path}: damaged or too large a picture file ({e}); use a picture as sample.py wrote it") from None
    if stored is None:
        raise InputError(f"{path} carries no infu_jax settings; only pictures that sample.py wrote do, as PNG files with their metadata kept")
    try:
        recipe = json.loads(stored)
    except (ValueError, RecursionError) as e:
        raise InputError(f"{path}: its infu_jax settings are not JSON ({e}); use a picture as sample.py wrote it") from None
    if not isinstance(recipe, dict):
        raise InputError(f"{path}: its infu_jax settings are {type(recipe).__name__}, expected an object; use a picture as sample.py wrote it")
    return recipe


def thumbnail(image: np.ndarray, cell: int = 256) -> np.ndarray:
    """(h, w, 3) uint8 scaled to `cell` pixels of width, and at most twice as many of height."""
    height, width = image.shape[:2]
    scale = min(cell / width, 2 * cell / height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))


def contact_sheet(rows: Sequence[tuple[str, Sequence[tuple[np.ndarray, str]]]], *, cell: int = 256, columns: int = 8) -> np.ndarray:
    """A sheet of thumbnails with captions: rows of (title, [(thumbnail, caption), ...]) -> (h, w, 3) uint8 RGB.

    A row of more than `columns` thumbnails goes on in lines below it.
    """
    font, small = ImageFont.load_default(15), ImageFont.load_default(13)
    margin, line = 12, 20
    lines = [(title if start == 0 else "", cells[start : start + columns]) for title, cells in rows for start in range(0, len(cells), columns)]
    heights = [max(image.shape[0] for image, _ in cells) for _, cells in lines]
    width = margin + max(len(cells) for _, cells in lines) * (cell + margin)
    sheet = Image.new("RGB", (width, margin + sum(h + 2 * line + margin for h in heights)), "white")
    draw, top = ImageDraw.Draw(sheet), margin
    for (title, cells), height in zip(lines, heights):
        draw.text((margin, top), _cut(title, font, width - 2 * margin), fill="black", font=font)
        for n, (image, caption) in enumerate(cells):
            left = margin + n * (cell + margin)
            sheet.paste(Image.fromarray(image), (left, top + line))
            draw.text((left, top + line + height + 2), _cut(caption, small, cell), fill="#444444", font=small)
        top += height + 2 * line + margin
    return np.asarray(sheet)


def _cut(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """`text` on one line, shortened to `width` pixels."""
    text = " ".join(text.split())
    # No more characters are measured than there are pixels: Pillow refuses a million, and each look takes time with the length.
    if len(text) <= width and font.getlength(text) <= width:
        return text
    fitting = bisect.bisect_right(range(min(len(text), width)), width, key=lambda kept: font.getlength(text[:kept] + "…"))
    return text[: fitting - 1].rstrip() + "…" if fitting > 1 else ""
