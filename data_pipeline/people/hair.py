"""How hair looks: strands, locks and coils, their shine, and a ragged edge, on the shells of `haircut`."""

from functools import lru_cache

import cv2
import numpy as np
from jaxtyping import Float32

from data_pipeline.people.haircut import Shell, Style, make_shell
from data_pipeline.people.identity import Person
from data_pipeline.people.light import Shading
from data_pipeline.people.surface import Layer, Number, View, coarseness, rasterise, times


@lru_cache(maxsize=8)
def _strands(seed: int) -> tuple[Float32[np.ndarray, "64 1024"], Float32[np.ndarray, "64 256"]]:
    """Noise along strands: single ones and locks. Columns are strands."""
    rng = np.random.default_rng([0x5A1, seed])
    fine = cv2.resize(rng.random((8, 1024), dtype=np.float32), (1024, 64), interpolation=cv2.INTER_CUBIC)
    locks = cv2.resize(rng.random((5, 128), dtype=np.float32), (256, 64), interpolation=cv2.INTER_CUBIC)
    return fine, locks


@lru_cache(maxsize=2)
def _coils(size: int = 384) -> Float32[np.ndarray, "s s"]:
    """A tile of coils that repeats, as brightness."""
    rng = np.random.default_rng(0xC01)
    tile = np.full((size, size), 60, np.uint8)
    for _ in range(420):
        x, y = rng.uniform(0, size, 2)
        turn, start = rng.uniform(0, 360, 2)
        for ring in range(3):
            axes = (int(19 - 5 * ring), int(14 - 4 * ring))
            tone = int(rng.uniform(70, 150) + 34 * ring)
            for dx in (-size, 0, size):
                for dy in (-size, 0, size):
                    if -30 < x + dx < size + 30 and -30 < y + dy < size + 30:
                        cv2.ellipse(tile, (int(x + dx), int(y + dy)), axes, turn, start, start + 290, tone, 4, cv2.LINE_AA)
    return tile.astype(np.float32) / 255


def draw_hair(person: Person, style: Style, hair: Shell, view: View, shading: Shading, canvas: tuple[int, int], back: bool = False) -> Layer | None:
    """The hair's outside, or with `back` its inside, which is seen behind the neck."""
    turned = view.space(hair.points)
    seen = rasterise(view.flat(turned), turned[..., 2], canvas, coarseness(view), back)
    if seen is None:
        return None
    across, along, inside, ragged = seen.sample(hair.across, hair.along, hair.inside, hair.ragged)
    fine, locks = _strands(person.number % 7)
    # Strands are as thin as the canvas can show.
    noise = _wrapped(fine, across * np.float32(1 / max(0.011, 1.3 / view.scale)), along * np.float32(14))
    lock = _wrapped(locks, across * np.float32(42), along * np.float32(10))
    sharp = np.float32(min(0.75 * view.scale, 60))
    alpha = np.clip((inside + ragged * (1.5 * lock + noise - 1.25)) * sharp + 0.5, 0, 1) * seen.mask
    if back:
        dark = np.array(person.hair, np.float32) * shading.tone(shading.plain, np.array(0.5))
        return Layer(seen.window, times(dark, 0.26 + 0.24 * lock), alpha)

    rotate = view.rotation.astype(np.float32).T
    normal = hair.normals @ rotate
    # Shine runs across strands, where lamp and eye are mirrored in them (Kajiya and Kay, SIGGRAPH 1989).
    mirror = hair.tangents @ rotate @ shading.half
    reach, mirror, facing = seen.sample(shading.reach(normal, 0.45), mirror, np.clip(normal[..., 2], 0, 1))
    if style.curl:
        size = np.float32(384 * 0.62)
        grain = _wrapped(_coils(), across * size, along * size)
        body = 0.56 + 0.80 * grain
        shine = 0.20 * np.clip(grain - 0.35, 0, 1) * reach
        fuzz = 0.38
    else:
        grain = noise
        body = 0.54 + 0.34 * noise + 0.40 * lock
        shine = np.exp(-(((mirror + 0.16 * (noise - 0.5) + 0.22 * (lock - 0.5)) / 0.26) ** 2)) * (0.15 + 0.5 * noise) * np.clip(reach * 1.3 - 0.15, 0, 1)
        fuzz = 0.14
    depth = np.clip(0.35 + 0.9 * facing, 0, 1)  # darker towards the outline
    if style.top > 0.05:
        depth = depth * np.clip(0.62 + 1.6 * inside, 0.62, 1)  # and at the roots
    rgb = times(person.hair, body) * shading.tone(shading.plain, reach * depth)
    colour = np.array(person.hair, np.float32)
    glow = (0.55 * colour + 0.42 * np.sqrt(colour) + 0.06) * shading.key * np.float32(shading.light.gain)
    rgb += (glow[:, None, None] - rgb) * (np.clip(shine, 0, 1) * np.float32(0.62))
    alpha *= np.clip((facing - fuzz * grain) * 14 + 0.5, 0, 1)  # single hairs at the outline
    if style.thin:
        (thin,) = seen.sample(hair.thin)
        alpha *= 1 - np.clip(thin, 0, 1) * np.minimum(0.35 + 0.9 * noise, 1)
    return Layer(seen.window, rgb, alpha)


def _wrapped(tile: Float32[np.ndarray, "H W"], x: Float32[np.ndarray, "h w"], y: Float32[np.ndarray, "h w"]) -> Float32[np.ndarray, "h w"]:
    """A tile that repeats in both directions, at (x, y)."""
    height, width = tile.shape
    return cv2.remap(tile, np.mod(x, np.float32(width - 1)), np.mod(y, np.float32(height - 1)), cv2.INTER_LINEAR)


def draw_ball(
    person: Person,
    centre: tuple[Number, Number, Number],
    radii: tuple[Number, Number, Number],
    style: Style,
    view: View,
    shading: Shading,
    canvas: tuple[int, int],
) -> Layer | None:
    """A bun, or the tail of a ponytail."""
    angle = np.radians(np.linspace(-178, 178, 41))[None, :]
    polar = np.linspace(0.05, np.pi - 0.05, 25)[:, None]
    x, y, z = np.broadcast_arrays(np.sin(polar) * np.sin(angle), -np.cos(polar), np.sin(polar) * np.cos(angle))
    points = np.stack([x, y, z], axis=-1) * np.array(radii) + np.array(centre)
    tail = radii[1] > 1.6 * radii[0]  # its strands run down; those of a bun around
    across = x * radii[0] * 1.2 if tail else np.hypot(x, y) * 0.7 + np.arctan2(y, x) * 0.10
    return draw_hair(person, style, make_shell(points, across, polar * radii[1], np.float32(1), np.float32(0), np.float32(0)), view, shading, canvas)
