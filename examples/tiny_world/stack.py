"""The folders that hold the tiny world's models, in the layout of the release: FLUX.1-tiny and InfiniteYou-tiny."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from examples.tiny_world import autoencoder, faces
from infu_jax import checkpoint
from infu_jax import config as configs
from infu_jax.assets import make_tiny
from infu_jax.assets.tiny_tokenizers import write_clip_tokenizer, write_t5_tokenizer
from infu_jax.convert import torch_writer

TEXT = 64  # channels of both text encoders
FLUX = configs.FluxConfig(
    in_channels=32, out_channels=32, vec_in_dim=TEXT, context_in_dim=TEXT, hidden_size=160, num_heads=5, depth=2, depth_single_blocks=8, axes_dim=(4, 14, 14),
)  # fmt: skip
AUTOENCODER = configs.AutoencoderConfig(channels=(16, 32, 64, 64), num_res_blocks=1, norm_groups=8, z_channels=8)
ARCFACE = configs.ArcFaceConfig(widths=(16, 32, 48, 64), units=(1, 2, 2, 2), embedding_dim=96)
JUDGE = configs.ArcFaceConfig(widths=(16, 24, 40, 72), units=(1, 1, 2, 3), embedding_dim=128)
CAPTIONS = 4000  # that the vocabularies are made of


def write(out: Path, autoencoder_run: Path, recogniser_run: Path, drawn: Path) -> None:
    """Everything but the two models that are trained next, which are there as sizes (transformer/config.json) only.

    The text encoders are random and stay so: their features of a small vocabulary are different for different words, which is all that is needed.
    """
    base, infu = out / "FLUX.1-tiny", out / "InfiniteYou-tiny"
    shown = faces.read(drawn, CAPTIONS)
    clip_vocab = write_clip_tokenizer(base / "tokenizer", shown.captions, vocab_size=1024)
    t5_vocab = write_t5_tokenizer(base / "tokenizer_2", shown.captions)
    clip = configs.CLIPTextConfig(vocab_size=clip_vocab, hidden_size=TEXT, intermediate_size=2 * TEXT, num_layers=2, num_heads=2, eos_token_id=clip_vocab - 1)
    t5 = configs.T5Config(vocab_size=t5_vocab, d_model=TEXT, d_kv=32, d_ff=2 * TEXT, num_layers=2, num_heads=2)
    make_tiny.write_folder(base / "text_encoder", "clip", clip)
    make_tiny.write_folder(base / "text_encoder_2", "t5", t5, _loud_words(make_tiny.seeded("t5", t5)))
    vae = checkpoint.load_model(autoencoder_run, "autoencoder")
    make_tiny.write_folder(base / "vae", "autoencoder", autoencoder.latent_scale(vae, shown.images[:512]), _host(vae))
    make_tiny.write_config(base / "transformer", "flux", FLUX)
    make_tiny.write_index(base)
    infu.mkdir(parents=True)
    arcface = checkpoint.load_model(recogniser_run, "arcface")
    torch_writer.write_file(infu / "recognition_arcface_ir_se50.pth", make_tiny.tensors("arcface", arcface.cfg, np.float32, _host(arcface)))


def _host(module) -> dict[str, np.ndarray]:
    return {name: np.asarray(value) for name, value in checkpoint.params_of(module).items()}


def _loud_words(params: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """T5 parameters in which a word's own embedding outweighs what random attention adds to it."""
    return {name: value * (6 if name == "embedding.table" else 1) for name, value in params.items()}


def finish(out: Path, stack: Path, base_run: Path, infuse_run: Path, told: Mapping[str, Any]) -> None:
    """The whole stack as `out`: the folders of `stack` with the trained transformer, InfuseNet and resampler in bfloat16, and provenance.json."""
    shutil.copytree(stack, out)
    base, infu = out / "FLUX.1-tiny", out / "InfiniteYou-tiny"
    shutil.rmtree(base / "transformer")
    flux, infusenet, resampler = (checkpoint.load_model(run, name) for run, name in ((base_run, "flux"), (infuse_run, "infusenet"), (infuse_run, "resampler")))
    make_tiny.write_folder(base / "transformer", "flux", flux.cfg, _host(flux))
    make_tiny.write_folder(infu / "InfuseNetModel", "infusenet", infusenet.cfg, _host(infusenet))
    projection = make_tiny.tensors("resampler", resampler.cfg, make_tiny.BF16, _host(resampler))
    torch_writer.write_file(infu / "image_proj_model.bin", {"image_proj": projection})
    (out / "provenance.json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
