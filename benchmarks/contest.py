"""A model of some size, and contenders that take turns at it, each in a process of its own: a busy machine is unfair to all alike."""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    hidden: int = 768
    heads: int = 6
    blocks: tuple[int, int] = (4, 8)
    """Double and single blocks of the base model."""
    infusenet: tuple[int, int] = (1, 2)
    """Double and single blocks of InfuseNet."""
    side: int = 32
    """Image tokens along each side."""
    text: int = 512
    steps: int = 4
    """Timed steps a round."""
    rounds: int = 3

    @property
    def axes(self) -> tuple[int, int, int]:
        """Of RoPE, shared out as in FLUX.1."""
        head = self.hidden // self.heads
        return (head // 8, head * 7 // 16, head * 7 // 16)


def medians(contenders: Mapping[str, str], rounds: int, *options: str) -> dict[str, dict[str, float]]:
    """What each contender (name -> what it is called) reports, in the median of all rounds."""
    reports: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    for n in range(rounds):
        for name, called in contenders.items():
            print(f"round {n + 1} of {rounds}: {called} ...", file=sys.stderr)
            reports[name].append(run(name, *options))
    return {name: {k: statistics.median(r[k] for r in rs) for k in rs[0]} for name, rs in reports.items()}


def run(name: str, *options: str) -> dict[str, float]:
    """This same script for one contender alone, which prints `report`."""
    command = [sys.executable, *sys.argv, "--only", name, *options]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def report(first: float, step: float) -> dict[str, float]:
    """Seconds of the first step, with compilation, and of a later one; and the most memory so far, in bytes."""
    return dict(first=first, step=step, peak=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
