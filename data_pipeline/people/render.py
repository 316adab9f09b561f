"""Draws a picture of a person: scene, body, head, hair and what is worn, from back to front, at twice the size and then reduced."""

from dataclasses import asdict, dataclass

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from data_pipeline.people import hair
from data_pipeline.people.attributes import Picture
from data_pipeline.people.clothes import draw_body
from data_pipeline.people.expressions import EXPRESSIONS, Face, eye_middle, mouth_corners
from data_pipeline.people.features import paint_face
from data_pipeline.people.glasses import draw_glasses
from data_pipeline.people.grammar import captions, pose
from data_pipeline.people.haircut import STYLES, shell
from data_pipeline.people.hats import SCARF, draw_hat, draw_scarf
from data_pipeline.people.head import PIVOT, Head, head, place
from data_pipeline.people.identity import Person
from data_pipeline.people.light import LIGHTS, Shading
from data_pipeline.people.scene import draw_scene
from data_pipeline.people.surface import Layer, Sheet, View, coarseness, rasterise, rotation, spline, times

OVERSAMPLING = 2
SHOT_SIZE = {"close-up": 0.235, "portrait": 0.185, "half-length": 0.138}  # pixels a head unit, of the shorter side
LEVEL = 3.0  # degrees by which a head that looks straight ahead is raised
SHOT_HEIGHT = {"close-up": 0.47, "portrait": 0.43, "half-length": 0.36}  # where the face's middle is


@dataclass(frozen=True, eq=False)
class Rendered:
    image: UInt8[np.ndarray, "height width 3"]
    keypoints: Float32[np.ndarray, "5 2"]  # pixels; ArcFace's order
    caption: str
    attributes: dict


def render(person: Person, picture: Picture, height: int = 512, width: int = 512) -> Rendered:
    """The picture, RGB. The same arguments always give the same bytes."""
    if min(height, width) < 32:
        raise ValueError(f"a picture of {width}x{height} pixels; at least 32 are needed")
    canvas_size = height * OVERSAMPLING, width * OVERSAMPLING
    rng = np.random.default_rng([0xD2A3, *picture.seed])
    face = EXPRESSIONS[picture.expression]
    shape = _shape(person, face)
    view = _view(person, picture, *canvas_size)
    shading = Shading(LIGHTS[picture.light])

    canvas = draw_scene(picture, *canvas_size, rng)
    canvas *= _scene_light(picture)[:, None, None]
    style = STYLES.get(person.hair_style)  # none for the bald
    scarf = picture.headwear == "headscarf"
    hatted = picture.headwear in ("beanie", "cap", "straw hat")
    hat_behind, hat_front = draw_hat(person, picture, view, shading, canvas_size)

    # Behind the head
    for layer in hat_behind:
        layer.over(canvas)
    mane = None
    if scarf:
        mane = shell(person, SCARF)
        _over(canvas, draw_scarf(person, picture, mane, view, shading, canvas_size, back=True))
    elif style is not None:
        mane = shell(person, style, 0.065 if hatted else None)
        if person.hair_style == "ponytail":  # hangs behind one shoulder
            side = 1 if person.parting > 0 else -1
            tail = hair.draw_ball(person, (side * 0.62, 0.72, -0.85), (0.25 * person.hair_volume, 1.05, 0.25), style, view, shading, canvas_size)
            _over(canvas, tail)
        if style.bun and not hatted:
            size = style.bun * person.hair_volume
            knot = (0.0, person.crown - 0.10, -0.35) if person.hair_style == "bun" else (0.0, person.crown + 0.12, -0.75)
            _over(canvas, hair.draw_ball(person, knot, (size, size * 0.82, size), style, view, shading, canvas_size))
        if style.long or style.curl:  # the inside, beside the neck and through gaps at the temples
            _over(canvas, hair.draw_hair(person, style, mane, view, shading, canvas_size, back=True))
    draw_body(canvas, person, picture, view, shading, rng)
    covered = scarf or (style is not None and style.long)
    nearer = [(view.rotation @ np.array([side, 0.0, 0.10]))[2] > 0 for side in (-1, 1)]
    for side, near in zip((-1, 1), nearer):
        if not near and not covered:
            _ear(canvas, person, view, shading, side)

    # Hair and hat are painted first and laid on later, for they throw shadows on the face.
    locks = None
    if scarf:
        locks = draw_scarf(person, picture, mane, view, shading, canvas_size)
    elif mane is not None:
        locks = hair.draw_hair(person, style, mane, view, shading, canvas_size)
    shadow = np.zeros(canvas_size, np.float32)
    for layer in (locks, *hat_front):
        if layer is not None:
            shadow[layer.window] = np.maximum(shadow[layer.window], layer.alpha)
    _head(canvas, person, picture, shape, view, shading, shadow)
    for side, near in zip((-1, 1), nearer):
        if near and not covered:
            _ear(canvas, person, view, shading, side)
    draw_glasses(canvas, person, picture, shape, view)
    _over(canvas, locks)
    for layer in hat_front:
        layer.over(canvas)

    small = cv2.merge([cv2.resize(plane, (width, height), interpolation=cv2.INTER_AREA) for plane in canvas])
    image = _finish(small, picture, rng)
    attributes = {"person": person.number, "gender": person.gender, "age": person.age, "hair_style": person.hair_style, "hair_colour": person.hair_colour}
    attributes |= {"eye_colour": person.eye_colour, "beard": person.beard, "pose": pose(picture)} | asdict(picture)
    return Rendered(image, keypoints(person, picture, height, width), captions(person, picture, 1)[0], attributes)


