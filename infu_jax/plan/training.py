"""What a training step takes of a chip: the real step, compiled for it."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from infu_jax import flops, flow, initial, training
from infu_jax.checkpoint import abstract, open_model
from infu_jax.config import ArcFaceConfig, AutoencoderConfig, CLIPTextConfig, FluxConfig, InfuseNetConfig, MeshConfig, T5Config
from infu_jax.errors import InputError
from infu_jax.plan import budget, chips, report
from infu_jax.plan.chips import held
from infu_jax.plan.collectives import collective_bytes
from infu_jax.plan.settings import TrainArgs
from infu_jax.plan.weights import placed
from infu_jax.sharding import batch_sharding, check_heads, check_tokens, make_mesh
from infu_jax.train_config import FACE_PLACES, TrainConfig


def plan(args: TrainArgs) -> dict[str, Any]:
    """Compile the step for `args.topology` and say what it takes; or the arithmetic alone for a GPU."""
    sizes = model_sizes(args)
    if args.gpu_gib is not None:
        choice = asked = budget.choose_training(args, sizes, 1, args.gpu_gib * chips.GIB)
        if not args.choose:
            mesh = make_mesh(**dataclasses.asdict(args.mesh), devices=jax.devices()[:1])  # one device in the GPU's place: other meshes are refused
            asked = budget.asked_training(args, sizes, MeshConfig(**mesh.shape), args.gpu_gib * chips.GIB)
        counted = budget.training_flops(args, sizes, asked.batch)
        return report.of_estimate(f"one GPU of {args.gpu_gib:g} GiB", asked, args.gpu_gib, counted, choice, args.accumulate)
    devices = chips.devices(args.topology)
    if args.remat == "offload" and devices[0].platform == "gpu":
        raise InputError(f"{chips.NO_HOST}; choose another --remat than offload")
    room = chips.memory_gib(devices[0])
    choice = budget.choose_training(args, sizes, len(devices), room * chips.GIB)
    if args.choose:
        args = dataclasses.replace(args, mesh=choice.mesh, batch_size=choice.batch)
    mesh = make_mesh(**dataclasses.asdict(args.mesh), devices=devices)
    program, gib = compile_step(args, sizes, mesh)
    return report.of_compiled(
        args.topology, mesh, args.batch_size, gib, program.peak, room, budget.training_flops(args, sizes, args.batch_size),
        budget.workers(mesh, args.batch_size), collective_bytes(program.text), flops.peak(devices[0].device_kind), args.efficiency, program.seconds, choice,
        args.accumulate,
    )  # fmt: skip


def compile_step(args: TrainArgs, sizes: dict[str, Any], mesh: Mesh) -> tuple[chips.Compiled, dict[str, int]]:
    """The compiled step, and the bytes of a chip that each part takes of it."""
    parts = mesh.shape["data"] * mesh.shape["fsdp"] * args.accumulate
    if args.batch_size % parts:
        raise InputError(f"batch_size {args.batch_size} does not divide over {parts} devices and parts; try --batch-size {parts}")
    check_heads(mesh, sizes["flux"].num_heads)
    check_tokens(mesh, args.height // 16 * (args.width // 16), args.data.t5_length, sizes["resampler"].num_queries)
    trained = {name: abstract(name, sizes[name]) for name in training.TRAINED[args.trainable]}
    weights = lambda name: placed(name, sizes[name], mesh, jnp.bfloat16, args.models.base_weights if name == "flux" else "auto")  # noqa: E731
    features = set() if args.data.features == "auto" else set(args.data.features)
    frozen = {name: weights(name) for name in sorted(initial.step_names(args, features))}
    state = training.abstract_state(args, trained, mesh)
    shapes = batch_shapes(args, sizes, features)
    batch = {k: jax.ShapeDtypeStruct((args.batch_size, *shape), dtype, sharding=batch_sharding(mesh, args.batch_size)) for k, (shape, dtype) in shapes.items()}

    step = training.make_step(args, trained, state, mesh, flow.ScheduleConfig(), jnp.bfloat16)
    with jax.set_mesh(mesh):
        program = chips.compiled(chips.lower(step, state, frozen, batch, None), args.effort)
    gradients = int(budget.gradients(args, sizes, mesh))
    gib = {"frozen weights": held(frozen), "trained weights": held(state.params), "moments": held(state.opt_state), "average": held(state.ema)}
    gib |= {"batch": held(batch), "gradients": gradients, "activations and all else that is temporary": program.temporary - gradients}
    return program, gib


def model_sizes(args: TrainConfig) -> dict[str, Any]:
    """Config of each model: of the files that the settings name, or the release's where there are none."""
    release = {"flux": FluxConfig(), "autoencoder": AutoencoderConfig(), "t5": T5Config(), "clip": CLIPTextConfig(), "arcface": ArcFaceConfig()}
    places = initial.places(args.models)
    sizes = {name: open_model(places[name], name).cfg if name in places and places[name].exists() else cfg for name, cfg in release.items()}
    double, single = args.models.infusenet_blocks
    sizes["infusenet"] = InfuseNetConfig(**{**dataclasses.asdict(sizes["flux"]), "depth": double, "depth_single_blocks": single})
    dims = dict(embedding_dim=sizes["arcface"].embedding_dim, output_dim=sizes["flux"].context_in_dim)
    return {**sizes, "resampler": dataclasses.replace(args.models.resampler, **dims)}


def batch_shapes(args: TrainArgs, sizes: dict[str, Any], features: set[str]) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype of each of a batch's arrays, of one picture (see `data_pipeline.loader`)."""
    vae = sizes["autoencoder"]
    latent = (args.height // vae.downscale, args.width // vae.downscale, vae.z_channels)
    pixels, crop = (args.height, args.width, 3), (sizes["arcface"].image_size,) * 2 + (3,)
    shapes = {"id_keep": ((), "bool")} | {name: (FACE_PLACES[name], "float32") for name in args.objective.faces}
    shapes |= {"latent_mean": (latent, "float32"), "latent_logvar": (latent, "float32")} if "latents" in features else {"pixels": (pixels, "uint8")}
    shapes |= {"control_mean": (latent, "float32"), "control_logvar": (latent, "float32")} if "control" in features else {"control": (pixels, "uint8")}
    shapes |= {"txt": ((args.data.t5_length, sizes["t5"].d_model), "float16")} if "t5" in features else {"t5_ids": ((args.data.t5_length,), "int32")}
    shapes |= {"y": ((sizes["clip"].hidden_size,), "float32")} if "clip" in features else {"clip_ids": ((77,), "int32")}
    return shapes | ({"id_embedding": ((sizes["arcface"].embedding_dim,), "float32")} if "arcface" in features else {"id_crop": (crop, "uint8")})
