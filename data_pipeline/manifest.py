"""Where pictures come from: a folder of people, or a JSONL or CSV manifest. Every row comes out, usable or not.

`raw_rows` is quick and never fails at a row; `parse`, which worker processes do, says what a row means or why it means nothing.
"""

import csv
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32

from data_pipeline.filters import Rejected
from data_pipeline.records import Caption, check_id
from infu_jax.errors import InputError
from infu_jax.prompts import MAX_CHARACTERS

MAX_CAPTION = MAX_CHARACTERS  # a prompt to be
"""Longest caption, in characters: T5 sees 512 tokens."""


@dataclass(frozen=True)
class Source:
    """`root` is the folder that all paths of rows are relative to, and may not leave."""

    kind: Literal["folder", "jsonl", "csv"]
    path: Path
    root: Path


@dataclass(frozen=True)
class RawRow:
    """A row as it was given: the text of a JSONL line, the cells of a CSV line, or the path of a picture in a folder."""

    number: int
    """Line of the manifest, or picture of the folder, from 1."""
    given: str | dict[str, str]
    error: str = ""
    """Why a line could not even be cut into cells."""


@dataclass(frozen=True, eq=False)
class Row:
    """What a row means. Paths exist and lie inside the source's root; names are what the row calls them."""

    key: str
    person: str
    image: Path
    image_name: str
    identity: Path | None = None
    identity_name: str = ""
    captions: tuple[Caption, ...] = ()
    synthetic: bool = False
    keypoints: Float32[np.ndarray, "5 2"] | None = None
    identity_keypoints: Float32[np.ndarray, "5 2"] | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)


def open_source(path: Path, root: Path | None = None) -> Source:
    """Raises InputError when there is nothing usable at `path`. `root` is by default the folder, or the one that holds the manifest."""
    if path.is_dir():
        if root is not None:
            raise InputError(f"{path} is a folder, which is its own root; --root goes with a manifest")
        return Source("folder", path, path.resolve())
    kind = path.suffix.lower().removeprefix(".")
    if not path.is_file():
        raise InputError(f"{path} is not there; give a folder with a folder for each person, or a .jsonl or .csv manifest")
    if kind not in ("jsonl", "csv"):
        raise InputError(f"{path} ends in {path.suffix or 'nothing'}; a manifest is a .jsonl or .csv file")
    if root is not None and not root.is_dir():
        raise InputError(f"root {root} is no folder; give the one that the manifest's paths are relative to")
    if kind == "csv":
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            try:
                columns = next(csv.reader(file), [])
            except csv.Error as error:
                raise InputError(f"{path}: its first line is no CSV ({error}); expected names of columns with commas between") from None
        if twice := sorted({name for name in columns if columns.count(name) > 1}):
            raise InputError(f"{path} has the column {twice[0]!r} twice")
        if missing := [name for name in ("image", "person") if name not in columns]:
            raise InputError(f"{path} has no column {' and no column '.join(missing)}; its first line, with commas between, reads {','.join(columns)!r:.200}")
    return Source(kind, path, (root or path.parent).resolve())


def raw_rows(source: Source) -> Iterator[RawRow]:
    """All rows in their order, which for a folder is that of names."""
    if source.kind == "folder":
        return (RawRow(number, name) for number, name in enumerate(_walk(source.root), 1))
    return _lines(source.path) if source.kind == "jsonl" else _cells(source.path)


def _walk(root: Path) -> Iterator[str]:
    def refuse(error: OSError) -> None:
        raise error  # os.walk would leave out a folder that cannot be read

    for folder, folders, files in os.walk(root, onerror=refuse):
        # Links to folders are not followed; they come out as rows, to be refused.
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        folders[:] = sorted(name for name in folders if name not in links and not name.startswith("."))
        for name in sorted([*files, *links]):
            if not name.startswith(".") and not name.lower().endswith(".txt"):
                yield os.path.relpath(os.path.join(folder, name), root)


def _lines(path: Path) -> Iterator[RawRow]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                yield RawRow(number, line.decode("utf-8", "surrogateescape").strip())


