"""The embedded models are the random ones of tests/random_stack.py."""

import json

import numpy as np
import pytest

from infu_jax.convert import source
from infu_jax.inspection import describe
from infu_jax.tokenizers import load_t5_tokenizer
from tests import random_stack
from tests.conftest import ROOT

TINY = ROOT / "infu_jax" / "assets" / "tiny"
FILES = sorted(str(path.relative_to(TINY)) for path in TINY.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "tiny"
    random_stack.write(out)
    return out


def test_the_same_files(made):
    assert sorted(str(path.relative_to(made)) for path in made.rglob("*") if path.is_file()) == FILES


@pytest.mark.parametrize("name", FILES)
def test_the_same_contents(made, name):
    """Bytes, as a rule. On another processor or with another mathematics library the last bit of a logarithm may differ in the
    normal draws and in the vocabulary's scores: numbers may then differ by one rounding, and nothing else may."""
    if (made / name).read_bytes() == (TINY / name).read_bytes():
        return
    if name.endswith((".safetensors", ".bin", ".pth")):
        ours, theirs = source.open_tensors(made / name), source.open_tensors(TINY / name)
        assert {k: (v.shape, v.dtype) for k, v in ours.items()} == {k: (v.shape, v.dtype) for k, v in theirs.items()}
        for key, x in ours.items():
            one_rounding = 2**-8 if x.dtype.itemsize == 2 else 2**-22
            np.testing.assert_allclose(np.float64(x), np.float64(theirs[key]), rtol=one_rounding, atol=1e-9, err_msg=key)
    elif "tokenizer_2" in name:
        ours, theirs = load_t5_tokenizer((made / name).parent), load_t5_tokenizer((TINY / name).parent)
        assert ours.backend.get_vocab() == theirs.backend.get_vocab()
        scores = [dict(json.loads(t.backend.to_str())["model"]["vocab"]) for t in (ours, theirs)]
        np.testing.assert_allclose(list(scores[0].values()), list(scores[1].values()), rtol=1e-4)
    else:
        assert (made / name).read_text("utf-8") == (TINY / name).read_text("utf-8")


def test_size():
    total = sum((TINY / name).stat().st_size for name in FILES)
    assert 1e6 < total < 20e6
    assert sum(path.stat().st_size for path in TINY.parent.rglob("*") if path.is_file()) < 20e6


def test_every_model_is_whole():
    """As the command line says it, and with numbers that can hide nothing: no parameter is all zero or constant."""
    found = [place for model in source.PLACES for folder in TINY.iterdir() for name in source.PLACES[model] if (place := folder / name).exists()]
    assert len(found) == len(source.PLACES)
    for place in found:
        assert describe(place)[1], describe(place)
        opened = source.open_source(place)
        for key, x in opened.tensors.items():
            assert np.issubdtype(x.dtype, np.integer) or x.size == 1 or np.float32(x).std() > 1e-3, (place, key)
