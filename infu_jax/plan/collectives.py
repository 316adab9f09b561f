"""Bytes that collectives move, counted in the text of a compiled program."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping

BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8, "u64": 8}
KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) .*\{$")
_OPERATION = re.compile(r"= (.*?) ([a-z][\w-]*)\(")
_CALLED = re.compile(r"(?:to_apply|calls|body|condition|true_computation|false_computation)=%?([\w.-]+)|branch_computations=\{([^}]*)\}")
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")


def collective_bytes(text: str, trips: Mapping[str, int | float] | None = None) -> dict[str, int]:
    """Bytes that one device sends by each kind of collective when a program (`compiled.as_text()`) runs once.

    As rings do it: of n devices that gather or scatter an array of R bytes each sends R (n - 1) / n, for an all-reduce twice that. Loops
    count as often as they run, where the compiler knows how often; else once, and so do both sides of a condition.

    trips: how often loops run that the compiler does not know it of, on average, by the name of the scope that they are in (`jax.named_scope`).
    """
    lines, entry = _computations(text)
    sums: Counter[str] = Counter()

    def walk(name: str, times: int | float) -> None:
        for line in lines.get(name, ()):
            found = _OPERATION.search(line)
            if found is None:
                continue
            shape, operation = found.groups()
            kind = operation.removesuffix("-start")
            if kind in KINDS:
                sums[kind] += times * _sent(kind, shape, line, started=operation != kind)
            inner = times * _trips(line, lines, trips or {}) if operation == "while" else times
            for one, several in _CALLED.findall(line):
                if kind in KINDS and "to_apply" in line:
                    continue  # the addition of an all-reduce
                for called in re.findall(r"[\w.-]+", several) or [one]:
                    walk(called, inner)

    walk(entry, 1)
    return {kind: round(sent) for kind, sent in sums.items()}


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Lines of each computation by its name, and the name of the entry."""
    lines: dict[str, list[str]] = {}
    entry, name = "", ""
    for line in text.splitlines():
        head = _COMPUTATION.match(line)
        if head and "->" in line:
            name = head[2]
            lines[name], entry = [], name if head[1] else entry
        elif name:
            lines[name].append(line)
    return lines, entry


def _trips(line: str, lines: dict[str, list[str]], trips: Mapping[str, int | float]) -> int | float:
    """How often a while runs: the compiler's note, the constant that its counter is compared with, or what is said of its scope."""
    if known := re.search(r'known_trip_count"?:\{"?n"?:"?(\d+)', line):
        return int(known[1])
    condition = re.search(r"condition=%?([\w.-]+)", line)
    constants = [int(n) for inner in lines.get(condition[1], ()) if condition for n in re.findall(r"s32\[\][^ ]* constant\((\d+)\)", inner)]
    return constants[0] if len(constants) == 1 else next((n for name, n in trips.items() if f'/{name}/while"' in line), 1)


def _sent(kind: str, shape: str, line: str, *, started: bool) -> int:
    sizes = [BYTES.get(dtype, 0) * math.prod(map(int, filter(None, dims.split(",")))) for dtype, dims in _SHAPE.findall(shape)]
    n = _group(line)
    if started and kind in ("all-gather", "reduce-scatter"):  # (operands, results), of which one is the n-th part of the other
        return sum(sizes) * (n - 1) // (n + 1)
    size = sum(sizes)
    if started and kind in ("collective-permute", "all-to-all"):  # (operand, result, ...)
        size = max(sizes, default=0) if kind == "collective-permute" else size // 2
    if kind == "collective-permute":
        return size
    if kind == "reduce-scatter":  # what it gives is the n-th part of what goes in
        return size * (n - 1)
    return size * (n - 1) * (2 if kind == "all-reduce" else 1) // n


def _group(line: str) -> int:
    """Devices in each of an operation's groups."""
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", line):
        return len(listed[1].split(","))
    if iota := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(iota[1])
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", line):  # the axes of a mesh, or (size in it) parts of them
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
        return math.prod(int(part or sizes[axis]) for axis, part in re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", mesh[2]))
    return 1
