"""What programs do on GPUs only, as far as it can be done here."""

from infu_jax import programs, sampler
from infu_jax.models import flux
from tests.conftest import assert_close


def test_the_same_pictures(pipeline, paint, monkeypatch):
    """InfuseNet before the base, RoPE in one pass, the options that the loop is compiled with; attention is this machine's."""
    expected, asked = paint(pipeline), []
    for module in (programs, sampler, flux):
        monkeypatch.setattr(module, "platform", lambda name=module.__name__: asked.append(name) or "gpu")
    assert_close(paint(pipeline), expected, 1e-5)
    assert set(asked) == {"infu_jax.programs", "infu_jax.sampler", "infu_jax.models.flux"}
