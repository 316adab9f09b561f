"""The schedule against numbers computed by hand, InfuseNet's window, the Euler step."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from infu_jax.errors import InputError
from infu_jax.flow import Schedule, ScheduleConfig, euler_step, schedule, window

DEV, SCHNELL = ScheduleConfig(), ScheduleConfig(dynamic=False)


def test_shift_by_hand():
    """At 256 tokens mu is 0.5, at 4096 it is 1.15; a time s becomes e^mu / (e^mu + 1/s - 1)."""
    np.testing.assert_allclose(schedule(2, 256, DEV).times, [1, math.exp(0.5) / (math.exp(0.5) + 1), 0], rtol=1e-6)
    np.testing.assert_allclose(schedule(2, 4096, DEV).times, [1, math.exp(1.15) / (math.exp(1.15) + 1), 0], rtol=1e-6)
    # 864x1152: 54 x 72 = 3888 tokens; mu = 0.5 + 0.65 * 3632 / 3840 = 1.114792, e^mu = 3.048934
    times = schedule(4, 3888, DEV).times
    np.testing.assert_allclose(times, [1, 3.048934 / (3.048934 + 1 / 3), 3.048934 / 4.048934, 3.048934 / 6.048934, 0], rtol=1e-6)
    # Larger pictures shift further: mu is not clamped.
    assert schedule(2, 8192, DEV).times[1] == pytest.approx(1 / (1 + math.exp(-(0.5 + 0.65 * 7936 / 3840))), rel=1e-6)


def test_without_shift():
    np.testing.assert_array_equal(schedule(4, 3888, SCHNELL).times, np.float32([1, 0.75, 0.5, 0.25, 0]))
    # A constant shift: 3 s / (1 + 2 s)
    np.testing.assert_allclose(schedule(2, 1, ScheduleConfig(dynamic=False, shift=3.0)).times, [1, 0.75, 0], rtol=1e-6)
    np.testing.assert_array_equal(schedule(1, 3888, DEV).times, [1, 0])


def test_what_the_models_are_told():
    """The same times after a way through 1000 t in float32, which moves some by one in the last place."""
    s = schedule(30, 4096, DEV)
    assert isinstance(s, Schedule) and s.times.dtype == s.model_times.dtype == np.float32 and s.times.shape == s.model_times.shape == (31,)
    assert np.all(np.diff(s.times) < 0) and s.times[0] == 1 and s.times[-1] == 0
    assert 0 < np.abs(s.times - s.model_times).max() <= 6e-8
    np.testing.assert_array_equal(s.model_times, (s.times * np.float32(1000)) / np.float32(1000))


def test_no_steps():
    with pytest.raises(InputError, match="steps is 0"):
        schedule(0, 256, DEV)


@pytest.mark.parametrize(
    ("steps", "start", "end", "expected"),
    [
        (30, 0.0, 1.0, (0, 30)),
        (30, 0.1, 1.0, (3, 30)),  # 3 / 30 is not less than 0.1
        (30, 0.1, 0.9, (3, 27)),
        (30, 0.11, 1.0, (4, 30)),
        (10, 0.3, 0.7, (3, 7)),
        (10, 0.1 * 3, 0.7, (4, 7)),  # 0.1 * 3 is 0.30000000000000004, which step 3 is before
        (10, 0.0, 0.75, (0, 7)),  # step 7 would end at 0.8
        (4, 0.0, 0.24, (0, 0)),
        (10, 0.45, 0.55, (0, 0)),  # no step fits
        (10, 0.5, 0.5, (0, 0)),
        (1, 0.0, 1.0, (0, 1)),
        (1, 0.01, 1.0, (0, 0)),
    ],
)
def test_window(steps, start, end, expected):
    assert window(steps, start, end) == expected
    kept = [k for k in range(steps) if not (k / steps < start or (k + 1) / steps > end)]  # the release's condition
    assert kept == list(range(*expected))


def test_every_window_is_the_releases():
    for steps in (1, 3, 4, 7, 28, 30, 50):
        for start in np.linspace(0, 1, 21):
            for end in np.linspace(start, 1, 9):
                kept = [k for k in range(steps) if not (k / steps < start or (k + 1) / steps > min(end, 1.0))]
                assert list(range(*window(steps, float(start), float(min(end, 1.0))))) == kept


@pytest.mark.parametrize(("start", "end"), [(0.6, 0.5), (-0.1, 1.0), (0.0, 1.1), (math.nan, 1.0)])
def test_wrong_windows(start, end):
    with pytest.raises(InputError, match="0 <= start <= end <= 1"):
        window(10, start, end)


def test_euler_step():
    z = jnp.array([[1.0, -2.0]])
    moved = euler_step(z, jnp.array([[2.0, 4.0]], jnp.bfloat16), jnp.float32(0.75), jnp.float32(0.5))
    np.testing.assert_array_equal(moved, [[0.5, -3.0]])
    assert moved.dtype == jnp.float32  # latents stay float32 whatever the model computes in
    # Along a straight path z_t = (1 - t) x0 + t eps, with velocity eps - x0, any schedule ends at x0.
    x0, eps = np.random.default_rng(0).standard_normal((2, 5), np.float32)
    z, times = eps, schedule(7, 100, DEV).times
    for t, after in zip(times, times[1:]):
        z = euler_step(z, eps - x0, t, after)
    np.testing.assert_allclose(z, x0, atol=1e-6)
