"""What is painted on a face: eyes, brows, lips, the lines of age, freckles, beards. Also which expression moves what.

The face is painted on a flat sheet in head units, which `render` then lays over the head. Channels of the sheet: red, green, blue,
light that reaches the place (1 is all), how little it is like skin in shade (1: not at all), gloss.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from data_pipeline.people.attributes import Picture
from data_pipeline.people.identity import Person
from data_pipeline.people.surface import Number, Sheet, blend, mirrored, spline, times

LEFT, TOP, RIGHT, BOTTOM = -1.15, -1.0, 1.15, 1.75
LIGHT, NEUTRAL, GLOSS = 3, 4, 5
LOWER_LID = 0.075  # y, in the middle of an eye


@dataclass(frozen=True)
class Face:
    """An expression, as movements in head units."""

    smile: float = 0.0  # of the corners of the mouth, upwards
    widen: float = 0.0  # of the mouth, to each side
    open: float = 0.0  # height of the open mouth
    teeth: float = 0.0
    brow: float = 0.0  # upwards
    frown: float = 0.0  # of the inner ends of the brows, downwards; negative upwards
    lids: float = 1.0  # how far the eyes are open
    squint: float = 0.0  # lower lids, upwards
    cheeks: float = 0.0
    lips: float = 1.0  # height of the lips


EXPRESSIONS = {
    "neutral": Face(),
    "smiling": Face(smile=0.095, widen=0.045, squint=0.022, cheeks=0.055, lids=0.94, lips=0.92),
    "laughing": Face(smile=0.115, widen=0.065, open=0.19, teeth=1.0, squint=0.045, cheeks=0.085, lids=0.74, brow=0.02, lips=0.80),
    "surprised": Face(widen=-0.07, open=0.25, brow=0.125, lids=1.38, lips=0.9, smile=-0.02),
    "sad": Face(smile=-0.055, widen=-0.01, brow=0.01, frown=-0.105, lids=0.80),
    "angry": Face(smile=-0.042, widen=-0.015, brow=-0.035, frown=0.11, lids=0.82, squint=0.025, lips=0.74),
}


def mouth_corners(person: Person, face: Face) -> list[tuple[float, float]]:
    """On paper; the viewer's left first."""
    width, lift = person.mouth_width + face.widen, person.mouth_rest + face.smile
    return [(side * width, person.mouth - lift + face.open * 0.22) for side in (-1, 1)]


def eye_middle(person: Person, face: Face) -> float:
    """The height of the middle between the lids, on paper."""
    return (LOWER_LID - face.squint - person.eye_open * face.lids) / 2


def paint_face(person: Person, picture: Picture, scale: Number) -> Sheet:
    """The sheet of a face at `scale` pixels a head unit."""
    pixels = np.empty((6, round((BOTTOM - TOP) * scale), round((RIGHT - LEFT) * scale)), np.float32)
    pixels[:] = np.array([*person.skin, 1, 0, 1], np.float32)[:, None, None]
    sheet = Sheet(pixels, scale, LEFT, TOP)
    face = EXPRESSIONS[picture.expression]
    own = np.random.default_rng([0xFACE, person.number])  # marks stay where they are from picture to picture
    _skin(sheet, person, face, own)
    _nose(sheet.window(-0.45, 0.2, 0.45, 0.85), person)
    _age(sheet, person, face)
    _mouth(sheet.window(-0.62, person.mouth - 0.3, 0.62, person.mouth + 0.62), person, face)
    _beard(sheet, person, face, own)
    for side in (-1, 1):
        x = side * person.eye_x
        _eye(sheet.window(x - 0.36, -0.40, x + 0.36, 0.32), person, face, picture, side)
        _brow(sheet.window(x - 0.45, person.brow_y - 0.32, x + 0.48, person.brow_y + 0.26), person, face, side, own)
    return sheet


