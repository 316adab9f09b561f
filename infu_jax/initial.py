"""The models a run starts from: frozen ones loaded, trained ones loaded, copied from the base model, or drawn at random."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from infu_jax import checkpoint, quantize
from infu_jax.checkpoint import abstract, open_model, param_shapes, params_of
from infu_jax.config import InfuseNetConfig
from infu_jax.convert import source
from infu_jax.errors import InputError
from infu_jax.models import MODELS
from infu_jax.sharding import RULES, param_shardings
from infu_jax.train_config import ModelsConfig, TrainConfig

Models = Mapping[str, nnx.Module]


def places(cfg: ModelsConfig) -> dict[str, Path]:
    """Where each model that a run does not train comes from."""
    found = {"flux": cfg.transformer or cfg.base, "autoencoder": cfg.autoencoder or cfg.base, "t5": cfg.base, "clip": cfg.base}
    return {**found, **({"arcface": cfg.arcface} if cfg.arcface is not None else {})}


def trained_models(cfg: TrainConfig) -> dict[str, nnx.Module]:
    """The models that a run trains, with shapes in the place of arrays. Reads sizes only, so mistakes show early."""
    base = base_config(cfg.models)
    if cfg.trainable == "base":
        return {"flux": abstract("flux", base)}
    if cfg.models.arcface is None:
        raise InputError("models.arcface is not set; InfuseNet is trained on ArcFace's embeddings (recognition_arcface_ir_se50.pth)")
    embedding_dim = open_model(cfg.models.arcface, "arcface").cfg.embedding_dim
    if cfg.models.init is not None:
        opened = {name: checkpoint.check(open_model(cfg.models.init, name)) for name in ("infusenet", "resampler")}
        infusenet, resampler = opened["infusenet"].cfg, opened["resampler"].cfg
    else:
        double, single = cfg.models.infusenet_blocks
        infusenet = InfuseNetConfig(**{**dataclasses.asdict(base), "depth": double, "depth_single_blocks": single})
        resampler = dataclasses.replace(cfg.models.resampler, embedding_dim=embedding_dim, output_dim=base.context_in_dim)
        if double > base.depth or single > base.depth_single_blocks:
            raise InputError(
                f"models.infusenet_blocks {double} + {single} are more than the base has ({base.depth} + {base.depth_single_blocks}) to start from"
            )
    for what, ours, theirs in (
        ("the resampler's input size and ArcFace's embedding", resampler.embedding_dim, embedding_dim),
        ("the ID tokens' size and InfuseNet's text size", resampler.output_dim, infusenet.context_in_dim),
        ("the hidden sizes of InfuseNet and the base", infusenet.hidden_size, base.hidden_size),
        ("the channels of InfuseNet and the base", infusenet.in_channels, base.in_channels),
    ):
        if ours != theirs:
            raise InputError(f"{what} differ: {ours} and {theirs}; these checkpoints do not belong together")
    return {"infusenet": abstract("infusenet", infusenet), "resampler": abstract("resampler", resampler)}


def frozen_names(cfg: TrainConfig, features: set[str]) -> set[str]:
    """Which models a run needs besides the trained ones, if these features have been computed ahead everywhere."""
    names = {"autoencoder", "t5", "clip"} - (features & {"t5", "clip"})  # the autoencoder knows how latents are scaled, and paints
    return names if cfg.trainable == "base" else names | {"flux", "arcface"}


def step_names(cfg: TrainConfig, features: set[str]) -> set[str]:
    """What a step itself needs of these: where ArcFace's embeddings are there, it may be for validation's pictures alone."""
    names = frozen_names(cfg, features)
    return names - {"arcface"} if "arcface" in features and not cfg.objective.id_weight else names


def frozen_models(cfg: TrainConfig, names: set[str], mesh: Mesh, dtype: Any, progress: Callable[[str], None]) -> dict[str, nnx.Module]:
    """Load the frozen models `names`; ArcFace in float32, the others in `dtype`, the base's blocks in eight bits where the settings say so."""
    models = {}
    for name, path in places(cfg.models).items():
        if name not in names:
            continue
        progress(name)
        if name == "flux" and cfg.models.base_weights == "int8":
            module = checkpoint.check(open_model(path, name))
            models[name] = quantize.load(name, module, quantize.open_params(path, name), mesh, dtype)
        else:
            models[name] = checkpoint.load_model(path, name, mesh=mesh, dtype=jnp.float32 if name == "arcface" else dtype)
    return models


