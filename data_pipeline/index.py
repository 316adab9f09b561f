"""The index sidecar: what bucketing and pairing need to know of every record, so that starting reads 14 bytes a record and no picture.

`DIR/index/<split>/` holds raw .npy arrays in the order of the records, which are memory-mapped where they lie on a local disk.
"""

import hashlib
import json
from dataclasses import dataclass

import numpy as np
from etils import epath
from jaxtyping import Integer, UInt8, UInt16, UInt32, UInt64

from infu_jax.errors import InputError

VERSION = 1
SYNTHETIC = 1  # bits of `flags`
INLINE_IDENTITY = 2


@dataclass(frozen=True, eq=False)
class Index:
    """N records of P people."""

    persons: UInt32[np.ndarray, "N"]
    """The number of each record's person."""
    sizes: UInt16[np.ndarray, "N 2"]
    """Height and width of each target."""
    flags: UInt8[np.ndarray, "N"]
    """SYNTHETIC: the target is no photo. INLINE_IDENTITY: the record carries its identity photo."""
    captions: UInt8[np.ndarray, "N"]
    """How many captions each record has."""
    order: UInt32[np.ndarray, "N"]
    """Record numbers sorted by (person, record)."""
    offsets: UInt64[np.ndarray, "P_plus_1"]
    """The records of person p are order[offsets[p] : offsets[p + 1]]."""
    fingerprint: str
    """Of the shards that it was made for."""

    @property
    def records(self) -> int:
        return len(self.persons)

    @property
    def people(self) -> int:
        return len(self.offsets) - 1

    def records_of(self, person: int) -> UInt32[np.ndarray, "n"]:
        """The record numbers of a person, ascending."""
        return self.order[int(self.offsets[person]) : int(self.offsets[person + 1])]


_ARRAYS = {"persons": "uint32", "sizes": "uint16", "flags": "uint8", "captions": "uint8", "order": "uint32", "offsets": "uint64"}


def make_index(
    persons: Integer[np.ndarray, "N"],
    sizes: Integer[np.ndarray, "N 2"],
    flags: Integer[np.ndarray, "N"],
    captions: Integer[np.ndarray, "N"],
    fingerprint: str,
) -> Index:
    """The index of records whose people are numbered from 0 without gaps, in any order."""
    people = int(persons.max()) + 1 if len(persons) else 0
    counts = np.bincount(persons, minlength=people)
    if len(counts) != people or (counts == 0).any() or len(persons) >= 2**32:
        raise ValueError(f"{len(persons)} records of {people} people; numbers of people must have no gaps, and records must be fewer than 2^32")
    return Index(
        persons=persons.astype(np.uint32),
        sizes=sizes.astype(np.uint16),
        flags=flags.astype(np.uint8),
        captions=captions.astype(np.uint8),
        order=np.argsort(persons, kind="stable").astype(np.uint32),
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.uint64),
        fingerprint=fingerprint,
    )


def write_index(directory: epath.PathLike, split: str, index: Index) -> None:
    """Writes DIR/index/<split>/. The folder may not exist; index.json, without which nothing opens, is written last."""
    folder = epath.Path(directory) / "index" / split
    folder.mkdir(parents=True)
    for name in _ARRAYS:
        with (folder / f"{name}.npy").open("wb") as file:
            np.save(file, getattr(index, name), allow_pickle=False)
    stated = {"version": VERSION, "records": index.records, "people": index.people, "fingerprint": index.fingerprint}
    (folder / "index.json").write_text(json.dumps(stated, indent=2) + "\n")


def read_index(directory: epath.PathLike, split: str) -> Index:
    """Opens DIR/index/<split>/ by itself, without asking whether it belongs to the shards beside it. Raises InputError when it is damaged."""
    folder = epath.Path(directory) / "index" / split
    try:
        stated = json.loads((folder / "index.json").read_text())
        version, records, people, fingerprint = (stated[name] for name in ("version", "records", "people", "fingerprint"))
    except FileNotFoundError:
        raise InputError(f"{folder} has no index.json; give a folder that python -m data_pipeline.build wrote, and a split that it has") from None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder}/index.json is damaged ({error}); copy the dataset again") from error
    if version != VERSION:
        raise InputError(f"{folder} has version {version} of the index; this version reads {VERSION}. Build the dataset again")
    shapes = {name: (records,) for name in _ARRAYS} | {"sizes": (records, 2), "offsets": (people + 1,)}
    arrays = {}
    for name, dtype in _ARRAYS.items():
        path = folder / f"{name}.npy"
        try:
            arrays[name] = _load(path)
        except (FileNotFoundError, ValueError, EOFError) as error:
            raise InputError(f"{path} is missing or damaged ({error}); copy the dataset again") from error
        if arrays[name].shape != shapes[name] or arrays[name].dtype != dtype:
            found = f"{arrays[name].dtype} {arrays[name].shape}"
            raise InputError(f"{path} holds {found}; expected {dtype} {shapes[name]} as index.json says. Copy the dataset again")
    return Index(**arrays, fingerprint=fingerprint)


def _load(path: epath.Path) -> np.ndarray:
    if "://" not in str(path):
        return np.load(path, mmap_mode="r", allow_pickle=False)
    with path.open("rb") as file:  # buckets cannot be mapped
        return np.load(file, allow_pickle=False)


def open_index(directory: epath.PathLike, split: str) -> Index:
    """Opens the index of a split. Raises InputError when it is missing or damaged, or was made for other shards than those beside it."""
    index = read_index(directory, split)
    if index.fingerprint != (expected := shards_fingerprint(directory, split)):
        raise InputError(
            f"{epath.Path(directory) / 'index' / split} belongs to other shards (its fingerprint is {index.fingerprint[:12]}, "
            f"theirs {expected[:12]}); copy the dataset again, with its index"
        )
    return index


def shards_fingerprint(directory: epath.PathLike, split: str) -> str:
    """A digest of what dataset_info.json and metadata.json say of a split: names and lengths of its shards, bytes, digest of its records.

    Two small files, however many shards there are. Raises InputError when they do not know the split.
    """
    directory = epath.Path(directory)
    try:
        info = json.loads((directory / "dataset_info.json").read_text())
        digests = json.loads((directory / "metadata.json").read_text())["sha256"]
        stated = next(entry for entry in info["splits"] if entry["name"] == split)
        said = [info["name"], info["version"], split, stated["filepathTemplate"], stated["shardLengths"], stated["numBytes"], digests[split]]
    except FileNotFoundError as error:
        raise InputError(f"{directory} is no dataset ({error.filename} is missing); give a folder that python -m data_pipeline.build wrote") from None
    except StopIteration:
        raise InputError(f"{directory} has no split {split!r}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{directory}: dataset_info.json or metadata.json is damaged ({error!r}); copy the dataset again") from error
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()
