"""InfuseNet: a short copy of the base model's structure that steers it through residuals.

Source: paper section 3.2, Fig. 3; diffusers `FluxControlNetModel`, which the released weights are stored as.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from infu_jax.config import InfuseNetConfig, Remat
from infu_jax.models.flux import BlockInputs, MMDiT, Modulation, Residuals, RoPE, joined_rope
from infu_jax.models.layers import Linear, scan, stack, zeros
from infu_jax.sharding import constrain_tokens, join, streams


class InfuseNet(MMDiT):
    """Flux's blocks, fed ID tokens in the place of text; each block's image tokens are projected to one residual."""

    def __init__(self, cfg: InfuseNetConfig, *, rngs: nnx.Rngs):
        super().__init__(cfg, rngs=rngs)
        size = cfg.hidden_size
        # Zero at first, so that training starts from the base model's own picture.
        self.control_in = Linear(cfg.in_channels, size, kernel_init=zeros(), rngs=rngs)
        self.double_out = stack(lambda rngs: Linear(size, size, kernel_init=zeros(), rngs=rngs), cfg.depth, rngs)
        self.single_out = stack(lambda rngs: Linear(size, size, kernel_init=zeros(), rngs=rngs), cfg.depth_single_blocks, rngs)

    def __call__(
        self,
        img: Float[Array, "B L C"],
        id_tokens: Float[Array, "B T E"],
        control: Float[Array, "B L C"],
        pe: RoPE,
        t: Float[Array, " B"],
        y: Float[Array, "B V"],
        guidance: Float[Array, " B"],
        scale: Float[Array, ""] | float = 1.0,
        *,
        modulation: Modulation | None = None,
        remat: Remat = "block",
    ) -> Residuals:
        """Residuals for the base model, multiplied by `scale`; computed in img's dtype.

        Args:
            img, t: as the base model gets them.
            id_tokens: from the resampler; they take the place of T5 features.
            control: packed latents of the control image (of a black picture where there is none).
            pe: rotary angles of ID tokens and image tokens.
            y: pooled CLIP vector of the text prompt.
            guidance: InfuseNet's own guidance value, 1.0 in the release.
            modulation: from the method of this name; `t`, `y`, `guidance` and the parameters in `MODULATION` are then not used.
            remat: what the backward pass keeps, see `layers.scan`.
        """
        vec = None if modulation else self.embed_vec(t, y, guidance, img.dtype)
        x, txt = self.embed(img, id_tokens, control)
        given = BlockInputs(vec, joined_rope(pe, id_tokens.shape[1]), jnp.asarray(scale, img.dtype))
        double = lambda pair, carry, mods: double_residual(pair, carry, mods, given)  # noqa: E731
        blocks = nnx.List([self.double_blocks, self.double_out])
        (x, txt), double_residuals = scan(double, blocks, (x, txt), modulation and (modulation.img, modulation.txt), remat=remat)
        single = lambda pair, x, mod: single_residual(pair, x, mod, given, txt.shape[1])  # noqa: E731
        blocks = nnx.List([self.single_blocks, self.single_out])
        _, single_residuals = scan(single, blocks, constrain_tokens(join(txt, x)), modulation and modulation.single, remat=remat)
        return Residuals(double_residuals, single_residuals)

    def embed(
        self, img: Float[Array, "B L C"], id_tokens: Float[Array, "B T E"], control: Float[Array, "B L C"]
    ) -> tuple[Float[Array, "B L D"], Float[Array, "B T D"]]:
        """Image tokens and ID tokens as the first block gets them."""
        x = constrain_tokens(self.img_in(img) + self.control_in(control.astype(img.dtype)))
        return x, constrain_tokens(self.txt_in(constrain_tokens(id_tokens).astype(img.dtype)))


def double_residual(pair, carry, mods, given: BlockInputs):
    """One of the double stack: (image tokens, ID tokens) -> the same, and the residual."""
    block, out = pair
    x, txt = block(*carry, mods or block.modulation(given.vec), given.pe)
    return (constrain_tokens(x), constrain_tokens(txt)), constrain_tokens(given.scale * out(x))


def single_residual(pair, x, mod, given: BlockInputs, id_count: int):
    """One of the single stack: ID tokens and image tokens in one -> the same, and the residual."""
    block, out = pair
    x = block(x, block.modulation(given.vec) if mod is None else mod, given.pe)
    return constrain_tokens(x), constrain_tokens(given.scale * out(streams(x, id_count)[1]))
