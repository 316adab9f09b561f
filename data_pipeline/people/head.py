"""The bare head of a person: a surface in space (skull, cheeks, jaw, nose, sockets, lips), and what its skin looks like.

The surface is a grid: rows run from the crown to the chin, columns around the head, the face in the middle. See `identity` for units.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Float32

from data_pipeline.people.identity import Person
from data_pipeline.people.surface import normals, spline

ROWS = 113
FRONT, SIDE = 81, 14  # columns of the face, and of each side of the head behind it
PIVOT = np.array([0.0, 0.95, -0.35])  # where the head sits on the neck


@dataclass(frozen=True)
class Head:
    points: Float32[np.ndarray, "r c 3"]
    normals: Float32[np.ndarray, "r c 3"]
    paper: Float32[np.ndarray, "r c 2"]  # where on the flat sheet of the face each point is painted


def columns() -> Float[np.ndarray, "c"]:
    """The angle around the head of each column, 0 in front, in radians."""
    front = np.linspace(-78, 78, FRONT)
    side = np.linspace(78, 165, SIDE + 1)[1:]
    return np.radians(np.concatenate([-side[::-1], front, side]))


class Profile:
    """The outlines of a person's skull: `width`, `front`, `back` and `axis` at any height y."""

    def __init__(self, person: Person):
        p = person
        self.crown, self.chin = p.crown, p.chin
        self.middle, self.half = (p.crown + p.chin) / 2, (p.chin - p.crown) / 2
        gone = p.chin - 1.44  # a long chin moves the jaw down
        self._width = self._curve(
            [(p.crown, 0.0), (p.crown + 0.10, 0.50), (p.crown + 0.36, 0.83 * p.temple), (-0.72, 0.985 * p.temple), (-0.30, 1.0 * p.temple), (0.06, p.cheek)]
            + [(0.30, p.cheek * 0.985), (0.55 + gone / 2, (p.cheek + p.jaw * 1.12) / 2), (0.80 + gone, p.jaw * 1.06), (1.03 + gone, p.jaw * 0.86)]
            + [(1.21 + gone, (p.jaw * 0.80 + p.chin_width) / 2 * 0.98), (1.34 + gone, p.chin_width * 0.98), (1.41 + gone, p.chin_width * 0.62), (p.chin, 0.0)]
        )
        self._front = self._curve(
            [(p.crown, -0.15), (p.crown + 0.10, 0.32), (p.crown + 0.36, 0.64), (-0.72, 0.85), (-0.30, 0.93), (0.0, 0.90), (0.45, 0.93), (0.90, 0.935)]
            + [(1.10 + gone, 0.93), (1.28 + gone, 0.90), (1.38 + gone, 0.80), (p.chin, 0.50)]
        )
        self._back = self._curve(
            [
                (p.crown, -0.15),
                (p.crown + 0.10, -0.60),
                (p.crown + 0.36, -0.98),
                (-0.60, -1.22),
                (-0.10, -1.20),
                (0.40, -0.98),
                (0.75, -0.66),
                (1.0 + gone, -0.25),
            ]
            + [(1.25 + gone, 0.20), (p.chin, 0.50)]
        )
        self._axis = self._curve([(p.crown, -0.15), (-0.6, -0.12), (0.3, -0.06), (0.8 + gone, 0.05), (1.2 + gone, 0.30), (p.chin, 0.50)])

    def _polar(self, y):
        return np.arccos(np.clip((self.middle - np.asarray(y, np.float64)) / self.half, -1, 1))

    def _curve(self, points: list[tuple[int | float, int | float]]) -> tuple[np.ndarray, np.ndarray]:
        """The curve over the polar angle, in which a round end is a straight line."""
        y, value = np.array(points).T
        curve = spline(np.stack([self._polar(y), value], axis=1), steps=8)
        return np.maximum.accumulate(curve[:, 0]), curve[:, 1]

    def _at(self, curve, y):
        return np.interp(self._polar(y), *curve)

    def width(self, y):
        return np.maximum(self._at(self._width, y), 0)

    def front(self, y):
        return self._at(self._front, y)

    def back(self, y):
        return self._at(self._back, y)

    def axis(self, y):
        return self._at(self._axis, y)

    def around(self, y, angle, swell=0.0) -> Float[np.ndarray, "*n 3"]:
        """The skull at height y and angle; `swell` is how far outside of it."""
        sin, cos = np.sin(angle), np.cos(angle)
        axis = self.axis(y)
        x = (self.width(y) + swell) * sin
        front = axis + (np.maximum(self.front(y) - axis, 0) + swell) * np.sqrt(np.maximum(1 - np.abs(sin) ** 2.35, 0))
        back = axis + (np.maximum(axis - self.back(y), 0) + swell) * cos
        return np.stack(np.broadcast_arrays(x, y, np.where(cos >= 0, front, back)), axis=-1)


def _bump(x, y, at_x, at_y, width, height):
    return np.exp(-0.5 * (((x - at_x) / width) ** 2 + ((y - at_y) / height) ** 2))


@lru_cache(maxsize=64)
def _still(person: Person) -> tuple[np.ndarray, np.ndarray]:
    """The head at rest, and where its points lie on paper."""
    p, profile = person, Profile(person)
    angle = columns()[None, :]
    y = (profile.middle - profile.half * np.cos(np.linspace(0.02, np.pi - 0.012, ROWS)))[:, None]
    points = profile.around(y, angle)
    x, y = points[..., 0], points[..., 1]
    beyond = np.maximum(np.abs(angle) - np.pi / 2, 0) * np.sign(angle) * 1.0
    paper = np.stack([x + beyond, y], axis=-1)
    points = points.copy()
    front = np.s_[:, SIDE : SIDE + FRONT]
    points[front][..., 2] += relief(p, x[front].astype(np.float32), y[front].astype(np.float32)) * np.clip(np.cos(angle[front]) * 2.2, 0, 1)
    # The wings of the nose also stand out sideways.
    for side in (-1, 1):
        points[..., 0] += side * 0.035 * _bump(x, y, side * p.nose_width * 1.05, p.nose - 0.01, 0.05, 0.055) * np.clip(np.cos(angle), 0, 1)
    if p.beard in ("short beard", "full beard"):
        thick = {"short beard": 0.05, "full beard": 0.13}[p.beard]
        points += normals(points) * (thick * _beard_area(p, x, y))[..., None]
    return points.astype(np.float32), paper.astype(np.float32)


