"""The state of a training run in its checkpoints: written while the run goes on, checked, and restored on any mesh.

Orbax does not notice a flipped bit in what it reads, so each array has a fingerprint. A checkpoint that cannot be read or does not
have its fingerprints is put aside as `<step>.damaged`, and the one before it is used.
"""

from __future__ import annotations

import contextlib
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from infu_jax.errors import InputError
from infu_jax.runs import CHECKPOINTS, read_meta
from infu_jax.train_config import CheckpointConfig

Arrays = Mapping[str, Any]  # by name

# Checkpoints --------------------------------------------------------------------------------------


class CheckpointError(InputError):
    """A checkpoint could not be written."""


class Checkpoints:
    """The checkpoints of a run. All processes call every method, at the same step.

    Items are dicts of arrays by name, one for each model, its average, and the optimizer.
    """

    def __init__(self, run: Path, cfg: CheckpointConfig):
        self.folder = (run / CHECKPOINTS).absolute()
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=cfg.keep, keep_period=cfg.keep_every_steps, create=True, cleanup_tmp_directories=True, enable_async_checkpointing=True
            ),
        )

    @property
    def steps(self) -> list[int]:
        """Steps of the finished checkpoints, in order."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, items: Mapping[str, Arrays], meta: Mapping[str, Any]) -> None:
        """Begin to save; the arrays may be overwritten as soon as this returns.

        Raises CheckpointError where saving failed: this time, or, as only the next call can tell, the time before.
        """
        before = None
        try:
            self.wait()
        except CheckpointError as e:
            before = e
        self._remove_rests()
        items = {name: {k: v for k, v in arrays.items() if v.size} for name, arrays in items.items()}  # Orbax refuses arrays without elements
        prints = {name: fingerprints(arrays) for name, arrays in items.items()}
        saved = {name: ocp.args.StandardSave(arrays) for name, arrays in items.items()}
        meta = {**meta, "step": step, "fingerprints": prints}
        with self._said():
            self._manager.save(step, args=ocp.args.Composite(**saved, meta=ocp.args.JsonSave(meta)), force=True)
        if before is not None:
            raise before

    def wait(self) -> None:
        """Wait until nothing is being saved. Raises CheckpointError where saving failed; the checkpoints before it are whole."""
        with self._said():
            self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _said(self) -> Iterator[None]:
        """CheckpointError for what goes wrong with the files."""
        try:
            yield
        except jax.errors.JaxRuntimeError:
            raise  # such as another process that is gone
        except Exception as e:  # Orbax passes on whatever its threads raised, now or the time before, for a full disk a ValueError
            raise self._failed(e) from e

    def _failed(self, error: Exception) -> CheckpointError:
        last = f"the last whole one is of step {self.steps[-1]}" if self.steps else "there is none yet"
        return CheckpointError(f"a checkpoint could not be written to {self.folder} ({' '.join(str(error).split())[-200:]}); {last}")

    def _remove_rests(self) -> None:
        """What was written of a checkpoint that failed, and may fill the disk. Orbax's other threads may write on: the next call gets that."""
        if jax.process_count() == 1:
            for rest in self.folder.glob("*.orbax-checkpoint-tmp"):
                shutil.rmtree(rest, ignore_errors=True)

    def restore(self, abstract: Mapping[str, Arrays], check: Callable[[Mapping[str, Any]], None]) -> tuple[int, dict[str, dict[str, jax.Array]]] | None:
        """(step, items) of the newest whole checkpoint on the shardings of `abstract`; None where there is none.

        check: called with a checkpoint's meta before its arrays are read; what it raises is raised here.
        """
        for step in reversed(self.steps):
            problem, items = None, None
            try:
                meta = read_meta(self.folder / str(step))
            except InputError as e:
                problem = str(e)
            else:
                check(meta)
                problem, items = self._read(step, abstract, meta)
            if problem := _first_of_all(problem):
                self._put_aside(step, problem)
                continue
            return step, items
        return None

    def _read(self, step: int, abstract: Mapping[str, Arrays], meta: Mapping[str, Any]) -> tuple[str | None, dict | None]:
        """(None, items), or (what is wrong, None)."""
        wanted = {name: {k: v for k, v in arrays.items() if v.size} for name, arrays in abstract.items()}
        try:
            found = self._manager.restore(step, args=ocp.args.Composite(**{name: ocp.args.StandardRestore(arrays) for name, arrays in wanted.items()}))
        except jax.errors.JaxRuntimeError:
            raise  # such as a device without enough memory
        except Exception as e:  # Orbax raises this very class where data are missing or unreadable
            return f"it cannot be read ({type(e).__name__}: {' '.join(str(e).split())[:160]})", None
        for name, arrays in wanted.items():
            if wrong := _differing(found[name], meta["fingerprints"].get(name, {})):
                return f"{name} {wrong[0]} is not what was saved ({len(wrong)} of {len(arrays)} arrays differ)", None
        empty = {name: {k: jnp.zeros(v.shape, v.dtype, device=v.sharding) for k, v in arrays.items() if not v.size} for name, arrays in abstract.items()}
        return None, {name: {**found[name], **empty[name]} for name in abstract}

    def _put_aside(self, step: int, problem: str) -> None:
        aside = self.folder / f"{step}.damaged"
        warnings.warn(f"checkpoint {self.folder / str(step)} is damaged: {problem}; it is kept as {aside.name}, and the one before it is used", stacklevel=3)
        if jax.process_index() == 0:
            shutil.rmtree(aside, ignore_errors=True)
            (self.folder / str(step)).rename(aside)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"{step} put aside")
        self._manager.reload()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind, *_) -> None:
        """Finish what is being saved. What goes wrong with that is raised, unless something else is on its way already."""
        try:
            try:
                self.wait()
            finally:
                with self._said():  # once more what `wait` raised
                    self._manager.close()
        except CheckpointError as e:
            if kind is None:
                raise
            warnings.warn(str(e), stacklevel=2)
        finally:
            self._remove_rests()


