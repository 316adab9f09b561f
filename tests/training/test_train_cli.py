"""train.py as users meet it: what it writes, what it refuses, and sample.py on what it made."""

import json
import os
import resource
import subprocess
import sys
from unittest import mock

import jax
import numpy as np
import pytest
from PIL import Image

import train as script
from infu_jax import flops, runs, training
from infu_jax.checkpoint import load_model, params_of
from infu_jax.config import FluxConfig, InfuseNetConfig
from infu_jax.distributed import StopRequest
from infu_jax.errors import InputError
from infu_jax.metrics import RunLog
from infu_jax.recipes import CONFIGS
from infu_jax.run_state import CheckpointError, Checkpoints
from infu_jax.training import NotFiniteError
from tests.conftest import ROOT
from tests.training.conftest import assert_same, finish, python, saved, start


def lines(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def run(recipe, tmp_path_factory):
    """Two steps with a validation, from pictures: no feature is used, every encoder runs in the step."""
    out = tmp_path_factory.mktemp("run") / "run"
    validation = ("--validation.every-steps", 2, "--validation.batches", 1, "--validation.pictures", 3, "--validation.sampling-steps", 2)
    python("train.py", recipe, "--out", out, "--steps", 2, "--data.features", "--accumulate", 1, "--profile-steps", 2, 2, *validation)
    return out


def test_what_a_run_writes(run):
    training, validation = lines(run)[1], lines(run)[2]
    assert {"step", "loss", "grad_norm", "param_norm", "learning_rate", "seconds_per_step", "pictures_per_second", "data_wait"} <= set(training)
    assert any(name.startswith("loss_t0.") for name in training) and 0 <= training["data_wait"] <= 1 and "mfu" not in training
    assert {"validation/loss", "validation/loss_t0.1", "validation/loss_t0.9", "validation/similarity", "validation/faces"} <= set(validation)
    sheet = Image.open(run / "pictures" / "validation_0000002.png")
    assert sheet.width > 700 and len(np.unique(np.asarray(sheet))) > 100 and "infu_jax" in sheet.info
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    charts = EventAccumulator(str(run / "tensorboard"))
    charts.Reload()
    assert {"loss", "validation/loss"} <= set(charts.Tags()["scalars"]) and charts.Tags()["images"] == ["validation"]
    assert [event.step for event in charts.Scalars("loss")] == [1, 2]
    assert abs(charts.Scalars("loss")[1].value - training["loss"]) < 1e-6
    assert list((run / "profile").rglob("*.xplane.pb"))
    told = json.loads((run / "run.json").read_text())
    assert told["settings"]["steps"] == 2 and told["models"]["infusenet"]["depth_single_blocks"] == 2


def test_features_change_nothing(run, train, tmp_path):
    """Computed ahead in float16 or inside the step: nearly the same losses, from the same noises."""
    train(tmp_path / "run", "--steps", 2, "--mesh.fsdp", 1, "--mesh.data", 8)
    a, b = ([line["loss"] for line in lines(out) if "loss" in line] for out in (run, tmp_path / "run"))
    np.testing.assert_allclose(a, b, rtol=5e-3)


def test_sampling_from_a_run(run, tmp_path):
    """The newest checkpoint or one of them, averaged or not; the base and ArcFace are the run's; --like makes the same picture again."""
    small = ("--prompt", "a chef", "--seed", 1, "--width", 64, "--height", 80, "--steps", 2, "--t5-length", 16, "--mesh.data", -1, "--out", tmp_path / "out")
    python("sample.py", "--infu", run, *small)
    python("sample.py", "--infu", run / "checkpoints" / "2", "--no-ema", *small)
    first, second = sorted((tmp_path / "out").glob("*.png"))
    stored = json.loads(Image.open(first).info["infu_jax"])
    assert stored["infu"] == str(run / "checkpoints" / "2") and stored["ema"] and stored["arcface"].endswith("recognition_arcface_ir_se50.pth")
    assert np.abs(np.asarray(Image.open(first)).astype(int) - np.asarray(Image.open(second)).astype(int)).max() > 0
    python("sample.py", "--like", first, "--mesh.data", -1, "--out", tmp_path / "again")
    [again] = (tmp_path / "again").glob("*.png")
    np.testing.assert_array_equal(np.asarray(Image.open(first)), np.asarray(Image.open(again)))


def test_loading_a_model_of_a_run(run):
    found = saved(run, 2)
    for model, ema, item in (("infusenet", False, "infusenet"), ("infusenet", True, "infusenet_ema"), ("resampler", True, "resampler_ema")):
        for path, x in params_of(load_model(run, model, ema=ema)).items():
            np.testing.assert_array_equal(x, found[f"{item}/{path}"])
    assert {str(x.dtype) for x in params_of(load_model(run, "infusenet", dtype="bfloat16")).values()} == {"bfloat16"}


def test_stage_two_starts_from_stage_one(run, train, tmp_path):
    """From a run's weights, with other sizes of InfuseNet in the recipe: those of the weights count."""
    train(tmp_path / "run", "--steps", 1, "--models.init", run, "--models.infusenet-blocks", 2, 2, "--optimizer.learning-rate", 1e-12, "--data.pairing", "spms")
    before, after = saved(run, 2), saved(tmp_path / "run", 1)
    for name in (name for name in after if name.startswith(("infusenet/", "resampler/"))):
        np.testing.assert_allclose(after[name], before[name.replace("/", "_ema/", 1)], atol=1e-9)


def test_training_the_base_from_scratch(train, tmp_path):
    train(tmp_path / "run", "--steps", 1, "--trainable", "base", "--models.base-from-scratch", "--models.arcface", "None")
    assert {name.partition("/")[0] for name in saved(tmp_path / "run", 1)} == {"flux", "flux_ema", "optimizer"}
    assert runs.find_model(tmp_path / "run", "flux").weights.name == "flux_ema"


def test_a_loss_that_is_no_number(train, tmp_path):
    with pytest.raises(NotFiniteError, match=r"step \d+: loss .*records.*the last good checkpoint is .*; lower optimizer.learning_rate"):
        train(tmp_path / "run", "--steps", 40, "--checkpoint.every-steps", 1, "--optimizer.learning-rate", 1e30, "--optimizer.ema-decay", "None")
    assert list((tmp_path / "run" / "checkpoints").iterdir())
    for step in (tmp_path / "run" / "checkpoints").iterdir():  # all of them finished, and none made of it
        assert all(np.isfinite(x).all() for name, x in saved(tmp_path / "run", int(step.name)).items() if name.startswith("infusenet/")), step


def test_a_full_disk_while_training(recipe, tmp_path):
    """A checkpoint that cannot be written in the middle is a warning; the last one is an error; the one from before is whole."""
    out, options = tmp_path / "run", ("--checkpoint.every-steps", 1)
    finish(start(recipe, out, "--steps", 1, *options))
    before = saved(out, 1)
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, resource.RLIM_INFINITY))  # noqa: E731  (writing more fails as on a full disk)
    said = finish(start(recipe, out, "--steps", 4, *options, preexec_fn=limit), code=1)[1]
    # Three lines and no more: the other writes of each failed checkpoint, some hundreds, go down with it and have nothing to add.
    told = [line for line in said.splitlines() if "a checkpoint could not be written to" in line]
    assert [line.partition(": a checkpoint could")[0] for line in told] == ["warning", "warning", "error"] and "Traceback" not in said, said
    assert all(line.endswith("; the run goes on, make room before the next one") for line in told[:2]), said
    assert told[2].endswith("the last whole one is of step 1"), said
    assert_same(saved(out, 1), before)
    finish(start(recipe, out, "--steps", 4, *options))
    assert runs.newest(out).name == "4" and sorted(p.name for p in (out / "checkpoints").iterdir()) == ["2", "3", "4"]


