"""The measures themselves, and how sure they are: NumPy on arrays, nothing else.

Every statistic takes weights W of (resamples, pictures) and gives one value a resample; weights of one give the value itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

Weights = Float[np.ndarray, "r n"]
Statistic = Callable[[np.ndarray], np.ndarray]


def cosine(a: Float[np.ndarray, "n e"], b: Float[np.ndarray, "n e"]) -> Float[np.ndarray, " n"]:
    """Of rows; NaN where one is NaN."""
    return (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))


def rank_1(
    faces: Float[np.ndarray, "n e"], gallery: Float[np.ndarray, "p e"], who: Int[np.ndarray, " n"], own: Float[np.ndarray, "n e"] | None = None
) -> Bool[np.ndarray, " n"]:
    """Whether each picture is more like the right person than like anybody else of `gallery`. A picture without a face is a miss.

    own: what stands for the right person, `gallery[who]` by default.
    """
    likeness = faces @ gallery.T / np.linalg.norm(faces, axis=-1, keepdims=True) / np.linalg.norm(gallery, axis=-1)
    mine = np.take_along_axis(likeness, who[:, None], axis=1)[:, 0] if own is None else cosine(faces, own)
    likeness[np.arange(len(who)), who] = -np.inf
    return mine > likeness.max(axis=1)  # False for NaN


def templates(faces: Float[np.ndarray, "n e"], of: Int[np.ndarray, " n"], people: int) -> tuple[Float[np.ndarray, "p e"], Float[np.ndarray, "n e"]]:
    """A face for each person, the sum of their faces at length 1, as IJB-B (Whitelam et al., 2017) enrols people; and for each row that of its
    person's other rows.

    Rows without a face (NaN) count for nothing. NaN where there is nothing to add up.
    """
    there = np.isfinite(faces).all(axis=1)
    units = np.where(there[:, None], faces / np.linalg.norm(faces, axis=-1, keepdims=True), 0.0)
    member = np.eye(people)[of] * there[:, None]  # (n, people)
    sums, counts = member.T @ units, member.sum(axis=0)
    return np.where(counts[:, None] > 0, sums, np.nan), np.where((counts[of] - there)[:, None] > 0, sums[of] - units, np.nan)


def mean(values: Float[np.ndarray, " n"]) -> Statistic:
    """Mean of the values that are there."""
    there = np.isfinite(values)
    kept = np.where(there, values, 0.0)

    def statistic(weights: Weights) -> Float[np.ndarray, " r"]:
        with np.errstate(invalid="ignore", divide="ignore"):
            return weights @ kept / (weights @ there.astype(np.float64))

    return statistic


def concordance(a: Float[np.ndarray, "n k"], b: Float[np.ndarray, "n k"]) -> Statistic:
    """How far `a` repeats `b`: Lin's (1989) concordance coefficient, over all k columns together.

    2 sum cov(a, b) / sum (var(a) + var(b) + (mean(a) - mean(b))^2): 1 if every a is its b, 0 if they have nothing to do with each other,
    negative if one avoids the other; unlike a correlation, it is 1 only for equal values. Rows with a NaN are left out. NaN where a or b
    does not vary, since then nothing can be said.
    """
    there = np.isfinite(a).all(axis=1) & np.isfinite(b).all(axis=1)
    a, b = a[there], b[there]
    centre = b.mean(axis=0) if len(b) else 0.0
    a, b = a - centre, b - centre  # sums of squares of large numbers would lose digits

    def statistic(weights: Weights) -> Float[np.ndarray, " r"]:
        w = weights[:, there]
        with np.errstate(invalid="ignore", divide="ignore"):
            w = w / w.sum(axis=1, keepdims=True)
            mean_a, mean_b = w @ a, w @ b
            var_a, var_b, cov = w @ a**2 - mean_a**2, w @ b**2 - mean_b**2, w @ (a * b) - mean_a * mean_b
            value = 2 * cov.sum(1) / (var_a + var_b + (mean_a - mean_b) ** 2).sum(1)
        still = (var_a.sum(1) <= 1e-9) | (var_b.sum(1) <= 1e-9)
        return np.where(still, np.nan, value)

    return statistic


def shared(values: Float[np.ndarray, "n k"], who: Sequence[str], prompt: Sequence[int]) -> Statistic:
    """Which part of the variance of `values`, over all k columns together, the prompt decides: an intraclass correlation.

    var(prompt) / (var(person) + var(prompt) + var(rest)) of the two-way random-effects model value = mean + person + prompt + rest, ICC(2,1) of
    Shrout and Fleiss (1979): 1 if a prompt's pictures are equal whoever they show, 0 on average if they are no more alike than others. It can be
    negative by chance, not below -1.

    The variances are those of ANOVA (method of moments) in each 2 x 2 table of two people with the same two prompts, averaged over all such tables;
    in a full table of people and prompts that is the usual two-way ANOVA. So people are compared only within sets that share prompts, and what sets them
    apart, as women's prompts from men's, does not count; sets count by their 2 x 2 tables. A negative estimate of var(person) is taken as 0.

    At most one row for each person and prompt. Rows with a NaN are left out. NaN where no two people share two prompts, or nothing varies.
    """
    there = np.isfinite(values).all(axis=1)
    values = values[there] - (values[there].mean(axis=0) if there.any() else 0.0)
    people, row = np.unique(np.asarray(who)[there], return_inverse=True)
    numbers, column = np.unique(np.asarray(prompt)[there], return_inverse=True)

    def table(x: Float[np.ndarray, " m"]) -> Float[np.ndarray, "people prompts"]:
        full = np.zeros((len(people), len(numbers)))
        full[row, column] = x
        return full

    columns = [table(x) for x in values.T]
    blocks = [np.ix_(*block) for block in _connected(table(np.ones(len(row))) > 0)]
    pairs = lambda m: m.sum() - np.trace(m)  # of different people  # noqa: E731

    def one(weights: Float[np.ndarray, " n"]) -> float:
        # A pair of rows of one prompt weighs sqrt(w w'), a 2 x 2 table the product of its two pairs. Products of tables below are sums over prompts for
        # each pair of people; two prompts that are one give differences of 0 in the first two sums, and are taken off in the others.
        tables = prompts = within = persons = 0.0
        drawn = table(weights[there])
        for block in blocks:
            w = drawn[block]
            s = np.sqrt(w)
            count = s @ s.T
            tables += pairs(count**2 - w @ w.T)
            for y in (full[block] for full in columns):
                sums = (s * y) @ s.T  # [a, b]: of a, over the prompts that b has too
                prompts += pairs(count * ((s * y) @ (s * y).T) - sums * sums.T)
                within += pairs(count * ((s * y**2) @ s.T) - sums**2)  # of prompt and rest
                persons += pairs((sums - sums.T) ** 2 / 2 - (w * y**2) @ w.T + (w * y) @ (w * y).T)
        total = within + max(persons, 0.0)
        return prompts / total if tables > 1e-6 and total > 1e-9 * tables else float("nan")

    return lambda weights: np.array([one(w) for w in weights])


def _connected(there: Bool[np.ndarray, "people prompts"]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Sets of people that share prompts, also by way of others, and their prompts, as masks; what is outside of the sets is empty."""
    sets, left = [], np.ones(len(there), bool)
    while left.any():
        people = np.arange(len(there)) == np.argmax(left)
        while (grown := there[:, there[people].any(axis=0)].any(axis=1)).sum() > people.sum():
            people = grown
        sets.append((people, there[people].any(axis=0)))
        left &= ~people
    return sets


