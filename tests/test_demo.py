"""python -m infu_jax.demo: the contact sheet of a tiny stack."""

import re

import numpy as np
from PIL import Image

from infu_jax import demo, pictures
from tests import random_stack
from tests.test_sample_cli import assert_one_line, command


def test_three_people_and_four_prompts(tmp_path):
    code, out, err = command(demo, "--stack", random_stack.folders()[0].parent, "--out", tmp_path, "--steps", 1)
    assert code == 0, err
    lines = out.splitlines()
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
    assert_one_line(command(demo, "--stack", tmp_path, "--out", tmp_path / "out"), str(tmp_path / "FLUX.1-tiny"))
    assert not (tmp_path / "out").exists()
