"""What synthetic pictures are to show: prompts from a file, some for one gender only, dealt out to people."""

import csv
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipeline.manifest import MAX_CAPTION
from infu_jax.errors import InputError

GENDERS = {"woman": "woman", "women": "woman", "female": "woman", "f": "woman", "man": "man", "men": "man", "male": "man", "m": "man"}


@dataclass(frozen=True)
class Prompt:
    text: str
    gender: str | None = None
    """"woman" or "man"; None suits everybody."""


def gender_of(word: str | None, where: str) -> str | None:
    """ "woman", "man", or None for an empty word or "any". Raises InputError, which names `where`, for another one."""
    word = (word or "").strip().lower()
    if word in ("", "any"):
        return None
    if word not in GENDERS:
        raise InputError(f"{where}: gender {word!r:.40}; expected woman, man or any (also female, male, f, m)")
    return GENDERS[word]


def read_prompts(path: Path) -> tuple[Prompt, ...]:
    """A .csv file with the columns prompt and, if wanted, gender; or any text file with a prompt a line, `woman<TAB>prompt` for one gender only.

    In a text file empty lines and lines that begin with # are skipped. Raises InputError, which names file and line.
    """
    lines = _text(path).splitlines(keepends=True)
    found: dict[Prompt, None] = {}
    if path.suffix.lower() == ".csv":
        reader = csv.DictReader(lines)
        if "prompt" not in (reader.fieldnames or ()):
            raise InputError(f"{path} has no column prompt; its first line reads {','.join(reader.fieldnames or ())!r:.100}")
        rows = [(reader.line_num, row.get("gender"), row["prompt"] or "") for row in reader]
    else:
        parts = [(number, *line.strip("\r\n").rpartition("\t")[::2]) for number, line in enumerate(lines, 1) if not line.lstrip().startswith("#")]
        rows = [(number, gender, text) for number, gender, text in parts]
    for number, gender, text in rows:
        if not (text := " ".join(text.split())):
            continue
        if len(text) > MAX_CAPTION:
            raise InputError(f"{path}, line {number}: a prompt of {len(text)} characters; at most {MAX_CAPTION} are allowed")
        found[Prompt(text, gender_of(gender, f"{path}, line {number}"))] = None
    if not found:
        raise InputError(f"{path} has no prompts; write one a line")
    return tuple(found)


def read_genders(path: Path) -> dict[str, str | None]:
    """A .csv file with the columns person and gender."""
    reader = csv.DictReader(_text(path).splitlines(keepends=True))
    if not {"person", "gender"} <= set(reader.fieldnames or ()):
        raise InputError(f"{path}: its first line reads {','.join(reader.fieldnames or ())!r:.100}; expected the columns person and gender")
    return {row["person"]: gender_of(row["gender"], f"{path}, line {reader.line_num}") for row in reader}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8 text") from None


def suiting(prompts: Sequence[Prompt], gender: str | None) -> tuple[str, ...]:
    """The prompts for a person of this gender; those for everybody where it is not known."""
    return tuple(prompt.text for prompt in prompts if prompt.gender in (None, gender))


def deal(pool: Sequence[str], seed: int, person: str, number: int) -> str:
    """The prompt of a person's picture: all of the pool in an order of the person's own, then again."""
    order = np.random.default_rng(digest(seed, "prompts", person)).permutation(len(pool))
    return pool[int(order[number % len(pool)])]


def digest(*parts: int | str) -> int:
    """32 bits that are a function of the parts alone."""
    return int.from_bytes(hashlib.sha256("\0".join(map(str, parts)).encode()).digest()[:4], "big")