def _skin(sheet: Sheet, person: Person, face: Face, rng: np.random.Generator) -> None:
    skin = np.array(person.skin)
    blotches = rng.normal(0, 1, (14, 12)).astype(np.float32)
    blotches = cv2.resize(blotches, sheet.size[::-1], interpolation=cv2.INTER_CUBIC)
    sheet.pixels[:3] *= 1 + times((0.006, 0.013, 0.013), blotches)
    red = skin * (1.0, 0.70, 0.66)
    blush = person.blush * (0.8 + 4.0 * face.cheeks)
    for side in (-1, 1):
        sheet.dab(red, side * 0.60, 0.48, 0.24, 0.17, 0.36 * blush + 0.25 * person.makeup)
    sheet.dab(red, 0, person.nose - 0.03, 0.16, 0.10, 0.25 * person.blush)
    sheet.dab(red, 0, person.chin - 0.15, 0.2, 0.12, 0.13)
    if person.freckles:
        count = person.freckles
        x, y = rng.normal(0, 0.38, count), rng.normal(0.40, 0.13, count)
        part = sheet.window(-1.0, -0.1, 1.0, 0.9)
        dots = part.dots(x, y, rng.uniform(0.008, 0.015, count), rng.uniform(0.25, 0.6, count), soft=0.005)
        part.paint(skin * (0.72, 0.50, 0.38), dots)
    for x, y in person.moles:
        part = sheet.window(x - 0.06, y - 0.06, x + 0.06, y + 0.06)
        part.paint(skin * (0.36, 0.24, 0.20), part.disc(x, y, 0.024, 0.018), 0.9)


def _nose(sheet: Sheet, person: Person) -> None:
    tip, wing = person.nose, person.nose_width
    sheet.shade(LIGHT, 0, tip + 0.085, wing * 0.80, 0.045, 0.38)
    for side in (-1, 1):
        nostril = spline(
            mirrored(np.array([(0.26, 0.055), (0.50, 0.020), (0.80, 0.040), (0.72, 0.075), (0.42, 0.082)]) * (wing, 1.0), side, 0, tip), closed=True, steps=4
        )
        hole = sheet.fill(nostril, soft=0.010)
        sheet.paint(np.array(person.skin) * (0.24, 0.12, 0.10), hole, 0.85)
        crease = spline(mirrored([(wing * 1.22, -0.10), (wing * 1.42, -0.01), (wing * 1.22, 0.065)], side, 0, tip), steps=4)
        sheet.darken(LIGHT, sheet.line(crease, width=0.022, soft=0.016), 0.42)
        sheet.shade(LIGHT, side * 0.12, 0.12, 0.05, 0.16, 0.06)


def _age(sheet: Sheet, person: Person, face: Face) -> None:
    """The fold from nose to mouth, and the lines that years and expressions draw."""
    p = person
    years = np.clip((p.age - 32) / 40, 0, 1)
    corner = mouth_corners(p, face)[1]
    for side in (-1, 1):
        depth = 0.10 + 0.42 * years + 3.2 * max(face.smile, 0) * (0.55 + 0.6 * years)
        fold = [
            (p.nose_width + 0.10, p.nose - 0.02),
            (p.nose_width + 0.21, p.nose + 0.12),
            (corner[0] + 0.085, corner[1] - 0.02),
            (corner[0] + 0.095, corner[1] + 0.10 * years),
        ]
        sheet.darken(LIGHT, sheet.line(spline(mirrored(fold, side)), width=0.03, soft=0.022), min(depth, 0.75))
        bag = [(-0.17, 0.10), (-0.02, 0.155), (0.15, 0.12)]
        sheet.darken(LIGHT, sheet.line(spline(mirrored(bag, side, side * p.eye_x)), width=0.03, soft=0.024), 0.13 + 0.40 * years)
        if years > 0.12:
            outer = side * (p.eye_x + p.eye_width + 0.05)
            crows = [spline(mirrored([(0, -0.01 + k * 0.03), (0.06, -0.02 + k * 0.05), (0.115, -0.035 + k * 0.075)], side, outer)) for k in (0, 1, 2)]
            sheet.darken(LIGHT, sheet.line(*crows, width=0.014, soft=0.011), 0.40 * years)
            jowl = [(corner[0] + 0.03, corner[1] + 0.12), (corner[0] + 0.08, corner[1] + 0.26), (corner[0] + 0.05, corner[1] + 0.36)]
            sheet.darken(LIGHT, sheet.line(spline(mirrored(jowl, side)), width=0.03, soft=0.025), 0.45 * years)
        if face.frown > 0 or years > 0.5:
            sheet.darken(
                LIGHT,
                sheet.line(np.array([(side * 0.055, p.brow_y - 0.02), (side * 0.045, p.brow_y + 0.14)]), width=0.016, soft=0.012),
                0.25 * years + 4 * max(face.frown, 0),
            )
    lines = 0.55 * max(years - 0.1, 0) + 3.0 * max(face.brow - 0.02, 0)
    if lines > 0.05:
        heights = [p.brow_y - 0.22 - 0.13 * k for k in range(3)]
        curves = [spline([(-0.5 + 0.06 * k, h + 0.03), (-0.2, h - 0.01), (0.2, h - 0.01), (0.5 - 0.06 * k, h + 0.03)]) for k, h in enumerate(heights)]
        sheet.darken(LIGHT, sheet.line(*curves, width=0.014, soft=0.010), min(lines, 0.5))


