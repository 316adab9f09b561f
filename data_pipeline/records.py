"""The record: one target picture of one person, as it is stored. `data_pipeline/README.md` describes every field.

A record is a serialised tf.train.Example inside an ArrayRecord file. Pictures are encoded bytes (JPEG, PNG or WebP), upright, one frame,
8-bit grey or RGB without transparency, so that every decoder sees the same. TFDS's own reader takes 200 us a record; `encode` and `decode`
know the schema and take 90 us, reading included (300 kB a picture).
"""

import io
import json
import struct
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, SupportsIndex

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from google.protobuf.message import DecodeError
from jaxtyping import Float32, UInt8
from PIL import Image, ImageOps
from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

from infu_jax import face
from infu_jax.errors import InputError

VERSION = "1.0.0"
"""Of the format, and of the datasets written in it. README.md says when it must change."""

MAX_PIXELS = 50_000_000
"""Pictures with more are refused before they are decoded."""

MAX_ID = 200
"""Longest person id or key, in bytes of UTF-8."""

FORMATS = ("JPEG", "PNG", "WEBP")

Reason = Literal["not_a_picture", "damaged", "too_many_pixels", "animated"]


class PictureError(InputError):
    """Bytes that are no picture we take. `reason` is the word that reports count."""

    def __init__(self, reason: Reason, message: str):
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Caption:
    """What a picture shows, and who says so: "user", "blip2", ..."""

    text: str
    source: str


def _no_points() -> Float32[np.ndarray, "5 2"]:
    return np.zeros((5, 2), np.float32)


def _no_box() -> Float32[np.ndarray, "4"]:
    return np.zeros(4, np.float32)


@dataclass(frozen=True, eq=False)
class Record:
    """One target picture. Sizes are (height, width); points and boxes are (x, y) pixels of the stored, upright picture."""

    key: str
    """Unique in the dataset."""
    person: str
    target: bytes
    target_size: tuple[int, int]
    target_keypoints: Float32[np.ndarray, "5 2"]
    """In ArcFace's order: left eye, right eye, nose, left and right mouth corner, left as the viewer sees it."""
    target_face: Float32[np.ndarray, "4"]
    """Left, top, right, bottom."""
    identity: bytes = b""
    """The photo that shows who it is; empty where that is the target itself or another record of the person."""
    identity_size: tuple[int, int] = (0, 0)
    identity_keypoints: Float32[np.ndarray, "5 2"] = field(default_factory=_no_points)
    identity_face: Float32[np.ndarray, "4"] = field(default_factory=_no_box)
    captions: tuple[Caption, ...] = ()
    synthetic: bool = False
    """Made by a model, not photographed."""
    scores: Mapping[str, float] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Where it is from: path, sha256, licence, url, whatever the manifest says. JSON values."""

    def __post_init__(self):
        check_id(self.key, "key")
        check_id(self.person, "person")
        for which in ("target", "identity"):
            given, size = bool(getattr(self, which)), getattr(self, f"{which}_size")
            if given != (min(size) > 0):
                raise InputError(f"record {self.key}: {which} has {len(getattr(self, which))} bytes and size {size}; give both or neither")
        if not self.target:
            raise InputError(f"record {self.key}: it has no target picture")
        if max(*self.target_size, *self.identity_size) > 65535:
            raise InputError(f"record {self.key}: a picture of {self.target_size}, {self.identity_size}; sides go up to 65535")
        if len(self.captions) > 255:
            raise InputError(f"record {self.key}: {len(self.captions)} captions; at most 255 are kept")


def check_id(name: str, what: str) -> str:
    """Returns `name` if it can be an id: it may end up in paths, so no separators, no "..", no control characters, MAX_ID bytes of UTF-8."""
    shown = name if len(name) <= 60 else name[:60] + "..."
    if not name.strip() or name != name.strip() or name == ".":
        raise InputError(f"{what} {shown!r} is no plain name; it may be neither empty nor '.', and not begin or end with a space")
    if ".." in name or any(c in "/\\" or ord(c) < 32 or ord(c) == 127 for c in name):
        raise InputError(f"{what} {shown!r} is no plain name; '/', '\\', '..' and control characters are not allowed")
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise InputError(f"{what} {shown!r} is not valid UTF-8") from None
    if size > MAX_ID:
        raise InputError(f"{what} {shown!r} has {size} bytes; at most {MAX_ID} are allowed")
    return name


# The schema as TFDS has it --------------------------------------------------------------------------


def features() -> tfds.features.FeaturesDict:
    """The schema. Pictures are plain bytes to TFDS: they may be empty, of three formats, and are decoded by `read_picture`."""
    f = tfds.features
    picture = {
        "": f.Tensor(shape=(), dtype=np.object_, doc="encoded JPEG, PNG or WebP"),
        "_size": f.Tensor(shape=(2,), dtype=np.int32, doc="height, width"),
        "_keypoints": f.Tensor(shape=(5, 2), dtype=np.float32, doc="(x, y) of left eye, right eye, nose, left and right mouth corner"),
        "_face": f.Tensor(shape=(4,), dtype=np.float32, doc="left, top, right, bottom"),
    }
    return f.FeaturesDict(
        {
            "key": f.Text(),
            "person": f.Text(),
            **{which + part: feature for which in ("target", "identity") for part, feature in picture.items()},
            "captions": f.Sequence({"text": f.Text(), "source": f.Text()}),
            "synthetic": f.Scalar(np.bool_),
            "scores": f.Sequence({"name": f.Text(), "value": f.Scalar(np.float32)}),
            "provenance": f.Text(doc="JSON object"),
        }
    )


def encode(record: Record) -> bytes:
    """The record as TFDS stores it: a tf.train.Example. Equal records give equal bytes, which TFDS's own serialiser does not."""
    stored = {
        "key": _texts(record.key),
        "person": _texts(record.person),
        "captions/text": _texts(*(caption.text for caption in record.captions)),
        "captions/source": _texts(*(caption.source for caption in record.captions)),
        "synthetic": _integers(record.synthetic),
        "scores/name": _texts(*record.scores),
        "scores/value": _floats(*record.scores.values()),
        "provenance": _texts(json.dumps(record.provenance, ensure_ascii=False, sort_keys=True)),
    }
    for which in ("target", "identity"):
        stored[which] = tf_feature_pb2.Feature(bytes_list=tf_feature_pb2.BytesList(value=[getattr(record, which)]))
        stored[f"{which}_size"] = _integers(*getattr(record, f"{which}_size"))
        stored[f"{which}_keypoints"] = _floats(*getattr(record, f"{which}_keypoints").ravel())
        stored[f"{which}_face"] = _floats(*getattr(record, f"{which}_face"))
    return tf_example_pb2.Example(features=tf_feature_pb2.Features(feature=stored)).SerializeToString(deterministic=True)


