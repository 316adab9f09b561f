"""Defaults of a command line's options that follow from which models it gives."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from infu_jax import runs
from infu_jax.assets import TINY, TINY_SAMPLING
from infu_jax.config import SamplingConfig

EMBEDDED_BASE = TINY / "FLUX.1-tiny"
Args = TypeVar("Args")


def with_defaults(args: Args, argv: Sequence[str]) -> Args:
    """`args`, a dataclass of a command's defaults, as they should be for the models that --base and --infu of `argv` give.

    Of a training run: the models that it was made with, and `sampling` of what it was trained on. Else sampling's sizes and steps are those of the
    embedded base, or the release's.
    """
    scan = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    scan.add_argument("--base", type=Path)
    scan.add_argument("--infu", type=Path)
    given = scan.parse_known_args(argv)[0]
    run = given.infu if given.infu is not None and runs.is_run(given.infu) else None
    models = runs.models_of(run) if run else {}
    base = given.base or models.get("base") or EMBEDDED_BASE
    usual = TINY_SAMPLING if base == EMBEDDED_BASE else SamplingConfig()
    return dataclasses.replace(args, **models, sampling=dataclasses.replace(usual, **(_trained_on(run) if run else {})))


def _trained_on(run: Path) -> dict[str, int]:
    """The length of a run's prompts, and the release's format at a run's resolution, or a square where the run had no pictures of that format."""
    settings, release = runs.read_run(run)["settings"], SamplingConfig()
    found = {} if (length := settings.get("data.t5_length")) is None else {"t5_length": length}
    if (resolution := settings.get("data.resolution")) is None:
        return found
    square = settings.get("data.max_aspect", 2) < release.height / release.width
    sides = (1024, 1024) if square else (release.width, release.height)
    width, height = (max(round(side * resolution / 1024 / 16), 1) * 16 for side in sides)
    return {**found, "width": width, "height": height}
