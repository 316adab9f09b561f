"""data_pipeline.people: drawn people as a real detector and a reader of captions see them."""

import dataclasses
import json
import subprocess
import sys
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from data_pipeline import manifest, people
from data_pipeline.people import attributes, grammar, haircut
from data_pipeline.people.surface import rotation
from infu_jax import face

VALUES = {
    "expression": attributes.EXPRESSIONS,
    "light": attributes.LIGHTS,
    "shot": attributes.SHOTS,
    "clothing": attributes.CLOTHES,
    "headwear": attributes.HEADWEAR,
    "glasses": attributes.GLASSES,
    "scene": attributes.SCENES,
}


@pytest.fixture(scope="module")
def yunet():
    return face.load_detector("yunet")


def still(number, seed=0, **given):
    return people.Picture(seed=(number, seed), **given)


# A detector's view


def disagreement(yunet, numbers, size):
    """Distances between drawn and found points in pixels of a picture of 128, and the number of faces that were missed."""
    found, missed = [], 0
    for n in numbers:
        shown = people.render(people.person(n), people.picture(n, n % 5, "mixed"), size, size)
        faces = yunet.detect(shown.image)
        if faces:
            found.append(np.linalg.norm(faces[0].keypoints - shown.keypoints, axis=1) * 128 / size)
        else:
            missed += 1
    return np.array(found), missed


def test_a_detector_finds_the_faces_and_their_points_at_128(yunet):
    errors, missed = disagreement(yunet, range(5000, 5080), 128)
    assert missed <= 4
    # The detector itself, on one picture at 128 and at 512 pixels, disagrees by 2.0 in the median and 4.7 at 95 %.
    assert np.median(errors) <= 3.0 and np.percentile(errors, 95) <= 7.0 and np.all(np.median(errors, axis=0) <= 3.8)


@pytest.mark.parametrize("size", [256, 512])
def test_a_detector_finds_the_faces_in_larger_pictures(yunet, size):
    errors, missed = disagreement(yunet, range(6000, 6008), size)
    assert missed == 0 and np.median(errors) <= 3.5 and np.percentile(errors, 95) <= 8.0


def test_keypoints_lie_inside_pictures_of_any_shape():
    for n in range(100):
        for height, width in ((128, 128), (192, 128), (128, 192), (64, 128)):
            points = people.keypoints(people.person(n), people.picture(n, n % 7), height, width)
            assert np.all(points >= 0) and np.all(points < (width, height)), (n, height, width)


def test_keypoints_follow_the_head():
    someone = people.person(3)

    def points(**pose):
        return people.keypoints(someone, still(3, **pose), 256, 256).astype(np.float64)

    straight = points()
    eyes = straight[1] - straight[0]
    assert abs(np.degrees(np.arctan2(eyes[1], eyes[0]))) < 0.1
    tilted = points(roll=20.0)
    assert np.degrees(np.arctan2(*(tilted[1] - tilted[0])[::-1])) == pytest.approx(20, abs=0.1)
    # A head turned to the right: the nose moves right between the eyes, and what lies on that side of the nose is foreshortened.
    turned = points(yaw=30.0)
    left, right = turned[2, 0] - turned[0, 0], turned[1, 0] - turned[2, 0]
    assert left > 2 * right
    assert np.linalg.norm(turned[1] - turned[0]) < 0.93 * np.linalg.norm(eyes)
    nodding, raised = points(pitch=15.0), points(pitch=-15.0)

    def nose(p):  # its place between eyes (0) and mouth (1)
        return (p[2, 1] - p[:2, 1].mean()) / (p[3:, 1].mean() - p[:2, 1].mean())

    assert nose(nodding) > nose(straight) > nose(raised)
    twice = people.keypoints(someone, still(3, yaw=12.0), 512, 512)
    np.testing.assert_allclose((twice + 0.5) / 2 - 0.5, points(yaw=12.0), atol=0.01)


def test_rotation_is_a_rotation():
    turn = rotation(20, -10, 5)
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(turn) == pytest.approx(1)
    assert rotation(20, 0, 0)[0, 2] > 0 and rotation(0, 20, 0)[1, 2] > 0  # a nose moves right; down


# Who is who


