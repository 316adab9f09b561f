"""What a picture shows, read off by a small network: the attributes that prompts name. It stands in for CLIPScore, which knows photographs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from data_pipeline.people.attributes import CLOTHES, COLOURS, EXPRESSIONS, GLASSES, HEADWEAR, LIGHTS, SCENES, SHOTS
from examples.tiny_world import faces
from examples.tiny_world.fitting import Fit, fit, restore
from infu_jax import config as configs
from infu_jax import runs
from infu_jax.evaluation.measuring import Measure
from infu_jax.models.arcface import ArcFace
from infu_jax.models.layers import Linear

TURNS, GENDERS = ("straight", "left", "right"), ("woman", "man")
CLASSES: Mapping[str, tuple[str, ...]] = {
    "gender": GENDERS, "expression": EXPRESSIONS, "glasses": GLASSES, "headwear": HEADWEAR, "scene": SCENES, "clothing": CLOTHES, "colour": tuple(COLOURS),
    "light": LIGHTS, "shot": SHOTS, "turn": TURNS,
}  # fmt: skip
BODY = configs.ArcFaceConfig(widths=(8, 24, 48, 96), units=(1, 1, 2, 2), embedding_dim=256, se_reduction=4)


class Heads(nnx.Module):
    """One linear layer for all attributes."""

    def __init__(self, size: int, *, rngs: nnx.Rngs):
        self.linear = Linear(size, sum(map(len, CLASSES.values())), rngs=rngs)

    def __call__(self, features) -> dict[str, jnp.ndarray]:
        """Logits by attribute."""
        ends = np.cumsum([len(values) for values in CLASSES.values()])[:-1]
        return dict(zip(CLASSES, jnp.split(self.linear(16 * features), ends, axis=-1), strict=True))


def labels(attributes: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Class numbers by attribute, of what the drawing said of its pictures."""
    rows = [{**a, "turn": turn(a["yaw"])} for a in attributes]
    return {name: np.array([values.index(row[name]) for row in rows], np.int32) for name, values in CLASSES.items()}


def turn(yaw: float) -> str:
    """How captions name it."""
    return "straight" if abs(yaw) < 12 else "right" if yaw > 0 else "left"


def train(out: Path, folders: list[Path], held_out: Path, how: Fit) -> Path:
    """Train on the pictures of several folders."""
    shown = [faces.read(folder, most=12_000) for folder in folders]
    images = np.concatenate([each.images for each in shown])
    wanted = labels([a for each in shown for a in each.attributes])
    others = faces.read(held_out)
    theirs = labels(others.attributes)

    def batch(rng: np.random.Generator) -> dict[str, np.ndarray]:
        rows = rng.integers(len(images), size=how.batch_size)
        return {"images": images[rows], **{name: values[rows] for name, values in wanted.items()}}

    def loss(modules, batch, key, progress):
        x = batch["images"].astype(jnp.float32) / 127.5 - 1
        logits = modules["heads"](modules["body"](x, train=True))
        parts = {name: optax.softmax_cross_entropy_with_integer_labels(values, batch[name]).mean() for name, values in logits.items()}
        return sum(parts.values()), parts

    def look(modules):
        said = read(modules, others.images)
        accuracy = {name: float((said[name] == theirs[name]).mean()) for name in CLASSES}
        return {**accuracy, "accuracy": float(np.mean(list(accuracy.values())))}, None

    return fit(out, _modules(images.shape[1]), loss, batch, how, look)


def _modules(image_size: int) -> Callable[[nnx.Rngs], dict[str, nnx.Module]]:
    cfg = dataclasses.replace(BODY, image_size=image_size)
    return lambda rngs: {"body": ArcFace(cfg, rngs=rngs), "heads": Heads(cfg.embedding_dim, rngs=rngs)}


@nnx.jit
def _logits(body, heads, images):
    return heads(body(images.astype(jnp.float32) / 127.5 - 1))


def read(modules: Mapping[str, nnx.Module], images: np.ndarray) -> dict[str, np.ndarray]:
    """The likeliest class numbers by attribute."""
    parts = [_logits(modules["body"], modules["heads"], part) for part in np.array_split(images, max(len(images) // 32, 1))]
    return {name: np.concatenate([np.asarray(part[name]).argmax(-1) for part in parts]) for name in CLASSES}


class Attributes:
    """A scorer for `infu_jax.evaluation.judging`: which share of what a prompt asked for the classifier sees in its picture."""

    measure = Measure("attributes", "attribute accuracy", "up", "share of the prompt's attributes that a classifier trained on drawn pictures finds")

    def __init__(self, modules: Mapping[str, nnx.Module], asked: Mapping[str, Mapping[str, Any]]):
        self._modules, self._asked = modules, asked

    def __call__(self, images: Sequence[np.ndarray], prompts: Sequence[str]) -> np.ndarray:
        said, wanted = read(self._modules, np.stack(images)), labels([self._asked[prompt] for prompt in prompts])
        return np.mean([said[name] == wanted[name] for name in CLASSES], axis=0)


def load(run: Path) -> dict[str, nnx.Module]:
    """The trained networks of a run."""
    return restore(run, _modules(runs.read_run(run)["models"]["body"]["image_size"]))
