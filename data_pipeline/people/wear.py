"""Neck, shoulders and what people wear: clothes, hats, glasses."""

import cv2
import numpy as np
from jaxtyping import Float32

from data_pipeline.people.haircut import Shell, Style
from data_pipeline.people.head import Head, Profile, place
from data_pipeline.people.identity import Person
from data_pipeline.people.light import Shading
from data_pipeline.people.attributes import COLOURS, Picture
from data_pipeline.people.surface import Layer, Number, Seen, Sheet, View, blend, mirrored, normals, rasterise, spline, times

SCARF = Style((-0.84, -0.70, 1.3, 1.4, 1.4), top=0.16, front=0.13, side=0.17, flow="back", length=1.4, flare=0.02, ragged=0.0)


def _rgb(name: str) -> np.ndarray:
    return np.array(COLOURS[name], np.float32) / 255


# Neck and clothes


def draw_body(canvas: Float32[np.ndarray, "3 H W"], person: Person, picture: Picture, view: View, shading: Shading, rng: np.random.Generator) -> None:
    sheet = Sheet(canvas, view.scale, -view.origin[0] / view.scale, -view.origin[1] / view.scale)
    sheet = sheet.window(-3.2, -0.7, 3.2, 9.0)
    if sheet.size[0] < 2:
        return
    turn = 0.006 * picture.yaw  # the breast turns a little with the head
    neck = person.neck
    top = float((view(np.array([[0.0, 0.40, -0.50]]))[0, 0] - view.origin[0]) / view.scale)
    _neck(sheet, person, view, shading, top, turn)
    kind, colour = picture.clothing, _rgb(picture.colour)
    wide = person.shoulders
    slope = 0.10 if person.gender == "man" else 0.16
    right = [(neck * 1.06, 0.74), (neck * 1.40, 0.90), (wide * 0.58, 1.04 + slope * 0.6), (wide * 0.82, 1.20 + slope), (wide * 0.96, 1.48 + slope)]
    right += [(wide * 1.04, 2.0), (wide * 1.09, 2.7), (wide * 1.12, 3.4)]
    left = [(-x, y) for x, y in reversed(right)]
    right = [(right[0][0] + turn, right[0][1]), (right[1][0] + turn, right[1][1]), *right[2:]]
    left = [*left[:-2], (left[-2][0] + turn, left[-2][1]), (left[-1][0] + turn, left[-1][1])]
    dip = {
        "t-shirt": 1.20,
        "shirt": 1.55,
        "turtleneck": 0.72,
        "hoodie": 1.24,
        "suit": 2.15,
        "sweater": 1.10,
        "tank top": 1.62,
        "jacket": 1.9,
        "striped shirt": 1.18,
    }[kind]
    shade = _cloth_light(sheet, shading, wide, turn, rng)
    outer = np.concatenate([spline(right), [(wide * 1.2, 9.0), (-wide * 1.2, 9.0)], spline(left)])

    def opening(width: Number, low: Number, sharp: bool = False):
        points = [(width, 0.78), (width * 0.92, 0.80 + (low - 0.80) * 0.45), (width * 0.50, 0.80 + (low - 0.80) * 0.90), (0, low)]
        if sharp:
            points = [(width, 0.78), (width * 0.55, 0.78 + (low - 0.78) * 0.5), (0, low)]
        curve = points + [(-x, y) for x, y in reversed(points[:-1])]
        return (np.array(curve) if sharp else spline(curve)) + (turn, 0)

    def wear(colour, mask, pattern=None):
        tone = shade if pattern is None else shade * pattern
        sheet.paint(times(np.minimum(colour * 0.94 + 0.015, 1), tone), mask)

    def garment(width: Number, low: Number, sharp: bool = False):
        return np.concatenate([outer, opening(width, low, sharp)[::-1]])

    if kind == "suit":
        lapel_dip = 2.3
        inner = _rgb("white") if picture.colour != "white" else _rgb("blue") * 1.3
        wear(np.minimum(inner, 1), sheet.fill(garment(neck * 0.92, 1.02, True)))
        tie = _rgb("red") if picture.colour in ("blue", "black", "grey", "teal", "green") else _rgb("black")
        knot = np.array([(-0.12, 0.98), (0.12, 0.98), (0.085, 1.17), (-0.085, 1.17)]) + (turn, 0)
        blade = np.array([(-0.085, 1.17), (0.085, 1.17), (0.20, 2.6), (-0.20, 2.6)]) + (turn, 0)
        wear(tie, sheet.fill(blade))
        wear(tie * 1.15, sheet.fill(knot))
        sheet.paint(tie * 0.3, sheet.line(knot[2:4], width=0.02, soft=0.01), 0.7)
        for side in (-1, 1):
            leaf = mirrored([(neck * 0.86, 0.72), (neck * 1.05, 0.90), (0.38, 1.24), (0.06, 1.00)], side, turn)
            sheet.paint((0.1, 0.1, 0.12), sheet.fill(leaf + (0, 0.03), soft=0.03), 0.35)
            wear(np.minimum(inner * 1.05, 1), sheet.fill(leaf))
        dark = colour * (0.62 if picture.colour not in ("white", "yellow", "pink") else 0.95)
        jacket = np.concatenate([outer, np.array([(-neck * 1.12, 0.80), (-0.06, lapel_dip), (0.06, lapel_dip), (neck * 1.12, 0.80)]) + (turn, 0)])
        sheet.paint(dark * 0.2, sheet.fill(jacket + (0, 0.02), soft=0.03) * (1 - sheet.fill(jacket)), 0.4)
        wear(dark, sheet.fill(jacket))
        for side in (-1, 1):
            lapel = mirrored([(neck * 1.12, 0.80), (neck * 1.45, 1.0), (0.95, 1.36), (0.78, 1.48), (0.88, 1.58), (0.06, lapel_dip + 0.1)], side, turn)
            sheet.paint(dark * 0.2, sheet.fill(lapel + (side * 0.03, 0.04), soft=0.04), 0.5)
            wear(dark * (1.18 if side * shading.lamp[0] > 0 else 1.02), sheet.fill(lapel))
        return

    if kind == "hoodie":
        hood = spline([(-neck * 1.7, 1.25), (-neck * 1.75, 0.85), (-neck * 1.1, 0.45), (0, 0.35), (neck * 1.1, 0.45), (neck * 1.75, 0.85), (neck * 1.7, 1.25)])
        # Behind the neck: only what the neck leaves free.
        around = sheet.fill(hood) * (1 - sheet.fill(_neck_outline(person, top, turn)))
        sheet.paint(times(colour * 0.45, shade), around)
    if kind == "tank top":
        skin = np.array(person.skin, np.float32)
        tone = shading.tone(shading.skin, np.clip(shade[0] / shading.plain[0, -1], 0, 1) ** 1.1)
        sheet.paint(times(skin, tone), sheet.fill(outer))
        for side in (-1, 1):
            bone = spline(mirrored([(0.14, 1.10), (0.5, 1.02), (wide * 0.55, 1.06 + slope)], side, turn))
            sheet.paint(skin * (0.45, 0.32, 0.30), sheet.line(bone, width=0.05, soft=0.035), 0.35)
        sheet.paint(skin * (0.45, 0.32, 0.30), sheet.spot(turn, 1.10, 0.08, 0.07), 0.35)
        strap = [
            (wide * 0.62, 1.03 + slope),
            (wide * 0.64, 1.25 + slope),
            (wide * 0.69, 1.55 + slope),
            (wide * 0.80, 1.95 + slope),
            (wide * 0.90, 2.4),
            (wide * 0.93, 3.2),
        ]
        inner = [(wide * 0.48, 1.02 + slope), (wide * 0.44, 1.40), (wide * 0.28, dip - 0.05), (0, dip + 0.03)]
        shape = np.concatenate(
            [
                spline([(-x, y) for x, y in inner[:-1]] + inner[::-1]),
                spline(strap),
                [(wide * 0.95, 9.0), (-wide * 0.95, 9.0)],
                spline([(-x, y) for x, y in reversed(strap)]),
            ]
        )
        sheet.paint(colour * 0.2, sheet.fill(shape, soft=0.03), 0.35)
        wear(colour, sheet.fill(shape))
        return

    pattern = None
    if kind == "striped shirt":
        bend = sheet.y - 0.10 * np.cos((sheet.x - turn) * 1.1)
        pattern = np.where(np.mod(bend / 0.26, 1) < 0.5, 1.0, 0.0).astype(np.float32)
        pattern = sheet.blur(pattern, 0.012)
    elif kind == "sweater":
        pattern = 0.93 + 0.07 * np.cos((sheet.x - turn) * 2 * np.pi / 0.11) * np.cos(sheet.y * 2 * np.pi / 0.16)
    elif kind == "jacket":
        pattern = 0.95 + 0.10 * (rng.random(sheet.size, dtype=np.float32) - 0.5)
    width = {"hoodie": neck * 1.35, "shirt": neck * 0.95, "jacket": neck * 1.25}.get(kind, neck * 1.12)
    sharp = kind in ("shirt", "jacket")
    if kind == "jacket":
        wear(_rgb("white") * 0.95, sheet.fill(garment(neck * 1.1, 1.16)))
    mask = sheet.fill(garment(width, dip, sharp))
    edge = opening(width, dip, sharp)
    sheet.paint(np.array(person.skin) * (0.40, 0.26, 0.24), sheet.line(edge, width=0.10, soft=0.05) * (1 - mask), 0.45)
    if kind == "striped shirt":
        light = np.minimum(_rgb("white") * 0.95, 1) if picture.colour != "white" else _rgb("blue")
        wear(light, mask)
        sheet.paint(times(colour, shade), mask * pattern)
    else:
        wear(colour, mask, pattern)
    if kind in ("t-shirt", "sweater", "striped shirt", "hoodie"):
        band = 0.10 if kind != "hoodie" else 0.16
        ring = edge + (0, band * 0.45)
        sheet.paint(colour * 0.3, sheet.line(edge + (0, band), width=0.035, soft=0.02) * mask, 0.45)
        wear(colour * 1.06, sheet.line(ring, width=band) * mask)
    if kind == "hoodie":
        for side in (-1, 1):
            string = spline(mirrored([(0.22, dip - 0.02), (0.25, dip + 0.30), (0.22, dip + 0.75)], side, turn))
            sheet.paint(colour * 0.25, sheet.line(string + (0.02, 0.02), width=0.05, soft=0.02), 0.5)
            sheet.paint(times((0.93, 0.92, 0.88), shade), sheet.line(string, width=0.04))
            fold = spline(mirrored([(neck * 1.35, 0.72), (neck * 1.75, 1.0), (0.70, 1.35), (0.25, dip + 0.1)], side, turn))
            sheet.paint(colour * 0.25, sheet.line(fold, width=0.05, soft=0.03), 0.5)
    elif kind == "turtleneck":
        roll = [(neck * 1.06, 0.50), (neck * 1.10, 0.72), (neck * 1.16, 0.98), (neck * 0.8, 1.10), (0, 1.15)]
        top = [(-neck * 1.02, 0.50), (-neck * 0.5, 0.60), (0, 0.64), (neck * 0.5, 0.60), (neck * 1.02, 0.50)]
        shape = np.concatenate([spline(roll + [(-x, y) for x, y in reversed(roll[:-1])]), spline(top)]) + (turn * 0.6, 0)
        sheet.paint(colour * 0.25, sheet.fill(shape + (0.0, 0.06), soft=0.05), 0.5)
        normal = np.stack(np.broadcast_arrays(np.clip((sheet.x - turn) / (neck * 1.2), -1, 1), 0 * sheet.y, 0 * sheet.x), axis=-1)
        normal[..., 2] = np.sqrt(np.maximum(1 - normal[..., 0] ** 2, 0.02))
        ribs = 0.94 + 0.06 * np.cos(sheet.x * 2 * np.pi / 0.085)
        tone = shading.tone(shading.plain, shading.reach(normal.astype(np.float32)) * ribs)
        tone = tone * (1 - 0.45 * sheet.spot(turn, 0.52, neck * 1.0, 0.15))
        sheet.paint(times(np.minimum(colour * 1.02, 1), tone), sheet.fill(shape))
    elif kind in ("shirt", "jacket"):
        for side in (-1, 1):
            leaf = mirrored([(width * 0.96, 0.62), (width * 1.14, 0.82), (width * 1.22, 1.10), (0.46, 1.42), (0.22, 1.36), (width * 0.66, 1.0)], side, turn)
            sheet.paint(colour * 0.2, sheet.fill(leaf + (side * 0.02, 0.05), soft=0.035), 0.5)
            wear(np.minimum(colour * (1.14 if side * shading.lamp[0] > 0 else 1.0), 1), sheet.fill(leaf))
        sheet.paint(colour * 0.35, sheet.line(np.array([(turn, dip), (turn, 9.0)]), width=0.022, soft=0.012), 0.6)
        if kind == "shirt":
            for y in (1.85, 2.35, 2.85):
                sheet.paint(np.minimum(colour * 0.4 + 0.5, 1), sheet.disc(turn + 0.0, y, 0.035, 0.02), 0.9)
        else:
            for side in (-1, 1):
                seam = mirrored([(0.35, 1.72), (wide * 0.86, 1.72)], side, turn)
                sheet.paint(np.array((0.84, 0.60, 0.30)), sheet.line(seam, width=0.015), 0.55)
    # The head's shadow on the breast.
    sheet.paint(colour * 0.25, sheet.spot(turn - 0.25 * shading.lamp[0], 0.86, neck * 1.25, 0.20) * mask, 0.45)


