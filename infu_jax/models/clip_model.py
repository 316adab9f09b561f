"""CLIP, text and vision: how well a picture fits a text (Radford et al. 2021; reference: transformers' CLIPModel)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from infu_jax.config import CLIPModelConfig
from infu_jax.models.clip import CLIPBlock, CLIPTextEncoder
from infu_jax.models.layers import Conv, Embedding, LayerNorm, Linear, scan, stack


class CLIPModel(nnx.Module):
    """Token ids and pictures -> L2-normalised embeddings in one space; their products are cosines.

    logit_scale: the logarithm of what CLIP multiplies cosines with.
    """

    def __init__(self, cfg: CLIPModelConfig, *, rngs: nnx.Rngs):
        self.cfg = cfg
        self.text = CLIPTextEncoder(cfg.text, quick=cfg.text_quick_gelu, rngs=rngs)
        self.vision = CLIPVisionEncoder(cfg, rngs=rngs)
        self.text_projection = Linear(cfg.text_hidden_size, cfg.projection_dim, bias=False, rngs=rngs)
        self.vision_projection = Linear(cfg.vision_hidden_size, cfg.projection_dim, bias=False, rngs=rngs)
        self.logit_scale = nnx.Param(jnp.asarray(2.6592))  # log(1 / 0.07), where its training begins

    def embed_text(self, ids: Int[Array, "B T"], *, dtype: DTypeLike = jnp.float32) -> Float[Array, "B E"]:
        """Ids as `tokenizers.load_clip_tokenizer` gives them -> unit vectors, float32. `dtype`: what the blocks compute in."""
        return _unit(self.text_projection(self.text(ids, dtype=dtype)[1]))

    def embed_images(self, pixels: Float[Array, "B H W C"], *, dtype: DTypeLike = jnp.float32) -> Float[Array, "B E"]:
        """Prepared pictures (see `evaluation.clip.Preparation`) -> unit vectors, float32."""
        return _unit(self.vision_projection(self.vision(pixels.astype(dtype))))


class CLIPVisionEncoder(nnx.Module):
    """ViT: patches and a class token with learned positions -> the class token's feature."""

    def __init__(self, cfg: CLIPModelConfig, *, rngs: nnx.Rngs):
        width, patch, side = cfg.vision_hidden_size, cfg.vision_patch_size, cfg.vision_image_size
        self.image_size = side
        self.patches = Conv(cfg.vision_channels, width, patch, stride=patch, padding=0, bias=False, rngs=rngs)
        self.class_embedding = nnx.Param(jax.random.normal(rngs.params(), (width,)))
        self.position_embedding = Embedding((side // patch) ** 2 + 1, width, rngs=rngs)
        self.pre_norm = LayerNorm(width, eps=cfg.vision_layer_norm_eps)
        sizes = width, cfg.vision_num_heads, cfg.vision_intermediate_size
        make = lambda rngs: CLIPBlock(*sizes, eps=cfg.vision_layer_norm_eps, causal=False, quick=cfg.vision_quick_gelu, rngs=rngs)  # noqa: E731
        self.blocks = stack(make, cfg.vision_num_layers, rngs)
        self.post_norm = LayerNorm(width, eps=cfg.vision_layer_norm_eps)

    def __call__(self, pixels: Float[Array, "B H W C"]) -> Float[Array, "B D"]:
        """ValueError unless pictures have the size that the positions were learned for."""
        if pixels.shape[1:3] != (self.image_size, self.image_size):
            raise ValueError(f"pictures are {pixels.shape[2]}x{pixels.shape[1]}; this CLIP takes {self.image_size}x{self.image_size}")
        patches = self.patches(pixels)
        x = patches.reshape(len(patches), -1, patches.shape[-1])
        first = jnp.broadcast_to(self.class_embedding[...].astype(x.dtype), (len(x), 1, x.shape[-1]))
        x = jnp.concatenate([first, x], axis=1)
        x = self.pre_norm(x + self.position_embedding.table[...].astype(x.dtype))
        x, _ = scan(lambda block, x, _: (block(x), None), self.blocks, x)
        return self.post_norm(x[:, 0])


def _unit(x: jax.Array) -> jax.Array:
    x = x.astype(jnp.float32)
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
