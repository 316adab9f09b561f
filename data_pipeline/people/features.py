"""What is painted on a face: skin, the shades of the nose, the lines of age, freckles, beards; with the eyes and the mouth."""

import cv2
import numpy as np

from data_pipeline.people.attributes import Picture
from data_pipeline.people.expressions import EXPRESSIONS, Face, mouth_corners
from data_pipeline.people.eyes import paint_brow, paint_eye
from data_pipeline.people.identity import Person
from data_pipeline.people.mouth import paint_mouth
from data_pipeline.people.paper import BOTTOM, GLOSS, LEFT, LIGHT, NEUTRAL, RIGHT, TOP
from data_pipeline.people.surface import Number, Sheet, mirrored, spline, times


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
    paint_mouth(sheet.window(-0.62, person.mouth - 0.3, 0.62, person.mouth + 0.62), person, face)
    _beard(sheet, person, face, own)
    for side in (-1, 1):
        x = side * person.eye_x
        paint_eye(sheet.window(x - 0.36, -0.40, x + 0.36, 0.32), person, face, picture, side)
        paint_brow(sheet.window(x - 0.45, person.brow_y - 0.32, x + 0.48, person.brow_y + 0.26), person, face, side, own)
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