def test_the_same_numbers_give_the_same_bytes():
    def draw():
        return people.render(people.person(11), people.picture(11, 4, "snapshot"), 96, 64)

    once = draw()
    people.render(people.person(12), people.picture(12, 0), 64, 64)
    haircut.shell.cache_clear()
    again = draw()
    np.testing.assert_array_equal(once.image, again.image)
    np.testing.assert_array_equal(once.keypoints, again.keypoints)
    assert (once.caption, once.attributes) == (again.caption, again.attributes)
    assert once.image.shape == (96, 64, 3) and once.image.dtype == np.uint8
    code = "import zlib; from data_pipeline import people as p; print(zlib.crc32(p.render(p.person(11), p.picture(11, 4, 'snapshot'), 96, 64).image))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(other) == zlib.crc32(once.image)


def traits(p):
    return np.array([p.cheek, p.jaw, p.chin, p.eye_x, p.eye_width, p.brow_y, p.nose, p.nose_width, p.mouth_width, *p.skin, *p.hair, *p.iris])


def test_people_vary_and_neighbouring_numbers_are_unrelated():
    everybody = [people.person(n) for n in range(600)]
    assert len(set(everybody)) == 600
    assert 0.42 < np.mean([p.gender == "woman" for p in everybody]) < 0.58
    assert {p.hair_style for p in everybody} == {*haircut.STYLES, "bald"}
    assert min(p.age for p in everybody) < 20 and max(p.age for p in everybody) > 70
    assert all(p.beard == "none" for p in everybody if p.gender == "woman")
    values = np.array([traits(p) for p in everybody])
    values = (values - values.mean(axis=0)) / values.std(axis=0)
    assert np.abs((values[:-1] * values[1:]).mean(axis=0)).max() < 0.15  # correlation of neighbours; 1/sqrt(600) is 0.04
    far = people.person(10**12 + 7)
    assert far != people.person(7) and far == people.person(10**12 + 7)


def test_pictures_of_swapped_numbers_are_unrelated():
    a, b = people.picture(1, 2), people.picture(2, 1)
    assert dataclasses.replace(a, seed=(0, 0)) != dataclasses.replace(b, seed=(0, 0))
    many = [people.picture(n, 0) for n in range(300)]
    yaws = np.array([p.yaw for p in many])
    assert abs(np.corrcoef(yaws[:-1], yaws[1:])[0, 1]) < 0.2 and 10 < yaws.std() < 20
    for name, values in VALUES.items():
        assert {getattr(p, name) for p in many} == set(values), name
    assert {people.picture(3, k, "mixed").look for k in range(20)} == {"snapshot", "clean"}


def test_a_person_is_recognised_in_another_picture():
    """Even bare pixels of the aligned face tell people apart across expression, light, clothes and scene."""

    def crops(**given):
        found = []
        for n in numbers:
            shown = people.render(people.person(n), still(n, **given), 128, 128)
            found.append(cv2.GaussianBlur(face.align(shown.image, shown.keypoints), (0, 0), 3)[::4, ::4].astype(np.float32).ravel())
        found = np.array(found) - np.mean(found, axis=0)  # what light, expression and scene do to everybody
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    numbers = range(40, 65)
    gallery = crops(scene="beach")
    probes = crops(scene="library", expression="smiling", light="cool", yaw=6.0, clothing="shirt", colour="red")
    ranked = (probes @ gallery.T).argmax(axis=1)
    assert np.mean(ranked == np.arange(len(numbers))) > 0.5  # chance is 0.04


# What a picture shows


def test_every_attribute_shows():
    someone = people.person(2)
    base = people.render(someone, still(2), 128, 128).image.astype(int)
    for name, values in VALUES.items():
        images = [people.render(someone, still(2, **{name: value}), 128, 128).image.astype(int) for value in values]
        for k, one in enumerate(images):
            for other in images[:k]:
                assert (np.abs(one - other).max(axis=2) > 24).sum() > 60, (name, values[k])
    snapshot = people.render(someone, still(2, look="snapshot"), 128, 128).image.astype(int)
    assert 2 < np.abs(snapshot - base).mean() < 40
    grain, smooth = (np.abs(np.diff(image[:12, :40], axis=1)).mean() for image in (snapshot, base))
    assert grain > 1.4 * smooth


