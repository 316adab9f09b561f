"""A model of some size, and contenders that take turns at it, each in a process of its own: a busy machine is unfair to all alike."""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import tyro

FULL = dict(hidden=3072, heads=24, blocks=(19, 38), infusenet=(4, 10), dtype="bfloat16", rounds=1)


@dataclass(frozen=True)
class Sizes:
    full: bool = False
    """FLUX.1-dev and InfuseNet 4 + 10 in bfloat16, for a GPU of 80 GB or more; what is given beside it still counts."""
    hidden: int = 768
    heads: int = 6
    blocks: tuple[int, int] = (4, 8)
    """Double and single blocks of the base model."""
    infusenet: tuple[int, int] = (1, 2)
    """Double and single blocks of InfuseNet."""
    image: tuple[int, int] = (32, 32)
    """Rows and columns of image tokens, of 16 x 16 pixels each."""
    text: int = 512
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What is computed in. InfuseNet's weights stay float32 where they are trained."""
    steps: int = 4
    """Timed steps a round."""
    rounds: int = 3

    @property
    def axes(self) -> tuple[int, int, int]:
        """Of RoPE, shared out as in FLUX.1."""
        head = self.hidden // self.heads
        return (head // 8, head * 7 // 16, head * 7 // 16)

    @property
    def tokens(self) -> int:
        """Of the image."""
        return self.image[0] * self.image[1]

    @property
    def configs(self):
        """Of the base model and InfuseNet."""
        from infu_jax.config import FluxConfig, InfuseNetConfig

        sizes = dict(hidden_size=self.hidden, num_heads=self.heads, axes_dim=self.axes)
        base = FluxConfig(depth=self.blocks[0], depth_single_blocks=self.blocks[1], **sizes)
        return base, InfuseNetConfig(depth=self.infusenet[0], depth_single_blocks=self.infusenet[1], **sizes)

    def __str__(self) -> str:
        (double, single), (own_double, own_single) = self.blocks, self.infusenet
        sizes = f"hidden {self.hidden}, base {double} + {single}, InfuseNet {own_double} + {own_single} blocks"
        return f"{sizes}, {self.tokens} image and {self.text} text tokens, {self.dtype}, medians of {self.rounds} rounds"


Args = TypeVar("Args", bound=Sizes)


def command_line(kind: type[Args], description: str, image: tuple[int, int]) -> Args:
    """The options given. `image`: rows and columns of tokens of the full size."""
    default = kind()
    return tyro.cli(kind, default=replace(default, image=image, **FULL) if "--full" in sys.argv else default, description=description)


def medians(contenders: Mapping[str, str], rounds: int, *options: str) -> dict[str, dict]:
    """What each contender (name -> what it is called) reports, in the median of all rounds."""
    reports: dict[str, list[dict]] = {name: [] for name in contenders}
    for n in range(rounds):
        for name, called in contenders.items():
            print(f"round {n + 1} of {rounds}: {called} ...", file=sys.stderr)
            reports[name].append(run(name, *options))
    return {name: {k: v if k == "device" else statistics.median(r[k] for r in rs) for k, v in rs[0].items()} for name, rs in reports.items()}


def run(name: str, *options: str) -> dict:
    """This same script for one contender alone, which prints `report`."""
    command = [sys.executable, *sys.argv, "--only", name, *options]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def report(first: float, step: float) -> dict:
    """Of one contender: seconds of its first step, with compilation, and of a later one; what it ran on; and the most memory so far, in
    bytes, of that or, for a CPU, of the process."""
    device, peak = "CPU", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if torch := sys.modules.get("torch"):
        if torch.cuda.is_available():
            device, peak = torch.cuda.get_device_name(), torch.cuda.max_memory_allocated()
    else:
        import jax

        if jax.default_backend() != "cpu":
            device, peak = jax.devices()[0].device_kind, jax.devices()[0].memory_stats()["peak_bytes_in_use"]
    return dict(first=first, step=step, peak=peak, device=device)


def print_table(contenders: Mapping[str, str], median: Mapping[str, Mapping], flops: float) -> None:
    """One row for each contender beside ours, or the first where ours is not among them, in Markdown. `flops`: the least that a step has to compute."""
    from infu_jax.flops import peak

    ours = median.get("infu_jax", next(iter(median.values())))
    print("| | device | ms a step | ours / theirs | share of the peak in bfloat16 | first step (with compilation), s | peak memory, GiB | ours / theirs |")
    print("|---|---|---|---|---|---|---|---|")
    for name, m in median.items():
        most = peak(m["device"])
        share = f"{flops / m['step'] / most:.0%}" if most else "-"
        times = f"{m['step'] * 1e3:.0f} | {ours['step'] / m['step']:.2f} | {share} | {m['first']:.1f}"
        print(f"| {contenders[name]} | {m['device']} | {times} | {m['peak'] / 2**30:.2f} | {ours['peak'] / m['peak']:.2f} |")


def drawn(model: str, cfg, dtype: str):
    """One of ours with weights of deviation 0.02."""
    import jax

    from infu_jax.checkpoint import abstract, params_of, with_params

    draw = jax.jit(lambda key, shape: 0.02 * jax.random.normal(key, shape, dtype), static_argnums=1)
    module = abstract(model, cfg)
    shapes = {path: x.shape for path, x in params_of(module).items()}
    keys = jax.random.split(jax.random.key(0, impl="rbg"), len(shapes))  # several times faster than JAX's default
    with ThreadPoolExecutor() as pool:  # a program for each shape
        return with_params(module, dict(zip(shapes, pool.map(draw, keys, shapes.values()))))


def torch_device() -> str:
    """What PyTorch is to run on."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def fill(*modules) -> None:
    """As `drawn`, for PyTorch's."""
    import torch

    with torch.no_grad():
        for module in modules:
            for p in module.parameters():
                p.normal_(0, 0.02)


def compile_blocks(*models) -> None:
    """Each kind of block is compiled once for each model, as diffusers advises for large models (`compile_repeated_blocks`)."""
    for model in models:
        for block in (*model.transformer_blocks, *model.single_transformer_blocks):
            block.compile(fullgraph=True, dynamic=False)
