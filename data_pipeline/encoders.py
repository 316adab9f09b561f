"""The frozen models whose output can be computed ahead, each with the program that turns a batch of inputs into rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline import features
from infu_jax.train_config import Feature

ENCODERS: Mapping[Feature, str] = {"latents": "autoencoder", "control": "autoencoder", "t5": "t5", "clip": "clip", "arcface": "arcface"}
"""The model of each feature."""


@dataclass(frozen=True)
class Encoder:
    """A model with its tokenizer, and the program that turns a batch of inputs into rows."""

    model: Any
    tokenizer: Any
    encode: Callable[[Any, Any], Any]
    mesh: Any
    dtype: str
    fingerprint: str

    def __call__(self, inputs: np.ndarray):
        """(B, ...) inputs -> (B, ...) rows, float32, still being computed."""
        import jax

        from infu_jax.sharding import batch_sharding

        with jax.set_mesh(self.mesh):
            return self.encode(self.model, jax.device_put(inputs, batch_sharding(self.mesh, len(inputs))))

    def row_shape(self, inputs: Sequence[int], dtype: Any) -> tuple[int, ...]:
        """The shape of a row, for inputs of this shape. Computes nothing."""
        import jax

        return jax.eval_shape(self.encode, self.model, jax.ShapeDtypeStruct((1, *inputs), dtype)).shape[1:]


def load_encoder(name: str, mesh, dtype, *, base: Path, infu: Path, autoencoder: Path | None = None, arcface: Path | None = None) -> Encoder:
    """One of the models in ENCODERS, on the devices of `mesh`. It computes what the training step does without features.

    base, infu: folders that have the models, but for an autoencoder and an ArcFace that lie elsewhere.
    """
    import jax
    import jax.numpy as jnp

    from infu_jax import checkpoint
    from infu_jax.tokenizers import load_clip_tokenizer, load_t5_tokenizer

    path, tokenizer = base, None
    match name:
        case "autoencoder":
            path = autoencoder or base

            def encode(vae, pixels):
                return jnp.stack(vae.moments((pixels.astype(jnp.float32) / 127.5 - 1).astype(dtype)), axis=1)

        case "t5":
            tokenizer = load_t5_tokenizer(base / "tokenizer_2")

            def encode(t5, ids):
                return t5(ids, dtype=dtype)

        case "clip":
            tokenizer = load_clip_tokenizer(base / "tokenizer")

            def encode(clip, ids):
                return clip(ids, dtype=dtype)[1]

        case "arcface":
            path, dtype = arcface or infu, jnp.float32

            def encode(recogniser, crops):
                return recogniser(2 * (crops.astype(jnp.float32) / 255) - 1)  # as face.arcface_input

    model = checkpoint.load_model(path, name, mesh=mesh, dtype=dtype)
    program = jax.jit(lambda model, inputs: encode(model, inputs).astype(jnp.float32))
    return Encoder(model, tokenizer, program, mesh, jnp.dtype(dtype).name, features.model_fingerprint(model))
