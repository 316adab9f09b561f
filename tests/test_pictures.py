"""Pictures on disk: what their metadata say, that nothing is overwritten, and that half a picture is never seen under its name."""

import errno
import io
import os
import re
import signal
import struct
import subprocess
import sys
import textwrap
import zlib
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image, ImageFont, PngImagePlugin

from infu_jax import pictures
from infu_jax.errors import InputError

RECIPE = {"prompt": 'a "café" ☂\nin the rain', "seed": 4294967295, "guidance": 3.5, "keypoints": [1.5, 2.25], "synthetic": True, "nothing": None}


def image(height=8, width=6, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def test_pixels_and_settings_come_back(tmp_path):
    pictures.save_png(tmp_path / "a.png", image(), RECIPE)
    assert pictures.read_recipe(tmp_path / "a.png") == RECIPE
    with Image.open(tmp_path / "a.png") as found:
        np.testing.assert_array_equal(np.asarray(found), image())
    assert os.listdir(tmp_path) == ["a.png"]


def test_every_picture_says_that_it_is_synthetic(tmp_path):
    """In the property that IPTC has for it, inside an XMP packet that is well-formed XML."""
    pictures.save_png(tmp_path / "a.png", image(), RECIPE)
    with Image.open(tmp_path / "a.png") as found:
        [description] = ElementTree.fromstring(found.info["xmp"]).iter("{http://www.w3.org/1999/02/22-rdf-syntax-ns#}Description")
        source = description.attrib["{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"]
        assert source == "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
        assert "Synthetic" in found.info["Description"]


def test_a_file_name_that_is_no_text_is_stored(tmp_path):
    path = os.fsdecode(b"caf\xe9.png")
    pictures.save_png(tmp_path / "a.png", image(), {"id_image": path, "prompt": "café"})
    assert pictures.read_recipe(tmp_path / "a.png") == {"id_image": path, "prompt": "café"}


@pytest.mark.parametrize("links", [True, False])
def test_nothing_is_overwritten(tmp_path, monkeypatch, links):
    """Neither where the file system has hard links nor where it has none."""
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    pictures.save_png(tmp_path / "a.png", image(seed=1), RECIPE)
    before = (tmp_path / "a.png").read_bytes()
    with pytest.raises(FileExistsError, match=r"a\.png exists already"):
        pictures.save_png(tmp_path / "a.png", image(seed=2), RECIPE)
    assert (tmp_path / "a.png").read_bytes() == before
    assert os.listdir(tmp_path) == ["a.png"]


def no_links(*_):
    raise OSError(errno.EPERM, "Operation not permitted")


def test_numbers_go_on(tmp_path):
    folder = tmp_path / "new" / "folder"
    names = [pictures.save_next(folder, "seed7", image(), RECIPE).name for _ in range(2)]
    (folder / "0041_sheet.png").touch()
    (folder / "notes.txt").touch()
    (folder / "²²²²_x.png").touch()  # digits to isdigit(), no number to int()
    names += [pictures.save_next(folder, "seed8", image(), RECIPE).name]
    (folder / "9999_seed1.png").touch()
    names += [pictures.save_next(folder, "seed9", image(), RECIPE).name for _ in range(2)]
    assert names == ["0001_seed7.png", "0002_seed7.png", "0042_seed8.png", "10000_seed9.png", "10001_seed9.png"]


def test_two_runs_share_a_folder(tmp_path, monkeypatch):
    """The other run takes the number between our look at the folder and our writing."""
    save, taken = pictures.save_png, []

    def slow_save(path, *args):
        if not taken:
            taken.append(path)
            save(path, image(seed=5), {"run": "the other"})
        save(path, *args)

    monkeypatch.setattr(pictures, "save_png", slow_save)
    path = pictures.save_next(tmp_path, "seed1", image(), {"run": "ours"})
    assert [taken[0].name, path.name] == ["0001_seed1.png", "0002_seed1.png"]
    assert pictures.read_recipe(taken[0]) == {"run": "the other"} and pictures.read_recipe(path) == {"run": "ours"}


def test_runs_with_the_same_process_id(tmp_path, monkeypatch):
    """As in two containers: the other run writes all of its picture while we write ours."""
    save, others = Image.Image.save, []

    def slow(self, path, **options):
        save(self, path, **options)
        if not others:
            others.append(None)
            others[0] = pictures.save_next(tmp_path, "seed1", image(seed=5), {"run": "the other"})

    monkeypatch.setattr(os, "getpid", lambda: 1)
    monkeypatch.setattr(Image.Image, "save", slow)
    ours = pictures.save_next(tmp_path, "seed1", image(seed=6), {"run": "ours"})
    assert sorted(os.listdir(tmp_path)) == sorted([ours.name, others[0].name])
    assert pictures.read_recipe(ours) == {"run": "ours"} and pictures.read_recipe(others[0]) == {"run": "the other"}


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def save(self, path, **_):
        path.write_bytes(b"\x89PNG half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", save)
    with pytest.raises(OSError, match="No space left"):
        pictures.save_next(tmp_path, "seed1", image(), RECIPE)
    assert os.listdir(tmp_path) == []


def test_a_killed_run_leaves_no_picture(tmp_path):
    """A real kill in the middle of the second picture's bytes: the first is whole, the second has no name."""
    script = """
        import os, signal, sys
        from pathlib import Path
        import numpy as np
        from PIL import Image
        from infu_jax import pictures

        class Dying:
            def __init__(self, file): self.file = file
            def write(self, data):
                self.file.write(data[: len(data) // 2]); self.file.flush()
                os.kill(os.getpid(), signal.SIGKILL)

        folder, image = Path(sys.argv[1]), np.zeros((64, 64, 3), np.uint8)
        pictures.save_next(folder, "seed1", image, {"n": 1})
        save = Image.Image.save
        Image.Image.save = lambda self, path, **options: save(self, Dying(open(path, "wb")), **options)
        pictures.save_next(folder, "seed1", image, {"n": 2})
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script), tmp_path], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    left = sorted(p.name for p in tmp_path.iterdir())
    assert len(left) == 2 and left[1] == "0001_seed1.png" and re.fullmatch(r"\.0002_seed1\.png\.[0-9a-f]{8}\.partial", left[0])
    assert pictures.read_recipe(tmp_path / "0001_seed1.png") == {"n": 1}
    assert pictures.save_next(tmp_path, "seed1", image(), RECIPE).name == "0002_seed1.png"


# Reading ------------------------------------------------------------------------------------------


def png_with(path, text, zip=False):
    info = PngImagePlugin.PngInfo()
    info.add_itxt(pictures.KEY, text, zip=zip)
    Image.fromarray(image()).save(path, pnginfo=info)


def huge_png():
    """The beginning of one of 400 megapixels."""
    chunks = b"IHDR" + struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(bytes(100))
    return b"\x89PNG\r\n\x1a\n" + b"".join(struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks)


def unknown_pixels():
    """A DDS file whose pixel format says nothing: Pillow raises NotImplementedError, which is a RuntimeError."""
    file = io.BytesIO()
    Image.fromarray(image()).save(file, format="DDS")
    return file.getvalue()[:80] + bytes(4) + file.getvalue()[84:]


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_text("no picture"), "is not a picture"),
        (lambda path: Image.fromarray(image()).save(path), "carries no infu_jax settings"),
        (lambda path: png_with(path, '{"seed": 1'), "are not JSON"),
        (lambda path: png_with(path, "[" * 200_000), "are not JSON"),
        (lambda path: png_with(path, '{"seed": ' + "9" * 5000 + "}"), "are not JSON"),
        (lambda path: png_with(path, "a" * 3_000_000, zip=True), "damaged or too large a picture file"),
        (lambda path: path.write_bytes(huge_png()), "damaged or too large a picture file"),
        (lambda path: path.write_bytes(unknown_pixels()), "damaged or too large a picture file"),
        (lambda path: png_with(path, "[1, 2]"), "are list, expected an object"),
    ],
)
def test_files_without_settings(tmp_path, write, message):
    write(tmp_path / "a.png")
    with pytest.raises(InputError, match=message) as error:
        pictures.read_recipe(tmp_path / "a.png")
    assert str(tmp_path / "a.png") in str(error.value) and "\n" not in str(error.value)


# Contact sheets -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(300, 400), (1152, 864), (4, 4), (10_000, 20), (20, 10_000)])
def test_thumbnails_fit_their_cell(size):
    height, width = pictures.thumbnail(image(*size), cell=64).shape[:2]
    assert width == 64 or height == 128
    assert 1 <= width <= 64 and 1 <= height <= 128
    if 1 < width < 64 or 1 < height < 128:
        assert abs(height / width - size[0] / size[1]) < 0.02 * size[0] / size[1]


def test_sheet_shows_every_picture_once():
    colours = [(200, 0, n) for n in range(5)]
    cells = [(np.full((30, 40, 3), colour, np.uint8), f"seed {n}, identity similarity 0.5") for n, colour in enumerate(colours)]
    sheet = pictures.contact_sheet([("a prompt, far too long for one line, " * 9, cells[:4]), ("unicode ☂ 漢字\nline two", cells[4:])], cell=40, columns=3)
    for colour in colours:
        rows, columns = np.nonzero((sheet == colour).all(-1))
        assert len(rows) == 30 * 40 and np.ptp(rows) == 29 and np.ptp(columns) == 39
    assert sheet.shape[1] == 12 + 3 * (40 + 12)  # three abreast; the fourth goes below
    assert (sheet[-1] == 255).all() and (sheet[:, -1] == 255).all() and sheet.min() < 100  # a white margin, dark captions


@pytest.mark.parametrize("length", [10, 8000, 2_000_000])
def test_long_prompts_are_cut_in_a_few_looks(monkeypatch, length):
    """Pillow refuses a million characters, and dropping them one at a time takes time with the square of their number."""
    font, looks = ImageFont.load_default(15), []
    getlength = ImageFont.FreeTypeFont.getlength
    monkeypatch.setattr(ImageFont.FreeTypeFont, "getlength", lambda self, text, *rest: (looks.append(len(text)), getlength(self, text, *rest))[1])
    for text in ("i" * length, "W" * length, ("ab " * length)[:length].strip()):
        looks.clear()
        found = pictures._cut(text, font, 150)
        assert len(looks) <= 12 and sum(looks) < 2000
        kept = found.removesuffix("…")
        assert text.startswith(kept) and getlength(font, found) <= 150
        assert found == text or getlength(font, text[: len(kept) + 2] + "…") > 150  # nothing that fits is left out, but for a space at the end
    assert pictures._cut("WWWW", font, 3) == ""
