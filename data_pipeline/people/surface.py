"""Curved surfaces: a grid of points in space, projected and rasterised, so that every pixel knows which part of the surface it shows.

Also flat sheets on which shapes are painted. NumPy and OpenCV, no GPU.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float, Float32, Int, Real

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


def rotation(yaw: float, pitch: float, roll: float) -> Float[np.ndarray, "3 3"]:
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

    def sample(self, values: Float32[np.ndarray, "r c *k"], cubic: bool = False) -> Float32[np.ndarray, "h w *k"]:
        """Values given at the grid's points, at every pixel."""
        return cv2.remap(values, self.column, self.row, cv2.INTER_CUBIC if cubic else cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def rasterise(flat: Float[np.ndarray, "r c 2"], depth: Float[np.ndarray, "r c"], canvas: tuple[int, int], step: int = 1, back: bool = False) -> Seen | None:
    """What a canvas (height, width) sees of a grid of projected points; of the inside with `back`. None when nothing.

    Every `step`-th row and column of the grid becomes a corner. Facets are painted far to near.
    """
    height, width = canvas
    rows, columns = _steps(flat.shape[0], step), _steps(flat.shape[1], step)
    corners = flat[np.ix_(rows, columns)]
    quads = np.stack([corners[:-1, :-1], corners[:-1, 1:], corners[1:, 1:], corners[1:, :-1]], axis=2)
    one, two = quads[..., 2, :] - quads[..., 0, :], quads[..., 3, :] - quads[..., 1, :]
    area = one[..., 0] * two[..., 1] - one[..., 1] * two[..., 0]
    low, high = quads.min(axis=2), quads.max(axis=2)
    wanted = ((area < 0) if back else (area > 0)) & (high > 0).all(axis=-1) & (low < (width, height)).all(axis=-1)
    r, c = np.nonzero(wanted)
    if not len(r):
        return None
    order = np.argsort(depth[np.ix_(rows, columns)][r, c])
    r, c = r[order], c[order]
    quads = quads[r, c]
    left, top = np.maximum(np.floor(quads.min(axis=(0, 1))).astype(int) - 1, 0)
    right, bottom = np.minimum(np.ceil(quads.max(axis=(0, 1))).astype(int) + 1, (width, height))
    if right <= left or bottom <= top:
        return None
    quads = quads - (left, top)
    ids = np.full((bottom - top, right - left), -1, np.int32)
    fill = cv2.fillConvexPoly
    for number, quad in enumerate(fixed(quads)):
        fill(ids, quad, number, cv2.LINE_8, 4)
    mask = ids >= 0
    y, x = np.nonzero(mask)
    k = ids[y, x]
    quads = quads.astype(np.float32)
    p = np.stack([x, y], axis=1).astype(np.float32) + 0.5 - quads[k, 0]
    across, down, diagonal = (quads[:, i] - quads[:, 0] for i in (1, 3, 2))
    # Two triangles a facet, on either side of the diagonal; in each the place is linear.
    side = p[:, 0] * diagonal[k, 1] - p[:, 1] * diagonal[k, 0] > 0
    u1, v1 = _solve(across, diagonal - across)
    u2, v2 = _solve(diagonal - down, down)
    u, v = (np.where(side[:, None], one[k], two[k]) for one, two in ((u1, u2), (v1, v2)))
    u, v = np.clip((u * p).sum(axis=1), 0, 1), np.clip((v * p).sum(axis=1), 0, 1)
    column, row = np.zeros(mask.shape, np.float32), np.zeros(mask.shape, np.float32)
    column[mask] = columns[c[k]] + u * (columns[c[k] + 1] - columns[c[k]])
    row[mask] = rows[r[k]] + v * (rows[r[k] + 1] - rows[r[k]])
    return Seen((slice(top, bottom), slice(left, right)), mask, column, row)


def _steps(count: int, step: int) -> Int[np.ndarray, "n"]:
    return np.unique(np.append(np.arange(0, count, step), count - 1))


def _solve(a: Float32[np.ndarray, "n 2"], b: Float32[np.ndarray, "n 2"]) -> tuple[Float32[np.ndarray, "n 2"], Float32[np.ndarray, "n 2"]]:
    """For p = u a + v b: the vectors whose products with p are u and v."""
    det = a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]
    det = np.where(np.abs(det) < 1e-6, 1e-6, det)[:, None]
    return np.stack([b[:, 1], -b[:, 0]], axis=1) / det, np.stack([-a[:, 1], a[:, 0]], axis=1) / det


def normals(points: Float[np.ndarray, "r c 3"]) -> Float[np.ndarray, "r c 3"]:
    """Unit normals of a grid of points, outwards where columns run to the right and rows down as seen from outside."""
    down, across = np.gradient(points, axis=(0, 1))
    normal = np.cross(across, down)
    return normal / (np.linalg.norm(normal, axis=-1, keepdims=True) + 1e-9)


def fixed(points: Real[np.ndarray, "*n 2"]) -> Int[np.ndarray, "*n 2"]:
    """Pixels for OpenCV's drawing: 4 binary digits after the point; its pixel centres lie on whole numbers."""
    return np.round((points - 0.5) * 16).astype(np.int32)


