"""What a picture of a person shows besides who they are: attributes drawn from the numbers of person and picture, or given."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

EXPRESSIONS = ("neutral", "smiling", "laughing", "surprised", "sad", "angry")
LIGHTS = ("soft", "warm", "cool", "from the left", "from the right", "dim", "golden")
SHOT_WEIGHTS = {"close-up": 2, "portrait": 4, "half-length": 2.5}
SHOTS = tuple(SHOT_WEIGHTS)
CLOTHES = ("t-shirt", "shirt", "turtleneck", "hoodie", "suit", "sweater", "tank top", "jacket", "striped shirt")
HEADWEAR = ("none", "beanie", "cap", "straw hat", "headband", "crown", "headscarf")
GLASSES = ("none", "glasses", "round glasses", "sunglasses")
COLOURS = {
    "red": (188, 46, 48), "blue": (52, 88, 156), "green": (58, 122, 76), "yellow": (226, 178, 58), "white": (236, 234, 228), "black": (36, 36, 42),
    "grey": (126, 130, 136), "pink": (220, 134, 156), "purple": (112, 74, 140), "orange": (222, 122, 46), "teal": (34, 124, 126), "brown": (116, 80, 56),
}  # fmt: skip
SCENES = (
    "studio",
    "forest",
    "beach",
    "city at night",
    "mountains",
    "library",
    "sunset",
    "snow",
    "desert",
    "garden",
    "street",
    "kitchen",
    "autumn park",
    "space",
)
LOOKS = ("snapshot", "clean")


def rgb(name: str) -> Float32[np.ndarray, "3"]:
    """A named colour, 0 to 1."""
    return np.array(COLOURS[name], np.float32) / 255


@dataclass(frozen=True)
class Picture:
    """The attributes of one picture. `picture(...)` draws them; `dataclasses.replace` changes some."""

    seed: tuple[int, int]  # of the small things that no attribute names
    expression: str = "neutral"
    yaw: float = 0.0  # degrees, to the viewer's right
    pitch: float = 0.0  # degrees, downwards
    roll: float = 0.0  # degrees, clockwise
    shot: str = "portrait"
    size: float = 1.0  # of the face, relative to the shot's own
    x: float = 0.0  # of the face's middle, -1 to 1 of the room there is
    y: float = 0.0
    light: str = "soft"
    clothing: str = "t-shirt"
    colour: str = "blue"
    headwear: str = "none"
    headwear_colour: str = "red"
    glasses: str = "none"
    scene: str = "studio"
    scene_colour: str = "grey"  # of a studio's wall
    look: str = "clean"

    def __post_init__(self):
        known = {"expression": EXPRESSIONS, "shot": SHOTS, "light": LIGHTS, "clothing": CLOTHES, "colour": tuple(COLOURS), "headwear": HEADWEAR}
        known |= {"headwear_colour": tuple(COLOURS), "glasses": GLASSES, "scene": SCENES, "scene_colour": tuple(COLOURS), "look": LOOKS}
        for name, values in known.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name} {getattr(self, name)!r} is unknown; expected {', '.join(values)}")
        for name, limit in (("yaw", 45), ("pitch", 30), ("roll", 45), ("x", 1), ("y", 1)):
            if not abs(getattr(self, name)) <= limit:
                raise ValueError(f"{name} is {getattr(self, name)}; expected -{limit} to {limit}")
        if not 0.5 <= self.size <= 1.5:
            raise ValueError(f"size is {self.size}; expected 0.5 to 1.5")


def picture(person_number: int, picture_number: int, look: str = "clean", shots: tuple[str, ...] = SHOTS) -> Picture:
    """The attributes of a person's picture, numbers 0 or more. With look "mixed" half of the pictures are snapshots. shots: which may be drawn."""
    if min(person_number, picture_number) < 0:
        raise ValueError(f"person {person_number}, picture {picture_number}; numbers start at 0")
    rng = np.random.default_rng([0x91C, person_number, picture_number])

    def pick(names, weights=None) -> str:
        return str(rng.choice(list(names), p=None if weights is None else np.array(weights) / np.sum(weights)))

    def bell(spread: int | float, limit: int | float) -> float:
        return float(np.clip(rng.normal(0, spread), -limit, limit))

    snapshot = rng.random() < 0.5
    return Picture(
        seed=(person_number, picture_number),
        expression=pick(EXPRESSIONS, (3, 3, 2, 1.5, 1.5, 1.5)),
        yaw=bell(15, 34), pitch=bell(7, 16), roll=bell(8, 22),
        shot=pick(shots, [SHOT_WEIGHTS[shot] for shot in shots]), size=float(rng.uniform(0.92, 1.1)), x=float(rng.uniform(-1, 1)), y=float(rng.uniform(-1, 1)),
        light=pick(LIGHTS, (4, 2, 2, 2, 2, 1, 1.5)),
        clothing=pick(CLOTHES), colour=pick(COLOURS), headwear=pick(HEADWEAR, (11, 1.2, 1.2, 1.2, 0.8, 0.7, 0.8)), headwear_colour=pick(COLOURS),
        glasses=pick(GLASSES, (8, 1.5, 1, 0.9)), scene=pick(SCENES, (4,) + (1.2,) * (len(SCENES) - 1)), scene_colour=pick(COLOURS),
        look={"mixed": "snapshot" if snapshot else "clean"}.get(look, look),
    )  # fmt: skip
