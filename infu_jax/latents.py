"""Between latent pictures and token sequences: 2x2 patches and position ids.

Source: BFL flux `sampling.py` (prepare, unpack); diffusers `FluxPipeline._pack_latents`.
"""

from __future__ import annotations

import jax
import numpy as np
from jaxtyping import Array, Float

PATCH = 2


def pack(latents: Float[Array, "B h w c"]) -> Float[Array, "B L C"]:
    """2x2 patches as tokens, row by row; the C = 4c channels of a token are ordered (c, patch row, patch column)."""
    b, h, w, c = latents.shape
    x = latents.reshape(b, h // PATCH, PATCH, w // PATCH, PATCH, c)
    return x.transpose(0, 1, 3, 5, 2, 4).reshape(b, (h // PATCH) * (w // PATCH), c * PATCH**2)


def unpack(tokens: Float[Array, "B L C"], h: int, w: int) -> Float[Array, "B h w c"]:
    """The inverse of `pack` for latents of h x w cells."""
    b, _, channels = tokens.shape
    c = channels // PATCH**2
    x = tokens.reshape(b, h // PATCH, w // PATCH, c, PATCH, PATCH)
    return x.transpose(0, 1, 4, 2, 5, 3).reshape(b, h, w, c)


def position_ids(txt_tokens: int, h: int, w: int) -> np.ndarray:
    """(frame, row, column) of every token, text first: (T + L, 3) integers. Text tokens are all at (0, 0, 0)."""
    rows, columns = np.meshgrid(np.arange(h // PATCH), np.arange(w // PATCH), indexing="ij")
    img = np.stack([np.zeros_like(rows), rows, columns], axis=-1).reshape(-1, 3)
    return np.concatenate([np.zeros((txt_tokens, 3), img.dtype), img])


def noise(seed: int, purpose: int, h: int, w: int, c: int) -> Float[Array, "h w c"]:
    """Standard normal noise of one picture: it depends on its own seed only, not on the batch it is drawn in.

    purpose: LATENTS or CONTROL, so that the two draws of a picture are independent.
    """
    return jax.random.normal(jax.random.fold_in(jax.random.key(seed), purpose), (h, w, c))


LATENTS, CONTROL = 0, 1
