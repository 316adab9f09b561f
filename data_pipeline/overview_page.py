"""What is in a dataset, as one HTML page that needs no network and no other file."""

from __future__ import annotations

import base64
import dataclasses
import html
import io
from collections.abc import Iterable, Sequence

import numpy as np

from data_pipeline.overview import Found, Pair, ranges

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
        _chart("Pictures of a person", [(_text(label), count) for label, count in ranges(found.pictures_of)], unit="people"),
        _chart("Captions of a picture", [(_text(label), count) for label, count in ranges(found.captions_of)]),
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


def _bins(values: np.ndarray, bins: int = 8) -> list[tuple[str, int]]:
    """A histogram of a score, from its smallest value to its largest."""
    if len(np.unique(values)) == 1:
        return [(f"{values[0]:.3g}", len(values))]
    counts, edges = np.histogram(values, bins)
    return [(f"{low:.3g} to {high:.3g}", int(count)) for count, low, high in zip(counts, edges, edges[1:])]
