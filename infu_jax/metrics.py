"""What a run says about itself: scalars and pictures for TensorBoard, the same scalars as JSON lines, and how fast it goes."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import socket
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from infu_jax.errors import InputError
from infu_jax.pictures import read_recipe, save_png
from infu_jax.runs import LOG_FILE

CHARTS, PICTURES = "tensorboard", "pictures"


class RunLog:
    """RUN/log.jsonl (one JSON object a line, with `step`), RUN/tensorboard and RUN/pictures.

    A full disk is a warning: lines of the log wait until there is room, what the others could not take is lost.

    start: the step that the run goes on from. What was written of later steps, before the run was cut off, is dropped.
    writes: False on all processes but one; their calls do nothing.
    """

    def __init__(self, run: Path, start: int, *, writes: bool = True):
        self._run, self._writes = run, writes
        if not writes:
            return
        path = run / LOG_FILE
        if path.exists():
            _keep_until(path, start)
        _drop_pictures(run / PICTURES, start)
        self._waiting: list[str] = []  # lines that are not in the log yet
        self._told: set[Path] = set()
        self._log = _Pieces(path)
        (run / CHARTS).mkdir(exist_ok=True)
        now = time.time()
        self._charts = _Pieces(run / CHARTS / f"events.out.tfevents.{int(now):010d}.{socket.gethostname()}.{os.getpid()}.{start:07d}")
        self._event(Event(wall_time=now, file_version="brain.Event:2"))
        # Viewers forget what came from here on.
        self._event(Event(wall_time=now, step=start + 1, session_log=SessionLog(status=SessionLog.START)))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Values that are not finite are JSON's null."""
        if not self._writes:
            return
        self._waiting.append(json.dumps({"step": step, **{k: v if math.isfinite(v) else None for k, v in values.items()}}) + "\n")
        with self._tolerant(self._log.path, "the run goes on, and its lines wait for room"):
            self._write_lines()
        self._chart(step, [Summary.Value(tag=name, simple_value=value) for name, value in values.items()])

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        """(h, w, 3) uint8 RGB, also as RUN/pictures/<name>_<step>.png."""
        if not self._writes:
            return
        height, width, _ = image.shape
        encoded = io.BytesIO()
        Image.fromarray(image).save(encoded, format="PNG")
        self._chart(step, [Summary.Value(tag=name, image=Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=encoded.getvalue()))])
        path = self._run / PICTURES / f"{name}_{step:07d}.png"
        with self._tolerant(path, "the run goes on without this picture"):
            path.parent.mkdir(exist_ok=True)
            save_png(path, image, {"synthetic": True, "run": str(self._run), "step": step})

    def _chart(self, step: int, values: list[Summary.Value]) -> None:
        self._event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def _event(self, event: Event) -> None:
        framed = io.BytesIO()
        RecordWriter(framed).write(event.SerializeToString())
        with self._tolerant(self._charts.path, "the run goes on, and its charts have a gap"):
            self._charts.append(framed.getvalue())

    def _write_lines(self) -> None:
        while self._waiting:
            self._log.append(self._waiting[0].encode())
            del self._waiting[0]

    @contextlib.contextmanager
    def _tolerant(self, path: Path, so: str) -> Iterator[None]:
        """A file that cannot be written is a warning, once for each."""
        try:
            yield
        except OSError as e:
            if path not in self._told:
                self._told.add(path)
                warnings.warn(f"{path} cannot be written ({e.strerror or e}); {so}", stacklevel=4)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_) -> None:
        if not self._writes:
            return
        try:
            self._write_lines()
        except OSError as e:
            warnings.warn(f"{self._log.path} lacks its last {len(self._waiting)} lines, which cannot be written ({e.strerror or e})", stacklevel=2)
        self._log.close()
        self._charts.close()


class _Pieces:
    """A file that grows by whole pieces."""

    def __init__(self, path: Path):
        self.path = path
        self._file = path.open("ab", buffering=0)
        self._length = path.stat().st_size

    def append(self, piece: bytes) -> None:
        """Where this raises OSError, nothing was added."""
        rest = memoryview(piece)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]  # a disk takes what fits, before it says that it is full
        except OSError:
            self._file.truncate(self._length)
            raise
        self._length += len(piece)

    def close(self) -> None:
        self._file.close()


def _keep_until(path: Path, step: int) -> None:
    """Drop the lines of later steps, and a last line that is not whole."""
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError):
            continue  # the process died while it wrote this line
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text("".join(kept), encoding="utf-8")
        partial.replace(path)
    except OSError as e:
        raise InputError(f"{path} cannot be written ({e.strerror or e}); make room, then the same command goes on") from e
    finally:
        partial.unlink(missing_ok=True)


def _drop_pictures(folder: Path, step: int) -> None:
    """Drop the pictures of later steps, as `RunLog` wrote them."""
    for path in folder.glob("*.png"):
        try:
            made = read_recipe(path).get("step", 0)
        except InputError:
            continue  # somebody else's
        if made > step:
            path.unlink()


class Pace:
    """Pictures per second, and how much of the time went where, since the last question."""

    def __init__(self, pictures_a_step: int, peak_flops: float | None):
        self._pictures, self._peak = pictures_a_step, peak_flops
        self._reset()

    def _reset(self) -> None:
        self._since, self._waited, self._steps, self._flops = time.perf_counter(), 0.0, 0, 0.0

    def step(self, waited: float, flops: float) -> None:
        """Count a step that waited so many seconds for data and computed so many FLOPs over all devices."""
        self._waited, self._steps, self._flops = self._waited + waited, self._steps + 1, self._flops + flops

    def exclude(self, seconds: float) -> None:
        """Leave out time that was not spent on training, such as a validation."""
        self._since += seconds

    def report(self) -> dict[str, float]:
        """seconds_per_step, pictures_per_second, data_wait (share of the time), and mfu (share of the devices' peak) where that is known."""
        seconds, steps = time.perf_counter() - self._since, max(self._steps, 1)
        told = {"seconds_per_step": seconds / steps, "pictures_per_second": self._steps * self._pictures / seconds, "data_wait": self._waited / seconds}
        if self._peak is not None:
            told["mfu"] = self._flops / seconds / self._peak
        self._reset()
        return told
