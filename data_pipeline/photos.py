"""The photos that show who people are: of a dataset that `build` wrote, or of a folder or manifest as `build` reads it. One person at a time."""

import dataclasses
import functools
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from data_pipeline import chunks, manifest
from data_pipeline.filters import Rejected
from data_pipeline.index import SYNTHETIC, Index, open_index
from data_pipeline.records import PictureError, Record, Records, open_records
from infu_jax.errors import InputError
from infu_jax.prompts import gender_of


@dataclass(frozen=True, eq=False)
class Person:
    name: str
    photos: tuple[Record, ...]
    """Their targets are the photos."""
    problem: str = ""
    """Why there is none."""

    @property
    def gender(self) -> str | None:
        """What the photos' provenance says: a manifest's column `gender`, or that of data_pipeline.people. None for other words than ours."""
        for photo in self.photos:
            attributes = photo.provenance.get("attributes")
            for said in (photo.provenance.get("gender"), attributes.get("gender") if isinstance(attributes, Mapping) else None):
                if isinstance(said, str) and said.strip():
                    return gender_of(said)
        return None


@runtime_checkable
class Photos(Protocol):
    def __len__(self) -> int:
        """How many people there are."""

    def __getitem__(self, number: int) -> Person:
        """A person by number. Not for several threads at once."""

    def stated(self) -> dict[str, Any]:
        """What the photos are, so that others are noticed."""


def open_photos(path: Path, most: int, settings: chunks.Settings) -> Photos:
    """The photos at `path`, at most `most` of each person, the first ones. `settings` is for photos that are in no dataset yet.

    Raises InputError when there are none.
    """
    if (path / "dataset_info.json").exists():
        splits = sorted(folder.name for folder in (path / "index").iterdir())
        return DatasetPhotos(path, tuple(splits), most)
    return SourcePhotos(manifest.open_source(path), most, settings)


@dataclass(frozen=True, eq=False)
class DatasetPhotos:
    """The real pictures of a dataset."""

    directory: Path
    splits: tuple[str, ...]
    most: int

    @functools.cached_property
    def _parts(self) -> list[tuple[Index, Records]]:
        return [(open_index(self.directory, split), open_records(self.directory, split)) for split in self.splits]

    def __len__(self) -> int:
        return sum(index.people for index, _ in self._parts)

    def __getitem__(self, number: int) -> Person:
        part = 0
        while number >= self._parts[part][0].people:
            number -= self._parts[part][0].people
            part += 1
        index, records = self._parts[part]
        all_of = index.records_of(number)
        real = all_of[index.flags[all_of] & SYNTHETIC == 0][: self.most]
        if not len(real):
            return Person(records[int(all_of[0])].person, (), "all pictures of this person are synthetic")
        photos = tuple(records[int(n)] for n in real)
        return Person(photos[0].person, photos)

    def stated(self) -> dict[str, Any]:
        return {"kind": "dataset", "most": self.most} | {split: index.fingerprint for split, (index, _) in zip(self.splits, self._parts)}


@dataclass(frozen=True, eq=False)
class SourcePhotos:
    """Pictures that were not built into a dataset: they are read, and their faces found, when their person's turn comes."""

    source: manifest.Source
    most: int
    settings: chunks.Settings
    _worker: chunks.Worker = field(init=False)
    _people: dict[str, list[manifest.RawRow]] = field(init=False)

    def __post_init__(self):
        people: dict[str, list[manifest.RawRow]] = {}
        bad = []
        for raw in manifest.raw_rows(self.source):
            try:
                row = manifest.parse(self.source, raw)
            except Rejected as error:
                bad.append(f"{raw.number}: {error}")
                continue
            if not row.synthetic:
                people.setdefault(row.person, []).append(raw)
        if not people:
            raise InputError(f"{self.source.path} has no photo of anybody" + (f" ({len(bad)} rows cannot be used, the first is {bad[0]})" if bad else ""))
        if bad:
            warnings.warn(f"{self.source.path}: {len(bad)} rows cannot be used, the first is {bad[0]}", stacklevel=2)
        object.__setattr__(self, "_people", people)
        object.__setattr__(self, "_worker", chunks.Worker(self.source, self.settings))

    def __len__(self) -> int:
        return len(self._people)

    def __getitem__(self, number: int) -> Person:
        name = list(self._people)[number]
        photos: list[Record] = []
        problems: list[str] = []
        for raw in self._people[name]:
            try:
                photos.append(self._worker.examine(raw)[0])
            except (Rejected, PictureError) as error:
                problems.append(f"{error.reason}: {error}")
            if len(photos) == self.most:
                break
        return Person(name, tuple(photos), "" if photos else _first(problems))

    def stated(self) -> dict[str, Any]:
        digest, rows = manifest.fingerprint(self.source)
        return {"kind": self.source.kind, "most": self.most, "rows": rows, "sha256": digest, "filters": dataclasses.asdict(self.settings.filters)}


def _first(problems: Sequence[str]) -> str:
    return problems[0] if len(problems) == 1 else f"none of {len(problems)} photos can be used, the first: {problems[0]}"
