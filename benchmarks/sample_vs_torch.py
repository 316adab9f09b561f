"""One denoising step (InfuseNet + base model), ours against diffusers' models in PyTorch, eager and compiled.

    python benchmarks/sample_vs_torch.py

A mid-size random model in float32 on the same cores; every contender runs in a process of its own, and the rounds
alternate so that a busy machine is unfair to all alike. Prints one table.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro
from contest import Sizes, medians, report

CONTENDERS = {"infu_jax": "infu_jax (JAX)", "eager": "diffusers, eager", "compile": "diffusers, torch.compile"}


@dataclass(frozen=True)
class Args(Sizes):
    only: Annotated[Literal["infu_jax", "eager", "compile"] | None, tyro.conf.arg(help="Run this contender alone and print JSON.")] = None


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    if args.only:
        print(json.dumps(run_jax(args) if args.only == "infu_jax" else run_torch(args, compiled=args.only == "compile")))
        return
    median = medians(CONTENDERS, args.rounds)
    ours = median["infu_jax"]["step"]
    print(f"\nhidden {args.hidden}, base {args.blocks[0]} + {args.blocks[1]}, InfuseNet {args.infusenet[0]} + {args.infusenet[1]} blocks, ", end="")
    print(f"{args.side**2} image and {args.text} text tokens, float32, medians of {args.rounds} rounds\n")
    print("| | seconds a step | ours / theirs | first step (with compilation), s | peak memory, MiB |\n|---|---|---|---|---|")
    for name, m in median.items():
        print(f"| {CONTENDERS[name]} | {m['step']:.3f} | {ours / m['step']:.2f} | {m['first']:.1f} | {m['peak'] / 2**20:.0f} |")


def run_jax(args: Args) -> dict[str, float]:
    import jax
    import jax.numpy as jnp
    import numpy as np
    from flax import nnx

    from infu_jax import flow, latents, parking, programs, sampler
    from infu_jax.checkpoint import abstract
    from infu_jax.config import FluxConfig, InfuseNetConfig
    from infu_jax.models.flux import rope

    sizes = dict(hidden_size=args.hidden, num_heads=args.heads, axes_dim=args.axes)
    base_cfg = FluxConfig(depth=args.blocks[0], depth_single_blocks=args.blocks[1], **sizes)
    infuse_cfg = InfuseNetConfig(depth=args.infusenet[0], depth_single_blocks=args.infusenet[1], **sizes)
    draw = np.random.default_rng(0).standard_normal

    def fill(model: str, cfg):  # one parameter at a time, as loading from a file does
        graph, state = nnx.split(abstract(model, cfg))
        return nnx.merge(graph, jax.tree.map(lambda x: jnp.asarray(draw(x.shape, np.float32) * 0.02), state))

    flux, infusenet = fill("flux", base_cfg), fill("infusenet", infuse_cfg)
    length, side = args.side**2, 2 * args.side
    rand = lambda *shape: jnp.asarray(draw(shape, np.float32))  # noqa: E731
    given = sampler.Conditions(
        text=sampler.Text(rand(1, args.text, 4096), rand(1, 768)),
        pe=rope(latents.position_ids(args.text, side, side), base_cfg),
        guidance=jnp.full(1, 3.5),
        identity=sampler.Identity(rand(1, 8, 4096), rand(1, length, 64), rope(latents.position_ids(8, side, side), infuse_cfg), jnp.ones(1), jnp.asarray(1.0)),
        negative=None,
        true_cfg=jnp.asarray(1.0),
    )
    schedule = jax.tree.map(jnp.asarray, flow.schedule(args.steps, length, flow.ScheduleConfig()))

    def steps(first: int, last: int) -> None:
        modulation = lambda model, guidance: programs.modulation(model, schedule.model_times, given.text.y, guidance, dtype=jnp.float32)  # noqa: E731
        tables = sampler.Tables(modulation(flux, given.guidance), modulation(infusenet, given.identity.guidance), None)
        z = rand(1, length, 64)
        programs.steps(
            parking.without_modulations(flux), parking.without_modulations(infusenet), z, schedule, first, last, given, tables, dtype=jnp.float32
        ).block_until_ready()

    return _timed(args, steps)


def run_torch(args: Args, compiled: bool) -> dict[str, float]:
    import torch
    from diffusers import FluxControlNetModel, FluxTransformer2DModel

    sizes = dict(num_attention_heads=args.heads, attention_head_dim=args.hidden // args.heads, axes_dims_rope=args.axes, guidance_embeds=True)
    base = FluxTransformer2DModel(num_layers=args.blocks[0], num_single_layers=args.blocks[1], **sizes).eval()
    infuse = FluxControlNetModel(num_layers=args.infusenet[0], num_single_layers=args.infusenet[1], **sizes).eval()
    length = args.side**2
    txt, y, id_tokens, control = torch.randn(1, args.text, 4096), torch.randn(1, 768), torch.randn(1, 8, 4096), torch.randn(1, length, 64)
    rows, columns = torch.meshgrid(torch.arange(args.side), torch.arange(args.side), indexing="ij")
    img_ids = torch.stack([torch.zeros_like(rows), rows, columns], -1).reshape(-1, 3).float()
    times = torch.linspace(1, 0, args.steps + 1)

    def step(z, t, t_next):
        common = dict(timestep=t.expand(1), pooled_projections=y, img_ids=img_ids, return_dict=False)
        double, single = infuse(
            hidden_states=z, controlnet_cond=control, guidance=torch.ones(1), encoder_hidden_states=id_tokens, txt_ids=torch.zeros(8, 3), **common
        )
        v = base(
            hidden_states=z, guidance=torch.full((1,), 3.5), encoder_hidden_states=txt, txt_ids=torch.zeros(args.text, 3),
            controlnet_block_samples=double, controlnet_single_block_samples=single, **common,
        )[0]  # fmt: skip
        return z + (t_next - t) * v

    step = torch.compile(step) if compiled else step

    @torch.inference_mode()
    def steps(first: int, last: int) -> None:
        z = torch.randn(1, length, 64)
        for k in range(first, last):
            z = step(z, times[k], times[k + 1])

    return _timed(args, steps)


def _timed(args: Args, steps) -> dict[str, float]:
    began = time.perf_counter()
    steps(0, 1)
    first = time.perf_counter() - began
    steps(0, 1)
    began = time.perf_counter()
    steps(0, args.steps)
    seconds = (time.perf_counter() - began) / args.steps
    return report(first, seconds)


if __name__ == "__main__":
    main()
