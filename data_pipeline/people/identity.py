"""Who a drawn person is: everything that stays the same in all pictures of them, drawn from the person's number.

Lengths are in head units: 1 is about half the width of a face; x to the right, y down from the line of the eyes, z towards the viewer.
Colours are RGB, 0 to 1.
"""

from dataclasses import dataclass

import numpy as np

Colour = tuple[float, float, float]

SKIN = np.array([(248, 218, 204), (238, 198, 176), (222, 176, 148), (190, 142, 112), (144, 102, 78), (100, 70, 56)], np.float64) / 255
HAIR = {
    "black": (26, 22, 24),
    "dark brown": (58, 38, 28),
    "brown": (96, 62, 40),
    "chestnut": (122, 66, 38),
    "auburn": (136, 56, 30),
    "red": (184, 84, 40),
    "dark blond": (150, 116, 74),
    "blond": (206, 168, 106),
    "platinum": (230, 214, 182),
    "grey": (142, 140, 140),
    "white": (214, 212, 210),
    "pink": (214, 104, 146),
    "blue": (58, 96, 160),
    "purple": (112, 66, 142),
    "green": (64, 132, 96),
}
EYES = {
    "brown": (96, 58, 34),
    "dark brown": (58, 36, 26),
    "hazel": (128, 96, 48),
    "green": (88, 130, 82),
    "blue": (76, 126, 178),
    "grey": (118, 136, 146),
}
WOMEN_HAIR = {
    "long straight": 5, "long wavy": 5, "long curly": 4, "bob": 4, "bangs bob": 3, "long bangs": 3, "pixie": 2, "bun": 4, "afro": 2, "curly": 1.5,
    "ponytail": 3,
}  # fmt: skip
MEN_HAIR = {
    "crop": 5, "side part": 5, "quiff": 4, "swept back": 3, "curly": 4, "buzz": 3, "bald": 2, "receding": 2, "afro": 2, "long straight": 0.7, "long wavy": 0.7,
    "fringe": 3,
}  # fmt: skip
BEARDS = {"none": 7.5, "stubble": 5, "moustache": 2, "goatee": 2, "short beard": 3, "full beard": 3}


@dataclass(frozen=True)
class Person:
    """A drawn person. `person(number)` draws one; `dataclasses.replace` makes relatives."""

    number: int
    gender: str  # "woman" or "man": how the person is presented and named in captions
    age: int
    skin: Colour
    lips: Colour
    hair_style: str
    hair_colour: str
    hair: Colour
    eye_colour: str
    iris: Colour
    beard: str
    # The head
    cheek: float  # half the width at the cheekbones
    temple: float  # half the width of the forehead
    jaw: float  # half the width at the mouth
    chin_width: float
    chin: float  # y of the chin
    crown: float  # y of the top of the skull
    brow_ridge: float
    cheekbone: float
    # Eyes and brows
    eye_x: float
    eye_width: float  # half
    eye_open: float
    eye_slant: float  # how far the outer corner is raised
    lid: float  # 0: deep-set with a wide lid fold, 1: hooded
    lashes: float
    brow_y: float
    brow_weight: float
    brow_arch: float
    brow_tilt: float
    # Nose
    nose: float  # y of the tip
    nose_width: float
    nose_depth: float
    nose_bridge: float
    nose_up: float
    # Mouth
    mouth: float  # y
    mouth_width: float  # half
    upper_lip: float
    lower_lip: float
    bow: float
    mouth_rest: float  # how far the corners are raised at rest
    makeup: float
    # Hair
    hairline: float
    hair_volume: float
    hair_length: float
    parting: float  # where the hair is parted: x on the head
    wave: float
    # Body and marks
    ear: float
    neck: float
    shoulders: float
    freckles: int
    moles: tuple[tuple[float, float], ...]
    earrings: bool
    dimples: float
    blush: float


