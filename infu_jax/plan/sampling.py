"""What pictures take of a chip: the loop's own program, compiled for it, and where that is asked for the programs around it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from infu_jax import flops, flow, parking, pipeline, programs, sampler
from infu_jax.checkpoint import open_model, params_of, with_params
from infu_jax.config import ArcFaceConfig, AutoencoderConfig, CLIPTextConfig, FluxConfig, InfuseNetConfig, MeshConfig, ResamplerConfig, T5Config
from infu_jax.models.flux import MODULATION
from infu_jax.plan import budget, chips, report
from infu_jax.plan.collectives import collective_bytes
from infu_jax.plan.settings import SampleArgs
from infu_jax.plan.weights import placed
from infu_jax.sharding import batch_axes, batch_sharding, check_heads, check_tokens, in_host, make_mesh


@dataclasses.dataclass(frozen=True)
class Models:
    """Every model with abstract arrays that know their sharding, and what of them the loop is given."""

    all: dict[str, nnx.Module]
    in_loop: dict[str, nnx.Module]


def model_sizes(args: SampleArgs) -> dict[str, Any]:
    """Config of each model: of the files that the settings name, or the release's."""
    release = {"flux": FluxConfig(), "autoencoder": AutoencoderConfig(), "t5": T5Config(), "clip": CLIPTextConfig()}
    people = {"infusenet": InfuseNetConfig(), "resampler": ResamplerConfig(), "arcface": ArcFaceConfig()}
    sizes = {name: cfg if args.base is None else open_model(args.base, name).cfg for name, cfg in release.items()}
    return sizes | {name: cfg if args.infu is None else open_model(args.infu, name).cfg for name, cfg in people.items()}


def models(args: SampleArgs, sizes: dict[str, Any], mesh: Mesh) -> Models:
    made = {}
    for name, cfg in sizes.items():
        host = lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=in_host(a))  # noqa: E731
        module = placed(name, cfg, mesh, args.dtype, args.weights)
        made[name] = with_params(module, {path: host(a) if _parked(args, name, path) else a for path, a in params_of(module).items()})
    loop = {name: parking.without_modulations(made[name]) if args.tables else made[name] for name in ("flux", "infusenet")}
    return Models(made, loop)


def lowerings(args: SampleArgs, have: Models, mesh: Mesh) -> dict[str, tuple[Callable[[], Any], int]]:
    """By name: what lowers a program of the pipeline, and how many bytes of the weights that it is given stay on a chip anyway."""
    cfg, settings, batch = have.all["flux"].cfg, args.sampling, args.batch
    vae, rows, everywhere = have.all["autoencoder"].cfg, batch_sharding(mesh, batch), NamedSharding(mesh, P())
    h, w = settings.height // vae.downscale, settings.width // vae.downscale
    image, dtype = (h // 2) * (w // 2), jnp.dtype(args.dtype)

    def array(*shape: int, dtype: Any = dtype, sharding: NamedSharding = rows) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    def place(x: Any, sharding: NamedSharding) -> Any:
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding if a.ndim else everywhere), x)

    def conditions(text, negative, id_tokens, control):
        who = sampler.identity(have.all["infusenet"].cfg, id_tokens, control, h, w, guidance=1.0, scale=1.0)
        return sampler.conditions(cfg, text, h, w, guidance=3.5, identity=who, negative=negative, true_cfg=2.0)

    text = sampler.Text(array(batch, settings.t5_length, cfg.context_in_dim), array(batch, cfg.vec_in_dim))
    resampler = have.all["resampler"].cfg
    who = array(batch, resampler.num_queries, resampler.output_dim), array(batch, image, cfg.in_channels)
    given = place(jax.eval_shape(conditions, text, text if settings.true_cfg > 1 else None, *who), rows)
    given = given._replace(pe=place(given.pe, everywhere), identity=given.identity._replace(pe=place(given.identity.pe, everywhere)))
    times = array(pipeline.TABLE_STEPS, dtype=jnp.float32, sharding=everywhere)

    def table(name: str) -> Any:
        made = jax.eval_shape(lambda model, *xs: programs.modulation(model, *xs, dtype=dtype), have.all[name], times, text.y, given.guidance)
        return jax.ShapeDtypeStruct((pipeline.LOOP_STEPS, *made.shape[1:]), made.dtype, sharding=NamedSharding(mesh, P(None, batch_axes(mesh, batch))))

    tables = sampler.Tables(table("flux"), table("infusenet"), table("flux") if settings.true_cfg > 1 else None) if args.tables else None
    schedule = flow.Schedule(*(array(pipeline.SCHEDULE_PAD, dtype=jnp.float32, sharding=everywhere),) * 2)
    img, k = array(batch, image, cfg.in_channels, dtype=jnp.float32), array(dtype=jnp.int32, sharding=everywhere)
    pixels = array(1, settings.height, settings.width, 3, dtype=jnp.float32, sharding=batch_sharding(mesh, 1))
    at_once = programs.decoded_at_once(mesh, batch, settings)
    loop, here = have.in_loop, {name: _come_over(name, model) for name, model in have.all.items()}
    ids = array(batch, settings.t5_length, dtype=jnp.int32), array(batch, pipeline.CLIP_LENGTH, dtype=jnp.int32)
    stay = partial(_staying, args, have)
    return {
        "loop": (lambda: chips.lower(programs.steps(), loop["flux"], loop["infusenet"], img, schedule, k, k, given, tables, dtype=dtype), chips.held(loop)),
        "text": (lambda: chips.lower(programs.encode_text, here["t5"], here["clip"], *ids, dtype=dtype), stay("t5") + stay("clip")),
        "control image": (lambda: chips.lower(programs.encode_control, here["autoencoder"], pixels, dtype=dtype), stay("autoencoder")),
        "modulations": (lambda: chips.lower(programs.modulation, here["flux"], times, text.y, given.guidance, dtype=dtype), stay("flux", MODULATION)),
        "decoding": (lambda: chips.lower(programs.decode, here["autoencoder"], img, h=h, w=w, dtype=dtype, at_once=at_once), stay("autoencoder")),
    }


