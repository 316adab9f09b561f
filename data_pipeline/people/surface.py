"""Curved surfaces: a grid of points in space, projected and rasterised, so that every pixel knows which part of the surface it shows.

Also flat sheets on which shapes are painted. NumPy and OpenCV, no GPU.
"""

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from jaxtyping import Float, Float32, Int, Real

Number = int | float | np.floating
Points = Real[np.ndarray, "*n 2"]


@dataclass(frozen=True)
class View:
    """How head space is seen: turned about `pivot`, in slight perspective, then moved to a place on the canvas (`scale` pixels per head unit)."""

    rotation: Float[np.ndarray, "3 3"]
    pivot: Float[np.ndarray, "3"]
    scale: float
    origin: tuple[float, float]  # where the pivot lies on the canvas, in pixels
    distance: float = 11.0

    def space(self, points: Float[np.ndarray, "*n 3"]) -> Float[np.ndarray, "*n 3"]:
        """Turned, still in head units, relative to the pivot."""
        return (points - self.pivot) @ self.rotation.T

    def flat(self, turned: Float[np.ndarray, "*n 3"]) -> Float[np.ndarray, "*n 2"]:
        """Pixels of the canvas, x and y; a pixel's centre is at half."""
        near = self.distance / (self.distance - turned[..., 2:])
        return turned[..., :2] * (near * self.scale) + np.asarray(self.origin, turned.dtype)

    def __call__(self, points: Float[np.ndarray, "*n 3"]) -> Float[np.ndarray, "*n 2"]:
        return self.flat(self.space(points))


def rotation(yaw: Number, pitch: Number, roll: Number) -> Float[np.ndarray, "3 3"]:
    """Turns by degrees: yaw to the viewer's right, pitch downwards, roll clockwise as the viewer sees it."""
    a, b, c = np.radians([yaw, pitch, roll])
    turn = np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
    nod = np.array([[1, 0, 0], [0, np.cos(b), np.sin(b)], [0, -np.sin(b), np.cos(b)]])
    tilt = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return tilt @ nod @ turn


@dataclass(frozen=True)
class Seen:
    """The part of the canvas that shows a surface: `column` and `row` of its grid at every pixel of the window, where `mask` is set."""

    window: tuple[slice, slice]
    mask: np.ndarray
    column: Float32[np.ndarray, "h w"]
    row: Float32[np.ndarray, "h w"]

    def sample(self, *values: Float32[np.ndarray, "r c"]) -> list[Float32[np.ndarray, "h w"]]:
        """Values given at the grid's points, at every pixel."""
        return [cv2.remap(v, self.column, self.row, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE) for v in values]


def coarseness(view: View) -> int:
    """The step of `rasterise` that loses nothing one could see."""
    return 1 if view.scale > 130 else 2 if view.scale > 70 else 3


