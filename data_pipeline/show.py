"""See what is in a dataset: pairs as training would show them, and how many there are of what.

    python -m data_pipeline.show DATASET
    python -m data_pipeline.show DATASET --out pairs.png --pairing spms

writes a page that needs no network and no other file, or a PNG sheet. It holds photographs: treat it as you treat the dataset.
"""

from __future__ import annotations

import base64
import dataclasses
import html
import io
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from etils import epath

from infu_jax.cli import check_writable, run
from infu_jax.errors import InputError
from infu_jax.train_config import DataConfig

DEFAULTS = DataConfig()
CELL = 224  # height of a picture on the page


@dataclass(frozen=True)
class Args:
    dataset: tyro.conf.Positional[str]
    """Dataset that python -m data_pipeline.build wrote."""
    out: Path = Path("outputs/dataset.html")
    """What to write: a page (.html) or a sheet of pictures (.png)."""
    overwrite: bool = False
    """Replace OUT if it is there."""
    split: str = "train"
    """Part of the dataset that pairs and histograms are of."""
    pairs: int = 24
    """How many pairs to show."""
    pairing: Literal["auto", "spss", "spms"] = "auto"
    """As data.pairing of a run. auto: spms if people have several pictures or records carry an identity photo, or else spss."""
    identities: Literal["real", "any"] = DEFAULTS.identities
    """As data.identities of a run: what may be an identity in spms."""
    resolution: int = DEFAULTS.resolution
    """As data.resolution of a run: class of the aspect-ratio buckets."""
    bucket_step: int = DEFAULTS.bucket_step
    """As data.bucket_step of a run."""
    max_aspect: float = DEFAULTS.max_aspect
    """As data.max_aspect of a run."""
    seed: int = 0
    """Which pairs are drawn."""
    scan: int = 2000
    """Records that are read for the scores and the sources of captions, evenly over the split."""