def _eye(sheet: Sheet, person: Person, face: Face, picture: Picture, side: int) -> None:
    p = person
    w, lift = p.eye_width, p.eye_open * face.lids
    x = side * p.eye_x
    slant, low = p.eye_slant, LOWER_LID - face.squint
    skin = np.array(p.skin)

    def curve(points, steps=6):
        return spline(mirrored(points, side, x), steps=steps)

    inner, outer = (-w, 0.030), (w, -slant)
    upper = curve([inner, (-0.66 * w, -0.50 * lift), (-0.10 * w, -lift), (0.48 * w, -0.86 * lift - slant * 0.5), outer])
    lower = curve([outer, (0.60 * w, 0.66 * low - slant * 0.3), (0.05 * w, low), (-0.58 * w, 0.75 * low), inner])
    opening = sheet.fill(np.concatenate([upper, lower]))
    # The fold of the upper lid, and the shade of the socket.
    high = lift + 0.075 - 0.035 * p.lid
    crease = curve([(-w * 0.98, -0.02), (-0.55 * w, -0.60 * high), (0.02, -high), (0.55 * w, -0.86 * high - slant * 0.5), (w * 1.12, -slant - 0.055)])
    shade = sheet.fill(np.concatenate([crease, upper[::-1]]), soft=0.02)
    if p.makeup > 0.25:
        sheet.paint(skin * (0.58, 0.44, 0.46), shade, 0.55 * p.makeup)
    sheet.shade(LIGHT, x - side * 0.07, -0.11, 0.16, 0.07, 0.16)
    sheet.darken(LIGHT, sheet.line(crease, width=0.020, soft=0.010), 0.62 - 0.2 * p.lid)
    sheet.darken(LIGHT, sheet.line(lower, width=0.016, soft=0.010), 0.32)

    # The ball, greyer towards its corners; the iris is partly under the upper lid.
    ball = np.exp(-0.5 * (((sheet.x - x) / (w * 0.85)) ** 2 + (sheet.y / 0.13) ** 2))
    white = blend((0.70, 0.65, 0.64), (0.95, 0.93, 0.93), ball)
    sheet.paint(white, opening)
    look_x = x - 0.0014 * picture.yaw  # part of the way back to the viewer
    look_y = -0.012 - 0.0012 * picture.pitch + (0.012 if face.frown < 0 else 0)
    radius = np.hypot(sheet.x - np.float32(look_x), sheet.y - np.float32(look_y))
    big = 0.108
    angle = np.arctan2(sheet.y - np.float32(look_y), sheet.x - np.float32(look_x))
    spokes = 0.90 + 0.10 * np.cos(angle * 19 + np.sin(radius * 90) * 2)
    glow = np.clip((sheet.y - look_y + 0.05) / 0.14, 0, 1)
    rim = np.clip((big - radius) / 0.030, 0.0, 1)
    iris = times(p.iris, spokes * (0.55 + 0.95 * glow) * (0.35 + 0.65 * rim)) + 0.05 * glow
    sheet.paint(iris, sheet.disc(look_x, look_y, big, 0.016) * opening)
    sheet.paint((0.02, 0.02, 0.025), sheet.disc(look_x, look_y, 0.047, 0.014) * opening)
    sheet.paint((0.16, 0.10, 0.10), sheet.line(upper, width=0.05, soft=0.024) * opening, 0.75)
    glint = sheet.disc(look_x - 0.038, look_y - 0.040, 0.026, 0.012) + 0.45 * sheet.disc(look_x + 0.042, look_y + 0.042, 0.013, 0.012)
    sheet.paint((1, 1, 1), np.clip(glint, 0, 1) * opening)
    sheet.paint(np.array(p.lips) * 0.85 + 0.12, sheet.spot(x - side * w * 0.92, 0.028, 0.028, 0.020) * opening, 0.8)
    sheet.pixels[NEUTRAL] = np.maximum(sheet.pixels[NEUTRAL], opening * 0.8)
    sheet.pixels[LIGHT] += (1 - sheet.pixels[LIGHT]) * opening * 0.7

    # The dark edge of the upper lid with its lashes.
    lash = np.minimum(np.array([0.10, 0.07, 0.07]), np.array(p.hair) * 0.6 + 0.02)
    along = np.linspace(0, 1, len(upper))
    thick = np.interp(along, [0, 0.25, 0.75, 1], [0.006, 0.018, 0.030, 0.020]) * (0.55 + 0.55 * p.lashes)
    edge = np.concatenate([upper, (upper - np.stack([-side * thick * 0.5, thick], axis=1))[::-1]])
    sheet.paint(lash, np.maximum(sheet.fill(edge), sheet.line(upper, width=0.012)), 0.95)
    lashes = []
    for place in np.linspace(0.28, 0.99, 17):
        root = upper[round(place * (len(upper) - 1))]
        length = (0.018 + 0.034 * place) * p.lashes
        lashes.append(np.array([root, root + (side * (0.15 + 0.8 * (place - 0.3)) * length, -length)]))
    sheet.paint(lash, sheet.strokes(np.array(lashes), width=0.0062), 0.8)
    if p.makeup > 0.5:
        sheet.paint(lash, sheet.line(lower[: len(lower) * 2 // 3], width=0.010, soft=0.004), 0.5 * p.makeup)


def _brow(sheet: Sheet, person: Person, face: Face, side: int, rng: np.random.Generator) -> None:
    p = person
    x, y = side * p.eye_x, p.brow_y - face.brow
    inner, arch, tilt = face.frown, p.brow_arch, p.brow_tilt
    mid = face.frown * 0.25
    low = [(-0.255, 0.030 + inner + tilt), (-0.09, 0.005 + inner * 0.6), (0.10, -0.01 - arch + mid * 0.4), (0.31, 0.075 - tilt - face.frown * 0.25)]
    weight = p.brow_weight * np.array([0.85, 1.05, 0.90, 0.12])
    high = [(a + (0.012 if i == 0 else 0), b - t) for i, ((a, b), t) in enumerate(zip(low, weight))]
    low, high = (spline(mirrored(points, side, x, y)) for points in (low, high))
    shape = sheet.fill(np.concatenate([low, high[::-1]]), soft=0.014)
    fade = np.clip((side * (sheet.x - x) + 0.29) / 0.10, 0.15, 1)
    hair = np.array(p.hair)
    grey = p.hair_colour in ("grey", "white", "platinum")
    natural = p.hair_colour not in ("pink", "blue", "purple", "green")
    colour = hair * (0.62 if grey else 0.72) if natural else np.array((0.20, 0.14, 0.12))
    colour = np.minimum(colour, np.array(p.skin) * 0.72)
    sheet.paint(colour, shape * fade, 0.80)
    u, t, length = rng.random(110) ** 0.9, rng.random(110)[:, None], rng.uniform(0.045, 0.085, 110)
    k = np.minimum((u * (len(low) - 1)).astype(int), len(low) - 1)
    root = low[k] * (1 - t) + high[k] * t
    lean = np.stack([side * (0.3 + u), -0.75 + 0.95 * u + 0.3 * t[:, 0]], axis=1)
    hairs = np.stack([root, root + lean * (length * (1.1 - 0.4 * u))[:, None]], axis=1)
    sheet.paint(colour * 0.70, sheet.strokes(hairs[:70], width=0.0060) * fade, 0.6)
    sheet.paint(np.minimum(colour * 1.4, 1), sheet.strokes(hairs[70:], width=0.006) * fade, 0.4)
    sheet.pixels[NEUTRAL] = np.maximum(sheet.pixels[NEUTRAL], shape * 0.5)


def _mouth(sheet: Sheet, person: Person, face: Face) -> None:
    p = person
    (_, _), (w, corner) = mouth_corners(p, face)
    y = p.mouth
    up, down = p.upper_lip * face.lips, p.lower_lip * face.lips
    gap = face.open
    skin, lips = np.array(p.skin), np.array(p.lips)
    rise = y - corner  # of the corners above the middle of the closed mouth
    lift = 0.25 * max(face.smile, 0)  # a smile draws the upper lip up a little

    def whole(right):
        right = np.asarray(right)
        left = (right * (-1, 1))[::-1]
        return spline(np.concatenate([left[:-1] if right[0, 0] == 0 else left, right]) + (0, y), steps=5)

    top_mid = 0.020 - lift - gap * 0.10
    low_mid = 0.020 + gap * 0.95
    bend = -rise * 0.35
    seam_top = whole([(0, top_mid + 0.006), (0.06, top_mid), (0.60 * w, (top_mid * 0.75 + bend * 0.6) if gap else 0.012 + bend * 0.9), (w, -rise)])
    seam_low = whole([(0, low_mid), (0.30 * w, low_mid * 0.97), (0.68 * w, low_mid * 0.66 + bend * 0.5), (w, -rise)]) if gap else seam_top
    bow = p.bow * up
    upper_edge = whole([(0, top_mid - up + bow), (0.16 * w, top_mid - up), (0.55 * w, top_mid - up * 0.62 + bend), (w, -rise)])
    lower_edge = whole([(0, low_mid + down * 1.0), (0.32 * w, low_mid + down * 0.95), (0.68 * w, low_mid * 0.75 + down * 0.58 + bend * 0.9), (w, -rise)])
    upper = sheet.fill(np.concatenate([upper_edge, seam_top[::-1]]), soft=0.008)
    lower = sheet.fill(np.concatenate([seam_low, lower_edge[::-1]]), soft=0.008)

    # Shade under the lower lip and in the groove above the upper one.
    under = low_mid + y + down
    sheet.shade(LIGHT, 0, under + 0.065, w * 0.50, 0.032, 0.30)
    sheet.shade(LIGHT, 0, y + top_mid - up - 0.07, 0.03, 0.05, 0.10)
    for side in (-1, 1):
        sheet.shade(LIGHT, side * (w + 0.035), y - rise, 0.030, 0.034, 0.34 + 0.2 * person.dimples * (face.smile > 0.05))

    if gap:
        inside = sheet.fill(np.concatenate([seam_top, seam_low[::-1]]))
        sheet.paint((0.20, 0.05, 0.06), inside)
        tongue = sheet.spot(0, y + low_mid - 0.01, w * 0.5, gap * 0.22)
        sheet.paint((0.66, 0.28, 0.30), tongue * inside, 0.75)
        if face.teeth:
            bite = top_mid + gap * 0.52
            row = whole([(0, bite), (0.45 * w, bite * 0.92 + bend * 0.3), (0.92 * w, -rise * 0.9)])
            teeth = sheet.fill(np.concatenate([seam_top, row[::-1]])) * inside
            shade = np.clip(1.05 - (np.abs(sheet.x) / w) ** 2 * 0.45, 0.4, 1) + 0 * sheet.y
            sheet.paint(times((0.95, 0.92, 0.87), shade), teeth)
            gaps = np.concatenate([w * np.array([0.0, 0.22, 0.41, 0.58])] * 2) * ([1] * 4 + [-1] * 4)
            lines = [np.array([(g, y - 0.2), (g, y + bite)]) for g in gaps]
            sheet.paint((0.55, 0.48, 0.45), sheet.line(*lines, width=0.008) * teeth, 0.45)
            sheet.paint((0.25, 0.08, 0.08), sheet.line(seam_top, width=0.02, soft=0.015) * inside, 0.6)
        elif gap > 0.15:
            row = whole([(0, top_mid + 0.045), (0.6 * w, top_mid * 0.6 + 0.03 + bend)])
            sheet.paint((0.88, 0.85, 0.80), sheet.fill(np.concatenate([seam_top[2:-2], row[::-1]]), soft=0.006) * inside, 0.75)
        sheet.pixels[NEUTRAL] = np.maximum(sheet.pixels[NEUTRAL], inside * 0.9)
        sheet.pixels[GLOSS] *= 1 - inside
    sheet.paint(lips * 0.80, upper, 0.88)
    sheet.paint(lips * 1.02, lower, 0.86)
    sheet.paint(lips * 0.55, lower * sheet.spot(0, y + low_mid + down * 1.05, w * 0.9, down * 0.26), 0.40)
    shine = lower * sheet.spot(-0.03, y + low_mid + down * 0.46, w * 0.36, down * 0.17)
    sheet.paint(np.minimum(lips * 1.1 + 0.30, 1), shine, 0.38 + 0.35 * p.makeup)
    sheet.paint(np.minimum(lips + 0.20, 1), upper * sheet.spot(-0.05, y + top_mid - up * 0.72, w * 0.24, up * 0.16), 0.35)
    if gap:
        sheet.paint(lips * 0.35, sheet.line(seam_top, seam_low, width=0.010, soft=0.006), 0.6)
    else:
        sheet.paint(lips * 0.26, sheet.line(seam_top, width=0.020, soft=0.009), 0.92)
    for side in (-1, 1):
        sheet.paint(skin * (0.40, 0.24, 0.22), sheet.spot(side * (w + 0.003), y - rise, 0.024, 0.018), 0.6)


def _beard(sheet: Sheet, person: Person, face: Face, rng: np.random.Generator) -> None:
    p = person
    if p.beard == "none":
        return
    x, y = sheet.x, sheet.y
    drop = face.open * 0.9
    lip_low = p.mouth + drop + p.lower_lip
    side = np.abs(x)
    # The edge on the cheek runs from the ear down towards the mouth's corner.
    edge = np.interp(side, [0, 0.34, 0.55, p.jaw, 1.15], [p.mouth + 0.05, p.mouth - 0.03, p.mouth - 0.12, p.mouth - 0.40, p.mouth - 0.9])
    jaw = 1 / (1 + np.exp(-(y - edge) / 0.035))
    around = np.exp(
        -(((x / (p.mouth_width + 0.07 + face.widen)) ** 4) + ((y - p.mouth - 0.02 - drop * 0.5) / (0.14 + drop * 0.5)) ** 4) * 0.8
    )  # bare skin around the lips
    groove = p.mouth - p.upper_lip - 0.075 - max(face.smile, 0) * 0.3
    droop = groove + 0.55 * np.maximum(side - 0.05, 0) ** 1.6
    moustache = np.exp(-(((y - droop) / 0.060) ** 2)) * np.clip((p.mouth_width + 0.07 - side) / 0.05, 0, 1) * (0.65 + 0.35 * np.clip(side / 0.04, 0, 1))
    goatee = np.exp(-(((x) / 0.27) ** 4)) * np.clip((y - lip_low - 0.02) / 0.05, 0, 1)
    soul = np.exp(-((x / 0.06) ** 2)) * np.clip((y - lip_low + 0.01) / 0.03, 0, 1)
    ring = np.exp(-(((side - p.mouth_width - 0.04) / 0.05) ** 2)) * np.clip((y - p.mouth + 0.10) / 0.08, 0, 1)
    full = np.clip(jaw * (1 - around), 0, 1)
    area, strength = {
        "stubble": (np.maximum(full, moustache), 0.42),
        "moustache": (moustache, 0.95),
        "goatee": (np.maximum(np.maximum(moustache, goatee), ring), 0.92),
        "short beard": (np.maximum(np.maximum(full, moustache), soul), 0.86),
        "full beard": (np.maximum(np.maximum(full, moustache), soul), 0.97),
    }[p.beard]
    h, w = sheet.size
    fine = rng.random((150, 150), dtype=np.float32)
    strands = cv2.resize(fine[:60, :150], (w, h), interpolation=cv2.INTER_LINEAR)
    hair = np.array(p.hair if p.hair_colour not in ("pink", "blue", "purple", "green") else (0.16, 0.11, 0.09))
    if p.beard == "stubble":
        dots = np.clip(0.75 + (strands - 0.5) * 1.4, 0, 1)
        sheet.paint(hair * 0.75 + np.array(p.skin) * 0.22, area * dots, strength)
        return
    cover = np.clip(area * 1.5 - 0.25 - 0.5 * (strands - 0.5), 0, 1).astype(np.float32)
    colour = times(hair, 0.62 + 0.75 * strands)
    sheet.paint(colour, cover, strength)
    sheet.pixels[NEUTRAL] = np.maximum(sheet.pixels[NEUTRAL], cover * 0.8)
    sheet.pixels[GLOSS] *= 1 - 0.8 * cover
    sheet.darken(LIGHT, np.clip(cv2.GaussianBlur(cover, (0, 0), sheet.scale * 0.03) - cover, 0, 1), 0.3)
