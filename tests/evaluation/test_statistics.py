"""Measures on numbers that can be checked by hand, and intervals on draws whose spread is known."""

import numpy as np
import pytest

from infu_jax.evaluation.statistics import concordance, cosine, difference, interval, mean, rank_1, resamples, shared, templates

ONE = lambda n: np.ones((1, n))  # noqa: E731
NAN = float("nan")


def test_cosine():
    a, b = np.array([[3.0, 4], [1, 0], [NAN, 1]]), np.array([[4.0, 3], [0, 2], [1, 1]])
    np.testing.assert_allclose(cosine(a, b), [24 / 25, 0, NAN])


def test_rank_1():
    gallery = np.array([[1.0, 0], [0, 2], [-1, 0]])
    faces = np.array([[5.0, 1], [5, 1], [1, 3], [NAN, NAN], [-1, 0.1]])
    np.testing.assert_array_equal(rank_1(faces, gallery, np.array([0, 1, 1, 0, 2])), [True, False, True, False, True])
    # A tie is no identification: a model that paints one face for everybody must not score.
    np.testing.assert_array_equal(rank_1(np.array([[1.0, 1]]), np.array([[1.0, 0], [0, 1]]), np.array([0])), [False])
    # What stands for the right person may be another one for each picture; that of the gallery is then no rival.
    own = np.array([[1.0, 0.1], [-1, -1]])
    np.testing.assert_array_equal(rank_1(faces[:2], gallery, np.array([0, 0]), own), [True, False])


def test_templates():
    faces = np.array([[2.0, 0], [0, 3], [NAN, NAN], [0, 5], [NAN, NAN]])
    people, rest = templates(faces, np.array([0, 0, 0, 1, 2]), 3)
    np.testing.assert_allclose(people, [[1, 1], [0, 1], [NAN, NAN]])  # every face counts alike, however long its embedding
    np.testing.assert_allclose(rest, [[0, 1], [1, 0], [1, 1], [NAN, NAN], [NAN, NAN]])


def test_mean():
    of = mean(np.array([1.0, NAN, 4]))
    np.testing.assert_allclose(of(np.array([[1.0, 1, 1], [3, 5, 1], [0, 2, 0]])), [2.5, 7 / 4, NAN])


def test_concordance():
    column = lambda *x: np.array(x, float)[:, None]  # noqa: E731
    value = lambda a, b: concordance(a, b)(ONE(len(a)))[0]  # noqa: E731
    assert value(column(1, 2, 3), column(1, 2, 3)) == pytest.approx(1)
    assert value(column(1, 2, 3), column(3, 2, 1)) == pytest.approx(-1)
    assert value(column(1, 2, 3), column(2, 3, 4)) == pytest.approx(4 / 7)  # 2 * 2/3 / (2/3 + 2/3 + 1)
    assert value(column(2, 4, 6), column(1, 2, 3)) == pytest.approx(2 * 4 / 3 / (8 / 3 + 2 / 3 + 4))  # a correlation would be 1
    assert value(column(1, 1, -1, -1), column(1, -1, 1, -1)) == pytest.approx(0)
    assert np.isnan(value(column(1, 2, 3), column(5, 5, 5)))
    # Several columns: sums of covariances over sums of variances. A row with a hole is left out.
    a, b = np.array([[1, 1.0], [1, -1], [-1, 1], [-1, -1], [NAN, 9]]), np.array([[1, 1.0], [1, 1], [-1, -1], [-1, -1], [1, 1]])
    assert value(a, b) == pytest.approx(0.5)
    assert value(a + 1e6, b + 1e6) == pytest.approx(0.5)
    # A weight of two is a row twice.
    a, b = column(1, 2, 4), column(2, 1, 5)
    assert concordance(a, b)(np.array([[2.0, 0, 1]]))[0] == pytest.approx(value(a[[0, 0, 2]], b[[0, 0, 2]]))


