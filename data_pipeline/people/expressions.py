"""Expressions: what they move in a face, and where the eyes and the corners of the mouth come to lie."""

from dataclasses import dataclass

from data_pipeline.people.identity import Person

LOWER_LID = 0.075  # y, in the middle of an eye


@dataclass(frozen=True)
class Face:
    """An expression, as movements in head units."""

    smile: float = 0.0  # of the corners of the mouth, upwards
    widen: float = 0.0  # of the mouth, to each side
    open: float = 0.0  # height of the open mouth
    teeth: float = 0.0
    brow: float = 0.0  # upwards
    frown: float = 0.0  # of the inner ends of the brows, downwards; negative upwards
    lids: float = 1.0  # how far the eyes are open
    squint: float = 0.0  # lower lids, upwards
    cheeks: float = 0.0
    lips: float = 1.0  # height of the lips


EXPRESSIONS = {
    "neutral": Face(),
    "smiling": Face(smile=0.095, widen=0.045, squint=0.022, cheeks=0.055, lids=0.94, lips=0.92),
    "laughing": Face(smile=0.115, widen=0.065, open=0.19, teeth=1.0, squint=0.045, cheeks=0.085, lids=0.74, brow=0.02, lips=0.80),
    "surprised": Face(widen=-0.07, open=0.25, brow=0.125, lids=1.38, lips=0.9, smile=-0.02),
    "sad": Face(smile=-0.055, widen=-0.01, brow=0.01, frown=-0.105, lids=0.80),
    "angry": Face(smile=-0.042, widen=-0.015, brow=-0.035, frown=0.11, lids=0.82, squint=0.025, lips=0.74),
}


def mouth_corners(person: Person, face: Face) -> list[tuple[float, float]]:
    """On paper; the viewer's left first."""
    width, lift = person.mouth_width + face.widen, person.mouth_rest + face.smile
    return [(side * width, person.mouth - lift + face.open * 0.22) for side in (-1, 1)]


def eye_middle(person: Person, face: Face) -> float:
    """The height of the middle between the lids, on paper."""
    return (LOWER_LID - face.squint - person.eye_open * face.lids) / 2
