"""Several processes: how they find each other, and how they agree to stop.

One process a host on TPU pods; on Slurm, GKE and Open MPI whatever was started. JAX finds the others in each of them by itself.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping

import jax
from jax.experimental import multihost_utils

from infu_jax.errors import InputError
from infu_jax.train_config import DistributedConfig


def initialize(cfg: DistributedConfig) -> None:
    """Join the other processes, if there are any; before anything else touches a device."""
    if cfg.coordinator is not None:
        _join(dict(coordinator_address=cfg.coordinator, num_processes=cfg.processes, process_id=cfg.process))
    elif several_processes(os.environ):
        _join({})


def several_processes(env: Mapping[str, str]) -> bool:
    """Whether the environment says that this is one of several processes (of a TPU pod, Slurm, GKE, Open MPI, or set for JAX itself)."""
    return (
        "JAX_COORDINATOR_ADDRESS" in env
        or "MEGASCALE_COORDINATOR_ADDRESS" in env
        or "," in env.get("TPU_WORKER_HOSTNAMES", "")
        or int(env.get("SLURM_NTASKS", 1)) > 1
        or int(env.get("OMPI_COMM_WORLD_SIZE", 1)) > 1
        or env.get("TPU_PROCESS_BOUNDS", "1,1,1") != "1,1,1"
    )


def _join(options: Mapping) -> None:
    try:
        jax.distributed.initialize(**options)
    except (RuntimeError, ValueError) as e:
        raise InputError(f"the processes did not find each other ({e}); check distributed.coordinator, .processes and .process") from None


class StopRequest:
    """Whether the run has been asked to end: SIGTERM, which schedulers send before they take a machine away, or ctrl-C.

    With several processes JAX receives SIGTERM and lets all of them stop at the same step, whichever was told.
    """

    def __init__(self):
        self._asked = False
        # Given back to whom they belonged at the end.
        names = (signal.SIGINT,) if jax.process_count() > 1 else (signal.SIGINT, signal.SIGTERM)
        self._before = {name: signal.signal(name, self._ask) for name in names}

    def _ask(self, number: int, _) -> None:
        if self._asked and number == signal.SIGINT:
            raise KeyboardInterrupt  # the second ctrl-C does not wait for the step
        if not self._asked and jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)  # JAX tells the others
        self._asked = True

    def at(self, step: int) -> bool:
        """To be asked by all processes after each step."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked

    def __enter__(self) -> StopRequest:
        return self

    def __exit__(self, *_) -> None:
        for name, handler in self._before.items():
            signal.signal(name, handler)