def decode(data: bytes) -> Record:
    """The record that `encode` made. Raises InputError when `data` is something else."""
    try:
        stored = tf_example_pb2.Example.FromString(data).features.feature
        # A field that is not there would come back empty, and one of these cannot be.
        pictures = {}
        for which in ("target", "identity"):
            pictures[which] = stored[which].bytes_list.value[0]
            height, width = stored[f"{which}_size"].int64_list.value
            pictures[f"{which}_size"] = height, width
            pictures[f"{which}_keypoints"] = np.array(stored[f"{which}_keypoints"].float_list.value, np.float32).reshape(5, 2)
            pictures[f"{which}_face"] = np.array(stored[f"{which}_face"].float_list.value, np.float32).reshape(4)
        return Record(
            key=_text(stored["key"]),
            person=_text(stored["person"]),
            captions=tuple(
                Caption(text.decode(), source.decode())
                for text, source in zip(stored["captions/text"].bytes_list.value, stored["captions/source"].bytes_list.value, strict=True)
            ),
            synthetic=bool(stored["synthetic"].int64_list.value[0]),
            scores={name.decode(): value for name, value in zip(stored["scores/name"].bytes_list.value, stored["scores/value"].float_list.value, strict=True)},
            provenance=json.loads(_text(stored["provenance"])),
            **pictures,
        )
    except (DecodeError, IndexError, ValueError) as error:  # InputError is a ValueError
        raise InputError(f"{len(data)} bytes that are no record of version {VERSION} ({error}); expected what data_pipeline.build writes") from error


def _texts(*values: str) -> tf_feature_pb2.Feature:
    return tf_feature_pb2.Feature(bytes_list=tf_feature_pb2.BytesList(value=[value.encode() for value in values]))


def _integers(*values: SupportsIndex) -> tf_feature_pb2.Feature:
    return tf_feature_pb2.Feature(int64_list=tf_feature_pb2.Int64List(value=[int(value) for value in values]))


def _floats(*values: float | np.floating) -> tf_feature_pb2.Feature:
    return tf_feature_pb2.Feature(float_list=tf_feature_pb2.FloatList(value=[float(value) for value in values]))


