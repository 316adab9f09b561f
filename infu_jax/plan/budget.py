"""Arithmetic in the place of compiling: memory, FLOPs and time of a mesh and batch, and which mesh and batch to choose.

Weights, moments and gradients are counted exactly. Activations are the tokens that are kept, counted, and what a block computes with,
which was fitted to compiled programs (docs/performance.md says how well). Bytes everywhere, of one chip.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jax.sharding import AbstractMesh, AxisType, Mesh

from infu_jax import flops, initial, quantize
from infu_jax.checkpoint import abstract, param_shapes
from infu_jax.config import AutoencoderConfig, FluxConfig, MeshConfig
from infu_jax.errors import InputError
from infu_jax.models.flux import MODULATION
from infu_jax.pipeline import LOOP_STEPS
from infu_jax.plan import gpus
from infu_jax.plan.settings import SampleArgs, TrainArgs
from infu_jax.sharding import AXES, HEADS, RULES, batch_axes, param_shardings
from infu_jax.training import STACKED_KERNEL, TRAINED, rounds_ahead

Sizes = Mapping[str, Any]
Parts = dict[str, float]

# How many arrays of all tokens x hidden size a block holds at once while it computes, forward alone and with its backward pass.
FORWARD_WIDTHS, BACKWARD_WIDTHS = 24, 44
# What a block leaves on the chip for its backward pass, in the same unit, by `remat`.
KEPT_WIDTHS = {"offload": 0, "block": 1, "attention": 2, "dots": 11, "none": 23}
# Full-resolution arrays of the first width that the VAE's decoder holds at once, in float32.
DECODER_ARRAYS = 5
# The same with its backward pass, in bfloat16, for the identity loss: of one picture, and of each of several, which compilers lay out less tightly.
DECODER_KEPT_ARRAYS = 26, 60
# A part of a chip's memory is left free: the arithmetic is not that exact.
FREE = 0.05


@dataclass(frozen=True)
class Choice:
    """Mesh and batch with the estimated bytes of a chip. One that the arithmetic chose does not fit only where nothing does, and comes nearest then."""

    mesh: MeshConfig
    batch: int
    parts: Parts
    fits: bool


def sampling(args: SampleArgs, sizes: Sizes, mesh: AbstractMesh, batch: int) -> Parts:
    """Bytes of one chip while pictures are made."""
    cfg, value = sizes["flux"], {"bfloat16": 2, "float32": 4}[args.dtype]
    # In eight bits all but the blocks' kernels stay as they are: half a per cent of FLUX.1, 4 per cent of T5, which are left out here.
    size = lambda name: 4 if name == "arcface" else quantize.BYTES if args.weights == "int8" and name in quantize.MODELS else value  # noqa: E731
    pictures = batch / _rows(mesh, batch)
    image, tokens = _image_tokens(args.sampling.height, args.sampling.width), args.sampling.t5_length
    transformers = {name: weights(name, sizes, mesh, size(name)) for name in ("flux", "infusenet")}
    modulations = sum(weights(name, sizes, mesh, size(name), only=True) for name in transformers)
    around = sum(weights(name, sizes, mesh, size(name)) for name in ("resampler", "autoencoder", "t5", "clip", "arcface"))
    tables = LOOP_STEPS * pictures * value * sum(map(_modulations, (cfg, sizes["infusenet"])))
    parts = {"transformers": sum(transformers.values()) - (modulations if args.tables else 0), "modulation tables": tables if args.tables else 0}
    parts["what waits beside the loop"] = 0 if args.offload else around + (modulations if args.tables else 0)
    here = pictures / mesh.shape["sequence"]
    loop = _activations(cfg, here * (image + tokens), value, FORWARD_WIDTHS, mesh)
    loop += 2 * here * image * cfg.hidden_size * value  # InfuseNet's own tokens, and its residual
    decoding = pictures * _decoding(sizes["autoencoder"], args.sampling.height, args.sampling.width)
    decoding += weights("autoencoder", sizes, mesh, value) if args.offload else 0
    return {name: float(n) for name, n in parts.items()} | {"activations": max(loop, decoding)}


def training(args: TrainArgs, sizes: Sizes, mesh: AbstractMesh, batch: int) -> Parts:
    """Bytes of one chip in a training step."""
    features = set() if args.data.features == "auto" else set(args.data.features)
    frozen = initial.step_names(args, features)
    # In eight bits all but the blocks' kernels stay as they are: half a per cent of FLUX.1, which is left out here.
    size = lambda name: 4 if name == "arcface" else quantize.BYTES if name == "flux" and args.models.base_weights == "int8" else 2  # noqa: E731
    trained = sum(weights(name, sizes, mesh, 4) for name in TRAINED[args.trainable])
    cfg = sizes["flux"]
    rows = batch / args.accumulate / _rows(mesh, batch // args.accumulate)
    pictures = rows / mesh.shape["sequence"]
    image = _image_tokens(args.height, args.width)
    tokens = pictures * (image + args.data.t5_length)
    block = 2 * cfg.hidden_size * tokens  # one array of all tokens in bfloat16
    kept = block * (cfg.depth + cfg.depth_single_blocks) * KEPT_WIDTHS[args.remat]
    if args.trainable == "infusenet":
        n = sizes["infusenet"].depth + sizes["infusenet"].depth_single_blocks
        # Its own tokens, its residuals and their gradients.
        kept += n * 2 * cfg.hidden_size * pictures * ((image + sizes["resampler"].num_queries) * KEPT_WIDTHS[args.remat] + 2 * image)
    decoded = max(rows / args.objective.id_every, 1) if args.objective.id_weight else 0
    decoding = decoded * 2.0 * DECODER_KEPT_ARRAYS[decoded > 1] * args.height * args.width * sizes["autoencoder"].channels[0]
    return {
        "frozen weights": sum(weights(name, sizes, mesh, size(name)) for name in frozen),
        "trained weights": trained,
        # Of Muon's, only what is no block's kernel has two: a few per cent, which are left out here.
        "moments": trained * (1 if args.optimizer.kind == "muon" else 2) * (0.5 if args.optimizer.moment_dtype == "bfloat16" else 1),
        "average": trained if args.optimizer.ema_decay is not None else 0.0,
        "gradients": gradients(args, sizes, mesh),
        "activations": kept + max(_activations(cfg, tokens, 2, BACKWARD_WIDTHS, mesh), decoding),
    }


def gradients(args: TrainArgs, sizes: Sizes, mesh: AbstractMesh | Mesh) -> float:
    """Bytes of the gradients that are there at once: all, or those of one block and of what is in no block (`in_backward`)."""
    largest = "double_" if sizes["infusenet"].depth else "single_"
    half = rounds_ahead(args) and args.accumulate == 1  # the sum over parts is in float32
    total = 0.0
    for name in TRAINED[args.trainable]:
        for path, (shape, held) in _shards(name, sizes[name], mesh).items():
            if not args.optimizer.in_backward:
                total += held * (2 if half and STACKED_KERNEL.fullmatch(path) else 4)
            elif not path.startswith(("double_", "single_")):
                total += held * 4
            elif path.startswith(largest):
                total += held // shape[0] * 4
    return total


def weights(name: str, sizes: Sizes, mesh: AbstractMesh | Mesh, value: int | float, *, only: bool = False) -> float:
    """Bytes of a model's parameters of `value` bytes each; `only` those that make modulations."""
    return float(value * _numbers(name, sizes[name], mesh, only))


