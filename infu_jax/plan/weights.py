"""Frozen models as they lie on chips that need not be there."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from infu_jax import quantize
from infu_jax.checkpoint import abstract, param_shapes, with_params
from infu_jax.config import Weights
from infu_jax.sharding import RULES, on_chip, param_shardings


def placed(name: str, cfg: Any, mesh: Mesh, dtype: Any, weights: Weights) -> nnx.Module:
    """The model with abstract arrays that know their dtype, sharding and layout, as loading makes them: ArcFace in float32, the others in `dtype`."""
    module = abstract(name, cfg)
    if weights == "int8" and name in quantize.MODELS:
        return with_params(quantize.quantized(module), quantize.targets(name, module, mesh, dtype))
    shapes, floating = param_shapes(module), jnp.float32 if name == "arcface" else dtype
    shardings = param_shardings(mesh, RULES[name], {path: s.shape for path, s in shapes.items()})
    kept = lambda s: floating if jnp.issubdtype(s.dtype, jnp.floating) else s.dtype  # noqa: E731
    return with_params(module, {path: jax.ShapeDtypeStruct(s.shape, kept(s), sharding=on_chip(path, shardings[path])) for path, s in shapes.items()})
