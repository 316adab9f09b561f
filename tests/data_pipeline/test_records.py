"""The record: what goes in comes out, TFDS reads the same, and pictures that are not to be trusted are refused."""

import io
import pickle
import shutil
import struct
import subprocess
import sys
import warnings
import zlib
from dataclasses import replace

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from data_pipeline import records
from data_pipeline.records import Caption, PictureError, Record, decode, encode, open_records, read_picture
from infu_jax.errors import InputError
from tests.conftest import ROOT
from tests.data_pipeline.conftest import portrait


@pytest.fixture(scope="module")
def record():
    points = np.random.default_rng(0).uniform(0, 100, (5, 2)).astype(np.float32)
    return Record(
        key="k-1", person="Zoë", target=b"\xff\xd8 bytes \x00", target_size=(120, 90), target_keypoints=points, target_face=np.float32([1, 2, 3.5, 4]),
        identity=b"\x89PNG", identity_size=(7, 9), identity_keypoints=points + 1, identity_face=np.float32([5, 6, 7, 8]),
        captions=(Caption("a woman\nin Zürich", "user"), Caption("", "blip2")), synthetic=True, scores={"sharpness": 3.25, "detector": 0.5},
        provenance={"licence": "CC0", "url": None, "n": [1, 2], "path": "a/b.jpg"},
    )  # fmt: skip


def assert_equal(a, b):
    for name in Record.__dataclass_fields__:
        np.testing.assert_equal(getattr(a, name), getattr(b, name), err_msg=name)


def test_what_goes_in_comes_out(record):
    bare = Record("k", "p", b"x", (1, 2), record.target_keypoints, record.target_face)
    for given in (record, bare):
        data = encode(given)
        assert_equal(decode(data), given)
        assert encode(decode(data)) == data
    assert decode(encode(bare)).identity == b"" and not decode(encode(bare)).identity_keypoints.any()


def test_equal_records_are_equal_bytes_in_another_process(record):
    """Protobuf's maps come in an order that differs between processes, unless asked."""
    code = "import sys; from data_pipeline.records import *; sys.stdout.buffer.write(encode(decode(sys.stdin.buffer.read())))"
    data = encode(record)
    assert subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=True).stdout == data


def test_tfds_reads_the_same(dataset):
    """Without our code, without decoders, without TensorFlow."""
    builder = tfds.builder_from_directory(dataset)
    assert str(builder.version) == records.VERSION and builder.name == "spms"
    source, ours = builder.as_data_source("train"), open_records(dataset, "train")
    assert len(source) == len(ours) == 14
    for theirs, mine in zip(source, (ours[n] for n in range(len(ours)))):
        assert theirs["key"].decode() == mine.key and theirs["target"] == mine.target and theirs["identity"] == b""
        assert tuple(theirs["target_size"]) == mine.target_size and theirs["synthetic"] == mine.synthetic
        np.testing.assert_array_equal(theirs["target_keypoints"], mine.target_keypoints)
        assert [text.decode() for text in theirs["captions"]["text"]] == [caption.text for caption in mine.captions]
    assert "tensorflow" not in sys.modules


def test_damaged_records(record):
    data = encode(record)
    damaged = [data.replace(old, new) for old, new in ((b"person", b"parson"), (b"scores/value", b"scores/volue"), (b'"licence"', b"licence  "))]
    for bad in (b"", b"hello", data[:-5], *damaged):
        assert bad != data
        with pytest.raises(InputError, match=f"{len(bad)} bytes that are no record of version"):
            decode(bad)


@pytest.mark.parametrize(
    "name", ["", " ", ".", "..", "a..b", "a/b", "../a", "/etc", "a\\b", "a\0b", "a\nb", "a\x7f", " a", "a ", "x" * 201, "é" * 101, "\ud800"]
)
def test_ids_are_plain_names(record, name):
    for what in ("key", "person"):
        with pytest.raises(InputError, match=what):
            replace(record, **{what: name})
    assert replace(record, person="O'Brien, Ana-María (2)", key="x" * 200)


def test_records_that_make_no_sense(record):
    for changes in (
        {"target": b""}, {"target": b"", "target_size": (0, 0)}, {"identity": b""}, {"identity_size": (0, 0)}, {"target_size": (70000, 9)},
        {"captions": (Caption("a", "b"),) * 256},
    ):  # fmt: skip
        with pytest.raises(InputError, match="k-1"):
            replace(record, **changes)


def test_records_by_number(dataset):
    split = open_records(dataset, "validation")
    assert [split[n].key for n in (3, 0)] == ["person5-3", "person5-0"]
    assert pickle.loads(pickle.dumps(split))[1].key == "person5-1"
    for number in (4, -1):
        with pytest.raises(IndexError, match="which has 4"):
            split[number]


