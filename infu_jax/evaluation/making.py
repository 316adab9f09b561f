"""Pictures for an evaluation that are not there yet. Interrupted, it goes on where it was."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from infu_jax import face, pictures
from infu_jax.config import SamplingConfig
from infu_jax.errors import InputError
from infu_jax.evaluation import pairs
from infu_jax.evaluation.pairs import Pair
from infu_jax.pipeline import InfUPipeline


def missing(folder: Path, wanted: Sequence[Pair], recipe: Mapping[str, Any]) -> list[Pair]:
    """The pairs without a picture. InputError where a picture that is there was made in another way: a mixture would measure nothing."""
    absent = []
    for pair in wanted:
        path = pairs.find(folder, pair)
        if path is None:
            absent.append(pair)
            continue
        stored, now = pictures.read_recipe(path), {**recipe, **_own(pair)}
        if different := [name for name in (*now, "control") if stored.get(name) != now.get(name)]:
            name = different[0]
            raise InputError(
                f"{path} was made with {name} {stored.get(name)!r}, now it is {now.get(name)!r}; give another --out, or --pictures to score what is there"
            )
    return absent


def make(
    pipeline: InfUPipeline,
    wanted: Sequence[Pair],
    folder: Path,
    *,
    settings: SamplingConfig,
    recipe: Mapping[str, Any],
    batch: int = 1,
    done: Callable[[int], None] = lambda count: None,
) -> None:
    """Make the pictures of `wanted`, `batch` at once, as PNG files that carry their recipe.

    A picture depends on its person, prompt, seed and settings, not on what else is in its batch (up to rounding of floats).
    done: called with how many have been written since the last call.
    """
    embeddings: dict[str, np.ndarray] = {}
    for start in range(0, len(wanted), batch):
        now = list(wanted[start : start + batch])
        for pair in now:
            if pair.identity.name not in embeddings:
                embeddings[pair.identity.name] = _embed(pipeline, pair)
        # A last batch that is not full is filled up: pictures that are dropped cost less than compiling for another size.
        filled = now + now[-1:] * (min(batch, len(wanted)) - len(now))
        made = pipeline(
            [pair.prompt.text for pair in filled],
            id_embedding=np.stack([embeddings[pair.identity.name] for pair in filled]),
            negative_prompt="" if settings.true_cfg > 1 else None,
            seeds=[pair.seed for pair in filled],
            control_image=[pair.control.image for pair in filled] if filled[0].control else None,
            settings=settings,
        )
        if jax.process_index() == 0:
            for pair, image in zip(now, made.images):
                path = folder / f"{pair.stem}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                pictures.save_png(path, image, {"synthetic": True, **recipe, **_own(pair)})
        done(len(now))


def _embed(pipeline: InfUPipeline, pair: Pair) -> np.ndarray:
    try:
        return pipeline.embed_face(face.read_image(pair.identity.photo))
    except face.NoFaceError as e:
        raise InputError(f"{pair.identity.photo}: {e}") from None


def _own(pair: Pair) -> dict[str, Any]:
    """What differs from picture to picture."""
    own = {"identity": pair.identity.name, "prompt": pair.prompt.text, "seed": pair.seed}
    return own if pair.control is None else {**own, "control": pair.control.digest}
