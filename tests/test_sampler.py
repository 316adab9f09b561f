"""InfuseNet beside the base model: the velocity that all residuals at once give, in less memory."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infu_jax import programs, sampler
from infu_jax.checkpoint import abstract, param_shapes, with_params
from infu_jax.config import FluxConfig, InfuseNetConfig
from tests.conftest import assert_close

SIZES = dict(vec_in_dim=16, context_in_dim=24, hidden_size=64, num_heads=2, axes_dim=(8, 12, 12))
H, W, TEXT, IDS = 8, 12, 6, 4


def drawn(module, cfg):
    """A module whose outputs are not zero, as those of a new InfuseNet are."""
    draw = np.random.default_rng(0).standard_normal
    model = abstract(module, cfg)
    return with_params(model, {path: jnp.asarray(0.1 * draw(s.shape), jnp.float32) for path, s in param_shapes(model).items()})


def conditions(flux, infusenet, negative=None):
    rng = np.random.default_rng(1)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)  # noqa: E731
    text = lambda: sampler.Text(draw(2, TEXT, 24), draw(2, 16))  # noqa: E731
    who = sampler.identity(infusenet.cfg, draw(2, IDS, 24), draw(2, H * W // 4, 64), H, W, guidance=1.0, scale=0.7)
    return sampler.conditions(flux.cfg, text(), H, W, guidance=3.5, identity=who, negative=negative and text(), true_cfg=2.0)


@pytest.mark.parametrize(
    ("base", "branch", "tables"),
    [((5, 7), (2, 3), True), ((4, 8), (1, 1), False), ((4, 3), (3, 3), False), ((2, 3), (0, 2), True), ((3, 2), (2, 0), False)],
    ids=["last interval shorter", "one each", "one too many", "no double blocks", "no single blocks"],
)
def test_beside(base, branch, tables):
    flux = drawn("flux", FluxConfig(**SIZES, depth=base[0], depth_single_blocks=base[1]))
    infusenet = drawn("infusenet", InfuseNetConfig(**SIZES, depth=branch[0], depth_single_blocks=branch[1]))
    given, z = conditions(flux, infusenet, negative=True), jnp.asarray(np.random.default_rng(2).standard_normal((2, H * W // 4, 64)), jnp.float32)
    mods = None
    if tables:
        rows = lambda model, y, guidance: programs.modulation(model, jnp.array([0.9, 0.4]), y, guidance, dtype=jnp.float32)  # noqa: E731
        text, away = given.text.y, given.negative.y
        made = sampler.Tables(rows(flux, text, given.guidance), rows(infusenet, text, given.identity.guidance), rows(flux, away, given.guidance))
        mods = sampler.at_step(made, 1)

    @partial(jax.jit, static_argnums=0)
    def velocity(beside, flux, infusenet, z, given, mods):
        return sampler.velocity(flux, infusenet, z, jnp.float32(0.4), given, jnp.float32, tables=mods, beside=beside)

    (v, none), (expected, residuals) = (velocity(beside, flux, infusenet, z, given, mods) for beside in (True, False))
    assert none is None and residuals.double.shape[0] == branch[0] and residuals.single.shape[0] == branch[1]
    assert_close(np.asarray(v), np.asarray(expected), 2e-6)
    silent = velocity(True, flux, infusenet, z, given._replace(identity=given.identity._replace(scale=jnp.float32(0.0))), mods)[0]
    assert np.abs(silent - v).max() > 0.01 * np.abs(v).max()


def test_the_loop_holds_one_residual_at_a_time():
    """No array of the program has the residuals of a whole stack."""
    flux = drawn("flux", FluxConfig(**SIZES, depth=3, depth_single_blocks=6))
    infusenet = drawn("infusenet", InfuseNetConfig(**SIZES, depth=3, depth_single_blocks=5))
    given, z = conditions(flux, infusenet), jnp.zeros((2, H * W // 4, 64))
    program = lambda beside: str(  # noqa: E731
        jax.make_jaxpr(lambda z: sampler.velocity(flux, infusenet, z, jnp.float32(0.4), given, jnp.float32, beside=beside)[0])(z)
    )
    for stack in (3, 5):
        shape = f"f32[{stack},2,{H * W // 4},64]"
        assert shape in program(False) and shape not in program(True)
