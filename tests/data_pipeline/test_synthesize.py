"""Synthesis on a stand-in generator that paints drawn people: every gate, the same bytes whatever happens; and the real pipeline, end to end."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from data_pipeline import gates, people, show, studio, synthesize
from data_pipeline.build import Args as BuildArgs
from data_pipeline.build import build
from data_pipeline.filters import Filters, Found, Rejected
from data_pipeline.gates import Gates, Shown, Verdict
from data_pipeline.index import INLINE_IDENTITY, SYNTHETIC, open_index
from data_pipeline.loader import open_loader
from data_pipeline.records import open_records, read_picture
from data_pipeline.synthesize import Args
from data_pipeline.work import work_folder
from infu_jax import face
from infu_jax.assets import ASSETS
from infu_jax.convert import safetensors
from infu_jax.errors import InputError
from infu_jax.tokenizers import load_clip_tokenizer, load_t5_tokenizer
from infu_jax.train_config import DataConfig
from tests.conftest import ROOT
from tests.data_pipeline import drawn_models
from tests.data_pipeline.drawn_models import FATES, PEOPLE, PHOTOS
from tests.data_pipeline.test_build import all_records, assert_same, contents, rejected

GATES = Gates(min_face=48, max_yaw=20.0, max_similarity=0.985)
OPTIONS = ("--gates.min-face", "48", "--gates.max-yaw", "20", "--gates.max-similarity", "0.985", "--validation-share", "0.3", "--chunk-pictures", "8")
SCORER = "tests.data_pipeline.drawn_models:beauty=5"


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """A dataset of three people with two photos each, and of one who is all synthetic. Only of the first is a gender known."""
    folder, rows = tmp_path_factory.mktemp("photos"), []
    for person, name in PEOPLE.items():
        for k in range(PHOTOS):
            Image.fromarray(drawn_models.photo(person, k)).save(folder / f"{person}-{k}.png")
            rows.append({"image": f"{person}-{k}.png", "person": name, "caption": f"photo {k} of {name}", "licence": "CC0"})
            rows[-1] |= {"gender": "Female"} if person == 0 else {}
    Image.fromarray(drawn_models.draw(3, 0)).save(folder / "ghost.png")
    rows.append({"image": "ghost.png", "person": "ghost", "synthetic": True})
    (folder / "people.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    build(BuildArgs(folder / "people.jsonl", folder / "data", workers=1, validation_share=0.3, filters=Filters(min_side=96, min_face=48, min_sharpness=0.0)))
    return folder / "data"


@pytest.fixture(scope="module")
def prompts_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("# what the stand-in knows\n\n" + "".join(f"{prompt}\n" for prompt in FATES))
    return path


def order(photos, out, prompts_file, **given) -> Args:
    common = dict(pictures=len(FATES), prompts_file=prompts_file, gates=GATES, scorers=(SCORER,), chunk_pictures=8, validation_share=0.3, threads=2)
    return Args(photos, out, **{**common, **given})


@pytest.fixture(scope="module")
def made(photos, prompts_file, tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "spms"
    totals = synthesize.synthesize(order(photos, out, prompts_file), drawn_models.open_models)
    return out, totals


# What is kept, and why not --------------------------------------------------------------------------


def test_every_gate_turns_its_pictures_away(made):
    """Each prompt is painted once for each person, so what becomes of it is known."""
    out, totals = made
    lines = rejected(out)
    assert totals.rows == 4 * len(FATES) == len(lines) + len(all_records(out))
    fates: dict[tuple[str, str], str | None] = {(record.person, record.captions[0].text): None for record in all_records(out)}
    fates |= {(line["given"]["person"], line["given"].get("prompt", "")): line["reason"] for line in lines}
    assert fates.pop(("ghost", "")) == "no_photo" and sum(line["given"]["person"] == "ghost" for line in lines) == len(FATES)
    for person in PEOPLE.values():  # of two that are the same the first is kept
        pair = ("again", "again and again")
        assert sorted(str(fates.pop((person, prompt))) for prompt in pair) == ["None", "duplicate"]
    expected = {(person, prompt): fate for person in PEOPLE.values() for prompt, fate in FATES.items() if not prompt.startswith("again")}
    details = {(line["given"]["person"], line["given"].get("prompt")): line["detail"] for line in lines}
    assert {k: (fates.get(k, "?"), details.get(k)) for k in expected if fates.get(k, "?") != expected[k]} == {} and fates.keys() == expected.keys()
    assert set(totals.rejected) == set(gates.REASONS) - {"no_prompt"}, "each gate was needed, but one that has its own test"
    assert totals.rejected == dict(Counter(line["reason"] for line in lines))
    assert [line["row"] for line in lines] == sorted(line["row"] for line in lines)
    for line in lines:
        assert ("similarity" in line["scores"]) == (line["reason"] in ("unlike", "too_like", "scored_low")) or line["reason"] == "duplicate"


def test_records(made, photos):
    out, _ = made
    found, sources = all_records(out), {record.key: record for record in all_records(photos)}
    detector, keys = face.YuNetDetector(), set()
    assert len(found) == 3 * 3, [(record.person, record.captions[0].text) for record in found]
    for record in found:
        photo = sources[record.provenance["identity_key"]]
        assert record.identity == photo.target and record.identity_size == photo.target_size and record.person == photo.person
        np.testing.assert_array_equal(record.identity_keypoints, photo.target_keypoints)
        assert record.synthetic and [caption.source for caption in record.captions] == ["prompt"]
        image = read_picture(record.target, record.key)
        np.testing.assert_array_equal(record.target_keypoints, detector.detect(image)[0].keypoints)
        said = record.provenance
        assert said["identity_licence"] == "CC0" and said["model"]["infu"] == "drawn" and 0 <= said["seed"] < 2**32
        person = next(number for number, name in PEOPLE.items() if name == record.person)
        painted = drawn_models.paint(record.captions[0].text, person, said["seed"], image)
        assert np.abs(painted.astype(int) - image).mean() < 3, "the prompt and the seed that it says made it"
        assert 0.6 <= record.scores["similarity"] <= 0.985 and record.scores["tests.data_pipeline.drawn_models:beauty"] == 6
        assert abs(record.scores["yaw"]) <= 20 and record.scores["identity_detector"] > 0.8 and record.scores["face_correlation"] < 0.985
        assert b"trainedAlgorithmicMedia" in record.target
        keys.add(record.key)
    assert len(keys) == len(found)
    assert {record.provenance["identity_key"] for record in found if record.person == "green"} <= {k for k, r in sources.items() if r.person == "green"}
    for split in ("train", "validation"):
        assert set(open_index(out, split).flags.tolist()) == {SYNTHETIC | INLINE_IDENTITY}
        assert {record.person for record in all_records(out, (split,))} <= {record.person for record in all_records(photos, (split,))}


def test_it_loads_and_shows(made, tiny, monkeypatch, tmp_path):
    out, _ = made
    tokenizers = dict(t5_tokenizer=load_t5_tokenizer(tiny[0] / "tokenizer_2"), clip_tokenizer=load_clip_tokenizer(tiny[0] / "tokenizer"))
    cfg = DataConfig(paths=(str(out),), pairing="spms", resolution=128, bucket_step=64, features=())
    with open_loader(cfg, batch_size=1, seed=0, **tokenizers) as loader:
        batch = loader.dataset[0]
        assert loader.steps_per_epoch() == len(all_records(out, ("train",))) and batch["id_crop"].shape == (1, 112, 112, 3)
        record = open_records(out, "train")[int(batch["record"][0])]
        crop = face.align(read_picture(record.identity, record.key), record.identity_keypoints)
        np.testing.assert_array_equal(batch["id_crop"][0], crop)
    monkeypatch.setattr(sys, "argv", ["show", str(out), "--out", str(tmp_path / "page.html"), "--resolution", "128", "--bucket-step", "64", "--pairs", "2"])
    show.main()
    page = (tmp_path / "page.html").read_text()
    assert "too_like" in page and '<span class="tag">prompt</span>a' in page


def test_report(made, capsys):
    out, totals = made
    said = json.loads((out / "report" / "report.json").read_text())
    assert said["rows"] == totals.rows and list(said["rejected"]) == [reason for reason in gates.REASONS if reason != "no_prompt"]
    assert said["settings"]["gates"]["max_yaw"] == 20 and said["settings"]["models"]["infu"] == "drawn" and str(ROOT) not in json.dumps(said)
    heights = {name: Image.open(out / "report" / f"{name}.jpg").height for name in ("people", "rejected", "kept")}
    assert heights["people"] > 4 * 224 and heights["rejected"] > len(said["rejected"]) * 112 and heights["kept"] > 224
    lines = gates.table(totals.rows, totals.rejected).splitlines()
    assert len(lines) == 2 + len(totals.rejected) and lines[1].split()[:3] == ["no_photo", "64", "16"] and lines[2].split()[1] == "48"
    assert lines[-1].split() == ["kept", "64", "9", "14.1%"]


# The same, whatever happens -------------------------------------------------------------------------


def test_neither_threads_nor_chunks_nor_a_late_death_matter_but_the_seed(made, photos, prompts_file, tmp_path, monkeypatch):
    """Killed when all was ready but for its name: another run makes no picture."""
    args = order(photos, tmp_path / "other", prompts_file, threads=1, chunk_pictures=20)
    with monkeypatch.context() as patched:
        patched.setattr("data_pipeline.assembly.hand_over", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            synthesize.synthesize(args, drawn_models.open_models)
    batches = []
    synthesize.synthesize(args, lambda args: counting(args, batches))
    one, other = contents(made[0]), contents(args.out)
    assert batches == [] and [name for name in one if one[name] != other.get(name)] == ["report/report.json"]  # which states the chunks
    plan = lambda seed: [studio.deal(tuple(FATES), seed, "green", n) for n in range(2 * len(FATES))]  # noqa: E731
    assert plan(0) != plan(1) and sorted(plan(1)[: len(FATES)]) == sorted(FATES) and plan(1)[: len(FATES)] == plan(1)[len(FATES) :]


def test_every_prompt_has_its_control(photos, prompts_file, tmp_path):
    """The first photo goes with the first prompt, and so on, from the first again; what is rejected says which it was."""
    controls, seen = tmp_path / "controls", []
    controls.mkdir()
    for name in ("ada", "bo"):
        shutil.copy(ASSETS / "faces" / f"{name}.png", controls)
    given = [face.read_image(path) for path in sorted(controls.iterdir())]

    def models(args):
        made = drawn_models.open_models(args)
        return replace(made, generate=lambda requests: (seen.extend(requests), made.generate(requests))[1])

    args = order(photos, tmp_path / "spms", prompts_file, controls=controls)
    synthesize.synthesize(args, models)
    at = {prompt: n % 2 for n, prompt in enumerate(FATES)}
    assert {at[request.prompt] for request in seen} == {0, 1}
    assert all(np.array_equal(request.control, given[at[request.prompt]]) for request in seen)
    named = [line["given"] for line in rejected(args.out) if "prompt" in line["given"]]
    assert named and all(said["control"] == ("ada.png", "bo.png")[at[said["prompt"]]] for said in named)
    with pytest.raises(InputError, match="--controls go with the prompts of --prompts-file"):
        synthesize.synthesize(order(photos, tmp_path / "more", None, controls=controls), models)


def command(photos, out, prompts_file, *options) -> list[str]:
    given = [photos, "--out", out, "--pictures", len(FATES), "--prompts-file", prompts_file, "--scorers", SCORER, "--threads", 1, *OPTIONS, *options]
    return [sys.executable, "-m", "tests.data_pipeline.drawn_models", *map(str, given)]


def test_kill_9_then_the_same_again(made, photos, prompts_file, tmp_path):
    """In the middle of the fourth chunk, which is lost; the three before it are not made again."""
    out, env = tmp_path / "spms", {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command(photos, out, prompts_file), env={**env, "KILL": "6"}, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr
    finished = {path.name: path.stat().st_mtime_ns for path in (tmp_path / ".spms.synthesizing" / "chunks").glob("*.jsonl")}
    assert not out.exists() and 2 <= len(finished) < 8
    with pytest.raises(InputError, match="seed was 0, now 1.*--restart"):
        synthesize.synthesize(order(photos, out, prompts_file, seed=1), drawn_models.open_models)
    batches = []
    totals = synthesize.synthesize(order(photos, out, prompts_file), lambda args: counting(args, batches))
    assert_same(made[0], out)
    assert totals.rejected == made[1].rejected and not list(tmp_path.glob(".*"))
    assert sum(batches) <= 4 * len(FATES) - 8 * len(finished), "what was done is done"


def counting(args, batches):
    models = drawn_models.open_models(args)
    return replace(models, generate=lambda requests: (batches.append(len(requests)), models.generate(requests))[1])


def test_two_processes_make_what_one_makes(made, photos, prompts_file, tmp_path):
    out, env = tmp_path / "spms", {**os.environ, "PYTHONPATH": str(ROOT)}
    both = [
        subprocess.Popen(command(photos, out, prompts_file, "--process-count", 2, "--process-index", n), env=env, cwd=ROOT, stdout=-1, stderr=-1, text=True)
        for n in range(2)
    ]
    told = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    assert_same(made[0], out)
    shares = [int(re.search(r"^(\d+) pictures in", said, re.M)[1]) for said, _ in told]
    assert shares == [32, 32] and any("dataset;" in said for said, _ in told) and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("restart", [False, True])
def test_who_works_alone_does_not_disturb_those_who_share(tmp_path, restart):
    work, there = tmp_path / "work", tmp_path / "work" / "chunks" / ".0000000.jsonl.1.partial"
    with work_folder(work, {}, False, maker="synthesis", lock="lock-0-of-2", shared=True):
        there.write_text("in the making")
        with pytest.raises(InputError, match="another synthesis works in"), work_folder(work, {}, restart, maker="synthesis"):
            pass
        with work_folder(work, {}, False, maker="synthesis", lock="lock-1-of-2", shared=True):
            assert there.exists()
        with pytest.raises(InputError, match="another"), work_folder(work, {}, False, maker="synthesis", lock="lock-0-of-2", shared=True):
            pass
    with work_folder(work, {}, restart, maker="synthesis"):
        assert not there.exists()
        with pytest.raises(InputError, match="another"), work_folder(work, {}, False, maker="synthesis", lock="lock-0-of-2", shared=True):
            pass


# Input ----------------------------------------------------------------------------------------------


def test_folders_hooks_captions_and_genders(photos, tmp_path, monkeypatch):
    """A folder for each person; what hooks get, and what becomes of what they return."""
    source = tmp_path / "people"
    for person, name in ((0, "ana"), (1, "bob")):
        (source / name).mkdir(parents=True)
        for k in range(2):
            Image.fromarray(drawn_models.photo(person, k)).save(source / name / f"{k}.png")
            (source / name / f"{k}.txt").write_text(f"portrait {k} of {name}")
    (source / "cy").mkdir()
    Image.fromarray(np.full((256, 256, 3), 90, np.uint8)).save(source / "cy" / "0.png")
    seen = []

    def before(photo):
        seen.append(("before", photo.shape))
        return np.repeat(np.repeat(photo, 2, axis=0), 2, axis=1)

    def after(picture, photo):
        seen.append(("after", picture.shape, photo.shape))
        return np.repeat(np.repeat(picture, 2, axis=0), 2, axis=1)

    module = type(sys)("own_hooks")
    module.before, module.after, module.broken = before, after, lambda picture, photo: picture / 255
    monkeypatch.setitem(sys.modules, "own_hooks", module)
    small = dict(photo_filters=Filters(min_side=96, min_face=48, min_sharpness=0.0), pictures=2, validation_share=0.0, scorers=())
    small |= dict(gates=replace(GATES, max_similarity=1.0))
    hooks = dict(before=("own_hooks:before",), after=("own_hooks:after",))
    totals = synthesize.synthesize(order(source, tmp_path / "captions", None, **small, **hooks), drawn_models.open_models)
    assert dict(totals.rejected) == {"no_photo": 2}
    found = all_records(tmp_path / "captions", ("train",))
    assert {caption.text for record in found for caption in record.captions} == {f"portrait {k} of {name}" for k in range(2) for name in ("ana", "bob")}
    assert {kind for kind, *_ in seen} == {"before", "after"} and {shapes for kind, *shapes in map(lambda s: (s[0], str(s[1:])), seen) for shapes in shapes}
    assert all(record.target_size == (512, 512) and record.identity_size == (256, 256) for record in found), "the photo is kept as it was"
    assert "no_face" in rejected(tmp_path / "captions")[0]["detail"]
    with pytest.raises(InputError, match=r"own_hooks:broken returned float64 \(256, 256, 3\)"):
        synthesize.synthesize(order(source, tmp_path / "broken", None, **small, after=("own_hooks:broken",)), drawn_models.open_models)

    only = tmp_path / "women.csv"
    only.write_text('gender,prompt\nfemale,"a portrait"\n')
    who = tmp_path / "genders.csv"
    who.write_text("person,gender\nana,woman\n")
    totals = synthesize.synthesize(order(source, tmp_path / "women", only, **small, genders=who), drawn_models.open_models)
    assert dict(totals.rejected) == {"no_photo": 2, "no_prompt": 2} and totals.splits["train"]["people"] == 1


@pytest.mark.parametrize(
    "given, message",
    [
        (dict(pictures=0), "pictures is 0"),
        (dict(process_index=2, process_count=2), "--process-index is 2"),
        (dict(restart=True, process_count=2), "--restart is for one process"),
        (dict(scorers=("a:b",)), "expected module:function=least"),
        (dict(scorers=(SCORER, SCORER)), "given twice"),
        (dict(after=("nowhere",)), "expected module:function"),
        (dict(after=("no_such_module_here:f",)), "there is no module no_such_module_here"),
        (dict(after=("json:f",)), "has no attribute 'f'"),
        (dict(after=("math:pi",)), "math:pi is float"),
        (dict(photos=Path("/nowhere")), "/nowhere is not there"),
    ],
)
def test_bad_options(photos, tmp_path, given, message):
    def never(args):
        raise AssertionError("models are loaded only for what can be done")

    with pytest.raises(InputError, match=re.escape(message)):
        args = order(**{"photos": photos, "out": tmp_path / "out", "prompts_file": None} | given)
        synthesize.synthesize(args, never)
    assert not list(tmp_path.iterdir())
    for wrong in (dict(min_similarity=0.9, max_similarity=0.5), dict(max_yaw=-1.0), dict(copy_distance=64), dict(min_score=2.0)):
        with pytest.raises(InputError):
            Gates(**wrong)


# Gates by themselves --------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", ["yaw", "pitch", "roll"])
def test_each_turn_has_its_limit(axis):
    turned = replace(people.picture(1, 0), **{"yaw": 0.0, "pitch": 0.0, "roll": 0.0, axis: 25.0})
    points = people.keypoints(people.person(1), turned, 256, 256)
    verdict = Verdict(found=Found(points, np.zeros(4, np.float32), {}))
    gates._check_pose(verdict, Gates(max_yaw=32.0, max_pitch=40.0, max_roll=32.0))
    assert abs(verdict.scores[axis]) > 20
    with pytest.raises(Rejected, match=f"^{axis} is .* at most 18 are allowed") as caught:
        gates._check_pose(verdict, Gates(**{"max_yaw": 180.0, "max_pitch": 180.0, "max_roll": 180.0, f"max_{axis}": 18.0}))
    assert caught.value.reason == "turned"


def test_a_face_without_size_has_no_turn():
    verdict = Verdict(found=Found(np.full((5, 2), 7, np.float32), np.zeros(4, np.float32), {}))
    with pytest.raises(Rejected, match="no turn can be seen"):
        gates._check_pose(verdict, Gates())


def test_similarity_has_two_ends():
    shown, at = Shown(0, np.zeros((112, 112, 3), np.uint8), np.array([1, 0], np.float32)), {}
    for degrees in (0, 20, 80):
        verdict = Verdict()
        gates.check_similarity(verdict, np.array([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], np.float32), shown, Gates())
        at[degrees] = verdict.rejected and verdict.rejected.reason
        assert abs(verdict.scores["similarity"] - np.cos(np.radians(degrees))) < 1e-6
    assert at == {0: "too_like", 20: None, 80: "unlike"}


def test_pasted_faces_correlate_and_others_do_not():
    detector, crops = face.YuNetDetector(), {}
    for person in (0, 1):
        for number in range(3):
            image = drawn_models.draw(person, number, look="snapshot", yaw=people.picture(person, number).yaw)
            pasted = np.clip(drawn_models.middle(image, 512, 512, 0.8, number) * 0.8 + 20, 0, 255).astype(np.uint8)
            crops[person, number] = [face.align(x, face.largest_face(detector, x).keypoints) for x in (image, pasted)]
    limit = Gates().max_face_correlation
    assert min(gates.correlation(pasted, image) for image, pasted in crops.values()) > limit
    assert max(gates.correlation(a, b) for n, (a, _) in crops.items() for m, (_, b) in crops.items() if n != m) < limit
    assert gates.correlation(np.zeros((112, 112, 3), np.uint8), crops[0, 0][0]) == 0


# The pipeline itself --------------------------------------------------------------------------------

SMALL = ("--width", "64", "--height", "80", "--steps", "2", "--t5-length", "24", "--pictures", "2")


def paste(picture, photo):
    """A hook: a face, which untrained models do not paint."""
    return np.concatenate([np.repeat(np.repeat(picture[:80, :64], 2, axis=0), 2, axis=1), photo[:160, 48:208]], axis=1)


def test_the_pipeline(photos, prompts_file, tiny, tmp_path, monkeypatch, capsys):
    """Random models: everything is rejected. With a LoRA, a hook that pastes a face, and open gates everything is kept."""

    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:2])

    def main(out, *options):
        given = [photos, "--out", out, "--prompts-file", prompts_file, "--base", tiny[0], "--infu", tiny[1], *SMALL, *options]
        monkeypatch.setattr(sys, "argv", ["synthesize", *map(str, given)])
        synthesize.main()

    with pytest.raises(InputError, match=r"none of the 8 rows is kept \(no_face 6, no_photo 2\)"):
        main(tmp_path / "nothing")
    report = tmp_path / ".nothing.synthesizing" / "report"
    assert len((report / "rejected.jsonl").read_text().splitlines()) == 8 and (report / "people.jpg").exists() and (report / "rejected.jpg").exists()
    told = capsys.readouterr().out
    assert re.search(r"^8 pictures in .* a second, 0 passed", told, re.M) and re.search(r"^no_face +6 +6 +100.0%", told, re.M)

    open_gates = ("max-yaw=180", "max-pitch=180", "max-roll=180", "max-face-correlation=1", "min-similarity=-1", "max-similarity=1", "min-face=1")
    options = [f"--gates.{gate}" for gate in (*open_gates, "min-face-share=0", "min-sharpness=0", "min-score=0", "other-face=1")]
    draw, name = np.random.default_rng(0), "transformer.single_transformer_blocks.0.proj_out.lora_"
    low_rank = {f"{name}A.weight": draw.standard_normal((4, 320), np.float32), f"{name}B.weight": draw.standard_normal((64, 4), np.float32)}
    safetensors.write_file(tmp_path / "style.safetensors", low_rank)
    options += ["--lora", f"{tmp_path / 'style.safetensors'}:0.5"]
    main(tmp_path / "all", *options, "--gates.copy-distance", "None", "--gates.duplicate-distance", "None", "--after", f"{__name__}:paste")
    found = all_records(tmp_path / "all")
    assert len(found) == 6 and len({record.target for record in found}) == 6
    weights = found[0].provenance["model"]["weights"]
    assert len(weights) == 7 and all(len(mark) == 16 for mark in weights.values()) and found[0].provenance["model"]["sampling"]["steps"] == 2
    assert re.fullmatch("style.safetensors, scale 0.5, sha256 [0-9a-f]{64}", found[0].provenance["model"]["loras"][0])
    before = json.loads((report.parent / "settings.json").read_text())["models"]["weights"]
    assert {name for name in before if weights[name] != before[name]} == {"flux"}
    assert found[0].provenance["after"][0].startswith(f"{__name__}:paste sha256 ")
    assert len({round(record.scores["similarity"], 6) for record in found}) == 6
