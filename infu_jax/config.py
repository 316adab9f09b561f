"""Sizes of every model, as frozen dataclasses. The defaults are the released full-size models.

A checkpoint's own config.json always wins over these defaults; `infu_jax.convert` translates it.
Nothing here depends on JAX, so that conversion and planning can read sizes cheaply.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from dataclasses import dataclass
from typing import Any, Literal

from infu_jax.errors import InputError

Remat = Literal["offload", "block", "attention", "dots", "none"]  # what the backward pass keeps, see `models.layers.scan`
Weights = Literal["auto", "int8"]  # how frozen weights are kept: in the dtype of the computation, or in eight bits, see `quantize`
MAX_STEPS = 10_000  # of sampling; what nobody waits for is a slip, and its schedule could fill the memory


@dataclass(frozen=True)
class FluxConfig:
    """FLUX.1 MMDiT (Black Forest Labs' `FluxParams`; defaults are FLUX.1-dev)."""

    in_channels: int = 64
    out_channels: int = 64
    vec_in_dim: int = 768  # pooled CLIP vector
    context_in_dim: int = 4096  # T5 features
    hidden_size: int = 3072
    mlp_ratio: float = 4.0
    num_heads: int = 24
    depth: int = 19
    depth_single_blocks: int = 38
    axes_dim: tuple[int, ...] = (16, 56, 56)  # RoPE channels for (frame, row, column)
    theta: int = 10_000
    guidance_embed: bool = True  # False for FLUX.1-schnell

    def __post_init__(self):
        _check(self.hidden_size % self.num_heads == 0, f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}")
        _check(sum(self.axes_dim) == self.head_dim, f"axes_dim {self.axes_dim} adds up to {sum(self.axes_dim)}, the head size is {self.head_dim}")
        _check(all(d % 2 == 0 for d in self.axes_dim), f"axes_dim {self.axes_dim} must be even numbers")

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def mlp_size(self) -> int:
        return int(self.hidden_size * self.mlp_ratio)


@dataclass(frozen=True)
class InfuseNetConfig(FluxConfig):
    """InfuseNet: the same kind of blocks, fewer of them (paper section 3.2; the release has 4 + 10)."""

    depth: int = 4
    depth_single_blocks: int = 10


@dataclass(frozen=True)
class ResamplerConfig:
    """Projection network: one face embedding -> `num_queries` ID tokens (IP-Adapter's resampler)."""

    dim: int = 1280
    depth: int = 4
    dim_head: int = 64
    heads: int = 20
    num_queries: int = 8
    embedding_dim: int = 512
    output_dim: int = 4096
    ff_mult: int = 4


@dataclass(frozen=True)
class AutoencoderConfig:
    """FLUX.1 KL autoencoder. Latents = (sample - shift_factor) * scale_factor."""

    in_channels: int = 3
    out_channels: int = 3
    channels: tuple[int, ...] = (128, 256, 512, 512)
    num_res_blocks: int = 2
    z_channels: int = 16
    norm_groups: int = 32
    scale_factor: float = 0.3611
    shift_factor: float = 0.1159

    @property
    def downscale(self) -> int:
        """Pixels per latent cell along one side."""
        return 2 ** (len(self.channels) - 1)


@dataclass(frozen=True)
class T5Config:
    """T5 v1.1 encoder (defaults are XXL)."""

    vocab_size: int = 32_128
    d_model: int = 4096
    d_kv: int = 64
    d_ff: int = 10_240
    num_layers: int = 24
    num_heads: int = 64
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_eps: float = 1e-6


@dataclass(frozen=True)
class CLIPTextConfig:
    """CLIP text encoder (defaults are CLIP-L, the pooled vector of which FLUX uses)."""

    vocab_size: int = 49_408
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_layers: int = 12
    num_heads: int = 12
    max_positions: int = 77
    eos_token_id: int = 49_407
    layer_norm_eps: float = 1e-5


@dataclass(frozen=True)
class CLIPModelConfig:
    """Both towers of CLIP, with their projections (defaults are ViT-L/14; ViT-H/14, which PickScore is made of, has exact GELUs)."""

    text_vocab_size: int = 49_408
    text_hidden_size: int = 768
    text_intermediate_size: int = 3072
    text_num_layers: int = 12
    text_num_heads: int = 12
    text_max_positions: int = 77
    text_eos_token_id: int = 49_407
    text_quick_gelu: bool = True  # False: exact GELU
    text_layer_norm_eps: float = 1e-5
    vision_hidden_size: int = 1024
    vision_intermediate_size: int = 4096
    vision_num_layers: int = 24
    vision_num_heads: int = 16
    vision_channels: int = 3
    vision_image_size: int = 224
    vision_patch_size: int = 14
    vision_quick_gelu: bool = True
    vision_layer_norm_eps: float = 1e-5
    projection_dim: int = 768

    @property
    def text(self) -> CLIPTextConfig:
        """The text tower alone."""
        return CLIPTextConfig(
            vocab_size=self.text_vocab_size,
            hidden_size=self.text_hidden_size,
            intermediate_size=self.text_intermediate_size,
            num_layers=self.text_num_layers,
            num_heads=self.text_num_heads,
            max_positions=self.text_max_positions,
            eos_token_id=self.text_eos_token_id,
            layer_norm_eps=self.text_layer_norm_eps,
        )


@dataclass(frozen=True)
class ArcFaceConfig:
    """ArcFace IR-SE (facexlib's `Backbone`; defaults are IR-SE50, the release's face identity encoder)."""

    widths: tuple[int, ...] = (64, 128, 256, 512)
    units: tuple[int, ...] = (3, 4, 14, 3)
    embedding_dim: int = 512
    image_size: int = 112
    se_reduction: int = 16


@dataclass(frozen=True)
class SamplingConfig:
    """How pictures are made. Defaults are the release's; names follow its options."""

    width: int = 864
    """Width in pixels, a multiple of 16."""
    height: int = 1152
    """Height in pixels, a multiple of 16."""
    steps: int = 30
    """Denoising steps: 30 for FLUX.1-dev, 4 for FLUX.1-schnell."""
    guidance: float = 3.5
    """Distilled guidance of the base model (schnell ignores it)."""
    conditioning_scale: float = 1.0
    """Strength of InfuseNet's residuals. 0 is the base model alone; lower it if the picture is stiff."""
    guidance_start: float = 0.0
    """Part of the steps before which InfuseNet rests. A small value (0.1) frees the layout from the photo."""
    guidance_end: float = 1.0
    """Part of the steps after which InfuseNet rests."""
    infusenet_guidance: float = 1.0
    """InfuseNet's own guidance embedding; it was trained at 1."""
    true_cfg: float = 1.0
    """Classifier-free guidance with the negative prompt; above 1 every step costs one more pass of the base model."""
    t5_length: int = 512
    """T5 tokens a prompt is padded or cut to."""

    def __post_init__(self):
        w, h = self.width, self.height
        fits = w > 0 and h > 0 and w % 16 == 0 and h % 16 == 0
        _check(fits, f"size is {w}x{h}; sides must be multiples of 16 (try {max(w // 16, 1) * 16}x{max(h // 16, 1) * 16})")
        _check(self.steps >= 1, f"steps is {self.steps}; at least 1 is needed")
        _check(self.steps <= MAX_STEPS, f"steps is {self.steps}; at most {MAX_STEPS} are possible (the release uses 30)")
        for name in ("guidance", "infusenet_guidance", "conditioning_scale", "true_cfg"):
            _check(math.isfinite(getattr(self, name)), f"{name} is {getattr(self, name)}; a finite number is needed")
        start, end = self.guidance_start, self.guidance_end
        _check(0.0 <= start <= end <= 1.0, f"guidance_start is {start} and guidance_end is {end}; 0 <= start <= end <= 1 is needed")
        _check(self.true_cfg >= 1.0, f"true_cfg is {self.true_cfg}; 1 turns it off, larger values turn it on")
        _check(self.conditioning_scale >= 0.0, f"conditioning_scale is {self.conditioning_scale}; 0 or more is needed")
        _check(self.t5_length >= 1, f"t5_length is {self.t5_length}; at least 1 is needed (the release uses 512)")


@dataclass(frozen=True)
class MeshConfig:
    """How many devices each mesh axis has; -1 is the rest of them. Left alone, sample.py chooses: tensor up to 8, fsdp the rest."""

    data: int = 1
    """Copies of the weights, each with its part of the batch."""
    fsdp: int = 1
    """Devices that share the weights and split the batch."""
    tensor: int = 1
    """Devices that compute one picture together, each with its part of the weights; must divide the number of heads (24 in FLUX.1)."""
    sequence: int = 1
    """Devices that compute one picture together, each with its part of the tokens: they send each other less than those of tensor, but have
    all weights each. tensor times sequence must divide the number of heads, and sequence the numbers of text, ID and image tokens."""


def to_json(cfg) -> dict:
    """A config as plain JSON values; tuples become lists."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(cfg).items()}


def from_json(cls, values: dict):
    """The inverse of `to_json`. Unknown and missing names are errors: a config is never half read."""
    names = {f.name for f in dataclasses.fields(cls)}
    unknown, missing = sorted(set(values) - names), sorted(names - set(values))
    _check(not unknown and not missing, f"{cls.__name__}: unknown fields {unknown}, missing fields {missing}; the fields are {sorted(names)}")
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def check_types(cfg: Any) -> None:
    """TypeError unless the values of a dataclass are what its annotations say."""
    for name, kind in typing.get_type_hints(type(cfg)).items():
        if not is_of(getattr(cfg, name), kind):
            raise TypeError(f"{name} is {getattr(cfg, name)!r:.80}")


def is_of(value: Any, kind: Any) -> bool:
    """Whether a value is of an annotation: a class, Literal, a union, or a tuple of any length and one kind."""
    options, origin = typing.get_args(kind), typing.get_origin(kind)
    if origin is Literal:
        return value in options
    if origin in (types.UnionType, typing.Union):
        return any(is_of(value, option) for option in options)
    if origin is tuple:
        return isinstance(value, tuple) and all(is_of(x, options[0]) for x in value)
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def _check(ok: bool, message: str) -> None:
    if not ok:
        raise InputError(message)
