"""Which pictures an evaluation consists of: every person with every prompt for their gender, each with a file name and a seed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from infu_jax.errors import InputError
from infu_jax.evaluation.identities import SUFFIXES, Identity, is_picture
from infu_jax.evaluation.prompts import Prompt, matching


@dataclass(frozen=True)
class Pair:
    """One picture of an evaluation."""

    identity: Identity
    prompt: Prompt
    seed: int

    @property
    def stem(self) -> str:
        """Where it lies in a folder of pictures, without suffix: `ada/0012` is Ada painted with prompt 12."""
        return f"{self.identity.name}/{self.prompt.number:04d}"


def plan(identities: Sequence[Identity], prompts: Sequence[Prompt], *, most: int | None = None, seed: int = 0) -> list[Pair]:
    """Every person with the prompts for their gender, at most `most` each."""
    pairs = [Pair(who, prompt, seed_of(seed, who.name, prompt.text)) for who in identities for prompt in matching(prompts, who.gender, most)]
    if bare := [who.name for who in identities if not matching(prompts, who.gender, most)]:
        raise InputError(f"there is no prompt for {bare[0]}; the prompts are for {', '.join(sorted({p.gender for p in prompts}))}")
    return pairs


def seed_of(seed: int, name: str, prompt: str) -> int:
    """A seed of its own for each picture, which no other person or prompt changes."""
    return int.from_bytes(hashlib.sha256(f"{seed}\0{name}\0{prompt}".encode("utf-8", "surrogatepass")).digest()[:4], "big")


def find(folder: Path, pair: Pair) -> Path | None:
    """The picture of a pair in a folder, whatever its suffix; None if there is none."""
    found = [path for suffix in SUFFIXES if is_picture(path := folder / f"{pair.stem}{suffix}")]
    if len(found) > 1:
        raise InputError(f"{found[0]} and {found[1]} are both pictures of {pair.identity.name} with prompt {pair.prompt.number}; keep one of them")
    return found[0] if found else None