def person(number: int) -> Person:
    """The person of this number, 0 or more."""
    if number < 0:
        raise ValueError(f"person {number}; numbers start at 0")
    rng = np.random.default_rng([0x9E0, number])

    def about(mean: int | float, spread: int | float) -> float:  # a bounded bell
        return float(mean + spread * np.clip(rng.normal(), -2.1, 2.1))

    def pick(weights: dict[str, int | float]) -> str:
        p = np.array(list(weights.values()), np.float64)
        return str(rng.choice(list(weights), p=p / p.sum()))

    gender = "woman" if rng.random() < 0.5 else "man"
    man = gender == "man"
    age = int(np.clip(18 + 62 * rng.beta(1.15, 1.7), 18, 79))
    old = np.clip((age - 45) / 30, 0, 1)
    melanin = float(rng.random())
    skin = np.array([np.interp(melanin * (len(SKIN) - 1), np.arange(len(SKIN)), SKIN[:, i]) for i in range(3)])
    skin = np.clip(skin * (1 + np.array([0.0, 0.03, 0.06]) * rng.normal() * 0.7) * rng.uniform(0.97, 1.03), 0, 1)

    dark = np.clip((melanin - 0.35) / 0.3, 0, 1)  # fair hair and light eyes grow rare with dark skin
    fair = {"dark blond": 2.5, "blond": 3.5, "platinum": 1, "red": 2, "auburn": 2, "chestnut": 2.5, "brown": 3, "dark brown": 2.5, "black": 2}
    fair = {name: weight * (1 - 0.97 * dark) if name not in ("black", "dark brown") else weight * (1 + 3 * dark) for name, weight in fair.items()}
    fair |= {"pink": 0.25, "blue": 0.25, "purple": 0.2, "green": 0.2} if age < 50 else {}
    hair_colour = pick(fair)
    if rng.random() < old * 1.1:
        hair_colour = "white" if rng.random() < 0.45 * old + 0.1 else "grey"
    base = np.array(HAIR[hair_colour]) / 255 * rng.uniform(0.88, 1.12) * (1 + np.array([1.0, 0.0, -1.0]) * rng.normal() * 0.03)
    light_eyes = {"brown": 3, "hazel": 2, "green": 2, "blue": 3.5, "grey": 1.5, "dark brown": 1.5}
    eye_colour = pick(
        {name: weight * (1 - 0.96 * dark) if name not in ("brown", "dark brown") else weight * (1 + 2 * dark) for name, weight in light_eyes.items()}
    )
    iris = np.array(EYES[eye_colour]) / 255 * rng.uniform(0.85, 1.15)

    styles = dict(MEN_HAIR if man else WOMEN_HAIR)
    if man and age > 42:
        styles |= {"bald": 4, "receding": 6}
    elif man and age < 30:
        styles["receding"] = 0
    hair_style = pick(styles)
    if hair_style in ("afro", "curly", "long curly") and melanin < 0.3 and rng.random() < 0.5:
        hair_style = pick(styles)
    beard = pick(BEARDS) if man else "none"
    redness = rng.uniform(0.75, 1.0)
    lips = np.clip(skin * np.array([0.90, 0.60, 0.60]) * redness + np.array([0.07, 0.0, 0.02]), 0, 1)
    makeup = 0.0 if man else float(np.clip(rng.normal(0.58, 0.35), 0, 1))
    tint = np.array([(0.72, 0.16, 0.22), (0.78, 0.36, 0.36), (0.60, 0.20, 0.30), (0.82, 0.44, 0.40)])[rng.integers(4)]
    lips = lips + (tint * (1 - 0.35 * melanin) - lips) * (0.25 + 0.45 * makeup) * (not man)

    cheek = about(0.965, 0.048) if man else about(0.94, 0.048)
    narrow = about(1.0, 0.068)
    chin = about(1.47, 0.075) if man else about(1.40, 0.065)
    nose = about(0.488, 0.034)
    mouth = nose + (about(0.362, 0.028) if man else about(0.350, 0.026))
    mouth = min(mouth, chin - 0.44)
    wide_nose = about(0.147, 0.023) + 0.035 * melanin + (0.008 if man else -0.006)
    full = about(0.0, 0.5) + 0.5 * melanin + (-0.15 if man else 0.25)
    return Person(
        number=number, gender=gender, age=age, skin=_rgb(skin), lips=_rgb(lips), hair_style=hair_style, hair_colour=hair_colour, hair=_rgb(base),
        eye_colour=eye_colour, iris=_rgb(iris), beard=beard,
        cheek=cheek, temple=cheek * about(0.955, 0.03), jaw=cheek * narrow * (0.82 if man else 0.72), chin_width=about(0.30, 0.065) + (0.05 if man else -0.02),
        chin=chin, crown=about(-1.42, 0.045), brow_ridge=about(0.055 if man else 0.01, 0.018), cheekbone=about(0.065, 0.025),
        eye_x=about(0.435, 0.030), eye_width=about(0.215, 0.022), eye_open=about(0.095 if man else 0.118, 0.017), eye_slant=about(0.028, 0.038),
        lid=float(rng.beta(1.6, 1.6)), lashes=about(0.42, 0.1) if man else about(1.25, 0.25),
        brow_y=about(-0.285 if man else -0.315, 0.034), brow_weight=about(0.092 if man else 0.052, 0.014), brow_arch=about(0.02 if man else 0.05, 0.024),
        brow_tilt=about(0.0, 0.025),
        nose=nose, nose_width=wide_nose, nose_depth=about(0.27, 0.055), nose_bridge=about(0.075, 0.014), nose_up=about(0.0, 0.03),
        mouth=mouth, mouth_width=about(0.355, 0.042) + 0.02 * full, upper_lip=max(0.045, about(0.074, 0.012) + 0.022 * full),
        lower_lip=max(0.06, about(0.100, 0.015) + 0.028 * full), bow=about(0.24, 0.09), mouth_rest=about(0.04, 0.02), makeup=makeup,
        hairline=about(-0.98, 0.06), hair_volume=about(1.0, 0.2), hair_length=float(rng.uniform(0, 1)),
        parting=float(rng.choice([-1, 1]) * rng.uniform(0.0, 0.42)),
        wave=float(rng.uniform(0, 1)),
        ear=about(1.0, 0.1), neck=about(0.63 if man else 0.49, 0.035), shoulders=about(2.25 if man else 1.92, 0.12),
        freckles=int(rng.integers(50, 170)) if rng.random() < 0.25 * (1 - dark) else 0,
        moles=tuple((float(x), float(y)) for x, y in zip(rng.uniform(-0.7, 0.7, 2), rng.uniform(0.25, 1.15, 2))) if rng.random() < 0.22 else (),
        earrings=bool(rng.random() < (0.45 if not man else 0.08)), dimples=float(rng.random() < 0.25), blush=float(rng.uniform(0.3, 1.0)),
    )  # fmt: skip


def _rgb(colour: np.ndarray) -> Colour:
    red, green, blue = (float(c) for c in np.clip(colour, 0.02, 0.99))
    return red, green, blue
