"""What a training step takes of each chip of a TPU that need not be there: the real step, compiled for it.

    python -m infu_jax.plan configs/infu_stage1.py --topology v5p:2x2x1 --batch-size 4
    python -m infu_jax.plan configs/infu_stage1.py --topology v6e:4x4 --batch-size 16 --effort default

Needs `pip install -e ".[tpu]"`, no weights and no data: models have the sizes of those on disk, or the release's where there are none.
With `--data.features latents control t5 clip arcface` everything but the transformers has been computed ahead; by default nothing has,
and all encoders run inside the step.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
import time
from dataclasses import dataclass
from typing import Any, Literal

from infu_jax import recipes
from infu_jax.cli import run
from infu_jax.config import ArcFaceConfig, AutoencoderConfig, CLIPTextConfig, FluxConfig, InfuseNetConfig, T5Config
from infu_jax.errors import InputError
from infu_jax.train_config import TrainConfig

GIB = 2**30


@dataclass(frozen=True)
class Args(TrainConfig):
    topology: str = "v5p:2x2x1"
    """Chips, such as v5p:2x2x1, v6e:4x4, v5e:4x4; v6e:1x1 is one chip."""
    height: int = 1024
    """Height of the pictures."""
    width: int = 1024
    """Width of the pictures."""
    effort: Literal["quick", "default"] = "quick"
    """quick compiles several times faster and takes about as much memory; default is what a run does."""
    json: bool = False
    """Print JSON instead of a table."""


def main() -> None:
    args = recipes.read(sys.argv[1:], doc=__doc__, program="python -m infu_jax.plan", kind=Args)
    os.environ.update(TPU_SKIP_MDS_QUERY="1", JAX_PLATFORMS="cpu", ALLOW_MULTIPLE_LIBTPU_LOAD="1")
    report = compile_step(args)
    if args.json:
        print(json.dumps(report))
        return
    print(f"{args.topology}, {report['mesh']}: {report['trained_parameters'] / 1e9:.2f} billion trained parameters, {args.batch_size} pictures of ", end="")
    print(f"{args.width}x{args.height} a step ({report['pictures_per_chip']:g} a chip), remat {args.remat}, compiled in {report['seconds']:.0f} s\n")
    print("| GiB a chip | |\n|---|---|")
    for name, value in report["gib"].items():
        print(f"| {name} | {value:.2f} |")
    print(f"\n{report['flops'] / 1e12:.0f} TFLOP a chip and step at least, rematerialisation not counted")


def compile_step(args: Args) -> dict[str, Any]:
    """Compile the step for `args.topology` and say what it takes."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.experimental import topologies

    from infu_jax import flops, flow, initial, quantize, training
    from infu_jax.checkpoint import abstract, param_shapes, with_params
    from infu_jax.sharding import RULES, batch_sharding, make_mesh, param_shardings

    options = {"chips_per_host_bounds": [1, 1, 1]} if math.prod(map(int, args.topology.partition(":")[2].split("x"))) == 1 else {}
    try:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=args.topology, **options).devices
    except Exception as e:  # what libtpu raises for a name that it does not know, and JAX where there is no libtpu
        raise InputError(f"topology {args.topology}: {' '.join(str(e).split())[:200]}; expected such as v5p:2x2x1 or v6e:4x4, and libtpu installed") from None
    mesh = make_mesh(**dataclasses.asdict(args.mesh), devices=devices)
    parts = mesh.shape["data"] * mesh.shape["fsdp"] * args.accumulate
    if args.batch_size % parts:
        raise InputError(f"batch_size {args.batch_size} does not divide over {parts} devices and parts; try --batch-size {parts}")

    sizes = model_sizes(args)
    trained = {name: abstract(name, sizes[name]) for name in training.TRAINED[args.trainable]}

    def weights(name):
        module = abstract(name, sizes[name])
        if name == "flux" and args.models.base_weights == "int8":
            return with_params(quantize.quantized(module), quantize.targets(name, module, mesh, jnp.bfloat16))
        shapes = param_shapes(module)
        shardings = param_shardings(mesh, RULES[name], {k: v.shape for k, v in shapes.items()})
        dtype = jnp.float32 if name == "arcface" else jnp.bfloat16
        held = {k: jax.ShapeDtypeStruct(v.shape, dtype if jnp.issubdtype(v.dtype, jnp.floating) else v.dtype, sharding=shardings[k]) for k, v in shapes.items()}
        return with_params(module, held)

    features = set() if args.data.features == "auto" else set(args.data.features)
    frozen = {name: weights(name) for name in sorted(initial.frozen_names(args, features)) if name != "arcface" or "arcface" not in features}
    state = training.abstract_state(args, trained, mesh)
    shapes = batch_shapes(args, sizes, features)
    batch = {k: jax.ShapeDtypeStruct((args.batch_size, *shape), dtype, sharding=batch_sharding(mesh, args.batch_size)) for k, (shape, dtype) in shapes.items()}

    step = training.make_step(args, trained, state, mesh, flow.ScheduleConfig(), jnp.bfloat16)
    began = time.perf_counter()
    with jax.set_mesh(mesh):
        compiled = step.lower(state, frozen, batch, None).compile({"exec_time_optimization_effort": -1.0} if args.effort == "quick" else None)
    seconds, memory = time.perf_counter() - began, compiled.memory_analysis()

    def held(tree):
        return sum(math.prod(x.sharding.shard_shape(x.shape)) * np.dtype(x.dtype).itemsize for x in jax.tree.leaves(tree)) / GIB

    peak = memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    gib = {"frozen weights": held(frozen), "trained weights": held(state.params), "moments": held(state.opt_state), "average": held(state.ema)}
    gib |= {"batch": held(batch), "gradients and activations (temporary)": memory.temp_size_in_bytes / GIB, "peak": peak / GIB}
    tokens = args.height * args.width // 16**2
    infusenet = sizes["infusenet"] if args.trainable == "infusenet" else None
    total = args.batch_size * flops.train_flops(sizes["flux"], infusenet, tokens, args.data.t5_length, sizes["resampler"].num_queries)
    return {
        "topology": args.topology,
        "mesh": ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items()),
        "trained_parameters": sum(math.prod(x.shape) for x in jax.tree.leaves(state.params)),
        "pictures_per_chip": args.batch_size / len(devices),
        "gib": gib,
        "flops": total / len(devices),
        "seconds": seconds,
    }