# FLOPs --------------------------------------------------------------------------------------------


def sampling_flops(args: SampleArgs, sizes: Sizes, batch: int) -> Parts:
    """FLOPs of one denoising step of all pictures; nothing is computed twice."""
    image = _image_tokens(args.sampling.height, args.sampling.width)
    base = flops.flux_flops(sizes["flux"], image, args.sampling.t5_length) * (2 if args.sampling.true_cfg > 1 else 1)
    least = batch * (base + flops.infusenet_flops(sizes["infusenet"], image, sizes["resampler"].num_queries))
    return {"least": least, "executed": least}


def training_flops(args: TrainArgs, sizes: Sizes, batch: int) -> Parts:
    """FLOPs of one training step: the least that it takes, and what rematerialisation and the attention kernel compute again besides.

    Kernels keep no weights of the attention: cuDNN's backward pass takes q k^T once more, JAX's for TPUs twice, and the weights' gradient once more.
    """
    kernel = 0.5 if args.gpu_gib is not None or gpus.named(args.topology) else 1.5
    image, text, ids = _image_tokens(args.height, args.width), args.data.t5_length, sizes["resampler"].num_queries
    infusenet = sizes["infusenet"] if args.trainable == "infusenet" else None

    def again(cfg: FluxConfig, tokens: int, remat: str) -> float:
        linear, attention = flops.linear_flops(cfg, image, tokens), flops.attention_flops(cfg, image, tokens)
        whole = linear + attention
        return {"offload": whole, "block": whole, "attention": linear, "dots": 0.0, "none": 0.0}[remat] + kernel * attention

    more = again(sizes["flux"], text, args.remat)
    if infusenet:
        more += again(infusenet, ids, "block" if args.optimizer.in_backward else args.remat)
        if args.optimizer.in_backward and args.optimizer.clip_norm is not None:  # the backward pass for the norm alone
            more += again(infusenet, ids, "block") + 2 * flops.infusenet_flops(infusenet, image, ids)
    least = flops.train_flops(sizes["flux"], infusenet, image, text, ids)
    return {"least": batch * least, "executed": batch * (least + more)}


