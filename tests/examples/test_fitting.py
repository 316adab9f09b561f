"""The training loop of the tiny world's small networks: it goes on where it stopped, and a batch may lie on any number of devices."""

from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from examples.tiny_world import fitting
from infu_jax.sharding import make_mesh

HOW = fitting.Fit(steps=40, batch_size=8, learning_rate=1e-2)


class Line(nnx.Module):
    def __init__(self, *, rngs: nnx.Rngs):
        self.inner = nnx.Linear(3, 5, use_bias=False, rngs=rngs)  # a bias before the norm has no gradient but rounding, which Adam enlarges
        self.norm = nnx.BatchNorm(5, rngs=rngs)
        self.outer = nnx.Linear(5, 2, rngs=rngs)

    def __call__(self, x):
        return self.outer(nnx.relu(self.norm(self.inner(x))))


def train(out, batch):
    def loss(modules, batch, key, progress):
        return jnp.mean((modules["line"](batch["x"]) - batch["y"]) ** 2), {}

    fitting.fit(out, lambda rngs: {"line": Line(rngs=rngs)}, loss, batch, HOW, lambda modules: ({}, None))
    return nnx.state(fitting.restore(out, lambda rngs: {"line": Line(rngs=rngs)})["line"])


def batch(rng):
    x = rng.normal(size=(HOW.batch_size, 3)).astype(np.float32)
    return {"x": x, "y": np.stack([x.sum(1), x[:, 0] * x[:, 1]], 1)}


def apart(a, b) -> float:
    return max(float(np.abs(x - y).max()) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_a_run_that_was_cut_goes_on_to_the_same_result(tmp_path):
    whole = train(tmp_path / "whole", batch)
    asked = Mock(wraps=batch)

    def until_30(rng):
        if asked.call_count == 30:
            raise KeyboardInterrupt
        return asked(rng)

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", until_30)
    asked.reset_mock()
    assert apart(whole, train(tmp_path / "cut", asked)) == 0
    assert asked.call_count == 15  # from the checkpoint of step 25


def test_one_device_and_several_agree(tmp_path, monkeypatch):
    several = train(tmp_path / "several", batch)
    one = Mock(return_value=make_mesh(devices=jax.devices()[:1]))
    monkeypatch.setattr(fitting, "make_mesh", one)
    assert apart(several, train(tmp_path / "one", batch)) < 1e-5
    assert one.called and jax.device_count() > 1
