"""Numbers of many kinds: which are not finite, and what narrowing does to them.

Checkpoints hold float64, float32, bfloat16, float16, float8_e4m3fn and float8_e5m2, and mixtures of them.
"""

from __future__ import annotations

from collections.abc import Iterable

import ml_dtypes
import numpy as np

from infu_jax.convert.errors import ConversionError

# Kept as it is where a model goes to float8: few numbers, and norms and biases suffer most.
VECTORS = np.dtype(ml_dtypes.bfloat16)
FLOAT8 = (np.dtype(ml_dtypes.float8_e4m3fn), np.dtype(ml_dtypes.float8_e5m2))

# The bits without the sign, of the same size; from which of them on a number is infinite or NaN.
_BITS = {
    np.dtype(np.float64): (np.uint64, 0x7FFFFFFFFFFFFFFF, 0x7FF0000000000000),
    np.dtype(np.float32): (np.uint32, 0x7FFFFFFF, 0x7F800000),
    np.dtype(np.float16): (np.uint16, 0x7FFF, 0x7C00),
    np.dtype(ml_dtypes.bfloat16): (np.uint16, 0x7FFF, 0x7F80),
    FLOAT8[0]: (np.uint8, 0x7F, 0x7F),
    FLOAT8[1]: (np.uint8, 0x7F, 0x7C),
}
_BLOCK = 1 << 20  # elements looked at together: what fits into a processor's cache


def is_float(dtype: np.dtype) -> bool:
    """Whether a checkpoint's dtype is one of the floating-point kinds."""
    return np.dtype(dtype) in _BITS


def join(dtypes: Iterable[np.dtype]) -> np.dtype:
    """The rule for mixtures: the smallest dtype that holds every number of all of them. Of two kinds of 16 or 8 bits that is float32."""
    dtypes = set(dtypes)
    try:
        return np.result_type(*dtypes)
    except TypeError:  # NumPy joins no two of float16, bfloat16 and the kinds of float8, all of which fit into float32
        return np.result_type(np.float32, *(d for d in dtypes if d.itemsize > 2))


def all_finite(values: np.ndarray) -> bool:
    """Whether there is neither NaN nor infinity, by the bits: NumPy has no quick way for the narrow kinds."""
    if values.dtype not in _BITS:
        return True
    unsigned, magnitude, least = _BITS[values.dtype]
    bits = values.reshape(-1).view(unsigned)
    return all((bits[n : n + _BLOCK] & unsigned(magnitude)).max() < least for n in range(0, bits.size, _BLOCK))


def cast(values: np.ndarray, dtype: np.dtype, where: str) -> np.ndarray:
    """`values` rounded to `dtype`. What was finite stays so, or it is an error that says where the dtype ends."""
    if values.dtype == dtype:
        return values
    with np.errstate(over="ignore", invalid="ignore"):  # said below, with the name
        made = values.astype(dtype)
    if _narrower(dtype, values.dtype) and not all_finite(made) and all_finite(values):
        largest = float(np.abs(values.astype(np.float64)).max())
        wider = next((f"choose {d}" for d in (VECTORS, np.dtype(np.float32)) if largest <= _largest(d)), "no dtype here holds them")
        raise ConversionError(f"{where} has values up to {largest:.4g}; {np.dtype(dtype)} ends at {_largest(dtype):.4g}, {wider}")
    return made


def _narrower(dtype: np.dtype, other: np.dtype) -> bool:
    return is_float(dtype) and is_float(other) and _largest(dtype) < _largest(other)


def _largest(dtype: np.dtype) -> float:
    return float(ml_dtypes.finfo(dtype).max)