def main() -> None:
    args = tyro.cli(Args, prog="python -m data_pipeline.show", description=__doc__)
    if args.out.suffix.lower() not in (".html", ".png"):
        raise InputError(f"--out is {args.out}; a name that ends in .html or .png is needed")
    if args.out.exists() and not args.overwrite:
        raise InputError(f"{args.out} exists; choose another --out, or give --overwrite")
    if args.pairs < 1 or args.scan < 1:
        raise InputError(f"--pairs is {args.pairs} and --scan is {args.scan}; at least 1 is needed")
    check_writable(args.out.parent)
    found = look(args)
    data = page(found).encode() if args.out.suffix.lower() == ".html" else sheet(found)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    partial = args.out.with_name(f".{args.out.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(data)
        partial.replace(args.out)
    finally:
        partial.unlink(missing_ok=True)
    print(f"{args.out}  {len(found.pairs)} of {found.targets:,} {found.pairing} pairs, {len(data) / 2**20:.1f} MiB")


# Looking ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Split:
    """Counts of one split."""

    records: int
    people: int
    captions: int
    synthetic: int
    inline: int


@dataclass(frozen=True, eq=False)
class Pair:
    """One pair. Pictures are RGB thumbnails of CELL pixels of height."""

    identity: np.ndarray
    """The photo that shows the face, with its keypoints."""
    target: np.ndarray
    """The target as stored, with face and keypoints; what its bucket cuts off is dimmed."""
    fitted: np.ndarray
    """What the model learns to paint."""
    control: np.ndarray
    record: Any
    """`records.Record` of the target."""
    shown_by: str
    """Where the identity is from."""
    bucket: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Found:
    """Everything that is shown."""

    name: str
    split: str
    splits: Mapping[str, Split]
    pairing: str
    targets: int
    """Pairs of an epoch."""
    notes: tuple[str, ...]
    buckets: Mapping[tuple[int, int], int]
    pictures_of: Mapping[int, int]
    """Number of pictures -> how many people have that many."""
    captions_of: Mapping[int, int]
    """Number of captions -> how many records have that many."""
    scanned: int
    sources: Mapping[str, int]
    scores: Mapping[str, np.ndarray]
    features: Sequence[Sequence[str]]
    """Rows of: feature, split, settings, stored as, size of a row."""
    rejected: Mapping[str, int]
    """Rows that the build left out, for each reason; empty where there is no report."""
    pairs: Sequence[Pair]


def look(args: Args) -> Found:
    """Read what is to be shown."""
    from data_pipeline import index, pairs, records
    from data_pipeline.buckets import buckets, nearest

    folder = epath.Path(args.dataset)
    names = [path.name for path in (folder / "index").iterdir()] if (folder / "index").is_dir() else []
    if args.split not in names:
        raise InputError(f"{folder} has no split {args.split}; it has {', '.join(sorted(names)) or 'none: give a folder that data_pipeline.build wrote'}")
    indexes = {name: index.open_index(folder, name) for name in sorted(names)}
    mine = indexes[args.split]
    pairing = args.pairing
    if pairing == "auto":
        pairing = "spms" if mine.records > mine.people or (mine.flags & index.INLINE_IDENTITY).any() else "spss"
    cfg = DataConfig(
        paths=(args.dataset,), split=args.split, pairing=pairing, identities=args.identities,
        resolution=args.resolution, bucket_step=args.bucket_step, max_aspect=args.max_aspect,
    )  # fmt: skip
    plan = pairs.Plan(cfg, [mine], batch_size=1, seed=args.seed)
    targets = plan.steps_per_epoch()
    source = records.open_records(folder, args.split)
    table = buckets(args.resolution, args.bucket_step, args.max_aspect)
    counts = np.bincount(nearest(mine.sizes, table), minlength=len(table))
    scanned = np.unique(np.linspace(0, mine.records - 1, min(args.scan, mine.records)).astype(int))
    sources: Counter[str] = Counter()
    scores: dict[str, list[float]] = {}
    for number in scanned:
        record = source[number]
        sources.update(caption.source for caption in record.captions)
        for name, value in record.scores.items():
            scores.setdefault(name, []).append(value)
    return Found(
        name=folder.name,
        split=args.split,
        splits={name: _count(found) for name, found in indexes.items()},
        pairing=pairing,
        targets=targets,
        notes=plan.unseen(),
        buckets={bucket: int(count) for bucket, count in zip(table, counts) if count},
        pictures_of=_histogram(np.diff(mine.offsets.astype(np.int64))),
        captions_of=_histogram(mine.captions),
        scanned=len(scanned),
        sources=dict(sources.most_common()),
        scores={name: np.array(values) for name, values in sorted(scores.items())},
        features=_features(folder, indexes),
        rejected=_rejected(folder),
        pairs=[_pair(source, plan.rows(step)) for step in range(min(args.pairs, targets))],
    )


def _count(found) -> Split:
    from data_pipeline import index

    flags = np.asarray(found.flags)
    return Split(
        found.records,
        found.people,
        int(found.captions.sum(dtype=np.int64)),
        int(np.count_nonzero(flags & index.SYNTHETIC)),
        int(np.count_nonzero(flags & index.INLINE_IDENTITY)),
    )


def _histogram(values: np.ndarray) -> dict[int, int]:
    found, counts = np.unique(np.asarray(values), return_counts=True)
    return {int(value): int(count) for value, count in zip(found, counts)}


def _features(folder: epath.Path, splits: Iterable[str]) -> list[tuple[str, ...]]:
    from data_pipeline import features

    rows = []
    for split in splits:
        for feature in features.available(folder, split):
            place = features.folder_of(folder, feature, split) / features.PLAN
            plan = features.Plan.from_json(place.read_text(), place)
            settings = ", ".join(f"{name} {value}" for name, value in plan.settings.items()) or "none"
            size = max(plan.row_bytes(group) for group in plan.groups)
            rows.append((feature, split, settings, plan.dtype, f"{size / 2**10:,.1f} KiB", f"{int(plan.starts[-1]):,}"))
    return rows


def _rejected(folder: epath.Path) -> dict[str, int]:
    path = folder / "report" / "report.json"
    if not path.exists():
        return {}
    try:
        return {str(reason): int(count) for reason, count in json.loads(path.read_text())["rejected"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise InputError(f"{path} is not the report of a build ({e!r}); move it away") from None


# Pictures -----------------------------------------------------------------------------------------


def _pair(source, rows) -> Pair:
    """The first of a batch's rows."""
    from data_pipeline import transforms

    number, identity, inline = int(rows.targets[0]), int(rows.identities[0]), bool(rows.inline[0])
    record = source[number]
    giver = record if identity == number else source[identity]
    if inline:
        photo, points, box = transforms.decode(giver.identity, giver.identity_size), giver.identity_keypoints, giver.identity_face
        shown_by = "a photo in the record"
    else:
        photo, points, box = transforms.decode(giver.target, giver.target_size), giver.target_keypoints, giver.target_face
        shown_by = "the same picture" if identity == number else f"picture {giver.key}"
    target = transforms.decode(record.target, record.target_size)
    how = transforms.fit(record.target_size, rows.bucket, record.target_keypoints, record.target_face)
    fitted, _ = transforms.fitted(record.target, record.target_size, rows.bucket, record.target_keypoints, record.target_face)
    cut = tuple(side * how.reduction for side in how.box)
    return Pair(
        identity=_drawn(photo, points, box),
        target=_drawn(target, record.target_keypoints, record.target_face, cut),
        fitted=_thumbnail(fitted)[0],
        control=_thumbnail(transforms.control_image(rows.bucket, how.points(record.target_keypoints)))[0],
        record=record,
        shown_by=shown_by,
        bucket=rows.bucket,
    )


def _thumbnail(image: np.ndarray) -> tuple[np.ndarray, float]:
    """The picture at CELL pixels of height, at most twice as wide, and its scale."""
    import cv2

    scale = min(CELL / image.shape[0], 2 * CELL / image.shape[1])
    size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC), scale


def _drawn(image: np.ndarray, points: np.ndarray, box: np.ndarray, cut: tuple[int, int, int, int] | None = None) -> np.ndarray:
    """A thumbnail with five dots, the face's box, and all outside of `cut` (left, top, right, bottom) dimmed."""
    from PIL import Image, ImageDraw

    from infu_jax import face

    small, scale = _thumbnail(image)
    if cut is not None:
        left, top, right, bottom = (round(side * scale) for side in cut)
        inside = small[top:bottom, left:right].copy()
        small = (small * 0.35).astype(np.uint8)
        small[top:bottom, left:right] = inside
    picture = Image.fromarray(small)
    draw = ImageDraw.Draw(picture)
    draw.rectangle([float(side) * scale for side in box], outline=(255, 255, 255))
    for (x, y), colour in zip(points * scale, face.COLOURS):
        draw.ellipse([x - 3, y - 3, x + 3, y + 3], fill=colour, outline=(255, 255, 255))
    return np.asarray(picture)


# The page -----------------------------------------------------------------------------------------

STYLE = """
:root { color-scheme: light dark; --ink: #22252a; --soft: #6a707a; --line: #e3e5e9; --paper: #fafafa; --card: #fff; --bar: #5b7fb9; --tag: #eef1f6; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e7ea; --soft: #9aa0aa; --line: #33363c; --paper: #16181b; --card: #1f2226; --bar: #6f94d0; --tag: #2b3038; }
}
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 1280px; padding: 32px 24px 64px; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif }
h1 { font-size: 26px; margin: 0 }
h2 { font-size: 18px; margin: 40px 0 12px }
h3 { font-size: 14px; margin: 0 0 10px; font-weight: 600 }
p { margin: 4px 0; color: var(--soft) }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: 5px 18px 5px 0; text-align: right; border-bottom: 1px solid var(--line) }
th { color: var(--soft); font-weight: 500 }
th:first-child, td:first-child { text-align: left }
.charts { columns: 3 320px; column-gap: 16px }
.charts .card { break-inside: avoid; margin-bottom: 16px }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 16px }
.bars { display: grid; grid-template-columns: max-content 1fr max-content; gap: 4px 10px; align-items: center; font-size: 13px }
.bars span { font-variant-numeric: tabular-nums }
.bars i { display: block; height: 12px; border-radius: 3px; background: var(--bar) }
.bars u { display: inline-block; border: 1.5px solid var(--soft); border-radius: 2px; margin-right: 8px; vertical-align: middle }
.bars span:nth-child(3n) { color: var(--soft); text-align: right }
.bars span:nth-child(3n + 1) { overflow-wrap: anywhere; max-width: 180px }
.pairs { display: grid; gap: 14px; grid-template-columns: repeat(auto-fill, minmax(min(100%, 600px), 1fr)) }
.pictures { display: grid; gap: 10px; grid-template-columns: repeat(4, 1fr) }
figure { margin: 0; display: flex; flex-direction: column; justify-content: end }
figure img { align-self: start; max-width: 100%; max-height: 190px; border-radius: 6px }
figcaption { font-size: 12px; color: var(--soft); margin-top: 4px }
.facts { font-size: 13px; color: var(--soft); margin: 0 0 10px }
.facts b { color: var(--ink) }
.caption { margin: 8px 0 0; color: var(--ink); overflow-wrap: anywhere }
.tag { background: var(--tag); color: var(--soft); border-radius: 9px; padding: 1px 8px; font-size: 12px; margin-right: 6px }
"""


def page(found: Found) -> str:
    """The page as one HTML text: pictures are inside, nothing is fetched, no script runs, and every text from the dataset is escaped."""
    splits = [[_text(name), *(f"{value:,}" for value in dataclasses.astuple(split))] for name, split in found.splits.items()]
    charts = [
        _chart("Aspect-ratio buckets", [(f"{_shape(bucket)}{bucket[1]} x {bucket[0]}", count) for bucket, count in found.buckets.items()]),
        _chart("Pictures of a person", [(_text(label), count) for label, count in _ranges(found.pictures_of)], unit="people"),
        _chart("Captions of a picture", [(_text(label), count) for label, count in _ranges(found.captions_of)]),
    ]
    if found.sources:
        charts.append(_chart("Sources of captions", [(_text(source), count) for source, count in found.sources.items()], unit="captions"))
    charts += [_chart(f"Score: {_text(name)}", _bins(values)) for name, values in found.scores.items()]
    scanned = f"Scores and sources are those of {found.scanned:,} records, evenly over the split." if found.sources or found.scores else ""
    features = []
    if found.features:
        head = ("feature", "split", "settings", "stored as", "a row", "rows")
        features = ["<h2>Features computed ahead</h2>", _table(head, (map(_text, row) for row in found.features))]
    rejected = []
    if found.rejected:
        from data_pipeline import filters, gates

        meanings = {**filters.REASONS, **gates.REASONS}
        reasons = ([_text(reason), f"{count:,}", _text(meanings.get(reason, ""))] for reason, count in found.rejected.items())
        rejected = ["<h2>Left out</h2>", _table(("reason", "rows", "what it means"), reasons), "<p>The folder report has all of them.</p>"]
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            """<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">""",
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{_text(found.name)}</title><style>{STYLE}</style></head><body>",
            f"<h1>{_text(found.name)}</h1>",
            *(f"<p>{_text(note[0].upper() + note[1:])}.</p>" for note in found.notes),
            "<h2>What there is</h2>",
            _table(("split", "pictures", "people", "captions", "synthetic", "with an identity photo"), splits),
            f"<h2>The split {_text(found.split)}</h2>",
            f'<div class="charts">{"".join(charts)}</div>',
            f"<p>{scanned}</p>",
            *features,
            *rejected,
            f"<h2>{len(found.pairs):,} of {found.targets:,} pairs ({_text(found.pairing)})</h2>",
            '<div class="pairs">',
            *(_card(pair) for pair in found.pairs),
            "</div></body></html>\n",
        ]
    )