def initial_params(cfg: TrainConfig, trained: Models, frozen: Models, mesh: Mesh, progress: Callable[[str], None]) -> dict[str, dict[str, jax.Array]]:
    """The trained models' first weights in float32, by model and parameter path, in their sharding."""
    params = {}
    for name, module in trained.items():
        progress(name)
        path = cfg.models.init if name != "flux" else None if cfg.models.base_from_scratch else places(cfg.models)["flux"]
        if path is not None:
            params[name] = params_of(checkpoint.load_model(path, name, mesh=mesh, dtype=jnp.float32))
        elif name == "infusenet":
            base = params_of(frozen["flux"]) if cfg.models.base_weights == "auto" else _first_layers(module, places(cfg.models)["flux"], mesh)
            params[name] = _from_base(module, base, mesh, cfg.seed)
        else:
            params[name] = _drawn(name, module, mesh, cfg.seed)
    return params


def base_config(cfg: ModelsConfig):
    """Sizes of the base model. From scratch, its folder needs a config.json only."""
    path = places(cfg)["flux"]
    if not cfg.base_from_scratch:
        return open_model(path, "flux").cfg
    folder = path if (path / "config.json").is_file() else path / "transformer"
    [layout] = [layout for layout in source.LAYOUTS if layout.model == "flux" and layout.from_config]
    try:
        return layout.from_config(source.read_config(folder))
    except KeyError as e:
        raise InputError(f"{folder / 'config.json'} lacks the field {e}, which every FLUX.1 transformer's config has") from None


def _drawn(name: str, module: nnx.Module, mesh: Mesh, seed: int) -> dict[str, jax.Array]:
    """Random weights, as each layer draws its own."""
    make = lambda: params_of(MODELS[name][1](module.cfg, rngs=nnx.Rngs(seed)))  # noqa: E731
    return jax.jit(make, out_shardings=_shardings(name, module, mesh))()


def _first_layers(infusenet: nnx.Module, path: Path, mesh: Mesh) -> dict[str, jax.Array]:
    """What a new InfuseNet takes of the stored base, in float32: a base in memory may be rounded to eight bits."""
    stored, shardings = checkpoint.open_params(open_model(path, "flux"), np.float32), _shardings("infusenet", infusenet, mesh)

    def first(name: str, shape: tuple[int, ...]) -> jax.Array:
        read = lambda index: stored[name].read(tuple(part.indices(n)[:2] for part, n in zip(index, shape)))  # noqa: E731
        return jax.make_array_from_callback(shape, shardings[name], read)

    return {name: first(name, s.shape) for name, s in param_shapes(infusenet).items() if name in stored}


def _from_base(infusenet: nnx.Module, base: Mapping[str, jax.Array], mesh: Mesh, seed: int) -> dict[str, jax.Array]:
    """InfuseNet's embedders and blocks are the base's first ones; what only InfuseNet has, it draws itself: zeros.

    Assumption: the paper does not say how InfuseNet starts; this is how diffusers starts a FLUX ControlNet.
    """

    def make(base: dict[str, jax.Array]):
        own = params_of(MODELS["infusenet"][1](infusenet.cfg, rngs=nnx.Rngs(seed)))
        first = {name: base[name][: len(x)] if "_blocks." in name else base[name] for name, x in own.items() if name in base}
        return {name: x.astype(jnp.float32) for name, x in {**own, **first}.items()}

    return jax.jit(make, out_shardings=_shardings("infusenet", infusenet, mesh))(base)


def _shardings(name: str, module: nnx.Module, mesh: Mesh):
    return param_shardings(mesh, RULES[name], {path: s.shape for path, s in param_shapes(module).items()})
