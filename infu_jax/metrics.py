"""What a run says about itself: scalars and pictures for TensorBoard, the same scalars as JSON lines, and how fast it goes."""

from __future__ import annotations

import io
import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from infu_jax.pictures import save_png

LOG_FILE, CHARTS, PICTURES = "log.jsonl", "tensorboard", "pictures"


class RunLog:
    """RUN/log.jsonl (one JSON object a line, with `step`), RUN/tensorboard and RUN/pictures.

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
        self._file = path.open("a", encoding="utf-8")
        self._charts = EventFileWriter(str(run / CHARTS))
        # Viewers forget what came from here on.
        self._charts.add_event(Event(wall_time=time.time(), step=start + 1, session_log=SessionLog(status=SessionLog.START)))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Values that are not finite are JSON's null."""
        if not self._writes:
            return
        self._file.write(json.dumps({"step": step, **{k: v if math.isfinite(v) else None for k, v in values.items()}}) + "\n")
        self._file.flush()
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
        path.parent.mkdir(exist_ok=True)
        if not path.exists():  # it does where the run was cut off after it and comes by again
            save_png(path, image, {"synthetic": True, "run": str(self._run), "step": step})

    def _chart(self, step: int, values: list[Summary.Value]) -> None:
        self._charts.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_) -> None:
        if self._writes:
            self._file.close()
            self._charts.close()


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
    partial.write_text("".join(kept), encoding="utf-8")
    partial.replace(path)


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
