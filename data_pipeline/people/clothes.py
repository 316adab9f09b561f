"""Neck, shoulders and clothes, painted flat on the canvas: the body does not turn as the head does.

Places are in head units from where the head sits on the neck.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float, Float32

from data_pipeline.people.attributes import Picture, rgb
from data_pipeline.people.identity import Person
from data_pipeline.people.light import Shading
from data_pipeline.people.surface import Number, Sheet, View, mirrored, spline, times

DIP = {"t-shirt": 1.20, "shirt": 1.55, "hoodie": 1.24, "sweater": 1.10, "jacket": 1.9, "striped shirt": 1.18, "turtleneck": 0.84}  # of the neckline, y


@dataclass(frozen=True)
class Body:
    """What all garments share."""

    sheet: Sheet
    person: Person
    shading: Shading
    turn: float  # x of the middle of the breast, which turns a little with the head
    slope: float  # of the shoulders
    reach: Float32[np.ndarray, "h w"]  # light
    cloth: Float32[np.ndarray, "3 h w"]  # what a white cloth would look like
    outline: Float[np.ndarray, "n 2"]  # from the right side of the neck over both shoulders to the left side

    def wear(self, colour, mask, pattern=None) -> None:
        """Paints cloth; `pattern` makes it darker or lighter."""
        tone = self.cloth if pattern is None else self.cloth * pattern
        self.sheet.paint(times(np.minimum(colour * 0.94 + 0.015, 1), tone), mask)

    def shadow(self, colour, mask, strength: Number) -> None:
        self.sheet.paint(colour * 0.25, mask, strength)

    def neckline(self, width: Number, low: Number, sharp: bool = False) -> Float[np.ndarray, "n 2"]:
        """From the right side of the neck down to `low` and up to the left side; round, or pointed if `sharp`."""
        points = [(width, 0.78), (width * 0.92, 0.80 + (low - 0.80) * 0.45), (width * 0.50, 0.80 + (low - 0.80) * 0.90), (0, low)]
        if sharp:
            points = [(width, 0.78), (width * 0.55, 0.78 + (low - 0.78) * 0.5), (0, low)]
        curve = points + [(-x, y) for x, y in reversed(points[:-1])]
        return (np.array(curve) if sharp else spline(curve)) + (self.turn, 0)

    def below(self, edge: Float[np.ndarray, "n 2"]) -> Float32[np.ndarray, "h w"]:
        """All of the body under a neckline."""
        return self.sheet.fill(np.concatenate([self.outline, edge[::-1]]))


def draw_body(canvas: Float32[np.ndarray, "3 H W"], person: Person, picture: Picture, view: View, shading: Shading, rng: np.random.Generator) -> None:
    sheet = Sheet(canvas, view.scale, -view.origin[0] / view.scale, -view.origin[1] / view.scale)
    sheet = sheet.window(-3.2, -0.7, 3.2, 9.0)
    if sheet.size[0] < 8 or sheet.size[1] < 8:
        return
    turn = 0.006 * picture.yaw
    top = float((view(np.array([[0.0, 0.40, -0.50]]))[0, 0] - view.origin[0]) / view.scale)
    _neck(sheet, person, view, shading, top, turn)

    neck, wide = person.neck, person.shoulders
    slope = 0.10 if person.gender == "man" else 0.16
    right = [(neck * 1.06, 0.74), (neck * 1.40, 0.90), (wide * 0.58, 1.04 + slope * 0.6), (wide * 0.82, 1.20 + slope), (wide * 0.96, 1.48 + slope)]
    right = np.array([*right, (wide * 1.04, 2.0), (wide * 1.09, 2.7), (wide * 1.12, 3.4)])
    left = (right * (-1, 1))[::-1]
    right[:2, 0] += turn
    left[-2:, 0] += turn
    outline = np.concatenate([spline(right), [(wide * 1.2, 9.0), (-wide * 1.2, 9.0)], spline(left)])
    reach = _light(sheet, shading, wide, turn, rng)
    body = Body(sheet, person, shading, turn, slope, reach, shading.tone(shading.plain, reach), outline)
    colour = rgb(picture.colour)
    if picture.clothing == "suit":
        _suit(body, picture, colour)
    elif picture.clothing == "tank top":
        _tank_top(body, colour)
    else:
        if picture.clothing == "hoodie":
            _hood(body, colour, top)
        _pullover(body, picture, colour, rng)
    if picture.headwear == "headscarf":  # it is wound around the neck
        _roll(body, rgb(picture.headwear_colour))


def _suit(body: Body, picture: Picture, colour) -> None:
    sheet, turn, neck, low = body.sheet, body.turn, body.person.neck, 2.3
    shirt = rgb("white") if picture.colour != "white" else np.minimum(rgb("blue") * 1.3, 1)
    body.wear(shirt, body.below(body.neckline(neck * 0.92, 1.02, sharp=True)))
    tie = rgb("red") if picture.colour in ("blue", "black", "grey", "teal", "green") else rgb("black")
    knot = np.array([(-0.12, 0.98), (0.12, 0.98), (0.085, 1.17), (-0.085, 1.17)]) + (turn, 0)
    blade = np.array([(-0.085, 1.17), (0.085, 1.17), (0.20, 2.6), (-0.20, 2.6)]) + (turn, 0)
    body.wear(tie, sheet.fill(blade))
    body.wear(tie * 1.15, sheet.fill(knot))
    body.shadow(tie, sheet.line(knot[2:4], width=0.02, soft=0.01), 0.7)
    for side in (-1, 1):
        leaf = mirrored([(neck * 0.86, 0.72), (neck * 1.05, 0.90), (0.38, 1.24), (0.06, 1.00)], side, turn)
        body.shadow(shirt, sheet.fill(leaf + (0, 0.03), soft=0.03), 0.35)
        body.wear(np.minimum(shirt * 1.05, 1), sheet.fill(leaf))
    cloth = colour * (0.62 if picture.colour not in ("white", "yellow", "pink") else 0.95)
    edge = np.array([(-neck * 1.12, 0.80), (-0.06, low), (0.06, low), (neck * 1.12, 0.80)])[::-1] + (turn, 0)
    jacket = body.below(edge)
    body.shadow(cloth, sheet.blur(jacket, 0.03) * (1 - jacket), 0.4)
    body.wear(cloth, jacket)
    for side in (-1, 1):
        lapel = mirrored([(neck * 1.12, 0.80), (neck * 1.45, 1.0), (0.95, 1.36), (0.78, 1.48), (0.88, 1.58), (0.06, low + 0.1)], side, turn)
        body.shadow(cloth, sheet.fill(lapel + (side * 0.03, 0.04), soft=0.04), 0.5)
        body.wear(cloth * (1.18 if side * body.shading.lamp[0] > 0 else 1.02), sheet.fill(lapel))


def _tank_top(body: Body, colour) -> None:
    sheet, turn, slope, wide = body.sheet, body.turn, body.slope, body.person.shoulders
    skin = np.array(body.person.skin, np.float32)
    shoulders = sheet.fill(body.outline) * np.clip((sheet.y - 0.80) / 0.28, 0, 1)  # goes over into the neck
    sheet.paint(times(skin, body.shading.tone(body.shading.skin, body.reach * np.float32(0.86))), shoulders)
    for side in (-1, 1):
        bone = spline(mirrored([(0.14, 1.12), (0.5, 1.05), (wide * 0.55, 1.09 + slope)], side, turn))
        sheet.paint(skin * (0.45, 0.32, 0.30), sheet.line(bone, width=0.05, soft=0.04), 0.28)
    sheet.paint(skin * (0.45, 0.32, 0.30), sheet.spot(turn, 1.12, 0.08, 0.07), 0.30)
    strap = [(0.62, 1.03), (0.64, 1.25), (0.69, 1.55), (0.80, 1.95), (0.90, 2.4), (0.93, 3.2)]
    strap = np.array([(x * wide, y + (slope if y < 2 else 0)) for x, y in strap])
    inner = np.array([(wide * 0.48, 1.02 + slope), (wide * 0.44, 1.40), (wide * 0.28, 1.57), (0, 1.65)])
    ends = [(wide * 0.95, 9.0), (-wide * 0.95, 9.0)]
    neckline = spline(np.concatenate([inner[:-1] * (-1, 1), inner[::-1]]))
    shape = np.concatenate([neckline, spline(strap), ends, spline((strap * (-1, 1))[::-1])])
    sheet.paint(skin * (0.45, 0.32, 0.30), sheet.fill(shape, soft=0.03), 0.35)
    body.wear(colour, sheet.fill(shape))


def _hood(body: Body, colour, top: Number) -> None:
    """Behind the neck: only what the neck leaves free."""
    neck = body.person.neck
    right = np.array([(neck * 1.7, 1.25), (neck * 1.75, 0.85), (neck * 1.1, 0.45), (0, 0.35)])
    hood = spline(np.concatenate([right, (right[:-1] * (-1, 1))[::-1]]))
    free = 1 - body.sheet.fill(_neck_outline(body.person, top, body.turn))
    body.wear(colour * 0.45, body.sheet.fill(hood) * free)


def _pullover(body: Body, picture: Picture, colour, rng: np.random.Generator) -> None:
    """All that covers the breast in one piece, with a collar of its kind."""
    sheet, turn, neck, kind = body.sheet, body.turn, body.person.neck, picture.clothing
    width = neck * {"hoodie": 1.35, "shirt": 0.95, "jacket": 1.25}.get(kind, 1.12)
    edge = body.neckline(width, DIP[kind], sharp=kind in ("shirt", "jacket"))
    if kind == "jacket":
        body.wear(rgb("white") * 0.95, body.below(body.neckline(neck * 1.1, 1.16)))
    mask = body.below(edge)
    sheet.paint(np.array(body.person.skin) * (0.40, 0.26, 0.24), sheet.line(edge, width=0.10, soft=0.05) * (1 - mask), 0.45)
    if kind == "striped shirt":
        body.wear(rgb("white") * 0.95 if picture.colour != "white" else rgb("blue"), mask)
        stripes = np.mod((sheet.y - 0.10 * np.cos((sheet.x - turn) * 1.1)) / 0.26, 1) < 0.5
        sheet.paint(times(colour, body.cloth), mask * sheet.blur(stripes.astype(np.float32), 0.012))
    elif kind == "sweater":
        body.wear(colour, mask, 0.93 + 0.07 * np.cos((sheet.x - turn) * 2 * np.pi / 0.11) * np.cos(sheet.y * 2 * np.pi / 0.16))
    elif kind == "jacket":
        body.wear(colour, mask, 0.95 + 0.10 * (rng.random(sheet.size, dtype=np.float32) - 0.5))
    else:
        body.wear(colour, mask)
    if kind in ("t-shirt", "sweater", "striped shirt", "hoodie"):
        band = 0.10 if kind != "hoodie" else 0.16
        body.shadow(colour, sheet.line(edge + (0, band), width=0.035, soft=0.02) * mask, 0.45)
        body.wear(colour * 1.06, sheet.line(edge + (0, band * 0.45), width=band) * mask)
    if kind == "hoodie":
        _strings(body, colour)
    elif kind == "turtleneck":
        _roll(body, colour)
    elif kind in ("shirt", "jacket"):
        _collar(body, colour, width, DIP[kind], buttons=kind == "shirt")
    body.shadow(colour, sheet.spot(turn - 0.25 * body.shading.lamp[0], 0.86, neck * 1.25, 0.20) * mask, 0.45)  # the head's


def _strings(body: Body, colour) -> None:
    sheet, dip, neck = body.sheet, DIP["hoodie"], body.person.neck
    for side in (-1, 1):
        fold = spline(mirrored([(neck * 1.35, 0.80), (neck * 1.75, 1.0), (0.70, 1.35), (0.25, dip + 0.1)], side, body.turn))
        body.shadow(colour, sheet.line(fold, width=0.05, soft=0.03), 0.5)
        string = spline(mirrored([(0.22, dip - 0.02), (0.25, dip + 0.30), (0.22, dip + 0.75)], side, body.turn))
        body.shadow(colour, sheet.line(string + (0.02, 0.02), width=0.05, soft=0.02), 0.5)
        body.wear(np.array((0.98, 0.97, 0.93)), sheet.line(string, width=0.04))


def _roll(body: Body, colour) -> None:
    """The collar of a turtleneck."""
    neck, turn = body.person.neck, body.turn
    part = body.sheet.window(-neck * 1.5, 0.2, neck * 1.5, 1.5)
    right = np.array([(neck * 1.06, 0.50), (neck * 1.10, 0.72), (neck * 1.16, 0.98), (neck * 0.8, 1.10), (0, 1.15)])
    rim = [(-neck * 1.02, 0.50), (-neck * 0.5, 0.60), (0, 0.64), (neck * 0.5, 0.60), (neck * 1.02, 0.50)]
    shape = np.concatenate([spline(np.concatenate([right, (right[:-1] * (-1, 1))[::-1]])), spline(rim)]) + (turn * 0.6, 0)
    part.paint(colour * 0.25, part.fill(shape + (0.0, 0.06), soft=0.05), 0.5)
    across = np.clip((part.x - turn) / (neck * 1.2), -0.99, 0.99)
    normal = np.stack([across, 0 * across, np.sqrt(1 - across**2)], axis=-1)
    light = body.shading.reach(normal.astype(np.float32)) * (0.94 + 0.06 * np.cos(part.x * 2 * np.pi / 0.085))
    light = light * (1 - 0.45 * part.spot(turn, 0.52, neck, 0.15))
    part.paint(times(np.minimum(colour * 1.02, 1), body.shading.tone(body.shading.plain, light)), part.fill(shape))


def _collar(body: Body, colour, width: Number, dip: Number, buttons: bool) -> None:
    sheet, turn = body.sheet, body.turn
    for side in (-1, 1):
        leaf = mirrored([(width * 0.96, 0.62), (width * 1.14, 0.82), (width * 1.22, 1.10), (0.46, 1.42), (0.22, 1.36), (width * 0.66, 1.0)], side, turn)
        body.shadow(colour, sheet.fill(leaf + (side * 0.02, 0.05), soft=0.035), 0.5)
        body.wear(np.minimum(colour * (1.14 if side * body.shading.lamp[0] > 0 else 1.0), 1), sheet.fill(leaf))
    body.shadow(colour, sheet.line(np.array([(turn, dip), (turn, 9.0)]), width=0.022, soft=0.012), 0.6)
    for y in (1.85, 2.35, 2.85) if buttons else ():
        sheet.paint(np.minimum(colour * 0.4 + 0.5, 1), sheet.disc(turn, y, 0.035, 0.02), 0.9)
    for side in () if buttons else (-1, 1):
        seam = mirrored([(0.35, 1.72), (body.person.shoulders * 0.86, 1.72)], side, turn)
        sheet.paint(np.array((0.84, 0.60, 0.30)), sheet.line(seam, width=0.015), 0.55)


def _neck_outline(person: Person, top: Number, turn: Number):
    """`top` is the x of its upper end, which moves with the head; `turn` of its lower end."""
    w = person.neck
    shares = ((0.60, -0.62), (0.84, -0.30), (0.93, 0.08), (0.97, 0.35), (0.99, 0.60), (1.10, 0.80), (1.38, 0.95), (1.45, 1.5), (1.45, 2.2))
    right = np.array(shares) * (w, 1)
    shift = np.interp(right[:, 1], [-0.5, 0.8], [top, turn])
    aside = np.stack([shift, 0 * shift], axis=1)
    return spline(np.concatenate([right + aside, (right * (-1, 1) + aside)[::-1]]))


def _neck(sheet: Sheet, person: Person, view: View, shading: Shading, top: Number, turn: Number) -> None:
    w = person.neck
    part = sheet.window(-w * 2.4, -0.7, w * 2.4, 2.0)
    mask = part.fill(_neck_outline(person, top, turn))
    across = np.clip((part.x - turn * 0.5) / (w * 1.12), -0.98, 0.98)
    normal = np.stack(np.broadcast_arrays(across * 0.9, 0.10 + 0 * part.y, np.sqrt(1 - across**2)), axis=-1)
    normal[..., 0] += 0.18 * (part.spot(-0.17 + turn, 0.75, 0.07, 0.40) - part.spot(-0.33 + turn, 0.75, 0.07, 0.40))  # the two cords
    normal[..., 0] += 0.18 * (part.spot(0.33 + turn, 0.75, 0.07, 0.40) - part.spot(0.17 + turn, 0.75, 0.07, 0.40))
    reach = shading.reach(normal.astype(np.float32))
    chin = view(np.array([[0.0, person.chin + 0.02, 0.35]]))[0]
    cx, cy = (chin - view.origin) / view.scale
    shadow = part.spot(cx * 0.55 - 0.12 * shading.lamp[0], cy - 0.10, w * 0.95, 0.27) + part.spot(cx * 0.3, cy - 0.45, w * 1.1, 0.4)
    reach = reach * (1 - 0.62 * np.clip(shadow, 0, 1))
    reach = reach * (1 - 0.25 * part.spot(turn, 1.02, 0.09, 0.08))
    part.paint(times(person.skin, shading.tone(shading.skin, reach)), mask)


def _light(sheet: Sheet, shading: Shading, wide: Number, turn: Number, rng: np.random.Generator) -> Float32[np.ndarray, "h w"]:
    """The light that reaches the breast and shoulders: a barrel with folds and arms."""
    h, w = sheet.size
    small = max(2, h // 4), max(2, w // 4)
    y = np.linspace(sheet.y[0, 0], sheet.y[-1, 0], small[0], dtype=np.float32)[:, None]
    x = np.linspace(sheet.x[0, 0], sheet.x[0, -1], small[1], dtype=np.float32)[None, :]
    bulge = 0.85 * np.sqrt(np.clip(1 - ((x - turn) / (wide * 1.16)) ** 2, 0.02, 1)) + 0.40 * np.tanh(np.maximum(y - 0.85, 0) / 1.1)
    for side in (-1, 1):
        for px, py, tilt, deep in ((0.80, 1.75, 0.55, 0.030), (1.35, 1.65, 0.25, 0.030), (wide * 0.80, 2.2, -0.15, 0.045)):
            px, py, tilt = px + rng.normal(0, 0.10), py + rng.normal(0, 0.12), side * (tilt + rng.normal(0, 0.15))
            dx, dy = x - side * px, y - py
            along, across = dx * np.sin(tilt) + dy * np.cos(tilt), dx * np.cos(tilt) - dy * np.sin(tilt)
            bulge = bulge + deep * np.exp(-0.5 * ((across / 0.09) ** 2 + (along / 0.40) ** 2))
    for side in (-1, 1):  # between arm and trunk
        bulge = bulge - 0.10 * np.exp(-0.5 * ((x - side * wide * (0.74 - 0.01 * y)) / 0.07) ** 2) * np.clip((y - 1.75) / 0.5, 0, 1)
    step_y, step_x = float(y[1, 0] - y[0, 0]), float(x[0, 1] - x[0, 0])
    slope_y, slope_x = np.gradient(bulge, step_y, step_x)
    normal = np.stack([-slope_x, -slope_y * 0.8, np.ones_like(bulge)], axis=-1)
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    return cv2.resize(shading.reach(normal.astype(np.float32)), (w, h), interpolation=cv2.INTER_LINEAR)