def _first_of_all(problem: str | None) -> str | None:
    """The first process's problem, if any process has one."""
    if jax.process_count() == 1:
        return problem
    text = np.zeros(512, np.uint8)
    raw = (problem or "").encode()[:512]
    text[: len(raw)] = np.frombuffer(raw, np.uint8)
    for row in multihost_utils.process_allgather(text):
        if found := bytes(row[row > 0]).decode(errors="replace"):
            return found
    return None


# Fingerprints -------------------------------------------------------------------------------------


def fingerprints(arrays: Arrays) -> dict[str, int]:
    """A 32-bit number for each array, the same on every mesh, that any single changed bit changes."""
    return {name: int(x) for name, x in jax.device_get(_fingerprints(dict(arrays))).items()}


def _differing(arrays: Arrays, expected: Mapping[str, int]) -> list[str]:
    return [name for name, value in fingerprints(arrays).items() if expected.get(name) != value]


@jax.jit
def _fingerprints(arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {name: _fingerprint(x) for name, x in arrays.items()}


def _fingerprint(x: jax.Array) -> jax.Array:
    """Sum of all words, each times an odd number of its place, modulo 2^32: integers add up in any order."""
    words = jax.lax.bitcast_convert_type(x, {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]).astype(jnp.uint32)
    place = jnp.zeros(x.shape, jnp.uint32)
    for axis, size in enumerate(x.shape):
        place = place * np.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    return jnp.sum(words * (place * np.uint32(2654435761) * np.uint32(2) + np.uint32(1)), dtype=jnp.uint32)


def check_model(weights: Path, arrays: Arrays) -> None:
    """Raise InputError unless these are the numbers that were saved in `weights`, a model's folder in a checkpoint."""
    if wrong := _differing(arrays, read_meta(weights.parent)["fingerprints"][weights.name]):
        raise InputError(f"{weights} is damaged: {wrong[0]} is not what was saved ({len(wrong)} of {len(arrays)} arrays differ); use another checkpoint")
