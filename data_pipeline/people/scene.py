"""What lies behind a person, out of focus: painted small and enlarged, which blurs it."""

import cv2
import numpy as np
from jaxtyping import Float32

from data_pipeline.people.attributes import COLOURS, Picture
from data_pipeline.people.surface import Number

Rgb = tuple[int, int, int]


def draw_scene(picture: Picture, height: int, width: int, rng: np.random.Generator) -> Float32[np.ndarray, "3 height width"]:
    """The scene of a picture, planes of red, green and blue from 0 to 1, without the picture's light."""
    short = 96
    ratio = short / min(height, width)
    h, w = round(height * ratio), round(width * ratio)
    small = _PAINTERS[picture.scene](h, w, rng, picture)
    focus = {"studio": 0.0, "city at night": 1.1, "street": 1.3, "space": 0.6, "library": 1.2, "kitchen": 1.4}.get(picture.scene, 1.5)
    if focus:
        small = cv2.GaussianBlur(small, (0, 0), focus)
    planes = np.empty((3, height, width), np.float32)
    for plane, channel in zip(planes, cv2.split(small.astype(np.float32, copy=False))):
        cv2.resize(channel, (width, height), plane, interpolation=cv2.INTER_CUBIC)
    return np.clip(planes, 0, 1, out=planes)


def _c(*rgb: int) -> np.ndarray:
    return np.array(rgb, np.float32) / 255


def _down(h: int, w: int, stops: list[tuple[Number, np.ndarray]]) -> Float32[np.ndarray, "h w 3"]:
    """Colours from the top (0) to the bottom (1)."""
    y = (np.arange(h) + 0.5) / h
    at = [s[0] for s in stops]
    column = np.stack([np.interp(y, at, [s[1][i] for s in stops]) for i in range(3)], axis=1)
    return np.ascontiguousarray(np.broadcast_to(column[:, None], (h, w, 3)), np.float32)


def _blobs(
    image: np.ndarray,
    rng: np.random.Generator,
    count: int,
    colours: list[np.ndarray],
    radius: tuple[Number, Number],
    top: Number,
    bottom: Number,
    spread: Number = 0.12,
) -> None:
    h, w = image.shape[:2]
    for _ in range(count):
        x, y, r = rng.uniform(-4, w + 4), rng.uniform(top * h, bottom * h), rng.uniform(*radius)
        colour = np.clip(colours[rng.integers(len(colours))] * rng.uniform(1 - spread * 2, 1 + spread), 0, 1)
        cv2.circle(image, (round(x * 8), round(y * 8)), round(r * 8), colour.tolist(), -1, cv2.LINE_AA, 3)


def _bokeh(
    image: np.ndarray,
    rng: np.random.Generator,
    count: int,
    colours: list[np.ndarray],
    radius: tuple[Number, Number],
    top: Number,
    bottom: Number,
    strength: Number = 0.7,
) -> None:
    """Lights out of focus: bright see-through discs with a brighter rim."""
    h, w = image.shape[:2]
    layer = np.zeros_like(image)
    for _ in range(count):
        x, y, r = rng.uniform(0, w), rng.uniform(top * h, bottom * h), rng.uniform(*radius)
        colour = colours[rng.integers(len(colours))] * rng.uniform(0.35, 1.0)
        disc = np.zeros_like(image)
        cv2.circle(disc, (round(x * 8), round(y * 8)), round(r * 8), (colour * strength).tolist(), -1, cv2.LINE_AA, 3)
        cv2.circle(disc, (round(x * 8), round(y * 8)), round(r * 8), colour.tolist(), 1, cv2.LINE_AA, 3)
        layer = np.maximum(layer, disc)
    image += (1 - image) * layer


def _hills(image: np.ndarray, rng: np.random.Generator, base: Number, rise: Number, rough: int, colour: np.ndarray, low: np.ndarray | None = None) -> None:
    h, w = image.shape[:2]
    knots = rng.uniform(-1, 1, rough)
    line = np.interp(np.linspace(0, rough - 1, w), np.arange(rough), knots)
    top = (base + rise * line) * h
    y = np.arange(h)[:, None]
    mask = np.clip(y - top[None, :] + 0.5, 0, 1)[..., None]
    fade = np.clip((y - top[None, :]) / (0.35 * h), 0, 1)[..., None]
    image += (colour + ((low if low is not None else colour) - colour) * fade - image) * mask


