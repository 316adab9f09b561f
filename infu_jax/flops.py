"""Floating-point operations of the transformers, counted from their sizes: a multiplication and an addition are two.

Matrix products only; norms, modulation and softmax are below one per cent. The compiler's own count is no use here: it counts the body
of a scan once, and attention kernels not at all.
"""

from __future__ import annotations

from infu_jax.config import FluxConfig, InfuseNetConfig

# Dense bfloat16 peak of one chip in FLOP/s, by the beginning of JAX's name for it. Sources: cloud.google.com/tpu/docs, NVIDIA's data sheets.
PEAKS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,  # v5p
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA RTX A6000": 155e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA GeForce RTX 4090": 165e12,
    "NVIDIA GeForce RTX 5090": 210e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
}


def peak(kind: str) -> float | None:
    """FLOP/s of one device of this `device_kind` in bfloat16, None where it is not known (CPUs)."""
    return next((flops for name, flops in PEAKS.items() if kind.startswith(name)), None)


def linear_flops(cfg: FluxConfig, image_tokens: int, text_tokens: int) -> float:
    """Forward through the linear layers of one picture's blocks and embedders."""
    d, m, length = cfg.hidden_size, cfg.mlp_size, image_tokens + text_tokens
    blocks = (cfg.depth + cfg.depth_single_blocks) * length * (4 * d * d + 2 * d * m)
    modulation = (cfg.depth * 12 + cfg.depth_single_blocks * 3) * d * d
    return 2.0 * (blocks + modulation + image_tokens * cfg.in_channels * d + text_tokens * cfg.context_in_dim * d)


def attention_flops(cfg: FluxConfig, image_tokens: int, text_tokens: int) -> float:
    """Forward through the attention of one picture's blocks: q k^T and its product with v."""
    return 4.0 * (cfg.depth + cfg.depth_single_blocks) * (image_tokens + text_tokens) ** 2 * cfg.hidden_size


def flux_flops(cfg: FluxConfig, image_tokens: int, text_tokens: int) -> float:
    """One forward pass of the base model for one picture."""
    final = 2.0 * image_tokens * cfg.hidden_size * cfg.out_channels
    return linear_flops(cfg, image_tokens, text_tokens) + attention_flops(cfg, image_tokens, text_tokens) + final


def infusenet_flops(cfg: InfuseNetConfig, image_tokens: int, id_tokens: int) -> float:
    """One forward pass of InfuseNet for one picture."""
    outputs = 2.0 * image_tokens * cfg.hidden_size * (cfg.in_channels + (cfg.depth + cfg.depth_single_blocks) * cfg.hidden_size)
    return linear_flops(cfg, image_tokens, id_tokens) + attention_flops(cfg, image_tokens, id_tokens) + outputs


def train_flops(base: FluxConfig, infusenet: InfuseNetConfig | None, image_tokens: int, text_tokens: int, id_tokens: int) -> float:
    """The least that a training step computes for one picture, nothing twice.

    Forward of everything. Backward of what is trained costs twice its forward; of the frozen base only the activations' gradients
    are needed, once its linear layers' forward and twice its attention's. Without `infusenet` the base is trained.
    """
    forward = flux_flops(base, image_tokens, text_tokens)
    if infusenet is None:
        return 3 * forward
    backward = forward + attention_flops(base, image_tokens, text_tokens)
    return forward + backward + 3 * infusenet_flops(infusenet, image_tokens, id_tokens)
