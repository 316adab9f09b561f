"""Which pictures an evaluation consists of: every person with every prompt for their gender, each with a file name and a seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from infu_jax import face
from infu_jax.errors import InputError
from infu_jax.evaluation.identities import Identity
from infu_jax.pictures import SUFFIXES, is_picture
from infu_jax.prompts import Prompt, suiting
from infu_jax.seeds import seed_of

OWN = Path(__file__).with_name("prompts.tsv")
"""Our own 200 prompts."""


@dataclass(frozen=True)
class Pair:
    """One picture of an evaluation."""

    identity: Identity
    prompt: Prompt
    seed: int
    control: face.Control | None = None
    """None leaves it to the model where the face goes."""

    @property
    def stem(self) -> str:
        """Where it lies in a folder of pictures, without suffix: `ada/0012` is Ada painted with prompt 12."""
        return f"{self.identity.name}/{self.prompt.number:04d}"


def plan(
    identities: Sequence[Identity], prompts: Sequence[Prompt], *, most: int | None = None, seed: int = 0, controls: Sequence[face.Control] = ()
) -> list[Pair]:
    """Every person with the prompts for their gender, at most `most` each. A picture's seed is its own: no other person or prompt changes it.

    controls: the first belongs to the first prompt of the file, and so on, from the first again where there are fewer.
    """
    at = lambda prompt: controls[(prompt.number - 1) % len(controls)] if controls else None  # noqa: E731
    pairs = [Pair(who, prompt, seed_of(seed, who.name, prompt.text), at(prompt)) for who in identities for prompt in chosen(prompts, who.gender, most)]
    if bare := [who.name for who in identities if not suiting(prompts, who.gender)]:
        raise InputError(f"there is no prompt for {bare[0]}; the prompts are for {', '.join(sorted({p.gender for p in prompts}))}")
    return pairs


def chosen(prompts: Sequence[Prompt], gender: str, most: int | None = None) -> list[Prompt]:
    """The prompts for people of a gender; if there are more than `most`, so many evenly spaced ones, the same for everybody of that gender."""
    fit = suiting(prompts, gender)
    if most is None or most >= len(fit):
        return fit
    return [fit[n * len(fit) // most] for n in range(most)]


def find(folder: Path, pair: Pair) -> Path | None:
    """The picture of a pair in a folder, whatever its suffix; None if there is none."""
    found = [path for suffix in SUFFIXES if is_picture(path := folder / f"{pair.stem}{suffix}")]
    if len(found) > 1:
        raise InputError(f"{found[0]} and {found[1]} are both pictures of {pair.identity.name} with prompt {pair.prompt.number}; keep one of them")
    return found[0] if found else None
