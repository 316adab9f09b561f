"""What is in a dataset, as one PNG picture."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np

from data_pipeline.overview import CELL, Found, ranges


def sheet(found: Found) -> bytes:
    """The charts and pairs as one PNG picture."""
    from PIL import Image

    from infu_jax import pictures

    split = found.splits[found.split]
    title = f"{found.name}, {found.split}: {split.records:,} pictures of {split.people:,} people, {split.captions:,} captions; {found.pairing} pairs"
    charts = [
        ("aspect-ratio buckets", [(f"{width}x{height}", count) for (height, width), count in found.buckets.items()]),
        ("pictures of a person", ranges(found.pictures_of)),
        ("captions of a picture", ranges(found.captions_of)),
    ]
    rows = [(title, [(_draw_bars(bars), name) for name, bars in charts])]
    for pair in found.pairs:
        caption = pair.record.captions[0].text if pair.record.captions else "no caption"
        names = (pair.shown_by, "target", f"as trained, {pair.bucket[1]}x{pair.bucket[0]}", "control image")
        images = (pair.identity, pair.target, pair.fitted, pair.control)
        rows.append((f"{pair.record.person}: {caption}", [(_within(image), name) for image, name in zip(images, names)]))
    out = io.BytesIO()
    Image.fromarray(pictures.contact_sheet(rows, cell=CELL)).save(out, "PNG")
    return out.getvalue()


def _within(image: np.ndarray) -> np.ndarray:
    """The picture, no side longer than CELL."""
    from infu_jax import pictures

    height, width = image.shape[:2]
    return pictures.thumbnail(image, max(1, round(CELL * min(1.0, width / height))))


def _draw_bars(bars: Sequence[tuple[str, int]]) -> np.ndarray:
    """A chart of horizontal bars, CELL pixels wide."""
    from PIL import Image, ImageDraw, ImageFont

    line, font = 16, ImageFont.load_default(12)
    picture = Image.new("RGB", (CELL, line * len(bars) + 4), "white")
    draw, largest = ImageDraw.Draw(picture), max(count for _, count in bars)
    for n, (label, count) in enumerate(bars):
        top, length = 2 + n * line, (CELL - 130) * count / largest
        draw.text((66, top), label, fill="#444444", font=font, anchor="ra")
        draw.rectangle([72, top + 2, 72 + max(1, length), top + line - 4], fill="#5b7fb9")
        draw.text((78 + length, top), f"{count:,}", fill="#888888", font=font)
    return np.asarray(picture)
