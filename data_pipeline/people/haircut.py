"""Haircuts: the shell that a person's hair forms around the skull, where it ends, and which way it is combed."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float32

from data_pipeline.people.head import Profile
from data_pipeline.people.identity import Person
from data_pipeline.people.surface import normals

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
    "quiff": Style((-1.0, -0.76, 0.12, -0.16, 0.82), top=0.32, front=0.42, side=0.035, flow="back", ragged=0.04, thin=0.22),
    "swept back": Style((-1.03, -0.80, 0.15, -0.08, 0.95), top=0.16, front=0.15, side=0.07, flow="back", ragged=0.03),
    "curly": Style((-0.86, -0.62, 0.12, 0.06, 0.6), top=0.30, front=0.27, side=0.17, flow="crown", curl=1.0, ragged=0.12),
    "afro": Style((-0.88, -0.66, 0.14, 0.22, 0.42), top=0.56, front=0.42, side=0.46, flow="crown", curl=1.0, ragged=0.10),
    "receding": Style((-1.42, -1.12, 0.14, -0.12, 0.86), top=0.02, front=0.02, side=0.06, flow="crown", ragged=0.06, thin=0.30),
    "pixie": Style((-0.56, -0.44, 0.26, 0.10, 0.95), top=0.21, front=0.17, side=0.11, flow="sweep", ragged=0.12),
    "bob": Style((-0.98, -0.80, 1.05, 1.15, 1.15), top=0.18, front=0.15, side=0.19, flow="part", length=1.15, flare=0.10, ragged=0.05),
    "bangs bob": Style((-0.44, -0.40, 1.00, 1.10, 1.10), top=0.18, front=0.15, side=0.18, flow="crown", length=1.10, flare=0.06, ragged=0.05),
    "long bangs": Style((-0.44, -0.38, 2.2, 2.3, 2.3), top=0.18, front=0.15, side=0.16, flow="crown", length=2.3, flare=0.10, ragged=0.08),
    "long straight": Style((-1.0, -0.82, 2.2, 2.3, 2.3), top=0.15, front=0.13, side=0.14, flow="part", length=2.3, flare=0.08, ragged=0.08),
    "long wavy": Style((-0.98, -0.80, 2.1, 2.2, 2.2), top=0.20, front=0.17, side=0.24, flow="part", length=2.2, flare=0.28, wave=1.0, ragged=0.12),
    "long curly": Style((-0.96, -0.74, 1.8, 1.9, 1.9), top=0.27, front=0.19, side=0.25, flow="crown", length=1.9, flare=0.38, curl=0.8, ragged=0.16),
    "bun": Style((-1.02, -0.80, 0.10, -0.08, 0.85), top=0.11, front=0.10, side=0.07, flow="back", ragged=0.03, bun=0.40),
    "ponytail": Style((-1.02, -0.80, 0.10, -0.08, 0.85), top=0.12, front=0.11, side=0.07, flow="back", ragged=0.03, bun=0.30),
}


@dataclass(frozen=True)
class Shell:
    """A surface of hair, rows from the crown to the tips."""

    points: Float32[np.ndarray, "r c 3"]
    normals: Float32[np.ndarray, "r c 3"]
    tangents: Float32[np.ndarray, "r c 3"]  # along the strands
    across: Float32[np.ndarray, "r c"]  # which strand: across the strands, in head units
    along: Float32[np.ndarray, "r c"]
    inside: Float32[np.ndarray, "r c"]  # how far from the hair's edge, in head units
    ragged: Float32[np.ndarray, "r c"]  # how ragged the edge is there
    thin: Float32[np.ndarray, "r c"]  # how much skin shows through


def make_shell(points, across, along, inside, ragged, thin) -> Shell:
    """Completes a shell from what is given at its points; broadcasts."""
    shape = points.shape[:2]
    down, over = np.gradient(points, axis=(0, 1))
    s_down, s_over = np.gradient(np.broadcast_to(across, shape), axis=(0, 1))
    s_over = np.where(np.abs(s_over) > 2, 0, s_over)  # across a parting
    tangent = s_over[..., None] * down - s_down[..., None] * over
    tangent /= np.linalg.norm(tangent, axis=-1, keepdims=True) + 1e-6
    flat = (np.broadcast_to(v, shape) for v in (across, along, inside, ragged, thin))
    return Shell(*(np.ascontiguousarray(v, np.float32) for v in (points, normals(points), tangent, *flat)))


@lru_cache(maxsize=64)
def shell(p: Person, style: Style, flatten: int | float | None = None) -> Shell:
    """The surface of a person's hair; `flatten` limits its thickness above the ears, for hats."""
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
        # An opening for the face, as half an angle at each height: a flat fringe or a round hairline above, locks that come forward below.
        low = np.clip((y - 0.25) / 0.9, 0, 1)
        fringe = front > -0.7
        rise = np.clip((y - front - shift) / (0.22 if fringe else 0.62), 0, 1) ** (0.40 if fringe else 0.55)
        open_to = 64 * rise - style.drape * low * low * (3 - 2 * low)
        inside = np.minimum((deg - open_to) / 57 + np.maximum(front + shift - y, 0), length - y)
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
        thick = np.minimum(thick, flatten + np.clip((y + 0.55) / 0.75, 0, 1) * thick)
    if style.curl:  # lumps
        thick = thick * (1 + 0.13 * np.sin(9 * angle + 2.3 * np.sin(3 * y) + 6 * p.wave) * np.sin(6.5 * y + 2 * np.sin(4 * angle)))
    taper = np.sqrt(np.clip(inside / (0.26 if not style.curl else max(0.16, 0.9 * style.side)), 0, 1))
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
    # Tips and fringes are ragged, hairlines and the sides of long hair hardly.
    tips = np.clip(1 - (length - y) / 0.35, 0, 1) if style.long else np.clip((y + 0.1) / 0.3, 0, 1)
    fringed = (front > -0.7) * np.clip((58 - deg) / 10, 0, 1)
    ragged = 0.25 * style.ragged + 0.012 + 0.75 * style.ragged * np.maximum(tips, fringed)
    thin = style.thin * np.clip((y - profile.crown - 0.35) / 0.8, 0, 1) if style.top > 0.05 else style.thin + 0 * y
    return make_shell(points, across, along, inside, ragged, thin)
