"""The tiny world's chain at smoke size: every stage from nothing, by the command that users give."""

import dataclasses
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from data_pipeline.records import open_records
from examples.tiny_world import __main__ as command
from examples.tiny_world import classifier, prompts, scoring, sizes, stack, stages, table
from examples.tiny_world.colourfulness import Colourfulness
from infu_jax import checkpoint, recipes
from infu_jax.assets import TINY
from infu_jax.errors import InputError
from infu_jax.inspection import describe
from infu_jax.pictures import read_recipe
from tests.conftest import ROOT


def tiny_world(out, *options):
    """Runs the command; gives its output."""
    done = subprocess.run(
        [sys.executable, "-m", "examples.tiny_world", "--size", "smoke", "--out", str(out), *options], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    out = tmp_path_factory.mktemp("tiny") / "world"
    return out, tiny_world(out)


def test_every_stage_leaves_its_result(world):
    out, said = world
    stages = [json.loads(line)["stage"] for line in (out / "times.jsonl").read_text().splitlines()]
    assert stages == list(command.Stage.__args__) and [line[4:] for line in said.splitlines() if line.startswith("--- ")] == stages
    for model in ("FLUX.1-tiny/transformer", "FLUX.1-tiny/vae", "InfiniteYou-tiny/InfuseNetModel", "InfiniteYou-tiny/image_proj_model.bin"):
        assert describe(out / "release" / model)[1], model
    table = (out / "evaluation" / "table.md").read_text()
    trained = ("stage 1", "stage 2 on single samples", "full (SPMS)", "full and identity loss")
    models = (
        "base alone",
        *(name + points for name in trained for points in ("", " with keypoints")),
        "full and identity loss with keypoints, last step the base's",
    )
    assert table.splitlines()[0] == f"|  | {' | '.join(models)} | other photos of them |"
    told = {
        name: {"control" in read_recipe(path) for path in (out / "evaluation" / name / "pictures").glob("*/*.png")}
        for name in ("stage_1", "stage_1_with_keypoints")
    }
    assert told == {"stage_1": {False}, "stage_1_with_keypoints": {True}}
    assert all(row in table for row in ("attribute accuracy", "colourfulness", "rank-1"))
    assert len((out / "evaluation" / "strength.md").read_text().splitlines()) == 11


def test_the_frozen_stay_frozen_and_the_trained_move(world):
    """Stage 2 went on from stage 1, and with an identity loss from there; the release has what that made, rounded to bfloat16."""
    out, _ = world
    one, two, three = (checkpoint.params_of(checkpoint.load_model(out / run, "infusenet")) for run in ("stage1", "stage2", "stage2_id"))
    for before, after in ((one, two), (two, three)):
        assert any(np.abs(np.asarray(before[k]) - np.asarray(after[k])).max() > 0 for k in before)
    assert any("id_loss" in line for line in (out / "stage2_id" / "log.jsonl").read_text().splitlines())
    released = checkpoint.params_of(checkpoint.load_model(out / "release" / "InfiniteYou-tiny", "infusenet", dtype="float32"))
    for name, value in three.items():
        np.testing.assert_allclose(np.asarray(released[name]), np.asarray(value), rtol=2**-8, atol=1e-30, err_msg=name)


def test_the_decoder_alone_goes_on(world):
    """Latents, and what was trained on them, stay valid."""
    out, _ = world
    one, two = (checkpoint.params_of(checkpoint.load_model(out / run, "autoencoder")) for run in ("autoencoder", "decoder"))
    moved = {name for name in one if not np.array_equal(one[name], two[name])}
    assert moved and all(name.startswith("decoder.") for name in moved)


def test_synthesis_asks_a_classifier_of_its_own(world, monkeypatch):
    """What that one, and not the judging one, says of a picture stands in its record: a share of ten attributes."""
    out, _ = world
    given = [record.scores[stages.SCORER] for record in open_records(out / "data" / "spms", "train") if record.synthetic]
    assert given and all(value == pytest.approx(round(10 * value) / 10) for value in given)
    assert (out / "scorer" / "run.json").read_bytes() != (out / "classifier" / "run.json").read_bytes()  # the seed
    monkeypatch.setenv(scoring.WORLD, str(out))
    asked = prompts.made(sizes.SMOKE.synthesis_prompts, stages.FIRST_PROMPT)
    picture = np.random.default_rng(0).integers(256, size=(128, 128, 3), dtype=np.uint8)
    seen = {name: values[0] for name, values in classifier.read(classifier.load(out / "scorer"), picture[None]).items()}
    right = [[seen[name] == values[0] for name, values in classifier.labels([each.attributes]).items()] for each in asked]
    assert [scoring.prompt_kept(picture, each.text) for each in asked] == pytest.approx(np.mean(right, axis=1))


def test_a_scorer_must_know_its_world(monkeypatch):
    monkeypatch.delenv(scoring.WORLD, raising=False)
    scoring._attributes.cache_clear()
    with pytest.raises(InputError, match="TINY_WORLD is not set"):
        scoring.prompt_kept(np.zeros((128, 128, 3), np.uint8), "a man")


def test_colourfulness():
    """Of a grey picture, a red one, and one that is half red and half its complement: by hand."""
    grey, red = np.full((4, 4, 3), 80, np.uint8), np.full((4, 4, 3), (255, 0, 0), np.uint8)
    both = np.concatenate([red[:2], 255 - red[2:]])
    # red - green is 255, (red + green) / 2 - blue 127.5, and the opposite in the complement: red has a mean alone, both have deviations alone
    assert Colourfulness()([grey, red, both], ["", "", ""]) == pytest.approx([0, 0.3 * np.hypot(255, 127.5), np.hypot(255, 127.5)])


def test_the_same_command_again_does_nothing_new(world):
    out, _ = world
    files = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")} | {
        path: path.stat().st_mtime_ns for path in out.glob("data/*/*/*.array_record*")
    }
    tiny_world(out, "--until", "data")
    assert files and files == {path: path.stat().st_mtime_ns for path in files}


