"""Prompts in the words of the drawn pictures' captions, with what each of them asks for."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from data_pipeline import people
from examples.tiny_world.stages import SHOTS

NOBODY = 700_000
"""Persons whose numbers begin here are only asked for pictures' attributes; they are never drawn."""
GENDERS = ("woman", "man")


@dataclass(frozen=True)
class Asked:
    """A prompt, whom it fits, and the attributes that it names."""

    gender: str
    text: str
    attributes: dict[str, Any]


def made(count: int, first: int) -> list[Asked]:
    """`count` prompts for women and as many for men, the same ones for the same `first`. All attributes are named but the look."""
    out = []
    for gender in GENDERS:
        number = NOBODY + first
        found = 0
        while found < count:
            who = people.person(number)
            if who.gender == gender:
                adult = dataclasses.replace(who, age=40)  # neither young nor old: the photo says how old somebody is
                picture = people.picture(number, 0, "clean", SHOTS)
                out.append(Asked(gender, people.captions(adult, picture, 1)[0], {"gender": gender, **dataclasses.asdict(picture)}))
                found += 1
            number += 1
    return out


def lines(asked: list[Asked]) -> str:
    """As files of prompts have it: gender, tab, text."""
    return "".join(f"{prompt.gender}\t{prompt.text}\n" for prompt in asked)
