"""One training step of InfuseNet and the resampler under a frozen base: ours against diffusers' models in PyTorch.

    python benchmarks/train_vs_torch.py            # mid size in float32
    python benchmarks/train_vs_torch.py --full     # FLUX.1-dev and InfuseNet 4 + 10 in bfloat16, 1024 x 1024, on a GPU

Forward, backward, clipping and AdamW of random models on the same device, a GPU where JAX and PyTorch see one, from features computed ahead,
so that only what is trained and the base run. PyTorch computes each block again in the backward pass (diffusers' gradient checkpointing), as
ours does, or keeps everything, or is compiled. Ours is also started with the program that an earlier start compiled, as a run that goes on is.
Every contender runs in a process of its own, and the rounds alternate so that a busy machine is unfair to all alike. Prints one table.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from contest import Sizes, command_line, compile_blocks, drawn, fill, medians, print_table, report, run, torch_device

Contender = Literal["infu_jax", "again", "dots", "checkpointing", "eager", "compile"]
CONTENDERS: dict[Contender, str] = {
    "infu_jax": "infu_jax (JAX), remat block",
    "again": "the same, started again (--compilation-cache)",
    "dots": "infu_jax (JAX), remat dots",
    "checkpointing": "diffusers, gradient checkpointing",
    "eager": "diffusers, everything kept",
    "compile": "diffusers, gradient checkpointing, torch.compile",
}


@dataclass(frozen=True)
class Args(Sizes):
    batch: int = 1
    contenders: tuple[Contender, ...] = tuple(CONTENDERS)
    cache: Path | None = None
    """Where the contender `again` keeps its program; by default a temporary folder."""
    only: Annotated[Contender | None, tyro.conf.arg(help="Run this contender alone and print JSON.")] = None


QUERIES = 8  # ID tokens
RATE, DECAY, CLIP = 2e-5, 0.01, 1.0


def main() -> None:
    args = command_line(Args, __doc__, image=(64, 64))
    if args.only:
        print(json.dumps(run_jax(args) if args.only in ("infu_jax", "again", "dots") else run_torch(args)))
        return
    from infu_jax import flops

    base, infusenet = args.configs
    needed = args.batch * flops.train_flops(base, infusenet, args.tokens, args.text, QUERIES)
    with tempfile.TemporaryDirectory() as folder:
        cache = ("--cache", str(args.cache or folder))
        if "again" in args.contenders:
            print("the first start of the contender that starts again ...", file=sys.stderr)
            run("again", *cache, "--steps", "1")
        median = medians({name: CONTENDERS[name] for name in args.contenders}, args.rounds, *cache)
    print(f"\n{args}, batch {args.batch}; {needed / 1e12:.1f} TFLOP a step at least\n")
    print_table(CONTENDERS, median, needed)


def run_jax(args: Args) -> dict:
    import jax
    import jax.numpy as jnp
    import numpy as np

    if args.only == "again":
        jax.config.update("jax_compilation_cache_dir", str(args.cache))

    from infu_jax import training
    from infu_jax.checkpoint import abstract, params_of
    from infu_jax.config import AutoencoderConfig
    from infu_jax.flow import ScheduleConfig
    from infu_jax.sharding import make_mesh, place_batch
    from infu_jax.train_config import OptimizerConfig, TrainConfig

    base, branch = args.configs
    trained = {"infusenet": abstract("infusenet", branch), "resampler": abstract("resampler", resampler_config(args))}
    vae = AutoencoderConfig(channels=(4, 4, 4, 4), norm_groups=2)  # it only knows how latents are scaled
    draw = np.random.default_rng(0).standard_normal

    optimizer = OptimizerConfig(learning_rate=RATE, weight_decay=DECAY, clip_norm=CLIP, warmup_steps=0)
    cfg = TrainConfig(out=Path("nowhere"), batch_size=args.batch, remat="dots" if args.only == "dots" else "block", dtype=args.dtype, optimizer=optimizer)
    mesh = make_mesh(devices=jax.devices()[:1])
    state_shapes = training.abstract_state(cfg, trained, mesh)
    frozen = {"flux": drawn("flux", base, args.dtype), "autoencoder": drawn("autoencoder", vae, args.dtype)}
    params = {"infusenet": params_of(drawn("infusenet", branch, "float32")), "resampler": params_of(drawn("resampler", resampler_config(args), "float32"))}
    state = training.init_state(cfg, params, state_shapes)
    step = training.make_step(cfg, trained, state_shapes, mesh, ScheduleConfig(), jnp.dtype(args.dtype))
    cells = (args.batch, *(2 * n for n in args.image), 16)
    shapes = {"txt": (args.batch, args.text, 4096), "y": (args.batch, 768), "id_embedding": (args.batch, 512)}
    shapes |= {name: cells for name in ("latent_mean", "latent_logvar", "control_mean", "control_logvar")}
    batch = {name: draw(shape, np.float32) for name, shape in shapes.items()} | {"id_keep": np.ones(args.batch, bool)}

    def train() -> None:
        nonlocal state
        state, metrics = step(state, frozen, place_batch(mesh, batch, args.batch), None)
        training.check_finite(0, jax.device_get(metrics), [], "")

    with jax.set_mesh(mesh):
        return _timed(args, train)


def run_torch(args: Args) -> dict:
    import torch
    from diffusers import FluxControlNetModel, FluxTransformer2DModel
    from diffusers.models.embeddings import IPAdapterPlusImageProjection

    device, dtype = torch_device(), getattr(torch, args.dtype)
    sizes = dict(num_attention_heads=args.heads, attention_head_dim=args.hidden // args.heads, axes_dims_rope=args.axes, guidance_embeds=True)
    r = resampler_config(args)
    with torch.device(device):
        torch.set_default_dtype(dtype)
        base = FluxTransformer2DModel(num_layers=args.blocks[0], num_single_layers=args.blocks[1], **sizes).requires_grad_(False).train()
        torch.set_default_dtype(torch.float32)  # of what is trained; it computes in `dtype`
        infuse = FluxControlNetModel(num_layers=args.infusenet[0], num_single_layers=args.infusenet[1], **sizes).train()
        resampler = IPAdapterPlusImageProjection(
            embed_dims=r.embedding_dim, output_dims=r.output_dim, hidden_dims=r.dim, depth=r.depth, dim_head=r.dim_head, heads=r.heads, num_queries=QUERIES
        ).train()
    fill(base, infuse, resampler)
    if args.only != "eager":
        base.enable_gradient_checkpointing()
        infuse.enable_gradient_checkpointing()
    trained = [*infuse.parameters(), *resampler.parameters()]
    optimizer = torch.optim.AdamW(trained, RATE, betas=(0.9, 0.999), weight_decay=DECAY, fused=True)

    batch = args.batch
    with torch.device(device):
        txt, y, embedding = torch.randn(batch, args.text, 4096), torch.randn(batch, 768), torch.randn(batch, 1, 512)
        mean, logvar, control_mean, control_logvar = torch.randn(4, batch, args.tokens, 64)
        txt_ids, id_ids, guidance = torch.zeros(args.text, 3), torch.zeros(QUERIES, 3), torch.ones(batch)
        rows, columns = torch.meshgrid(torch.arange(args.image[0]), torch.arange(args.image[1]), indexing="ij")
        img_ids = torch.stack([torch.zeros_like(rows), rows, columns], -1).reshape(-1, 3).float()

    def latents(mean, logvar):
        return (mean + torch.exp(0.5 * logvar) * torch.randn_like(mean) - 0.1159) * 0.3611

    def loss_of(t):
        x0, control, noise = latents(mean, logvar), latents(control_mean, control_logvar), torch.randn_like(mean)
        z = (1 - t[:, None, None]) * x0 + t[:, None, None] * noise
        common = dict(hidden_states=z, timestep=t, guidance=guidance, pooled_projections=y, img_ids=img_ids, return_dict=False)
        double, single = infuse(controlnet_cond=control, encoder_hidden_states=resampler(embedding), txt_ids=id_ids, **common)
        residuals = dict(controlnet_block_samples=double, controlnet_single_block_samples=single)
        v = base(encoder_hidden_states=txt, txt_ids=txt_ids, **residuals, **common)[0]
        return torch.square(v - (noise - x0)).mean()

    if args.only == "compile" and args.full:
        compile_blocks(base, infuse)
    elif args.only == "compile":
        loss_of = torch.compile(loss_of)

    def train() -> None:
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            loss = loss_of(torch.sigmoid(torch.randn_like(guidance)))
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(trained, CLIP)
        assert torch.isfinite(loss) and torch.isfinite(norm)
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()

    return _timed(args, train)


def _timed(args: Args, train: Callable[[], None]) -> dict:
    seconds = []
    for _ in range(1 + args.steps):
        began = time.perf_counter()
        train()
        seconds.append(time.perf_counter() - began)
    return report(seconds[0], statistics.median(seconds[1:]))


def resampler_config(args: Args):
    """As wide beside the base as the release's: 1280 beside 3072."""
    from infu_jax.config import ResamplerConfig

    heads = args.hidden * 20 // 3072
    return ResamplerConfig(dim=64 * heads, heads=heads, num_queries=QUERIES, embedding_dim=512, output_dim=4096)


if __name__ == "__main__":
    main()
