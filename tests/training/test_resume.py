"""A run that is cut off and goes on ends as one that never was."""

import json
import random
import re
import shutil
import signal
import socket
import time

import numpy as np
import pytest

from infu_jax import runs
from infu_jax.errors import InputError
from infu_jax.train_config import ModelsConfig, TrainConfig
from tests.training.conftest import assert_same, finish, flip_a_bit, saved, start
from train import pin_models


def lines(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory):
    """Four steps without a break, on one device."""
    out = tmp_path_factory.mktemp("whole") / "run"
    finish(start(recipe, out))
    return out


def test_two_and_two_are_four(train, recipe, whole, tmp_path):
    """Weights, averages, moments, counters and the log, bit for bit; the same command goes on by itself."""
    out = tmp_path / "run"
    finish(start(recipe, out, "--steps", 2))
    said = finish(start(recipe, out))[1]
    assert "going on from step 2 of 4 steps" in said
    assert_same(saved(out, 4), saved(whole, 4))
    values = ("step", "loss", "grad_norm", "param_norm", "learning_rate")
    assert [{k: line[k] for k in values} for line in lines(out)] == [{k: line[k] for k in values} for line in lines(whole)]
    assert len(lines(out)) == 4
    said = finish(start(recipe, out))[0]
    assert "finished already" in said


def test_onto_another_mesh(train, whole, tmp_path):
    """Saved on one device, finished on eight in two arrangements, the second without keeping gradients."""
    expected = saved(whole, 4)
    arrangements = (("--mesh.data", 2, "--mesh.fsdp", 2, "--mesh.tensor", 2), ("--mesh.fsdp", 8, "--optimizer.in-backward"))
    for n, mesh in enumerate(arrangements):
        out = tmp_path / f"run{n}"
        shutil.copytree(whole, out)
        shutil.rmtree(out / "checkpoints" / "4")
        train(out, *mesh)
        found = saved(out, 4)
        for name in (name for name in found if name.startswith(("infusenet/", "resampler/"))):
            assert np.abs(found[name] - expected[name]).max() <= 1e-6 + 2e-3 * 1e-3, name


def test_a_damaged_checkpoint_is_put_aside(recipe, whole, tmp_path):
    """One flipped bit is reported, and the checkpoint before it is used."""
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    flip_a_bit(out / "checkpoints" / "4" / "infusenet")
    said = finish(start(recipe, out))[1]
    assert re.search(r"warning: checkpoint .*4 is damaged: infusenet .* is not what was saved .*; it is kept as 4.damaged, and the one before it is used", said)
    assert "going on from step 2 of 4 steps" in said
    assert (out / "checkpoints" / "4.damaged").is_dir()
    assert_same(saved(out, 4), saved(whole, 4))


