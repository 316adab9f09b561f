"""The embedded models: whole, small, and trained."""

import json

import numpy as np
import pytest

from infu_jax.convert import source
from infu_jax.inspection import describe
from tests.conftest import ROOT

TINY = ROOT / "infu_jax" / "assets" / "tiny"
PLACES = [place for model in source.PLACES for folder in sorted(TINY.iterdir()) for name in source.PLACES[model] if (place := folder / name).exists()]


def test_size():
    assert sum(path.stat().st_size for path in TINY.parent.rglob("*") if path.is_file()) < 20e6


def test_provenance():
    told = json.loads((TINY / "provenance.json").read_text("utf-8"))
    assert told["command"] == "python -m examples.tiny_world" and all(steps > 0 for steps in told["steps"].values())


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.name)
def test_every_model_is_whole(place):
    """As the command line says it, and with numbers that can hide nothing: no kernel is all zero or constant."""
    assert describe(place)[1], describe(place)
    for key, x in source.open_source(place).tensors.items():
        assert np.issubdtype(x.dtype, np.integer) or x.ndim < 2 or np.float32(x).std() > 0, (place, key)


def test_all_models_are_there():
    assert len(PLACES) == len(source.PLACES)