def _neck_outline(person: Person, top: Number, turn: Number):
    """`top` is the x of its upper end, which moves with the head; `turn` of its lower end."""
    w = person.neck
    right = np.array(
        [
            (w * 0.60, -0.62),
            (w * 0.84, -0.30),
            (w * 0.93, 0.08),
            (w * 0.97, 0.35),
            (w * 0.99, 0.60),
            (w * 1.10, 0.80),
            (w * 1.38, 0.95),
            (w * 1.45, 1.5),
            (w * 1.45, 2.2),
        ]
    )
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


def _cloth_light(sheet: Sheet, shading: Shading, wide: Number, turn: Number, rng: np.random.Generator) -> Float32[np.ndarray, "3 h w"]:
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
    return shading.tone(shading.plain, cv2.resize(shading.reach(normal.astype(np.float32)), (w, h), interpolation=cv2.INTER_LINEAR))


# Hats


def _dome(person: Person, thick: Number, low: Number, rise: Number, columns: int = 73, rows: int = 30) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A cap around the skull down to y = low, `rise` deeper at the back: points, angles, and how far down (0 to 1)."""
    profile = Profile(person)
    angle = np.radians(np.linspace(-178, 178, columns))[None, :]
    t = np.linspace(0.02, 1, rows)[:, None]
    bottom = low + rise * (1 - np.cos(angle)) / 2
    y = profile.crown + (bottom - profile.crown) * (1 - np.cos(t * np.pi / 2))
    points = profile.around(y, np.broadcast_to(angle, y.shape))
    out = points - np.array([0.0, -0.35, -0.15])
    out /= np.linalg.norm(out, axis=-1, keepdims=True)
    return points + out * thick, np.broadcast_to(angle, y.shape), np.broadcast_to(t, y.shape)


def _cloth(points, values: list, view: View, shading: Shading, canvas: tuple[int, int], back: bool = False):
    """Rasterises a surface: what is seen, its light, how it faces the viewer, and `values` at every pixel. None when nothing is seen."""
    turned = view.space(points)
    seen = rasterise(view.flat(turned), turned[..., 2], canvas, 1, back)
    if seen is None:
        return None
    normal = normals(points) @ view.rotation.T * (-1 if back else 1)
    grids = (shading.reach(normal), normal[..., 2], *(np.broadcast_to(v, points.shape[:2]) for v in values))
    return seen, seen.sample(*(np.ascontiguousarray(g, np.float32) for g in grids))


def _layer(seen: Seen, colour, reach, alpha, shading: Shading) -> Layer:
    """`colour` is one colour or a picture of colours."""
    colour = np.minimum(np.asarray(colour, np.float32), 1)
    colour = colour[:, None, None] if colour.ndim == 1 else colour
    alpha = np.clip(alpha * seen.mask, 0, 1).astype(np.float32)
    return Layer(seen.window, (colour * shading.tone(shading.plain, np.clip(reach, 0, 1))).astype(np.float32), alpha)


def draw_hat(person: Person, picture: Picture, view: View, shading: Shading, canvas: tuple[int, int]) -> tuple[list[Layer], list[Layer]]:
    """Layers behind the head and layers in front of the hair."""
    kind, colour = picture.headwear, _rgb(picture.headwear_colour)
    behind, front = [], []
    if kind == "none" or kind == "headscarf":
        return behind, front
    sharp = np.float32(0.6 * view.scale)
    if kind == "beanie":
        points, angle, t = _dome(person, 0.13, -0.60, 0.55)
        points = points - np.array([0, 0.10, 0]) * (1 - t[..., None])
        points += normals(points) * (0.035 * np.clip((t - 0.74) / 0.03, 0, 1))[..., None]
        found = _cloth(points, [angle, t], view, shading, canvas)
        if found:
            seen, (reach, facing, a, t) = found
            ribs = 0.90 + 0.12 * np.cos(a * 44) * np.clip(view.scale / 90, 0.3, 1)
            fold = 1 - 0.45 * np.exp(-(((t - 0.73) / 0.035) ** 2))
            front.append(_layer(seen, colour * 1.05, reach * ribs * fold * np.clip(0.45 + facing, 0, 1), np.clip((0.995 - t) * sharp + 0.5, 0, 1), shading))
    elif kind in ("cap", "straw hat"):
        straw = kind == "straw hat"
        tint = np.array([0.90, 0.76, 0.50]) if straw else colour
        thick, low, rise = (0.19, -0.74, 0.30) if straw else (0.125, -0.70, 0.42)
        points, angle, t = _dome(person, thick, low, rise)
        if straw:
            points = points - np.array([0, 0.14, 0]) * (1 - t[..., None])
        ring = points[-1]
        found = _cloth(points, [angle, t], view, shading, canvas)
        if found:
            seen, (reach, facing, a, t) = found
            if straw:
                grain = 0.92 + 0.09 * np.cos(a * 60) * np.cos(t * 70) * np.clip(view.scale / 90, 0.3, 1)
                band = np.clip((t - 0.78) * 30, 0, 1)
                paint = times(tint, grain * (1 - band)) + times(colour, band)
            else:
                seam = 1 - 0.35 * np.exp(-(((np.mod(a / (np.pi / 3) + 0.5, 1) - 0.5) / 0.02) ** 2))
                paint = times(tint, seam)
            front.append(_layer(seen, paint, reach * np.clip(0.4 + facing, 0, 1), np.ones_like(reach), shading))
        # The brim: a strip from the cap's edge outwards.
        out = np.linspace(0, 1, 9)[:, None]
        a = angle[-1][None, :]
        direction = np.stack([np.sin(a[0]), 0 * a[0], np.cos(a[0])], axis=-1)
        if straw:
            reach_out = 0.78
            brim = (
                ring[None]
                + direction[None] * (reach_out * out[..., None])
                + np.array([0, 1.0, 0]) * (0.02 + 0.16 * out[..., None] ** 2 - 0.20 * out[..., None] * np.cos(a)[..., None])
            )
            parts = ((np.abs(a[0]) > np.radians(80), behind), (np.abs(a[0]) < np.radians(100), front))
        else:
            length = 0.72 * np.clip(np.cos(a * 1.35), 0, 1) ** 0.5
            brim = (
                ring[None]
                + np.array([0, 0, 1.0]) * (length * out)[..., None]
                + np.array([0, 1.0, 0]) * (0.66 * length * out**1.25 + 0.05 * np.sin(a) ** 2 * out)[..., None]
            )
            parts = ((np.abs(a[0]) < np.radians(66), front),)
        for chosen, layers in parts:
            index = np.nonzero(chosen)[0]
            if layers is behind and index.size:  # across the back, where the columns end and begin again
                index = np.concatenate([index[a[0][index] > 0], index[a[0][index] < 0]])
            strip = brim[:, index]
            for back in (True, False):
                found = _cloth(strip, [out], view, shading, canvas, back)
                if found:
                    seen, (reach, facing, o) = found
                    layers.append(
                        _layer(
                            seen,
                            tint * (0.72 if not back else 0.95),
                            np.clip(reach * (0.62 if not back else 1.0) + 0.12, 0, 1) * np.clip(0.7 + 0.3 * o, 0, 1),
                            np.ones_like(reach),
                            shading,
                        )
                    )
    elif kind == "headband":
        points, angle, t = _dome(person, 0.155, -0.62, 0.25)
        found = _cloth(points, [angle, points[..., 1] - 0.25 * (1 - np.cos(angle)) / 2], view, shading, canvas)
        if found:
            seen, (reach, facing, a, y) = found
            alpha = np.clip((0.13 - np.abs(y + 0.80)) * sharp + 0.5, 0, 1)
            front.append(
                _layer(seen, colour, reach * np.clip(0.5 + facing, 0, 1) * (1 - 0.4 * np.clip((np.abs(y + 0.80) - 0.09) / 0.04, 0, 1)), alpha, shading)
            )
    elif kind == "crown":
        profile = Profile(person)
        angle = np.radians(np.linspace(-180, 180, 97))[None, :]
        up = np.linspace(1, 0, 12)[:, None]
        ring = profile.around(np.full_like(angle, -0.86), angle, 0.16)[0]
        points = ring[None] * np.array([1.0, 0, 1.0]) * (1 + 0.10 * up[..., None]) + np.stack(
            np.broadcast_arrays(0 * angle, -0.86 - 0.62 * up - 0.12 * (1 - np.cos(angle)) * -0.5, 0 * angle), axis=-1
        )
        for back, layers in ((True, behind), (False, front)):
            found = _cloth(points, [angle, up], view, shading, canvas, back)
            if found:
                seen, (reach, facing, a, u) = found
                spike = 0.42 + 0.52 * (1 - np.abs(np.mod(a / (2 * np.pi / 11), 1) - 0.5) * 2)
                alpha = np.clip((spike - u) * sharp * 0.6 + 0.5, 0, 1)
                gold = times((0.93, 0.70, 0.26), 0.7 + 0.6 * np.clip(np.cos(a * 3 + 1), 0, 1) ** 3)
                jewel = np.exp(-(((np.mod(a / (2 * np.pi / 11), 1) - 0.5) / 0.16) ** 2 + ((u - 0.22) / 0.10) ** 2)) > 0.5
                layers.append(
                    _layer(seen, np.where(jewel, colour[:, None, None], gold * (0.55 if back else 1.1)), reach * np.clip(0.5 + facing, 0, 1), alpha, shading)
                )
    return behind, front


def draw_scarf(person: Person, picture: Picture, hair: Shell, view: View, shading: Shading, canvas: tuple[int, int], back: bool = False) -> Layer | None:
    """A headscarf, given as a shell of the style SCARF."""
    found = _cloth(hair.points, [hair.inside, hair.across, hair.along], view, shading, canvas, back)
    if found is None:
        return None
    seen, (reach, facing, inside, across, along) = found
    colour = _rgb(picture.headwear_colour)
    alpha = np.clip(inside * np.float32(0.6 * view.scale) + 0.5, 0, 1)
    if back:
        return _layer(seen, colour * 0.5, np.full_like(reach, 0.25), alpha, shading)
    folds = 0.86 + 0.14 * np.cos(across * 9 + 1.5 * np.sin(along * 2.1)) + 0.05 * np.cos(across * 23)
    hem = 1 - 0.35 * np.exp(-(((inside - 0.05) / 0.03) ** 2))
    return _layer(seen, colour, reach * folds * hem * np.clip(0.35 + facing, 0, 1), alpha, shading)


# Glasses


def draw_glasses(
    canvas: Float32[np.ndarray, "3 H W"], person: Person, picture: Picture, shape: Head, view: View, shading: Shading, rng: np.random.Generator
) -> None:
    if picture.glasses == "none":
        return
    sheet = Sheet(canvas, 1.0, 0.0, 0.0)
    eyes = place(person, shape, np.array([(-person.eye_x, 0.0), (person.eye_x, 0.0)]))
    scale = view.scale
    z = float(eyes[:, 2].mean()) + 0.17
    angle = np.linspace(0, 2 * np.pi, 33)[:-1]
    power = {"glasses": 0.55, "round glasses": 1.0, "sunglasses": 0.62}[picture.glasses]
    wide, tall = {"glasses": (0.335, 0.215), "round glasses": (0.29, 0.275), "sunglasses": (0.365, 0.25)}[picture.glasses]
    curve = np.stack([wide * np.sign(np.cos(angle)) * np.abs(np.cos(angle)) ** power, tall * np.sign(np.sin(angle)) * np.abs(np.sin(angle)) ** power], axis=1)
    frame = {"glasses": np.array([0.10, 0.09, 0.10]), "round glasses": np.array([0.56, 0.42, 0.22]), "sunglasses": np.array([0.06, 0.05, 0.06])}[
        picture.glasses
    ]
    width = {"glasses": 0.050, "round glasses": 0.028, "sunglasses": 0.05}[picture.glasses] * scale
    rims = []
    for side in (-1, 1):
        rim = np.stack(
            [
                curve[:, 0] + side * (person.eye_x + 0.01),
                curve[:, 1] + 0.03,
                np.full(len(curve), z) - 0.10 * np.abs(curve[:, 0] * side + 0.0) ** 1.5 - 0.05 * (side * curve[:, 0] > 0),
            ],
            axis=1,
        )
        rims.append(view(rim))
    box = np.concatenate(rims)
    x0, y0 = np.floor(box.min(axis=0) - 0.6 * scale)
    x1, y1 = np.ceil(box.max(axis=0) + 0.6 * scale)
    part = sheet.window(x0, y0, x1, y1)
    for side, rim in zip((-1, 1), rims):
        ear = np.array([side * person.cheek * 1.0, -0.06, -0.05])
        if (view.rotation @ np.array([side, 0.0, 0.12]))[2] > -0.02:
            hinge = view(np.array([[side * (person.eye_x + wide + 0.01), -0.03, z - 0.10]]))[0]
            part.paint(frame, part.line(np.stack([hinge, view(ear[None])[0]]), width=max(width, 1.0)), 0.95)
        part.paint((0.08, 0.05, 0.05), part.line(np.concatenate([rim, rim[:1]]) + (0, 0.05 * scale), width=max(width, 1.0), soft=0.03 * scale), 0.35)
        lens = part.fill(rim)
        if picture.glasses == "sunglasses":
            low, high = rim[:, 1].min(), rim[:, 1].max()
            fade = np.clip((part.y - low) / (high - low), 0, 1) + 0 * part.x
            dark = blend((0.07, 0.07, 0.09), (0.31, 0.25, 0.22), fade**2)
            part.paint(dark, lens, 0.93)
        middle = rim.mean(axis=0)
        streak = np.exp(-((((part.x - middle[0]) + 0.6 * (part.y - middle[1])) / (0.07 * scale) + 1.4) ** 2))
        part.paint((1, 1, 1), lens * streak, 0.16 if picture.glasses != "sunglasses" else 0.28)
        part.paint(frame, part.line(np.concatenate([rim, rim[:2]]), width=max(width, 1.0)), 0.97)
        part.paint(np.minimum(frame + 0.4, 1), part.line(rim[18:28] - (0, 0.010 * scale), width=max(0.3 * width, 0.4)), 0.35)
    inner = view(np.array([[-(person.eye_x - wide - 0.0), -0.02, z + 0.0], [0, -0.055, z + 0.05], [person.eye_x - wide, -0.02, z]]))
    part.paint(frame, part.line(spline(inner, steps=4), width=max(width, 1.0)), 0.97)
