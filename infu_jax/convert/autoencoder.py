"""The autoencoder's file layouts: diffusers' `AutoencoderKL` and BFL's `ae.safetensors`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from infu_jax.config import AutoencoderConfig
from infu_jax.convert.errors import ConversionError
from infu_jax.convert.layout import Layout
from infu_jax.convert.rules import Rule, Shape, conv, linear, norm


@dataclass(frozen=True)
class _Names:
    """What the layouts call the parts; our own names are BFL's, but for one `qkv` and bare convolutions between levels."""

    down: str
    up: str
    up_from_lowest: bool  # the number of an up level counts from the lowest resolution
    block: str
    shortcut: str
    downsample: str
    upsample: str
    mid_blocks: tuple[str, str]
    attn: str
    attn_norm: str
    qkv: tuple[str, str, str]
    attn_out: str
    attn_kind: str
    norm_out: str


_BFL = _Names(
    down="down.{}",
    up="up.{}",
    up_from_lowest=False,
    block="block.{}",
    shortcut="nin_shortcut",
    downsample="downsample.conv",
    upsample="upsample.conv",
    mid_blocks=("mid.block_1", "mid.block_2"),
    attn="mid.attn_1",
    attn_norm="norm",
    qkv=("q", "k", "v"),
    attn_out="proj_out",
    attn_kind="conv1x1",
    norm_out="norm_out",
)
_DIFFUSERS = _Names(
    down="down_blocks.{}",
    up="up_blocks.{}",
    up_from_lowest=True,
    block="resnets.{}",
    shortcut="conv_shortcut",
    downsample="downsamplers.0.conv",
    upsample="upsamplers.0.conv",
    mid_blocks=("mid_block.resnets.0", "mid_block.resnets.1"),
    attn="mid_block.attentions.0",
    attn_norm="group_norm",
    qkv=("to_q", "to_k", "to_v"),
    attn_out="to_out.0",
    attn_kind="linear",
    norm_out="conv_norm_out",
)


def _rules(cfg: AutoencoderConfig, names: _Names) -> list[Rule]:
    return [*_encoder(cfg, names), *_decoder(cfg, names)]


def _encoder(cfg: AutoencoderConfig, names: _Names) -> Iterator[Rule]:
    before = cfg.channels[0]
    for level, width in enumerate(cfg.channels):
        ours, theirs = f"encoder.down.{level}", f"encoder.{names.down.format(level)}"
        yield from _blocks(ours, theirs, names, cfg.num_res_blocks, widens=before != width)
        if level < len(cfg.channels) - 1:
            yield from conv(f"{ours}.downsample", f"{theirs}.{names.downsample}")
        before = width
    yield from _ends("encoder", names)


def _decoder(cfg: AutoencoderConfig, names: _Names) -> Iterator[Rule]:
    before, levels = cfg.channels[-1], len(cfg.channels)
    for level in reversed(range(levels)):
        number = levels - 1 - level if names.up_from_lowest else level
        ours, theirs = f"decoder.up.{level}", f"decoder.{names.up.format(number)}"
        yield from _blocks(ours, theirs, names, cfg.num_res_blocks + 1, widens=before != cfg.channels[level])
        if level > 0:
            yield from conv(f"{ours}.upsample", f"{theirs}.{names.upsample}")
        before = cfg.channels[level]
    yield from _ends("decoder", names)


def _ends(half: str, names: _Names) -> Iterator[Rule]:
    """What encoder and decoder have alike: first and last convolution, the middle."""
    yield from conv(f"{half}.conv_in", f"{half}.conv_in")
    for n, theirs in enumerate(names.mid_blocks, start=1):
        yield from _resnet(f"{half}.mid.block_{n}", f"{half}.{theirs}")
    ours, theirs = f"{half}.mid.attn_1", f"{half}.{names.attn}"
    yield from norm(f"{ours}.norm", f"{theirs}.{names.attn_norm}")
    yield from linear(f"{ours}.qkv", [f"{theirs}.{n}" for n in names.qkv], kind=names.attn_kind)
    yield from linear(f"{ours}.proj_out", f"{theirs}.{names.attn_out}", kind=names.attn_kind)
    yield from norm(f"{half}.norm_out", f"{half}.{names.norm_out}")
    yield from conv(f"{half}.conv_out", f"{half}.conv_out")


def _blocks(ours: str, theirs: str, names: _Names, count: int, *, widens: bool) -> Iterator[Rule]:
    for n in range(count):
        yield from _resnet(f"{ours}.block.{n}", f"{theirs}.{names.block.format(n)}")
    if widens:
        yield from linear(f"{ours}.block.0.nin_shortcut", f"{theirs}.{names.block.format(0)}.{names.shortcut}", kind="conv1x1")


def _resnet(ours: str, theirs: str) -> Iterator[Rule]:
    for n in (1, 2):
        yield from norm(f"{ours}.norm{n}", f"{theirs}.norm{n}")
        yield from conv(f"{ours}.conv{n}", f"{theirs}.conv{n}")


