"""What a training step or a picture takes of each chip of a TPU, or of each GPU, that need not be there: the real program, compiled for it.

    python -m infu_jax.plan configs/infu_stage1.py --topology v5p:2x2x1 --batch-size 4
    python -m infu_jax.plan configs/infu_stage1.py --topology v6e:4x4 --choose --json plan.json
    python -m infu_jax.plan configs/infu_stage1.py --topology h100:8 --batch-size 8 --remat dots
    python -m infu_jax.plan sample --topology v6e:1x1 --width 864 --height 1152 --offload
    python -m infu_jax.plan sample --topology rtx4090:1 --weights int8 --offload
    python -m infu_jax.plan sample --gpu-gib 48

TPUs need `pip install -e ".[tpu]"`, GPUs `".[gpu]"`, and no weights or data: models have the sizes of those on disk, or the release's where
there are none. Memory is what the compiler states. Times, meshes that are proposed and all of `--gpu-gib` are estimates, and say so.
In training, with `--data.features latents control t5 clip arcface` everything but the transformers has been computed ahead; by default
nothing has, and all encoders run inside the step.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import tyro

from infu_jax import recipes
from infu_jax.cli import run
from infu_jax.plan.settings import SampleArgs, TrainArgs

PROGRAM = "python -m infu_jax.plan"


def main() -> None:
    argv = sys.argv[1:]
    sampled = argv[:1] == ["sample"]
    if sampled:
        args = tyro.cli(SampleArgs, args=argv[1:], description="What making pictures takes.", prog=f"{PROGRAM} sample")
    else:
        args = recipes.read(argv, doc=__doc__, program=PROGRAM, kind=TrainArgs)
    if args.json is not None and args.json != Path("-") and not args.json.parent.is_dir():
        raise NotADirectoryError(0, "no such folder", str(args.json.parent))
    os.environ.update(TPU_SKIP_MDS_QUERY="1", JAX_PLATFORMS="cpu", ALLOW_MULTIPLE_LIBTPU_LOAD="1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # XLA warns of what nearly fills a GPU, which the report says

    # Imports of JAX come after the checks above, so that --help and mistakes answer at once, and after the variables, which it reads.
    from infu_jax.plan import report, sampling, training

    found = sampling.plan(args) if sampled else training.plan(args)
    if args.json == Path("-"):
        print(json.dumps(found))
        return
    print(report.text(found))
    if args.json is not None:
        partial = args.json.with_name(f".{args.json.name}.{os.getpid()}.partial")
        partial.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        partial.replace(args.json)


if __name__ == "__main__":
    run(main)