def _studio(h, w, rng, picture):
    wall = _c(*COLOURS[picture.scene_colour]) * 0.72 + 0.16
    y, x = np.mgrid[0:h, 0:w].astype(np.float32)
    cx, cy = w * rng.uniform(0.3, 0.7), h * rng.uniform(0.25, 0.5)
    near = np.exp(-(((x - cx) / (0.62 * w)) ** 2 + ((y - cy) / (0.62 * h)) ** 2))[..., None]
    texture = cv2.resize(rng.normal(0, 0.012, (h // 5, w // 5)).astype(np.float32), (w, h), interpolation=cv2.INTER_CUBIC)[..., None]
    return (wall * (0.62 + 0.55 * near) + texture).astype(np.float32)


def _forest(h, w, rng, picture):
    image = _down(h, w, [(0, _c(150, 186, 120)), (0.45, _c(88, 128, 66)), (1, _c(44, 66, 36))])
    _blobs(image, rng, 50, [_c(70, 112, 52), _c(110, 150, 74), _c(46, 82, 42)], (5, 12), -0.05, 0.75)
    for _ in range(6):
        x, wide = rng.uniform(0, w), rng.uniform(2, 6)
        tone = _c(58, 44, 32) * rng.uniform(0.7, 1.3)
        cv2.line(image, (round(x), -2), (round(x + rng.uniform(-5, 5)), h), tone.tolist(), round(wide), cv2.LINE_AA)
    _blobs(image, rng, 26, [_c(120, 164, 80), _c(84, 126, 58), _c(52, 88, 44)], (4, 9), 0.0, 1.0)
    _bokeh(image, rng, 14, [_c(226, 240, 160), _c(200, 226, 150)], (2, 5), 0.0, 0.6, 0.45)
    return image


def _beach(h, w, rng, picture):
    line = rng.uniform(0.40, 0.54)
    image = _down(
        h,
        w,
        [
            (0, _c(96, 168, 222)),
            (line - 0.02, _c(196, 226, 240)),
            (line, _c(44, 126, 164)),
            (line + 0.13, _c(76, 172, 186)),
            (line + 0.19, _c(214, 232, 226)),
            (line + 0.21, _c(232, 208, 164)),
            (1, _c(206, 172, 124)),
        ],
    )
    _clouds(image, rng, 0.0, line - 0.1)
    return image


def _clouds(image, rng, top, bottom, colour=None):
    h, w = image.shape[:2]
    noise = cv2.resize(rng.random((7, 6), dtype=np.float32), (w, h), interpolation=cv2.INTER_CUBIC) * 0.65
    noise += cv2.resize(rng.random((22, 16), dtype=np.float32), (w, h), interpolation=cv2.INTER_CUBIC) * 0.35
    y = (np.arange(h, dtype=np.float32) / h)[:, None]
    where = np.clip((noise - 0.52) * 4, 0, 1) * np.clip((y - top) * 12 + 0.3, 0, 1) * np.clip((bottom - y) * 8, 0, 1)
    image += ((_c(252, 250, 248) if colour is None else colour) - image) * (0.8 * where[..., None])


def _city(h, w, rng, picture):
    image = _down(h, w, [(0, _c(14, 18, 40)), (0.6, _c(40, 36, 64)), (1, _c(30, 26, 36))])
    for _ in range(9):
        x, wide, top = rng.uniform(-5, w), rng.uniform(8, 20), rng.uniform(0.05, 0.5) * h
        cv2.rectangle(image, (round(x), round(top)), (round(x + wide), h), (_c(24, 24, 44) * rng.uniform(0.6, 1.5)).tolist(), -1)
    _bokeh(image, rng, 34, [_c(255, 190, 90), _c(255, 120, 80), _c(120, 200, 255), _c(255, 230, 170), _c(240, 90, 160)], (2, 6), 0.1, 0.95, 0.65)
    return image


def _mountains(h, w, rng, picture):
    image = _down(h, w, [(0, _c(110, 160, 214)), (0.6, _c(214, 226, 236)), (1, _c(214, 226, 236))])
    _clouds(image, rng, 0.0, 0.35)
    _hills(image, rng, 0.34, 0.17, 7, _c(238, 242, 248), _c(120, 140, 172))
    _hills(image, rng, 0.52, 0.10, 8, _c(104, 126, 158), _c(120, 140, 160))
    _hills(image, rng, 0.70, 0.06, 6, _c(84, 120, 84), _c(98, 138, 76))
    return image


def _library(h, w, rng, picture):
    image = np.full((h, w, 3), _c(64, 42, 28), np.float32)
    shelf = h // 4 + 1
    books = [_c(142, 48, 42), _c(48, 72, 112), _c(58, 98, 70), _c(178, 142, 74), _c(98, 62, 42), _c(196, 182, 152), _c(92, 48, 82)]
    for top in range(-rng.integers(0, shelf), h, shelf):
        x = 0.0
        while x < w:
            wide, tall = rng.uniform(3, 7), shelf * rng.uniform(0.62, 0.88)
            colour = books[rng.integers(len(books))] * rng.uniform(0.6, 1.05)
            cv2.rectangle(image, (round(x), round(top + shelf - 2 - tall)), (round(x + wide) - 1, top + shelf - 3), colour.tolist(), -1)
            x += wide
        cv2.rectangle(image, (0, top + shelf - 3), (w, top + shelf - 1), _c(122, 84, 52).tolist(), -1)
    return image * (0.65 + 0.5 * np.exp(-(((np.arange(w) - w * rng.uniform(0.3, 0.7)) / (0.5 * w)) ** 2)).astype(np.float32)[None, :, None])


def _sunset(h, w, rng, picture):
    line = rng.uniform(0.55, 0.68)
    image = _down(
        h,
        w,
        [
            (0, _c(74, 66, 122)),
            (line * 0.5, _c(214, 106, 104)),
            (line * 0.85, _c(252, 168, 90)),
            (line, _c(255, 214, 132)),
            (line + 0.01, _c(120, 74, 92)),
            (1, _c(52, 38, 62)),
        ],
    )
    x, y = w * rng.choice([rng.uniform(0.05, 0.3), rng.uniform(0.7, 0.95)]), h * (line - 0.1)
    grid_y, grid_x = np.mgrid[0:h, 0:w].astype(np.float32)
    r = np.hypot(grid_x - x, grid_y - y)
    image += (_c(255, 244, 206) - image) * np.clip(np.exp(-((r / 22) ** 2)) * 0.6 + np.clip(8 - r, 0, 1), 0, 1)[..., None]
    _clouds(image, rng, 0.05, line - 0.05, _c(238, 126, 116))
    _hills(image, rng, line, 0.03, 7, _c(66, 44, 70))
    return image


def _snow(h, w, rng, picture):
    image = _down(h, w, [(0, _c(176, 194, 212)), (0.55, _c(222, 230, 238)), (1, _c(244, 247, 252))])
    for _ in range(12):
        x, base, tall = rng.uniform(0, w), rng.uniform(0.45, 0.75) * h, rng.uniform(0.25, 0.5) * h
        tone = _c(74, 102, 104) * rng.uniform(0.8, 1.4)
        for k in range(3):
            top = base - tall * (0.4 + 0.3 * k)
            wide = tall * (0.34 - 0.08 * k)
            cv2.fillPoly(
                image,
                [np.round(np.array([(x, top - tall * 0.1), (x - wide, top + tall * 0.35), (x + wide, top + tall * 0.35)])).astype(np.int32)],
                (tone * 0.6 + 0.36).tolist() if k % 2 else tone.tolist(),
                cv2.LINE_AA,
            )
    _hills(image, rng, 0.72, 0.04, 5, _c(240, 245, 250), _c(226, 234, 244))
    _bokeh(image, rng, 30, [_c(255, 255, 255)], (0.8, 2.2), 0.0, 1.0, 0.8)
    return image


def _desert(h, w, rng, picture):
    image = _down(h, w, [(0, _c(106, 168, 214)), (0.5, _c(236, 222, 190)), (1, _c(236, 222, 190))])
    _hills(image, rng, 0.48, 0.07, 5, _c(196, 122, 72), _c(214, 150, 92))
    _hills(image, rng, 0.62, 0.06, 4, _c(226, 164, 98), _c(206, 136, 78))
    _hills(image, rng, 0.80, 0.05, 3, _c(238, 184, 118), _c(214, 150, 90))
    return image


def _garden(h, w, rng, picture):
    image = _down(h, w, [(0, _c(170, 208, 232)), (0.3, _c(180, 206, 160)), (1, _c(66, 112, 54))])
    _blobs(image, rng, 42, [_c(84, 134, 64), _c(122, 168, 82), _c(60, 104, 54)], (5, 11), 0.2, 1.0)
    petals = [_c(236, 96, 128), _c(250, 196, 80), _c(206, 120, 210), _c(250, 240, 240), _c(232, 72, 64)]
    _blobs(image, rng, 46, [petals[i] for i in rng.choice(5, 3, replace=False)], (1.2, 3.4), 0.3, 1.0)
    return image


def _street(h, w, rng, picture):
    image = _down(h, w, [(0, _c(204, 216, 228)), (0.6, _c(220, 214, 204)), (0.75, _c(150, 146, 142)), (1, _c(112, 110, 110))])
    x = -4.0
    while x < w:
        wide, top = rng.uniform(14, 28), rng.uniform(-0.1, 0.25) * h
        wall = [_c(196, 150, 118), _c(206, 190, 160), _c(164, 96, 78), _c(150, 160, 170), _c(222, 204, 176)][rng.integers(5)] * rng.uniform(0.8, 1.05)
        cv2.rectangle(image, (round(x), round(top)), (round(x + wide), round(0.74 * h)), wall.tolist(), -1)
        for wy in range(round(top) + 5, round(0.68 * h), 13):
            for wx in range(round(x) + 3, round(x + wide) - 4, 8):
                cv2.rectangle(image, (wx, wy), (wx + 4, wy + 7), (_c(92, 108, 124) * rng.uniform(0.7, 1.5)).tolist(), -1)
        x += wide
    return np.clip(image, 0, 1)


def _kitchen(h, w, rng, picture):
    wall = [_c(226, 222, 210), _c(198, 214, 214), _c(232, 214, 184)][rng.integers(3)]
    image = np.ones((h, w, 3), np.float32) * wall
    door = [_c(120, 148, 146), _c(176, 130, 88), _c(236, 234, 230), _c(86, 104, 128)][rng.integers(4)]
    for x in range(-rng.integers(0, 20), w, 24):
        cv2.rectangle(image, (x, -2), (x + 22, round(0.28 * h)), (door * rng.uniform(0.9, 1.05)).tolist(), -1)
        cv2.rectangle(image, (x, round(0.72 * h)), (x + 22, h), (door * rng.uniform(0.85, 1.0)).tolist(), -1)
    cv2.rectangle(image, (0, round(0.66 * h)), (w, round(0.72 * h)), _c(96, 78, 66).tolist(), -1)
    for _ in range(8):
        x, tall = rng.uniform(0, w), rng.uniform(6, 16)
        colour = [_c(206, 84, 60), _c(70, 120, 96), _c(230, 190, 90), _c(240, 240, 236), _c(60, 80, 120)][rng.integers(5)]
        cv2.rectangle(image, (round(x), round(0.66 * h - tall)), (round(x + rng.uniform(4, 9)), round(0.66 * h)), colour.tolist(), -1)
    return image


def _autumn(h, w, rng, picture):
    image = _down(h, w, [(0, _c(226, 206, 166)), (0.6, _c(196, 130, 66)), (1, _c(132, 80, 44))])
    for _ in range(5):
        x = rng.uniform(0, w)
        cv2.line(image, (round(x), 0), (round(x), round(0.8 * h)), _c(72, 50, 40).tolist(), round(rng.uniform(2, 4)), cv2.LINE_AA)
    _blobs(image, rng, 56, [_c(222, 120, 42), _c(236, 176, 62), _c(186, 70, 38), _c(164, 132, 56)], (3, 9), -0.05, 0.72)
    _blobs(image, rng, 44, [_c(214, 128, 54), _c(176, 84, 44)], (1, 3), 0.75, 1.0)
    return image


def _space(h, w, rng, picture):
    image = _down(h, w, [(0, _c(10, 10, 28)), (1, _c(26, 16, 50))])
    noise = cv2.resize(rng.random((6, 6), dtype=np.float32), (w, h), interpolation=cv2.INTER_CUBIC)[..., None]
    image += np.clip(noise - 0.45, 0, 1) * [_c(140, 60, 190), _c(50, 110, 200), _c(190, 80, 110)][rng.integers(3)]
    for _ in range(90):
        cv2.circle(image, (int(rng.integers(w)), int(rng.integers(h))), 0, (np.ones(3) * rng.uniform(0.4, 1.6)).tolist(), -1)
    x, y, r = rng.uniform(0.05, 0.95) * w, rng.uniform(0.05, 0.35) * h, rng.uniform(7, 15)
    colour = [_c(214, 140, 84), _c(96, 150, 206), _c(190, 170, 140)][rng.integers(3)]
    grid_y, grid_x = np.mgrid[0:h, 0:w].astype(np.float32)
    disc = np.clip(r - np.hypot(grid_x - x, grid_y - y), 0, 1)[..., None]
    lit = np.clip(0.55 - (grid_x - x + grid_y - y) / (2.4 * r), 0.08, 1)[..., None]
    image += (colour * lit - image) * disc
    return image.astype(np.float32)


_PAINTERS = {
    "studio": _studio, "forest": _forest, "beach": _beach, "city at night": _city, "mountains": _mountains, "library": _library, "sunset": _sunset,
    "snow": _snow, "desert": _desert, "garden": _garden, "street": _street, "kitchen": _kitchen, "autumn park": _autumn, "space": _space,
}  # fmt: skip
