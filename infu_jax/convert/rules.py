"""Conversion rules: which of our parameters holds which of theirs, declaratively and in both directions.

A `Rule` says that some of our parameters, laid side by side, are some of their tensors, laid side by
side, up to a change of axis order. `plan` cuts every rule into `Piece`s: one rectangular box of one of
our parameters equals one box of one of their tensors. Loading fills our boxes, exporting fills theirs,
and `plan` proves that on both sides every element is covered exactly once.

Pieces are NumPy views over memory-mapped files wherever possible, so nothing is read before it is needed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from infu_jax.convert import numbers
from infu_jax.convert.errors import ConversionError, shown

Shape = tuple[int, ...]
Box = tuple[tuple[int, int], ...]  # (start, stop) on every axis


@dataclass(frozen=True)
class Rule:
    """`ours` and `theirs` hold the same numbers.

    ours: parameter paths such as `"img.qkv.kernel"`; `"mod.kernel[1]"` is index 1 of the first output axis.
    theirs: checkpoint keys. Where they contain `{i}`, our parameter has a leading layer axis that `i` runs over.
    kind: how one of their tensors relates to ours, see `KINDS`.
    join: several parameters lie side by side along their outputs or their inputs. With "out" our kernels have
    one input axis and any number of output axes, (D, 3, H, K); with "in" the other way round, (H, K, D).
    """

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    kind: str = "linear"
    join: str = "out"


# How a matrix view of ours, (inputs, outputs), appears in their file.
KINDS = {
    "linear": "theirs (outputs, inputs)",
    "vector": "theirs (outputs,): biases and norm scales, ours may have several axes",
    "conv1x1": "theirs (outputs, inputs, 1, 1): a linear layer that the file stores as a convolution",
    "conv": "theirs (outputs, inputs, h, w), ours (h, w, inputs, outputs)",
    "flatten_chw": "theirs (outputs, c*h*w), ours (h, w, c, outputs): the layer after a flattened NCHW picture",
    "same": "same axes, same order",
}


@dataclass(frozen=True)
class Piece:
    """`ours[our_box]` and `theirs[their_box]` are the same numbers in another arrangement."""

    ours: str
    our_box: Box
    theirs: str
    their_box: Box
    kind: str
    has_layer_axis: bool

    def to_ours(self, tensor: np.ndarray) -> np.ndarray:
        """The piece cut from their full `tensor`, shaped as our box. A view wherever NumPy can give one."""
        part, shape = tensor[_slices(self.their_box)], _size(self.our_box)
        if self.kind in ("linear", "conv1x1"):
            return part.reshape(part.shape[:2]).T.reshape(shape)
        if self.kind == "conv":
            return part.transpose(2, 3, 1, 0).reshape(shape)
        if self.kind == "flatten_chw":
            h, w, c, out = shape[-4:]
            return part.reshape(out, c, h, w).transpose(2, 3, 1, 0).reshape(shape)
        return part.reshape(shape)

    def to_theirs(self, part: np.ndarray) -> np.ndarray:
        """The inverse of `to_ours`: the contents of our box, shaped as their box."""
        shape = _size(self.their_box)
        if self.kind in ("linear", "conv1x1"):
            return part.reshape(shape[1], shape[0]).T.reshape(shape)
        if self.kind in ("conv", "flatten_chw"):
            return part.reshape(part.shape[-4:]).transpose(3, 2, 0, 1).reshape(shape)
        return part.reshape(shape)


@dataclass(frozen=True)
class Plan:
    """All pieces of a conversion, with the shapes that both sides must have."""

    our_shapes: Mapping[str, Shape]
    their_shapes: Mapping[str, Shape]
    pieces: tuple[Piece, ...]
    by_ours: Mapping[str, tuple[Piece, ...]] = field(repr=False)
    by_theirs: Mapping[str, tuple[Piece, ...]] = field(repr=False)

    def read_ours(self, path: str, box: Box | None, theirs: Mapping[str, np.ndarray], dtype) -> np.ndarray:
        """One of our parameters, or a box of it (a device's shard), assembled from their tensors."""
        return _assemble(box or _whole(self.our_shapes[path]), dtype, self.by_ours.get(path, ()), lambda p: p.our_box, lambda p: p.to_ours(theirs[p.theirs]))

    def stored_dtype(self, path: str, theirs: Mapping[str, np.ndarray], default) -> np.dtype:
        """The dtype that holds all of a parameter's stored parts without loss."""
        dtypes = {theirs[p.theirs].dtype for p in self.by_ours.get(path, ())}
        return numbers.join(dtypes) if dtypes else np.dtype(default)

    def read_theirs(self, key: str, ours: Mapping[str, Any], dtype) -> np.ndarray:
        """One of their tensors, assembled from our parameters: arrays, or what gives arrays for slices."""
        read = lambda p: p.to_theirs(np.asarray(ours[p.ours][_slices(p.our_box)]))  # noqa: E731
        return _assemble(_whole(self.their_shapes[key]), dtype, self.by_theirs[key], lambda p: p.their_box, read)


def plan(rules: Iterable[Rule], our_shapes: Mapping[str, Shape]) -> Plan:
    """Cut `rules` into pieces for parameters of `our_shapes`, and check that each side is covered exactly once."""
    pieces = [piece for rule in rules for piece in _pieces(rule, our_shapes)]
    by_ours, by_theirs = _group(pieces, lambda p: p.ours), _group(pieces, lambda p: p.theirs)
    # A parameter of no elements (a stack of zero blocks) has nothing to be covered by.
    left = sorted(path for path, shape in our_shapes.items() if path not in by_ours and math.prod(shape))
    if left:
        raise ConversionError(f"no conversion rule for {len(left)} of our parameters: {_some(left)}")
    their_shapes = {key: tuple(max(p.their_box[a][1] for p in ps) for a in range(len(ps[0].their_box))) for key, ps in by_theirs.items()}
    for path, ps in by_ours.items():
        _check_tiling(path, our_shapes[path], [p.our_box for p in ps])
    for key, ps in by_theirs.items():
        _check_tiling(key, their_shapes[key], [p.their_box for p in ps])
    return Plan(dict(our_shapes), their_shapes, tuple(pieces), by_ours, by_theirs)


def check_file(plan: Plan, found: Mapping[str, Shape], *, ignore: Sequence[str] = (), source: str = "the file") -> None:
    """Raise unless `found`, the key names and shapes of a file, is what the plan consumes. `ignore`: regular expressions."""
    missing = sorted(set(plan.their_shapes) - set(found))
    unexpected = sorted(k for k in set(found) - set(plan.their_shapes) if not any(re.fullmatch(p, k) for p in ignore))
    wrong = sorted(k for k in set(found) & set(plan.their_shapes) if tuple(found[k]) != plan.their_shapes[k])
    problems = []
    if missing:
        problems.append(f"{len(missing)} missing: {_some(missing)}")
    if unexpected:
        problems.append(f"{len(unexpected)} unexpected: {_some([shown(k) for k in unexpected])}")
    if wrong:
        problems.append(f"{len(wrong)} of another shape: {_some([f'{k} is {list(found[k])}, expected {list(plan.their_shapes[k])}' for k in wrong])}")
    if problems:
        raise ConversionError(f"{source} does not fit its configuration: " + "; ".join(problems))


# Shorthands for tables ----------------------------------------------------------------------------


def linear(ours: str | Sequence[str], theirs: str | Sequence[str], *, bias: bool = True, kind: str = "linear", join: str = "out") -> list[Rule]:
    """A linear layer's kernel and bias. Several names on a side lie side by side; `join="in"` is for kernels like (H, K, D)."""
    ours, theirs = _names(ours), _names(theirs)
    rules = [Rule(_suffix(ours, "kernel"), _suffix(theirs, "weight"), kind, join)]
    return rules + [Rule(_suffix(ours, "bias"), _suffix(theirs, "bias"), "vector")] if bias else rules


def norm(ours: str, theirs: str, *, bias: bool = True, scale_name: str = "weight") -> list[Rule]:
    """A norm's scale and, with `bias`, its bias."""
    rules = [Rule((f"{ours}.scale",), (f"{theirs}.{scale_name}",), "vector")]
    return rules + [Rule((f"{ours}.bias",), (f"{theirs}.bias",), "vector")] if bias else rules


def conv(ours: str, theirs: str, *, bias: bool = True) -> list[Rule]:
    """A 2-D convolution's kernel and bias."""
    rules = [Rule((f"{ours}.kernel",), (f"{theirs}.weight",), "conv")]
    return rules + [Rule((f"{ours}.bias",), (f"{theirs}.bias",), "vector")] if bias else rules


def same(ours: str, theirs: str) -> list[Rule]:
    """A parameter that is stored just as it is."""
    return [Rule((ours,), (theirs,), "same")]


def under(ours: str, theirs: str, rules: Iterable[Rule]) -> list[Rule]:
    """The same rules for a module that lies under another name on each side."""
    return [Rule(tuple(ours + n for n in r.ours), tuple(theirs + n for n in r.theirs), r.kind, r.join) for r in rules]


# How it works -------------------------------------------------------------------------------------


def _pieces(rule: Rule, our_shapes: Mapping[str, Shape]) -> list[Piece]:
    stacked = any("{i}" in key for key in rule.theirs)
    blocks = [_Block.of(name, our_shapes, rule, stacked) for name in rule.ours]
    layers = {b.layers for b in blocks}
    if len(layers) != 1:
        raise ConversionError(f"{rule.ours} have different numbers of layers: {sorted(layers)}")
    if rule.kind in ("conv", "flatten_chw", "same"):
        [block], [key] = blocks, rule.theirs
        return [
            Piece(block.path, block.box(i, None, None), key.format(i=i), _whole(_their_shape(rule.kind, block.shape)), rule.kind, stacked)
            for i in range(block.layers)
        ]
    # As matrices (inputs, outputs), our blocks lie end to end along one axis; their tensors, of equal size, along the same.
    along = (lambda b: b.outputs) if rule.join == "out" else (lambda b: b.inputs)
    across = {b.inputs if rule.join == "out" else b.outputs for b in blocks}
    if len(across) != 1:
        raise ConversionError(f"{rule.ours} cannot lie side by side: sizes {sorted(across)} differ")
    total = sum(along(b) for b in blocks)
    if total % len(rule.theirs):
        raise ConversionError(f"{rule.ours}: {total} rows do not divide into {len(rule.theirs)} tensors")
    each, pieces, start = total // len(rule.theirs), [], 0
    for block in blocks:
        stop = start + along(block)
        for t, key in enumerate(rule.theirs):
            lo, hi = max(start, t * each), min(stop, (t + 1) * each)
            if lo >= hi:
                continue
            ours_range, theirs_range, full = (lo - start, hi - start), (lo - t * each, hi - t * each), (0, across.copy().pop())
            outs, ins = (theirs_range, full) if rule.join == "out" else (full, theirs_range)
            their_box = {"vector": (outs,), "linear": (outs, ins), "conv1x1": (outs, ins, (0, 1), (0, 1))}[rule.kind]
            box_args = (None, ours_range) if rule.join == "out" else (ours_range, None)
            pieces += [Piece(block.path, block.box(i, *box_args), key.format(i=i), their_box, rule.kind, stacked) for i in range(block.layers)]
        start = stop
    return pieces


@dataclass(frozen=True)
class _Block:
    """One of our parameters inside a rule, seen as a matrix (inputs, outputs) per layer."""

    path: str
    layers: int  # 1 where there is no layer axis
    stacked: bool
    shape: Shape  # of one layer, whole
    index: int | None  # "[k]": only index k of the first output axis
    input_axes: int

    @classmethod
    def of(cls, name: str, our_shapes: Mapping[str, Shape], rule: Rule, stacked: bool) -> _Block:
        path, index = re.fullmatch(r"([^\[]+)(?:\[(\d+)\])?", name).groups()
        if path not in our_shapes:
            raise ConversionError(f"a conversion rule names {path}, which the model does not have")
        layers, shape = (our_shapes[path][0], our_shapes[path][1:]) if stacked else (1, our_shapes[path])
        input_axes = 0 if rule.kind == "vector" else 1 if rule.join == "out" else len(shape) - 1
        return cls(path, layers, stacked, shape, None if index is None else int(index), input_axes)

    @property
    def inputs(self) -> int:
        return math.prod(self.shape[: self.input_axes])

    @property
    def outputs(self) -> int:
        axes = self.shape[self.input_axes :]
        return math.prod(axes if self.index is None else axes[1:])

    def box(self, layer: int, ins: tuple[int, int] | None, outs: tuple[int, int] | None) -> Box:
        """The box of rows `ins` and columns `outs` of the matrix view; None means all of them."""
        n = self.input_axes
        out_axes = self.shape[n:]
        if self.index is not None:
            out_box = ((self.index, self.index + 1), *_range_box(outs, out_axes[1:]))
        else:
            out_box = _range_box(outs, out_axes)
        box = (*_range_box(ins, self.shape[:n]), *out_box)
        return ((layer, layer + 1), *box) if self.stacked else box


def _range_box(flat: tuple[int, int] | None, axes: Shape) -> Box:
    """The box that a range of the flattened `axes` is; it must be a range of whole rows of the first axis."""
    if flat is None or flat == (0, math.prod(axes)):
        return _whole(axes)
    row = math.prod(axes[1:])
    if flat[0] % row or flat[1] % row:
        raise ConversionError(f"the range {flat} of axes {axes} is not a box")
    return ((flat[0] // row, flat[1] // row), *_whole(axes[1:]))


def _their_shape(kind: str, shape: Shape) -> Shape:
    if kind == "conv":
        h, w, i, o = shape
        return (o, i, h, w)
    if kind == "flatten_chw":
        h, w, c, o = shape
        return (o, c * h * w)
    return shape


def _assemble(box: Box, dtype, pieces: Sequence[Piece], box_of, read) -> np.ndarray:
    out = np.empty(_size(box), dtype)
    for piece in pieces:
        at = box_of(piece)
        both = [(max(a[0], b[0]), min(a[1], b[1])) for a, b in zip(at, box)]
        if all(lo < hi for lo, hi in both):
            source = tuple(slice(lo - a[0], hi - a[0]) for (lo, hi), a in zip(both, at))
            target = tuple(slice(lo - b[0], hi - b[0]) for (lo, hi), b in zip(both, box))
            _copy(out[(*target, ...)], read(piece)[(*source, ...)])  # with the ellipsis a scalar's too is a view
    return out


def _copy(target: np.ndarray, values: np.ndarray) -> None:
    """`target[...] = values`. Large arrays in halves of halves, so that turning a matrix round stays within the processor's cache."""
    if values.size <= 1 << 14:
        target[...] = values
        return
    axis = max(range(values.ndim), key=values.shape.__getitem__)
    middle = values.shape[axis] // 2
    for half in (slice(None, middle), slice(middle, None)):
        at = (*(slice(None),) * axis, half)
        _copy(target[at], values[at])


def _check_tiling(name: str, shape: Shape, boxes: Sequence[Box]) -> None:
    covered = sum(math.prod(_size(b)) for b in boxes)
    if covered != math.prod(shape) or _overlap(boxes):
        raise ConversionError(f"{name} {list(shape)} is not covered exactly once by its conversion rules ({covered} of {math.prod(shape)} elements)")


def _overlap(boxes: Sequence[Box]) -> bool:
    """Whether any two boxes share an element. Sorted by first axis, so that stacks of layers stay cheap."""
    boxes = sorted(boxes)
    for n, a in enumerate(boxes):
        for b in boxes[n + 1 :]:
            if b and b[0][0] >= a[0][1]:
                break  # nor do the boxes after it begin before a ends
            if all(max(x[0], y[0]) < min(x[1], y[1]) for x, y in zip(a, b)):
                return True
    return False


def _group(pieces, key) -> dict[str, tuple[Piece, ...]]:
    groups: dict[str, list[Piece]] = {}
    for piece in pieces:
        groups.setdefault(key(piece), []).append(piece)
    return {k: tuple(v) for k, v in groups.items()}


def _whole(shape: Shape) -> Box:
    return tuple((0, n) for n in shape)


def _size(box: Box) -> Shape:
    return tuple(b - a for a, b in box)


def _slices(box: Box) -> tuple[Any, ...]:
    return (*(slice(a, b) for a, b in box), ...)  # with the ellipsis NumPy gives a view of a scalar too, not a copy


def _names(x: str | Sequence[str]) -> tuple[str, ...]:
    return (x,) if isinstance(x, str) else tuple(x)


def _suffix(names: Sequence[str], suffix: str) -> tuple[str, ...]:
    """`"mod[1]"` + kernel -> `"mod.kernel[1]"`."""
    return tuple(re.sub(r"(\[\d+\])?$", lambda m: f".{suffix}{m.group(0)}", n, count=1) for n in names)


def _some(items: Sequence[str], most: int = 8) -> str:
    return ", ".join(items[:most]) + (f", ... ({len(items) - most} more)" if len(items) > most else "")
