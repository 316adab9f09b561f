"""python -m infu_jax.demo: the contact sheet of a tiny stack."""

import contextlib
import io
import re
import sys
from unittest import mock

import numpy as np
from PIL import Image

from infu_jax import demo, pictures
from infu_jax.cli import run
from tests import random_stack


def command(*argv) -> tuple[list[str], str, int]:
    out, err, code = io.StringIO(), io.StringIO(), 0
    with mock.patch.object(sys, "argv", ["demo", *map(str, argv)]), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            run(demo.main)
        except SystemExit as e:
            code = e.code
    return out.getvalue().splitlines(), err.getvalue(), code


def test_three_people_and_four_prompts(tmp_path):
    lines, err, code = command("--stack", random_stack.folders()[0].parent, "--out", tmp_path, "--steps", 1)
    assert code == 0, err
    names = [f"{n + 1:04d}_{name}.png" for n, name in enumerate(["ada"] * 4 + ["bo"] * 4 + ["cy"] * 4)]
    assert [line.split()[0] for line in lines] == [str(tmp_path / name) for name in [*names, "0013_sheet.png"]]
    for line, name, prompt in zip(lines, names, demo.PROMPTS * 3):
        recipe = pictures.read_recipe(tmp_path / name)
        assert recipe["prompt"] == prompt.format("man" if recipe["person"] == "bo" else "woman") and line.endswith(recipe["prompt"])
        assert re.search(r"  (no face found|similarity -?\d\.\d\d)  ", line)
    assert len({np.asarray(Image.open(tmp_path / name)).tobytes() for name in names}) == 12
    height, width, _ = np.asarray(Image.open(tmp_path / "0013_sheet.png")).shape
    assert width == 12 + 3 * 268 and height > 5 * 256  # three people abreast, their photos and four prompts below each other


def test_no_stack(tmp_path):
    lines, err, code = command("--stack", tmp_path, "--out", tmp_path / "out")
    assert code == 1 and not lines and len(err.splitlines()) == 1 and str(tmp_path / "FLUX.1-tiny") in err