def _cells(path: Path) -> Iterator[RawRow]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file)
        columns = next(reader)
        while True:
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield RawRow(reader.line_num, {}, f"line {reader.line_num} is no CSV ({error})")
                continue
            if len(cells) > len(columns):
                yield RawRow(reader.line_num, dict(zip(columns, cells)), f"{len(cells)} cells, the first line has {len(columns)}")
            elif cells:
                yield RawRow(reader.line_num, dict(zip(columns, cells)))


def fingerprint(source: Source) -> tuple[str, int]:
    """A digest of the manifest, or of names, sizes and times of a folder's files, and the number of rows. Raises InputError when there are none."""
    digest, rows = hashlib.sha256(source.kind.encode()), 0
    if source.kind == "folder":
        for row in raw_rows(source):
            path = source.root / str(row.given)
            for file in (path, _caption_file(path)):
                stat = os.lstat(file) if os.path.lexists(file) else None
                digest.update(os.fsencode(file.relative_to(source.root)) + f"\0{stat and (stat.st_size, stat.st_mtime_ns)}\0".encode())
            rows += 1
    else:
        with source.path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
        rows = sum(1 for _ in raw_rows(source))
    if not rows:
        raise InputError(f"{source.path} has no pictures in it" if source.kind == "folder" else f"{source.path} has no rows")
    return digest.hexdigest(), rows


def _caption_file(picture: Path) -> Path:
    """Where a picture's caption is, if it has one."""
    lower, upper = picture.with_suffix(".txt"), picture.with_suffix(".TXT")
    return upper if os.path.lexists(upper) and not os.path.lexists(lower) else lower


# What a row means -----------------------------------------------------------------------------------

_KNOWN = ("image", "person", "key", "identity", "caption", "caption_source", "captions", "synthetic", "keypoints", "identity_keypoints")


