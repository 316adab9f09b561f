"""The models that make pictures and judge them, as the options of `data_pipeline.synthesize` name them."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import sys
import warnings
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from data_pipeline import features
from data_pipeline.studio import Models
from infu_jax import checkpoint, face, runs
from infu_jax.assets import TINY
from infu_jax.cli import file_and_scale, memory_advice
from infu_jax.config import to_json
from infu_jax.pipeline import InfUPipeline
from infu_jax.sharding import batch_sharding, make_mesh

if TYPE_CHECKING:
    from data_pipeline.synthesize import Args

ADVICE = "try a smaller --batch or picture, --offload, --dtype bfloat16, or --mesh.data 1 --mesh.fsdp -1"


def open_models(args: Args) -> Models:
    """The pipeline, on this process's devices."""
    infu, transformer = args.infu or TINY / "InfiniteYou-tiny", args.transformer
    own = runs.models_of(infu) if runs.is_run(infu) else {}
    infu, transformer = runs.pinned(infu), runs.pinned(transformer)
    places = {name: getattr(args, name) or own.get(name) for name in ("base", "arcface", "autoencoder")}
    transformer, base = transformer or own.get("transformer"), places["base"] or TINY / "FLUX.1-tiny"
    loras = [file_and_scale(text) for text in args.lora]
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "elsewhere" for path, _ in loras]
    mesh = make_mesh(**dataclasses.asdict(args.mesh), devices=jax.local_devices())
    dtype = {"auto": jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16, "bfloat16": jnp.bfloat16, "float32": jnp.float32}[args.dtype]
    if places["base"] is None:
        print("using the embedded tiny stack; give --base and --infu for the released models", file=sys.stderr)
    with memory_advice(ADVICE), tqdm(total=7, desc="loading", leave=False, disable=None) as bar:
        pipeline = InfUPipeline.load(
            base, infu, arcface=places["arcface"], transformer=transformer, autoencoder=places["autoencoder"],
            detector=face.load_detector(args.detector, args.detector_root), mesh=mesh, dtype=dtype, ema=args.ema, offload=args.offload,
            loras=loras, progress=lambda name: (bar.set_postfix_str(name), bar.update()),
        )  # fmt: skip
        judge = checkpoint.load_model(args.judge, "arcface", mesh=mesh, dtype=jnp.float32) if args.judge else None
    embed = jax.jit(lambda arcface, crops: arcface(crops))

    length = args.sampling.t5_length

    def generate(requests):
        if any(pipeline.t5_tokenizer.count(request.prompt) > length for request in requests):
            warnings.warn(f"prompts of more than {length} tokens are cut; see --t5-length", stacklevel=2)  # once, instead of for each prompt
        with memory_advice(ADVICE), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "the prompt has .* tokens")
            return pipeline(
                [request.prompt for request in requests], id_embedding=np.stack([request.embedding for request in requests]),
                seeds=[request.seed for request in requests], negative_prompt=args.negative_prompt, settings=args.sampling,
                control_image=None if requests[0].control is None else [request.control for request in requests],
            ).images  # fmt: skip

    def other(crops):
        with jax.set_mesh(mesh):
            return np.asarray(embed(judge, jax.device_put(face.arcface_input(crops), batch_sharding(mesh, len(crops)))))

    names = ("flux", "infusenet", "resampler", "autoencoder", "t5", "clip", "arcface")
    weights = {name: features.model_fingerprint(getattr(pipeline, name)) for name in names}
    batch = args.batch * math.prod(mesh.shape[axis] for axis in ("data", "fsdp"))
    stated = {
        "infu": "/".join(infu.absolute().parts[-2:]),
        "weights": weights | ({"judge": features.model_fingerprint(judge)} if judge is not None else {}),
        "loras": [f"{path.name}, scale {scale:g}, sha256 {digest}" for (path, scale), digest in zip(loras, digests)],
        "sampling": to_json(args.sampling),
        "negative_prompt": args.negative_prompt,
        "computed": f"{jnp.dtype(dtype).name}, {jax.default_backend()}, batches of {batch}, mesh {dict(mesh.shape)}",
    }
    return Models(generate, pipeline.embed_crops, pipeline.embed_crops if judge is None else other, batch, stated)