def test_device_without_enough_memory(train, tmp_path, monkeypatch):
    said = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 18874368000 bytes.\nBufferAssignment OOM Debugging.\n..."
    monkeypatch.setattr(training, "make_step", lambda *_: mock.Mock(side_effect=jax.errors.JaxRuntimeError(said)))
    with pytest.raises(InputError, match=r"^the device has too little memory \(RESOURCE.*bytes\.\); a smaller batch, .*infu_jax.plan` says how much$"):
        train(tmp_path / "run")


@pytest.mark.filterwarnings("ignore:1 fails; the run goes on")
@pytest.mark.parametrize("stopped", [False, True])
def test_a_last_checkpoint_that_cannot_be_begun(train, tmp_path, monkeypatch, stopped):
    """There is no next one: nothing is called finished."""

    def fails(self, step, *_):
        raise CheckpointError(f"{step} fails")

    monkeypatch.setattr(Checkpoints, "save", fails)
    if stopped:
        monkeypatch.setattr(StopRequest, "at", lambda self, step: step == 1)
    with pytest.raises(CheckpointError, match="1 fails" if stopped else "2 fails"):
        train(tmp_path / "run", "--steps", 2, "--checkpoint.every-steps", 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--batch-size", 12), r"batch_size 12 with accumulate 1 does not divide over data x fsdp = 8 devices; try --batch-size 8"),
        (("--batch-size", 16, "--accumulate", 4), r"batch_size 16 with accumulate 4 does not divide over data x fsdp = 8 devices; try --batch-size 32"),
        (("--batch-size", 64), r"64"),
        (("--mesh.fsdp", 3), r"does not fit 8 devices"),
        (("--mesh.fsdp", 1, "--mesh.sequence", 8), r"heads are not a multiple of mesh axes tensor x sequence = 8"),
        (("--data.paths", "nowhere"), r"nowhere"),
        (("--data.paths",), r"data.paths is empty"),
        (("--validation.every-steps", 1, "--batch-size", 16), r"validation: .*; or turn it off with --validation.every-steps None"),
        (("--models.arcface", "None"), r"models.arcface is not set"),
        (("--models.infusenet-blocks", 1, 99), r"infusenet_blocks 1 \+ 99 are more than the base has \(4 \+ 8\)"),
        (("--models.init", "nowhere"), r"nowhere"),
    ],
)
def test_bad_input(train, tmp_path, options, message):
    with pytest.raises((InputError, FileNotFoundError), match=message):
        train(tmp_path / "run", *options)
    assert not (tmp_path / "run" / "log.jsonl").exists()


