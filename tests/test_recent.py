"""Encoders run once for each prompt, face and control image; the pictures are the same."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from infu_jax import face, programs
from infu_jax.assets import ASSETS
from infu_jax.checkpoint import params_of
from infu_jax.pipeline import InfUPipeline
from infu_jax.recent import Recent, digest
from tests.conftest import assert_close, unit_vector

KEYPOINTS = np.array([[20.0, 30.0], [44.0, 28.0], [33.0, 42.0], [24.0, 55.0], [42.0, 54.0]])


def test_bounded():
    kept = Recent(100)
    for name in "abc":
        assert kept.put(name, (np.zeros(5, np.float32), [np.zeros(4, np.uint8)])) is not None
    assert kept.nbytes == 72 and kept.get("a") is not None
    kept.put("d", np.zeros(60, np.uint8))
    assert kept.get("b") is None and kept.get("c") is None and kept.get("a") is not None  # the one that was asked for stayed
    assert kept.put("large", np.zeros(101, np.uint8)).shape == (101,) and kept.get("large") is None and kept.nbytes == 84
    kept.put("a", np.zeros(9, np.uint8))
    kept.clear()
    assert kept.get("a") is None


def test_digests():
    x = np.arange(6, dtype=np.int16)
    assert digest(x) == digest(x.copy()) == digest(np.repeat(x, 2)[::2])
    others = [x.reshape(2, 3), x.astype(np.int32), x.view(np.uint16), x[::-1]]
    assert len({digest(x), *map(digest, others)}) == 5


@pytest.fixture
def counted(pipeline, monkeypatch):
    """A pipeline that has encoded nothing, and how often each encoder has run."""
    counts = dict.fromkeys(("encode_text", "project", "encode_control", "embed"), 0)

    def count(name):
        run = getattr(programs, name)

        def counting(*args, **options):
            counts[name] += 1
            return run(*args, **options)

        monkeypatch.setattr(programs, name, counting)

    for name in counts:
        count(name)
    return dataclasses.replace(pipeline), counts


def test_encoders_run_once(counted, paint):
    pipeline, counts = counted
    first = paint(pipeline)
    assert counts == {"encode_text": 1, "project": 1, "encode_control": 1, "embed": 0}
    np.testing.assert_array_equal(paint(pipeline), first)
    again = paint(pipeline, ["a chef", "a man in a garden"], seeds=[6, 5])
    assert counts == {"encode_text": 1, "project": 1, "encode_control": 1, "embed": 0}
    assert_close(again[::-1], first, 1e-5)
    # Whatever is new is encoded: a prompt beside a known one, another length, another face, another control image.
    paint(pipeline, ["a chef", "a woman in the rain"])
    assert counts["encode_text"] == 2
    paint(pipeline, t5_length=25)
    assert counts["encode_text"] == 3
    paint(pipeline, given={"id_embedding": unit_vector(128, 1), "keypoints": KEYPOINTS})
    assert counts == {"encode_text": 3, "project": 2, "encode_control": 2, "embed": 0}
    assert_close(paint(dataclasses.replace(pipeline), given={"id_embedding": unit_vector(128, 1), "keypoints": KEYPOINTS}),
                 paint(pipeline, given={"id_embedding": unit_vector(128, 1), "keypoints": KEYPOINTS}), 1e-5)  # fmt: skip


def test_faces(counted):
    pipeline, counts = counted
    photo = face.read_image(ASSETS / "faces" / "ada.png")
    first = pipeline.embed_face(photo)
    first[:] = 0  # the caller's own copy
    second = pipeline.embed_face(photo.copy())
    assert counts["embed"] == 1 and abs(np.linalg.norm(second) - 1) < 1e-5
    pipeline.embed_face(face.read_image(ASSETS / "faces" / "bo.png"))
    assert counts["embed"] == 2


def test_other_weights_encode_anew(counted, paint):
    pipeline, counts = counted
    paint(pipeline)
    pipeline.set_loras([])
    paint(pipeline)
    assert counts["encode_text"] == 1  # nothing was changed
    path, weight = next(iter(params_of(pipeline.t5).items()))
    changed = dataclasses.replace(pipeline, former={"t5": {path: weight}})  # as a LoRA leaves it
    paint(changed)
    changed.set_loras([])
    paint(changed)
    assert counts["encode_text"] == 3 and "t5" not in pipeline.former
    changed.set_loras([])
    paint(changed)
    assert counts["encode_text"] == 3  # there was nothing left to take off
    assert dataclasses.replace(pipeline).recent.nbytes == 0 < pipeline.recent.nbytes


def test_kept_in_host_memory(tiny, paint):
    pipeline = InfUPipeline.load(*tiny, dtype=jnp.float32)
    paint(pipeline)
    kept = [x for key in pipeline.recent._entries for x in pipeline.recent._entries[key]]
    assert len(kept) > 4 and {x.sharding.memory_kind for x in kept if hasattr(x, "sharding")} == {"pinned_host"}
