"""From scores to tables: every measure of every model with its interval, and differences on the pictures that two models share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from infu_jax.errors import InputError
from infu_jax.evaluation import statistics
from infu_jax.evaluation.measuring import Measure
from infu_jax.evaluation.scores import Scores, measures, statistic

MARK = {"up": "↑", "down": "↓", "zero": "~0"}


@dataclass(frozen=True)
class Value:
    """A measure with its interval; NaN where it cannot be had."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        if not math.isfinite(self.value):
            return "-"
        if not math.isfinite(self.low):
            return f"{self.value:.3f}"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Row:
    """One line of a table: a model, or the difference of two."""

    name: str
    pictures: int
    values: dict[str, Value]


@dataclass(frozen=True)
class Bootstrap:
    """resamples: how many; confidence: of the interval; seed: of the draws."""

    resamples: int = 2000
    confidence: float = 0.95
    seed: int = 0

    def __post_init__(self):
        if self.resamples < 1:
            raise InputError(f"resamples is {self.resamples}; at least 1 is needed (2000 is usual)")
        if not 0 < self.confidence < 1:
            raise InputError(f"confidence is {self.confidence}; it lies between 0 and 1 (0.95 is usual)")


def summary(scores: Scores, bootstrap: Bootstrap) -> Row:
    """All measures that the scores have columns for."""
    weights = statistics.resamples(scores.who, scores.prompts, bootstrap.resamples, bootstrap.seed)
    values = {}
    for measure in measures(scores):
        if (found := statistic(scores, measure.key)) is not None:
            values[measure.key] = Value(*statistics.interval(found, weights, bootstrap.confidence))
    return Row(scores.name, len(scores), values)


def difference(scores: Scores, other: Scores, bootstrap: Bootstrap) -> Row:
    """scores - other on the people and prompts that both have, resampled together. InputError where they have none in common.

    Measures that are not the same there as here are left out, see `incomparable`.
    """
    places = [{key: n for n, key in enumerate(zip(s.who, s.prompts))} for s in (scores, other)]
    shared = check_shared(scores.name, list(places[0]), scores.texts, other)
    a, b = (s.rows([place[key] for key in shared]) for s, place in zip((scores, other), places))
    weights = statistics.resamples(a.who, a.prompts, bootstrap.resamples, bootstrap.seed)
    values, apart = {}, {key for keys in incomparable(scores, other).values() for key in keys}
    for measure in measures(scores):
        if measure.key in apart:
            continue
        pair = statistic(a, measure.key), statistic(b, measure.key)
        if all(s is not None for s in pair):
            values[measure.key] = Value(*statistics.interval(statistics.difference(*pair), weights, bootstrap.confidence))
    return Row(f"{scores.name} - {other.name}", len(shared), values)


def check_shared(name: str, pictures: Sequence[tuple[str, int]], texts: Mapping[int, str], other: Scores) -> list[tuple[str, int]]:
    """Those of the pictures (person, number of the prompt) that `other` has too. InputError where there are none, or a prompt is another one."""
    for number in set(texts) & set(other.texts):
        if texts[number] != other.texts[number]:
            raise InputError(f"prompt {number} of {other.name} is another one than here; only runs with the same prompts can be compared")
    there = set(zip(other.who, other.prompts))
    if not (shared := [key for key in pictures if key in there]):
        raise InputError(f"{other.name} has no picture of the same person and prompt as {name}; they cannot be compared")
    return shared


def incomparable(scores: Scores, other: Scores) -> dict[str, list[str]]:
    """Notes for the reader on what has no difference, each with the keys of the measures."""
    keys, found = [measure.key for measure in measures(scores)], {}
    differ = lambda a, b: None not in (a, b) and a != b  # noqa: E731
    for name in namesakes(scores, other):
        note = f"The recogniser {name} of {other.name} is another one than here: their similarities cannot be compared, and no differences are given."
        found[note] = [key for key in keys if key.partition("/")[2] == name]
    if scores.people != other.people:
        note = f"Rank-1 of {other.name} was searched among other people ({len(other.people)}) than here ({len(scores.people)}): no differences of it are given."
        found[note] = [key for key in keys if key.partition("/")[0] in ("rank_1", "rank_1_others")]
    for fit in scores.fits:
        if differ(scores.scorers.get(fit.key), other.scorers.get(fit.key)):
            found[f"{fit.label} of {other.name} is by other weights than here: no difference of it is given."] = [fit.key]
    here, there = scores.settings.get("detector"), other.settings.get("detector")
    if differ(here, there):  # it says where faces are, so what is seen in them
        note = f"Faces of {other.name} were found by {there}, here by {here}: no differences of what is measured in faces are given."
        found[note] = [key for key in keys if key not in {fit.key for fit in scores.fits}]
    return found


def namesakes(scores: Scores, other: Scores) -> list[str]:
    """Names that stand for another recogniser there than here."""
    there = {r.name: r.fingerprint for r in other.recognisers}
    return [r.name for r in scores.recognisers if None not in (r.fingerprint, there.get(r.name)) and there[r.name] != r.fingerprint]


def known(everything: Sequence[Scores]) -> list[Measure]:
    """The measures of all scores; of those with the same key, the first."""
    found: dict[str, Measure] = {}
    for scores in everything:
        for measure in measures(scores):
            found.setdefault(measure.key, measure)
    return list(found.values())


def shown(rows: Sequence[Row], choice: Sequence[Measure]) -> list[Measure]:
    """The measures that at least one row has."""
    return [m for m in choice if any(m.key in row.values and np.isfinite(row.values[m.key].value) for row in rows)]


def markdown(rows: Sequence[Row], choice: Sequence[Measure]) -> str:
    """A table with a column a model; arrows say what is better, `~0` that 0 is."""
    lines = [["", *(_cell(row.name) for row in rows)], ["---"] * (len(rows) + 1), ["pictures", *(str(row.pictures) for row in rows)]]
    for measure in shown(rows, choice):
        values = (str(row.values[measure.key]) if measure.key in row.values else "-" for row in rows)
        lines.append([f"{_cell(measure.label)} {MARK[measure.better]}", *values])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