def rasterise(flat: Float[np.ndarray, "r c 2"], depth: Float[np.ndarray, "r c"], canvas: tuple[int, int], step: int = 1, back: bool = False) -> Seen | None:
    """What a canvas (height, width) sees of a grid of projected points; of the inside with `back`. None when nothing.

    Every `step`-th row and column of the grid becomes a corner. Facets are painted far to near.
    """
    height, width = canvas
    rows, columns = _steps(flat.shape[0], step), _steps(flat.shape[1], step)
    grid = np.ix_(rows, columns)
    x, y = flat[..., 0][grid].astype(np.float32), flat[..., 1][grid].astype(np.float32)
    corners_x, corners_y = ((v[:-1, :-1], v[:-1, 1:], v[1:, 1:], v[1:, :-1]) for v in (x, y))
    area = (corners_x[2] - corners_x[0]) * (corners_y[3] - corners_y[1]) - (corners_y[2] - corners_y[0]) * (corners_x[3] - corners_x[1])
    low_x, low_y, high_x, high_y = _least(corners_x), _least(corners_y), _most(corners_x), _most(corners_y)
    wanted = ((area < 0) if back else (area > 0)) & (high_x > 0) & (high_y > 0) & (low_x < width) & (low_y < height)
    r, c = np.nonzero(wanted)
    if not len(r):
        return None
    order = np.argsort(depth[grid][r, c])
    r, c = r[order], c[order]
    left, top = max(int(low_x[r, c].min()) - 1, 0), max(int(low_y[r, c].min()) - 1, 0)
    right, bottom = min(int(high_x[r, c].max()) + 2, width), min(int(high_y[r, c].max()) + 2, height)
    if right <= left or bottom <= top:
        return None
    px, py = (np.stack([v[r, c] for v in corners], axis=1) - np.float32(start) for corners, start in ((corners_x, left), (corners_y, top)))
    ids = np.full((bottom - top, right - left), -1, np.int32)
    fill = cv2.fillConvexPoly
    for number, quad in enumerate(fixed(np.stack([px, py], axis=2))):
        fill(ids, quad, number, cv2.LINE_8, 4)
    mask = ids >= 0
    place = np.flatnonzero(mask)
    k = ids.ravel()[place]
    # Two triangles a facet, on either side of the diagonal; in each, the place is linear: u = a x + b y, v = c x + d y.
    dx, dy = (p - p[:, :1] for p in (px, py))  # from the first corner: across 1, diagonal 2, down 3
    upper = _solve(dx[:, 1], dy[:, 1], dx[:, 2] - dx[:, 1], dy[:, 2] - dy[:, 1])
    lower = _solve(dx[:, 2] - dx[:, 3], dy[:, 2] - dy[:, 3], dx[:, 3], dy[:, 3])
    at_x = (place % ids.shape[1]).astype(np.float32) + np.float32(0.5) - px[k, 0]
    at_y = (place // ids.shape[1]).astype(np.float32) + np.float32(0.5) - py[k, 0]
    half = (at_x * dy[k, 2] - at_y * dx[k, 2] <= 0) + 2 * k
    a, b, c_, d = (np.stack(pair, axis=1).ravel()[half] for pair in zip(upper, lower))
    u, v = np.clip(a * at_x + b * at_y, 0, 1), np.clip(c_ * at_x + d * at_y, 0, 1)
    column, row = np.zeros(ids.size, np.float32), np.zeros(ids.size, np.float32)
    column[place] = columns[c][k] + u * np.diff(columns)[c][k]
    row[place] = rows[r][k] + v * np.diff(rows)[r][k]
    return Seen((slice(top, bottom), slice(left, right)), mask, column.reshape(ids.shape), row.reshape(ids.shape))


def _least(corners):
    return np.minimum(np.minimum(corners[0], corners[1]), np.minimum(corners[2], corners[3]))


def _most(corners):
    return np.maximum(np.maximum(corners[0], corners[1]), np.maximum(corners[2], corners[3]))


def _steps(count: int, step: int) -> Int[np.ndarray, "n"]:
    return np.unique(np.append(np.arange(0, count, step), count - 1))


def _solve(ax, ay, bx, by):
    """For p = u a + v b: the factors of p's x and y in u, and in v."""
    det = ax * by - ay * bx
    det = 1 / np.where(np.abs(det) < 1e-6, np.float32(1e-6), det)
    return by * det, -bx * det, -ay * det, ax * det


def normals(points: Float[np.ndarray, "r c 3"]) -> Float32[np.ndarray, "r c 3"]:
    """Unit normals of a grid of points, outwards where columns run to the right and rows down as seen from outside."""
    planes = np.ascontiguousarray(np.moveaxis(points, -1, 0), np.float32)
    (ax, ay, az), (dx, dy, dz) = _differences(planes, 2), _differences(planes, 1)
    normal = np.stack([ay * dz - az * dy, az * dx - ax * dz, ax * dy - ay * dx], axis=-1)
    return normal / (np.sqrt((normal * normal).sum(axis=-1, keepdims=True)) + np.float32(1e-9))


def _differences(planes: np.ndarray, axis: int) -> np.ndarray:
    """Steps from the neighbour before to the neighbour after."""
    first, last = (np.take(planes, [k], axis) for k in (0, -1))
    padded = np.concatenate([first, planes, last], axis)
    return padded[:, 2:] - padded[:, :-2] if axis == 1 else padded[..., 2:] - padded[..., :-2]


def fixed(points: Real[np.ndarray, "*n 2"]) -> Int[np.ndarray, "*n 2"]:
    """Pixels for OpenCV's drawing: 4 binary digits after the point; its pixel centres lie on whole numbers."""
    return np.round((points - 0.5) * 16).astype(np.int32)


def spline(points: Real[np.ndarray, "n d"] | list, closed: bool = False, steps: int = 8) -> Float[np.ndarray, "m d"]:
    """A Catmull-Rom curve through the points, `steps` pieces from each to the next."""
    p = np.asarray(points, np.float64)
    p = np.concatenate([p[-1:], p, p[:2]]) if closed else np.concatenate([p[:1], p, p[-1:]])
    a, b, c, d = (p[None, i : len(p) - 3 + i] for i in range(4))
    before, at, after, beyond = _weights(steps)
    curve = (before * a + at * b + after * c + beyond * d).swapaxes(0, 1).reshape(-1, p.shape[1])
    return curve if closed else np.concatenate([curve, p[-2:-1]])


@lru_cache(maxsize=16)
def _weights(steps: int) -> tuple[np.ndarray, ...]:
    t = (np.arange(steps) / steps)[:, None, None]
    return -t / 2 + t**2 - t**3 / 2, 1 - 2.5 * t**2 + 1.5 * t**3, t / 2 + 2 * t**2 - 1.5 * t**3, (t**3 - t**2) / 2


@dataclass(frozen=True)
class Layer:
    """A painted piece of the canvas, as planes."""

    window: tuple[slice, slice]
    rgb: Float32[np.ndarray, "3 h w"]
    alpha: Float32[np.ndarray, "h w"]

    def over(self, canvas: Float32[np.ndarray, "3 H W"]) -> None:
        rows, columns = self.window
        for plane, colour in zip(canvas, self.rgb):
            part = plane[rows, columns]
            part += (colour - part) * self.alpha


class Sheet:
    """A flat piece of paper with its own units, on which masks are drawn: `scale` pixels a unit, (left, top) in units.

    Pixels are planes, one a channel: on planes NumPy is several times faster.
    """

    def __init__(self, pixels: Float32[np.ndarray, "k h w"], scale: Number, left: Number, top: Number):
        self.pixels, self.scale, self.left, self.top = pixels, scale, left, top
        self.x = ((np.arange(pixels.shape[2], dtype=np.float32) + 0.5) / np.float32(scale) + np.float32(left))[None, :]
        self.y = ((np.arange(pixels.shape[1], dtype=np.float32) + 0.5) / np.float32(scale) + np.float32(top))[:, None]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.pixels.shape[1:]

    def window(self, x0: Number, y0: Number, x1: Number, y1: Number) -> "Sheet":
        """The part between two corners, on the same pixels; at least one pixel."""
        h, w = self.size
        i0, i1 = (min(max(round((v - self.top) * self.scale), 0), h) for v in (y0, y1))
        j0, j1 = (min(max(round((v - self.left) * self.scale), 0), w) for v in (x0, x1))
        i0, j0 = min(i0, h - 1), min(j0, w - 1)
        i1, j1 = max(i1, i0 + 1), max(j1, j0 + 1)
        return Sheet(self.pixels[:, i0:i1, j0:j1], self.scale, self.left + j0 / self.scale, self.top + i0 / self.scale)

    def _fixed(self, points: Points) -> Int[np.ndarray, "*n 2"]:
        return fixed((np.asarray(points, np.float64) - (self.left, self.top)) * self.scale)

    def fill(self, *outlines: Points, soft: Number = 0.0) -> Float32[np.ndarray, "h w"]:
        mask = np.zeros(self.size, np.uint8)
        for outline in outlines:
            cv2.fillPoly(mask, [self._fixed(outline)], 255, cv2.LINE_AA, 4)
        return self._soft(mask, soft)

    def line(self, *curves: Points, width: Number, soft: Number = 0.0) -> Float32[np.ndarray, "h w"]:
        """Lines of `width` units; below a pixel they get fainter instead."""
        mask = np.zeros(self.size, np.uint8)
        pixels = width * self.scale
        cv2.polylines(mask, [self._fixed(curve) for curve in curves], False, min(255, round(255 * pixels)), max(1, round(pixels)), cv2.LINE_AA, 4)
        return self._soft(mask, soft)

    def strokes(self, ends: Float[np.ndarray, "n 2 2"], width: Number) -> Float32[np.ndarray, "h w"]:
        """Many straight lines."""
        mask = np.zeros(self.size, np.uint8)
        pixels = width * self.scale
        cv2.polylines(mask, list(self._fixed(ends)), False, min(255, round(255 * pixels)), max(1, round(pixels)), cv2.LINE_AA, 4)
        return self._soft(mask, 0.0)

    def dots(self, x: Float[np.ndarray, "n"], y: Float[np.ndarray, "n"], radius: Float[np.ndarray, "n"], strength: Float[np.ndarray, "n"], soft: Number):
        """Many discs, each with its strength (0 to 1)."""
        mask = np.zeros(self.size, np.uint8)
        places = self._fixed(np.stack([x, y], axis=1)).tolist()
        for place, r, s in zip(places, np.round(radius * self.scale * 16).astype(int).tolist(), np.round(strength * 255).tolist()):
            cv2.circle(mask, place, r, s, -1, cv2.LINE_AA, 4)
        return self._soft(mask, soft)

    def _soft(self, mask: np.ndarray, soft: Number) -> Float32[np.ndarray, "h w"]:
        values = mask.astype(np.float32)
        values *= 1 / 255
        return self.blur(values, soft)

    def blur(self, mask: Float32[np.ndarray, "h w"], soft: Number) -> Float32[np.ndarray, "h w"]:
        sigma = soft * self.scale
        return cv2.GaussianBlur(mask, (0, 0), sigma) if sigma > 0.3 else mask

    def spot(self, x: Number, y: Number, width: Number, height: Number) -> Float32[np.ndarray, "h w"]:
        """A Gaussian spot of peak 1 (widths are standard deviations)."""
        return np.exp(-0.5 * ((self.y - np.float32(y)) / np.float32(height)) ** 2) * np.exp(-0.5 * ((self.x - np.float32(x)) / np.float32(width)) ** 2)

    def disc(self, x: Number, y: Number, radius: Number, edge: Number) -> Float32[np.ndarray, "h w"]:
        """A disc whose rim fades over `edge`, at least over a pixel."""
        edge = max(edge, 1 / self.scale)
        return np.clip((np.float32(radius) - np.hypot(self.x - np.float32(x), self.y - np.float32(y))) / np.float32(edge) + 0.5, 0, 1)

    def paint(self, colour, mask: Float[np.ndarray, "h w"], opacity: Number = 1.0) -> None:
        """Lays a colour, or a picture of this size (3, h, w), over the first three channels as far as the mask is opaque."""
        mask = mask.astype(np.float32, copy=False)
        if opacity != 1:
            mask = mask * np.float32(opacity)
        for plane, value in zip(self.pixels, np.asarray(colour, np.float32)):
            plane += (value - plane) * mask

    def dab(self, colour, x: Number, y: Number, width: Number, height: Number, opacity: Number) -> None:
        """Paints a Gaussian spot."""
        part = self.window(x - 3 * width, y - 3 * height, x + 3 * width, y + 3 * height)
        part.paint(colour, part.spot(x, y, width, height), opacity)

    def darken(self, channel: int, mask: Float[np.ndarray, "h w"], amount: Number) -> None:
        """Multiplies one channel by 1 - amount * mask."""
        self.pixels[channel] *= 1 - np.float32(amount) * mask

    def shade(self, channel: int, x: Number, y: Number, width: Number, height: Number, amount: Number) -> None:
        """Darkens by a Gaussian spot."""
        part = self.window(x - 3 * width, y - 3 * height, x + 3 * width, y + 3 * height)
        part.darken(channel, part.spot(x, y, width, height), amount)


def blend(start, end, share: Float[np.ndarray, "h w"]) -> Float32[np.ndarray, "3 h w"]:
    """A picture in colours from `start` (share 0) to `end` (share 1)."""
    start, end = (np.asarray(c, np.float32)[:, None, None] for c in (start, end))
    return start + (end - start) * share.astype(np.float32)


def times(colour, light: Float[np.ndarray, "*k h w"]) -> Float32[np.ndarray, "3 h w"]:
    """A colour under light."""
    return np.asarray(colour, np.float32)[:, None, None] * light.astype(np.float32, copy=False)


def mirrored(points: list[tuple[Number, Number]] | Points, side: int, x: Number = 0.0, y: Number = 0.0) -> Points:
    """Moves points to (x, y). side -1 mirrors them: shapes are given for the right half of the picture, where x grows outwards."""
    return np.asarray(points, np.float64) * (side, 1) + (x, y)
