"""How colourful pictures are: snapshots are dull, clean drawings are not, and what a model was trained on can be told by it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from infu_jax.evaluation.measuring import Measure


class Colourfulness:
    """A scorer for `infu_jax.evaluation.judging`: M^(3) of Hasler and Süsstrunk (Measuring colourfulness in natural images, 2003), whatever the prompt."""

    measure = Measure("colourfulness", "colourfulness", "up", "Hasler and Süsstrunk's, of pixels from 0 to 255")

    def __call__(self, images: Sequence[np.ndarray], prompts: Sequence[str]) -> Float[np.ndarray, " n"]:
        return np.array([colourfulness(image) for image in images])


def colourfulness(image: np.ndarray) -> float:
    """Of an RGB picture (h, w, 3) of uint8."""
    red, green, blue = np.moveaxis(image.astype(np.float64), -1, 0)
    opponents = np.stack([red - green, (red + green) / 2 - blue])
    return float(np.linalg.norm(opponents.std(axis=(1, 2))) + 0.3 * np.linalg.norm(opponents.mean(axis=(1, 2))))
