"""Seeds that anybody can compute again: each belongs to what it is made of, and to nothing else."""

from __future__ import annotations

import hashlib


def seed_of(*parts: int | str) -> int:
    """32 bits that are a function of the parts alone, the same on every machine."""
    return int.from_bytes(hashlib.sha256("\0".join(map(str, parts)).encode("utf-8", "surrogatepass")).digest()[:4], "big")
