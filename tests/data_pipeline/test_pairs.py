"""data_pipeline.pairs: the epoch plan on made-up indexes."""

import pickle
from collections import Counter, defaultdict

import numpy as np
import pytest

from data_pipeline import buckets, pairs
from data_pipeline.index import INLINE_IDENTITY, SYNTHETIC, make_index, read_index, write_index
from data_pipeline.pairs import Plan, draw
from infu_jax.errors import InputError
from infu_jax.train_config import DataConfig

SHAPES = np.array([(512, 512), (640, 400), (400, 640)])


def index(persons, *, seed=0, flags=None, captions=None, shapes=3):
    persons = np.asarray(persons)
    sizes = SHAPES[np.random.default_rng(seed).integers(0, shapes, len(persons))]
    flags = np.zeros(len(persons), int) if flags is None else np.asarray(flags)
    captions = np.arange(len(persons)) % 5 if captions is None else captions
    return make_index(persons, sizes, flags, captions, f"made {seed}")


def people(counts, seed=0):
    """Person p has counts[p] records, in any order."""
    persons = np.repeat(np.arange(len(counts)), counts)
    np.random.default_rng(seed).shuffle(persons)
    return persons


def plan(*indexes, batch_size=4, seed=0, **settings):
    return Plan(DataConfig(resolution=512, **settings), indexes, batch_size=batch_size, seed=seed)


def epoch_rows(plan, epoch):
    first = sum(plan.steps_per_epoch(e) for e in range(epoch))
    return [plan.rows(step) for step in range(first, first + plan.steps_per_epoch(epoch))]


def targets(plan, epoch):
    return np.concatenate([rows.targets for rows in epoch_rows(plan, epoch)])