def test_features_that_are_not_there(people, train, tmp_path):
    with pytest.raises(InputError, match=r"latents.*data_pipeline.precompute"):
        train(tmp_path / "run", "--data.paths", people, "--data.features", "latents", "t5")


def test_one_at_a_time(train, tmp_path):
    """The lock ends with who holds it, and is the run's own: others work beside it."""
    with script.alone(tmp_path), pytest.raises(InputError, match=f"another train.py works in {tmp_path}; wait for it, or choose another --out"):
        train(tmp_path)
    with script.alone(tmp_path), script.alone(tmp_path.parent):
        pass


def test_bad_commands(tmp_path):
    def said(*arguments, code=1):
        done = subprocess.run(
            [sys.executable, "train.py", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"}
        )
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr

    assert "the first argument is the recipe: one of configs/infu_stage1.py" in said()
    assert "nowhere.py is no recipe" in said("nowhere.py")
    (tmp_path / "empty.py").write_text("x = 1\n")
    assert "has no get_config() that returns a TrainConfig" in said(tmp_path / "empty.py")
    assert "Unrecognized options: --bogus" in said(CONFIGS / "tiny.py", "--bogus", code=2)
    assert "invalid choice" in said(CONFIGS / "tiny.py", "--remat", "all", code=2)
    assert "optimizer.learning_rate is -1.0; more than 0 is needed" in said(CONFIGS / "tiny.py", "--optimizer.learning-rate", -1, code=2).replace("\n", " ")
    assert "Recipes here: configs/infu_stage1.py" in said("--help", code=0)
    assert "Peak learning rate" in said(CONFIGS / "tiny.py", "--help", code=0)


def test_the_log_forgets_what_was_cut_off(tmp_path):
    with RunLog(tmp_path, 0) as log:
        for step in range(1, 6):
            log.scalars(step, {"loss": float(step), "bad": float("nan")})
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # the process died here
    with RunLog(tmp_path, 3) as log:
        log.scalars(4, {"loss": 40.0})
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0)]
    assert lines(tmp_path)[0]["bad"] is None