def parse(source: Source, raw: RawRow) -> Row:
    """Raises Rejected when a row means nothing, or something that is not allowed."""
    if raw.error:
        raise Rejected("bad_row", raw.error)
    if source.kind == "folder":
        return _parse_picture(source, str(raw.given))
    values = raw.given if isinstance(raw.given, dict) else _json(raw.given, "the line")
    if not isinstance(values, dict):
        raise Rejected("bad_row", f"the line is a JSON {type(values).__name__}; expected an object")
    values = {name: value for name, value in values.items() if value is not None and value != ""}
    try:
        json.dumps(values, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise Rejected("bad_row", "the line is not valid UTF-8") from None
    names = {name: values.get(name) for name in ("image", "person", "key", "identity")}
    for name, value in names.items():
        if value is None and name in ("image", "person"):
            raise Rejected("bad_row", f"{name} is missing")
        if isinstance(value, int) and name in ("person", "key"):  # ids are often numbers
            value = names[name] = str(value)
        if value is not None and not isinstance(value, str):
            raise Rejected("bad_row", f"{name} is a JSON {type(value).__name__}; expected text")
    image, person, key, identity = names.values()
    return Row(
        key=_id(_key(image, identity or "") if key is None else key, "key"),
        person=_id(person, "person"),
        image=inside(source.root, image),
        image_name=image,
        identity=None if identity is None else inside(source.root, identity),
        identity_name=identity or "",
        captions=_captions(values),
        synthetic=_truth(values.get("synthetic", False)),
        keypoints=_points(values, "keypoints"),
        identity_keypoints=_points(values, "identity_keypoints"),
        provenance={name: value for name, value in values.items() if name not in _KNOWN and not name.startswith("caption_")},
    )


def _parse_picture(source: Source, name: str) -> Row:
    shown = os.fsencode(name).decode("utf-8", "backslashreplace")
    person, _, rest = shown.partition(os.sep)
    if not rest:
        raise Rejected("bad_row", f"{shown} lies in no person's folder")
    person, image = _id(person, "person"), inside(source.root, name)
    captions, beside = (), _caption_file(source.root / name)
    if os.path.lexists(beside):
        path = inside(source.root, str(beside.relative_to(source.root)))
        if path.stat().st_size > 4 * MAX_CAPTION:
            raise Rejected("bad_row", f"the caption {beside.name} has {path.stat().st_size} bytes; expected a sentence or two")
        try:
            captions = _captions({"caption": path.read_bytes().decode("utf-8-sig"), "caption_source": "text"})
        except UnicodeDecodeError:
            raise Rejected("bad_row", f"the caption {beside.name} is not valid UTF-8") from None
    return Row(key=_key(shown, ""), person=person, image=image, image_name=shown, captions=captions)


def inside(root: Path, name: str) -> Path:
    """The file that a row names. Raises Rejected when it lies outside `root`, links followed, or is not there."""
    if "\0" in name:
        raise Rejected("bad_row", f"{name!r} is no path")
    path = Path(os.path.realpath(root / name))
    if not path.is_relative_to(root):
        raise Rejected("outside", f"{name} leads out of the source's folder")
    try:
        if not path.is_file():
            raise Rejected("missing_file", f"{name} is no file" if path.exists() else f"{name} does not exist")
    except OSError as error:  # such as a name that is too long
        raise Rejected("missing_file", f"{name:.200} cannot be opened ({error.strerror})") from None
    return path


def _key(image: str, identity: str) -> str:
    return hashlib.sha256(f"{image}\0{identity}".encode()).hexdigest()[:16]


def _id(name: str, what: str) -> str:
    try:
        return check_id(name, what)
    except InputError as error:
        raise Rejected("bad_id", str(error)) from None


def _json(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Rejected("bad_row", f"{what} is no JSON ({error})") from None


def _captions(values: Mapping[str, Any]) -> tuple[Caption, ...]:
    """From caption (with caption_source), caption_<source>, and captions: texts, {"text", "source"} objects, or an object of source: text."""
    default = values.get("caption_source", "manifest")
    found = [(values["caption"], default)] if "caption" in values else []
    found += [(text, name.removeprefix("caption_")) for name, text in values.items() if name.startswith("caption_") and name != "caption_source"]
    many = values.get("captions", [])
    if isinstance(many, str):
        many = _json(many, "captions") if many.lstrip()[:1] in ("[", "{") else [many]
    if isinstance(many, dict):
        found += [(text, source) for source, text in many.items()]
    elif isinstance(many, list):
        found += [(one.get("text"), one.get("source", default)) if isinstance(one, dict) else (one, default) for one in many]
    else:
        raise Rejected("bad_row", f"captions is a JSON {type(many).__name__}; expected a list or an object")
    captions = []
    for text, source in found:
        if not isinstance(text, str) or not isinstance(source, str) or not source:
            raise Rejected("bad_row", f"a caption is {str(text)!r:.60} by {str(source)!r:.60}; expected text and who wrote it")
        if len(text) > MAX_CAPTION:
            raise Rejected("bad_row", f"a caption has {len(text)} characters; at most {MAX_CAPTION} are allowed")
        try:
            (text + source).encode()
        except UnicodeEncodeError:  # from JSON inside a cell
            raise Rejected("bad_row", f"a caption is {text!r:.60} by {source!r:.60}, which is not valid UTF-8") from None
        if text.strip():
            captions.append(Caption(" ".join(text.split()), source))
    if len(captions) > 255:
        raise Rejected("bad_row", f"{len(captions)} captions; at most 255 are kept")
    return tuple(captions)


def _truth(value: Any) -> bool:
    text = str(value).strip().lower()
    if text not in ("true", "false", "1", "0", "yes", "no"):
        raise Rejected("bad_row", f"synthetic is {text!r:.60}; expected true or false")
    return text in ("true", "1", "yes")


def _points(values: Mapping[str, Any], name: str) -> Float32[np.ndarray, "5 2"] | None:
    given = values.get(name)
    if given is None:
        return None
    if isinstance(given, str):
        given = _json(given, name) if given.lstrip().startswith("[") else given.replace(",", " ").split()
    try:
        points = np.asarray(given, np.float32)
    except (TypeError, ValueError, OverflowError):
        points = np.zeros(0)
    if points.shape not in ((5, 2), (10,)) or not (np.abs(points) < 1e5).all():
        raise Rejected("bad_row", f"{name} is {str(given)!r:.80}; expected x y of five points, in pixels")
    if (np.ptp(points.reshape(5, 2), axis=0) < 1).any():
        raise Rejected("bad_row", f"{name} is {str(given)!r:.80}; the five points of a face are apart")
    return points.reshape(5, 2)