def test_first_captions_state_everything():
    for n in range(250):
        who, picture = people.person(n), people.picture(n, n % 3)
        first, *others = people.captions(who, picture, 3)
        low = first.lower()
        words = set(low.replace(",", " ").replace(".", " ").replace(":", " ").split())
        assert (who.gender in words) and ({"man", "woman"} - {who.gender}).isdisjoint(words), first
        assert any(text in first for text in grammar.EXPRESSION[picture.expression]), first
        assert any(text.format(wall=picture.scene_colour) in low for text in grammar.SCENE[picture.scene]), first
        assert any(text in low for text in grammar.LIGHT[picture.light]), first
        assert f"{picture.colour} {picture.clothing}" in first and picture.shot.split()[0] in low or picture.shot == "portrait", first
        assert (picture.glasses in first) if picture.glasses != "none" else "glasses" not in first, first
        for hat in attributes.HEADWEAR[1:]:
            assert (hat in first) == (hat == picture.headwear), first
        for pose in grammar.pose(picture):
            assert pose in first
        for other in others:
            assert any(text in other for text in grammar.EXPRESSION[picture.expression]) and who.gender in other
            assert other.endswith(".") and "  " not in other and ", ," not in other
    assert len({people.captions(people.person(n), people.picture(n, 0), 1)[0].split()[0:3][-1] for n in range(60)}) > 8


def test_what_cannot_be_drawn_is_refused(unchecked):
    with pytest.raises(ValueError, match="expression 'cross' is unknown; expected neutral"):
        still(0, expression="cross")
    with pytest.raises(ValueError, match="yaw is 90"):
        still(0, yaw=90.0)
    with pytest.raises(ValueError, match="size is 3"):
        still(0, size=3.0)
    with pytest.raises(ValueError, match="numbers start at 0"):
        people.person(-1)
    with pytest.raises(ValueError, match="numbers start at 0"):
        people.picture(0, -1)
    with pytest.raises(ValueError, match="look 'raw'"):
        people.picture(0, 0, "raw")
    with pytest.raises(ValueError, match="at least 32"):
        people.render(people.person(0), people.picture(0, 0), 8, 8)


# The command


def command(*args):
    return subprocess.run([sys.executable, "-m", "data_pipeline.people", *map(str, args)], capture_output=True, text=True)


def test_the_command_writes_a_manifest_that_the_builder_reads(tmp_path):
    out, sheet = tmp_path / "out", tmp_path / "sheet.png"
    done = command(out, "--people", 3, "--pictures", 2, "--first-person", 70, "--height", 96, "--width", 64, "--workers", 2, "--sheet", sheet)
    assert done.returncode == 0, done.stderr
    source = manifest.open_source(out / "manifest.jsonl")
    rows = [manifest.parse(source, raw) for raw in manifest.raw_rows(source)]
    assert [row.person for row in rows] == ["000070"] * 2 + ["000071"] * 2 + ["000072"] * 2
    for k, row in enumerate(rows):
        number = 70 + k // 2
        picture = people.picture(number, k % 2, "snapshot")
        np.testing.assert_allclose(row.keypoints, people.keypoints(people.person(number), picture, 96, 64), atol=1e-3)
        assert [c.source for c in row.captions] == ["grammar"] * 2
        assert [c.text for c in row.captions] == people.captions(people.person(number), picture, 2)
        assert row.synthetic is False
        assert row.provenance["licence"] == "Apache-2.0, drawn by infu_jax"
        assert row.provenance["attributes"]["expression"] == picture.expression
        stored = np.asarray(Image.open(row.image)).astype(int)
        assert stored.shape == (96, 64, 3)
        assert np.abs(stored - people.render(people.person(number), picture, 96, 64).image).mean() < 4  # JPEG
    assert Image.open(sheet).width > 2 * 64
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "sheet.png"]

    png = tmp_path / "png"
    options = ("--people", 1, "--pictures", 1, "--first-person", 71, "--first-picture", 1, "--look", "clean", "--size", 64, "--format", "png", "--synthetic")
    done = command(png, *options, "--workers", 1)
    assert done.returncode == 0, done.stderr
    (row,) = (json.loads(line) for line in (png / "manifest.jsonl").read_text().splitlines())
    assert row["synthetic"] is True
    np.testing.assert_array_equal(np.asarray(Image.open(png / row["image"])), people.render(people.person(71), people.picture(71, 1), 64, 64).image)

    refused = command(out, "--people", 1)
    assert refused.returncode == 1 and refused.stderr.strip() == f"error: {out} exists already; remove it or choose another name"


@pytest.mark.parametrize(
    "args, message",
    [
        ((), "nothing to do"),
        (("OUT", "--people", "0"), "people is 0; at least 1"),
        (("OUT", "--size", "8"), "8x8 pixels"),
        (("OUT", "--first-person", "-1"), "first_person is -1"),
    ],
)
def test_the_command_refuses_in_one_line(tmp_path, args, message):
    done = command(*[tmp_path / "out" if a == "OUT" else a for a in args])
    assert done.returncode == 1 and message in done.stderr and len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