def plan(args: SampleArgs) -> dict[str, Any]:
    """Compile for `args.topology`, on the mesh that is asked for or else the one that the arithmetic prefers; or the arithmetic alone for a GPU."""
    sizes = model_sizes(args)
    if args.gpu_gib is not None:
        make_mesh(**dataclasses.asdict(args.mesh), devices=jax.devices()[:1])  # one device in the GPU's place: other meshes are refused
        choice = budget.choose_sampling(args, sizes, 1, args.gpu_gib * chips.GIB)
        counted = budget.sampling_flops(args, sizes, args.batch)
        return report.of_estimate(f"one GPU of {args.gpu_gib:g} GiB", choice, args.gpu_gib, counted, choice)
    devices = chips.devices(args.topology)
    room = chips.memory_gib(devices[0])
    choice = budget.choose_sampling(args, sizes, len(devices), room * chips.GIB)
    mesh = make_mesh(**dataclasses.asdict(choice.mesh if args.mesh == MeshConfig() else args.mesh), devices=devices)
    check_heads(mesh, sizes["flux"].num_heads)
    check_tokens(mesh, *budget.tokens(args, sizes))
    have = models(args, sizes, mesh)
    asked = lowerings(args, have, mesh)
    # With `offload` these two fetch weights from host memory while they run.
    left_out = {"text", "modulations"} if args.offload and devices[0].platform == "gpu" else set()
    compiled = {}
    with jax.set_mesh(mesh):
        for name, (lower, _) in asked.items():
            if name == "loop" or args.everything and name not in left_out:
                compiled[name] = chips.compiled(lower(), args.effort)
    loop = compiled["loop"]
    body = chips.held(list(have.in_loop.values()))
    gib = {
        "transformers": body,
        "modulation tables and other inputs": loop.arguments - body,
        "activations (temporary)": loop.temporary,
        "peak of the loop": loop.peak,
        "of it in use at once": loop.live,
    }
    resident = sum(_staying(args, have, name) for name in have.all)
    peaks = {name: program.peak + resident - asked[name][1] for name, program in compiled.items()}
    gib |= {f"with all that stays, {name}": peak for name, peak in peaks.items()}
    notes = [f"Not compiled: {' and '.join(sorted(left_out))}. {chips.NO_HOST}."] if args.everything and left_out else []
    return report.of_compiled(
        args.topology, mesh, args.batch, gib, max(peaks.values()), room, budget.sampling_flops(args, sizes, args.batch), budget.workers(mesh, args.batch),
        collective_bytes(loop.text, _trips(sizes)), flops.peak(devices[0].device_kind), args.efficiency,
        sum(program.seconds for program in compiled.values()), choice, notes=notes,
    )  # fmt: skip


def _trips(sizes: dict[str, Any]) -> dict[str, float]:
    """How many of the base's blocks follow one of InfuseNet's, on average."""
    flux, infusenet = sizes["flux"], sizes["infusenet"]
    pairs = (flux.depth, infusenet.depth), (flux.depth_single_blocks, infusenet.depth_single_blocks)
    return {name: depth / count for name, (depth, count) in zip(sampler.BESIDE, pairs) if count}


def _come_over(name: str, model: nnx.Module) -> nnx.Module:
    """The model as its program gets it: what is parked is on the chip, but for what the program fetches block by block."""
    stays = parking.STREAMED.get(name, parking.PARKED_PARAMETERS)
    place = lambda path, a: a if stays.fullmatch(path) else jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding.with_memory_kind("device"))  # noqa: E731
    return with_params(model, {path: place(path, a) for path, a in params_of(model).items()})


def _parked(args: SampleArgs, name: str, path: str) -> bool:
    """Whether a model's parameter waits in host memory."""
    return args.offload and (name in parking.PARKED or args.tables and parking.PARKED_PARAMETERS.fullmatch(path) is not None)


def _staying(args: SampleArgs, have: Models, name: str, only: re.Pattern | None = None) -> int:
    """Bytes of a model that stay on a chip, `only` of parameters whose path matches."""
    return chips.held([a for path, a in params_of(have.all[name]).items() if not _parked(args, name, path) and (only is None or only.fullmatch(path))])
