"""Sizes that suit the models which a command line gives."""

import dataclasses

import pytest

from infu_jax import runs
from infu_jax.assets import TINY, TINY_SAMPLING
from infu_jax.config import SamplingConfig
from infu_jax.stack_options import with_defaults
from sample import Args

RELEASE = SamplingConfig()


def sampling_for(argv):
    return with_defaults(Args(), argv).sampling


def test_without_a_run():
    assert sampling_for([]) == sampling_for(["--infu", "InfiniteYou"]) == TINY_SAMPLING
    assert sampling_for(["--base=FLUX.1-dev", "--steps", "3"]) == RELEASE


@pytest.mark.parametrize(
    "settings, sizes",
    [
        ({"data.resolution": 1024, "data.t5_length": 512, "data.max_aspect": 2.0}, (864, 1152, 512)),
        ({"data.resolution": 128, "data.t5_length": 32, "data.max_aspect": 2.0}, (112, 144, 32)),
        ({"data.resolution": 128, "data.t5_length": 56, "data.max_aspect": 1.0}, (128, 128, 56)),
        ({}, (864, 1152, 512)),
    ],
)
def test_of_a_run(tmp_path, settings, sizes):
    wanted = dict(zip(("width", "height", "t5_length"), sizes))
    runs.write_run(tmp_path, {"settings": {"models.base": "FLUX.1-dev", **settings}})
    assert sampling_for(["--infu", str(tmp_path)]) == dataclasses.replace(RELEASE, **wanted)
    runs.write_run(tmp_path, {"settings": {"models.base": str(TINY / "FLUX.1-tiny"), **settings}})
    if settings:
        assert sampling_for(["--infu", str(tmp_path)]) == dataclasses.replace(TINY_SAMPLING, **wanted)
    assert with_defaults(Args(), ["--infu", str(tmp_path)]).base == TINY / "FLUX.1-tiny"
    assert sampling_for(["--infu", str(tmp_path), "--base", "mine"]) == dataclasses.replace(RELEASE, **wanted)