def _card(pair: Pair) -> str:
    record, (height, width) = pair.record, pair.bucket
    facts = [f"<b>{_text(record.person)}</b>", _text(record.key), f"{record.target_size[1]} x {record.target_size[0]}"]
    facts += ["synthetic"] if record.synthetic else []
    facts += [f"{_text(name)} {value:.3g}" for name, value in record.scores.items()]
    facts += [f"{_text(name)}: {_text(record.provenance[name])}" for name in ("path", "licence", "license", "url") if record.provenance.get(name)]
    pictures = (
        (pair.identity, f"identity: {pair.shown_by}"),
        (pair.target, "target and what is kept"),
        (pair.fitted, f"as trained, {width} x {height}"),
        (pair.control, "control image"),
    )
    captions = record.captions or ()
    return "".join(
        [
            f'<div class="card"><p class="facts">{" · ".join(facts)}</p><div class="pictures">',
            *(f'<figure><img alt="" src="{_data_uri(image)}"><figcaption>{_text(said)}</figcaption></figure>' for image, said in pictures),
            "</div>",
            *(f'<p class="caption"><span class="tag">{_text(caption.source)}</span>{_text(caption.text)}</p>' for caption in captions),
            "" if captions else '<p class="caption">no caption</p>',
            "</div>",
        ]
    )


