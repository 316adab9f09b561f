"""A training run on disk: what lies where. Reading here needs neither JAX nor Orbax; `run_state` writes and restores.

RUN/run.json                     which run this is: settings and model sizes, for people and for `sample.py --infu RUN`
RUN/log.jsonl                    what `metrics.RunLog` was told, one JSON object a line, with `step`
RUN/checkpoints/<step>/          written by Orbax under another name and renamed when it is whole
    <model>/, <model>_ema/       trained weights, float32, by parameter path
    optimizer/                   moments and counters
    meta/                        step, settings, model sizes, data order, and a fingerprint of every array
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from infu_jax.errors import InputError

RUN_FILE, LOG_FILE, CHECKPOINTS, META, EMA = "run.json", "log.jsonl", "checkpoints", "meta", "_ema"


class Saved(NamedTuple):
    """One model's weights in a checkpoint."""

    weights: Path  # Orbax folder
    model: str
    config: dict[str, Any]  # its sizes, see `config.to_json`


def is_run(path: Path) -> bool:
    """Whether `path` is a run's folder, or one of its checkpoints."""
    return (path / RUN_FILE).is_file() or is_checkpoint(path)


def is_checkpoint(path: Path) -> bool:
    """Whether `path` is one checkpoint of a run."""
    return (path / META / "metadata").is_file()


def find_model(path: Path, model: str, *, ema: bool = True) -> Saved:
    """A model in a run's newest checkpoint, or in the checkpoint `path`; with `ema` its average, where the run keeps one."""
    step = path if is_checkpoint(path) else newest(path)
    meta = read_meta(step)
    if model not in meta["models"]:
        raise InputError(f"{step} holds no {model}; this run trains {', '.join(sorted(meta['models']))}")
    name = model + EMA if ema and (step / (model + EMA)).is_dir() else model
    return Saved((step / name).absolute(), model, meta["models"][model])


def models(path: Path, *, ema: bool = True) -> dict[str, Path]:
    """The models of a run's newest checkpoint, or of the checkpoint `path`, by name: folders that `is_model`."""
    step = path if is_checkpoint(path) else newest(path)
    return {model: find_model(step, model, ema=ema).weights for model in read_meta(step)["models"]}


def is_model(path: Path) -> bool:
    """Whether `path` is one model's folder in a checkpoint of a run."""
    return is_checkpoint(path.parent) and path.name.removesuffix(EMA) in read_meta(path.parent)["models"]


def newest(run: Path) -> Path:
    """The newest finished checkpoint of a run."""
    steps = sorted((int(p.name), p) for p in (run / CHECKPOINTS).glob("*") if p.name.isdigit())
    if not steps:
        raise InputError(f"{run} has no finished checkpoint yet")
    return steps[-1][1]


def pinned(path: Path | None) -> Path | None:
    """A run's newest checkpoint in the place of the run, which may go on meanwhile; any other path as it is."""
    return newest(path) if path is not None and is_run(path) and not is_checkpoint(path) else path


def read_meta(step: Path) -> dict[str, Any]:
    """What a checkpoint says about itself."""
    try:
        return json.loads((step / META / "metadata").read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise InputError(f"{step} is not a whole checkpoint of a training run ({e}); use another one of {step.parent}") from None


def read_run(run: Path) -> dict[str, Any]:
    """run.json of a run, given its folder or that of a checkpoint."""
    folder = run if (run / RUN_FILE).is_file() else run.parent.parent
    try:
        return json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise InputError(f"{folder / RUN_FILE} cannot be read ({e}); is {run} a training run's folder?") from None


def models_of(run: Path) -> dict[str, Path]:
    """Where the models lie that a run was made with: of base, transformer, autoencoder and arcface those that it names."""
    stored = read_run(run)
    folder = Path(stored.get("folder", ""))  # paths in settings are seen from it; where there is nothing, they are names on a hub
    found = {name: stored["settings"].get(f"models.{name}") for name in ("base", "transformer", "autoencoder", "arcface")}
    return {name: folder / place if (folder / place).exists() else Path(place) for name, place in found.items() if place is not None}


def logged(run: Path, step: int) -> set[str]:
    """Names of the numbers that a run's log has of a step."""
    names: set[str] = set()
    if (run / LOG_FILE).is_file():
        for line in (run / LOG_FILE).read_text(encoding="utf-8").splitlines():
            try:
                values = json.loads(line)
            except ValueError:
                continue  # the process died while it wrote this line
            if values.get("step") == step:
                names |= values.keys()
    return names


def write_run(run: Path, content: Mapping[str, Any]) -> None:
    """Write run.json, as one process, and in it the folder that the run is started in."""
    content = {**content, "folder": str(Path.cwd())}
    partial_file = run / f".{RUN_FILE}.{os.getpid()}.partial"
    partial_file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    partial_file.replace(run / RUN_FILE)
