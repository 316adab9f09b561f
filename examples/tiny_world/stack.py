"""The folders that hold the tiny world's models, in the layout of the release: FLUX.1-tiny and InfiniteYou-tiny."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from examples.tiny_world import autoencoder, faces
from infu_jax import checkpoint, export
from infu_jax import config as configs
from infu_jax.assets.tiny_tokenizers import write_clip_tokenizer, write_t5_tokenizer
from infu_jax.models import MODELS

TEXT = 64  # channels of both text encoders
FLUX = configs.FluxConfig(
    in_channels=32, out_channels=32, vec_in_dim=TEXT, context_in_dim=TEXT, hidden_size=160, num_heads=4, depth=2, depth_single_blocks=8, axes_dim=(8, 16, 16),
)  # fmt: skip
AUTOENCODER = configs.AutoencoderConfig(channels=(16, 32, 64, 64), z_channels=8, num_res_blocks=1, norm_groups=8)
ARCFACE = configs.ArcFaceConfig(widths=(8, 20, 40, 80), units=(1, 1, 2, 2), embedding_dim=128, se_reduction=4)
CAPTIONS = 4000  # that the vocabularies are made of
SHARD_BYTES = 10**9
SCHEDULER = {
    "_class_name": "FlowMatchEulerDiscreteScheduler", "base_image_seq_len": 256, "base_shift": 0.5, "max_image_seq_len": 4096, "max_shift": 1.15,
    "num_train_timesteps": 1000, "shift": 3.0, "use_dynamic_shifting": True,
}  # fmt: skip
INDEX = {
    "_class_name": "FluxPipeline",
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "T5TokenizerFast"],
    "transformer": ["diffusers", "FluxTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def begin(out: Path, autoencoder_run: Path, recogniser_run: Path, drawn: Path) -> None:
    """Everything but the models that are trained next; of the transformer only its sizes, transformer/config.json.

    The text encoders are random and stay so: their features of a small vocabulary are different for different words, which is all that is needed.
    """
    base, infu = out / "FLUX.1-tiny", out / "InfiniteYou-tiny"
    shown = faces.read(drawn, CAPTIONS)
    clip_vocab = write_clip_tokenizer(base / "tokenizer", shown.captions, vocab_size=1024)
    t5_vocab = write_t5_tokenizer(base / "tokenizer_2", shown.captions)
    clip = configs.CLIPTextConfig(vocab_size=clip_vocab, hidden_size=TEXT, intermediate_size=2 * TEXT, num_layers=2, num_heads=2, eos_token_id=clip_vocab - 1)
    t5 = configs.T5Config(vocab_size=t5_vocab, d_model=TEXT, d_kv=32, d_ff=2 * TEXT, num_layers=2, num_heads=2)
    words = _drawn("t5", t5)
    words["embedding.table"] *= 12  # so that a word's own embedding outweighs what random attention adds to it
    vae, arcface = (checkpoint.load_model(run, name) for run, name in ((autoencoder_run, "autoencoder"), (recogniser_run, "arcface")))
    _write(base / "text_encoder", "clip", clip, _drawn("clip", clip))
    _write(base / "text_encoder_2", "t5", t5, words)
    _write(base / "vae", "autoencoder", autoencoder.latent_scale(vae, shown.images[:512]), _host(vae))
    infu.mkdir(parents=True)
    _write(infu / "recognition_arcface_ir_se50.pth", "arcface", arcface.cfg, _host(arcface), dtype="float16")
    _write_json(base / "transformer" / "config.json", export.layout_for("flux", "diffusers").to_config(FLUX))
    write_index(base)


def finish(out: Path, begun: Path, trained: Mapping[str, Path], told: Mapping[str, Any]) -> None:
    """The whole stack: the folders of `begun` with what these runs trained, by the name of their stage, in bfloat16, and provenance.json."""
    shutil.copytree(begun, out)
    base, infu = out / "FLUX.1-tiny", out / "InfiniteYou-tiny"
    infuse = trained.get("stage2_id") or trained.get("stage2") or trained.get("stage1")
    scaled = checkpoint.load_model(base, "autoencoder").cfg  # with the scale of latents, which no training changes
    for place, run, name, dtype in (
        (base / "transformer", trained.get("base"), "flux", "bfloat16"),
        (base / "vae", trained.get("decoder"), "autoencoder", "bfloat16"),
        (infu / "InfuseNetModel", infuse, "infusenet", "bfloat16"),
        (infu / "image_proj_model.bin", infuse, "resampler", "bfloat16"),
        (infu / "recognition_arcface_ir_se50.pth", trained.get("recogniser"), "arcface", "float16"),
    ):
        if run is not None:
            model = checkpoint.load_model(run, name)
            _remove(place)
            _write(place, name, scaled if name == "autoencoder" else model.cfg, _host(model), dtype)
    _write_json(out / "provenance.json", told)


def _remove(place: Path) -> None:
    shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)


def write_index(base: Path) -> None:
    """The files of a FLUX folder that belong to no model, as FLUX.1-dev has them."""
    _write_json(base / "scheduler" / "scheduler_config.json", SCHEDULER)
    _write_json(base / "model_index.json", INDEX)


def _write(place: Path, model: str, cfg, params: Mapping[str, np.ndarray], dtype: str = "bfloat16") -> None:
    layout = export.layout_for(model, "diffusers")
    place.parent.mkdir(parents=True, exist_ok=True)
    export.write(place, layout, cfg, export.tensors(layout, cfg, params, dtype), SHARD_BYTES, export.is_file(model, "diffusers"))


def _drawn(model: str, cfg) -> dict[str, np.ndarray]:
    """A model's parameters as it draws them at random."""
    return _host(nnx.jit(lambda: MODELS[model][1](cfg, rngs=nnx.Rngs(0)))())


def _host(module) -> dict[str, np.ndarray]:
    return {name: np.array(value) for name, value in checkpoint.params_of(module).items()}


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
