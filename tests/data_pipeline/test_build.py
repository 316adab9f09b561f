"""Building datasets: every filter and reason, the same bytes whatever happens, and what hostile sources may not do."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from data_pipeline import build as module
from data_pipeline import plan, spms
from data_pipeline.build import Args, build
from data_pipeline.chunks import Settings
from data_pipeline.filters import REASONS, Filters, box_around
from data_pipeline.index import INLINE_IDENTITY, SYNTHETIC, open_index
from data_pipeline.manifest import open_source
from data_pipeline.records import MAX_PIXELS, Caption, open_picture, open_records, read_picture
from infu_jax.errors import InputError
from infu_jax.face import YuNetDetector
from tests.conftest import ROOT
from tests.data_pipeline.conftest import draw_folder, portrait
from tests.data_pipeline.test_records import png_header


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def assert_same(a: Path, b: Path):
    one, other = contents(a), contents(b)
    assert list(one) == list(other) and [name for name in one if one[name] != other[name]] == []


def all_records(dataset: Path, splits=("train", "validation")):
    return [records[n] for split in splits for records in [open_records(dataset, split)] for n in range(len(records))]


def rejected(dataset: Path) -> list[dict]:
    return [json.loads(line) for line in (dataset / "report" / "rejected.jsonl").read_text().splitlines()]


def save(path: Path, image: np.ndarray, **options) -> str:
    Image.fromarray(image).save(path, **options)
    return path.name


@pytest.fixture(scope="module")
def built(pictures, tmp_path_factory):
    """`pictures` by two workers in one-row chunks, with three shards or so."""
    out = tmp_path_factory.mktemp("built") / "people"
    build(Args(pictures, out, workers=2, chunk_rows=1, validation_share=0.2, shard_megabytes=0.4))
    return out


# From a folder --------------------------------------------------------------------------------------


def test_a_folder_of_people(built, pictures):
    found = all_records(built)
    assert len(found) == 18 and rejected(built) == [] and len(list(built.glob("spms-train*"))) > 1
    detector = YuNetDetector()
    for record in found:
        path = pictures / record.provenance["path"]
        assert record.target == path.read_bytes(), "plain pictures are stored as they are"
        assert record.person == path.parent.name
        text = path.with_suffix(".txt")
        assert record.captions == ((Caption(text.read_text().strip(), "text"),) if text.exists() else ())
        image = read_picture(record.target, record.key)
        assert record.target_size == image.shape[:2]
        face = detector.detect(image)[0]
        np.testing.assert_array_equal(record.target_keypoints, face.keypoints)
        np.testing.assert_array_equal(record.target_face, face.box)
        assert record.scores.keys() == {"detector", "face_pixels", "face_share", "sharpness"} and not record.synthetic and not record.identity
    assert len({record.key for record in found}) == 18


def test_splits_are_by_person_and_people_stay_together(built):
    people = {}
    for split in ("train", "validation"):
        names = [record.person for record in all_records(built, (split,))]
        assert [name for n, name in enumerate(names) if n == 0 or names[n - 1] != name] == sorted(set(names))
        people[split] = set(names)
        index = open_index(built, split)
        assert (index.records, index.people) == (len(names), len(people[split]))
        assert (np.diff(index.persons.astype(int)) >= 0).all()
    assert people["train"] and people["validation"] and not people["train"] & people["validation"]


@pytest.mark.parametrize(("people", "share", "splits"), [(1, 0.9, {"train"}), (1, 1.0, {"validation"}), (2, 0.9, {"train", "validation"}), (2, 0.0, {"train"})])
def test_no_split_is_empty_and_one_person_is_for_training(people, share, splits):
    """Whatever the hash of their names says; these would all be in validation."""
    names = [name for name in map(str, range(99)) if plan._validates(name, 0.9)][:people]
    table = np.zeros((people, len(plan.COLUMNS)), np.int64)
    table[:, plan.COLUMNS.index("person")], table[:, plan.COLUMNS.index("bytes")] = np.arange(people), 1
    unique = np.arange(people).astype(np.uint64)
    plans = plan.arrange(plan.Candidates(table, unique, unique, names), np.ones(people, bool), share, 10)
    assert plans.keys() == splits and sum(len(split.chosen) for split in plans.values()) == people


def test_report(built):
    said = json.loads((built / "report" / "report.json").read_text())
    assert said["rows"] == 18 and said["rejected"] == {}
    assert said["splits"]["train"]["records"] + said["splits"]["validation"]["records"] == 18
    assert said["splits"]["train"]["shards"] == len(list(built.glob("spms-train*")))
    assert said["settings"]["filters"]["min_side"] == 384 and "/" not in json.dumps(said)
    for name in ("kept", "rejected"):
        assert min(Image.open(built / "report" / f"{name}.jpg").size) > 100


# The same bytes -------------------------------------------------------------------------------------


def test_workers_do_not_matter(built, pictures, tmp_path):
    build(Args(pictures, tmp_path / "people", workers=1, chunk_rows=1, validation_share=0.2, shard_megabytes=0.4))
    assert_same(built, tmp_path / "people")
    build(Args(pictures, tmp_path / "other", workers=3, chunk_rows=7, validation_share=0.2, shard_megabytes=0.4))
    one, other = contents(built), contents(tmp_path / "other")
    assert [name for name in one if one[name] != other[name]] == ["report/report.json"]  # which states chunk_rows


def children(pid: int) -> list[int]:
    return [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_kill_in_the_middle(tmp_path):
    source = draw_folder(tmp_path / "people", people=16)
    command = [sys.executable, "-m", "data_pipeline.build", "--source", source, "--chunk-rows", 1, "--workers", 2, "--shard-megabytes", 0.5]
    run = lambda out: [*map(str, command), "--out", str(out)]  # noqa: E731
    out, chunks = tmp_path / "out", tmp_path / ".out.building" / "chunks"
    process = subprocess.Popen(run(out), cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while len(list(chunks.glob("*.jsonl"))) < 5:
        assert process.poll() is None, "the build ended before it was killed"
        time.sleep(0.005)
    workers = children(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = {path.name: path.stat().st_mtime_ns for path in chunks.glob("*.jsonl")}
    assert not out.exists() and 5 <= len(done) < 47 and len(workers) >= 2
    deadline = time.monotonic() + 20
    while any(map(alive, workers)):
        assert time.monotonic() < deadline, "the workers live on"
        time.sleep(0.02)

    first = next(iter(done))
    kept = (chunks / first).read_bytes()
    again = subprocess.run(run(out), cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "rejected" in again.stdout and "train" in again.stdout and len(again.stdout.splitlines()) < 12
    build(Args(source, tmp_path / "undisturbed", workers=2, chunk_rows=1, shard_megabytes=0.5))
    assert_same(out, tmp_path / "undisturbed")
    assert kept and not list(tmp_path.glob(".*"))


class Closed(ProcessPoolExecutor):
    """A pool that may not be used."""

    def submit(self, *_, **__):
        raise AssertionError("a finished chunk was done again")


def test_finished_chunks_are_not_done_again_and_late_deaths_are_harmless(built, pictures, tmp_path, monkeypatch):
    args = Args(pictures, tmp_path / "people", workers=1, chunk_rows=1, validation_share=0.2, shard_megabytes=0.4)
    work = tmp_path / ".people.building"

    class Death(BaseException):
        pass

    def die(*_):
        raise Death

    # While TFDS has the first shard in a folder of its own.
    rename, calls = Path.rename, []

    def rename_one(path, target):
        if path.parent.name == "shards" and not path.name.startswith("."):
            calls.append(path)
            if len(calls) > 1:
                raise Death
        return rename(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", rename_one)
        with pytest.raises(Death):
            build(args)
    assert not args.out.exists() and len(list((work / "chunks").glob("*.jsonl"))) == 18
    # When all is ready but for its name.
    monkeypatch.setattr(module, "_make_chunks", lambda pool, *rest, make=module._make_chunks: make(Closed(), *rest))
    with monkeypatch.context() as patched:
        patched.setattr(spms, "write_index", die)
        with pytest.raises(Death):
            build(args)
    # When all but its name is ready: nothing is done again.
    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", lambda path, target: die() if path.name == "ready" else rename(path, target))
        with pytest.raises(Death):
            build(args)
    assert not (work / "chunks").exists() and not args.out.exists()
    monkeypatch.setattr(module, "_pool", die)
    assert build(args).rows == 18
    assert_same(built, args.out)
    assert not work.exists()


def test_other_settings_do_not_go_on(pictures, built, tmp_path, monkeypatch):
    args = Args(pictures, tmp_path / "people", workers=1, chunk_rows=1, validation_share=0.2, shard_megabytes=0.4)
    with monkeypatch.context() as patched:
        patched.setattr(module, "_make_chunks", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            build(args)
    other = replace(args, quality=80, filters=Filters(min_face=70))
    with pytest.raises(InputError, match="filters.min_face was 64, now 70; quality was 95, now 80.*--restart"):
        build(other)
    build(replace(args, workers=2))  # which changes nothing
    assert_same(built, args.out)
    with pytest.raises(InputError, match="exists already"):
        build(replace(args, restart=True))
    assert_same(built, args.out)


def test_restart_and_strangers(pictures, tmp_path, monkeypatch):
    args = Args(pictures, tmp_path / "people", workers=1, chunk_rows=9)
    work = tmp_path / ".people.building"
    work.mkdir()
    (work / "thesis.txt").write_text("all of it")
    with pytest.raises(InputError, match="thesis.txt, which no build made"):
        build(replace(args, restart=True))
    (work / "thesis.txt").unlink()
    (work / "chunks").mkdir()
    (work / "settings.json").write_text("{}")
    (work / "chunks" / "0000000.jsonl").write_text("nonsense")
    with pytest.raises(InputError, match="other settings"):
        build(args)
    import fcntl

    with (work / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another build works in"):
            build(replace(args, restart=True))
    assert sum(said["records"] for said in build(replace(args, restart=True)).splits.values()) == 18


# From a manifest ------------------------------------------------------------------------------------


def write_manifest(folder: Path, rows: list, name="people.jsonl") -> Path:
    (folder / name).write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return folder / name


def test_what_a_manifest_may_say(tmp_path):
    source = tmp_path / "source"
    (source / "photos").mkdir(parents=True)
    for person in range(3):
        save(source / "photos" / f"{person}.jpg", portrait(person, 0), quality=95)
        save(source / f"made{person}.png", portrait(person, 1))
    points = np.float32([[100, 100], [160, 100], [130, 130], [105, 160], [155, 160]])
    path = write_manifest(
        source,
        [
            {"image": "photos/0.jpg", "person": 7, "licence": "CC0", "url": None, "shot": {"by": "me"}, "caption": "a  woman\n"},
            {"image": "made0.png", "person": "7", "identity": "photos/0.jpg", "synthetic": True, "captions": ["x", {"text": "y", "source": "blip2"}]},
            {"image": "photos/1.jpg", "person": "ü", "key": "one", "keypoints": points.tolist(), "caption_internvl2": "z", "captions": {"user": "w"}},
            {"image": "made1.png", "person": "ü", "caption": "", "caption_source": "user", "captions": None},
        ],
    )
    build(Args(path, tmp_path / "out", workers=1, validation_share=0.0, filters=Filters(min_sharpness=0.0)))
    first, pair, given, bare = all_records(tmp_path / "out", ("train",))
    assert not (tmp_path / "out" / "index" / "validation").exists()
    assert first.person == pair.person == "7" and given.person == "ü" and given.key == "one"
    assert first.captions == (Caption("a woman", "manifest"),) and bare.captions == ()
    assert pair.captions == (Caption("x", "manifest"), Caption("y", "blip2")) and given.captions == (Caption("z", "internvl2"), Caption("w", "user"))
    assert first.provenance["licence"] == "CC0" and first.provenance["shot"] == {"by": "me"} and first.provenance["path"] == "photos/0.jpg"
    assert len(first.provenance["sha256"]) == 64 and "url" not in first.provenance
    assert pair.synthetic and not first.synthetic
    assert pair.identity == first.target and pair.identity_size == first.target_size and pair.provenance["identity_path"] == "photos/0.jpg"
    np.testing.assert_array_equal(pair.identity_keypoints, first.target_keypoints)
    np.testing.assert_array_equal(pair.identity_face, first.target_face)
    np.testing.assert_array_equal(given.target_keypoints, points)
    np.testing.assert_array_equal(given.target_face, box_around(points))
    index = open_index(tmp_path / "out", "train")
    assert index.flags.tolist() == [0, SYNTHETIC | INLINE_IDENTITY, 0, 0] and index.captions.tolist() == [1, 2, 2, 0]
    # CSV, with a byte order mark, says the same with words for values.
    rows = [
        ["image", "person", "synthetic", "keypoints", "caption", "identity", "licence"],
        ["photos/0.jpg", "7", "no", "", 'a "quoted"\nline, with commas', "", "CC0"],
        ["made0.png", "7", "TRUE", "", "", "photos/0.jpg", ""],
        ["photos/1.jpg", "ü", "0", " ".join(str(v) for v in points.ravel()), "", "", ""],
        ["photos/2.jpg", "ü", "maybe", "", "", "", ""],
        ["made2.png", "ü", "", "", "", "", "", "too", "many"],
    ]
    file = io.StringIO()
    csv.writer(file).writerows(rows)
    (source / "people.csv").write_bytes(b"\xef\xbb\xbf" + file.getvalue().encode())
    build(Args(source / "people.csv", tmp_path / "csv", workers=1, validation_share=0.0, filters=Filters(min_sharpness=0.0)))
    first, pair, given = all_records(tmp_path / "csv", ("train",))
    assert first.captions == (Caption('a "quoted" line, with commas', "manifest"),) and first.provenance["licence"] == "CC0"
    assert pair.synthetic and pair.identity == first.target
    np.testing.assert_array_equal(given.target_keypoints, points)
    assert [(line["row"], line["reason"]) for line in rejected(tmp_path / "csv")] == [(6, "bad_row"), (7, "bad_row")]
    assert "maybe" in rejected(tmp_path / "csv")[0]["detail"] and rejected(tmp_path / "csv")[0]["given"]["image"] == "photos/2.jpg"


def test_encoded_again_only_where_it_must(tmp_path):
    image = portrait(1, 1)  # 448 x 640
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path / "turned.jpg", np.ascontiguousarray(np.rot90(image)), exif=exif, quality=95)
    Image.fromarray(portrait(1, 2)).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    grey = cv2.cvtColor(portrait(2, 0), cv2.COLOR_RGB2GRAY)
    save(tmp_path / "grey16.png", grey.astype(np.uint16) * 257)
    rgba = np.dstack([portrait(2, 1), np.full(portrait(2, 1).shape[:2], 255, np.uint8)])
    rgba[:20, :20, 3] = 0
    save(tmp_path / "rgba.webp", rgba, lossless=True)
    large = cv2.resize(portrait(4, 0), None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)  # 864 x 1536
    keypoints = YuNetDetector().detect(large)[0].keypoints
    save(tmp_path / "large.png", large)
    save(tmp_path / "grey.jpg", cv2.cvtColor(portrait(5, 0), cv2.COLOR_RGB2GRAY))
    names = ["turned.jpg", "cmyk.jpg", "grey16.png", "rgba.webp", "large.png", "grey.jpg"]
    rows = [{"image": name, "person": name} for name in names]
    rows[4]["keypoints"] = keypoints.tolist()
    build(Args(write_manifest(tmp_path, rows), tmp_path / "out", workers=1, validation_share=0.0, max_side=1000))
    found = dict(zip(names, all_records(tmp_path / "out", ("train",)), strict=True))
    wanted = {"turned.jpg": image, "cmyk.jpg": portrait(1, 2), "grey16.png": np.dstack([grey] * 3), "rgba.webp": rgba[..., :3].copy()}
    wanted["rgba.webp"][:20, :20] = 255
    for name in names[:5]:
        record = found[name]
        picture = open_picture(record.target, name)
        assert picture.format == "JPEG" and picture.mode == "RGB" and not picture.getexif() and "quality 95" in record.provenance["encoded_again"]
        decoded = read_picture(record.target, name).astype(int)
        assert record.target_size == decoded.shape[:2]
        if name in wanted:
            assert np.abs(decoded - wanted[name]).mean() < 4, name
    assert found["turned.jpg"].target_size == (640, 448)
    assert found["large.png"].target_size == (1000, 562) and found["large.png"].provenance["scaled_from"] == "864x1536"
    np.testing.assert_allclose(found["large.png"].target_keypoints, keypoints * np.float32([562 / 864, 1000 / 1536]), atol=1e-3)
    assert found["grey.jpg"].target == (tmp_path / "grey.jpg").read_bytes()


def test_every_reason_occurs(tmp_path):
    """Each rejected row has its reason, each reason a row, and nothing stops the build."""
    source = tmp_path / "source"
    source.mkdir()
    rows, expected = [], []

    def add(reason, image=None, *, name=None, line=None, save_as="JPEG", **values):
        name = name or f"{len(rows)}.{save_as.lower()}"
        if isinstance(image, bytes):
            (source / name).write_bytes(image)
        elif image is not None:
            Image.fromarray(image).save(source / name, save_as, quality=92)
        rows.append(line or {"image": name, "person": "p", "caption": "a person", **values})
        expected.append(reason)

    resized = lambda image, width, height: cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)  # noqa: E731
    add(None, portrait(0, 0), name="good.jpg")
    add(None, portrait(1, 0), key="taken")
    add("same_key", portrait(2, 0), key="taken")
    for line in ("{bad", "[1]", '"x"', '{"person": "p"}', '{"image": 3, "person": "p"}', '{"image": "good.jpg", "person": "p", "x": "\\ud800"}', "[" * 5000):
        add("bad_row", line=line)
    for name, value in (("keypoints", [1, 2]), ("keypoints", [[1, 2]] * 5), ("keypoints", "a b"), ("captions", 3), ("caption", {}), ("synthetic", "?")):
        add("bad_row", name="good.jpg", **{name: value})
    add("bad_row", name="good.jpg", captions='["\\ud800"]')
    add("bad_row", name="good.jpg", keypoints=[[10**400, 1], [2, 3], [4, 5], [6, 7], [8, 9]])
    for person in ("../evil", "a/b", "/etc", "..", "x" * 201):
        add("bad_id", name="good.jpg", person=person)
    add("bad_id", name="good.jpg", key="../k")
    save(tmp_path / "outside.jpg", portrait(0, 2))
    (source / "link.jpg").symlink_to(tmp_path / "outside.jpg")
    (source / "folder").symlink_to(tmp_path)
    for name in ("../outside.jpg", str(tmp_path / "outside.jpg"), "/etc/passwd", "link.jpg", "folder/outside.jpg", "a/../../outside.jpg"):
        add("outside", name=name)
    add("outside", name="good.jpg", identity="../outside.jpg")
    add("missing_file", name="absent.jpg")
    add("missing_file", name=".")
    add("missing_file", name="x" * 300)
    add("file_too_large", b"\xff" * 1_500_000)
    add("not_a_picture", b"hello")
    add("not_a_picture", portrait(0, 1), save_as="GIF")
    add("damaged", (source / "good.jpg").read_bytes()[:9000])
    add("damaged", name="good.jpg", identity=rows[-1]["image"], key="broken identity")
    add("too_many_pixels", png_header(10_000, 6_000))
    film = [Image.fromarray(portrait(0, n, (512, 512))) for n in range(2)]
    film[0].save(source / "film.webp", save_all=True, append_images=film[1:])
    add("animated", name="film.webp")
    add("picture_too_small", resized(portrait(1, 1), 200, 300))
    add("picture_too_long", resized(portrait(1, 1), 1400, 400))
    add("no_caption", portrait(1, 2), caption=" ")
    noise = np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8)
    add("no_face", cv2.resize(noise, (512, 512), interpolation=cv2.INTER_CUBIC))
    add("several_faces", np.concatenate([portrait(0, 3, (512, 512)), portrait(1, 3, (512, 512))], axis=1))
    whole = portrait(0, 4, (900, 900))
    add("face_cut", np.ascontiguousarray(whole[:, round(float(YuNetDetector().detect(whole)[0].keypoints[0, 0])) + 35 :]))
    add("face_cut", name="good.jpg", keypoints=[[-5, 100], [160, 100], [130, 130], [105, 160], [155, 160]])
    wall = resized(np.random.default_rng(1).integers(40, 220, (3, 3, 3), np.uint8), 1500, 1200)
    for side, reason in ((140, "face_too_small"), (200, "face_too_small")):  # in pixels; and, with 80 of them, in its share
        small = wall.copy()
        small[500 : 500 + side, 700 : 700 + side] = resized(portrait(1, 4, (512, 512)), side, side)
        add(reason, small)
    add("blurred", cv2.GaussianBlur(portrait(4, 2), (0, 0), 6))
    add("duplicate", resized(portrait(0, 0), 420, 420))
    masked = portrait(0, 1)
    left, top, right, bottom = YuNetDetector().detect(masked)[0].box.astype(int)
    masked[top + (bottom - top) * 6 // 10 : bottom + 10, left - 10 : right + 10] = 190
    add("face_unsure", masked)
    add(None, portrait(5, 1))

    path = write_manifest(source, rows)
    with path.open("ab") as file:
        file.write(b"\n  \n\xff\xfe\n")
    filters = Filters(require_caption=True, min_score=0.85)
    totals = build(Args(path, tmp_path / "out", workers=2, chunk_rows=8, max_megabytes=1.4, filters=filters))
    lines = {line["row"]: line for line in rejected(tmp_path / "out")}
    found = [lines[row]["reason"] if row in lines else None for row in range(1, len(rows) + 1)]
    assert [(n, *pair, lines.get(n + 1)) for n, pair in enumerate(zip(expected, found)) if pair[0] != pair[1]] == []
    assert lines[len(rows) + 3]["reason"] == "bad_row", "the last line is no UTF-8"
    assert set(expected) - {None} == set(REASONS)
    assert all(line["detail"] and line["given"] for line in lines.values())
    assert f"row {expected.index(None) + 1}, which is kept" in next(line["detail"] for line in lines.values() if line["reason"] == "duplicate")

    counts = Counter(line["reason"] for line in lines.values())
    said = json.loads((tmp_path / "out" / "report" / "report.json").read_text())
    assert said["rejected"] == counts == totals.rejected and said["rows"] == totals.rows == len(rows) + 1
    kept = all_records(tmp_path / "out", ("train",))  # one person cannot be split
    assert len(kept) == expected.count(None) == len(rows) + 1 - len(lines)
    assert not [record for record in kept if record.person != "p"]
    sheet = Image.open(tmp_path / "out" / "report" / "rejected.jpg")
    assert sheet.height > len(REASONS) * 150


def test_the_largest_duplicate_is_kept(tmp_path):
    for name, scale in (("a.jpg", 0.8), ("b.jpg", 1.0), ("c.jpg", 1.0), ("d.jpg", 0.9)):
        image = portrait(0, 0)
        save(tmp_path / name, cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), quality=90)
    save(tmp_path / "e.jpg", portrait(0, 5))
    path = write_manifest(tmp_path, [{"image": f"{name}.jpg", "person": "p"} for name in "abcde"])
    build(Args(path, tmp_path / "one", workers=1))
    assert [record.provenance["path"] for record in all_records(tmp_path / "one", ("train",))] == ["b.jpg", "e.jpg"]
    assert [line["detail"] for line in rejected(tmp_path / "one")] == ["looks like row 2, which is kept"] * 3
    build(Args(path, tmp_path / "all", workers=1, filters=Filters(duplicate_distance=None)))
    assert len(all_records(tmp_path / "all", ("train",))) == 5


# What is refused before any work ---------------------------------------------------------------------


def test_sources_that_are_none(tmp_path, pictures):
    out = tmp_path / "out"
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.jsonl").write_text("\n \n")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "semicolons.csv").write_text("image;person\na;b\n")
    (tmp_path / "twice.csv").write_text("image,person,image\n")
    (tmp_path / "wide.csv").write_text("x" * 200_000)
    (tmp_path / "list.txt").write_text("a")
    for name, message in (
        ("absent", "is not there"), ("empty", "no pictures in it"), ("empty.jsonl", "has no rows"), ("empty.csv", "no column image"),
        ("semicolons.csv", "no column image and no column person"), ("twice.csv", "'image' twice"), ("list.txt", "ends in .txt"),
        ("wide.csv", "first line is no CSV"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            build(Args(tmp_path / name, out))
    with pytest.raises(InputError, match="lies inside the source"):
        build(Args(pictures, pictures / "out"))
    with pytest.raises(InputError, match="root goes with a manifest|--root"):
        build(Args(pictures, out, root=tmp_path))
    with pytest.raises(InputError, match="antelopev2"):
        build(Args(pictures, out, detector="antelopev2", detector_root=tmp_path))
    assert not out.exists() and not (tmp_path / ".out.building").exists()


def test_a_worker_that_dies(pictures):
    settings = Settings(Filters(), 2048, 95, 10**7, 10**7, "yunet", None)
    with pytest.raises(InputError, match="a worker process died.*run the same command again"):
        with module._pool(1, open_source(pictures), settings) as pool:
            pool.submit(os._exit, 1).result()


def test_nothing_kept(tmp_path, pictures):
    with pytest.raises(InputError, match=r"none of the 18 rows is kept \(picture_too_small 18\)"):
        build(Args(pictures, tmp_path / "out", workers=1, filters=Filters(min_side=2000)))
    assert len((tmp_path / ".out.building" / "report" / "rejected.jsonl").read_text().splitlines()) == 18 and not (tmp_path / "out").exists()


def test_folders_with_other_things(tmp_path):
    source = draw_folder(tmp_path / "people", people=1)
    save(source / "stray.jpg", portrait(1, 0))
    (source / ".hidden").mkdir()
    save(source / ".hidden" / "x.jpg", portrait(1, 1))
    (source / "person0" / "notes.pdf").write_bytes(b"%PDF")
    (source / "linked").symlink_to(tmp_path)
    save(source / "person0" / "long.jpg", portrait(1, 2))
    (source / "person0" / "long.txt").write_text("x" * 90_000)
    (source / "person0" / "1.txt").unlink(missing_ok=True)
    (source / "person0" / "1.TXT").write_text("from another system")
    os.rename(source / "person0" / "0.jpg", os.fsencode(source / "person0") + b"/\xff.jpg")  # no UTF-8
    build(Args(source, tmp_path / "out", workers=1))
    found = all_records(tmp_path / "out", ("train",))
    assert [record.provenance["path"] for record in found] == ["person0/1.png", "person0/\\xff.jpg"]
    assert found[0].captions == (Caption("from another system", "text"),)
    assert Counter(line["reason"] for line in rejected(tmp_path / "out")) == {"bad_row": 3, "not_a_picture": 1}


def test_a_folder_that_cannot_be_read_is_not_left_out(tmp_path, monkeypatch):
    source, scandir = draw_folder(tmp_path / "people", people=2), os.scandir

    def locked(path):
        if not isinstance(path, int) and os.fspath(path).endswith("person1"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", locked)
    with pytest.raises(PermissionError, match="person1"):
        build(Args(source, tmp_path / "out", workers=1))


def test_settings_that_cannot_be():
    for settings, message in (
        ({"workers": 0}, "workers is 0"), ({"validation_share": 1.5}, "validation-share is 1.5"), ({"max_side": 100}, "no picture could be kept"),
        ({"max_side": 7001}, "max-side is 7001; 64 to 7000"), ({"max_megapixels": 179.0}, "max-megapixels is 179"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            Args(Path("a"), Path("b"), **settings)
    most = Args(Path("a"), Path("b"), max_side=7000, max_megapixels=178.0)
    assert most.max_side**2 <= MAX_PIXELS and most.max_megapixels * 1e6 <= 2 * Image.MAX_IMAGE_PIXELS, "what is stored can be read, and Pillow opens it"
    nan = float("nan")
    for settings in (
        {"min_side": 0}, {"max_aspect": 0.5}, {"max_aspect": nan}, {"min_sharpness": nan}, {"min_face": -1}, {"min_score": 2.0}, {"duplicate_distance": 20},
    ):  # fmt: skip
        with pytest.raises(InputError, match=f"filters.{next(iter(settings))}"):
            Filters(**settings)


def test_command_line(tmp_path):
    run = lambda *arguments: subprocess.run([sys.executable, "-m", "data_pipeline.build", *arguments], cwd=ROOT, capture_output=True, text=True)  # noqa: E731
    shown = run("--help")
    assert shown.returncode == 0 and "--filters.min-sharpness" in shown.stdout and "--manifest" in shown.stdout
    failed = run("--manifest", str(tmp_path / "absent.jsonl"), "--out", str(tmp_path / "out"))
    assert failed.returncode == 1 and len(failed.stderr.splitlines()) == 1 and "absent.jsonl is not there" in failed.stderr
