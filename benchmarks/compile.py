"""Time to compile a denoising step and a training step, whose blocks are scanned, beside the same steps with the blocks one after the other.

    python benchmarks/compile.py

A mid-size stack with abstract weights; nothing is computed. Every case runs in a process of its own, without JAX's cache of programs. Prints one table.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

STEPS = {"sampling": "denoising step", "training": "training step"}


@dataclass(frozen=True)
class Args:
    hidden: int = 384
    heads: int = 3
    blocks: tuple[int, int] = (6, 12)
    """Double and single blocks of the base model; the release has 19 and 38."""
    infusenet: tuple[int, int] = (2, 4)
    """Double and single blocks of InfuseNet; the release has 4 and 10."""
    side: int = 16
    """Image tokens along each side."""
    text: int = 64
    rounds: int = 1
    only: Annotated[Literal["sampling", "training"] | None, tyro.conf.arg(help="Compile this step alone and print JSON.")] = None
    unrolled: bool = False
    """With --only: blocks one after the other."""


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    if args.only:
        print(json.dumps(measure(args)))
        return
    found: dict[tuple[str, bool], list[dict]] = {(step, unrolled): [] for step in STEPS for unrolled in (False, True)}
    env = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    for n in range(args.rounds):
        for step, unrolled in found:
            print(f"round {n + 1} of {args.rounds}: {STEPS[step]}{', unrolled' if unrolled else ''} ...", file=sys.stderr)
            command = [sys.executable, __file__, *sys.argv[1:], "--only", step, *(["--unrolled"] if unrolled else [])]
            out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=env).stdout
            found[step, unrolled].append(json.loads(out.splitlines()[-1]))
    print(f"\nhidden {args.hidden}, base {args.blocks[0]} + {args.blocks[1]}, InfuseNet {args.infusenet[0]} + {args.infusenet[1]} blocks, ", end="")
    print(
        f"medians of {args.rounds} rounds, seconds\n\n| | tracing | compiling | unrolled: tracing | compiling | scanned / unrolled |\n|---|---|---|---|---|---|"
    )
    for step, name in STEPS.items():
        ours, theirs = ({k: statistics.median(r[k] for r in found[step, unrolled]) for k in ("trace", "compile")} for unrolled in (False, True))
        times = " | ".join(f"{x:.1f}" for x in (*ours.values(), *theirs.values()))
        print(f"| {name} | {times} | {sum(ours.values()) / sum(theirs.values()):.2f} |")


def measure(args: Args) -> dict[str, float]:
    import jax
    import jax.numpy as jnp
    import optax

    from infu_jax import flow, latents, parking, programs, sampler
    from infu_jax.checkpoint import abstract, params_of, with_params
    from infu_jax.config import FluxConfig, InfuseNetConfig
    from infu_jax.models import flux, infusenet

    if args.unrolled:
        flux.scan = infusenet.scan = one_after_the_other
        velocity = sampler.velocity
        # Not beside each other: the loop over a part of the base's blocks would stay a loop.
        sampler.velocity = lambda *given, **options: velocity(*given, **{**options, "beside": False})
    head = args.hidden // args.heads
    sizes = dict(hidden_size=args.hidden, num_heads=args.heads, axes_dim=(head // 8, head * 7 // 16, head * 7 // 16), context_in_dim=512)
    base_cfg = FluxConfig(depth=args.blocks[0], depth_single_blocks=args.blocks[1], **sizes)
    infuse_cfg = InfuseNetConfig(depth=args.infusenet[0], depth_single_blocks=args.infusenet[1], **sizes)
    base, infuse, length, side = abstract("flux", base_cfg), abstract("infusenet", infuse_cfg), args.side**2, 2 * args.side
    given = sampler.Conditions(
        text=sampler.Text(jnp.ones((1, args.text, 512)), jnp.ones((1, 768))),
        pe=flux.rope(latents.position_ids(args.text, side, side), base_cfg),
        guidance=jnp.ones(1),
        identity=sampler.Identity(
            jnp.ones((1, 8, 512)), jnp.ones((1, length, 64)), flux.rope(latents.position_ids(8, side, side), infuse_cfg), jnp.ones(1), jnp.ones(())
        ),
        negative=None,
        true_cfg=jnp.ones(()),
    )
    z = jnp.ones((1, length, 64))
    if args.only == "sampling":
        schedule = jax.tree.map(jnp.asarray, flow.schedule(4, length, flow.ScheduleConfig()))
        modulation = lambda model: jax.eval_shape(  # noqa: E731
            lambda model, *xs: programs.modulation(model, *xs, dtype=jnp.float32), model, schedule.model_times, given.text.y, given.guidance
        )
        tables = sampler.Tables(modulation(base), modulation(infuse), None)
        weights = (parking.without_modulations(base), parking.without_modulations(infuse))
        lower = lambda: programs.steps().lower(*weights, z, schedule, 0, 1, given, tables, dtype=jnp.float32)  # noqa: E731
    else:
        tx, params = optax.adamw(1e-4), params_of(infuse)

        def step(params, moments, base, z, target):
            def loss(params):
                return jnp.square(sampler.velocity(base, with_params(infuse, params), z, jnp.full(1, 0.5), given, jnp.float32)[0] - target).mean()

            grads = jax.grad(loss)(params)
            updates, moments = tx.update(grads, moments, params)
            return optax.apply_updates(params, updates), moments

        lower = lambda: jax.jit(step, donate_argnums=(0, 1)).lower(params, jax.eval_shape(tx.init, params), base, z, z)  # noqa: E731
    began = time.perf_counter()
    lowered = lower()
    traced = time.perf_counter()
    lowered.compile()
    return {"trace": traced - began, "compile": time.perf_counter() - traced}


def one_after_the_other(step, blocks, carry, xs=None, *, remat="block"):
    """As `models.layers.scan`, without a loop."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    graph, weights = nnx.split(blocks)
    body = jax.checkpoint(lambda carry, layer: step(nnx.merge(graph, layer[0]), carry, layer[1]))
    ys = []
    for n in range(len(jax.tree.leaves(weights)[0])):
        carry, y = body(carry, jax.tree.map(lambda w, n=n: w[n], (weights, xs)))
        ys.append(y)
    return carry, jax.tree.map(lambda *each: jnp.stack(each), *ys) if ys else None


if __name__ == "__main__":
    main()
