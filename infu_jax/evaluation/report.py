"""One HTML page with tables, intervals and grids of pictures; it needs no network and no other file."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from infu_jax import pictures
from infu_jax.evaluation.comparing import MARK, Row, Value, shown
from infu_jax.evaluation.measuring import Measure
from infu_jax.evaluation.scores import Scores

CELL = 160
WORST = 12


@dataclass(frozen=True)
class Page:
    """What is shown. rows: models, this one first; differences: of this one to each other; notes: what a reader must know."""

    rows: Sequence[Row]
    differences: Sequence[Row]
    measures: Sequence[Measure]
    scores: Scores
    genders: dict[str, str]
    notes: Sequence[str]
    confidence: float


def html_page(page: Page, photo: Callable[[str], np.ndarray], picture: Callable[[int], np.ndarray], *, columns: int = 8) -> str:
    """The page. photo: the photo (h, w, 3) of a person; picture: the n-th picture of the scores; columns: prompts shown of each gender."""
    scores, ours = page.scores, shown(page.rows, page.measures)
    parts = [
        f"<h1>{_text(scores.name)}</h1>",
        f"<p>{len(scores)} pictures, {len(set(scores.who))} people, {len(set(scores.prompts))} prompts. "
        f"Intervals of {page.confidence:.0%}: bootstrap over people and prompts.</p>",
        *(f'<p class="note">{_text(note)}</p>' for note in page.notes),
        "<h2>Measures</h2>",
        _table(page.rows, ours),
    ]
    if page.differences:
        parts += ["<h2>Differences on shared people and prompts</h2>", _table(page.differences, shown(page.differences, page.measures))]
    parts += ["<h2>Intervals</h2>", '<div class="charts">', *(_chart(measure, page.rows) for measure in ours), "</div>"]
    parts += ["<h2>What is measured</h2><dl>", *(f"<dt>{_text(m.label)} {MARK[m.better]}</dt><dd>{_text(m.about)}</dd>" for m in ours), "</dl>"]
    for gender in dict.fromkeys(page.genders.values()):
        parts += [f"<h2>{'Women' if gender == 'woman' else 'Men'}</h2>", _grid(page, gender, photo, picture, columns)]
    parts += _worst(page, photo, picture)
    return _SHELL.format(title=_text(scores.name), body="\n".join(parts))


def _table(rows: Sequence[Row], measures: Sequence[Measure]) -> str:
    head = "".join(f"<th>{_text(row.name)}</th>" for row in rows)
    lines = [f"<tr><td>pictures</td>{''.join(f'<td>{row.pictures}</td>' for row in rows)}</tr>"]
    for m in measures:
        cells = "".join(f"<td>{_value(row.values.get(m.key))}</td>" for row in rows)
        lines.append(f'<tr><td title="{_text(m.about)}">{_text(m.label)} {MARK[m.better]}</td>{cells}</tr>')
    return f'<div class="wide"><table><tr><th></th>{head}</tr>{"".join(lines)}</table></div>'


def _value(value: Value | None) -> str:
    if value is None or not math.isfinite(value.value):
        return "-"
    span = f"<small>{value.low:.3f} to {value.high:.3f}</small>" if math.isfinite(value.low) else ""
    return f"{value.value:.3f}{span}"


def _chart(measure: Measure, rows: Sequence[Row]) -> str:
    """A dot and a line for every model that has the measure."""
    found = [(row.name, value) for row in rows if (value := row.values.get(measure.key)) is not None and math.isfinite(value.value)]
    ends = [x for _, v in found for x in (v.value, v.low, v.high) if math.isfinite(x)]
    low, high = min(ends), max(ends)
    room = max((high - low) * 0.08, 1e-3)
    low, high = low - room, high + room
    place = lambda x: 110 + 190 * (x - low) / (high - low)  # noqa: E731
    marks = []
    for n, (name, v) in enumerate(found):
        y = 14 + 20 * n
        if math.isfinite(v.low):
            marks.append(f'<line x1="{place(v.low):.1f}" x2="{place(v.high):.1f}" y1="{y}" y2="{y}"/>')
        short = name if len(name) <= 16 else name[:15] + "…"
        marks.append(f'<circle cx="{place(v.value):.1f}" cy="{y}" r="4"/><text x="102" y="{y + 4}" text-anchor="end">{_text(short)}</text>')
    bottom = 14 + 20 * len(found)
    ticks = f'<text x="110" y="{bottom + 8}">{low:.2f}</text><text x="300" y="{bottom + 8}" text-anchor="end">{high:.2f}</text>'
    drawing = f'<svg viewBox="0 0 310 {bottom + 14}">{"".join(marks)}{ticks}</svg>'
    return f"<figure><figcaption>{_text(measure.label)} {MARK[measure.better]}</figcaption>{drawing}</figure>"


def _grid(page: Page, gender: str, photo, picture, columns: int) -> str:
    """People down, prompts across."""
    people = [who for who, g in page.genders.items() if g == gender]
    place = {key: n for n, key in enumerate(zip(page.scores.who, page.scores.prompts))}
    numbers = sorted({prompt for who, prompt in place if who in people})
    chosen = numbers if len(numbers) <= columns else [numbers[n * len(numbers) // columns] for n in range(columns)]
    heads = "".join(f'<th class="prompt">{number}. {_text(page.scores.texts[number])}</th>' for number in chosen)
    lines = []
    for who in people:
        cells = [f"<td>{_image(photo(who))}<small>{_text(who)}</small></td>"]
        for number in chosen:
            n = place.get((who, number))
            cells.append("<td></td>" if n is None else f"<td>{_image(picture(n))}<small>{_text(_said(page.scores, n))}</small></td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f'<div class="wide"><table class="grid"><tr><th></th>{heads}</tr>{"".join(lines)}</table></div>'


def _worst(page: Page, photo, picture) -> list[str]:
    scores, parts = page.scores, []
    first = scores.recognisers[0].name
    likeness = scores.columns[f"similarity/{first}"]
    order = [int(n) for n in np.argsort(np.where(np.isfinite(likeness), likeness, np.inf), kind="stable") if np.isfinite(likeness[n])]
    for title, chosen in ((f"Least like the photo ({first})", order), ("No face found", [int(n) for n in np.flatnonzero(~np.isfinite(likeness))])):
        if chosen:
            cards = [
                f'<figure class="pair">{_image(photo(scores.who[n]))}{_image(picture(n))}<figcaption>{_text(scores.who[n])}, {_text(_said(scores, n))}<br>'
                f"{_text(scores.texts[scores.prompts[n]])}</figcaption></figure>"
                for n in chosen[:WORST]
            ]
            parts += [f"<h2>{_text(title)}: {len(cards)} of {len(chosen)}</h2>", f'<div class="charts">{"".join(cards)}</div>']
    return parts


def _said(scores: Scores, n: int) -> str:
    """Similarity and prompt scores of one picture."""
    told = []
    for r in scores.recognisers:
        x = scores.columns[f"similarity/{r.name}"][n]
        told.append(f"{r.name} {x:.2f}" if math.isfinite(x) else "no face")
    told += [f"{fit.label} {scores.columns[fit.key][n]:.3f}" for fit in scores.fits]
    return ", ".join(dict.fromkeys(told))


def _image(image: np.ndarray) -> str:
    data = io.BytesIO()
    Image.fromarray(pictures.thumbnail(image, CELL)).save(data, "JPEG", quality=85)
    return f'<img src="data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}" alt="">'


def _text(text: str) -> str:
    return html.escape(text.encode("utf-8", "replace").decode())


_SHELL = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>
<style>
:root {{ color-scheme: light dark; --ink: #22252a; --soft: #6a707a; --line: #e3e5e9; --paper: #fafafa; --mark: #5b7fb9 }}
@media (prefers-color-scheme: dark) {{ :root {{ --ink: #e6e7ea; --soft: #9aa0aa; --line: #33363c; --paper: #16181b; --mark: #6f94d0 }} }}
body {{ margin: 0 auto; max-width: 1500px; padding: 32px 24px 64px; background: var(--paper); color: var(--ink); font: 15px/1.45 system-ui, sans-serif }}
h1 {{ font-size: 26px; margin: 0 }} h2 {{ font-size: 18px; margin: 36px 0 10px }}
p, dd, small, figcaption {{ color: var(--soft) }} .note {{ color: var(--ink); border-left: 3px solid var(--mark); padding-left: 10px; margin: 6px 0 }}
.wide {{ overflow-x: auto }} table {{ border-collapse: collapse; font-variant-numeric: tabular-nums }}
th, td {{ padding: 6px 16px 6px 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line) }}
th {{ color: var(--soft); font-weight: 500 }} small {{ display: block; font-size: 12px }}
.grid th, .grid td {{ border: 0; padding: 4px 8px 4px 0; width: 160px; min-width: 160px }} .prompt {{ font-size: 12px }}
img {{ width: 160px; border-radius: 6px; display: block }}
.charts {{ display: flex; flex-wrap: wrap; gap: 18px 26px }} figure {{ margin: 0; width: 310px; font-size: 13px }}
.pair {{ width: 328px; display: grid; grid-template-columns: 1fr 1fr; gap: 6px }} .pair figcaption {{ grid-column: 1 / 3; font-size: 12px }}
svg {{ width: 310px }} svg text {{ font-size: 11px; fill: var(--soft) }} line {{ stroke: var(--mark); stroke-width: 2 }} circle {{ fill: var(--mark) }}
dt {{ font-weight: 600 }} dd {{ margin: 0 0 6px }}
</style>
{body}
</html>
"""
