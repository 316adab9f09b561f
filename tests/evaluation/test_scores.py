"""From what was measured to tables: hand-made numbers through every measure, files, comparisons and the page."""

import json
import re

import numpy as np
import pytest

from infu_jax.errors import InputError
from infu_jax.evaluation import scores as table
from infu_jax.evaluation.comparing import Bootstrap, difference, incomparable, known, markdown, namesakes, shown, summary
from infu_jax.evaluation.measuring import Measure, Measured
from infu_jax.evaluation.report import Page, html_page
from infu_jax.evaluation.scores import RecogniserInfo, Scores
from infu_jax.pose import MODEL

NAN = float("nan")
R = (RecogniserInfo("arcface", True), RecogniserInfo("second", None))
FIT = Measure("clip_score", "CLIPScore", "up", "how well")
QUICK = Bootstrap(resamples=200)


def scores(name="mine", shift=0.0, **changes):
    """Two people, three prompts; the last picture has no face."""
    columns = {
        "face": [1, 1, 1, 1, 1, 0],
        "similarity/arcface": [0.8, 0.7, 0.6, 0.5, 0.4, NAN],
        "rank_1/arcface": [1, 1, 1, 1, 0, 0],
        "similarity/second": [0.4, 0.4, 0.4, 0.2, 0.1, NAN],
        "rank_1/second": [1, 1, 0, 0, 0, 0],
        "clip_score": [0.30, 0.31, 0.32, 0.33, 0.34, 0.35],
        **{axis: [10, 20, 10, -10, -20, NAN] for axis in ("yaw", "pitch", "roll")},
        **{f"photo_{axis}": [10, 10, 10, -10, -10, -10] for axis in ("yaw", "pitch", "roll")},
        "mouth": [1, 1.1, 1.2, 0.8, 0.8, NAN],
        "photo_mouth": [1, 1, 1, 0.8, 0.8, 0.8],
    }
    columns = {k: np.array(v, float) for k, v in columns.items()}
    columns["clip_score"] = columns["clip_score"] + shift
    fields = dict(
        who=("a", "a", "a", "b", "b", "b"), prompts=(1, 2, 3, 1, 2, 3), columns=columns, recognisers=R, fits=(FIT,), texts={1: "one", 2: "two", 3: "<three>"}
    )
    return Scores(name, **{**fields, **changes})


def test_summary():
    row = summary(scores(), QUICK)
    value = {key: v.value for key, v in row.values.items()}
    assert value["id_loss/arcface"] == pytest.approx(0.4)  # 1 - mean over pictures with a face
    assert value["id_loss/second"] == pytest.approx(0.7)
    assert value["rank_1/arcface"] == pytest.approx(4 / 6) and value["faces"] == pytest.approx(5 / 6)  # no face is a miss
    assert value["clip_score"] == pytest.approx(0.325)
    # yaw: mean 2 in both columns' five rows: photo (10, 10, 10, -10, -10) mean 2, variance 96; picture mean 2, variance 216; covariance 136.
    assert value["copy_yaw"] == value["copy_pose"] == pytest.approx(2 * 136 / (96 + 216))
    assert "pick_score" not in value and "copy_gap/arcface" not in value
    assert row.values["clip_score"].low < 0.325 < row.values["clip_score"].high
    again, other = summary(scores(), QUICK), summary(scores(), Bootstrap(200, seed=1))
    assert row.values["copy_expression"] == again.values["copy_expression"] != other.values["copy_expression"]


def test_difference_is_paired():
    here, there = scores(), scores("theirs", shift=-0.1)
    row = difference(here, there, QUICK)
    v = row.values["clip_score"]
    assert (v.value, v.low, v.high) == pytest.approx((0.1, 0.1, 0.1)) and row.pictures == 6 and row.name == "mine - theirs"
    part = difference(here, there.rows([5, 1, 0]), QUICK)  # in another order, and only some
    assert part.pictures == 3 and part.values["clip_score"].value == pytest.approx(0.1)
    with pytest.raises(InputError, match="no picture of the same person and prompt"):
        difference(here, scores("x", who=("c",) * 6), QUICK)
    with pytest.raises(InputError, match="prompt 2 of x is another one than here"):
        difference(here, scores("x", texts={2: "other"}), QUICK)


def test_no_difference_between_recognisers_of_one_name():
    info = lambda *fingerprints: tuple(RecogniserInfo(r.name, r.conditioned, f) for r, f in zip(R, fingerprints))  # noqa: E731
    here, there = scores(recognisers=info("x", "y")), scores("theirs", recognisers=info("z", "y"))
    row = difference(here, there, QUICK)
    assert not [key for key in row.values if key.endswith("/arcface")] and {"id_loss/second", "rank_1/second", "clip_score"} <= row.values.keys()
    assert namesakes(here, there) == ["arcface"] and namesakes(here, here) == namesakes(here, scores()) == []  # older results do not say


