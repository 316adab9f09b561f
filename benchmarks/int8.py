"""What int8 weights cost in accuracy and save in memory: velocities of the base model, and pictures of the embedded stack.

    python benchmarks/int8.py

Errors are relative to float32 weights and computation, as root mean squares. Beside int8 stands bfloat16, which all of it is usually kept and
computed in. Random models have normal weights, or heavy-tailed ones (Student's t with 5 degrees of freedom, which leave most integers small),
and modulations strong enough for all blocks to be at work: deep models gather more error. Temporary memory is what the compiler states of
one forward pass, computed in float32 on this machine. Prints two tables.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from dataclasses import dataclass

import tyro


@dataclass(frozen=True)
class Args:
    sizes: tuple[str, ...] = ("256:4:8", "256:19:38")
    """Random models, as hidden size:double blocks:single blocks."""
    modulation: float = 0.3
    """Size of their modulations' weights; 1 is that of all others, 1 / sqrt(inputs)."""
    side: int = 16
    """Image tokens along each side."""
    text: int = 64


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    print("| random model | bfloat16 | int8, computed in float32 | int8, computed in bfloat16 | MiB of weights: float32, int8 | temporary |")
    print("|---|---|---|---|---|---|")
    for size in args.sizes:
        hidden, double, single = map(int, size.split(":"))
        for tails in ("normal", "heavy"):
            print(f"{size}, {tails} ...", file=sys.stderr)
            errors, weights, temporary = velocities(args, hidden, double, single, heavy=tails == "heavy")
            row = [f"hidden {hidden}, {double} + {single} blocks, {tails}", *(f"{x:.2%}" for x in errors)]
            row += [", ".join(f"{x / 2**20:.0f}" for x in pair) for pair in (weights, temporary)]
            print(f"| {' | '.join(row)} |", flush=True)
    print("\n| embedded stack, rounded: | velocity | PSNR of the pictures |\n|---|---|---|")
    for name, off, ratio in pictures():
        print(f"| {name} | {off:.2%} | {ratio:.1f} dB |")


def velocities(args: Args, hidden: int, double: int, single: int, *, heavy: bool):
    """Errors of a random base model's velocity; bytes of weights and of temporaries, in float32 and int8."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from infu_jax import quantize
    from infu_jax.checkpoint import HostParam, abstract, param_shapes, with_params
    from infu_jax.config import FluxConfig
    from infu_jax.latents import position_ids
    from infu_jax.models.flux import rope
    from infu_jax.sharding import make_mesh

    sizes = dict(vec_in_dim=64, context_in_dim=128, num_heads=hidden // 64, axes_dim=(8, 28, 28))
    cfg = FluxConfig(hidden_size=hidden, depth=double, depth_single_blocks=single, **sizes)
    module, draw = abstract("flux", cfg), np.random.default_rng(0)

    def weights(path: str, shape: tuple[int, ...]):
        if not path.endswith("kernel"):
            return 0.02 * draw.standard_normal(shape, np.float32) + path.endswith("scale")
        first = "blocks" in path  # after the layer axis, if there is one
        inputs = math.prod(shape[first : first + 1 + ("attn_out" in path)])
        x = draw.standard_t(5, shape) / math.sqrt(5 / 3) if heavy else draw.standard_normal(shape)
        return np.float32(x / math.sqrt(inputs) * (args.modulation if "blocks" in path and "mod" in path else 1))

    params = {path: weights(path, s.shape) for path, s in param_shapes(module).items()}
    stored = {path: HostParam(x.shape, x.dtype, lambda box, x=x: x[tuple(slice(*b) for b in box)]) for path, x in params.items()}

    def kept(dtype):
        return with_params(module, {path: jnp.asarray(x, dtype) for path, x in params.items()})

    def rounded(dtype):
        return quantize.load("flux", module, stored, make_mesh(devices=jax.devices()[:1]), dtype)

    shapes = ((1, args.side**2, cfg.in_channels), (1, args.text, cfg.context_in_dim), (1, cfg.vec_in_dim))
    img, txt, y = (jnp.asarray(draw.standard_normal(shape, np.float32)) for shape in shapes)
    pe = rope(position_ids(args.text, 2 * args.side, 2 * args.side), cfg)
    run = jax.jit(lambda flux, img: flux(img, txt, pe, jnp.full(1, 0.5), y, jnp.full(1, 3.5)))

    def velocity(flux, dtype):
        compiled = run.lower(flux, img.astype(dtype)).compile()
        memory = compiled.memory_analysis()
        return np.float32(compiled(flux, img.astype(dtype))), sum(x.nbytes for x in jax.tree.leaves(flux)), memory.temp_size_in_bytes

    made = [velocity(keep(dtype), dtype) for keep in (kept, rounded) for dtype in (jnp.float32, jnp.bfloat16)]
    (exact, *others), sizes, temporary = zip(*made)
    return [float(np.linalg.norm(x - exact) / np.linalg.norm(exact)) for x in others], sizes[::2], temporary[::2]


def pictures():
    """(what is rounded, largest error of the velocity over the steps, PSNR) of one person in the demo's four scenes."""
    import numpy as np

    from infu_jax import demo, face, quantize
    from infu_jax.assets import ASSETS, TINY, TINY_SAMPLING
    from infu_jax.pipeline import InfUPipeline

    places = TINY / "FLUX.1-tiny", TINY / "InfiniteYou-tiny"
    plain, rounded = InfUPipeline.load(*places), InfUPipeline.load(*places, weights="int8")
    photo = face.read_image(ASSETS / "faces" / "ada.png")

    def paint(pipeline):
        return pipeline([prompt.format("woman") for prompt in demo.PROMPTS], id_image=photo, seeds=1, settings=TINY_SAMPLING, trace=True).trace

    exact = paint(plain)
    for names in (("flux",), ("infusenet",), ("t5",), quantize.MODELS):
        made = paint(dataclasses.replace(plain, **{name: getattr(rounded, name) for name in names}))
        off = max(np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in zip(made["velocity"], exact["velocity"]))
        yield ", ".join(names), float(off), float(10 * np.log10(4 / np.square(made["image"] - exact["image"]).mean()))


if __name__ == "__main__":
    main()