def workers(mesh: AbstractMesh | Mesh, batch: int) -> int:
    """Into how many parts the computation of a batch is split."""
    return math.prod(mesh.shape[axis] for axis in (*batch_axes(mesh, batch), *HEADS))


# Choosing -----------------------------------------------------------------------------------------


def meshes(cfg: FluxConfig, chips: int, tokens: Sequence[int] = ()) -> Iterator[MeshConfig]:
    """Every mesh of so many chips of which 8 at most compute one picture; its tensor and sequence axes divide the heads, the latter all numbers of `tokens`.

    Without `tokens` they are not split.
    """
    for together in (n for n in range(1, 9) if chips % n == 0 and cfg.num_heads % n == 0):
        for sequence in (n for n in range(1, together + 1) if together % n == 0 and (n == 1 or tokens) and all(count % n == 0 for count in tokens)):
            for fsdp in (n for n in range(1, chips // together + 1) if chips // together % n == 0):
                yield MeshConfig(data=chips // together // fsdp, fsdp=fsdp, tensor=together // sequence, sequence=sequence)


def tokens(args: SampleArgs, sizes: Sizes) -> tuple[int, int, int]:
    """Of the picture, the text and the identity."""
    return _image_tokens(args.sampling.height, args.sampling.width), args.sampling.t5_length, sizes["resampler"].num_queries


def choose_sampling(args: SampleArgs, sizes: Sizes, chips: int, room: float) -> Choice:
    """The mesh on which the pictures fit and each chip has least to compute; of several the one that splits weights least."""

    def cost(mesh: MeshConfig) -> tuple:
        return args.batch / workers(_abstract(mesh), args.batch), mesh.fsdp, mesh.tensor, mesh.sequence

    return _best(
        ((mesh, args.batch) for mesh in meshes(sizes["flux"], chips, tokens(args, sizes))), lambda m, b: sampling(args, sizes, m, b), lambda m, _: cost(m), room
    )


def choose_training(args: TrainArgs, sizes: Sizes, chips: int, room: float) -> Choice:
    """The mesh and batch that fit and move the fewest bytes of weights and gradients a picture, without splitting heads where that is possible."""
    trained = sum(4 * _count(name, sizes) for name in TRAINED[args.trainable])
    frozen = 0 if args.trainable == "base" else 2 * _count("flux", sizes)

    def cost(mesh: MeshConfig, batch: int) -> tuple:
        split = (mesh.fsdp - 1) / mesh.fsdp
        moved = (2 * frozen + 3 * trained) * split + 2 * trained / mesh.fsdp * (mesh.data - 1) / mesh.data
        return mesh.tensor, moved / mesh.tensor * mesh.data * mesh.fsdp / batch, -batch

    candidates = ((m, n * m.data * m.fsdp * args.accumulate) for m in meshes(sizes["flux"], chips) for n in range(1, 33))
    return _best(candidates, lambda m, b: training(args, sizes, m, b), cost, room)


def asked_training(args: TrainArgs, sizes: Sizes, mesh: MeshConfig, room: float) -> Choice:
    """The batch of the settings on a mesh."""
    return _choice(mesh, args.batch_size, training(args, sizes, _abstract(mesh), args.batch_size), room)


def _choice(mesh: MeshConfig, batch: int, parts: Parts, room: float) -> Choice:
    return Choice(mesh, batch, parts, sum(parts.values()) <= room * (1 - FREE))


def _best(candidates: Any, parts: Callable[[AbstractMesh, int], Parts], cost: Callable[[MeshConfig, int], tuple], room: float) -> Choice:
    tried, seen = [], {}
    for mesh, batch in candidates:
        if seen.get(mesh, True):  # a larger batch on a mesh on which a smaller one did not fit
            try:
                tried.append(_choice(mesh, batch, parts(_abstract(mesh), batch), room))
            except InputError:  # the mesh does not divide some parameter
                seen[mesh] = False
                continue
            seen[mesh] = tried[-1].fits
    if not tried:
        raise InputError("no mesh of so many chips divides the models' sizes; choose another topology")
    fitting = [choice for choice in tried if choice.fits]
    return min(fitting, key=lambda c: cost(c.mesh, c.batch)) if fitting else min(tried, key=lambda c: sum(c.parts.values()))


def _abstract(mesh: MeshConfig) -> AbstractMesh:
    return AbstractMesh(tuple(getattr(mesh, axis) for axis in AXES), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _rows(mesh: AbstractMesh | Mesh, batch: int) -> int:
    """Into how many parts a batch is split."""
    return math.prod(mesh.shape[axis] for axis in batch_axes(mesh, batch))


@functools.cache
def _shapes(name: str, cfg: Any) -> dict[str, tuple[int, ...]]:
    return {path: s.shape for path, s in param_shapes(abstract(name, cfg)).items()}


@functools.cache
def _shards(name: str, cfg: Any, mesh: AbstractMesh | Mesh) -> dict[str, tuple[tuple[int, ...], int]]:
    """Of each parameter its shape, and how many of its numbers one chip has."""
    shapes = _shapes(name, cfg)
    shardings = param_shardings(mesh, RULES[name], shapes)
    return {path: (s, math.prod(shardings[path].shard_shape(s))) for path, s in shapes.items()}


@functools.cache
def _numbers(name: str, cfg: Any, mesh: AbstractMesh | Mesh, only: bool) -> int:
    return sum(held for path, (_, held) in _shards(name, cfg, mesh).items() if not only or MODULATION.fullmatch(path))


def _count(name: str, sizes: Sizes) -> int:
    return sum(map(math.prod, _shapes(name, sizes[name]).values()))


def _activations(cfg: FluxConfig, tokens: float, value: int, widths: int, mesh: AbstractMesh) -> float:
    """What one block computes with: its tokens, and its weights where they are gathered, the next block's beside them."""
    block = 12 * cfg.hidden_size**2 + 2 * cfg.hidden_size * cfg.mlp_size
    gathered = 2 * 2 * value * block / mesh.shape["tensor"] if mesh.shape["fsdp"] > 1 else 0
    return tokens * cfg.hidden_size * value * (4 + (widths - 4) / mesh.shape["tensor"]) + gathered


def _decoding(cfg: AutoencoderConfig, height: int, width: int) -> float:
    return 4.0 * DECODER_ARRAYS * height * width * cfg.channels[0]


def _modulations(cfg: FluxConfig) -> int:
    """Numbers of one step's modulations."""
    return (12 * cfg.depth + 3 * cfg.depth_single_blocks + 2) * cfg.hidden_size


def _image_tokens(height: int, width: int) -> int:
    return height // 16 * (width // 16)
