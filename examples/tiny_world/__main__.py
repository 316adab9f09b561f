"""The tiny world: every model trained from nothing on drawn people, and the paper's claims checked on people never seen.

    python -m examples.tiny_world                          hours on two cores; the same command again goes on where it was
    python -m examples.tiny_world --size gpu               more people and more steps, for one GPU with a dozen cores beside it
    python -m examples.tiny_world --size smoke --out runs/smoke        minutes: the whole chain, nothing learned
    python -m examples.tiny_world --until stage1           stop after a stage
    python -m examples.tiny_world --given infu_jax/assets/tiny         with the autoencoder, recogniser and base of the package

Stages, in order: draw, recogniser, autoencoder, decoder, stack, data, base, stage1, judge, classifier, scorer, synthesis, stage2, evaluation, release.
docs/tiny_world.md has times and results.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from infu_jax.cli import check_writable, run
from infu_jax.errors import InputError

Stage = Literal[
    "draw", "recogniser", "autoencoder", "decoder", "stack", "data", "base", "stage1",
    "judge", "classifier", "scorer", "synthesis", "stage2", "evaluation", "release",
]  # fmt: skip
GIVEN = ("recogniser", "autoencoder", "decoder", "stack", "base")  # stages whose results --given holds


@dataclass(frozen=True)
class Args:
    out: Path = Path("runs/tiny_world")
    """Folder for everything."""
    size: Literal["full", "gpu", "smoke"] = "full"
    """full is for two CPU cores. smoke trains nothing worth the name."""
    until: Stage = "release"
    """The last stage to run."""
    only: Stage | None = None
    """Run this stage alone; what comes before it must be there."""
    given: Path | None = None
    """A stack, as the stage release writes it: its recogniser, autoencoder and base model are taken, and not trained, and evaluation looks at its
    InfuseNet too. `--only base` and `--only decoder` train these further, `--only recogniser` makes another one."""


def main() -> None:
    args = tyro.cli(Args, prog="python -m examples.tiny_world", description=__doc__)
    check_writable(args.out)
    asked = Stage.__args__[: Stage.__args__.index(args.until) + 1]
    if args.given is not None and not (args.given / "provenance.json").is_file():
        raise InputError(f"{args.given} has no provenance.json; --given takes a stack that the stage release wrote, such as infu_jax/assets/tiny")
    if args.given is not None and args.only in ("autoencoder", "stack"):
        raise InputError(f"--given holds what {args.only} makes, and what is trained on it needs it as it is; leave --given out to make another")
    # This process and the commands that it starts share a GPU: none takes more of it than it needs.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    # Several stages run the same programs; each is compiled once. For the commands that stages start, too.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str((args.out / "programs").absolute()))
    # Two simulated devices keep two cores busy where one device with two threads does not. GPUs and TPUs do not mind.
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
    from examples.tiny_world import sizes, stages

    world = stages.World(args.out, {"full": sizes.FULL, "gpu": sizes.GPU, "smoke": sizes.SMOKE}[args.size], args.given)
    args.out.mkdir(parents=True, exist_ok=True)
    names = [args.only] if args.only else [name for name in asked if args.given is None or name not in GIVEN]
    for name in names:
        print(f"--- {name}", flush=True)
        began = time.time()
        getattr(stages, name)(world)
        with (args.out / "times.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"stage": name, "seconds": round(time.time() - began, 1), "cores": os.cpu_count()}) + "\n")


if __name__ == "__main__":
    run(main)
