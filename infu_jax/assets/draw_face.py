"""Draws portraits of people who do not exist: sample pictures that need no photograph, no licence and no download.

A head is a height field (ellipsoid, nose, sockets, lips) lit by one soft lamp from the upper left; eyes, brows, lips, hair and clothes are
painted on it. Everything is drawn at twice the size and reduced. The same person always gives the same picture.

    python -m infu_jax.assets.draw_face OUT.png --person ada     # the committed faces/*.png were made so

Positions are in pixels of the 512x512 picture, x to the right, y down. Colours are RGB, 0 to 255.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float, Float32, Real, UInt8
from PIL import Image

SIZE = 512
SCALE = 2  # drawn at SIZE * SCALE, then reduced
CENTRE = 256.0
EYE_Y = 233.0

Number = int | float
Colour = tuple[int, int, int]
Points = Real[np.ndarray, "*n 2"]
Pairs = list[tuple[Number, ...]]
Mask = Float[np.ndarray, "side side"]
Canvas = Float[np.ndarray, "side side 3"]


@dataclass(frozen=True)
class Person:
    """What tells the drawn people apart. Lengths in pixels."""

    skin: Colour
    hair: Colour
    shine: Colour  # of the hair
    iris: Colour
    lips: Colour
    shirt: Colour
    wall: Colour
    hairstyle: str  # "bob", "crop" or "curls"
    collar: str  # "crew", "shirt" or "roll"
    cheek_width: float = 97.0  # half the face at the cheekbones
    jaw_width: float = 70.0  # half the face at the mouth
    chin_y: float = 377.0
    eye_x: float = 43.0  # from the middle of the face
    eye_open: float = 9.5
    nose_y: float = 287.0
    nose_width: float = 15.0
    mouth_y: float = 323.0
    mouth_width: float = 33.5  # half
    lip_height: float = 9.0
    smile: float = 5.5  # how far the corners of the mouth rise
    brow_weight: float = 6.0
    lashes: float = 1.0
    stubble: float = 0.0
    freckles: int = 0
    earrings: bool = False
    seed: int = 0

    def __post_init__(self):
        for name, value, known in (("hairstyle", self.hairstyle, ("bob", "crop", "curls")), ("collar", self.collar, ("crew", "shirt", "roll"))):
            if value not in known:
                raise ValueError(f"{name} {value!r} is unknown; expected {', '.join(known)}")


PEOPLE = {
    "ada": Person(
        skin=(236, 188, 160),
        hair=(104, 50, 30),
        shine=(206, 122, 74),
        iris=(74, 118, 84),
        lips=(188, 84, 84),
        shirt=(28, 116, 118),
        wall=(226, 205, 184),
        hairstyle="bob",
        collar="crew",
        cheek_width=93.0,
        jaw_width=66.0,
        chin_y=374.0,
        eye_open=11.0,
        brow_weight=4.6,
        lashes=1.5,
        freckles=90,
        seed=1,
    ),
    "bo": Person(
        skin=(222, 170, 130),
        hair=(34, 30, 34),
        shine=(104, 100, 112),
        iris=(72, 46, 30),
        lips=(176, 102, 88),
        shirt=(52, 74, 112),
        wall=(176, 196, 206),
        hairstyle="crop",
        collar="shirt",
        cheek_width=99.0,
        jaw_width=80.0,
        chin_y=382.0,
        eye_x=44.0,
        eye_open=8.5,
        nose_y=289.0,
        nose_width=16.5,
        mouth_y=327.0,
        mouth_width=35.0,
        lip_height=7.6,
        brow_weight=7.5,
        lashes=0.7,
        stubble=0.5,
        seed=2,
    ),
    "cy": Person(
        skin=(142, 90, 62),
        hair=(40, 28, 24),
        shine=(112, 78, 60),
        iris=(58, 34, 22),
        lips=(140, 68, 66),
        shirt=(186, 132, 66),
        wall=(150, 120, 148),
        hairstyle="curls",
        collar="roll",
        cheek_width=94.0,
        jaw_width=71.0,
        chin_y=380.0,
        eye_x=44.0,
        eye_open=10.0,
        nose_y=285.0,
        nose_width=18.0,
        mouth_y=324.0,
        mouth_width=38.0,
        smile=6.5,
        lip_height=12.0,
        brow_weight=5.4,
        lashes=1.3,
        earrings=True,
        seed=3,
    ),
}


def keypoints(person: Person) -> Float32[np.ndarray, "5 2"]:
    """The drawn left eye, right eye, nose tip, left and right mouth corner (ArcFace's order, as the viewer sees them)."""
    offsets = [-person.eye_x, person.eye_x, 0.0, -person.mouth_width, person.mouth_width]
    heights = [EYE_Y, EYE_Y, person.nose_y - 4, person.mouth_y - person.smile, person.mouth_y - person.smile]
    return np.stack([CENTRE + np.array(offsets), np.array(heights)], axis=1).astype(np.float32)


def draw_face(person: Person) -> UInt8[np.ndarray, "512 512 3"]:
    """The portrait, RGB."""
    rng = np.random.default_rng(person.seed)
    canvas = _wall(person)
    _hair_behind(canvas, person, rng)
    _neck_and_shirt(canvas, person)
    _ears(canvas, person)
    _head(canvas, person, rng)
    for side in (-1, 1):
        _eye(canvas, person, side)
        _brow(canvas, person, side, rng)
    _mouth(canvas, person)
    _hair_in_front(canvas, person, rng)
    small = cv2.resize(np.clip(canvas, 0, 1), (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    return np.round(small * 255).astype(np.uint8)


# Brushes


def _rgb(colour: Colour) -> np.ndarray:
    return np.array(colour, np.float32) / 255


def _steps() -> Float32[np.ndarray, "side"]:
    """Positions of the drawn pixels' centres along one side."""
    return (np.arange(SIZE * SCALE, dtype=np.float32) + 0.5) / SCALE


def _grid() -> tuple[Mask, Mask]:
    """x and y of every drawn pixel's centre."""
    return np.meshgrid(_steps(), _steps())


def _spline(points: Real[np.ndarray, "n d"] | Pairs, closed: bool = False, steps: int = 12) -> Float[np.ndarray, "m d"]:
    """A Catmull-Rom curve through the points."""
    p = np.asarray(points, np.float64)
    p = np.concatenate([p[-1:], p, p[:2]]) if closed else np.concatenate([p[:1], p, p[-1:]])
    t = np.linspace(0, 1, steps, endpoint=False)[None, :, None]
    a, b, c, d = (p[i : len(p) - 3 + i, None] for i in range(4))
    curve = (b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))).reshape(-1, p.shape[1])
    return curve if closed else np.concatenate([curve, p[-2:-1]])


def _fixed(points: Points) -> np.ndarray:
    """Points for OpenCV's drawing: 4 binary digits after the point; its pixel centres lie on whole numbers."""
    return np.round((np.asarray(points) * SCALE - 0.5) * 16).astype(np.int32)


def _filled(outline: Points) -> Mask:
    mask = np.zeros((SIZE * SCALE,) * 2, np.uint8)
    cv2.fillPoly(mask, [_fixed(outline)], 255, cv2.LINE_AA, 4)
    return mask.astype(np.float32) / 255


def _line(points: Points, width: Number) -> Mask:
    mask = np.zeros((SIZE * SCALE,) * 2, np.uint8)
    cv2.polylines(mask, [_fixed(points)], False, 255, max(1, round(width * SCALE)), cv2.LINE_AA, 4)
    return mask.astype(np.float32) / 255


def _soft(mask: Mask, sigma: Number) -> Mask:
    """Gaussian blur; `sigma` in pixels of the picture."""
    margin = round(3.5 * sigma * SCALE)
    left, top, width, height = cv2.boundingRect((mask > 0).view(np.uint8))
    part = np.s_[max(0, top - margin) : top + height + margin, max(0, left - margin) : left + width + margin]
    soft = np.zeros_like(mask)
    soft[part] = cv2.GaussianBlur(np.ascontiguousarray(mask[part]), (0, 0), sigma * SCALE, borderType=cv2.BORDER_REPLICATE)
    return soft


def _spot(x: Number, y: Number, width: Number, height: Number) -> Mask:
    """A Gaussian spot of peak 1 (widths are standard deviations)."""
    across, down = (np.exp(-0.5 * ((_steps() - at) / sigma) ** 2) for at, sigma in ((x, width), (y, height)))
    return np.outer(down, across)


def _paint(canvas: Canvas, colour: np.ndarray, mask: Mask) -> None:
    """Lays a colour, or a picture of the canvas's size, over the canvas as far as the mask is opaque."""
    left, top, width, height = cv2.boundingRect((mask > 1e-3).view(np.uint8))
    part = np.s_[top : top + height, left : left + width]
    canvas[part] += ((colour[part] if colour.ndim == 3 else colour) - canvas[part]) * mask[part][..., None]


def _disc(x: Number, y: Number, radius: Number, edge: Number = 1.0) -> Mask:
    """A disc whose rim fades over `edge` pixels."""
    grid_x, grid_y = _grid()
    return np.clip((radius - np.hypot(grid_x - x, grid_y - y)) / edge + 0.5, 0, 1)


def _at(x: Number, y: Number, points: Pairs, side: int = 1) -> Points:
    """Moves points to (x, y). side -1 mirrors them: shapes are given for the right half of the picture, where x grows outwards."""
    return np.array(points, float) * (side, 1) + (x, y)


def _mirror(points: Pairs) -> Pairs:
    """The right half of an outline, from the top down, and its left half, back up."""
    return points + [(2 * CENTRE - x, y) for x, y in reversed(points) if x != CENTRE]


def _lit(height: Mask, depth: Number = 1.0) -> tuple[Mask, Mask]:
    """Diffuse light, 0 to 1, and gloss of a height field under a lamp at the upper left."""
    slope_y, slope_x = np.gradient(height * depth, 1 / SCALE)
    normal_z = 1 / np.sqrt(1 + slope_x**2 + slope_y**2)
    lamp = np.array([-0.36, -0.44, 0.82]) / np.linalg.norm([-0.36, -0.44, 0.82])
    facing = (-slope_x * lamp[0] - slope_y * lamp[1] + lamp[2]) * normal_z
    half = (lamp + (0, 0, 1)) / np.linalg.norm(lamp + (0, 0, 1))
    gloss = np.clip((-slope_x * half[0] - slope_y * half[1] + half[2]) * normal_z, 0, 1) ** 28
    return np.clip((facing + 0.35) / 1.35, 0, 1).astype(np.float32), gloss.astype(np.float32)


def _skin_tone(person: Person, light: Mask, gloss: Mask) -> Canvas:
    """Skin from shade to light: shadows go warm and saturated, lights pale."""
    skin = _rgb(person.skin)
    dark, pale = skin * (0.50, 0.36, 0.33), skin + (1 - skin) * (0.34, 0.30, 0.26)
    stops = np.array([0.0, 0.42, 0.78, 1.0])
    tones = np.stack([dark, skin * (0.80, 0.70, 0.66), skin, pale])
    tone = np.stack([np.interp(light, stops, tones[:, i]) for i in range(3)], axis=2)
    return (tone + 0.13 * gloss[..., None] * np.array([1.0, 0.95, 0.88])).astype(np.float32)


# Parts


def _wall(person: Person) -> Canvas:
    x, y = _grid()
    near = np.exp(-(((x - 190) / 300) ** 2 + ((y - 170) / 330) ** 2))[..., None]
    wall = _rgb(person.wall)
    return (wall * 0.62 + (wall * 0.55 + 0.45 - wall * 0.62) * near).astype(np.float32)


def _face_outline(person: Person) -> Points:
    c, j, y = person.cheek_width, person.jaw_width, person.chin_y
    right = [(0, 96), (46, 104), (c * 0.86, 142), (c * 0.985, 190), (c, 236), (c * 0.955, 278), (j * 1.13, 310), (j * 0.94, 337)]
    right += [(j * 0.66, y - 22), (j * 0.36, y - 5), (0, y)]
    return _spline(_mirror([(CENTRE + x, float(h)) for x, h in right]), closed=True)


def _neck_and_shirt(canvas: Canvas, person: Person) -> None:
    x, y = _grid()
    wide = person.jaw_width * 0.86
    neck = [(CENTRE + wide, 330), (CENTRE + wide * 0.98, 382), (CENTRE + wide * 1.12, 418), (CENTRE + wide * 1.9, 452), (CENTRE + wide * 1.9, 522)]
    neck = neck[:2] + [(CENTRE + wide, 452)] if person.collar == "roll" else neck
    neck = _filled(np.array(neck + [(2 * CENTRE - a, b) for a, b in reversed(neck)]))
    round_neck = np.sqrt(np.clip(1 - ((x - CENTRE) / (wide * 1.55)) ** 2, 0, 1)) * wide
    round_neck += 5 * _spot(CENTRE - 22, 452, 8, 30) + 5 * _spot(CENTRE + 22, 452, 8, 30)
    light, gloss = _lit(round_neck)
    tone = _skin_tone(person, light * 0.92, gloss * 0.3)
    shadow = _soft(_filled(_face_outline(person) * (0.92, 1) + (CENTRE * 0.08 + 8, 24)), 9)
    tone *= 1 - shadow[..., None] * np.array([0.42, 0.50, 0.50], np.float32)
    _paint(canvas, tone, neck)

    shoulders = [(CENTRE + 62, 410), (CENTRE + 96, 426), (CENTRE + 150, 444), (CENTRE + 200, 470), (CENTRE + 232, 510), (CENTRE + 240, 560)]
    dip = {"crew": 456, "shirt": 494, "roll": 412}[person.collar]
    opening = [(CENTRE + 60, 411), (CENTRE + 50, 411 + (dip - 411) * 0.52), (CENTRE + 28, 411 + (dip - 411) * 0.88), (CENTRE, dip)]
    if person.collar == "shirt":
        opening = [(CENTRE + 54, 412), (CENTRE + 24, 472), (CENTRE, 504)]
    inner = _spline(_mirror(opening))
    outer = _spline([(2 * CENTRE - a, b) for a, b in shoulders])[::-1]
    shirt = _filled(np.concatenate([_spline(shoulders), outer, inner[::-1]]))
    bulge = 90 * np.sqrt(np.clip(1 - ((x - CENTRE) / 268) ** 2, 0.02, 1)) + 0.34 * np.clip(y - 412, 0, None)
    for px, py, tilt in ((150, 482, 0.5), (205, 502, -0.25), (360, 487, -0.5), (300, 507, 0.3)):
        along = (x - px) * np.cos(tilt) + (y - py) * np.sin(tilt)
        across = -(x - px) * np.sin(tilt) + (y - py) * np.cos(tilt)
        bulge = bulge + 4.0 * np.exp(-0.5 * ((along / 9) ** 2 + (across / 34) ** 2))
    light, _ = _lit(bulge)
    cloth = _rgb(person.shirt)
    tone = cloth * 0.42 + (np.minimum(cloth * 1.12 + 0.03, 1) - cloth * 0.42) * light[..., None]
    _paint(canvas, tone * (1 - 0.3 * _spot(CENTRE + 8, 410, 62, 26)[..., None]), shirt)

    if person.collar == "crew":
        _band(canvas, inner, cloth, 9)
    elif person.collar == "roll":
        _roll_collar(canvas, cloth)
    else:
        _shirt_collar(canvas, cloth)


def _band(canvas: Canvas, curve: Points, cloth: np.ndarray, width: Number) -> None:
    """The knitted edge of a neckline, with its shadow."""
    band = _line(curve + (0, width / 2), width)
    _paint(canvas, cloth * 0.3, _soft(_line(curve + (0, width + 2), 4), 2.5) * 0.45)
    shade = np.clip(1.0 - 0.5 * (_grid()[0] - 190) / 190, 0.55, 1.1)[..., None]
    _paint(canvas, cloth * 1.04 * shade, band)
    _paint(canvas, cloth * 0.45, _soft(_line(curve, 1.2), 0.6) * 0.7)


def _roll_collar(canvas: Canvas, cloth: np.ndarray) -> None:
    x, y = _grid()
    roll = [(CENTRE + 58, 380), (CENTRE + 63, 402), (CENTRE + 66, 430), (CENTRE + 44, 446), (CENTRE, 452)]
    top = [(CENTRE - 30, 393), (CENTRE, 398), (CENTRE + 30, 393)]
    outline = np.concatenate([_spline(_mirror(roll)), _spline(top)])
    mask = _filled(outline)
    light, _ = _lit(62 * np.sqrt(np.clip(1 - ((x - CENTRE) / 74) ** 2, 0.02, 1)) + 7 * np.sin(np.clip((y - 387) / 60, 0, 1) * np.pi))
    ribs = 0.95 + 0.05 * np.cos((x - CENTRE) * 1.15)
    tone = (cloth * 0.40 + (np.minimum(cloth * 1.14, 1) - cloth * 0.40) * light[..., None]) * ribs[..., None]
    _paint(canvas, cloth * 0.25, _soft(_filled(outline + (3, 7)), 5) * 0.5)
    chin_shadow = 0.42 * _spot(CENTRE + 6, 384, 46, 12)
    _paint(canvas, tone * (1 - chin_shadow[..., None]), mask)
    _paint(canvas, cloth * 0.35, _soft(_line(_spline([(CENTRE - 64, 428), (CENTRE - 30, 438), (CENTRE + 30, 438), (CENTRE + 64, 428)]), 1.5), 1) * 0.45)


def _shirt_collar(canvas: Canvas, cloth: np.ndarray) -> None:
    for side in (-1, 1):
        leaf = _at(CENTRE, 0, [(54, 402), (63, 418), (76, 452), (40, 484), (24, 498), (34, 452), (46, 422)], side)
        _paint(canvas, cloth * 0.2, _soft(_filled(leaf + (2, 6)), 4) * 0.55)
        _paint(canvas, np.minimum(cloth * (1.22 if side < 0 else 0.92) + 0.02, 1), _filled(leaf))
        _paint(canvas, cloth * 0.5, _soft(_line(leaf[2:5] - (side * 3, 3), 0.8), 0.4) * 0.5)
    _paint(canvas, cloth * 0.45, _soft(_line(np.array([(CENTRE, 498), (CENTRE, 522)]), 1.2), 0.6))


def _ears(canvas: Canvas, person: Person) -> None:
    if person.hairstyle == "bob":  # it covers them
        return
    skin = _rgb(person.skin)
    for side in (-1, 1):
        edge = CENTRE + side * person.cheek_width
        outline = _filled(_spline(_at(edge, 0, [(-6, 222), (8, 215), (15, 226), (13, 248), (8, 268), (0, 282), (-8, 276)], side), closed=True))
        light, gloss = _lit(_soft(outline, 4) * 22)
        _paint(canvas, _skin_tone(person, light * (0.92 if side < 0 else 0.62), gloss * 0.4), outline)
        hollow = _spline(_at(edge, 0, [(1, 228), (9, 229), (9, 244), (4, 256), (5, 266)], side))
        _paint(canvas, skin * (0.50, 0.33, 0.30), _soft(_line(hollow, 3.5), 1.8) * outline * 0.65)
        if person.earrings:
            x, y = edge + side * 5, 277
            bead = _disc(x, y, 3.2)
            _paint(canvas, skin * 0.3, _spot(x + 1, y + 2, 3, 3) * 0.5)
            _paint(canvas, np.array([0.80, 0.60, 0.24]), bead)
            _paint(canvas, np.array([1.0, 0.95, 0.78]), _spot(x - 1, y - 1, 1.0, 1.0) * bead)


def _head_height(person: Person) -> Mask:
    """The face as a height field in pixels."""
    x, y = _grid()
    c = CENTRE
    middle = (96 + person.chin_y) / 2 + 4
    height = 96 * np.sqrt(np.clip(1 - (np.abs(x - c) / (person.cheek_width * 1.2)) ** 2.3 - (np.abs(y - middle) / 178) ** 2.4, 0.015, 1))
    tip = person.nose_y
    below = np.where(y > tip - 5, 7.5, 30.0)
    height += 17 * np.exp(-0.5 * (((x - c) / (person.nose_width * 0.78)) ** 2 + ((y - tip + 5) / below) ** 2))
    height += 5 * _spot(c, 248, 11, 20)
    for side in (-1, 1):
        eye = c + side * person.eye_x
        height += 5.5 * _spot(c + side * person.nose_width, tip - 1, 7, 6.5)
        height -= 8 * _spot(eye - side * 2, EYE_Y - 6, 22, 11)
        height += 6.5 * _spot(eye, EYE_Y, 16, 10)
        height += 3.0 * _spot(eye + side * 4, EYE_Y - 31, 30, 9)
        height += 6.5 * _spot(c + side * 55, 284, 25, 20)
        height -= 2.6 * _spot(c + side * 62, 330, 16, 24)
        height -= 2.2 * _spot(c + side * (person.mouth_width + 6), person.mouth_y - 4, 5, 6)
    height += 7 * _spot(c, person.mouth_y + 1, person.mouth_width * 0.9, 16)
    height -= 2.6 * _spot(c, tip + 14, 5, 8)
    height -= 4 * _spot(c, person.mouth_y + 23, 24, 7)
    height += 7 * _spot(c, person.chin_y - 19, 22, 14)
    return height.astype(np.float32)


def _head(canvas: Canvas, person: Person, rng: np.random.Generator) -> None:
    outline = _face_outline(person)
    mask = _filled(outline)
    height = _soft(_head_height(person), 2.6)
    light, gloss = _lit(height, 0.86)
    hollow = np.clip((_soft(height, 9) - height) / 10, 0, 1)  # corners that light hardly reaches
    tone = _skin_tone(person, light * (1 - 0.35 * hollow), gloss)

    blush = np.zeros_like(mask)
    for side in (-1, 1):
        blush += 0.20 * _spot(CENTRE + side * 58, 292, 24, 17)
    blush += 0.13 * _spot(CENTRE, person.nose_y - 4, 15, 11) + 0.07 * _spot(CENTRE, person.chin_y - 14, 20, 12)
    _paint(tone, _rgb(person.skin) * (1.0, 0.66, 0.62), blush)
    tip, wing = person.nose_y, person.nose_width
    shadow = 0.26 * _spot(CENTRE + 3, tip + 8, wing * 0.85, 4.5)
    for side in (-1, 1):
        nostril = np.array([(4, 4.5), (8, 1.8), (12.5, 3.2), (11, 6), (7, 6.6)]) * (side * wing / 16, 1) + (CENTRE, tip)
        shadow = np.maximum(shadow, 0.80 * _soft(_filled(_spline(nostril, closed=True)), 1.1))
        crease = _at(CENTRE, tip, [(wing + 4, -9), (wing + 6.5, -1), (wing + 3, 6)], side)
        shadow = np.maximum(shadow, 0.34 * _soft(_line(_spline(crease), 1.8), 1.5))
        fold = _at(CENTRE, tip, [(wing + 9, 4), (wing + 17, 18), (wing + 22, 33)], side)
        shadow = np.maximum(shadow, 0.13 * _soft(_line(_spline(fold), 3), 3))
    _paint(tone, _rgb(person.skin) * (0.36, 0.20, 0.18), shadow)
    if person.stubble:
        _stubble(tone, person, rng)
    spots = np.zeros_like(mask)
    for x, y in np.stack([rng.normal(0, 40, person.freckles), rng.normal(277, 13, person.freckles)], axis=1):
        radius = rng.uniform(0.5, 1.1)
        dot = (round((CENTRE + x) * SCALE * 16), round(y * SCALE * 16))
        cv2.circle(spots, dot, round(radius * SCALE * 16), rng.uniform(0.15, 0.4), -1, cv2.LINE_AA, 4)
    _paint(tone, _rgb(person.skin) * (0.74, 0.52, 0.40), _soft(spots, 0.5))
    rim = mask - _soft(mask, 5)  # a soft edge all round keeps the cheek from looking cut out
    tone *= 1 - 0.30 * np.clip(rim, 0, 1)[..., None]
    _paint(canvas, tone, mask)


def _stubble(tone: Canvas, person: Person, rng: np.random.Generator) -> None:
    x, y = _grid()
    jaw = 1 / (1 + np.exp(-(y - 318 - 0.0042 * (person.cheek_width - np.abs(x - CENTRE)) ** 2 * 0.55) / 7))
    beard = np.clip(jaw + 0.7 * _spot(CENTRE, person.mouth_y - 14, 24, 5), 0, 1) * (1 - _spot(CENTRE, person.mouth_y, 30, 8))
    speckle = cv2.GaussianBlur(rng.random(x.shape, dtype=np.float32), (0, 0), 1.1)
    speckle = np.clip(0.62 + (speckle - 0.5) * 2.4, 0, 1)
    _paint(tone, _rgb(person.hair) * 0.8 + _rgb(person.skin) * 0.22, beard * speckle * 0.62 * person.stubble)


def _eye(canvas: Canvas, person: Person, side: int) -> None:
    """side -1 is the eye at the left of the picture."""
    eye_x, lift = CENTRE + side * person.eye_x, person.eye_open
    upper = _spline(_at(eye_x, EYE_Y, [(-21, 3.5), (-14, -0.52 * lift), (-3, -lift), (10, -0.82 * lift), (21.5, -0.8)], side))
    lower = _spline(_at(eye_x, EYE_Y, [(21.5, -0.8), (13, 5.2), (1, 7.2), (-12, 5.6), (-21, 3.5)], side))
    opening = _filled(np.concatenate([upper, lower]))
    x, y = _grid()

    lid_shadow = _soft(_line(upper - (0, 2.5), 5), 3.2)
    _paint(canvas, _rgb(person.skin) * (0.52, 0.36, 0.34), lid_shadow * 0.45)
    ball = np.exp(-0.5 * (((x - eye_x + 3) / 19) ** 2 + ((y - EYE_Y) / 14) ** 2))[..., None]
    white = np.array([0.66, 0.60, 0.60]) + np.array([0.28, 0.32, 0.31]) * ball
    _paint(canvas, white, opening)

    radius = np.hypot(x - eye_x, y - EYE_Y + 0.8)
    spokes = 0.88 + 0.12 * np.cos(np.arctan2(y - EYE_Y, x - eye_x) * 23 + np.sin(radius * 2))
    iris_colour = _rgb(person.iris)
    glow = np.clip((y - EYE_Y + 6) / 14, 0, 1)[..., None]  # light gathers at the lower half
    iris = iris_colour * (0.62 + 0.75 * glow) * spokes[..., None] * np.clip(1.75 - radius / 9, 0.55, 1)[..., None] + 0.06 * glow
    _paint(canvas, iris, _disc(eye_x, EYE_Y - 0.8, 10.2, 1.6) * opening)
    _paint(canvas, np.full(3, 0.03), _disc(eye_x, EYE_Y - 0.8, 4.5, 1.2) * opening)
    _paint(canvas, np.array([0.16, 0.10, 0.10]), _soft(_line(upper, 4.5), 2.4) * opening * 0.85)
    glints = _disc(eye_x - 3.4, EYE_Y - 3.6, 2.3) + 0.55 * _disc(eye_x + 3.6, EYE_Y + 3.6, 1.1)
    _paint(canvas, np.ones(3), glints * opening)
    _paint(canvas, _rgb(person.lips) * 0.9 + 0.1, _spot(eye_x - side * 19, EYE_Y + 3.4, 2.6, 1.8) * opening * 0.8)

    lash = np.array([0.10, 0.07, 0.07])
    thick = np.interp(np.linspace(0, 1, len(upper)), [0, 0.3, 0.8, 1], [0.5, 1.3, 2.0, 1.0]) * (0.75 + 0.35 * person.lashes)
    rim = np.concatenate([upper, (upper - np.stack([-side * thick * 0.25, thick], axis=1))[::-1]])
    _paint(canvas, lash, np.maximum(_filled(rim), _line(upper, 1.0)) * 0.95)
    for position in np.linspace(0.34, 0.99, 13):
        root = upper[round(position * (len(upper) - 1))]
        length = (2.0 + 3.4 * position) * person.lashes
        tip = root + np.array([side * (0.15 + 0.75 * (position - 0.3)) * length, -length])
        _paint(canvas, lash, _line(np.array([root, (root + tip) / 2 + (side * 0.4, 0.5), tip]), 0.5) * 0.55)
    crease = _spline(_at(eye_x, EYE_Y, [(-18, -3), (-11, -lift * 0.62 - 5.2), (0, -lift - 5.6), (13, -lift * 0.8 - 5.4), (23, -5.2)], side))
    _paint(canvas, _rgb(person.skin) * (0.42, 0.27, 0.25), _soft(_line(crease, 1.3), 0.9) * 0.55)
    _paint(canvas, _rgb(person.skin) * (0.45, 0.28, 0.27), _soft(_line(lower, 1.0), 0.7) * 0.5)
    bag = _spline(_at(eye_x, EYE_Y, [(-15, 11), (-3, 14.5), (11, 13)], side))
    _paint(canvas, _rgb(person.skin) * (0.6, 0.44, 0.42), _soft(_line(bag, 2), 2.2) * 0.20)


def _brow(canvas: Canvas, person: Person, side: int, rng: np.random.Generator) -> None:
    eye_x = CENTRE + side * person.eye_x
    weight = person.brow_weight
    low = _spline(_at(eye_x, EYE_Y, [(-23, -25.5), (-8, -28.5), (10, -29.5), (29, -20.5)], side))
    high = _spline(_at(eye_x, EYE_Y, [(-21.5, -26 - weight), (-6, -29 - weight), (11, -30.3 - weight * 0.85), (29.5, -20.8)], side))
    colour = _rgb(person.hair) * 0.9
    inner_end = np.clip((side * (_steps() - eye_x) + 25) / 10, 0.1, 1)  # it begins thin
    _paint(canvas, colour, _soft(_filled(np.concatenate([low, high[::-1]])), 1.6) * inner_end * 0.55)
    strokes = np.zeros((SIZE * SCALE,) * 2, np.uint8)
    for _ in range(150):
        u, t = rng.random() ** 0.9, rng.random()
        i = min(int(u * (len(low) - 1)), len(low) - 1)
        root = low[i] * (1 - t) + high[i] * t
        lean = np.array([side * (0.25 + 1.1 * u), -0.80 + 0.95 * u + 0.3 * t])
        tip = root + lean * rng.uniform(3.5, 6.0) * (1.1 - 0.35 * u)
        cv2.polylines(strokes, [_fixed(np.array([root, tip]))], False, 150, 1, cv2.LINE_AA, 4)
    _paint(canvas, colour * 0.75, strokes.astype(np.float32) / 255 * 0.8)


def _mouth(canvas: Canvas, person: Person) -> None:
    w, h, y0, up = person.mouth_width, person.lip_height, person.mouth_y, -person.smile
    seam = _spline(_at(CENTRE, y0, [(-w, up), (-w * 0.6, 0.9), (-6, 1.6), (0, 2.4), (6, 1.6), (w * 0.6, 0.9), (w, up)]))
    bow = [(-w, up), (-w * 0.55, -h * 0.52 + up * 0.4), (-6, -h * 0.92), (0, -h * 0.68), (6, -h * 0.92), (w * 0.55, -h * 0.52 + up * 0.4), (w, up)]
    bottom = [(w, up), (w * 0.68, h * 0.72), (w * 0.34, h * 1.24), (0, h * 1.38), (-w * 0.34, h * 1.24), (-w * 0.68, h * 0.72), (-w, up)]
    upper = _filled(np.concatenate([_spline(_at(CENTRE, y0, bow)), seam[::-1]]))
    lower = _filled(np.concatenate([seam, _spline(_at(CENTRE, y0, bottom))]))
    lips = _rgb(person.lips)
    _paint(canvas, _rgb(person.skin) * (0.5, 0.35, 0.33), _soft(_spot(CENTRE + 2, y0 + h * 1.38 + 6, w * 0.42, 3.0), 1) * 0.30)
    _paint(canvas, lips * 0.82, _soft(upper, 0.7) * 0.84)
    _paint(canvas, lips * 1.02, _soft(lower, 0.7) * 0.82)
    both = np.clip(upper + lower, 0, 1)
    _paint(canvas, lips * 0.5, both * _spot(CENTRE + w * 1.05, y0, w * 0.5, h) * 0.35)
    _paint(canvas, lips * 0.5, _soft(lower * _spot(CENTRE, y0 + h * 1.5, w * 0.9, h * 0.35), 1) * 0.40)
    _paint(canvas, np.minimum(lips * 1.1 + 0.30, 1), _soft(lower, 1) * _spot(CENTRE - 4, y0 + h * 0.66, w * 0.30, h * 0.20) * 0.55)
    _paint(canvas, np.minimum(lips + 0.22, 1), upper * _spot(CENTRE - 6, y0 - h * 0.62, w * 0.2, h * 0.16) * 0.40)
    _paint(canvas, lips * 0.28, _soft(_line(seam, 1.3), 0.6) * 0.90)
    for side in (-1, 1):
        _paint(canvas, lips * 0.35, _spot(CENTRE + side * (w + 0.5), y0 + up, 2.4, 2.0) * 0.55)


# Hair


def _lock(
    canvas: Canvas,
    person: Person,
    rng: np.random.Generator,
    guides: list[Pairs],
    strands: int,
    light: Number = 1.0,
    shine_at: Number = 0.35,
    shadow: Number = 0.5,
    fray: Number = 0.1,
    ragged: Number = 0.0,
    widest: int = 3,
) -> None:
    """Hair that fills the band between the guide curves (of as many points each), its strands running along them.

    `fray` and `ragged` are the parts of a strand's length by which ends and roots vary.
    """
    side = SIZE * SCALE
    curves = np.stack([_spline(guide, steps=8) for guide in guides])
    count, steps = len(curves), curves.shape[1]
    band = _spline(curves.reshape(count, -1), steps=16).reshape(-1, steps, 2)
    full = band[:, round(steps * ragged) : max(2, round(steps * (1 - fray)))]
    cover = (_filled(np.concatenate([full[0], full[1:-1, -1], full[-1, ::-1], full[-2:0:-1, 0]])) * 255).astype(np.uint8)

    u = np.linspace(0, 1, steps)
    t = rng.random((strands, 1))
    place = t[:, 0] * (len(band) - 1)
    low = np.minimum(place.astype(int), len(band) - 2)
    path = band[low] + (band[low + 1] - band[low]) * (place - low)[:, None, None]
    wave = rng.normal(0, 1.0, (strands, 1)) + rng.normal(0, 1.8, (strands, 1)) * np.sin(u * np.pi * rng.uniform(1, 3, (strands, 1)) + 6 * t)
    along = np.gradient(path, axis=1)
    normal = np.stack([-along[..., 1], along[..., 0]], axis=2) / (np.linalg.norm(along, axis=2, keepdims=True) + 1e-6)
    path = path + normal * (wave * (0.15 + 0.85 * u))[..., None]

    hair, shine = _rgb(person.hair), _rgb(person.shine)
    clumps = rng.uniform(0.78, 1.12, 4 * count + 12)
    tint = clumps[(t * (len(clumps) - 1)).astype(int)] * rng.uniform(0.82, 1.14, t.shape)
    volume = (0.66 + 0.44 * np.sin(np.pi * np.clip(t, 0.03, 0.97)) ** 0.8) * tint * light
    gleam = np.exp(-(((u - shine_at - 0.05 * np.sin(9 * t)) / 0.16) ** 2)) * rng.uniform(0.2, 0.7, t.shape)
    colours = hair * volume[..., None] * (1 - gleam[..., None]) + shine * light * gleam[..., None]
    ends = rng.integers(max(2, round(steps * (1 - 1.6 * fray))), steps, strands) if fray else np.full(strands, steps - 1)
    starts = rng.integers(0, round(steps * ragged * 1.5) + 1, strands)
    widths = rng.integers(1, widest + 1, strands)

    layer = np.ascontiguousarray(np.broadcast_to((hair * 0.6 * light * 255).astype(np.uint8), (side, side, 3)))
    fixed, inks = _fixed(path), np.clip(colours * 255, 0, 255).tolist()
    for k in range(strands):
        for i in range(starts[k], ends[k]):
            cv2.line(layer, fixed[k, i], fixed[k, i + 1], inks[k][i], int(widths[k]), cv2.LINE_AA, 4)
        cv2.polylines(cover, [fixed[k, starts[k] : ends[k] + 1]], False, 255, int(widths[k]), cv2.LINE_AA, 4)
    opacity = cover.astype(np.float32) / 255
    if shadow:
        _paint(canvas, hair * 0.25, _soft(np.roll(opacity, (3 * SCALE, 2 * SCALE), (0, 1)), 4.5) * shadow)
    _paint(canvas, layer.astype(np.float32) / 255, opacity)


def _hair_behind(canvas: Canvas, person: Person, rng: np.random.Generator) -> None:
    c = CENTRE
    if person.hairstyle == "bob":
        for side in (-1, 1):
            outer = [(c, 60), (c + side * 90, 92), (c + side * 126, 190), (c + side * 130, 290), (c + side * 124, 360), (c + side * 96, 408)]
            inner = [(c, 120), (c + side * 30, 150), (c + side * 46, 220), (c + side * 44, 300), (c + side * 44, 360), (c + side * 44, 396)]
            _lock(canvas, person, rng, [outer, inner], 260, light=0.60 if side < 0 else 0.46, shine_at=2, shadow=0.2, fray=0.05)
    elif person.hairstyle == "curls":
        _curls(canvas, person, rng, [(c, 156, 128, 116)], 900, 0.75)


def _hair_in_front(canvas: Canvas, person: Person, rng: np.random.Generator) -> None:
    c = CENTRE
    if person.hairstyle == "bob":
        part = c + 36  # the parting lies a little to the right
        right = [(part - 16, 57), (c + 84, 80), (c + 114, 130), (c + 127, 214), (c + 130, 300), (c + 122, 360), (c + 84, 404)]
        inner = [(part, 120), (c + 64, 135), (c + 83, 170), (c + 94, 226), (c + 93, 300), (c + 86, 350), (c + 62, 382)]
        _lock(canvas, person, rng, [right, inner], 340, light=0.86, shine_at=0.30)
        left = [(part - 16, 57), (c - 50, 66), (c - 106, 116), (c - 126, 210), (c - 131, 300), (c - 124, 360), (c - 86, 406)]
        middle = [(part - 9, 86), (c - 30, 92), (c - 88, 140), (c - 112, 216), (c - 114, 300), (c - 108, 356), (c - 72, 396)]
        inner = [(part, 122), (c - 14, 137), (c - 70, 171), (c - 93, 222), (c - 94, 300), (c - 88, 350), (c - 62, 384)]
        _lock(canvas, person, rng, [left, middle, inner], 480, shine_at=0.30)
    elif person.hairstyle == "crop":
        roots = [(-94, 236), (-92, 196), (-81, 164), (-46, 153), (-4, 147), (40, 150), (79, 161), (92, 194), (95, 236)]
        tips = [(-101, 196), (-105, 160), (-101, 116), (-72, 84), (-18, 67), (38, 68), (84, 90), (105, 130), (102, 192)]
        guides = []
        for (x0, y0), (x1, y1) in zip(roots, tips, strict=True):
            sweep = 12 * np.clip((170 - y0) / 40, 0, 1)
            between = [(x0 + (x1 - x0) * f - sweep * g, y0 + (y1 - y0) * f) for f, g in ((0.0, 0.0), (0.35, 0.9), (0.7, 0.8), (1.0, -0.6))]
            guides.append([(c + x, y) for x, y in between])
        _lock(canvas, person, rng, guides, 2200, shine_at=0.45, shadow=0.35, fray=0.03, ragged=0.10, widest=2)
    elif person.hairstyle == "curls":
        ring = [(c + 110 * np.cos(a), 176 - 82 * np.sin(a), 22, 22) for a in np.linspace(-0.12, np.pi + 0.12, 20)]
        _curls(canvas, person, rng, ring, 620, 1.0)


def _curls(canvas: Canvas, person: Person, rng: np.random.Generator, ellipses: Pairs, count: int, light: Number) -> None:
    """Small coils spread over ellipses (x, y, half width, half height), lit from the upper left."""
    side = SIZE * SCALE
    hair, shine = _rgb(person.hair), _rgb(person.shine)
    layer = np.ascontiguousarray(np.broadcast_to((hair * 0.5 * light * 255).astype(np.uint8), (side, side, 3)))
    cover = np.zeros((side, side), np.uint8)
    for x, y, w, h in ellipses:
        cv2.ellipse(cover, (round(x * SCALE), round(y * SCALE)), (round((w - 5) * SCALE), round((h - 5) * SCALE)), 0, 0, 360, 255, -1, cv2.LINE_AA)
    for _ in range(count):
        x, y, w, h = ellipses[rng.integers(len(ellipses))]
        angle, reach = rng.uniform(0, 2 * np.pi), np.sqrt(rng.random())
        px, py = x + w * reach * np.cos(angle), y + h * reach * np.sin(angle)
        bright = np.clip(0.75 - 0.0030 * (px - CENTRE + 40) - 0.0034 * (py - 130), 0.3, 1.25) * rng.uniform(0.75, 1.2) * light
        turn, start = rng.uniform(0, 360), rng.uniform(0, 360)
        for ring in range(3):
            axes = (round((6.5 - 1.6 * ring) * SCALE), round((4.8 - 1.3 * ring) * SCALE))
            colour = hair * bright * (0.7 + 0.25 * ring) + shine * 0.20 * bright * ring
            args = (round(px * SCALE), round(py * SCALE)), axes, turn, start, start + 290, tuple(np.clip(colour * 255, 0, 255).tolist())
            cv2.ellipse(layer, *args, 3, cv2.LINE_AA)
        cv2.ellipse(cover, (round(px * SCALE), round(py * SCALE)), (round(6.5 * SCALE), round(4.8 * SCALE)), turn, 0, 360, 255, -1, cv2.LINE_AA)
    _paint(canvas, hair * 0.3, _soft(cover.astype(np.float32) / 255, 5) * 0.4)
    _paint(canvas, layer.astype(np.float32) / 255, (cover.astype(np.float32) / 255))


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw a portrait of a person who does not exist.")
    parser.add_argument("out", type=Path, metavar="OUT.png")
    parser.add_argument("--person", choices=sorted(PEOPLE), default="ada")
    args = parser.parse_args()
    Image.fromarray(draw_face(PEOPLE[args.person])).save(args.out, optimize=True)


if __name__ == "__main__":
    main()
