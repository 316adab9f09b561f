"""What RoPE costs on a TPU: by strides, as it is usually written, and by a product with zeros and ones, as `infu_jax.models.flux` has it there.

    python benchmarks/rope.py

Compiles for a TPU that need not be there (libtpu must be installed, see docs/performance.md) what one block of FLUX.1 does around its attention: the
projection to queries, keys and values, their norms, RoPE, the attention kernel, the projection back. Prints the compiler's counts. Its FLOPs
leave out the attention kernel, its bytes are those of all operations, and nothing is timed.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import tyro


@dataclass(frozen=True)
class Args:
    topology: str = "v6e:1x1"
    tokens: int = 4400
    """Text and image tokens; 864 x 1152 with 512 of text."""


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    print(f"{args.topology}, {args.tokens} tokens\n\n| RoPE | GB read and written | GFLOP | temporary, MiB |\n|---|---|---|---|")
    for name in ("by strides", "by a product"):
        print(f"{name} ...", file=sys.stderr)
        moved, count, temporary = costs(args, name)
        print(f"| {name} | {moved / 1e9:.2f} | {count / 1e9:.0f} | {temporary / 2**20:.0f} |", flush=True)


def costs(args: Args, name: str) -> tuple[float, float, int]:
    """Bytes, FLOPs and temporary bytes of one block in a loop over eight."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P

    from infu_jax.attention import attention
    from infu_jax.checkpoint import abstract, params_of, with_params
    from infu_jax.config import FluxConfig
    from infu_jax.models import flux
    from infu_jax.models.layers import scan
    from infu_jax.plan import chips
    from infu_jax.sharding import make_mesh, on_chip

    rotate = {"by strides": flux._rotate_pairs, "by a product": flux._rotate_by_product}[name]
    mesh, cfg = make_mesh(devices=chips.devices(args.topology)[:1]), FluxConfig(depth=0, depth_single_blocks=8)
    where = NamedSharding(mesh, P())
    array = lambda shape, dtype, sharding=where: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)  # noqa: E731
    module = abstract("flux", cfg)
    placed = {path: array(s.shape, jnp.bfloat16, on_chip(path, where)) for path, s in params_of(module).items()}
    blocks = with_params(module, placed).single_blocks

    def attend(blocks, x, cos, sin):
        def step(block, x, _):
            q, k, v = (block.qkv(x)[:, :, i] for i in range(3))
            q, k = (rotate(norm(y), cos[:, None], sin[:, None]) for norm, y in ((block.q_norm, q), (block.k_norm, k)))
            return x + block.attn_out(attention(q, k, v)), None

        return scan(step, blocks, x)[0]

    angles = array((args.tokens, sum(cfg.axes_dim) // 2), jnp.float32)
    with jax.set_mesh(mesh):
        program = jax.jit(attend).lower(blocks, array((1, args.tokens, cfg.hidden_size), jnp.bfloat16), angles, angles).compile()
    counted = program.cost_analysis()
    return counted["bytes accessed"], counted["flops"], program.memory_analysis().temp_size_in_bytes


if __name__ == "__main__":
    main()
