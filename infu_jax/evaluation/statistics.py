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


def shared(values: Float[np.ndarray, "n k"], group: Sequence[int]) -> Statistic:
    """Which part of the variance of `values`, over all k columns together, their group decides: the intraclass correlation.

    Mean product, over pairs of different rows of one group, of their distances from the mean, over the variance: 1 if rows of one group are
    equal, 0 if they are no more alike than others (it can be a little negative). Rows with a NaN are left out. NaN where no group has two
    rows or nothing varies.
    """
    there = np.isfinite(values).all(axis=1)
    values = values[there]
    values = values - (values.mean(axis=0) if len(values) else 0.0)
    groups, place = np.unique(np.asarray(group)[there], return_inverse=True)
    member = np.eye(len(groups))[place]  # (n, groups)

    def statistic(weights: Weights) -> Float[np.ndarray, " r"]:
        w = weights[:, there]
        with np.errstate(invalid="ignore", divide="ignore"):
            centre = w @ values / w.sum(axis=1, keepdims=True)
            products = variance = 0.0
            for n in range(values.shape[1]):
                away = w * (values[:, n] - centre[:, n : n + 1])
                products = products + ((away @ member) ** 2).sum(1) - (away**2).sum(1)  # a row, however often drawn, is no pair with itself
                variance = variance + (away * (values[:, n] - centre[:, n : n + 1])).sum(1) / w.sum(1)
            pairs = ((w @ member) ** 2).sum(1) - (w**2).sum(1)
            return np.where((pairs > 0) & (variance > 1e-9), products / pairs / variance, np.nan)

    return statistic


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
