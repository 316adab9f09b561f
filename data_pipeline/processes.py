"""Several processes share a job of parts: each does those whose number, divided by the count of processes, leaves its own number."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from infu_jax.errors import InputError
from infu_jax.train_config import DistributedConfig

Part = TypeVar("Part")


@dataclass(frozen=True)
class Place:
    """Which of how many processes this is."""

    index: int = 0
    count: int = 1

    def __post_init__(self):
        if self.count < 1:
            raise InputError(f"--process-count is {self.count}; more than 0 is needed")
        if not 0 <= self.index < self.count:
            raise InputError(f"--process-index is {self.index}; with --process-count {self.count} it is 0 to {self.count - 1}")

    def share(self, parts: Iterable[Part]) -> Iterator[Part]:
        """This process's parts."""
        return (part for number, part in enumerate(parts) if number % self.count == self.index)


def join(cfg: DistributedConfig, given: Place) -> tuple[bool, Place]:
    """Joins the other processes, if JAX finds any, before a device is touched. Returns whether it did, and the place among them or the one given."""
    import jax

    from infu_jax import distributed

    distributed.initialize(cfg)
    if jax.process_count() == 1:
        return False, given
    if given.count > 1:
        raise InputError(f"--process-count is {given.count}, but JAX has joined {jax.process_count()} processes already; leave it out")
    return True, Place(jax.process_index(), jax.process_count())
