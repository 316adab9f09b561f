"""python -m infu_jax.evaluation as its user meets it, with the embedded tiny stack and a CLIP of random weights."""

import contextlib
import hashlib
import io
import json
import re
import shlex
import shutil
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from flax import nnx
from PIL import Image

import convert_weights
from infu_jax import checkpoint, face, pictures
from infu_jax.assets import ASSETS
from infu_jax.cli import run
from infu_jax.config import CLIPModelConfig
from infu_jax.evaluation import __main__ as script
from infu_jax.evaluation import scores
from infu_jax.evaluation.clip import CLIP
from infu_jax.evaluation.pairs import OWN
from infu_jax.models.clip_model import CLIPModel
from infu_jax.prompts import read_prompts
from infu_jax.tokenizers import load_clip_tokenizer
from tests.conftest import ROOT

FACES, TOKENS = ASSETS / "faces", ASSETS / "tiny" / "FLUX.1-tiny" / "tokenizer"
ARCFACE = ASSETS / "tiny" / "InfiniteYou-tiny" / "recognition_arcface_ir_se50.pth"
SMALL = ("--width", 64, "--height", 64, "--steps", 1, "--t5-length", 16, "--resamples", 50)


def command(*argv, main=script.main):
    """(exit status, stdout, stderr) of the command, in this process."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with mock.patch.object(sys, "argv", ["evaluation", *map(str, argv)]), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            run(main)
        except SystemExit as e:
            code = e.code or 0
    return code, out.getvalue(), err.getvalue()


def ok(*argv):
    code, out, err = command(*argv)
    assert code == 0, err
    return out, err


def refused(message, *argv):
    code, out, err = command(*argv)
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert (code, out, len(lines)) == (1, "", 1), err
    assert re.search(message, lines[0]), lines[0]


def results(out):
    stored = json.loads((out / "scores.json").read_text())
    return stored, {key: v["value"] for key, v in stored["rows"][0]["measures"].items()}


def save_clip(folder, seed):
    """A CLIP for the tiny tokenizer, in our own layout; vision gets all of a 32 pixel picture."""
    words = load_clip_tokenizer(TOKENS)
    cfg = CLIPModelConfig(
        text_vocab_size=words.vocab_size, text_hidden_size=16, text_intermediate_size=24, text_num_layers=1, text_num_heads=2,
        text_eos_token_id=int(words.encode([""], 2)[0, 1]), text_max_positions=20, vision_hidden_size=24, vision_intermediate_size=32,
        vision_num_layers=1, vision_num_heads=2, vision_image_size=32, vision_patch_size=8, projection_dim=12,
    )  # fmt: skip
    checkpoint.save_model(folder, "clip_model", CLIPModel(cfg, rngs=nnx.Rngs(seed)))
    return folder


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    return save_clip(tmp_path_factory.mktemp("clip") / "tiny-clip", 0)


@pytest.fixture
def copies(tmp_path):
    """A folder of "pictures" that are the photos themselves: a model that copies and pastes. One of them is missing."""
    for who in ("ada", "cy"):
        for number in (1, 34, 67):
            (tmp_path / "copies" / who).mkdir(parents=True, exist_ok=True)
            shutil.copy(FACES / f"{who}.png", tmp_path / "copies" / who / f"{number:04d}.png")
    (tmp_path / "copies" / "cy" / "0067.png").unlink()
    return tmp_path / "copies"


def test_paints_resumes_and_refuses_mixtures(tmp_path):
    out = tmp_path / "out"
    said, told = ok(*SMALL, "--prompts-per-person", 2, "--batch", 2, "--out", out)
    assert "0 of 6 pictures are there, 6 are to be made" in told and "of photographs its similarities mean nothing" in told and "no --clip was given" in told
    assert "| rank-1, arcface ↑ |" in said and said.endswith("report.html  6 pictures of 3 people\n")
    made = sorted((out / "pictures").rglob("*.png"))
    assert [p.relative_to(out / "pictures").as_posix() for p in made] == [
        f"{who}/{n:04d}.png" for who in ("ada", "bo", "cy") for n in ((101, 151) if who == "bo" else (1, 51))
    ]
    recipe = pictures.read_recipe(made[0])
    assert recipe["prompt"] == read_prompts(OWN)[0].text and recipe["identity"] == "ada" and recipe["sampling"]["steps"] == 1 and recipe["synthetic"]
    assert len({pictures.read_recipe(path)["seed"] for path in made}) == 6
    stored, value = results(out)
    assert stored["recognisers"] == [{"name": "arcface", "conditioned": True, "fingerprint": recipe["recogniser"]}]
    assert len(stored["pictures"]) == 6 and "clip_score" not in value
    assert str(ASSETS) not in (out / "scores.json").read_text() and "embedding" not in (out / "scores.json").read_text()

    # What is there stays, the rest is made again, the same up to rounding, whatever is in the batch.
    before = {path: path.read_bytes() for path in made}
    gone, kept = made[3:5], [*made[:3], made[5]]
    for path in gone:
        path.unlink()
    refused("scores.json exists; give --overwrite", *SMALL, "--prompts-per-person", 2, "--out", out)
    times = {path: path.stat().st_mtime_ns for path in kept}
    _, told = ok(*SMALL, "--prompts-per-person", 2, "--batch", 2, "--out", out, "--overwrite")
    assert "4 of 6 pictures are there, 2 are to be made" in told
    assert {path: path.stat().st_mtime_ns for path in kept} == times
    assert all(np.abs(face.read_image(path).astype(int) - np.asarray(Image.open(io.BytesIO(data))).astype(int)).max() <= 1 for path, data in before.items())
    refused("was made with sampling .*'guidance': 3.5.* give another --out", *SMALL, "--guidance", 2, "--prompts-per-person", 2, "--out", out, "--overwrite")
    refused("was made with seed", *SMALL, "--seed", 1, "--prompts-per-person", 2, "--out", out, "--overwrite")


def test_faces_go_where_the_controls_have_them(tmp_path):
    """The first photo is for the first prompt of the file; pictures remember which it was, and are not mixed with others."""
    controls, out = tmp_path / "controls", tmp_path / "out"
    controls.mkdir()
    shutil.copy(FACES / "cy.png", controls / "1.png")
    Image.open(FACES / "ada.png").transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(controls / "2.png")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("A portrait.\nIn a city.\nOn a beach.\n")
    argv = ("--width", 128, "--height", 128, *SMALL[4:], "--prompts", prompts, "--batch", 4)
    ok(*argv, "--controls", controls, "--out", out)
    ok(*argv, "--out", tmp_path / "free")
    assert "was said by 2 photos (--controls)" in (out / "table.md").read_text() and "--controls" not in (tmp_path / "free" / "table.md").read_text()
    digests = [hashlib.sha256((controls / f"{n}.png").read_bytes()).hexdigest() for n in (1, 2, 1)]
    for number, digest in enumerate(digests, 1):
        made, free = out / f"pictures/ada/{number:04d}.png", tmp_path / f"free/pictures/ada/{number:04d}.png"
        assert pictures.read_recipe(made)["control"] == digest and "control" not in pictures.read_recipe(free)
        assert (face.read_image(made) != face.read_image(free)).any()
    refused("was made with control '", *argv, "--out", out, "--overwrite")
    refused("was made with control None", *argv, "--controls", controls, "--out", tmp_path / "free", "--overwrite")
    Image.new("RGB", (128, 128)).save(controls / "3.png")
    refused(r"3\.png: no face", *argv, "--controls", controls, "--out", out, "--overwrite")
    refused("has no photos; expected a folder", *argv, "--controls", prompts, "--out", out, "--overwrite")
    refused("--controls is for pictures that are made here", *argv, "--controls", controls, "--pictures", out / "pictures", "--out", tmp_path / "scored")


def test_scores_a_folder(tmp_path, copies, clip_folder):
    """Copies of the photo: known values of every measure, CLIPScore and PickScore against the models themselves."""
    people = tmp_path / "people"
    for who in ("ada", "cy"):
        (people / who).mkdir(parents=True)
        shutil.copy(FACES / f"{who}.png", people / who / "1.png")
        Image.open(FACES / f"{who}.png").rotate(10, Image.Resampling.BICUBIC).save(people / who / "2.png")
    (people / "genders.csv").write_text("name,gender\nada,woman\ncy,woman\n")
    argv = ("--identities", people, "--pictures", copies, "--prompts-per-person", 3, "--resamples", 50, "--score-batch", 4)
    models = ("--recogniser", f"second={ARCFACE}", "--clip", clip_folder, "--pickscore", clip_folder)
    out = tmp_path / "out"
    said, told = ok(*argv, *models, "--arcface", ARCFACE, "--out", out, "--name", "copies")
    assert "1 of 6 pictures are not there" in told and "prompts are longer than clip reads" in told
    stored, value = results(out)
    for name in ("arcface", "second"):
        assert value[f"id_loss/{name}"] == pytest.approx(0, abs=1e-6) and value[f"rank_1/{name}"] == 1 and value[f"copy_gap/{name}"] > 1e-4
    assert value["faces"] == 1 and value["copy_expression"] == pytest.approx(1) and value["copy_pose"] == pytest.approx(1)
    assert [r["conditioned"] for r in stored["recognisers"]] == [None, None]
    assert stored["rows"][1]["name"] == "other photos of them" and stored["rows"][1]["measures"]["id_loss/second"]["value"] > 1e-4

    clip = CLIP.load(clip_folder, tokenizer=TOKENS)
    texts, seen = clip.embed_texts([p.text for p in read_prompts(OWN)]), clip.embed_images([face.read_image(FACES / f"{who}.png") for who in ("ada", "cy")])
    assert len(stored["pictures"]) == 5
    for row in stored["pictures"]:
        cosine = float(seen[int(row["identity"] == "cy")] @ texts[row["prompt"] - 1])
        assert row["clip_score"] == pytest.approx(cosine, abs=2e-6)
        assert row["pick_score"] == pytest.approx(np.exp(2.6592) * cosine, abs=3e-5)
    # Another CLIP is known by its weights: no difference of its scores, but of those by the same PickScore.
    again = tmp_path / "again"
    models = ("--clip", save_clip(tmp_path / "clip", 1), "--pickscore", clip_folder)
    _, told = ok(*argv, *models, "--arcface", ARCFACE, "--out", again, "--compare", out / "scores.json")
    assert "CLIPScore of copies is by other weights than here" in told and "PickScore of copies" not in told
    [row] = results(again)[0]["differences"]
    assert "clip_score" not in row["measures"] and row["measures"]["pick_score"]["value"] == pytest.approx(0)

    page = (out / "report.html").read_text()
    assert "Women" in page and "Men</h2>" not in page and page.count("<img") == 2 + 5 + 2 * 5

    # The pictures of one person under the name of the other: nobody is recognised.
    (copies / "ada").rename(copies / "x")
    (copies / "cy").rename(copies / "ada")
    (copies / "x").rename(copies / "cy")
    other = tmp_path / "other"
    said, _ = ok(*argv, "--recogniser", f"second={ARCFACE}", "--out", other, "--name", "swapped", "--compare", out / "scores.json")
    stored, value = results(other)
    assert value["rank_1/second"] == 0 and value["id_loss/second"] > 1e-3 and "rank_1/arcface" not in value  # the embedded one is left out
    assert [row["name"] for row in stored["rows"]] == ["swapped", "copies", "other photos of them"]
    [row] = stored["differences"]
    assert row["name"] == "swapped - copies" and row["pictures"] == 4  # two prompts are there for both
    assert row["measures"]["rank_1/second"] == {"value": -1, "low": -1, "high": -1}
    assert "| swapped - copies |" in (other / "table.md").read_text()


def test_people_without_pictures_stay_in_the_gallery(tmp_path, copies):
    """Rank-1 is searched among all, and not compared with one that was searched among fewer."""
    people = tmp_path / "people"
    people.mkdir()
    (people / "genders.csv").write_text("name,gender\nada,woman\ncy,woman\ndan,man\n")
    for who in ("ada", "cy"):
        shutil.copy(FACES / f"{who}.png", people)
    argv = ("--identities", people, "--pictures", copies, "--prompts-per-person", 3, "--resamples", 50)
    ok(*argv, "--out", tmp_path / "two", "--name", "two")
    # A third person, whom the pictures of Ada are more like than another photo of herself.
    for who, angle in (("ada", 10), ("dan", 0)):
        (people / who).mkdir()
        for name in ("1.png", "2.png"):
            Image.open(FACES / "ada.png").rotate(angle, Image.Resampling.BICUBIC).save(people / who / name)
    (people / "ada.png").unlink()
    out = tmp_path / "three"
    _, told = ok(*argv, "--out", out, "--compare", tmp_path / "two" / "scores.json")
    stored, value = results(out)
    assert json.loads((tmp_path / "two" / "scores.json").read_text())["gallery"] == ["ada", "cy"] and stored["gallery"] == ["ada", "cy", "dan"]
    assert value["rank_1/arcface"] == pytest.approx(2 / 5)
    assert "1 of 3 people have no pictures; rank-1 is searched among them too" in told
    assert "Rank-1 of two was searched among other people (2) than here (3)" in told
    measured = stored["differences"][0]["measures"]
    assert "id_loss/arcface" in measured and "rank_1/arcface" not in measured
    [reference] = [row for row in stored["rows"] if row["name"] == "other photos of them"]
    assert reference["pictures"] == 1  # of people with pictures
    assert "Men</h2>" not in (out / "report.html").read_text()


def test_a_converted_clip_is_whole(tmp_path, clip_folder):
    """As transformers' folder is, with its own tokenizer and its own way to prepare pictures; there and back."""
    theirs, ours, back = tmp_path / "theirs", tmp_path / "ours", tmp_path / "back"
    assert command("to-torch", clip_folder, theirs, main=convert_weights.main)[0] == 0
    settings = {"size": {"shortest_edge": 40}, "crop_size": 32, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7]}
    (theirs / "preprocessor_config.json").write_text(json.dumps(settings))
    for path in TOKENS.iterdir():
        shutil.copy(path, theirs)
    assert command("to-jax", theirs, ours, main=convert_weights.main)[0] == 0
    assert command("to-torch", ours, back, main=convert_weights.main)[0] == 0
    images, texts = [face.read_image(FACES / "ada.png")], ["a woman", "a man"]
    wanted = CLIP.load(theirs)
    assert wanted.preparation.mean == (0.1, 0.2, 0.3) and wanted.preparation.resize == 40
    for folder in (ours, back):
        clip = CLIP.load(folder)
        assert clip.preparation == wanted.preparation
        np.testing.assert_array_equal(clip.embed_images(images), wanted.embed_images(images))
        np.testing.assert_array_equal(clip.embed_texts(texts), wanted.embed_texts(texts))