def test_over_a_given_stack(world, tmp_path):
    """The base of a release, trained further, and a new InfuseNet over it; everything else of the new release is that of the given one, bit by bit."""
    out, _ = world
    given, again, parts = shutil.copytree(out / "release", tmp_path / "given"), tmp_path / "again", {"base": "stopped once"}
    said = json.loads((given / "provenance.json").read_text())
    (given / "provenance.json").write_text(json.dumps({**said, "parts": parts}))
    shutil.copytree(out / "data", again / "data", ignore=shutil.ignore_patterns("spms"))
    for stage in ("base", "stage1", "release"):
        assert f"--- {stage}" in tiny_world(again, "--given", str(given), "--only", stage)
    told = json.loads((again / "release" / "provenance.json").read_text())
    assert told["steps"] == {name: said["steps"][name] * (1 + (name == "base")) for name in ("autoencoder", "decoder", "recogniser", "base", "stage1")}
    assert told["parts"] == parts and told["hours"] >= said["hours"] > 0
    files = [path.relative_to(given) for path in given.glob("*/**/*") if path.is_file()]
    changed = {path.parent.name for path in files if (given / path).read_bytes() != (again / "release" / path).read_bytes()}
    assert len(files) > 12 and changed == {"transformer", "InfuseNetModel", "InfiniteYou-tiny"}  # the last for image_proj_model.bin
    meta = json.loads((again / "base" / "run.json").read_text())["settings"]
    assert meta["models.transformer"] == str(given / "FLUX.1-tiny" / "transformer") and meta["models.base_from_scratch"] is False


