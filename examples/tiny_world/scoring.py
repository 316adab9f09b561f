"""A scorer for `data_pipeline.synthesize`: which share of its prompt a picture shows, as a classifier sees it that judges nothing else."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import numpy as np

from examples.tiny_world import classifier, prompts
from examples.tiny_world.stages import FIRST_PROMPT
from infu_jax.errors import InputError

WORLD = "TINY_WORLD"
"""Environment variable with the folder of the world, which hooks cannot be told otherwise."""


def prompt_kept(picture: np.ndarray, prompt: str) -> float:
    """From 0 to 1."""
    return float(_attributes()([picture], [prompt])[0])


@functools.cache
def _attributes() -> classifier.Attributes:
    if WORLD not in os.environ:
        raise InputError(f"the environment variable {WORLD} is not set; it names the folder of a tiny world, in which its scorer lies")
    world = Path(os.environ[WORLD])
    count = len((world / "synthesis_prompts.txt").read_text(encoding="utf-8").splitlines()) // len(prompts.GENDERS)
    return classifier.Attributes(classifier.load(world / "scorer"), {each.text: each.attributes for each in prompts.made(count, FIRST_PROMPT)})
