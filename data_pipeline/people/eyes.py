"""Eyes and brows, painted on the sheet of a face."""

import numpy as np

from data_pipeline.people.attributes import Picture
from data_pipeline.people.expressions import LOWER_LID, Face
from data_pipeline.people.identity import Person
from data_pipeline.people.paper import LIGHT, NEUTRAL
from data_pipeline.people.surface import Sheet, blend, mirrored, spline, times


def paint_eye(sheet: Sheet, person: Person, face: Face, picture: Picture, side: int) -> None:
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


def paint_brow(sheet: Sheet, person: Person, face: Face, side: int, rng: np.random.Generator) -> None:
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
