"""Train InfuseNet, or the base model, by a recipe of `configs/`.

    python train.py configs/tiny.py                                       a laptop, minutes
    python train.py configs/infu_stage1.py --data.paths /data/spss        one GPU or TPU; on a pod the same command on every host
    python train.py configs/infu_stage2.py --data.paths /data/spms --models.init runs/infu_stage1

Every setting of a recipe can be given on the command line; `python train.py configs/tiny.py --help` explains them all. The same command
again goes on from the newest checkpoint. `python sample.py --infu RUN` makes pictures with what has been trained so far.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import itertools
import json
import math
import sys
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from infu_jax import recipes, runs
from infu_jax.cli import check_writable, memory_advice, run
from infu_jax.errors import InputError
from infu_jax.train_config import TrainConfig, changes, settings

FROZEN = ("base", "transformer", "autoencoder", "arcface")  # settings of models that say where frozen ones lie
LESS_MEMORY = "a smaller batch, --accumulate, --remat or --optimizer.in-backward need less, and `python -m infu_jax.plan` says how much"


def main() -> None:
    cfg = recipes.read(sys.argv[1:], doc=__doc__, program="train.py")
    check_writable(cfg.out)

    from infu_jax import distributed  # heavy, as are imports below: --help and mistakes answer at once

    distributed.initialize(cfg.distributed)
    with contextlib.ExitStack() as held:
        train(pin_models(cfg), held)


def train(cfg: TrainConfig, held: contextlib.ExitStack) -> None:
    """The run, from where it is to its end; its folder is put into `held` once there is anything to write."""
    import jax
    from tqdm import tqdm

    from infu_jax import config as configs
    from infu_jax import distributed, flops, flow, initial, run_state, training
    from infu_jax.metrics import Pace, RunLog
    from infu_jax.sharding import check_heads, check_tokens, make_mesh, place_batch

    if cfg.compilation_cache is not None:
        jax.config.update("jax_compilation_cache_dir", str(cfg.compilation_cache.absolute()))
    mesh = make_mesh(**dataclasses.asdict(cfg.mesh))
    check_batch(cfg, mesh.shape["data"] * mesh.shape["fsdp"])
    if cfg.dtype == "auto":  # what it stands for is what a run has to go on with
        cfg = dataclasses.replace(cfg, dtype="float32" if jax.default_backend() == "cpu" else "bfloat16")
    dtype = cfg.dtype
    leads = jax.process_index() == 0

    # Data and sizes come first: mistakes show before billions of weights are read.
    loader, held_out = open_data(cfg, mesh)
    trained = initial.trained_models(cfg)
    sizes = {name: configs.to_json(module.cfg) for name, module in trained.items()}
    base = initial.base_config(cfg.models)
    queries = (cfg.models.resampler.num_queries,) if cfg.trainable == "infusenet" else ()
    check_heads(mesh, base.num_heads)
    check_tokens(mesh, cfg.data.t5_length, *queries, *(height // 16 * (width // 16) for height, width in loader.buckets))
    schedule = flow.read_schedule(cfg.models.base, base, cfg.models.transformer is not None)

    if leads:
        held.enter_context(alone(cfg.out))
    checkpoints = run_state.Checkpoints(cfg.out, cfg.checkpoint)
    abstract = training.abstract_state(cfg, trained, mesh)
    data = {**loader.fingerprint, "features": sorted(loader.features)}
    found = checkpoints.restore(training.to_items(abstract), lambda meta: check_same_run(cfg, data, sizes, meta))
    names = initial.frozen_names(cfg, set(loader.features) & set((held_out or loader).features))
    with memory_advice(LESS_MEMORY), tqdm(total=len(names) + len(trained), desc="loading", leave=False, disable=None if leads else True) as bar:
        progress = lambda name: (bar.set_postfix_str(name), bar.update())  # noqa: E731
        frozen = initial.frozen_models(cfg, names, mesh, dtype, progress)
        if found is None:
            start, state = 0, training.init_state(cfg, initial.initial_params(cfg, trained, frozen, mesh, progress), abstract)
        else:
            start, state = found[0], training.from_items(found[1], abstract)
        del found
    owed = start > 0 and validation_is_owed(cfg, start)
    if leads:
        runs.write_run(cfg.out, {"settings": settings(cfg), "models": sizes})
        print(f"{cfg.out}: {f'going on from step {start}' if start else 'a new run'} of {cfg.steps} steps; {describe(abstract, mesh, dtype)}", file=sys.stderr)

    if start >= cfg.steps and not owed:
        print(f"{checkpoints.folder / str(start)}  finished already; raise --steps to go on", flush=True)
        return

    step_program = training.make_step(cfg, trained, abstract, mesh, schedule, dtype)
    validate = held_out and make_validation(cfg, held_out, trained, mesh, schedule, dtype)
    peak = flops.peak(jax.devices()[0].device_kind)
    pace = Pace(cfg.batch_size, peak and peak * jax.device_count())
    waiting, seen = [], []  # steps whose numbers the host has not looked at, and those it has since the last line of the log
    saved = start

    def look() -> None:
        """Fetch the numbers of the oldest waiting step, which takes until it is finished, and stop where they are none."""
        step, metrics, records = waiting.pop(0)
        last = f"the last good checkpoint is {checkpoints.folder / str(saved)}" if saved else "there is no checkpoint yet"
        training.check_finite(step, metrics, records, f"{last}; lower optimizer.learning_rate, or look at these pictures")
        seen.append(jax.device_get(metrics._replace(each=0)))

    def save(step: int, last: bool) -> int:
        """Begin a checkpoint; returns the step of the newest one that is there or begun. Of the last one, a failure is an error."""
        try:
            checkpoints.save(step, training.to_items(state), {"settings": settings(cfg), "models": sizes, "data": data})
        except run_state.CheckpointError as e:
            if jax.process_count() > 1 or (last and step not in checkpoints.steps):
                raise  # the other processes may not know of it, or there is no next one
            warnings.warn(f"{e}; the run goes on, make room before the next one", stacklevel=2)
            return checkpoints.steps[-1] if checkpoints.steps else 0
        return step

    def run_validation(step: int) -> None:
        """Measure the models on held-out people, and log it."""
        began = time.perf_counter()
        values, sheet = validate(state, frozen)
        log.scalars(step, values)
        if sheet is not None:
            log.picture(step, "validation", sheet)
        tqdm.write(f"step {step}: " + ", ".join(f"{name} {value:.4f}" for name, value in values.items()), file=sys.stderr)
        pace.exclude(time.perf_counter() - began)

    with (
        memory_advice(LESS_MEMORY), jax.set_mesh(mesh), checkpoints, loader, distributed.StopRequest() as stop, RunLog(cfg.out, start, writes=leads) as log,
        tqdm(total=cfg.steps, initial=start, desc=cfg.out.name, unit="step", disable=None if leads else True) as bar,
    ):  # fmt: skip
        if owed:
            run_validation(start)
        step, batches, compiled = start, loader.iterate(start), set()
        for step in range(start + 1, cfg.steps + 1):
            began = time.perf_counter()
            batch = next(batches)
            waited = time.perf_counter() - began
            bucket = loader.bucket_of(step - 1)
            if bucket not in compiled:
                bar.set_postfix_str(f"compiling for pictures of {bucket[1]}x{bucket[0]}")
                compiled.add(bucket)
            with profiled(cfg, start, step) as finish:
                state, metrics = step_program(state, frozen, place_batch(mesh, batch, cfg.batch_size), None)
                finish(metrics.loss)
            waiting.append((step, metrics, batch["record"]))
            pace.step(waited, step_flops(cfg, base, trained, bucket))
            bar.update()

            asked = stop.at(step)
            ends = asked or step == cfg.steps
            due = lambda every, step=step, ends=ends: ends or every is not None and step % every == 0  # noqa: E731
            logs, saves, validates = due(cfg.log_every_steps), due(cfg.checkpoint.every_steps), due(cfg.validation.every_steps)
            # The device computes this step while the host looks at the one before, unless this one's numbers are needed now.
            while len(waiting) > (0 if logs or saves or validates else 1):
                look()
            if logs:
                values = training.summary(seen) | pace.report()
                log.scalars(step, values)
                bar.set_postfix_str(f"loss {values['loss']:.4f}, {values['pictures_per_second']:.3g} pictures/s, waited {values['data_wait']:.0%}")
                seen.clear()
            if saves:
                saved = save(step, ends)
            if validate and validates and not asked:
                run_validation(step)
            if asked:
                break
    if leads:
        print(f"{checkpoints.folder / str(step)}  {'stopped as asked; the same command goes on from here' if step < cfg.steps else 'finished'}", flush=True)


@contextlib.contextmanager
def alone(out: Path):
    """Holds the run's folder, so that no second train.py writes into it, as a job that is queued again might while the first one ends."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another train.py works in {out}; wait for it, or choose another --out") from None
        except OSError as e:
            warnings.warn(f"{out} cannot be locked ({e}); see to it that no other train.py works in it", stacklevel=3)
        yield


