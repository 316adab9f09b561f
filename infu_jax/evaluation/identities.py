"""The people of an evaluation: a folder of photos, and who is a woman or a man."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from infu_jax.errors import InputError
from infu_jax.pictures import SUFFIXES, is_picture
from infu_jax.prompts import GENDERS, gender_of, read_genders

TABLE = "genders.csv"


@dataclass(frozen=True)
class Identity:
    """photo: what the model is shown. others: more photos of the same person, which it is not shown; pictures are compared with them too."""

    name: str
    gender: str
    photo: Path
    others: tuple[Path, ...] = ()


def read_identities(folder: Path, *, given: Mapping[str, str] | None = None, table: Path | None = None) -> list[Identity]:
    """People of a folder, by name: `ada.png`, or a folder `ada/`, of which the first file by name is the photo and the rest are others.

    Gender is taken from `given` (name -> word), or else from `table` (CSV with the columns name and gender; by default genders.csv in the
    folder), or else from a word of the name, as in `ada_woman.png`.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; --identities is a folder of photos, one a person (ada.png), or of folders of photos (ada/1.png)")
    photos: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        found = sorted(p for p in path.iterdir() if is_picture(p)) if path.is_dir() else [path] if is_picture(path) else []
        if found:
            name = path.name if path.is_dir() else path.stem
            if name in photos:
                raise InputError(f"{folder} has two entries for {name!r}; keep one of them")
            photos[name] = found
    if not photos:
        raise InputError(f"{folder} has no photos; expected {', '.join(SUFFIXES)} files, one a person, or folders of them")
    table = table or (folder / TABLE if (folder / TABLE).is_file() else None)
    genders = {**({} if table is None else read_genders(table, "name")), **(given or {})}
    if unknown := sorted(set(given or {}) - set(photos)):
        raise InputError(f"--gender names {unknown[0]}, who is not in {folder}; there are {', '.join(list(photos)[:8])}")
    people = []
    for name, (photo, *others) in photos.items():
        gender = gender_of(genders[name]) if name in genders else _from_name(name)
        if gender not in GENDERS:
            said = f"{name} has gender {genders[name]!r}" if name in genders else f"the gender of {name} is not known"
            raise InputError(f"{said}; prompts are matched by it: write woman or man in {folder / TABLE} (name,gender), or give --gender {name}=woman")
        people.append(Identity(name, gender, photo, tuple(others)))
    return people


def _from_name(name: str) -> str | None:
    found = {gender_of(word) for word in re.split(r"[^A-Za-z]+", name) if len(word) > 1} & set(GENDERS)
    return found.pop() if len(found) == 1 else None