def test_no_difference_of_rank_1_among_other_people():
    """Among two it is easier than among ten; everything else can be compared."""
    ten = tuple("abcdefghij")
    ranks = {"rank_1/arcface", "rank_1/second", "rank_1_others/second"}
    others = {"rank_1_others/second": np.ones(6)}
    make = lambda name, gallery: scores(name, columns={**scores().columns, **others}, gallery=gallery)  # noqa: E731
    here, same, more, unknown = make("mine", ("a", "b")), make("same", ("a", "b")), make("more", ten), make("unknown", None)
    everything = difference(here, same, QUICK).values.keys()
    assert ranks <= everything and not incomparable(here, same)
    for a, b in ((here, more), (more, here), (more, unknown), (unknown, more)):
        assert difference(a, b, QUICK).values.keys() == everything - ranks
    [note] = incomparable(here, more)
    assert note == "Rank-1 of more was searched among other people (10) than here (2): no differences of it are given."
    # Earlier results do not say; those who have pictures were all.
    assert difference(here, unknown, QUICK).values.keys() == difference(unknown, unknown, QUICK).values.keys() == everything
    assert difference(unknown.rows([0, 1]), unknown, QUICK).values.keys() == everything - ranks
    [about] = [m.about for m in known([more]) if m.key == "rank_1/arcface"]
    assert "of 10 photos" in about


def test_no_difference_of_other_weights_or_detectors():
    """Where both are known: earlier results do not say."""
    by = lambda name, clip, detector: scores(name, scorers=clip, settings=detector)  # noqa: E731
    here, unknown = by("mine", {"clip_score": "x"}, {"detector": "yunet"}), by("old", {}, {})
    weights, detector = by("b", {"clip_score": "y"}, {"detector": "yunet"}), by("d", {"clip_score": "x"}, {"detector": "antelopev2"})
    everything = difference(here, here, QUICK).values.keys()
    assert difference(here, unknown, QUICK).values.keys() == difference(unknown, here, QUICK).values.keys() == everything and not incomparable(here, unknown)
    assert difference(here, weights, QUICK).values.keys() == everything - {"clip_score"}
    assert list(incomparable(here, weights)) == ["CLIPScore of b is by other weights than here: no difference of it is given."]
    assert difference(here, detector, QUICK).values.keys() == {"clip_score"}
    assert list(incomparable(here, detector)) == ["Faces of d were found by antelopev2, here by yunet: no differences of what is measured in faces are given."]


def test_what_is_measured_becomes_columns():
    """Faces of two people in a plane: cosines known, one picture without a face."""
    unit = lambda *angles: np.array([[np.cos(np.radians(a)), np.sin(np.radians(a))] for a in angles])  # noqa: E731
    flat = MODEL[:, :2]
    photos = Measured(np.stack([flat, flat]), {"r": unit(0, 90)}, {})
    faces = unit(60, 30, 100, 0)
    faces[3] = NAN
    points = np.stack([flat, 2 * flat + 5, flat, np.full((5, 2), NAN)])
    others = Measured(np.stack([flat] * 3), {"r": unit(20, 38, 90)}, {})
    at, of = np.array([0, 0, 1, 1]), np.array([0, 0, 1])
    columns = table.face_columns(Measured(points, {"r": faces}, {}), photos, at, others, of)
    cos = lambda angle: np.cos(np.radians(angle))  # noqa: E731
    np.testing.assert_allclose(columns["similarity/r"], [cos(60), cos(30), cos(10), NAN])
    np.testing.assert_array_equal(columns["rank_1/r"], [0, 1, 1, 0])  # 60 degrees is nearer to the other photo
    expected = [cos(60) - (cos(40) + cos(22)) / 2, cos(30) - (cos(10) + cos(8)) / 2, 0, NAN]
    np.testing.assert_allclose(columns["copy_gap/r"], expected, atol=1e-12)
    np.testing.assert_array_equal(columns["rank_1_others/r"], [0, 1, 1, 0])  # their mean is at 29 degrees, so 60 is nearer to 90
    themselves = table.face_columns(others, photos, of, others, of)
    np.testing.assert_array_equal(themselves["rank_1_others/r"], [1, 1, NAN])  # nothing but itself to know the last by
    assert "copy_gap/r" not in themselves
    faces = unit(20, 38, 90, 0)
    faces[3] = NAN
    with_faceless = Measured(np.stack([flat] * 4), {"r": faces}, {})
    found = table.face_columns(with_faceless, photos, np.array([0, 0, 1, 1]), with_faceless, np.array([0, 0, 1, 1]))
    np.testing.assert_array_equal(found["rank_1_others/r"], [1, 1, NAN, 0])  # without a face a miss, as the third shows whom to look for
    fewer = Measured(others.keypoints[:2], {"r": others.faces["r"][:2]}, {})
    assert "rank_1_others/r" not in table.face_columns(Measured(points, {"r": faces}, {}), photos, at, fewer, of[:2])  # nobody knows the second
    looks = table.looks(Measured(points, {}, {}))
    np.testing.assert_array_equal(looks["face"], [1, 1, 1, 0])
    np.testing.assert_allclose(looks["yaw"], [0, 0, 0, NAN], atol=1e-9)
    assert "copy_gap/r" not in table.face_columns(Measured(points, {"r": faces}, {}), photos, at, None, of)


