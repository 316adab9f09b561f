"""Rectified flow: the path z_t = (1 - t) x0 + t eps, its schedule for sampling, and the Euler step.

Source: paper section 3.4; diffusers `FlowMatchEulerDiscreteScheduler`; BFL flux `sampling.get_schedule`.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Key

from infu_jax.config import FluxConfig
from infu_jax.errors import InputError


@dataclass(frozen=True)
class ScheduleConfig:
    """How times are shifted towards noise (diffusers `scheduler_config.json`; defaults are FLUX.1-dev's)."""

    dynamic: bool = True  # the shift grows with the number of image tokens; FLUX.1-schnell: False
    base_shift: float = 0.5
    max_shift: float = 1.15
    base_tokens: int = 256
    max_tokens: int = 4096
    shift: float = 1.0  # used where `dynamic` is False


# Settings of the scheduler that change its times or steps, with the values that leave them as they are.
NOT_IMPLEMENTED = {
    "shift_terminal": None,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "invert_sigmas": False,
    "stochastic_sampling": False,
    "time_shift_type": "exponential",
}


def read_schedule(base: Path, cfg: FluxConfig, other_transformer: bool) -> ScheduleConfig:
    """The folder's scheduler config; where the transformer comes from elsewhere or there is none, what its kind was trained for."""
    path = base / "scheduler" / "scheduler_config.json"
    if other_transformer or not path.exists():
        return ScheduleConfig(dynamic=cfg.guidance_embed)  # schnell has no guidance embedding and no shift
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        _check_stored(stored)
        found = ScheduleConfig(
            dynamic=stored["use_dynamic_shifting"],
            base_shift=stored["base_shift"],
            max_shift=stored["max_shift"],
            base_tokens=stored["base_image_seq_len"],
            max_tokens=stored["max_image_seq_len"],
            shift=stored["shift"],
        )
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as e:
        raise InputError(f"{path} is not a FlowMatchEulerDiscreteScheduler config: {e!r}") from None
    for name, value in NOT_IMPLEMENTED.items():
        if stored.get(name, value) != value:
            raise InputError(f"{path}: {name} is {stored[name]!r}, which is not implemented; use FLUX.1's own file, where it is {value!r}")
    return found


def _check_stored(stored: dict) -> None:
    """ValueError for values that no schedule can be made of."""
    if not isinstance(stored["use_dynamic_shifting"], bool):
        raise ValueError(f"use_dynamic_shifting is {stored['use_dynamic_shifting']!r:.40}; true or false is needed")
    for name in ("base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len", "shift"):
        if isinstance(stored[name], bool) or not math.isfinite(stored[name]):
            raise ValueError(f"{name} is {stored[name]!r:.40}; a finite number is needed")
    if stored["shift"] <= 0:
        raise ValueError(f"shift is {stored['shift']}; more than 0 is needed")
    if stored["max_image_seq_len"] <= stored["base_image_seq_len"]:
        raise ValueError(f"max_image_seq_len is {stored['max_image_seq_len']}; more than base_image_seq_len {stored['base_image_seq_len']} is needed")


class Schedule(NamedTuple):
    """Times from 1 (noise) to 0 (picture): (steps + 1,) float32 each.

    times: what the Euler steps go along.
    model_times: what the models are told. The same numbers, rounded on their way through 1000 t as in PyTorch: the fastest
        sinusoid turns by 1000 radians, so the last bit of a time shows in the velocity (3e-5 of its maximum).
    """

    times: np.ndarray
    model_times: np.ndarray


def schedule(steps: int, image_tokens: int, cfg: ScheduleConfig) -> Schedule:
    """The times of a picture of so many image tokens in so many steps."""
    if steps < 1:
        raise InputError(f"steps is {steps}; at least 1 is needed")
    t = np.linspace(1.0, 1.0 / steps, steps).astype(np.float32)  # shifted in float32, as the reference does
    if cfg.dynamic:
        shift = math.exp(_mu(image_tokens, cfg))
        t = shift / (shift + (1 / t - 1))
    else:
        t = cfg.shift * t / (1 + (cfg.shift - 1) * t)
    times = np.append(t, np.float32(0))
    return Schedule(times, times * np.float32(1000) / np.float32(1000))


def window(steps: int, start: float, end: float) -> tuple[int, int]:
    """The steps [first, last) in which InfuseNet acts: step k of N does iff k / N >= start and (k + 1) / N <= end."""
    if not 0.0 <= start <= end <= 1.0:
        raise InputError(f"guidance_start {start} and guidance_end {end} must satisfy 0 <= start <= end <= 1")
    kept = [k for k in range(steps) if not (k / steps < start or (k + 1) / steps > end)]
    return (kept[0], kept[-1] + 1) if kept else (0, 0)


# Training -----------------------------------------------------------------------------------------


def logit_normal_times(key: Key[Array, ""], count: int, mean: float = 0.0, std: float = 1.0) -> Float[Array, " B"]:
    """Training times in (0, 1): sigmoid(mean + std * normal), `rf/lognorm(mean, std)` in the paper (section 3.4)."""
    return jax.nn.sigmoid(mean + std * jax.random.normal(key, (count,)))


def shift_times(t: Float[Array, " B"], image_tokens: int, cfg: ScheduleConfig) -> Float[Array, " B"]:
    """The shift towards noise that sampling applies to pictures of so many tokens."""
    shift = math.exp(_mu(image_tokens, cfg)) if cfg.dynamic else cfg.shift
    return shift * t / (1 + (shift - 1) * t)


def interpolate(x0: Float[Array, "B L C"], noise: Float[Array, "B L C"], t: Float[Array, " B"]) -> tuple[Float[Array, "B L C"], Float[Array, "B L C"]]:
    """z_t = (1 - t) x0 + t noise, and the velocity noise - x0 that the model is to predict there."""
    t = t[:, None, None]
    return (1 - t) * x0 + t * noise, noise - x0


# Sampling -----------------------------------------------------------------------------------------


def euler_step(latents, velocity, t, t_next):
    """One step along the velocity d z / d t, in float32."""
    return latents + (t_next - t) * velocity.astype(latents.dtype)


def _mu(image_tokens: int, cfg: ScheduleConfig) -> float:
    """Logarithm of the shift; not clamped: larger pictures shift further."""
    slope = (cfg.max_shift - cfg.base_shift) / (cfg.max_tokens - cfg.base_tokens)
    return cfg.base_shift + slope * (image_tokens - cfg.base_tokens)