def spline(points: Real[np.ndarray, "n d"] | list, closed: bool = False, steps: int = 8) -> Float[np.ndarray, "m d"]:
    """A Catmull-Rom curve through the points."""
    p = np.asarray(points, np.float64)
    p = np.concatenate([p[-1:], p, p[:2]]) if closed else np.concatenate([p[:1], p, p[-1:]])
    t = np.linspace(0, 1, steps, endpoint=False)[None, :, None]
    a, b, c, d = (p[i : len(p) - 3 + i, None] for i in range(4))
    curve = (b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))).reshape(-1, p.shape[1])
    return curve if closed else np.concatenate([curve, p[-2:-1]])


class Sheet:
    """A flat piece of paper with its own units, on which masks are drawn: `scale` pixels a unit, (left, top) in units."""

    def __init__(self, pixels: Float32[np.ndarray, "h w k"], scale: float, left: float, top: float):
        self.pixels, self.scale, self.left, self.top = pixels, scale, left, top
        self.x = ((np.arange(pixels.shape[1], dtype=np.float32) + 0.5) / np.float32(scale) + np.float32(left))[None, :]
        self.y = ((np.arange(pixels.shape[0], dtype=np.float32) + 0.5) / np.float32(scale) + np.float32(top))[:, None]

    def window(self, x0: float, y0: float, x1: float, y1: float) -> "Sheet":
        """The part between two corners, on the same pixels."""
        h, w = self.pixels.shape[:2]
        i0, i1 = (int(np.clip(round((v - self.top) * self.scale), 0, h)) for v in (y0, y1))
        j0, j1 = (int(np.clip(round((v - self.left) * self.scale), 0, w)) for v in (x0, x1))
        i1, j1 = max(i1, min(i0 + 1, h)), max(j1, min(j0 + 1, w))
        return Sheet(self.pixels[i0:i1, j0:j1], self.scale, self.left + j0 / self.scale, self.top + i0 / self.scale)

    def _fixed(self, points: Points) -> Int[np.ndarray, "*n 2"]:
        return fixed((np.asarray(points, np.float64) - (self.left, self.top)) * self.scale)

    def fill(self, *outlines: Points, soft: float = 0.0) -> Float32[np.ndarray, "h w"]:
        mask = np.zeros(self.pixels.shape[:2], np.uint8)
        for outline in outlines:
            cv2.fillPoly(mask, [self._fixed(outline)], 255, cv2.LINE_AA, 4)
        return self._soft(mask, soft)

    def line(self, *curves: Points, width: float, soft: float = 0.0) -> Float32[np.ndarray, "h w"]:
        """Lines of `width` units; below a pixel they get fainter instead."""
        mask = np.zeros(self.pixels.shape[:2], np.uint8)
        pixels = width * self.scale
        cv2.polylines(mask, [self._fixed(curve) for curve in curves], False, min(255, round(255 * pixels)), max(1, round(pixels)), cv2.LINE_AA, 4)
        return self._soft(mask, soft)

    def _soft(self, mask: np.ndarray, soft: float) -> Float32[np.ndarray, "h w"]:
        values = mask.astype(np.float32)
        values *= 1 / 255
        return self.blur(values, soft)

    def blur(self, mask: Float32[np.ndarray, "h w"], soft: float) -> Float32[np.ndarray, "h w"]:
        sigma = soft * self.scale
        return cv2.GaussianBlur(mask, (0, 0), sigma) if sigma > 0.3 else mask

    def spot(self, x: float, y: float, width: float, height: float) -> Float32[np.ndarray, "h w"]:
        """A Gaussian spot of peak 1 (widths are standard deviations)."""
        return np.exp(-0.5 * ((self.y - np.float32(y)) / np.float32(height)) ** 2) * np.exp(-0.5 * ((self.x - np.float32(x)) / np.float32(width)) ** 2)

    def disc(self, x: float, y: float, radius: float, edge: float) -> Float32[np.ndarray, "h w"]:
        """A disc whose rim fades over `edge`, at least over a pixel."""
        edge = max(edge, 1 / self.scale)
        return np.clip((np.float32(radius) - np.hypot(self.x - np.float32(x), self.y - np.float32(y))) / np.float32(edge) + 0.5, 0, 1)

    def paint(self, colour, mask: Float32[np.ndarray, "h w"], opacity: float = 1.0) -> None:
        """Lays a colour, or a picture of this size, over the first three channels as far as the mask is opaque."""
        rgb = self.pixels[..., :3]
        mask = mask[..., None] * np.float32(opacity)
        rgb += (np.asarray(colour, np.float32) - rgb) * mask

    def darken(self, channel: int, mask: Float32[np.ndarray, "h w"], amount: float) -> None:
        """Multiplies one channel by 1 - amount * mask."""
        self.pixels[..., channel] *= 1 - np.float32(amount) * mask


def mirrored(points: list[tuple[float, float]] | Points, side: int, x: float = 0.0, y: float = 0.0) -> Points:
    """Moves points to (x, y). side -1 mirrors them: shapes are given for the right half of the picture, where x grows outwards."""
    return np.asarray(points, np.float64) * (side, 1) + (x, y)
