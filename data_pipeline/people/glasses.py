"""Glasses: two rims in front of the eyes, and what joins them to the ears."""

import numpy as np
from jaxtyping import Float32

from data_pipeline.people.attributes import Picture
from data_pipeline.people.head import Head, place
from data_pipeline.people.identity import Person
from data_pipeline.people.surface import Sheet, View, blend, spline


def draw_glasses(canvas: Float32[np.ndarray, "3 H W"], person: Person, picture: Picture, shape: Head, view: View) -> None:
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