def test_other_settings_are_refused(train, whole, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    with pytest.raises(InputError, match=r"optimizer.learning_rate 0.001 -> 0.01; seed 0 -> 1|seed 0 -> 1; optimizer.learning_rate 0.001 -> 0.01"):
        train(out, "--steps", 5, "--seed", 1, "--optimizer.learning-rate", 1e-2)
    with pytest.raises(InputError, match=r"models of other sizes: infusenet.depth_single_blocks 2 -> 3; choose another --out"):
        train(out, "--steps", 5, "--models.infusenet-blocks", 1, 3)
    with pytest.raises(InputError, match=r"dtype float32 -> bfloat16; features \['arcface', 'clip', 'control', 'latents', 't5'\] -> \['latents'\]\."):
        train(out, "--steps", 5, "--dtype", "bfloat16", "--data.features", "latents")
    before = saved(out, 4)
    train(out, "--steps", 5, "--optimizer.learning-rate", 1e-2, "--accept-changes", "--log-every-steps", 3)
    assert_same(saved(out, 4), before)
    assert lines(out)[-1]["step"] == 5 and abs(lines(out)[-1]["learning_rate"] - 1e-2) < 1e-9


def test_a_base_that_another_run_trains_on(train, tmp_path):
    """A run stays with the checkpoint of its base that it began with."""
    base, out = tmp_path / "base", tmp_path / "run"
    train(base, "--trainable", "base", "--steps", 1)
    train(out, "--models.transformer", base, "--steps", 1)
    first, second = base / "checkpoints" / "1", base / "checkpoints" / "2"
    assert runs.read_run(out)["settings"]["models.transformer"] == str(first)
    shutil.copytree(first, second)
    pinned = lambda out: pin_models(TrainConfig(out, models=ModelsConfig(transformer=base))).models  # noqa: E731
    assert pinned(out) == ModelsConfig(transformer=first) and pinned(tmp_path / "later") == ModelsConfig(transformer=second)
    assert pin_models(TrainConfig(out, models=ModelsConfig(transformer=second))).models.transformer == second  # which is then compared, and refused
    shutil.rmtree(first)
    with pytest.raises(InputError, match="run began with .*checkpoints/1, which is gone; put it back, or say --models.transformer CHECKPOINT --accept-changes"):
        train(out, "--models.transformer", base, "--steps", 2)


def test_a_validation_that_was_cut_off_is_made_up_for(train, whole, tmp_path):
    """After the last step too, where nothing else is left to do."""
    out, often = tmp_path / "run", ("--validation.every-steps", 2, "--validation.batches", 1, "--validation.pictures", 0)
    shutil.copytree(whole, out)
    shutil.rmtree(out / "checkpoints" / "4")
    train(out, *often)
    assert [(line["step"], "validation/loss" in line) for line in lines(out)] == [(1, False), (2, False), (2, True), (3, False), (4, False), (4, True)]
    path = out / "log.jsonl"
    text = path.read_text().splitlines(keepends=True)
    path.write_text("".join(text[:-1]))
    assert "finished already" not in train(out, *often).out
    assert {**lines(out)[-1], "step": 0} == {**json.loads(text[-1]), "step": 0} and len(lines(out)) == 6
    assert "finished already" in train(out, *often).out


def test_sigterm_saves_and_exits_cleanly(recipe, tmp_path):
    """At a step without a checkpoint of its own; the run goes on from there."""
    out = tmp_path / "run"
    process = start(recipe, out, "--steps", 100_000, "--checkpoint.every-steps", 100_000)
    wait_for_step(out, 3, process)
    process.send_signal(signal.SIGTERM)
    said = finish(process)[0]
    step = int(runs.newest(out).name)
    assert step >= 3 and f"checkpoints/{step}  stopped as asked" in said
    assert lines(out)[-1]["step"] == step
    finish(start(recipe, out, "--steps", step + 1))
    assert runs.newest(out).name == str(step + 1)


def wait_for_step(out, step, process, seconds=200):
    end = time.time() + seconds
    while not (out / "log.jsonl").exists() or len((out / "log.jsonl").read_text().splitlines()) < step:
        assert process.poll() is None, process.communicate()
        assert time.time() < end, "no progress"
        time.sleep(0.02)


@pytest.mark.slow
def test_kill_at_ten_random_moments(recipe, tmp_path):
    """Nothing is lost but the steps since the last finished save, and the end is that of an undisturbed run."""
    steps, options = 60, ("--checkpoint.every-steps", 2)
    calm, out, random_ = tmp_path / "calm", tmp_path / "run", random.Random(0)
    finish(start(recipe, calm, "--steps", steps, *options))
    for _ in range(10):
        process = start(recipe, out, "--steps", steps, *options)
        kept = newest(out)
        wait_for_step(out, kept + 1, process)  # loading is not what is to be hit
        time.sleep(random_.uniform(0.0, 0.4))
        process.kill()
        process.communicate()
        assert kept <= newest(out) < steps
    finish(start(recipe, out, "--steps", steps, *options))
    assert_same(saved(out, steps), saved(calm, steps))
    assert [line["loss"] for line in lines(out)] == [line["loss"] for line in lines(calm)]


def newest(out):
    return max((int(p.name) for p in out.glob("checkpoints/*") if p.name.isdigit()), default=0)


@pytest.mark.slow
def test_two_processes_stop_and_go_on(recipe, whole, tmp_path):
    """Four simulated devices each, one process told to stop by ctrl-C: both save at the same step, go on, and end as one process does."""
    out, mesh = tmp_path / "run", ("--mesh.data", 2, "--mesh.fsdp", 4)

    def both(*options):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{s.getsockname()[1]}"
        join = ("--distributed.coordinator", address, "--distributed.processes", 2, "--distributed.process")
        return [start(recipe, out, *mesh, *options, *join, n, devices=4) for n in range(2)]

    first = both("--steps", 1000, "--checkpoint.every-steps", 1000)
    wait_for_step(out, 1, first[0])
    first[1].send_signal(signal.SIGINT)
    said = [finish(process)[0] for process in first]
    step = int(runs.newest(out).name)
    assert "stopped as asked" in said[0] and "stopped" not in said[1]
    end = step + 2
    for process in both("--steps", end):
        finish(process)
    alone = tmp_path / "alone"
    finish(start(recipe, alone, "--steps", end, *mesh, devices=8))
    found, expected = saved(out, end), saved(alone, end)
    assert found.keys() == expected.keys()
    for name in (name for name in found if name.startswith(("infusenet/", "resampler/"))):
        assert np.abs(found[name] - expected[name]).max() <= 1e-6, name
