"""What is said of a plan, as plain JSON values and as a table."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from jax.sharding import Mesh

from infu_jax.plan.budget import FREE, Choice
from infu_jax.plan.chips import GIB

Report = dict[str, Any]


def of_compiled(
    machine: str, mesh: Mesh, batch: int, parts: Mapping[str, int], peak: int, room: float, counted: Mapping[str, float], workers: int,
    moved: Mapping[str, int], chip_peak: float, efficiency: float, seconds: float, choice: Choice, accumulate: int = 1, notes: Sequence[str] = (),
) -> Report:  # fmt: skip
    """Of compiled programs.

    Args:
        parts, peak: bytes of a chip.
        room: GiB that programs may use of it.
        counted: FLOPs of all chips, `least` and `executed`; of which each does the part `1 / workers`.
        moved: bytes that a chip sends.
        choice: what the arithmetic would take.
        accumulate: into how many parts a batch is cut, which are computed one after the other.
        notes: what else should be known.
    """
    executed = counted["executed"] / workers
    return {
        "machine": machine,
        "estimate": False,
        "mesh": dict(mesh.shape),
        "batch": batch,
        "accumulate": accumulate,
        "gib": {name: n / GIB for name, n in parts.items()},
        "peak_gib": peak / GIB,
        "room_gib": room,
        "fits": peak / GIB <= room,
        "flops": {"least": counted["least"] / workers, "executed": executed},
        "recomputed": 1 - counted["least"] / counted["executed"],
        "collective_bytes": dict(moved),
        "estimated_seconds": executed / (chip_peak * efficiency),
        "assumed_efficiency": efficiency,
        "compile_seconds": seconds,
        "choice": _choice(choice),
        "notes": list(notes),
    }


def of_estimate(machine: str, asked: Choice, room: float, counted: Mapping[str, float], choice: Choice, accumulate: int = 1) -> Report:
    """Of arithmetic alone, for one device: what it says of `asked`; the rest as of compiled programs."""
    return {
        "machine": machine,
        "estimate": True,
        "mesh": dataclasses.asdict(asked.mesh),
        "batch": asked.batch,
        "accumulate": accumulate,
        "gib": {name: n / GIB for name, n in asked.parts.items()},
        "peak_gib": sum(asked.parts.values()) / GIB,
        "room_gib": room,
        "fits": asked.fits,
        "flops": dict(counted),
        "recomputed": 1 - counted["least"] / counted["executed"],
        "choice": _choice(choice),
    }


def text(report: Report) -> str:
    """As a table for people."""
    per_chip = report["batch"] / report["accumulate"] / math.prod(report["mesh"].values())
    head = f"{report['machine']}, {_mesh(report['mesh'])}: {_pictures(report['batch'], report['accumulate'])} ({per_chip:g} a chip), "
    head += "estimated, nothing was compiled" if report["estimate"] else f"compiled in {report['compile_seconds']:.0f} s"
    left = f", with {FREE:.0%} left free" if report["estimate"] else ""
    lines = [head, "", "| GiB a chip | |", "|---|---|", *(f"| {name} | {gib:.2f} |" for name, gib in report["gib"].items())]
    lines += [f"| **peak** | {report['peak_gib']:.2f} |", f"| of{left} | {report['room_gib']:.2f} |", ""]
    lines.append("It fits." if report["fits"] else "It does not fit.")
    least, executed = report["flops"]["least"] / 1e12, report["flops"]["executed"] / 1e12
    lines.append(f"{executed:.1f} TFLOP a chip and step, {report['recomputed']:.0%} of it computed again for want of memory ({least:.1f} at least).")
    if not report["estimate"]:
        moved = ", ".join(f"{kind} {n / GIB:.2f}" for kind, n in report["collective_bytes"].items() if n) or "none"
        lines.append(f"Collectives, GiB that a chip sends a step: {moved}.")
        lines.append(f"Estimate: {report['estimated_seconds']:.3g} s a step, if {report['assumed_efficiency']:.0%} of the chips' peak is reached.")
    choice = report["choice"]
    said = f"{'The arithmetic would take' if choice['fits'] else 'By the arithmetic nothing fits; nearest is'}: "
    lines.append(f"{said}{_mesh(choice['mesh'])}, {_pictures(choice['batch'], report['accumulate'])}, {choice['gib']:.1f} GiB a chip (estimate).")
    return "\n".join([*lines, *report.get("notes", ())])


def _pictures(batch: int, accumulate: int) -> str:
    return f"{batch} pictures at once" if accumulate == 1 else f"{batch} pictures, {batch // accumulate} at once"


def _mesh(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{axis} {n}" for axis, n in sizes.items())


def _choice(choice: Choice) -> dict[str, Any]:
    return {"mesh": dataclasses.asdict(choice.mesh), "batch": choice.batch, "gib": sum(choice.parts.values()) / GIB, "fits": choice.fits}