def test_the_table_has_the_models_that_are_there(world, tmp_path, monkeypatch):
    """With a given stack its own InfuseNet too; the base is shown by any; strengths are the furthest trained model's; and nothing is a mistake."""
    out, asked = tmp_path / "world", []

    def evaluate(*arguments):
        said = dict(zip(arguments[::2], arguments[1::2]))
        asked.append((said["--name"], said["--infu"], said["--conditioning-scale"], said["--guidance-end"], "--controls" in said))

    monkeypatch.setattr(table, "evaluate", evaluate)
    monkeypatch.setattr(table, "judged", lambda world, models, *_: f"{models}")
    monkeypatch.setattr(table.strength, "table", lambda world, run, *_: str(run))
    with pytest.raises(InputError, match="has no InfuseNet to look at"):
        table.make(stages.World(out, sizes.SMOKE))
    assert not out.exists()
    given = world[0] / "release"
    table.make(stages.World(out, sizes.SMOKE, given))
    released = given / "InfiniteYou-tiny"
    last = "given with keypoints, last step the base's"
    expected = [("base alone", 0.0, 1.0, False), ("given", 1.0, 1.0, False), ("given with keypoints", 1.0, 1.0, True), (last, 1.0, 0.95, True)]
    assert asked == [(name, released, *how) for name, *how in expected]
    assert (out / "evaluation" / "strength.md").read_text() == str(released)

    asked.clear()
    for run in ("stage2", "stage1"):
        (out / run).symlink_to(world[0] / run)
    table.make(stages.World(out, sizes.SMOKE, given))
    names = ("base alone", "given", "given with keypoints", last, "stage 1", "stage 1 with keypoints", "full (SPMS)", "full (SPMS) with keypoints")
    assert tuple(name for name, *_ in asked) == names and (out / "evaluation" / "table.md").read_text() == str(list(names))
    assert asked[0][1] == asked[-1][1] == out / "stage2" and (out / "evaluation" / "strength.md").read_text() == str(out / "stage2")


def test_only_a_stack_can_be_given(tmp_path):
    done = subprocess.run([sys.executable, "-m", "examples.tiny_world", "--given", str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr == (
        f"error: {tmp_path} has no provenance.json; --given takes a stack that the stage release wrote, such as infu_jax/assets/tiny\n"
    )


def test_the_embedded_stack_can_be_given():
    """What the package holds fits the sizes of the full world."""
    flux, vae = (checkpoint.load_model(TINY / "FLUX.1-tiny", name).cfg for name in ("flux", "autoencoder"))
    arcface = checkpoint.load_model(TINY / "InfiniteYou-tiny", "arcface").cfg
    assert flux == stack.FLUX
    assert vae == dataclasses.replace(stack.AUTOENCODER, scale_factor=vae.scale_factor, shift_factor=vae.shift_factor)
    assert (arcface.widths, arcface.units, arcface.embedding_dim) == (stack.ARCFACE.widths, stack.ARCFACE.units, stack.ARCFACE.embedding_dim)
    assert {"autoencoder", "recogniser", "base"} <= json.loads((TINY / "provenance.json").read_text())["steps"].keys()


def test_nobody_is_in_two_folders():
    for size in (sizes.FULL, sizes.GPU, sizes.SMOKE):
        spans = sorted((folder.first, folder.first + folder.people) for folder in size.drawn.values())
        assert all(end <= begin for (_, end), (begin, _) in zip(spans, spans[1:]))


def test_the_gpus_trainings_fit_their_recipes():
    """Their options are read by train.py, and validation has a batch: none of it is run at smoke size."""
    for name, part, folder in (("base", 1, "web"), ("stage1", 2, "real")):
        argv = [str(stages.RECIPES / f"{name}.py"), "--batch-size", str(sizes.GPU.batch_size // part), *map(str, sizes.GPU.training)]
        cfg = recipes.read(argv, doc="", program="train.py")
        assert (cfg.accumulate, cfg.remat, cfg.dtype, cfg.data.workers) == (1, "none", "float32", 8)
        assert sizes.GPU.count(folder) * sizes.GPU.validation_share > cfg.batch_size


def test_prompts_name_what_they_ask_for():
    asked = prompts.made(3, 0)
    assert [prompt.gender for prompt in asked] == ["woman"] * 3 + ["man"] * 3
    for prompt in asked:
        assert f" {prompt.gender} " in prompt.text and prompt.attributes["colour"] in prompt.text and prompt.attributes["gender"] == prompt.gender
        assert "old" not in prompt.text.split() and "young" not in prompt.text.split()
    assert prompts.made(3, 0) == asked != prompts.made(3, 100)