def resamples(who: Sequence[str], prompt: Sequence[int], count: int, seed: int) -> Weights:
    """Bootstrap weights of pictures: in each resample as many people and as many prompts are drawn with replacement, and a picture counts
    as often as its person times as often as its prompt (Owen's pigeonhole bootstrap, 2007).

    Pictures of one person resemble each other, and so do those of one prompt: resampling pictures alone would give too narrow intervals.
    Statistics on the same weights are paired, so the interval of a difference is one of differences on the same people and prompts.
    """
    draw = np.random.default_rng(seed)
    weights = np.ones((count, len(who)))
    for key in (who, prompt):
        names, place = np.unique(np.asarray(key), return_inverse=True)
        weights *= draw.multinomial(len(names), np.full(len(names), 1 / len(names)), size=count)[:, place]
    return weights


def interval(statistic: Statistic, weights: Weights, confidence: float = 0.95) -> tuple[float, float, float]:
    """(value, low, high): percentiles of the resamples that have a value."""
    value = float(statistic(np.ones((1, weights.shape[1])))[0])
    drawn = statistic(weights)
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn) or not np.isfinite(value):
        return value, float("nan"), float("nan")
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return value, float(low), float(high)


def difference(a: Statistic, b: Statistic) -> Statistic:
    """a - b on the same resamples."""
    return lambda weights: a(weights) - b(weights)
