"""The slow part of a build, which worker processes do: rows become a chunk file of candidate records, candidates become a shard.

A chunk is two files, NNNNNN.array_record with the records that passed their own filters and NNNNNN.jsonl with a line for every row. Each
appears whole or not at all, the second one last, so that it stands for a finished chunk. Both are functions of rows and settings alone.
"""

import hashlib
import io
import json
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import parent_process
from pathlib import Path
from typing import Any, Literal

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader
from jaxtyping import Float32, UInt8
from PIL import Image

from data_pipeline.duplicates import perceptual_hash
from data_pipeline.filters import Filters, Found, Rejected, check_size, find_face
from data_pipeline.index import INLINE_IDENTITY, SYNTHETIC
from data_pipeline.manifest import RawRow, Source, parse
from data_pipeline.records import PictureError, Record, encode, is_plain, open_picture, read_picture
from data_pipeline.spms import Shard, write_shard
from infu_jax import face
from infu_jax.cli import appearing
from infu_jax.errors import InputError


@dataclass(frozen=True)
class Settings:
    """What a record depends on, beside the source."""

    filters: Filters
    max_side: int
    """Pictures with a longer long side are scaled down to it."""
    quality: int
    """JPEG quality of pictures that must be encoded again."""
    max_pixels: int
    max_bytes: int
    detector: Literal["yunet", "antelopev2"]
    detector_root: Path | None


@dataclass(frozen=True, eq=False)
class _Picture:
    data: bytes
    image: UInt8[np.ndarray, "h w 3"]
    found: Found


class Worker:
    """Makes chunks. One object per thread, since detectors are."""

    def __init__(self, source: Source, settings: Settings):
        self.source, self.settings = source, settings
        self.detector = face.load_detector(settings.detector, settings.detector_root)

    def make_chunk(self, path: Path, rows: Sequence[RawRow]) -> int:
        """Writes `path`.array_record and `path`.jsonl, and returns the number of rows."""
        lines: list[dict[str, Any]] = []
        write_chunk(path, self._examples(rows, lines), lines)
        return len(rows)

    def _examples(self, rows: Iterable[RawRow], lines: list[dict[str, Any]]) -> Iterator[bytes]:
        """Yields records, and adds a line for each row."""
        for raw in rows:
            try:
                record, look = self.examine(raw)
            except (Rejected, PictureError) as error:
                lines.append({"row": raw.number, "reason": error.reason, "detail": str(error), "given": raw.given})
                continue
            example = encode(record)
            lines.append(kept_line(raw.number, record, look, example, raw.given))
            yield example

    def examine(self, raw: RawRow) -> tuple[Record, int]:
        """The record of a row, and the perceptual hash of its target. Raises Rejected or PictureError when it is not to be kept."""
        row = parse(self.source, raw)
        if self.settings.filters.require_caption and not row.captions:
            raise Rejected("no_caption", f"{row.image_name} has no caption")
        target, provenance = self._read(row.image, row.image_name, row.keypoints)
        provenance = {**row.provenance, "path": row.image_name, **provenance}
        pictures, scores = _fields("target", target), target.found.scores
        if row.identity is not None:
            try:
                identity, source = self._read(row.identity, row.identity_name, row.identity_keypoints)
            except (Rejected, PictureError) as error:
                raise Rejected(error.reason, f"identity photo: {error}") from None
            provenance |= {"identity_path": row.identity_name} | {f"identity_{name}": value for name, value in source.items()}
            pictures |= _fields("identity", identity)
            scores = scores | {f"identity_{name}": value for name, value in identity.found.scores.items()}
        record = Record(
            key=row.key, person=row.person, captions=row.captions, synthetic=row.synthetic, scores=scores, provenance=provenance, **pictures
        )  # fmt: skip
        return record, perceptual_hash(target.image)

    def _read(self, path: Path, name: str, keypoints: Float32[np.ndarray, "5 2"] | None) -> tuple[_Picture, dict[str, str]]:
        """A picture as it is stored, with its face, and where it came from. Only what must be is encoded again."""
        settings = self.settings
        if (size := path.stat().st_size) > settings.max_bytes:
            raise Rejected("file_too_large", f"{name} has {size} bytes; at most {settings.max_bytes} are allowed")
        try:
            data = path.read_bytes()
        except OSError as error:
            raise Rejected("missing_file", f"{name} cannot be read ({error.strerror})") from None
        provenance = {"sha256": hashlib.sha256(data).hexdigest()}
        with open_picture(data, name, max_pixels=settings.max_pixels) as picture:
            check_size(picture.height, picture.width, settings.filters)
            plain = is_plain(picture)
        image = read_picture(data, name, max_pixels=settings.max_pixels)
        height, width = image.shape[:2]
        if max(height, width) > settings.max_side:
            import cv2

            scale = settings.max_side / max(height, width)
            new = max(1, round(width * scale)), max(1, round(height * scale))
            image, plain = cv2.resize(image, new, interpolation=cv2.INTER_AREA), False
            check_size(new[1], new[0], settings.filters)
            if keypoints is not None:
                keypoints = keypoints * np.array([new[0] / width, new[1] / height], np.float32)
            provenance["scaled_from"] = f"{width}x{height}"
        if not plain:
            file = io.BytesIO()
            Image.fromarray(image).save(file, "JPEG", quality=settings.quality, subsampling=0)
            data = file.getvalue()
            image = read_picture(data, name)  # what is stored is what is looked at
            provenance["encoded_again"] = f"JPEG, quality {settings.quality}"
        return _Picture(data, image, find_face(image, self.detector, settings.filters, keypoints)), provenance