def test_shared():
    column = lambda *x: np.array(x, float)[:, None]  # noqa: E731
    value = lambda a, who, prompts: shared(a, list(who), prompts)(ONE(len(a)))[0]  # noqa: E731
    cross = "abab", [1, 1, 2, 2]
    assert value(column(3, 3, 7, 7), *cross) == pytest.approx(1)
    assert value(column(1, -1, 1, -1), *cross) == pytest.approx(0)  # people differ, prompts do not
    assert value(column(1, -1, -1, 1), *cross) == pytest.approx(-1)  # what a prompt does to one it undoes to the other
    assert value(column(0, 2, 4, 6), *cross) == pytest.approx(8 / (8 + 2))  # variances of (0, 4) and (0, 2), and no rest
    assert value(column(0, 0, 4, 0), *cross) == pytest.approx(0)  # every mean square is 4
    assert np.isnan(value(column(1, 2, 3, 4), "abab", [1, 2, 3, 4])) and np.isnan(value(column(5, 5, 5, 5), *cross))
    assert np.isnan(value(column(1, 2, 3), "aaa", [1, 2, 3])) and np.isnan(value(column(1, 2, 3), "abc", [1, 1, 1]))
    assert np.isnan(value(column(1, 2, 3), "aab", [1, 2, 2])) and np.isnan(value(column(NAN, NAN), "ab", [1, 1]))  # no 2 x 2 table
    draw = np.random.default_rng(0).standard_normal
    effect, noise = np.repeat(draw((200, 1)), 10, axis=0), draw((2000, 1))
    who, prompts = [f"{n % 10}" for n in range(2000)], [n // 10 for n in range(2000)]
    assert value(effect + noise, who, prompts) == pytest.approx(0.5, abs=0.06)
    assert value(noise, who, prompts) == pytest.approx(0, abs=0.02)
    # Several columns: sums of variances. A set of people apart, who share no prompt with the others, adds its tables, but not how it differs from them.
    a, b = column(0, 2, 4, 6), column(3, 3, 5, 5)
    assert value(np.hstack([a, b]), *cross) == pytest.approx((8 + 2) / (8 + 2 + 2))
    assert value(np.vstack([a, 100 + b]), "ababcdcd", [1, 1, 2, 2, 3, 3, 4, 4]) == pytest.approx((8 + 2) / (8 + 2 + 2))
    assert value(np.vstack([a, column(9, -9)]), "ababcc", [1, 1, 2, 2, 3, 4]) == pytest.approx(8 / 10)  # one alone shares with nobody
    # Drawing a row twice makes no pair of it with itself, and adds its pairs with others.
    rows, who, prompts = np.array([[0.0, 2], [4, 7], [5, 1]]), list("abababc"), [1, 1, 2, 2, 3, 3, 3]
    with_hole = np.append(rows, NAN)[:, None]
    assert value(with_hole, who, prompts) == pytest.approx(value(rows.reshape(-1, 1), who[:6], prompts[:6]))
    prompt = within = person = 0
    for times, (p, q), (r, s) in ((2, rows[0], rows[1]), (2, rows[0], rows[2]), (1, rows[1], rows[2])):
        prompt += times * (p - r) * (q - s) / 2
        within += times * ((p - r) ** 2 + (q - s) ** 2) / 4
        person += times * (p - q) * (r - s) / 2
    drawn = lambda *weights: shared(with_hole, who, prompts)(np.array([weights], float))[0]  # noqa: E731
    assert drawn(2, 2, 1, 1, 1, 1, 1) == pytest.approx(prompt / (within + max(person, 0)))
    assert drawn(3, 6, 3, 6, 3, 6, 1) == pytest.approx(drawn(1, 1, 1, 1, 1, 1, 1))
    assert np.isnan([drawn(2, 0, 2, 0, 2, 0, 1), drawn(2, 2, 0, 0, 0, 0, 1)]).all()


def test_shared_is_anova():
    """The mean over 2 x 2 tables is, in a full table, what textbooks have of its mean squares."""
    who, prompt, values = crossed(5, 7, 1, 1, 1)
    rows, columns = values.mean(1, keepdims=True), values.mean(0)
    of_people, of_prompts = 7 * rows.var(ddof=1), 5 * columns.var(ddof=1)
    rest = ((values - rows - columns + values.mean()) ** 2).sum() / (4 * 6)
    people, prompts = (of_people - rest) / 7, (of_prompts - rest) / 5
    assert people > 0
    assert shared(values.reshape(-1, 1), who, prompt)(ONE(35))[0] == pytest.approx(prompts / (people + prompts + rest))


@pytest.mark.parametrize(("people", "prompts", "holes"), [(3, 20, 0), (12, 8, 0.2)])
@pytest.mark.parametrize("apart", [0, 3])
@pytest.mark.parametrize("person_effect", [0, 1])
def test_shared_on_average(people, prompts, holes, apart, person_effect):
    """Women and men have prompts of their own, and may differ as such: nothing where prompts do nothing, and else what they do."""

    def value(prompt_effect, seed):
        women, men = (crossed(people, prompts, person_effect, prompt_effect, 1, seed=2 * seed + n) for n in (0, 1))
        values = np.concatenate([women[2].ravel(), men[2].ravel() + apart])
        values[np.random.default_rng(seed).random(len(values)) < holes] = NAN
        who, numbers = [*women[0], *(f"man {name}" for name in men[0])], [*women[1], *(prompts + n for n in men[1])]
        return shared(values[:, None], who, numbers)(ONE(len(who)))[0]

    assert np.mean([value(0, n) for n in range(150)]) == pytest.approx(0, abs=0.02)
    assert np.mean([value(1, n) for n in range(150)]) == pytest.approx(1 / (2 + person_effect), abs=0.05)


def test_interval_of_shared_lies_around_it():
    """A resample that draws a person twice has nobody more alike."""
    who, prompt, values = crossed(4, 30, 0.5, 0, 1)
    statistic = shared(values.reshape(-1, 1), who, prompt)
    value, low, high = interval(statistic, resamples(who, prompt, 300, seed=0))
    assert low < 0 < high and np.nanmean(statistic(resamples(who, prompt, 300, seed=0))) == pytest.approx(value, abs=0.02)


def test_resamples():
    who, prompt = ["a", "a", "b", "b", "c", "c"], [1, 2, 1, 2, 1, 2]
    weights = resamples(who, prompt, 4000, seed=0)
    np.testing.assert_array_equal(weights, resamples(who, prompt, 4000, seed=0))
    assert (weights != resamples(who, prompt, 4000, seed=1)).any()
    table = weights.reshape(-1, 3, 2)
    assert (table.sum((1, 2)) == 6).all()  # three people times two prompts
    np.testing.assert_array_equal(table[:, :, :1] * table[:, :1, 1:], table[:, :, 1:] * table[:, :1, :1])  # person times prompt
    np.testing.assert_allclose(table.mean(0), 1, atol=0.1)
    alone = resamples(["a"] * 4, [1, 2, 3, 4], 100, seed=0)
    assert (alone.sum(1) == 4).all() and (alone.std(0) > 0).all()  # one person: over prompts only


def crossed(people, prompts, person_effect, prompt_effect, noise, seed=0):
    draw = np.random.default_rng(seed).standard_normal
    values = person_effect * draw(people)[:, None] + prompt_effect * draw(prompts)[None] + noise * draw((people, prompts))
    who = [f"p{n}" for n in range(people) for _ in range(prompts)]
    return who, list(range(prompts)) * people, values


@pytest.mark.parametrize(("person_effect", "prompt_effect"), [(1, 0), (0, 1), (1, 1)])
def test_interval_sees_people_and_prompts(person_effect, prompt_effect):
    """The spread of a mean over 20 people and 30 prompts, which differ, not that of 600 independent pictures."""
    who, prompt, values = crossed(20, 30, person_effect, prompt_effect, 0.1)
    value, low, high = interval(mean(values.ravel()), resamples(who, prompt, 2000, seed=0))
    spread = np.sqrt(values.mean(1).var() / 20 + values.mean(0).var() / 30)
    assert value == pytest.approx(values.mean())
    assert (high - low) / (2 * 1.96) == pytest.approx(spread, rel=0.1)
    assert spread > 3 * values.std() / np.sqrt(600)


def test_paired_difference_is_narrow():
    who, prompt, values = crossed(10, 20, 1, 1, 0)
    weights = resamples(who, prompt, 1000, seed=0)
    a, b = mean(values.ravel() + 0.1), mean(values.ravel())
    assert interval(difference(a, b), weights) == pytest.approx((0.1, 0.1, 0.1))
    alone = interval(a, weights)
    assert alone[2] - alone[1] > 0.3


def test_interval_without_values():
    weights = resamples(["a", "b"], [1, 1], 50, seed=0)
    assert np.isnan(interval(mean(np.array([NAN, NAN])), weights)).all()
    value, low, high = interval(mean(np.array([2.0, NAN])), weights)  # resamples without the first picture say nothing
    assert (value, low, high) == (2, 2, 2)
    narrow, wide = (interval(mean(np.arange(50.0)), resamples([f"{n}" for n in range(50)], [0] * 50, 999, seed=0), c) for c in (0.5, 0.99))
    assert wide[1] < narrow[1] < 24.5 < narrow[2] < wide[2]
