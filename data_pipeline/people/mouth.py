"""The mouth, open or closed, painted on the sheet of a face."""

import numpy as np

from data_pipeline.people.expressions import Face, mouth_corners
from data_pipeline.people.identity import Person
from data_pipeline.people.paper import GLOSS, LIGHT, NEUTRAL
from data_pipeline.people.surface import Sheet, spline, times


def paint_mouth(sheet: Sheet, person: Person, face: Face) -> None:
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