def test_mistakes_are_one_line(tmp_path, copies, clip_folder):
    out = ("--out", tmp_path / "out")
    (tmp_path / "faceless").mkdir()
    Image.new("RGB", (80, 80)).save(tmp_path / "faceless" / "nobody_man.png")
    (tmp_path / "not.json").write_text("{}")
    for name, who, text in (("elsewhere", "dan", read_prompts(OWN)[0].text), ("reworded", "ada", "a woman")):
        face_found = {"face": np.ones(1)}
        stored = scores.to_json(scores.Scores(name, (who,), (1,), face_found, (scores.RecogniserInfo("arcface", None),), texts={1: text}))
        (tmp_path / f"{name}.json").write_text(json.dumps(stored))
    for message, argv in (
        ("none is no folder", ("--identities", tmp_path / "none")),
        ("names dan, who is not in", ("--gender", "dan=man")),
        ("--gender takes NAME=..., as in ada=woman; found 'ada'", ("--gender", "ada")),
        ("no folder; --pictures takes", ("--pictures", tmp_path / "none")),
        ("has no picture of any of 300 pairs; expected names such as ada/0001.png", ("--pictures", tmp_path)),
        ("takes the name of the one that conditions", ("--recogniser", f"arcface={ARCFACE}")),
        ("names 'a' twice", ("--recogniser", f"a={ARCFACE}", f"a={ARCFACE}")),
        ("does not exist", ("--pictures", copies, "--recogniser", f"a={tmp_path / 'none.pth'}")),
        ("is no scores.json of this command", ("--compare", tmp_path / "not.json")),
        # Before any model is loaded: there is none.
        ("elsewhere has no picture of the same person and prompt", ("--compare", tmp_path / "elsewhere.json", "--infu", tmp_path / "none")),
        ("prompt 1 of reworded is another one than here", ("--compare", tmp_path / "reworded.json", "--infu", tmp_path / "none")),
        ("batch is 0", ("--batch", 0)),
        ("prompts_per_person is 0", ("--prompts-per-person", 0)),
        ("confidence is 2.0", ("--confidence", 2)),
        ("seed is -1", ("--seed", -1)),
        ("nobody_man.png: no face found", ("--identities", tmp_path / "faceless")),
        ("is a checkpoint of arcface", ("--pictures", copies, "--clip", ARCFACE)),
        ("holds no clip_model: expected config.json; found ada, cy", ("--pictures", copies, "--clip", copies)),
        ("has no tokenizer", ("--pictures", copies, "--clip", clip_folder, "--base", tmp_path)),
    ):
        refused(message, *argv, *out)
    assert not (tmp_path / "out").exists()


def test_the_commands_of_the_docs(tmp_path, monkeypatch):
    """They run as printed, one after the other."""
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "evaluation.md").read_text()
    lines = re.findall(r"^    \.venv/bin/python -m (.*)$", text.replace("\\\n", " "), re.M)
    commands = [shlex.split(line) for line in lines if "FLUX.1-dev" not in line]
    assert len(commands) == 3 and {module for module, *_ in commands} == {"infu_jax.evaluation"}
    for _, *argv in commands:
        ok(*argv)
    assert sorted(path.parent.name for path in Path("outputs").rglob("report.html")) == ["compared", "four", "tiny"]
    assert "| 2 steps | 4 steps |" in Path("outputs/evaluation/compared/table.md").read_text()
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        exec(re.search(r"```python\n(.*?)```", text, re.S)[1], {})
    assert re.search(r"brightness ↑ \| 0\.\d{3} \[", told.getvalue())
    [judge] = json.loads(Path("outputs/evaluation/compared/scores.json").read_text())["recognisers"]
    assert judge["conditioned"] is True  # the pictures say so