def test_every_target_once_an_epoch_and_in_its_bucket():
    made = index(np.arange(103))
    numbers = buckets.nearest(made.sizes, buckets.buckets(512))
    counts = np.unique(numbers, return_counts=True)[1]
    assert len(counts) == 3
    left_over = []
    for size in (1, 4, 7):
        for epoch in range(3):
            p = plan(made, batch_size=size)
            rows = epoch_rows(p, epoch)
            shown = np.concatenate([r.targets for r in rows])
            assert len(set(shown)) == len(shown) == (counts // size * size).sum()
            assert len(rows) == p.steps_per_epoch(epoch) == (counts // size).sum()
            for r in rows:
                assert len(r.targets) == size and r.epoch == epoch
                assert {p.table[n] for n in numbers[r.targets]} == {r.bucket}
                np.testing.assert_array_equal(r.captions, r.targets % 5)
            if size == 7:
                left_over.append(frozenset(set(range(103)) - set(shown)))
    assert len(set(left_over)) == 3  # other ones each epoch


def test_the_buckets_of_an_epoch_are_mixed():
    p = plan(index(np.arange(300)), batch_size=2)
    shapes = [r.bucket for r in epoch_rows(p, 0)]
    changes = sum(a != b for a, b in zip(shapes, shapes[1:]))
    assert changes > len(shapes) / 2
    assert shapes == [p.bucket(step) for step in range(len(shapes))]


def test_seed_and_epoch_give_another_order_and_nothing_else_does():
    made = index(np.arange(200))
    orders = {(seed, epoch): tuple(targets(plan(made, seed=seed), epoch)) for seed in (0, 1) for epoch in (0, 1)}
    assert len(set(orders.values())) == 4
    again = plan(made, seed=1)
    far = again.rows(10_000_000)
    assert tuple(targets(again, 1)) == orders[1, 1]  # whatever was asked for before
    np.testing.assert_array_equal(plan(made, seed=1).rows(10_000_000).targets, far.targets)
    assert far.epoch == 10_000_000 // again.steps_per_epoch()


def test_the_global_batch_does_not_know_how_many_processes_read_it():
    made = index(people([3] * 60))
    p = plan(made, batch_size=12, pairing="spms")
    for step in (0, 5, 40):
        whole = p.rows(step)
        for count in (2, 3, 12):
            parts = [p.rows(step, n * 12 // count, (n + 1) * 12 // count) for n in range(count)]
            for name in ("targets", "identities", "inline", "captions"):
                np.testing.assert_array_equal(np.concatenate([getattr(part, name) for part in parts]), getattr(whole, name))
            assert {part.bucket for part in parts} == {whole.bucket}


@pytest.mark.parametrize("most", [1, 2, 3, 10])
def test_max_per_person_rotates_and_covers(most):
    counts = [1, 2, 3, 4, 7, 12, 2]
    first, second = index(people(counts), seed=1), index(people(counts[::-1], 3), seed=2)
    p = plan(first, second, batch_size=1, max_per_person=most)
    person = np.concatenate([first.persons, second.persons + len(counts)])
    shown = defaultdict(list)
    for epoch in range(12):
        now = targets(p, epoch)
        assert len(set(now)) == len(now)
        assert Counter(person[now]) == {who: min(most, n) for who, n in enumerate([*counts, *counts[::-1]])}
        for record in now:
            shown[person[record]].append(int(record))
    for who, n in enumerate([*counts, *counts[::-1]]):
        own = set(np.flatnonzero(person == who))
        turns = -(-n // most)
        assert set(shown[who][: turns * min(most, n)]) == own  # all within ceil(n / most) epochs
        whole = n // most * most
        assert len(set(shown[who][:whole])) == whole  # none twice before
    first_steps = np.cumsum([0, *(p.steps_per_epoch(epoch) for epoch in range(12))])
    for epoch, at in enumerate(first_steps[:-1]):
        assert p.locate(int(at)) == (epoch, 0)
        assert p.locate(int(first_steps[epoch + 1]) - 1) == (epoch, p.steps_per_epoch(epoch) - 1)


def test_max_per_person_changes_the_length_of_epochs():
    p = plan(index(people([9, 9, 9])), batch_size=2, max_per_person=4)
    lengths = [p.steps_per_epoch(epoch) for epoch in range(20)]
    assert len(set(lengths)) > 1
    assert [p.rows(step).epoch for step in range(sum(lengths))] == [epoch for epoch, n in enumerate(lengths) for _ in range(n)]


def test_spss_shows_each_photo_with_itself():
    p = plan(index(people([2] * 20)))
    for r in epoch_rows(p, 0):
        np.testing.assert_array_equal(r.targets, r.identities)
        assert not r.inline.any()


def test_spms_pairs_are_two_pictures_of_one_person():
    persons = people([1, 2, 3, 5, 1, 4] * 6)
    flags = np.random.default_rng(5).choice([0, SYNTHETIC], len(persons), p=[0.6, 0.4])
    made = index(persons, flags=flags)
    other = index(people([3] * 5), seed=9)
    real = np.concatenate([flags == 0, np.ones(15, bool)])
    person = np.concatenate([persons, other.persons + len(made.offsets)])
    for identities in ("real", "any"):
        p = plan(made, other, batch_size=1, pairing="spms", identities=identities)
        may = real if identities == "real" else np.ones(len(real), bool)
        possible = {t for t in range(len(person)) if any(may[i] and i != t and person[i] == person[t] for i in range(len(person)))}
        seen = defaultdict(set)
        for epoch in range(25):
            rows = epoch_rows(p, epoch)
            assert {int(r.targets[0]) for r in rows} == possible
            for r in rows:
                t, i = int(r.targets[0]), int(r.identities[0])
                assert i != t and person[i] == person[t] and may[i] and not r.inline[0]
                seen[t].add(i)
        for t in possible:  # every possible identity has its turn: 25 draws of at most 4
            assert seen[t] == {i for i in range(len(person)) if may[i] and i != t and person[i] == person[t]}


def test_spms_takes_the_records_own_identity_photo():
    persons = people([1, 3] * 10)
    flags = np.where(np.arange(len(persons)) % 3 == 0, SYNTHETIC | INLINE_IDENTITY, SYNTHETIC)
    p = plan(index(persons, flags=flags), batch_size=1, pairing="spms")
    rows = epoch_rows(p, 0)
    assert {int(r.targets[0]) for r in rows} == set(range(0, len(persons), 3))  # no other has a real photo of the person
    assert all(r.inline[0] and r.identities[0] == r.targets[0] for r in rows)


def test_who_has_no_identity_is_no_target_and_counted():
    p = plan(index(people([1] * 7 + [2] * 20)), batch_size=2, pairing="spms")
    (said,) = [s for s in p.unseen() if "identity" in s]
    assert said.startswith("7 of 47 records are no targets: there is no other real photo of the person")
    none = plan(index(np.arange(30)), pairing="spms")
    with pytest.raises(InputError, match=r"epoch 0 has 0 targets \(spms\)"):
        none.rows(0)


def test_records_of_a_bucket_that_never_fills_a_batch():
    made = make_index(np.arange(43), np.repeat(SHAPES, (40, 2, 1), axis=0), np.zeros(43, int), np.ones(43, int), "x")
    p = plan(made, batch_size=4)
    (said,) = p.unseen()
    assert said == "3 of 43 records are never seen: their buckets hold fewer than a batch of 4 (640x384: 1, 384x640: 2)"
    assert p.full_buckets == ((512, 512),) and {r.bucket for r in epoch_rows(p, 0)} == {(512, 512)}
    assert plan(made, batch_size=1).unseen() == () and len(plan(made, batch_size=1).full_buckets) == 3
    with pytest.raises(InputError, match=r"the fullest of its 3 buckets has 40, too few for a batch of 41"):
        plan(made, batch_size=41).steps_per_epoch()


def test_nothing_to_read_is_an_error():
    for arguments, settings in (((), {}), ((index([0]),), {"batch_size": 0}), ((index([0]),), {"seed": -1})):
        with pytest.raises(InputError, match="expected a dataset, 1 or more, and 0 or more"):
            plan(*arguments, **settings)
    with pytest.raises(InputError, match="0 records"):
        plan(index(np.zeros(0, int)))


def test_a_pickled_plan_opens_the_index_itself(tmp_path):
    write_index(tmp_path / "d", "train", index(people([3] * 50)))
    cfg = DataConfig(paths=(str(tmp_path / "d"),), resolution=512, pairing="spms", max_per_person=2)
    p = Plan(cfg, [read_index(tmp_path / "d", "train")], batch_size=3, seed=4)
    p.rows(7)
    packed = pickle.dumps(p)
    assert len(packed) < 3000
    copy = pickle.loads(packed)
    for step in range(0, 200, 7):
        np.testing.assert_array_equal(copy.rows(step).identities, p.rows(step).identities)


def test_parts_of_large_indexes_are_put_together(monkeypatch):
    made = index(people([2] * 100))
    expected = [r.targets for r in epoch_rows(plan(made, pairing="spms"), 1)]
    for module in (pairs, buckets):
        monkeypatch.setattr(module, "CHUNK", 7)
    np.testing.assert_array_equal([r.targets for r in epoch_rows(plan(made, pairing="spms"), 1)], expected)


def test_draws_depend_on_all_they_are_given():
    drawn = [tuple(draw(*given).integers(0, 1 << 30, 2)) for given in ((0, "a"), (1, "a"), (0, "b"), (0, "a", 0), (0, "a", 1), (0, "a", 0, 1), (0, "a", 1, 0))]
    assert len(set(drawn)) == len(drawn)
    assert tuple(draw(0, "a", 1).integers(0, 1 << 30, 2)) == drawn[4]
