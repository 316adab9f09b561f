"""The whole pipeline against the same loop on diffusers' models, from the release's own files; every draw injected."""

import numpy as np
import pytest

from infu_jax.config import SamplingConfig
from infu_jax.pipeline import InfUPipeline
from tests.parity.release import EMBEDDING, make_release, reference
from tests.parity.tools import assert_close

PROMPTS = ["portrait photo of a woman in a garden", "a chef; ¿café? ☂"]
KEYPOINTS = np.array([[20.0, 30.0], [44.0, 28.0], [33.0, 42.0], [24.0, 55.0], [42.0, 54.0]])


@pytest.fixture(scope="module")
def dev(tmp_path_factory):
    release = make_release(tmp_path_factory.mktemp("dev"))
    return release, InfUPipeline.load(release.base, release.infu)


@pytest.fixture(scope="module")
def schnell(tmp_path_factory):
    release = make_release(tmp_path_factory.mktemp("schnell"), guidance=False)
    return release, InfUPipeline.load(release.base, release.infu)


def check(release, pipeline, *, width, height, keypoints=None, negative=None, **options):
    draw = np.random.default_rng(0).standard_normal
    shape = (len(PROMPTS), height // 8, width // 8, 16)
    embedding = draw((len(PROMPTS), EMBEDDING)).astype(np.float32)
    embedding /= np.linalg.norm(embedding, axis=-1, keepdims=True)
    noise, control_noise = draw(shape).astype(np.float32), draw(shape).astype(np.float32)
    settings = SamplingConfig(width=width, height=height, t5_length=48, **options)
    ours = pipeline(
        PROMPTS, id_embedding=embedding, keypoints=keypoints, negative_prompt=negative, settings=settings, noise=noise, control_noise=control_noise, trace=True
    ).trace
    theirs = reference(
        release, PROMPTS, id_embedding=embedding, control_image=ours["control_image"], noise=noise, control_noise=control_noise, width=width, height=height,
        steps=settings.steps, guidance=settings.guidance, scale=settings.conditioning_scale, start=settings.guidance_start, end=settings.guidance_end,
        negative=negative, true_cfg=settings.true_cfg, t5_length=settings.t5_length,
    )  # fmt: skip
    for name in ("txt", "y", "id_tokens", "control_latents", "image"):
        assert_close(ours[name], theirs[name])
    for k in range(settings.steps):
        assert_close(ours["velocity"][k], theirs["velocity"][k])
        assert_close(ours["latents"][k], theirs["latents"][k])
        if ours["double_residuals"][k] is None:
            assert not theirs["double_residuals"][k].any()
        else:
            assert_close(ours["double_residuals"][k], theirs["double_residuals"][k])
    return ours


def test_black_control_image(dev):
    ours = check(*dev, width=48, height=64, steps=4)
    assert not ours["control_image"].any()


def test_keypoints_on_a_non_square_picture(dev):
    ours = check(*dev, width=80, height=64, steps=3, keypoints=KEYPOINTS)
    assert ours["control_image"].any()


def test_window_and_scale(dev):
    ours = check(*dev, width=48, height=64, steps=10, guidance_start=0.2, guidance_end=0.7, conditioning_scale=0.8)
    assert [r is not None for r in ours["double_residuals"]] == [False] * 2 + [True] * 5 + [False] * 3


def test_negative_prompt_with_true_cfg(dev):
    check(*dev, width=48, height=64, steps=3, negative="blurry, cut off", true_cfg=2.0, keypoints=KEYPOINTS)


def test_schnell(schnell):
    ours = check(*schnell, width=64, height=48, steps=4)
    np.testing.assert_allclose(ours["times"], [1, 0.75, 0.5, 0.25, 0])  # no shift