def _chart(title: str, bars: Sequence[tuple[str, int]], unit: str = "pictures") -> str:
    """Horizontal bars. title, labels: HTML."""
    largest = max((count for _, count in bars), default=0) or 1
    rows = "".join(f'<span>{label}</span><i style="width:{_percent(count / largest)}%"></i><span>{count:,}</span>' for label, count in bars)
    return f'<div class="card"><h3>{title} <span class="tag">{unit}</span></h3><div class="bars">{rows}</div></div>'


def _percent(share: float) -> float:
    return max(1.0, round(100 * share, 1)) if share else 0.0  # what is there is seen


def _shape(bucket: tuple[int, int]) -> str:
    height, width = (round(18 * side / max(bucket)) for side in bucket)
    return f'<u style="width:{width}px;height:{height}px"></u>'


def _table(head: Sequence[str], rows: Iterable[Iterable[str]]) -> str:
    """rows: HTML."""
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{''.join(f'<th>{name}</th>' for name in head)}</tr>{body}</table>"


def _text(value: object) -> str:
    """Any text as HTML: escaped, and what cannot be printed (control characters, turned writing, halves of characters) replaced."""
    return html.escape("".join(c if c.isprintable() else " " if c.isspace() else "\ufffd" for c in str(value)))


def _data_uri(image: np.ndarray) -> str:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(image).save(out, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"


def _ranges(counts: Mapping[int, int], most: int = 12) -> list[tuple[str, int]]:
    """A bar a value, or for many values a bar for each doubling: 8-15, 16-31, ..."""
    if len(counts) <= most:
        return [(str(value), count) for value, count in sorted(counts.items())]
    bars: Counter[int] = Counter()
    for value, count in counts.items():
        bars[value.bit_length()] += count
    names = {bits: (1 << bits >> 1, (1 << bits) - 1) for bits in bars}
    return [(str(low) if low == high else f"{low}-{high}", bars[bits]) for bits, (low, high) in sorted(names.items())]


def _bins(values: np.ndarray, bins: int = 8) -> list[tuple[str, int]]:
    """A histogram of a score, from its smallest value to its largest."""
    if len(np.unique(values)) == 1:
        return [(f"{values[0]:.3g}", len(values))]
    counts, edges = np.histogram(values, bins)
    return [(f"{low:.3g} to {high:.3g}", int(count)) for count, low, high in zip(counts, edges, edges[1:])]


# The sheet ----------------------------------------------------------------------------------------


def sheet(found: Found) -> bytes:
    """The charts and pairs as one PNG picture."""
    from PIL import Image

    from infu_jax import pictures

    split = found.splits[found.split]
    title = f"{found.name}, {found.split}: {split.records:,} pictures of {split.people:,} people, {split.captions:,} captions; {found.pairing} pairs"
    charts = [
        ("aspect-ratio buckets", [(f"{width}x{height}", count) for (height, width), count in found.buckets.items()]),
        ("pictures of a person", _ranges(found.pictures_of)),
        ("captions of a picture", _ranges(found.captions_of)),
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


if __name__ == "__main__":
    run(main)