@pytest.fixture
def room():
    """Limits the size of files; writing more fails as on a full disk, after what fits. None: no limit."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (limits[0] if size is None else size, limits[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_is_a_warning_and_costs_no_line(tmp_path, room):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    steps = lambda: [line["step"] for line in lines(tmp_path)]  # noqa: E731
    with RunLog(tmp_path, 0) as log:
        log.scalars(1, {"loss": 1.0})
        room((tmp_path / "log.jsonl").stat().st_size + 10)  # of the next line there is room for a part
        with pytest.warns(UserWarning) as said:
            log.scalars(2, {"loss": 2.0})
            assert steps() == [1]
            log.scalars(3, {"loss": 3.0})
            log.picture(3, "validation", np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
        assert [str(warning.message).partition(" cannot be written (File too large); ")[::2] for warning in said] == [
            (str(tmp_path / "log.jsonl"), "the run goes on, and its lines wait for room"),
            (str(next((tmp_path / "tensorboard").iterdir())), "the run goes on, and its charts have a gap"),
            (str(tmp_path / "pictures" / "validation_0000003.png"), "the run goes on without this picture"),
        ]
        assert steps() == [1] and not list((tmp_path / "pictures").iterdir())
        room(None)
        log.scalars(4, {"loss": 4.0})
        assert steps() == [1, 2, 3, 4]
    charts = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in charts.Scalars("loss")] == [1, 4]


def test_lines_that_a_full_disk_cost_are_counted(tmp_path, room):
    with pytest.warns(UserWarning) as said, RunLog(tmp_path, 0) as log:
        log.scalars(1, {"loss": 1.0})
        room((tmp_path / "log.jsonl").stat().st_size + 10)
        for step in (2, 3):
            log.scalars(step, {"loss": 1.0})
    assert str(said[-1].message) == f"{tmp_path / 'log.jsonl'} lacks its last 2 lines, which cannot be written (File too large)"
    assert [line["step"] for line in lines(tmp_path)] == [1]
    room(5)
    with pytest.raises(InputError, match="log.jsonl cannot be written .*; make room, then the same command goes on"):
        RunLog(tmp_path, 1)
    assert [line["step"] for line in lines(tmp_path)] == [1] and not list(tmp_path.glob(".*"))


def test_pictures_of_abandoned_steps_go(tmp_path):
    """Others stay: those up to the step that the run goes on from, and those that are not its own."""
    picture = lambda step: tmp_path / "pictures" / f"validation_{step:07d}.png"  # noqa: E731
    with RunLog(tmp_path, 0) as log:
        for step in (2, 4, 6):
            log.picture(step, "validation", np.full((4, 4, 3), step, np.uint8))
    Image.new("RGB", (4, 4)).save(picture(9))
    with RunLog(tmp_path, 4) as log:
        assert picture(2).exists() and picture(4).exists() and not picture(6).exists() and picture(9).exists()
        log.picture(6, "validation", np.full((4, 4, 3), 60, np.uint8))
    assert [np.asarray(Image.open(picture(step)))[0, 0, 0] for step in (4, 6)] == [4, 60]


def test_counted_flops():
    """One FLUX forward at 1024 x 1024 with 512 text tokens is 7.44e13; the step is more than its forward and less than training all."""
    base = flops.flux_flops(FluxConfig(), 4096, 512)
    assert abs(base / 7.44e13 - 1) < 1e-3
    step = flops.train_flops(FluxConfig(), InfuseNetConfig(), 4096, 512, 8)
    assert 2 * base < step < 3 * (base + flops.infusenet_flops(InfuseNetConfig(), 4096, 8))
    assert flops.train_flops(FluxConfig(), None, 4096, 512, 0) == 3 * base