def test_datasets_that_are_none(dataset, tmp_path):
    with pytest.raises(InputError, match="no dataset_info.json"):
        open_records(tmp_path, "train")
    with pytest.raises(InputError, match="no split 'test'; it has train, validation"):
        open_records(dataset, "test")
    shutil.copytree(dataset, tmp_path / "other")
    info = tmp_path / "other" / "dataset_info.json"
    stated = info.read_text()
    assert f'"version": "{records.VERSION}"' in stated
    info.write_text(stated.replace(f'"version": "{records.VERSION}"', '"version": "7.0.0"'))
    with pytest.raises(InputError, match="format 7.0.0"):
        open_records(tmp_path / "other", "train")
    info.write_text(stated)
    next((tmp_path / "other").glob("spms-train*")).unlink()
    with pytest.raises(InputError, match="1 files are missing, the first is spms-train"):
        open_records(tmp_path / "other", "train")


@pytest.mark.parametrize("damage", ["flipped", "cut", "short", "empty"])
def test_damaged_files(pairs_dataset, tmp_path, damage):
    """The file of the record is named, and records of other files can be read."""
    whole = open_records(pairs_dataset, "train")
    folder = tmp_path / "data"
    shutil.copytree(pairs_dataset, folder)
    first, second = sorted(folder.glob("spms-train*"))
    data = second.read_bytes()
    at = data.index(whole[len(whole) - 1].target) + 1000
    # ArrayRecord pads to 64 KiB with zeros, which a file that was cut there can end with, too: such records come back empty.
    changed = {"flipped": data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :], "cut": data[: len(data) // 2], "short": data[:0x10000], "empty": b""}
    second.write_bytes(changed[damage])
    damaged = open_records(folder, "train")
    assert damaged[0].key == whole[0].key and damaged[len(whole) // 2 - 1].key == whole[len(whole) // 2 - 1].key
    with pytest.raises(InputError, match=rf"{folder}, split train, record 11: {second} is damaged or cannot be read \(.+\); copy this file again") as said:
        damaged[len(whole) - 1]
    assert pickle.loads(pickle.dumps(said.value)).args == said.value.args  # it comes from worker processes


# Pictures


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
    return file.getvalue()


def png_header(width, height):
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))  # noqa: E731
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def test_read_picture():
    image = portrait(0, 1)
    np.testing.assert_array_equal(read_picture(encoded(image), "x"), image)
    for kind in ("JPEG", "WEBP"):
        decoded = read_picture(encoded(image, kind, quality=95), "x")
        assert decoded.shape == image.shape and np.abs(decoded.astype(int) - image).mean() < 3
    exif = Image.Exif()
    exif[0x0112] = 8  # shown turned by 90 degrees
    np.testing.assert_array_equal(read_picture(encoded(image, exif=exif), "x"), np.rot90(image))
    grey = (np.arange(6 * 4).reshape(6, 4) * 257 * 10).astype(np.uint16)
    np.testing.assert_array_equal(read_picture(encoded(grey), "x")[..., 2], grey // 257)
    cmyk = read_picture(encoded(Image.fromarray(image).convert("CMYK"), "JPEG", quality=95), "x")
    assert np.abs(cmyk.astype(int) - image).mean() < 4


def test_plain_pictures_are_stored_as_they_are():
    image = Image.fromarray(portrait(0, 1))
    turned = Image.Exif()
    turned[0x0112] = 3
    plain = lambda data: records.is_plain(records.open_picture(data, "x"))  # noqa: E731
    for kind in ("JPEG", "PNG", "WEBP"):
        assert plain(encoded(image, kind)) and not plain(encoded(image, kind, exif=turned))
    assert plain(encoded(image.convert("L")))
    for mode in ("RGBA", "LA", "P", "1", "I;16"):
        assert not plain(encoded(image.convert("L").convert("I;16") if mode == "I;16" else image.convert(mode))), mode
    assert not plain(encoded(image.convert("CMYK"), "JPEG"))


def test_pictures_that_are_refused():
    image, small = portrait(0, 0), portrait(0, 0)[:64, :64]
    film = [Image.fromarray(small), Image.fromarray(small[::-1])]
    cases = {
        "not_a_picture": [b"", b"hello", encoded(small, "GIF"), encoded(small, "TIFF"), encoded(small, "BMP")],
        "damaged": [encoded(image, "JPEG")[:5000], encoded(image)[:9000], encoded(image, "WEBP")[:5000]],
        "too_many_pixels": [png_header(10_000, 6_000), png_header(40_000, 40_000)],  # of the second Pillow itself is afraid
        "animated": [encoded(film[0], kind, save_all=True, append_images=film[1:]) for kind in ("WEBP", "PNG")],
    }
    for reason, given in cases.items():
        for data in given:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                with pytest.raises(PictureError, match="^a.jpg: ") as error:
                    read_picture(data, "a.jpg")
            assert error.value.reason == reason, (data[:10], error.value)
    with pytest.raises(PictureError, match="more than 0.2 megapixels"):
        read_picture(encoded(image), "x", max_pixels=200_000)
    preview = [Image.fromarray(image), Image.fromarray(small)]
    np.testing.assert_allclose(read_picture(encoded(preview[0], "MPO", save_all=True, append_images=preview[1:]), "x").shape, image.shape)


def test_readme_names_every_field():
    text = (ROOT / "data_pipeline" / "README.md").read_text()
    assert f"Version **{records.VERSION}**" in text
    assert [name for name in records.features() if f"`{name}`" not in text] == []
    assert set(records.features()) == set(Record.__dataclass_fields__)