def _text(stored: tf_feature_pb2.Feature) -> str:
    return stored.bytes_list.value[0].decode()


# Datasets on disk -----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Records:
    """The records of one split by number. Picklable; threads and processes may read at once."""

    directory: str
    split: str
    source: Any  # TFDS's data source of raw bytes

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, number: SupportsIndex) -> Record:
        """Raises IndexError beyond the end and InputError, naming dataset, number and file, for a damaged record."""
        number = number.__index__()
        if not 0 <= number < len(self):
            raise IndexError(f"record {number} of {self.directory}, split {self.split}, which has {len(self)}")
        try:
            stored = self.source[number]
        except RuntimeError as error:  # ArrayRecord's only one, for bytes that are not what was written, and for a file that cannot be opened or read
            raise self._damaged(number, error) from error
        try:
            return decode(stored)
        except InputError as error:
            raise self._damaged(number, error) from error

    def _damaged(self, number: int, error: Exception) -> InputError:
        split = self.source.dataset_info.splits[self.split]
        file = split.filepaths[int(np.searchsorted(np.cumsum(split.shard_lengths), number, side="right"))]
        return InputError(f"{self.directory}, split {self.split}, record {number}: {file} is damaged or cannot be read ({error}); copy this file again")


def open_records(directory: epath.PathLike, split: str) -> Records:
    """Opens a split of a dataset that `data_pipeline.build` wrote. Files are opened when they are first read.

    Raises InputError when there is no such dataset or split, files are missing, or the format's major version is another.
    """
    directory = epath.Path(directory)
    if not (directory / "dataset_info.json").exists():
        raise InputError(f"{directory} is no dataset (it has no dataset_info.json); give a folder that python -m data_pipeline.build wrote")
    builder = tfds.builder_from_directory(directory)
    if str(builder.version).split(".")[0] != VERSION.split(".")[0]:
        raise InputError(f"{directory} has record format {builder.version}; this version reads {VERSION}. Build the dataset again")
    if split not in builder.info.splits:
        raise InputError(f"{directory} has no split {split!r}; it has {', '.join(builder.info.splits) or 'none'}")
    present = {path.name for path in directory.iterdir()}
    if missing := [path.name for path in builder.info.splits[split].filepaths if path.name not in present]:
        raise InputError(f"{directory}: {len(missing)} files are missing, the first is {missing[0]}; copy the dataset again")
    return Records(str(directory), split, builder.as_data_source(split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES))


# Pictures ---------------------------------------------------------------------------------------------


def open_picture(data: bytes, name: str, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Opens encoded bytes without decoding them: JPEG, PNG or WebP, at most `max_pixels`, one frame. Raises PictureError, which names `name`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit follows
            picture = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise PictureError("too_many_pixels", f"{name}: {error}") from error
    except Image.UnidentifiedImageError as error:
        raise PictureError("not_a_picture", f"{name}: not a JPEG, PNG or WebP picture") from error
    except _DAMAGE as error:
        raise PictureError("damaged", f"{name}: damaged picture ({error})") from error
    if picture.width * picture.height > max_pixels:
        raise PictureError("too_many_pixels", f"{name}: {picture.width}x{picture.height} is more than {max_pixels / 1e6:g} megapixels")
    # Cameras put previews behind a JPEG (MPO), which are no animation.
    if picture.format != "MPO" and getattr(picture, "is_animated", False):
        raise PictureError("animated", f"{name}: an animation of {picture.n_frames} frames; expected one picture")
    return picture


def read_picture(data: bytes, name: str, *, max_pixels: int = MAX_PIXELS) -> UInt8[np.ndarray, "h w 3"]:
    """Decodes a picture as RGB: turned upright by EXIF, transparency over white, greys and palettes expanded, 16 bits reduced to 8.

    Raises PictureError, which names `name`, for what is no picture, damaged, animated, or larger than `max_pixels`.
    """
    with open_picture(data, name, max_pixels=max_pixels) as picture:
        try:
            return face.to_rgb(ImageOps.exif_transpose(picture), name)
        except face.FaceError as error:
            raise PictureError("not_a_picture", str(error)) from error
        except _DAMAGE as error:
            raise PictureError("damaged", f"{name}: damaged picture ({error})") from error


def is_plain(picture: Image.Image) -> bool:
    """Whether an open picture may be stored as it is: upright, 8-bit grey or RGB, no transparency."""
    return picture.mode in ("L", "RGB") and not picture.has_transparency_data and picture.getexif().get(0x0112, 1) == 1


_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error)  # what Pillow's decoders raise for damaged files
