"""The parts as another program uses them: pictures in a folder, a detector, recognisers and a scorer of its own."""

import numpy as np
import pytest
from PIL import Image

from infu_jax import checkpoint, face
from infu_jax.assets import ASSETS
from infu_jax.errors import InputError
from infu_jax.evaluation.comparing import Bootstrap, known, markdown, summary
from infu_jax.evaluation.identities import read_identities
from infu_jax.evaluation.judging import judge
from infu_jax.evaluation.measuring import Measure, Recogniser, fingerprint
from infu_jax.evaluation.pairs import plan
from infu_jax.prompts import Prompt

ARCFACE = ASSETS / "tiny" / "InfiniteYou-tiny" / "recognition_arcface_ir_se50.pth"
POINTS = np.float32([[30, 40], [60, 40], [45, 55], [33, 70], [57, 70]])


class Corner:
    """Finds a face, of one size, wherever a picture's first pixel is not black."""

    def detect(self, image):
        return [face.Face(np.float32([20, 20, 80, 90]), POINTS, 1.0)] if image[0, 0].any() else []


class Redness:
    """Scores what it is told of prompt and picture, and counts its calls."""

    measure = Measure("attributes", "attribute accuracy", "up", "share of attributes that a classifier finds")

    def __init__(self):
        self.calls = []

    def __call__(self, images, prompts):
        self.calls.append(len(images))
        return np.array([image[0, 0, 0] / 100 + len(prompt) for image, prompt in zip(images, prompts, strict=True)])


@pytest.fixture(scope="module")
def arcface():
    return checkpoint.load_model(ARCFACE, "arcface", dtype="float32")


def flat(path, seed, red):
    """Noise of its own with a first pixel of that red; 0 hides the face."""
    image = np.random.default_rng(seed).integers(1, 255, (100, 90, 3)).astype(np.uint8)
    image[0, 0] = (red, 0, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def test_a_scorer_of_ones_own(tmp_path, arcface):
    for seed, who in enumerate(("ada_woman", "bo_woman", "cy_woman")):
        flat(tmp_path / "people" / f"{who}.png", seed, 1)
        for prompt in (1, 2):  # copies of the photo, but of the last picture, which has no face
            flat(tmp_path / "pictures" / who / f"{prompt:04d}.png", seed, 0 if (seed, prompt) == (2, 2) else 10 * prompt)
    people = read_identities(tmp_path / "people")
    pairs = plan(people, [Prompt(1, "a", "any"), Prompt(2, "bcd", "any")])
    scorer, seen = Redness(), []
    judges = [Recogniser("a", arcface, True), Recogniser("b", arcface, False)]
    mine, reference = judge(pairs, people, tmp_path / "pictures", detector=Corner(), recognisers=judges, scorers=[scorer], name="m", batch=4, done=seen.append)
    assert reference is None and scorer.calls == seen == [4, 2] and mine.scorers == {}  # it does not say which weights it has
    np.testing.assert_allclose(mine.columns["attributes"], [1.1, 3.2, 1.1, 3.2, 1.1, 3.0])
    np.testing.assert_array_equal(mine.columns["face"], [1, 1, 1, 1, 1, 0])
    np.testing.assert_allclose(mine.columns["similarity/a"], [1, 1, 1, 1, 1, np.nan], atol=1e-6)
    np.testing.assert_array_equal(mine.columns["rank_1/b"], [1, 1, 1, 1, 1, 0])
    table = markdown([summary(mine, Bootstrap(50))], known([mine]))
    assert "| attribute accuracy ↑ | 2.117 [" in table and "CLIPScore" not in table
    (tmp_path / "pictures" / "bo_woman" / "0001.png").unlink()
    with pytest.raises(InputError, match="has no picture bo_woman/0001"):
        judge(pairs, people, tmp_path / "pictures", detector=Corner(), recognisers=judges)
    flat(tmp_path / "people" / "bo_woman.png", 0, 0)
    with pytest.raises(InputError, match="bo_woman.png: no face found"):
        judge(pairs, people, tmp_path / "pictures", detector=Corner(), recognisers=judges)


def test_fingerprint(arcface, tmp_path):
    """Says which weights, not where they lie."""
    checkpoint.save_model(tmp_path / "ours", "arcface", arcface)
    assert fingerprint(checkpoint.load_model(tmp_path / "ours", "arcface")) == fingerprint(arcface)
    params = checkpoint.params_of(arcface)
    name = next(iter(params))
    assert fingerprint(checkpoint.with_params(arcface, {**params, name: params[name] + 1e-6})) != fingerprint(arcface)
