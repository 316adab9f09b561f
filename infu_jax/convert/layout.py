"""What a converter must know about one way of storing one model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from infu_jax.convert.rules import Rule, Shape


@dataclass(frozen=True)
class Layout:
    """One model in one file layout, e.g. Flux as diffusers stores it.

    model: the name of our model, a key of `infu_jax.models.MODELS`.
    name: the layout's name as users know it: "diffusers", "bfl", "transformers", "infiniteyou", "facexlib".
    signature: keys that every such file has and no other layout's file has all of.
    rules: our config -> conversion rules.
    from_config / to_config: their config.json <-> our config; None where files come without one.
    from_shapes: key shapes -> our config, where files come without a config.json.
    ignore: regular expressions of keys that may be there and hold nothing that is not elsewhere.
    """

    model: str
    name: str
    signature: tuple[str, ...]
    rules: Callable[[Any], list[Rule]]
    from_config: Callable[[Mapping[str, Any]], Any] | None = None
    to_config: Callable[[Any], dict[str, Any]] | None = None
    from_shapes: Callable[[Mapping[str, Shape]], Any] | None = None
    ignore: tuple[str, ...] = ()
