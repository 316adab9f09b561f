"""What is worn on the head: domes around the skull, brims, bands, a crown, a scarf."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from data_pipeline.people.attributes import Picture, rgb
from data_pipeline.people.haircut import Shell, Style
from data_pipeline.people.head import Profile
from data_pipeline.people.identity import Person
from data_pipeline.people.light import Shading
from data_pipeline.people.surface import Layer, Number, Seen, View, coarseness, normals, rasterise, times

SCARF = Style((-0.84, -0.70, 1.6, 1.7, 1.7), top=0.15, front=0.11, side=0.12, flow="back", length=1.7, flare=-0.03, ragged=0.0, drape=36.0)
STRAW = (0.90, 0.76, 0.50)
GOLD = (0.93, 0.70, 0.26)
DOWN = np.array([0.0, 1.0, 0.0])


@dataclass(frozen=True)
class Scene:
    """Where cloth is drawn and how it is lit."""

    view: View
    shading: Shading
    canvas: tuple[int, int]

    @property
    def sharp(self) -> float:
        """How steep an edge is, a head unit."""
        return 0.6 * self.view.scale

    def look(self, points: Float[np.ndarray, "r c 3"], *values: np.ndarray, back: bool = False):
        """What is seen of a surface, the light on it, how it faces the viewer, and `values` at every pixel; None when nothing is seen."""
        turned = self.view.space(points)
        seen = rasterise(self.view.flat(turned), turned[..., 2], self.canvas, coarseness(self.view), back)
        if seen is None:
            return None
        normal = normals(points) @ self.view.rotation.T * (-1 if back else 1)
        grids = (self.shading.reach(normal), normal[..., 2], *(np.broadcast_to(v, points.shape[:2]) for v in values))
        return seen, *seen.sample(*(np.ascontiguousarray(g, np.float32) for g in grids))

    def layer(self, seen: Seen, colour, reach: np.ndarray, alpha: np.ndarray | float = 1.0) -> Layer:
        """`colour` is one colour or a picture of colours."""
        colour = np.minimum(np.asarray(colour, np.float32), 1)
        colour = colour[:, None, None] if colour.ndim == 1 else colour
        tone = self.shading.tone(self.shading.plain, np.clip(reach, 0, 1))
        return Layer(seen.window, colour * tone, np.clip(alpha * seen.mask, 0, 1).astype(np.float32))


def draw_hat(person: Person, picture: Picture, view: View, shading: Shading, canvas: tuple[int, int]) -> tuple[list[Layer], list[Layer]]:
    """Layers behind the head, and layers in front of the hair. A scarf is no hat: see `draw_scarf`."""
    painters = {"beanie": _beanie, "cap": _cap, "straw hat": _straw_hat, "headband": _headband, "crown": _crown}
    if picture.headwear not in painters:
        return [], []
    return painters[picture.headwear](person, rgb(picture.headwear_colour), Scene(view, shading, canvas))


def _dome(person: Person, thick: Number, low: Number, rise: Number) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A shell around the skull down to y = low, `rise` deeper at the back: points, angles, and how far down (0 to 1)."""
    profile = Profile(person)
    angle = np.radians(np.linspace(-178, 178, 73))[None, :]
    t = np.linspace(0.02, 1, 30)[:, None]
    y = profile.crown + (low + rise * (1 - np.cos(angle)) / 2 - profile.crown) * (1 - np.cos(t * np.pi / 2))
    angle, t = np.broadcast_to(angle, y.shape), np.broadcast_to(t, y.shape)
    points = profile.around(y, angle)
    out = points - np.array([0.0, -0.35, -0.15])
    return points + out * (thick / np.linalg.norm(out, axis=-1, keepdims=True)), angle, t


def _beanie(person: Person, colour, scene: Scene):
    points, angle, t = _dome(person, 0.13, -0.60, 0.55)
    points = points - DOWN * (0.10 * (1 - t[..., None]))
    points = points + normals(points) * (0.035 * np.clip((t - 0.74) / 0.03, 0, 1))[..., None]  # the part that is folded up
    if (found := scene.look(points, angle, t)) is None:
        return [], []
    seen, reach, facing, a, t = found
    ribs = 0.90 + 0.12 * np.cos(a * 44) * np.clip(scene.view.scale / 90, 0.3, 1)
    fold = 1 - 0.45 * np.exp(-(((t - 0.73) / 0.035) ** 2))
    return [], [scene.layer(seen, colour * 1.05, reach * ribs * fold * np.clip(0.45 + facing, 0, 1), np.clip((0.995 - t) * scene.sharp + 0.5, 0, 1))]


def _cap(person: Person, colour, scene: Scene):
    points, angle, t = _dome(person, 0.125, -0.70, 0.42)
    front = []
    if found := scene.look(points, angle):
        seen, reach, facing, a = found
        seam = 1 - 0.35 * np.exp(-(((np.mod(a / (np.pi / 3) + 0.5, 1) - 0.5) / 0.02) ** 2))
        front.append(scene.layer(seen, times(colour, seam), reach * np.clip(0.4 + facing, 0, 1)))
    out, a = np.linspace(0, 1, 9)[:, None], angle[-1]
    length = 0.72 * np.clip(np.cos(a * 1.35), 0, 1) ** 0.5
    visor = points[-1] + np.array([0, 0, 1.0]) * (length * out)[..., None] + DOWN * (0.66 * length * out**1.25 + 0.05 * np.sin(a) ** 2 * out)[..., None]
    return [], front + _brim(visor[:, np.abs(a) < np.radians(66)], colour, scene)