# Settings -----------------------------------------------------------------------------------------


def check_batch(cfg: TrainConfig, parts: int) -> None:
    """A batch, and each part of it that is computed at once, must divide over the mesh."""
    if cfg.batch_size % (cfg.accumulate * parts):
        fits = max(cfg.batch_size // (cfg.accumulate * parts), 1) * cfg.accumulate * parts
        raise InputError(
            f"batch_size {cfg.batch_size} with accumulate {cfg.accumulate} does not divide over data x fsdp = {parts} devices; try --batch-size {fits}"
        )


def pin_models(cfg: TrainConfig) -> TrainConfig:
    """Where a frozen model comes from another run, which may go on meanwhile: the checkpoint of it that this run began with, or else its newest."""
    began = runs.read_run(cfg.out)["settings"] if (cfg.out / runs.RUN_FILE).is_file() else {}

    def pinned(name: str) -> Path | None:
        path, then = getattr(cfg.models, name), Path(began.get(f"models.{name}") or "")
        if path is None or then.parent.parent != path or not runs.is_run(path):
            return runs.pinned(path)
        if not runs.is_checkpoint(then):
            raise InputError(f"{cfg.out} began with {then}, which is gone; put it back, or say --models.{name} CHECKPOINT --accept-changes")
        return then

    return dataclasses.replace(cfg, models=dataclasses.replace(cfg.models, **{name: pinned(name) for name in FROZEN}))


def validation_is_owed(cfg: TrainConfig, step: int) -> bool:
    """Whether the run was cut off between the checkpoint of a step and the validation that follows it."""
    every = cfg.validation.every_steps
    return every is not None and (step % every == 0 or step >= cfg.steps) and not any(name.startswith("validation") for name in runs.logged(cfg.out, step))


def check_same_run(cfg: TrainConfig, data: Mapping[str, Any], sizes: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
    """Raise where a checkpoint belongs to other settings, data or models than this run's."""
    flat = lambda models: {f"{model}.{name}": value for model, values in models.items() for name, value in values.items()}  # noqa: E731
    if other := _differences(flat(meta["models"]), flat(sizes)):
        raise InputError(f"{cfg.out} has checkpoints of models of other sizes: {'; '.join(other)}; choose another --out")
    # The rest of the data's fingerprint is in the settings. Checkpoints of older versions do not say which features were computed ahead.
    content = ("order", "datasets", "records", *(["features"] if "features" in meta["data"] else []))
    found = changes(meta["settings"], json.loads(json.dumps(settings(cfg)))) + _differences(
        *({name: part[name] for name in content} for part in (meta["data"], data))
    )
    if found and not cfg.accept_changes:
        raise InputError(f"{cfg.out} has checkpoints of other settings: {'; '.join(found)}. Undo that, choose another --out, or say --accept-changes")


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    return [f"{name} {old.get(name)} -> {new.get(name)}" for name in dict.fromkeys([*old, *new]) if old.get(name) != new.get(name)]


# Parts of the run ---------------------------------------------------------------------------------


def open_data(cfg: TrainConfig, mesh):
    """The loader of this process, and that of the validation people, or None."""
    from data_pipeline.loader import open_loader
    from infu_jax.sharding import batch_part
    from infu_jax.tokenizers import load_clip_tokenizer, load_t5_tokenizer

    tokenizers = dict(t5_tokenizer=load_t5_tokenizer(cfg.models.base / "tokenizer_2"), clip_tokenizer=load_clip_tokenizer(cfg.models.base / "tokenizer"))

    def open_part(data, size, **more):
        index, count = batch_part(mesh, size)
        return open_loader(data, batch_size=size, seed=cfg.seed, process_index=index, process_count=count, **tokenizers, **more)

    loader = open_part(cfg.data, cfg.batch_size, faces=cfg.objective.faces)
    if cfg.validation.every_steps is None:
        return loader, None
    # Without ArcFace's features, so that there is a face to show; nothing dropped, no keypoints, as most pictures are made.
    features = tuple(name for name in loader.features if name != "arcface")
    still = dict(split="validation", features=features, prompt_dropout=0.0, id_dropout=0.0, keypoint_share=0.0)
    try:
        return loader, open_part(dataclasses.replace(cfg.data, workers=0, **still), cfg.batch_size // cfg.accumulate)
    except InputError as e:
        raise InputError(f"validation: {e}; or turn it off with --validation.every-steps None") from None


def make_validation(cfg: TrainConfig, held_out, trained, mesh, schedule, dtype):
    """state, frozen -> (values, sheet of pictures or None)."""
    from infu_jax import face
    from infu_jax.sharding import place_batch
    from infu_jax.validation import Validation

    validation = Validation(cfg, trained, mesh, schedule, dtype, face.load_detector("yunet"))

    def validate(state, frozen):
        params = state.params if state.ema is None else state.ema
        with held_out:
            batches = [place_batch(mesh, part, cfg.batch_size // cfg.accumulate) for part in itertools.islice(held_out.iterate(), cfg.validation.batches)]
        values = validation.loss(params, frozen, batches)
        if not cfg.validation.pictures:
            return values, None
        sheet, more = validation.pictures(params, frozen, batches[0])
        return values | more, sheet

    return validate


def step_flops(cfg: TrainConfig, base, trained: Mapping[str, Any], bucket: tuple[int, int]) -> float:
    """What a step computes at least, over all devices."""
    from infu_jax import flops

    image_tokens = bucket[0] * bucket[1] // 16**2
    infusenet = trained["infusenet"].cfg if "infusenet" in trained else None
    id_tokens = trained["resampler"].cfg.num_queries if "resampler" in trained else 0
    return cfg.batch_size * flops.train_flops(base, infusenet, image_tokens, cfg.data.t5_length, id_tokens)


@contextlib.contextmanager
def profiled(cfg: TrainConfig, start: int, step: int):
    """Records RUN/profile from the first to the last of `profile_steps`; yields what waits for the step's result where the record ends."""
    import jax

    first, last = (max(cfg.profile_steps[0], start + 1), min(cfg.profile_steps[1], cfg.steps)) if cfg.profile_steps else (1, 0)
    if step == first <= last:
        jax.profiler.start_trace(str(cfg.out / "profile"))
    yield jax.block_until_ready if first <= step == last else lambda _: None
    if first <= step == last:
        jax.profiler.stop_trace()


def describe(abstract, mesh, dtype: str) -> str:
    import jax

    count = sum(math.prod(x.shape) for x in jax.tree.leaves(abstract.params))
    shape = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    return f"{count / 1e6:,.1f} million trained parameters ({', '.join(abstract.params)}), {dtype}, {jax.device_count()} devices ({shape})"


if __name__ == "__main__":
    run(main)
