"""Prompts for pictures of people, some of them for women or for men only, and who is which: the files that users write."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from infu_jax.errors import InputError

GENDERS = ("woman", "man")
MAX_CHARACTERS = 20_000
_WORDS = {"woman": "woman", "women": "woman", "female": "woman", "f": "woman", "man": "man", "men": "man", "male": "man", "m": "man", "any": "any"}


@dataclass(frozen=True)
class Prompt:
    """number: its place among the prompts of its file, from 1. gender: woman, man, or any, which suits everybody."""

    number: int
    text: str
    gender: str = "any"


def gender_of(word: str) -> str | None:
    """woman, man or any for the usual words, None for others."""
    return _WORDS.get(word.strip().lower())


def read_prompts(path: Path) -> list[Prompt]:
    """Each prompt of a file once. UTF-8 text with a prompt a line, after `woman<TAB>` or `man<TAB>` where it is for one gender only; or a .csv
    file with the columns prompt and, if wanted, gender.

    In a text file empty lines and lines that begin with # are skipped. Raises InputError, which names file and line.
    """
    found: dict[tuple[str, str], None] = {}
    for line, word, text in _csv_rows(path) if path.suffix.lower() == ".csv" else _text_rows(path):
        if not (text := " ".join(text.split())):
            raise InputError(f"{path}, line {line}: there is no prompt behind {word!r:.40}")
        if len(text) > MAX_CHARACTERS:
            raise InputError(f"{path}, line {line}: a prompt of {len(text)} characters; at most {MAX_CHARACTERS} are allowed")
        found[text, _gender(word, path, line) or "any"] = None
    if not found:
        raise InputError(f"{path} has no prompts; write one a line, after woman or man and a tab where it is for one gender only")
    return [Prompt(number, text, gender) for number, (text, gender) in enumerate(found, 1)]


def _text_rows(path: Path) -> Iterator[tuple[int, str, str]]:
    """Line, word for the gender, prompt."""
    for number, line in enumerate(lines_of(path), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            before, tab, text = line.partition("\t")
            yield number, before if tab else "", text if tab else line


def _csv_rows(path: Path) -> Iterator[tuple[int, str, str]]:
    reader = csv.DictReader(lines_of(path))
    if "prompt" not in (reader.fieldnames or ()):
        raise InputError(f"{path} has no column prompt; its first line reads {_first(reader)}")
    for row in reader:
        if (row.get("gender") or "").strip() or (row["prompt"] or "").strip():
            yield reader.line_num, row.get("gender") or "", row["prompt"] or ""


def read_genders(path: Path, who: str) -> dict[str, str]:
    """woman, man or any for each person that a .csv file says it of; `who`: its column of names, beside gender."""
    reader = csv.DictReader(lines_of(path))
    if not {who, "gender"} <= set(reader.fieldnames or ()):
        raise InputError(f"{path}: its first line reads {_first(reader)}; expected the columns {who} and gender")
    said = ((row[who] or "", _gender(row["gender"] or "", path, reader.line_num)) for row in reader)
    return {name.strip(): gender for name, gender in said if gender}


def suiting(prompts: Sequence[Prompt], gender: str) -> list[Prompt]:
    """The prompts for people of a gender; those for everybody where it is any."""
    return [prompt for prompt in prompts if prompt.gender in (gender, "any")]


def _gender(word: str, path: Path, line: int) -> str | None:
    """None for no word at all."""
    if word.strip() and gender_of(word) is None:
        raise InputError(f"{path}, line {line}: gender {word!r:.40}; expected woman, man or any (also female, male, f, m)")
    return gender_of(word)


def _first(reader: csv.DictReader) -> str:
    return f"{','.join(reader.fieldnames or ())!r:.100}"


def lines_of(path: Path) -> list[str]:
    """The lines of a UTF-8 text file, with their ends."""
    try:
        return list(io.StringIO(path.read_text(encoding="utf-8-sig")))  # str.splitlines also cuts where texts have U+2028, form feeds and the like
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8 text") from None
