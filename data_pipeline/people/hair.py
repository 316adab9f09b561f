"""Hair: a shell around the skull, combed one way or another, with strands, shine, and a ragged edge."""

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from jaxtyping import Float, Float32

from data_pipeline.people.head import Profile
from data_pipeline.people.identity import Person
from data_pipeline.people.light import Shading
from data_pipeline.people.surface import View, normals, rasterise

COLUMNS = 73
DOME, FALL = 26, 26  # rows from the crown to the widest place, and below it
WIDEST = -0.30


@dataclass(frozen=True)
class Style:
    """How hair is cut. Heights are y in head units; `edge` is the lowest hair in front, at the temple, beside the face, over the ear, at the nape."""

    edge: tuple[float, float, float, float, float]
    top: float = 0.16  # thickness
    front: float = 0.14
    side: float = 0.09
    flow: str = "part"  # "crown", "part", "back" or "sweep"
    length: float = 0.95  # y of the tips
    flare: float = 0.0  # how far long hair stands off at its tips
    curl: float = 0.0  # 1: coils, 0: strands
    wave: float = 0.0
    ragged: float = 0.05
    thin: float = 0.0  # skin that shows through at the sides
    bun: float = 0.0
    drape: float = 14.0  # how far forward long hair falls below the cheeks, in degrees

    @property
    def long(self) -> bool:
        return self.length > 1.0


SHORT = (-0.98, -0.70, 0.16, -0.14, 0.86)
STYLES = {
    "buzz": Style((-0.98, -0.74, 0.14, -0.16, 0.80), top=0.025, front=0.02, side=0.015, flow="crown", ragged=0.03, thin=0.45),
    "crop": Style(SHORT, top=0.13, front=0.12, side=0.045, flow="sweep", ragged=0.08, thin=0.12),
    "fringe": Style((-0.52, -0.48, 0.18, -0.04, 0.90), top=0.17, front=0.13, side=0.10, flow="crown", ragged=0.10),
    "side part": Style(SHORT, top=0.19, front=0.17, side=0.06, flow="part", ragged=0.04, thin=0.06),
    "quiff": Style((-1.0, -0.76, 0.12, -0.16, 0.82), top=0.27, front=0.36, side=0.035, flow="back", ragged=0.04, thin=0.22),
    "swept back": Style((-1.03, -0.80, 0.15, -0.08, 0.95), top=0.16, front=0.15, side=0.07, flow="back", ragged=0.03),
    "curly": Style((-0.86, -0.62, 0.10, -0.06, 0.9), top=0.30, front=0.27, side=0.17, flow="crown", curl=1.0, ragged=0.12),
    "afro": Style((-0.88, -0.66, 0.10, 0.10, 0.9), top=0.58, front=0.44, side=0.46, flow="crown", curl=1.0, ragged=0.10),
    "receding": Style((-1.42, -1.12, 0.14, -0.12, 0.86), top=0.02, front=0.02, side=0.06, flow="crown", ragged=0.06, thin=0.30),
    "pixie": Style((-0.56, -0.44, 0.26, 0.10, 0.95), top=0.21, front=0.17, side=0.11, flow="sweep", ragged=0.12),
    "bob": Style((-0.98, -0.80, 1.05, 1.15, 1.15), top=0.18, front=0.15, side=0.19, flow="part", length=1.15, flare=0.10, ragged=0.05),
    "bangs bob": Style((-0.44, -0.40, 1.00, 1.10, 1.10), top=0.18, front=0.15, side=0.18, flow="crown", length=1.10, flare=0.06, ragged=0.05),
    "long bangs": Style((-0.44, -0.38, 2.2, 2.3, 2.3), top=0.18, front=0.15, side=0.16, flow="crown", length=2.3, flare=0.10, ragged=0.08),
    "long straight": Style((-1.0, -0.82, 2.2, 2.3, 2.3), top=0.15, front=0.13, side=0.14, flow="part", length=2.3, flare=0.08, ragged=0.08),
    "long wavy": Style((-0.98, -0.80, 2.1, 2.2, 2.2), top=0.20, front=0.17, side=0.24, flow="part", length=2.2, flare=0.28, wave=1.0, ragged=0.12),
    "long curly": Style((-0.92, -0.70, 1.8, 1.9, 1.9), top=0.34, front=0.27, side=0.36, flow="part", length=1.9, flare=0.34, curl=0.8, ragged=0.16),
    "bun": Style((-1.02, -0.80, 0.10, -0.08, 0.85), top=0.11, front=0.10, side=0.07, flow="back", ragged=0.03, bun=0.40),
    "ponytail": Style((-1.02, -0.80, 0.10, -0.08, 0.85), top=0.12, front=0.11, side=0.07, flow="back", ragged=0.03, bun=0.30),
}