def model_sizes(args: TrainConfig) -> dict[str, Any]:
    """Config of each model: of the files that the settings name, or the release's where there are none."""
    from infu_jax import initial
    from infu_jax.checkpoint import open_model

    release = {"flux": FluxConfig(), "autoencoder": AutoencoderConfig(), "t5": T5Config(), "clip": CLIPTextConfig(), "arcface": ArcFaceConfig()}
    places = initial.places(args.models)
    sizes = {name: open_model(places[name], name).cfg if name in places and places[name].exists() else cfg for name, cfg in release.items()}
    double, single = args.models.infusenet_blocks
    sizes["infusenet"] = InfuseNetConfig(**{**dataclasses.asdict(sizes["flux"]), "depth": double, "depth_single_blocks": single})
    dims = dict(embedding_dim=sizes["arcface"].embedding_dim, output_dim=sizes["flux"].context_in_dim)
    return {**sizes, "resampler": dataclasses.replace(args.models.resampler, **dims)}


def batch_shapes(args: Args, sizes: dict[str, Any], features: set[str]) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype of each of a batch's arrays, of one picture (see `data_pipeline.loader`)."""
    vae = sizes["autoencoder"]
    latent = (args.height // vae.downscale, args.width // vae.downscale, vae.z_channels)
    pixels, crop = (args.height, args.width, 3), (sizes["arcface"].image_size,) * 2 + (3,)
    shapes = {"id_keep": ((), "bool")}
    shapes |= {"latent_mean": (latent, "float32"), "latent_logvar": (latent, "float32")} if "latents" in features else {"pixels": (pixels, "uint8")}
    shapes |= {"control_mean": (latent, "float32"), "control_logvar": (latent, "float32")} if "control" in features else {"control": (pixels, "uint8")}
    shapes |= {"txt": ((args.data.t5_length, sizes["t5"].d_model), "float16")} if "t5" in features else {"t5_ids": ((args.data.t5_length,), "int32")}
    shapes |= {"y": ((sizes["clip"].hidden_size,), "float32")} if "clip" in features else {"clip_ids": ((77,), "int32")}
    return shapes | ({"id_embedding": ((sizes["arcface"].embedding_dim,), "float32")} if "arcface" in features else {"id_crop": (crop, "uint8")})


if __name__ == "__main__":
    run(main)