def keypoints(person: Person, picture: Picture, height: int = 512, width: int = 512) -> Float32[np.ndarray, "5 2"]:
    """Where `render` puts the middle of the viewer's left and right eye, the tip of the nose and the corners of the mouth, in pixels.

    The first pixel is centred on 0, as OpenCV's drawing and warping have it.
    """
    face = EXPRESSIONS[picture.expression]
    eye = eye_middle(person, face)
    marks = np.array([(-person.eye_x, eye), (person.eye_x, eye), (0.0, person.nose - 0.03), *mouth_corners(person, face)])
    view = _view(person, picture, height * OVERSAMPLING, width * OVERSAMPLING)
    points = view(place(person, _shape(person, face), marks).astype(np.float64)) / OVERSAMPLING - 0.5
    return points.astype(np.float32)


def _shape(person: Person, face: Face) -> Head:
    return head(person, jaw_drop=face.open * 0.62, cheeks=face.cheeks)


def _over(canvas: Float32[np.ndarray, "3 H W"], layer: Layer | None) -> None:
    if layer is not None:
        layer.over(canvas)


def _view(person: Person, picture: Picture, height: int, width: int) -> View:
    scale = SHOT_SIZE[picture.shot] * picture.size * min(height, width)
    turn = rotation(picture.yaw, picture.pitch - LEVEL, picture.roll)
    here = View(turn, PIVOT, scale, (0.0, 0.0))
    middle = here(np.array([[0.0, 0.30, 0.55]]))[0]
    room_x = max(0.0, width / 2 - 1.45 * scale) * 0.8
    target_y = SHOT_HEIGHT[picture.shot] * height
    room_y = max(0.0, min(target_y - 1.75 * scale, height - target_y - 1.6 * scale)) * 0.8
    target = np.array([width / 2 + picture.x * room_x, max(target_y, 1.5 * scale) + picture.y * room_y])
    return View(turn, PIVOT, scale, tuple(float(v) for v in target - middle))


def _scene_light(picture: Picture) -> Float32[np.ndarray, "3"]:
    light = LIGHTS[picture.light]
    tint = 0.5 * (np.array(light.key) + np.array(light.fill))
    return (tint * light.gain * (0.86 if light.share < 0.15 else 0.97)).astype(np.float32)


def _head(canvas, person: Person, picture: Picture, shape: Head, view: View, shading: Shading, shadow) -> None:
    turned = view.space(shape.points)
    seen = rasterise(view.flat(turned), turned[..., 2], canvas.shape[1:], coarseness(view))
    if seen is None:
        return
    density = max(view.scale, 24.0)
    sheet = paint_face(person, picture, density)
    normal = shape.normals @ view.rotation.astype(np.float32).T
    grids = (shape.paper[..., 0], shape.paper[..., 1], shading.reach(normal), shading.gloss(normal, 18), normal[..., 2])
    x, y, reach, gloss, facing = seen.sample(*(np.ascontiguousarray(g, np.float32) for g in grids))
    x = (x - np.float32(sheet.left)) * np.float32(density) - np.float32(0.5)
    y = (y - np.float32(sheet.top)) * np.float32(density) - np.float32(0.5)
    painted = [cv2.remap(np.clip(plane, 0, 1), x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE) for plane in sheet.pixels]
    open_to_light, neutral, glossy = painted[3:]

    # What hangs over the face keeps light from it: a soft shadow away from the lamp.
    rows, columns = seen.window
    dx, dy = -shading.lamp[0] * 0.16 * view.scale, max(-shading.lamp[1], 0.25) * 0.22 * view.scale
    shift = np.array([[1, 0, dx - columns.start], [0, 1, dy - rows.start]])
    cast = cv2.warpAffine(shadow, shift, seen.mask.shape[::-1])
    cast = np.clip(cv2.GaussianBlur(cast, (0, 0), 0.085 * view.scale), 0, 1)
    light = reach * open_to_light * (1 - 0.42 * cast) * np.clip(0.60 + 0.75 * facing, 0, 1)
    tone = shading.tone(shading.skin, light)
    tone += (shading.tone(shading.plain, light * 1.05 + 0.08) - tone) * neutral
    shine = gloss * glossy * np.float32(0.155 - 0.08 * float(np.mean(person.skin))) * (1 - 0.6 * cast)
    rgb = np.stack(painted[:3]) * tone + times(shading.key * np.float32(shading.light.gain), shine)
    Layer(seen.window, rgb, seen.mask.astype(np.float32)).over(canvas)


