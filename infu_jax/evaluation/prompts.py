"""Portrait prompts, each for women, for men, or for both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from infu_jax.errors import InputError

GENDERS = ("woman", "man")
_WORDS = {"woman": "woman", "women": "woman", "female": "woman", "f": "woman", "man": "man", "men": "man", "male": "man", "m": "man", "any": "any"}
OWN = Path(__file__).with_name("prompts.tsv")


@dataclass(frozen=True)
class Prompt:
    """number: its place among the prompts of its file, from 1; pictures are named by it. gender: woman, man or any."""

    number: int
    text: str
    gender: str


def read_prompts(path: Path | None = None) -> list[Prompt]:
    """Prompts of a UTF-8 file with one a line: gender, a tab, the text. Empty lines and lines that begin with # are skipped. By default our own 200."""
    path = path or OWN
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8 text") from None
    prompts: list[Prompt] = []
    for at, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        word, tab, text = line.partition("\t")
        gender = gender_of(word)
        if not tab or gender is None or not text.strip():
            raise InputError(f"{path}, line {at}: expected woman, man or any, a tab and the prompt; found {line[:60]!r}")
        prompts.append(Prompt(len(prompts) + 1, text.strip(), gender))
    if not prompts:
        raise InputError(f"{path} has no prompts; write one a line: woman, man or any, a tab, the text")
    return prompts


def gender_of(word: str) -> str | None:
    """woman, man or any for the usual words, None for others."""
    return _WORDS.get(word.strip().lower())


def matching(prompts: Sequence[Prompt], gender: str, most: int | None = None) -> list[Prompt]:
    """The prompts for people of a gender; if there are more than `most`, so many evenly spaced ones, the same for everybody of that gender."""
    fit = [prompt for prompt in prompts if prompt.gender in (gender, "any")]
    if most is None or most >= len(fit):
        return fit
    return [fit[n * len(fit) // most] for n in range(most)]