def _fields(which: str, picture: _Picture) -> dict[str, Any]:
    return {
        which: picture.data,
        f"{which}_size": picture.image.shape[:2],
        f"{which}_keypoints": picture.found.keypoints,
        f"{which}_face": picture.found.box,
    }


def kept_line(row: int, record: Record, look: int, example: bytes, given: Any) -> dict[str, Any]:
    """What a chunk says of a record that passed its own filters. look: the perceptual hash of its target."""
    flags = SYNTHETIC * record.synthetic | INLINE_IDENTITY * bool(record.identity)
    return {
        "row": row, "key": record.key, "person": record.person, "size": record.target_size, "flags": flags,
        "captions": len(record.captions), "hash": f"{look:016x}", "bytes": len(example), "given": given,
    }  # fmt: skip


def write_chunk(path: Path, examples: Iterable[bytes], lines: Sequence[dict[str, Any]]) -> None:
    """Writes `path`.array_record and `path`.jsonl. `lines` may grow while `examples` are taken."""
    write_shard(path.with_suffix(".array_record"), examples)
    with appearing(path.with_suffix(".jsonl"), replace=True) as partial:
        partial.write_text("".join(json.dumps(line) + "\n" for line in lines))


# Candidates become shards ---------------------------------------------------------------------------


def copy_shard(path: Path, chunks: Path, places: Sequence[tuple[int, int]]) -> Shard:
    """Writes the shard `path` of the records at `places`: (chunk, record of the chunk). A shard that is there already is not written again."""
    stated = path.with_suffix(".json")
    if stated.exists() and path.exists():
        return Shard(path, **json.loads(stated.read_text()))
    shard = write_shard(path, gather(chunks, places))
    with appearing(stated, replace=True) as partial:
        partial.write_text(json.dumps({"records": shard.records, "sha256": shard.sha256}))
    return shard


def gather(chunks: Path, places: Sequence[tuple[int, int]]) -> Iterator[bytes]:
    """The serialised records at `places`."""
    reader, opened = None, None
    for chunk, number in places:
        if chunk != opened:
            if reader is not None:
                reader.close()
            reader, opened = ArrayRecordReader(str(chunk_path(chunks, chunk).with_suffix(".array_record")), "readahead_buffer_size:0"), chunk
        (example,) = reader.read([number])
        yield example
    if reader is not None:
        reader.close()


def chunk_path(folder: Path, number: int) -> Path:
    return folder / f"{number:07d}"


# Worker processes -----------------------------------------------------------------------------------

_worker: Worker | None = None


def start_worker(source: Source, settings: Settings) -> None:
    """Prepares a worker process, which ends when its parent does, killed or not."""
    import cv2

    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it too, and lets chunks end
    if (parent := parent_process()) is None:
        raise RuntimeError("start_worker is for worker processes")
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
    cv2.setNumThreads(1)  # the processes share the cores
    _worker = Worker(source, settings)


def make_chunk(path: Path, rows: Sequence[RawRow]) -> int:
    """`Worker.make_chunk` in a worker process."""
    if _worker is None:
        raise RuntimeError("make_chunk runs in processes that start_worker has prepared")
    return _worker.make_chunk(path, rows)


def check_detector(settings: Settings) -> None:
    """Raises InputError when the detector's files are not there, before any process starts."""
    try:
        face.load_detector(settings.detector, settings.detector_root)
    except FileNotFoundError as error:
        raise InputError(str(error)) from None