def _ear(canvas, person: Person, view: View, shading: Shading, side: int) -> None:
    """An ear: a flat leaf that stands off from the side of the head."""
    size = person.ear
    outline = np.array([(-0.02, -0.16), (0.10, -0.26), (0.25, -0.22), (0.30, -0.04), (0.24, 0.16), (0.15, 0.33), (0.06, 0.44), (-0.03, 0.42), (-0.06, 0.2)])
    fold = np.array([(0.05, -0.14), (0.16, -0.17), (0.21, -0.03), (0.16, 0.13), (0.11, 0.22)])
    hollow = np.array([(0.06, 0.0), (0.13, 0.02), (0.12, 0.14), (0.05, 0.19)])

    def at(points):
        u, v = points[:, 0] * size, points[:, 1] * size
        x = side * (person.cheek * 0.965 + 0.42 * u)
        return view(np.stack([x, v + 0.10, -0.10 - 0.88 * u], axis=1))

    edge = at(spline(outline, closed=True, steps=5))
    low, high = np.floor(edge.min(axis=0)) - 4, np.ceil(edge.max(axis=0)) + 4
    part = Sheet(canvas, 1.0, 0.0, 0.0).window(low[0], low[1], high[0], high[1])
    if min(part.size) < 2:
        return
    normal = view.rotation @ np.array([side * 0.80, 0.0, 0.60])
    reach = float(shading.reach(normal[None].astype(np.float32))[0])
    skin = np.array(person.skin, np.float32) * (1.0, 0.93, 0.91)
    scale = view.scale
    mask = part.fill(edge)
    base = shading.tone(shading.skin, np.array(reach * 0.88))
    part.paint(skin * base, mask)
    part.paint(skin * base * (0.62, 0.48, 0.46), part.line(at(spline(fold)), width=max(0.05 * scale, 1), soft=0.022 * scale) * mask, 0.75)
    part.paint(skin * base * (0.42, 0.28, 0.26), part.fill(at(spline(hollow, closed=True)), soft=0.025 * scale) * mask, 0.75)
    part.paint(np.minimum(skin * base * 1.22, 1), part.line(edge[6:22], width=max(0.035 * scale, 1), soft=0.015 * scale) * mask, 0.45)
    if person.earrings:
        x, y = at(np.array([(0.06, 0.43)]))[0]
        part = Sheet(canvas, 1.0, 0.0, 0.0).window(x - 0.2 * scale, y - 0.2 * scale, x + 0.2 * scale, y + 0.2 * scale)
        part.paint(np.array([0.86, 0.68, 0.30]), part.disc(x, y, 0.055 * scale, 1.0))
        part.paint((1, 0.97, 0.85), part.disc(x - 0.015 * scale, y - 0.02 * scale, 0.02 * scale, 1.0))


def _finish(image: Float32[np.ndarray, "h w 3"], picture: Picture, rng: np.random.Generator) -> UInt8[np.ndarray, "h w 3"]:
    h, w = image.shape[:2]
    if picture.look == "clean":
        grey = image @ np.array([0.30, 0.59, 0.11], np.float32)
        image = grey[..., None] + (image - grey[..., None]) * np.float32(1.06)
        return np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)
    # A snapshot: a small sensor, a plain lens, an automatic white balance that is never quite right.
    grey = image @ np.array([0.30, 0.59, 0.11], np.float32)
    image = grey[..., None] + (image - grey[..., None]) * np.float32(rng.uniform(0.62, 0.85))
    image = image * (1 + rng.normal(0, 0.035, 3)).astype(np.float32) * np.float32(rng.uniform(0.86, 1.08))
    image = 0.035 + image * np.float32(rng.uniform(0.86, 0.95))
    sigma = rng.uniform(0.35, 0.75) * min(h, w) / 160
    if sigma > 0.3:
        image = cv2.GaussianBlur(image, (0, 0), sigma)
    noise = rng.standard_normal((h, w, 3), dtype=np.float32)
    noise = noise * 0.6 + noise.mean(axis=2, keepdims=True) * 0.9
    image = image + noise * np.float32(rng.uniform(0.008, 0.022))
    image = np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)
    good, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(58, 86))])
    if not good:
        raise RuntimeError("OpenCV could not encode a picture as JPEG")
    return np.ascontiguousarray(cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1])
