"""One denoising step (InfuseNet + base model), ours against diffusers' models in PyTorch, eager and compiled.

    python benchmarks/sample_vs_torch.py            # mid size in float32
    python benchmarks/sample_vs_torch.py --full     # FLUX.1-dev and InfuseNet 4 + 10 in bfloat16, 864 x 1152, on a GPU

Random models on the same device, a GPU where JAX and PyTorch see one; every contender runs in a process of its own, and the rounds
alternate so that a busy machine is unfair to all alike. Prints one table.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro
from contest import Sizes, command_line, compile_blocks, drawn, fill, medians, print_table, report, torch_device

CONTENDERS = {"infu_jax": "infu_jax (JAX)", "eager": "diffusers, eager", "compile": "diffusers, torch.compile"}

QUERIES = 8  # ID tokens


@dataclass(frozen=True)
class Args(Sizes):
    only: Annotated[Literal["infu_jax", "eager", "compile"] | None, tyro.conf.arg(help="Run this contender alone and print JSON.")] = None


def main() -> None:
    args = command_line(Args, __doc__, image=(72, 54))
    if args.only:
        print(json.dumps(run_jax(args) if args.only == "infu_jax" else run_torch(args, compiled=args.only == "compile")))
        return
    from infu_jax import flops

    base, infusenet = args.configs
    needed = flops.flux_flops(base, args.tokens, args.text) + flops.infusenet_flops(infusenet, args.tokens, QUERIES)
    median = medians(CONTENDERS, args.rounds)
    print(f"\n{args}; {needed / 1e12:.1f} TFLOP a step\n")
    print_table(CONTENDERS, median, needed)


def run_jax(args: Args) -> dict:
    import jax
    import jax.numpy as jnp
    import numpy as np

    from infu_jax import flow, latents, parking, programs, sampler
    from infu_jax.models.flux import rope

    base, branch = args.configs
    flux, infusenet = drawn("flux", base, args.dtype), drawn("infusenet", branch, args.dtype)
    h, w = (2 * n for n in args.image)
    draw, dtype = np.random.default_rng(0).standard_normal, jnp.dtype(args.dtype)
    rand = lambda *shape: jnp.asarray(draw(shape, np.float32))  # noqa: E731
    given = sampler.Conditions(
        text=sampler.Text(rand(1, args.text, 4096), rand(1, 768)),
        pe=rope(latents.position_ids(args.text, h, w), base),
        guidance=jnp.full(1, 3.5),
        identity=sampler.Identity(
            rand(1, QUERIES, 4096), rand(1, args.tokens, 64), rope(latents.position_ids(QUERIES, h, w), branch), jnp.ones(1), jnp.asarray(1.0)
        ),
        negative=None,
        true_cfg=jnp.asarray(1.0),
    )
    schedule = jax.tree.map(jnp.asarray, flow.schedule(args.steps, args.tokens, flow.ScheduleConfig()))
    loop = parking.without_modulations(flux), parking.without_modulations(infusenet)

    def steps(first: int, last: int) -> None:
        modulation = lambda model, guidance: programs.modulation(model, schedule.model_times, given.text.y, guidance, dtype=dtype)  # noqa: E731
        tables = sampler.Tables(modulation(flux, given.guidance), modulation(infusenet, given.identity.guidance), None)
        programs.steps()(*loop, rand(1, args.tokens, 64), schedule, first, last, given, tables, dtype=dtype).block_until_ready()

    return _timed(args, steps)


def run_torch(args: Args, compiled: bool) -> dict:
    import torch
    from diffusers import FluxControlNetModel, FluxTransformer2DModel

    device = torch_device()
    torch.set_default_dtype(getattr(torch, args.dtype))
    sizes = dict(num_attention_heads=args.heads, attention_head_dim=args.hidden // args.heads, axes_dims_rope=args.axes, guidance_embeds=True)
    with torch.device(device):
        base = FluxTransformer2DModel(num_layers=args.blocks[0], num_single_layers=args.blocks[1], **sizes).eval()
        infuse = FluxControlNetModel(num_layers=args.infusenet[0], num_single_layers=args.infusenet[1], **sizes).eval()
        fill(base, infuse)
        y, control = torch.randn(1, 768), torch.randn(1, args.tokens, 64)
        txt, txt_ids, id_tokens, id_ids = torch.randn(1, args.text, 4096), torch.zeros(args.text, 3), torch.randn(1, QUERIES, 4096), torch.zeros(QUERIES, 3)
        rows, columns = torch.meshgrid(torch.arange(args.image[0]), torch.arange(args.image[1]), indexing="ij")
        img_ids = torch.stack([torch.zeros_like(rows), rows, columns], -1).reshape(-1, 3).float()
        times, guidance = torch.linspace(1, 0, args.steps + 1), torch.ones(1)

    def step(z, t, t_next):
        common = dict(hidden_states=z, timestep=t.expand(1), pooled_projections=y, img_ids=img_ids, return_dict=False)
        double, single = infuse(controlnet_cond=control, guidance=guidance, encoder_hidden_states=id_tokens, txt_ids=id_ids, **common)
        residuals = dict(controlnet_block_samples=double, controlnet_single_block_samples=single)
        v = base(guidance=3.5 * guidance, encoder_hidden_states=txt, txt_ids=txt_ids, **residuals, **common)[0]
        return z + (t_next - t) * v

    if compiled and args.full:
        compile_blocks(base, infuse)
    elif compiled:
        step = torch.compile(step)

    @torch.inference_mode()
    def steps(first: int, last: int) -> None:
        z = torch.randn_like(control)
        for k in range(first, last):
            z = step(z, times[k], times[k + 1])
        if device == "cuda":
            torch.cuda.synchronize()

    return _timed(args, steps)


def _timed(args: Args, steps) -> dict:
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
