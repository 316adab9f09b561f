"""Drawn pictures as arrays in memory, for the networks that are trained on single pictures."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from infu_jax import face


@dataclass(frozen=True, eq=False)
class Drawn:
    """What `data_pipeline.people` wrote to one folder."""

    images: np.ndarray  # (N, H, W, 3) uint8 RGB
    keypoints: np.ndarray  # (N, 5, 2) float32
    people: np.ndarray  # (N,) int, from 0
    attributes: list[dict[str, Any]]
    captions: list[str]  # the first of each, which states everything


def read(folder: Path, most: int | None = None) -> Drawn:
    """All pictures of a folder, or the first `most`."""
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines()[:most]]
    with ThreadPoolExecutor() as pool:
        images = list(tqdm(pool.map(lambda row: face.read_image(folder / row["image"]), rows), f"reading {folder.name}", len(rows), leave=False, disable=None))
    names = {name: n for n, name in enumerate(dict.fromkeys(row["person"] for row in rows))}
    return Drawn(
        np.stack(images),
        np.array([row["keypoints"] for row in rows], np.float32),
        np.array([names[row["person"]] for row in rows]),
        [row["attributes"] for row in rows],
        [row["captions"][0]["text"] for row in rows],
    )


def crops(drawn: Drawn) -> np.ndarray:
    """(N, 112, 112, 3) uint8 BGR, aligned to ArcFace's template."""
    with ThreadPoolExecutor() as pool:
        return np.stack(list(pool.map(face.align, drawn.images, drawn.keypoints)))
