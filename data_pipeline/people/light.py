"""The light of a picture: one soft lamp, light from all around, and how skin, hair and cloth answer."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32


@dataclass(frozen=True)
class Light:
    lamp: tuple[float, float, float]  # direction towards it
    key: tuple[float, float, float]  # its colour
    fill: tuple[float, float, float]  # colour of the light from all around
    share: float  # of the light from all around
    gain: float = 1.0


LIGHTS = {
    "soft": Light((-0.42, -0.55, 0.85), (1.03, 1.0, 0.97), (0.93, 0.98, 1.05), 0.34),
    "warm": Light((-0.50, -0.50, 0.75), (1.12, 0.97, 0.80), (0.98, 0.88, 0.86), 0.28),
    "cool": Light((0.45, -0.60, 0.80), (0.90, 1.0, 1.12), (0.84, 0.93, 1.10), 0.32),
    "from the left": Light((-0.95, -0.30, 0.42), (1.08, 1.03, 0.98), (0.80, 0.86, 1.0), 0.10),
    "from the right": Light((0.95, -0.30, 0.42), (1.08, 1.03, 0.98), (0.80, 0.86, 1.0), 0.10),
    "dim": Light((0.25, -0.70, 0.75), (0.98, 0.95, 0.92), (0.80, 0.86, 1.0), 0.24, 0.70),
    "golden": Light((0.75, -0.38, 0.62), (1.25, 0.96, 0.62), (0.84, 0.82, 0.98), 0.20, 1.03),
}


class Shading:
    """Tables from the light that reaches a place (0 to 1) to what its colour is multiplied with."""

    def __init__(self, light: Light):
        self.light = light
        self.lamp = (np.array(light.lamp) / np.linalg.norm(light.lamp)).astype(np.float32)
        half = self.lamp + (0, 0, 1)
        self.half = (half / np.linalg.norm(half)).astype(np.float32)
        self.key = np.array(light.key, np.float32)
        level = np.linspace(0, 1, 256)[:, None]
        tint = np.array(light.fill) * (1 - level) + np.array(light.key) * level
        stops = [0.0, 0.22, 0.50, 0.80, 1.0]
        # Shaded skin goes warm and saturated, for light that entered elsewhere leaves it there; bright skin goes pale.
        skin = np.array([(0.31, 0.22, 0.215), (0.58, 0.47, 0.46), (0.86, 0.80, 0.78), (1.03, 1.01, 1.0), (1.15, 1.14, 1.13)])
        plain = np.array([(0.30,) * 3, (0.48,) * 3, (0.76,) * 3, (1.0,) * 3, (1.10,) * 3])
        self.skin, self.plain = (
            (np.stack([np.interp(level[:, 0], stops, tone[:, i]) for i in range(3)]) * tint.T * light.gain).astype(np.float32) for tone in (skin, plain)
        )

    def reach(self, normals: Float[np.ndarray, "*n 3"], wrap: int | float = 0.35) -> Float[np.ndarray, "*n"]:
        """Light on surfaces that face `normals`, 0 to 1."""
        key = np.clip((normals @ self.lamp + wrap) / (1 + wrap), 0, 1)
        around = 0.72 - 0.28 * normals[..., 1]  # more from above
        return np.clip(key * (1 - self.light.share) + around * self.light.share, 0, 1)

    def gloss(self, normals: Float[np.ndarray, "*n 3"], power: int | float) -> Float[np.ndarray, "*n"]:
        return np.clip(normals @ self.half, 0, 1) ** power

    def tone(self, table: Float32[np.ndarray, "3 256"], reach: Float[np.ndarray, "*n"]) -> Float32[np.ndarray, "3 *n"]:
        return np.take(table, np.clip(reach * 255 + 0.5, 0, 255).astype(np.uint8), axis=1)