def _beard_area(p: Person, x, y):
    jaw = 1 / (1 + np.exp(-(y - (p.mouth - 0.02) - 0.9 * (np.abs(x) / p.jaw - 0.75) * -0.6) / 0.09))
    return jaw * np.clip((p.chin + 0.3 - y) * 3, 0, 1)


def relief(p: Person, x, y):
    """How far the face stands out before the smooth skull."""
    tip, wing = p.nose, p.nose_width
    # The nose: a ridge that rises from between the eyes to the tip, and falls off below it.
    along = np.clip((y + 0.10) / (tip + 0.10 - 0.03), 0, 1)
    ridge = along**1.25 * np.where(y > tip - 0.03, np.exp(-0.5 * ((y - tip + 0.03) / (0.062 + 0.02 * p.nose_up)) ** 2), 1.0)
    spread = p.nose_bridge + (wing * 0.62 - p.nose_bridge) * along**2.5
    height = p.nose_depth * ridge * np.exp(-0.5 * (x / spread) ** 2)
    height += 0.035 * _bump(x, y, 0, tip - 0.035, wing * 0.52, 0.065)  # the ball
    height += 0.045 * _bump(x, y, 0, -0.02, 0.085, 0.16)
    height += p.brow_ridge * _bump(x, y, 0, p.brow_y + 0.10, 0.30, 0.10)
    height += 0.055 * _bump(x, y, 0, p.mouth + 0.005, p.mouth_width * 0.85, 0.17)
    height -= 0.03 * _bump(x, y, 0, tip + 0.14, 0.045, 0.07)  # the groove above the lip
    height += 0.040 * _bump(x, y, 0, p.mouth - p.upper_lip * 0.5, p.mouth_width * 0.55, p.upper_lip * 0.6)
    height += 0.055 * _bump(x, y, 0, p.mouth + p.lower_lip * 0.55, p.mouth_width * 0.50, p.lower_lip * 0.55)
    height -= 0.045 * _bump(x, y, 0, p.mouth + p.lower_lip + 0.09, 0.22, 0.06)
    height += 0.075 * _bump(x, y, 0, p.chin - 0.17, 0.17 + 0.35 * (p.chin_width - 0.25), 0.13)
    for side in (-1, 1):
        eye = side * p.eye_x
        height += 0.062 * _bump(x, y, side * wing * 0.98, tip - 0.015, 0.062, 0.060)  # wings
        height -= 0.085 * _bump(x, y, eye - side * 0.04, -0.07, 0.21, 0.115) * (1.25 - 0.5 * p.lid)
        height -= 0.03 * _bump(x, y, side * 0.20, 0.02, 0.07, 0.10)  # the inner corner
        height += 0.070 * _bump(x, y, eye, 0.005, 0.155, 0.095)
        height += (0.025 + p.brow_ridge) * _bump(x, y, eye + side * 0.05, p.brow_y + 0.02, 0.27, 0.085)
        height += p.cheekbone * _bump(x, y, side * 0.58, 0.42, 0.24, 0.17)
        height -= 0.030 * _bump(x, y, side * 0.62, 0.95, 0.15, 0.22)
        height -= 0.022 * _bump(x, y, side * (p.mouth_width + 0.06), p.mouth - 0.03, 0.05, 0.06)
    return height


@lru_cache(maxsize=32)
def head(person: Person, jaw_drop: int | float = 0.0, cheeks: int | float = 0.0) -> Head:
    """The head with its jaw lowered and its cheeks raised by a smile, in head units."""
    points, paper = _still(person)
    points = points.copy()
    x, y = points[..., 0], paper[..., 1]
    if cheeks:
        for side in (-1, 1):
            points[..., 2] += np.float32(cheeks) * _bump(x, y, side * 0.50, 0.52, 0.19, 0.14) * (points[..., 2] > 0.2)
    if jaw_drop:
        start = person.mouth - 0.05
        points[..., 1] += np.float32(jaw_drop) * np.clip((y - start) / (person.chin - start), 0, 1) ** 1.2 * np.clip(points[..., 2] + 0.5, 0, 1)
    return Head(points, normals(points).astype(np.float32), paper)


def place(person: Person, shape: Head, paper: Float[np.ndarray, "n 2"]) -> Float32[np.ndarray, "n 3"]:
    """The points in space of places painted on the front of the face."""
    # Each row of the grid lies at one height of the paper, so the row comes first, then the column in two neighbouring rows.
    heights = shape.paper[:, shape.paper.shape[1] // 2, 1]
    middle = slice(SIDE, SIDE + FRONT)
    found = []
    for x, y in np.asarray(paper, np.float64):
        row = float(np.interp(y, heights, np.arange(ROWS)))
        r = min(int(row), ROWS - 2)
        ends = [[np.interp(x, shape.paper[i, middle, 0], shape.points[i, middle, k]) for k in range(3)] for i in (r, r + 1)]
        found.append(np.array(ends[0]) * (1 - (row - r)) + np.array(ends[1]) * (row - r))
    return np.array(found, np.float32)