def _straw_hat(person: Person, colour, scene: Scene):
    points, angle, t = _dome(person, 0.19, -0.74, 0.30)
    points = points - DOWN * (0.14 * (1 - t[..., None]))
    front = []
    if found := scene.look(points, angle, t):
        seen, reach, facing, a, t = found
        grain = 0.92 + 0.09 * np.cos(a * 60) * np.cos(t * 70) * np.clip(scene.view.scale / 90, 0.3, 1)
        band = np.clip((t - 0.78) * 30, 0, 1)
        front.append(scene.layer(seen, times(STRAW, grain * (1 - band)) + times(colour, band), reach * np.clip(0.4 + facing, 0, 1)))
    a = angle[-1]
    outwards = np.stack([np.sin(a), 0 * a, np.cos(a)], axis=-1)

    def ring(start: Number) -> Float[np.ndarray, "r c 3"]:
        out = np.linspace(start, 1, 10)[:, None, None]
        return points[-1] + outwards * (0.78 * out) + DOWN * (0.02 + 0.16 * out**2 - 0.20 * out * np.cos(a)[:, None])

    back = ring(-0.45)  # its inner part closes the gap between hat and head
    around = np.argsort(np.mod(a, 2 * np.pi))  # columns begin in front instead of behind
    back = back[:, around]
    half = np.abs(a) < np.radians(100)
    return _brim(back, STRAW, scene), front + _brim(ring(0.0)[:, half], STRAW, scene)


def _brim(strip: Float[np.ndarray, "r c 3"], colour, scene: Scene) -> list[Layer]:
    """A strip seen from above and, darker, from below."""
    layers = []
    for back in (True, False):
        if found := scene.look(strip, back=back):
            seen, reach, _ = found
            layers.append(scene.layer(seen, np.asarray(colour) * (0.95 if back else 0.80), reach * (1.0 if back else 0.72) + 0.10))
    return layers


def _headband(person: Person, colour, scene: Scene):
    points, angle, _ = _dome(person, 0.155, -0.62, 0.25)
    if (found := scene.look(points, points[..., 1] - 0.25 * (1 - np.cos(angle)) / 2)) is None:
        return [], []
    seen, reach, facing, y = found
    off = np.abs(y + 0.80)
    hem = 1 - 0.4 * np.clip((off - 0.09) / 0.04, 0, 1)
    return [], [scene.layer(seen, colour, reach * np.clip(0.5 + facing, 0, 1) * hem, np.clip((0.13 - off) * scene.sharp + 0.5, 0, 1))]


def _crown(person: Person, colour, scene: Scene):
    angle, up = np.radians(np.linspace(-180, 180, 97))[None, :], np.linspace(1, 0, 12)[:, None]
    ring = Profile(person).around(np.full_like(angle, -0.86), angle, 0.16)[0]
    points = ring * np.array([1.0, 0, 1.0]) * (1 + 0.10 * up[..., None]) + DOWN * (-0.86 - 0.62 * up + 0.06 * (1 - np.cos(angle)))[..., None]
    layers = []
    for back in (True, False):
        if found := scene.look(points, angle, up, back=back):
            seen, reach, facing, a, u = found
            tooth = np.mod(a / (2 * np.pi / 11), 1) - 0.5
            gold = times(GOLD, (0.55 if back else 1.1) * (0.7 + 0.6 * np.clip(np.cos(a * 3 + 1), 0, 1) ** 3))
            jewel = (tooth / 0.13) ** 2 + ((u - 0.22) / 0.083) ** 2 < 1
            alpha = np.clip((0.94 - 1.04 * np.abs(tooth) - u) * scene.sharp * 0.6 + 0.5, 0, 1)
            layers.append(scene.layer(seen, np.where(jewel, colour[:, None, None], gold), reach * np.clip(0.5 + facing, 0, 1), alpha))
        else:
            layers.append(None)
    return [layer for layer in layers[:1] if layer], [layer for layer in layers[1:] if layer]


def draw_scarf(person: Person, picture: Picture, hair: Shell, view: View, shading: Shading, canvas: tuple[int, int], back: bool = False) -> Layer | None:
    """A headscarf, given as a shell of the style SCARF; with `back` its inside."""
    scene = Scene(view, shading, canvas)
    if (found := scene.look(hair.points, hair.inside, hair.across, hair.along, back=back)) is None:
        return None
    seen, reach, facing, inside, across, along = found
    colour = rgb(picture.headwear_colour)
    alpha = np.clip(inside * scene.sharp + 0.5, 0, 1)
    if back:
        return scene.layer(seen, colour * 0.5, np.full_like(reach, 0.25), alpha)
    folds = 0.86 + 0.14 * np.cos(across * 9 + 1.5 * np.sin(along * 2.1)) + 0.05 * np.cos(across * 23)
    hem = 1 - 0.35 * np.exp(-(((inside - 0.05) / 0.03) ** 2))
    return scene.layer(seen, colour, reach * folds * hem * np.clip(0.35 + facing, 0, 1), alpha)