# config.json --------------------------------------------------------------------------------------

# Sizes: their name -> ours.
_SIZES = {
    "in_channels": "in_channels",
    "out_channels": "out_channels",
    "block_out_channels": "channels",
    "layers_per_block": "num_res_blocks",
    "latent_channels": "z_channels",
    "norm_num_groups": "norm_groups",
    "scaling_factor": "scale_factor",
    "shift_factor": "shift_factor",
}
# The one behaviour that is built here, and what diffusers takes where its config says nothing.
_BEHAVIOUR = {
    "act_fn": ("silu", "silu"),
    "use_quant_conv": (False, True),
    "use_post_quant_conv": (False, True),
    "mid_block_add_attention": (True, True),
    "latents_mean": (None, None),
    "latents_std": (None, None),
}
_BLOCK_TYPES = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}
# Hints for tiling and for the dtype of the original; they change no weight and no formula.
_HINTS = {"sample_size": 1024, "force_upcast": True}


def _from_config(theirs: Mapping[str, Any]) -> AutoencoderConfig:
    """Raises ConversionError for anything but an AutoencoderKL as FLUX.1 uses it."""
    name = theirs.get("_class_name", "AutoencoderKL")
    if name != "AutoencoderKL":
        raise ConversionError(f"config.json is of a {name}; expected AutoencoderKL")
    unknown = sorted(k for k in theirs if k not in {*_SIZES, *_BEHAVIOUR, *_BLOCK_TYPES, *_HINTS} and not k.startswith("_"))
    missing = sorted(k for k in _SIZES if k not in theirs and k != "shift_factor")
    if unknown or missing:
        raise ConversionError(f"the autoencoder's config.json: unknown fields {unknown}, missing fields {missing}")
    for key, (built, default) in _BEHAVIOUR.items():
        found = theirs.get(key, default)
        if found != built:
            raise ConversionError(f"the autoencoder's config.json has {key} = {found!r}; only {built!r} is implemented")
    for key, block in _BLOCK_TYPES.items():
        expected = [block] * len(theirs["block_out_channels"])
        if list(theirs.get(key, expected)) != expected:
            raise ConversionError(f"the autoencoder's config.json has {key} = {list(theirs[key])}; only {expected} is implemented")
    values = {ours: theirs.get(key) for key, ours in _SIZES.items()}
    # Autoencoders older than FLUX's have no shift, and write null for it.
    return AutoencoderConfig(**values | {"channels": tuple(values["channels"]), "shift_factor": values["shift_factor"] or 0.0})


def _to_config(cfg: AutoencoderConfig) -> dict[str, Any]:
    levels = len(cfg.channels)
    return {
        "_class_name": "AutoencoderKL",
        **{key: getattr(cfg, ours) for key, ours in _SIZES.items()},
        "block_out_channels": list(cfg.channels),
        **{key: built for key, (built, _) in _BEHAVIOUR.items()},
        **{key: [block] * levels for key, block in _BLOCK_TYPES.items()},
        **_HINTS,
    }


def _from_shapes(shapes: Mapping[str, Shape]) -> AutoencoderConfig:
    """BFL's file has no config.json. Its shapes show neither the norm groups (32 in all of BFL's) nor scale and shift (FLUX.1's)."""
    first = {int(m[1]): shape[0] for key, shape in shapes.items() if (m := re.fullmatch(r"encoder\.down\.(\d+)\.block\.0\.conv1\.weight", key))}
    channels = tuple(first[level] for level in sorted(first))
    groups = AutoencoderConfig.norm_groups
    if any(c % groups for c in channels):
        raise ConversionError(f"an autoencoder in BFL's layout has {groups} norm groups; the file's channels {channels} are no multiples of {groups}")
    return AutoencoderConfig(
        in_channels=shapes["encoder.conv_in.weight"][1],
        out_channels=shapes["decoder.conv_out.weight"][0],
        channels=channels,
        num_res_blocks=sum(re.fullmatch(r"encoder\.down\.0\.block\.\d+\.conv1\.weight", key) is not None for key in shapes),
        z_channels=shapes["decoder.conv_in.weight"][1],
    )


LAYOUTS = (
    Layout(
        model="autoencoder",
        name="diffusers",
        signature=("encoder.down_blocks.0.resnets.0.conv1.weight", "encoder.mid_block.attentions.0.to_q.weight", "decoder.conv_norm_out.weight"),
        rules=lambda cfg: _rules(cfg, _DIFFUSERS),
        from_config=_from_config,
        to_config=_to_config,
    ),
    Layout(
        model="autoencoder",
        name="bfl",
        # All that `_from_shapes` reads, and the attention that tells the layouts apart.
        signature=(
            "encoder.conv_in.weight",
            "encoder.down.0.block.0.conv1.weight",
            "encoder.mid.attn_1.q.weight",
            "decoder.conv_in.weight",
            "decoder.conv_out.weight",
        ),
        rules=lambda cfg: _rules(cfg, _BFL),
        from_shapes=_from_shapes,
    ),
)
