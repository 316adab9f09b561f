"""Sentences that say what a drawn picture shows."""

import numpy as np

from data_pipeline.people.attributes import Picture
from data_pipeline.people.identity import Person

EXPRESSION = {
    "neutral": ("with a neutral expression", "with a calm face", "looking serious"),
    "smiling": ("smiling", "with a gentle smile", "smiling softly"),
    "laughing": ("laughing", "with a big laugh, showing teeth", "laughing with an open mouth"),
    "surprised": ("looking surprised", "with a surprised face and open mouth", "with raised eyebrows, surprised"),
    "sad": ("looking sad", "with a sad expression", "with a sad face"),
    "angry": ("looking angry", "with an angry frown", "frowning angrily"),
}
LIGHT = {
    "soft": ("in soft light", "in soft daylight"),
    "warm": ("in warm light", "lit by warm light"),
    "cool": ("in cool light", "in cool bluish light"),
    "from the left": ("lit from the left", "in hard light from the left"),
    "from the right": ("lit from the right", "in hard light from the right"),
    "dim": ("in dim light", "in low light"),
    "golden": ("in golden evening light", "in golden light"),
}
SCENE = {
    "studio": ("in front of a {wall} wall", "against a plain {wall} background"),
    "forest": ("in a forest", "among trees in a green forest"),
    "beach": ("at the beach", "on a beach by the sea"),
    "city at night": ("in a city at night", "in front of city lights at night"),
    "mountains": ("in the mountains", "in front of snowy mountains"),
    "library": ("in a library", "in front of bookshelves"),
    "sunset": ("at sunset", "in front of a sunset"),
    "snow": ("in the snow", "in a snowy winter forest"),
    "desert": ("in a desert", "among desert dunes"),
    "garden": ("in a garden", "in a flower garden"),
    "street": ("in a street", "in a town street"),
    "kitchen": ("in a kitchen",),
    "autumn park": ("in an autumn park", "in a park in autumn"),
    "space": ("in outer space", "in front of planets and stars"),
}
SHOT = {"close-up": ("close-up", "close-up portrait"), "portrait": ("portrait", "photo"), "half-length": ("half-length portrait", "half-length photo")}
HAT = {
    "beanie": "{} beanie",
    "cap": "{} cap",
    "straw hat": "straw hat with a {} band",
    "headband": "{} headband",
    "crown": "golden crown",
    "headscarf": "{} headscarf",
}


def pose(picture: Picture) -> list[str]:
    """The turn, nod and tilt of the head in words; empty where they are small."""
    words = []
    if abs(picture.yaw) >= 12:
        words.append("turned to the " + ("right" if picture.yaw > 0 else "left"))
    if abs(picture.pitch) >= 9:
        words.append("looking " + ("down" if picture.pitch > 0 else "up"))
    if abs(picture.roll) >= 10:
        words.append("head tilted to the " + ("right" if picture.roll > 0 else "left"))
    return words


def who(person: Person) -> tuple[str, ...]:
    """Ways to name a person by gender and age."""
    if person.age < 30:
        return f"a young {person.gender}", f"a {person.gender}"
    if person.age >= 60:
        return f"an old {person.gender}", f"an elderly {person.gender}"
    return (f"a {person.gender}",)


def captions(person: Person, picture: Picture, count: int = 2) -> list[str]:
    """Different sentences for a picture. The first states all attributes; later ones may leave out some, never expression, scene or gender."""
    rng = np.random.default_rng([0xCA9, *picture.seed])
    return [_sentence(person, picture, rng, whole=k == 0) for k in range(count)]


def _sentence(person: Person, picture: Picture, rng: np.random.Generator, whole: bool) -> str:
    def one(options) -> str:
        return str(options[rng.integers(len(options))])

    def said() -> bool:
        return whole or rng.random() < 0.6

    kind = one(SHOT[picture.shot])
    name = one(who(person))
    mood = one(EXPRESSION[picture.expression])
    scene = one(SCENE[picture.scene]).format(wall=picture.scene_colour)
    worn = []
    if said():
        article = "an" if picture.colour[0] in "aeiou" else "a"
        worn.append(f"{article} {picture.colour} {picture.clothing}")
    if picture.headwear != "none" and said():
        hat = HAT[picture.headwear].format(picture.headwear_colour)
        worn.append(("an " if hat[0] in "aeiou" else "a ") + hat)
    if picture.glasses != "none" and said():
        worn.append(picture.glasses)
    wearing = one(("wearing ", "in ")) + _list(worn) if worn else ""
    poses = pose(picture) if said() else []
    if "wearing" not in wearing and wearing.startswith("in") and worn[0] in ("glasses", "round glasses", "sunglasses"):
        wearing = "wearing" + wearing[2:]
    light = one(LIGHT[picture.light]) if said() else ""
    head = ", ".join(poses)
    form = rng.integers(4)
    article = "A"
    if form == 0:
        parts = [f"{article} {kind} of {name} {mood}", wearing, head, scene, light]
    elif form == 1:
        parts = [f"{name[0].upper()}{name[1:]} {scene}", mood, wearing, head, light, one(SHOT[picture.shot])]
    elif form == 2:
        parts = [f"{name[0].upper()}{name[1:]} {wearing}".rstrip(), mood, head, scene, light, kind]
    else:
        parts = [f"{article} {kind} {scene}: {name} {mood}", wearing, head, light]
    return ", ".join(part for part in parts if part) + "."


def _list(words: list[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]