def test_files(tmp_path):
    path = tmp_path / "scores.json"
    told = dict(gallery=("a", "b", "c"), scorers={"clip_score": "abc"})
    stored = table.to_json(scores(**told))
    path.write_text(json.dumps({k: v for k, v in stored.items() if k not in told}))  # as earlier versions wrote it
    assert table.to_json(table.read(path)) == table.to_json(scores())
    path.write_text(json.dumps(stored))
    again = table.read(path)
    for field in ("name", "who", "prompts", "recognisers", "fits", "texts", "gallery", "scorers"):
        assert getattr(again, field) == getattr(scores(**told), field)
    assert set(again.columns) == set(scores().columns)
    for name, values in scores().columns.items():
        np.testing.assert_allclose(again.columns[name], values, atol=1e-6)
    assert summary(again, QUICK).values.keys() == summary(scores(), QUICK).values.keys()
    assert not re.search("embedding|NaN", json.dumps(stored))  # no biometric data, and JSON that every reader takes
    for text, message in (
        ("{}", "no scores.json of this command"),
        ("x", "no scores.json"),
        ('{"format": "other"}', f"^{path} has format 'other'"),
        ("[]", "no scores.json"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            table.read(path)


def test_markdown():
    measures = known([scores(), scores(recognisers=(RecogniserInfo("third", False),))])
    # Of the second, after those of the first.
    assert [m.key for m in measures if "third" in m.key] == ["id_loss/third", "rank_1/third", "rank_1_others/third", "copy_gap/third"]
    assert len({m.key for m in measures}) == len(measures) == len(known([scores()])) + 4
    rows = [summary(scores("a|b"), QUICK), summary(scores("c", columns={k: v for k, v in scores().columns.items() if k != "clip_score"}), QUICK)]
    lines = markdown(rows, measures).splitlines()
    assert lines[:3] == ["|  | a\\|b | c |", "| --- | --- | --- |", "| pictures | 6 | 6 |"]
    [clip] = [line for line in lines if line.startswith("| CLIPScore ↑")]
    assert re.fullmatch(r"\| CLIPScore ↑ \| 0\.325 \[0\.3\d\d, 0\.3\d\d\] \| - \|", clip)
    assert any(line.startswith("| ID Loss, arcface ↓ | 0.400") for line in lines) and any("pose copied ~0" in line for line in lines)
    assert "PickScore" not in markdown(rows, measures)
    assert [m.key for m in shown(rows, measures)][:2] == ["id_loss/arcface", "rank_1/arcface"]


def test_page():
    """It holds every picture that it shows, escapes what it is told, and asks for nothing from outside."""
    seen = []

    def picture(n):
        seen.append(n)
        return np.full((40, 32, 3), 10 * n, np.uint8)

    other = scores("<other>", shift=-0.1)
    rows = [summary(s, QUICK) for s in (scores(), other)]
    page = Page(rows, [difference(scores(), other, QUICK)], known([scores()]), scores(), {"a": "woman", "b": "man"}, ["A <note>."], 0.95)
    html = html_page(page, lambda who: np.zeros((32, 32, 3), np.uint8), picture, columns=2)
    assert "&lt;other&gt;" in html and "A &lt;note&gt;." in html and "<note>" not in html and "<other>" not in html
    assert html.count("data:image/jpeg;base64,") == 2 + 4 + 2 * 5 + 2 * 1  # photos and two prompts each, worst pairs, pairs without a face
    assert not re.search(r"(src|href)=\"(?!data:)|https?://|<script", html)
    assert set(seen) == {0, 1, 2, 3, 4, 5} and "Least like the photo (arcface): 5 of 5" in html and "No face found: 1 of 1" in html
    assert html.index("Women") < html.index("Men") and "Differences on shared people and prompts" in html


def test_bootstrap_settings():
    for wrong, message in ((dict(resamples=0), "resamples is 0"), (dict(confidence=1.0), "confidence is 1.0"), (dict(confidence=0.0), "confidence is 0.0")):
        with pytest.raises(InputError, match=message):
            Bootstrap(**wrong)
