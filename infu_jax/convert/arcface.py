"""ArcFace's file layout: facexlib's `recognition_arcface_ir_se50.pth`."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping

from infu_jax.config import ArcFaceConfig
from infu_jax.convert.errors import ConversionError
from infu_jax.convert.layout import Layout
from infu_jax.convert.rules import Rule, Shape, conv, linear, norm, same


def _rules(cfg: ArcFaceConfig) -> list[Rule]:
    rules = [
        *conv("conv_in", "input_layer.0", bias=False),
        *_batch_norm("norm_in", "input_layer.1"),
        *_prelu("prelu_in", "input_layer.2"),
        *_batch_norm("norm_out", "output_layer.0"),
        *linear("proj_out", "output_layer.3", kind="flatten_chw"),
        *_batch_norm("norm_embedding", "output_layer.4"),
    ]
    # The file numbers the units across stages, as `body` does.
    widths = [width for width, count in zip(cfg.widths, cfg.units, strict=True) for _ in range(count)]
    for n, (before, width) in enumerate(itertools.pairwise([cfg.widths[0], *widths])):
        rules += _unit(f"body.{n}", f"body.{n}", widens=before != width)
    return rules


def _unit(ours: str, theirs: str, *, widens: bool) -> Iterator[Rule]:
    yield from _batch_norm(f"{ours}.norm1", f"{theirs}.res_layer.0")
    yield from conv(f"{ours}.conv1", f"{theirs}.res_layer.1", bias=False)
    yield from _prelu(f"{ours}.prelu", f"{theirs}.res_layer.2")
    yield from conv(f"{ours}.conv2", f"{theirs}.res_layer.3", bias=False)
    yield from _batch_norm(f"{ours}.norm2", f"{theirs}.res_layer.4")
    yield from linear(f"{ours}.se_down", f"{theirs}.res_layer.5.fc1", bias=False, kind="conv1x1")
    yield from linear(f"{ours}.se_up", f"{theirs}.res_layer.5.fc2", bias=False, kind="conv1x1")
    if widens:
        yield from linear(f"{ours}.shortcut", f"{theirs}.shortcut_layer.0", bias=False, kind="conv1x1")
        yield from _batch_norm(f"{ours}.shortcut_norm", f"{theirs}.shortcut_layer.1")


def _batch_norm(ours: str, theirs: str) -> Iterator[Rule]:
    yield from norm(ours, theirs)
    yield from same(f"{ours}.mean", f"{theirs}.running_mean")
    yield from same(f"{ours}.var", f"{theirs}.running_var")
    yield from same(f"{ours}.count", f"{theirs}.num_batches_tracked")


def _prelu(ours: str, theirs: str) -> Iterator[Rule]:
    yield from same(f"{ours}.slope", f"{theirs}.weight")


def _from_shapes(shapes: Mapping[str, Shape]) -> ArcFaceConfig:
    """Such files have no config.json. A new stage is taken to begin where the width changes: it does in every published IR-SE."""
    found = {int(m[1]): shape[0] for key, shape in shapes.items() if (m := re.fullmatch(r"body\.(\d+)\.res_layer\.1\.weight", key))}
    stages = [(width, len(list(group))) for width, group in itertools.groupby(found[n] for n in sorted(found))]
    widths, units = zip(*stages, strict=True)
    embedding_dim, flat = shapes["output_layer.3.weight"]
    side = math.isqrt(flat // widths[-1])
    if side * side * widths[-1] != flat:
        raise ConversionError(f"output_layer.3.weight takes {flat} inputs, which is no square picture of {widths[-1]} channels, the last stage's width")
    return ArcFaceConfig(
        widths=widths,
        units=units,
        embedding_dim=embedding_dim,
        image_size=side * 2 ** len(widths),
        se_reduction=widths[0] // shapes["body.0.res_layer.5.fc1.weight"][0],
    )


LAYOUTS = (
    Layout(
        model="arcface",
        name="facexlib",
        signature=("input_layer.0.weight", "body.0.res_layer.1.weight", "body.0.res_layer.5.fc1.weight", "output_layer.3.weight"),
        rules=_rules,
        from_shapes=_from_shapes,
    ),
)
