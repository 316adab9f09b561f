"""Results that are kept by what they were computed from."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any

import jax
import numpy as np


class Recent:
    """The newest results, arrays or trees of them, of at most `limit` bytes together; the one that was longest not asked for goes first."""

    def __init__(self, limit: int):
        self.limit = limit
        self._entries: OrderedDict[Hashable, Any] = OrderedDict()

    def get(self, key: Hashable) -> Any:
        """The result of this key, None if there is none."""
        if key in self._entries:
            self._entries.move_to_end(key)
        return self._entries.get(key)

    def put(self, key: Hashable, value: Any) -> Any:
        """Keep a result, and give it back. One that is larger than all that may be kept is not kept."""
        if _nbytes(value) > self.limit:
            return value
        self._entries[key] = value
        self._entries.move_to_end(key)
        while self.nbytes > self.limit:
            self._entries.popitem(last=False)
        return value

    def clear(self) -> None:
        self._entries.clear()

    @property
    def nbytes(self) -> int:
        return _nbytes(list(self._entries.values()))


def _nbytes(value: Any) -> int:
    return sum(x.nbytes for x in jax.tree.leaves(value))


def digest(x: np.ndarray) -> bytes:
    """Of an array's contents, shape and dtype."""
    return hashlib.sha256(f"{x.dtype} {x.shape}".encode() + np.ascontiguousarray(x).tobytes()).digest()