@dataclass(frozen=True)
class Layer:
    """A painted piece of the canvas."""

    window: tuple[slice, slice]
    rgb: Float32[np.ndarray, "h w 3"]
    alpha: Float32[np.ndarray, "h w"]

    def over(self, canvas: Float32[np.ndarray, "H W 3"], opacity: float = 1.0) -> None:
        part = canvas[self.window]
        part += (self.rgb - part) * (self.alpha * np.float32(opacity))[..., None]


@dataclass(frozen=True)
class Shell:
    points: Float32[np.ndarray, "r c 3"]
    normals: Float32[np.ndarray, "r c 3"]
    strand: Float32[np.ndarray, "r c 2"]  # across the strands and along them, in head units
    inside: Float32[np.ndarray, "r c 2"]  # how far from the hair's edge, in head units; how ragged it is there
    thin: Float32[np.ndarray, "r c"]


def shell(person: Person, style: Style, flatten: float | None = None) -> Shell:
    """The surface of the hair; `flatten` limits its thickness above the ears, for hats."""
    return _shell(person, style, flatten)


@lru_cache(maxsize=64)
def _shell(p: Person, style: Style, flatten: float | None) -> Shell:
    profile = Profile(p)
    angle = np.radians(np.linspace(-178, 178, COLUMNS))[None, :]
    deg = np.abs(np.degrees(angle))
    polar = np.linspace(0.03, float(np.arccos((profile.middle - WIDEST) / profile.half)), DOME)
    y_dome = (profile.middle - profile.half * np.cos(polar))[:, None]
    length = style.length + (0.55 * (p.hair_length - 0.5) if style.length > 1.5 else 0.22 * (p.hair_length - 0.5) if style.long else 0.0)
    y_fall = np.linspace(WIDEST, max(length, 0.95) + 0.1, FALL + 1)[1:, None]

    # The edge, by angle: front, temple, beside the face, over the ear, nape. `inside` is how far from it, in head units.
    y = np.concatenate([y_dome, y_fall]) + 0 * deg
    front, temple, beside, ear, nape = style.edge
    shift = p.hairline + 0.98 if front < -0.7 else 0.0
    if style.long:
        low = np.clip((y - 0.25) / 0.9, 0, 1)
        open_to = 64 - style.drape * low * low * (3 - 2 * low)  # below the cheeks locks come forward
        heights = [front + shift, front + 0.06 + shift, temple + shift, min(temple + 0.45, 0.1), 0.5]
        line = np.where(deg > open_to, length, np.interp(deg, [0, 34, 52, 63, 67], heights))
        aside = (deg - open_to) / 57  # near the opening the edge is counted sideways
        inside = np.where((deg > open_to) & (y > -0.2), np.minimum(line - y, aside + 0.02), line - y)
    else:
        heights = [front + shift, front + 0.06 + shift, temple + shift, temple + 0.22, beside, beside, ear, ear, nape, nape]
        inside = np.interp(deg, [0, 34, 52, 64, 75, 84, 91, 105, 117, 180], heights) - y
    if p.hair_style == "receding":
        bald = np.exp(-((np.sin(angle) * profile.width(y) / 0.55) ** 4)) * np.clip((-0.80 - y) / 0.25, 0, 1)
        inside = inside - 1.5 * bald * (np.cos(angle) > -0.75)

    # Thickness: of the top, the front and the sides; nothing at the edge, where hair comes out of the skin.
    volume = p.hair_volume if style.top > 0.05 else 1.0
    cos = np.cos(angle)
    thick_side = style.side + (style.front - style.side) * np.clip(cos, 0, 1) ** 2
    up = np.clip((WIDEST - y) / (WIDEST - profile.crown), 0, 1)
    thick = (thick_side + (style.top - thick_side) * up**1.5) * volume
    if style.front > 0.3:  # a quiff stands up in front
        thick = thick + 0.16 * np.exp(-(((up - 0.78) / 0.22) ** 2)) * np.clip(cos, 0, 1) ** 2
    if flatten is not None:
        thick = np.where(y < WIDEST, np.minimum(thick, flatten), thick)
    taper = np.sqrt(np.clip(inside / (0.14 if style.curl else 0.26), 0, 1))
    if style.long:
        taper = taper + (1 - taper) * np.clip((deg - 54) / 14, 0, 1)
    thick = thick * (0.10 + 0.90 * taper)
    dome = profile.around(y_dome, angle)
    out = dome - np.array([0.0, -0.35, -0.15])
    out /= np.linalg.norm(out, axis=-1, keepdims=True)
    dome = dome + out * thick[:DOME, :, None]

    ring = dome[-1]
    t = (y_fall - WIDEST) / (y_fall[-1] - WIDEST)
    if style.long:
        spread = 1 + style.flare * volume * (np.sin(np.minimum(t * 1.25, 1.0) * np.pi / 2) - 0.10)
        tuck = 1 - 0.16 * np.clip((t - 0.80) / 0.2, 0, 1) ** 1.5  # tips turn in
        fall = (ring[:, 0] * spread * tuck, y_fall + ring[-1, 1] - WIDEST, ring[:, 2] * (1 + 0.5 * (spread - 1)) - 0.12 * t)
        fall = np.stack(np.broadcast_arrays(*fall), axis=-1)
    else:
        hug = profile.around(np.broadcast_to(y_fall, (FALL, COLUMNS)), np.broadcast_to(angle, (FALL, COLUMNS)))
        away = thick[DOME:] * np.clip(1.1 - t * 0.5, 0, 1)
        fall = hug + np.stack(np.broadcast_arrays(np.sin(angle) * away, 0 * away, cos * away), axis=-1)
    points = np.concatenate([dome, fall])
    along = np.concatenate([np.zeros((1, COLUMNS)), np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=-1), axis=0)])
    if style.wave:
        phase = 5.5 * (points[..., 1] - 0.4) + 2.5 * np.sin(2 * angle) + 6 * p.wave
        points[..., 0] += style.wave * 0.045 * np.sin(phase) * np.clip((points[..., 1] + 0.9) / 0.8, 0, 1) * np.sign(np.sin(angle) + 1e-6)
    normal = normals(points)

    # Which way it is combed: strands are where the first coordinate stays the same.
    x, y, z = np.moveaxis(points, -1, 0)
    if style.flow == "crown":
        across = angle * 0.9 + 0 * y
    elif style.flow == "back":
        across = np.arctan2(x, 2.2 - y) * 2.6 + 0.10 * z
    elif style.flow == "sweep":
        across = 0.75 * z + 0.62 * x * np.sign(p.parting or 1) + 0.35 * angle
    else:
        across = z * 2.4 / (2.6 - np.minimum(y, 1.0)) + np.where(x > p.parting, 7.0, 0.0) + 0.10 * np.abs(x)
    if style.wave or style.curl:
        bend = max(style.wave, style.curl)
        across = across + 0.055 * bend * np.sin(7.0 * along + 2.0 * np.sin(3 * angle) + 6 * p.wave)

    inside = inside + 0.05 * np.exp(-(((x - p.parting) / 0.08) ** 2)) * -1.0 * (style.flow == "part") * (deg < 60)
    ragged = np.where((y > 0.2) | (front > -0.7), style.ragged, 0.35 * style.ragged + 0.012) + 0 * deg
    thin = style.thin * np.clip((y - profile.crown - 0.35) / 0.8, 0, 1) if style.top > 0.05 else style.thin + 0 * y
    return Shell(
        *(
            np.ascontiguousarray(a, np.float32)
            for a in (points, normal, np.stack([across, along + 0 * across], axis=-1), np.stack([inside, ragged], axis=-1), thin + 0 * deg)
        )
    )


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
    step = 1 if view.scale > 130 else 2
    seen = rasterise(view.flat(turned), turned[..., 2], canvas, step, back)
    if seen is None:
        return None
    rotate = view.rotation.astype(np.float32)
    normal = hair.normals @ rotate.T
    colour = np.array(person.hair, np.float32)
    strand = seen.sample(hair.strand)
    across, along = strand[..., 0], strand[..., 1]
    width = max(0.011, 1.3 / view.scale)
    fine, locks = _strands(person.number % 7)
    noise = cv2.remap(fine, np.mod(across / np.float32(width), 1023), np.mod(along * 14, 63), cv2.INTER_LINEAR)
    lock = cv2.remap(locks, np.mod(across * 42, 255), np.mod(along * 10, 63), cv2.INTER_LINEAR)
    edge = seen.sample(hair.inside)
    ragged = edge[..., 1]
    sharp = np.float32(min(0.75 * view.scale, 60))
    alpha = np.clip((edge[..., 0] + ragged * (1.5 * lock + 1.0 * noise - 1.25)) * sharp + 0.5, 0, 1)
    alpha *= seen.mask
    if back:
        rgb = colour * (0.20 + 0.16 * lock[..., None]) * shading.tone(shading.plain, np.full((1, 1), 0.5))
        return Layer(seen.window, np.ascontiguousarray(np.broadcast_to(rgb, (*alpha.shape, 3)), np.float32), alpha.astype(np.float32))

    reach = shading.reach(normal, 0.45)
    # Shine runs across strands where light and eye are mirrored in them (Kajiya and Kay, SIGGRAPH 1989).
    down, over = np.gradient(hair.points @ rotate.T, axis=(0, 1))
    s_down, s_over = np.gradient(hair.strand[..., 0], axis=(0, 1))
    jump = np.abs(s_over) > 2
    s_over = np.where(jump, 0, s_over)
    tangent = s_over[..., None] * down - s_down[..., None] * over
    tangent /= np.linalg.norm(tangent, axis=-1, keepdims=True) + 1e-6
    mirror = tangent @ shading.half
    facing = np.clip(normal[..., 2], 0, 1)
    grid = np.stack([reach, mirror, facing, hair.thin], axis=-1).astype(np.float32)
    reach, mirror, facing, thin = np.moveaxis(seen.sample(grid), -1, 0)
    if style.curl:
        size = np.float32(384 * 0.62)
        coil = cv2.remap(_coils(), np.mod(strand[..., 0] * size, 383), np.mod(along * size, 383), cv2.INTER_LINEAR)
        body = 0.56 + 0.80 * coil
        shine = 0.20 * np.clip(coil - 0.35, 0, 1) * reach
        fuzz = 0.42
        grain = coil
    else:
        body = 0.62 + 0.34 * noise + 0.40 * (lock - 0.2)
        shine = np.exp(-(((mirror + 0.16 * (noise - 0.5) + 0.22 * (lock - 0.5)) / 0.26) ** 2)) * (0.15 + 0.5 * noise) * np.clip(reach * 1.3 - 0.15, 0, 1)
        fuzz = 0.16
        grain = noise
    depth = np.clip(0.35 + 0.9 * facing, 0, 1)  # darker towards the outline and
    depth *= np.clip(0.62 + 1.6 * edge[..., 0], 0.62, 1) if style.top > 0.05 else 1.0  # at the roots
    tone = shading.tone(shading.plain, np.clip(reach * depth, 0, 1))
    rgb = colour * body[..., None] * tone
    glow = (0.55 * colour + 0.42 * np.sqrt(colour) + 0.06) * shading.key * shading.light.gain
    rgb += (glow - rgb) * (np.clip(shine, 0, 1) * 0.62)[..., None]
    alpha *= np.clip((facing - fuzz * grain * 0.9) * 14 + 0.5, 0, 1)
    if style.thin:
        alpha *= 1 - np.clip(thin, 0, 1) * (0.35 + 0.9 * noise)
    return Layer(seen.window, rgb.astype(np.float32), np.clip(alpha, 0, 1).astype(np.float32))


def draw_ball(
    person: Person, centre: tuple[float, float, float], radii: tuple[float, float, float], style: Style, view: View, shading: Shading, canvas: tuple[int, int]
) -> Layer | None:
    """A bun or the root of a ponytail."""
    angle = np.radians(np.linspace(-178, 178, 41))[None, :]
    polar = np.linspace(0.05, np.pi - 0.05, 25)[:, None]
    points = np.stack(
        np.broadcast_arrays(radii[0] * np.sin(polar) * np.sin(angle), -radii[1] * np.cos(polar), radii[2] * np.sin(polar) * np.cos(angle)), axis=-1
    )
    x, y = points[..., 0] / radii[0], points[..., 1] / radii[1]
    swirl = np.hypot(x, y) * 0.7 + np.arctan2(y, x) * 0.10
    points = points + np.array(centre)
    strand = np.stack([swirl, polar + 0 * angle], axis=-1)
    inside = np.stack([np.ones_like(x), 0 * x], axis=-1)
    ball = Shell(*(np.ascontiguousarray(a, np.float32) for a in (points, normals(points), strand, inside, 0 * x)))
    return draw_hair(person, style, ball, view, shading, canvas)
