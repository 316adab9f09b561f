"""Every model of the release at toy size with seeded random weights, in the release's own layout: for tests, which need no trained ones.

It is made with the conversion rules run backwards, without torch.
"""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np

from examples.tiny_world.stack import write_index
from infu_jax import config as configs
from infu_jax.assets.tiny_tokenizers import write_clip_tokenizer, write_t5_tokenizer
from infu_jax.checkpoint import abstract, param_shapes
from infu_jax.convert import rules, safetensors, source, torch_writer
from infu_jax.convert.layout import Layout

SEED = 2503_16418
BF16 = ml_dtypes.bfloat16
SUBJECTS = ("a woman", "a man", "a girl with braids", "an old man with a beard", "a young woman with glasses", "a person", "a smiling man", "a chef")
PLACES = ("in a garden", "on a beach at sunset", "in a library", "in the rain at night", "on a mountain", "in an office", "at a market", "in space")
STYLES = ("portrait photo", "oil painting", "watercolor", "close-up, soft light", "film still", "pencil drawing", "cinematic, detailed", "studio light")
CORPUS = [f"{style} of {subject} {place}" for style in STYLES for subject in SUBJECTS for place in PLACES]

FLUX = configs.FluxConfig(
    vec_in_dim=32, context_in_dim=32, hidden_size=64, num_heads=2, depth=4, depth_single_blocks=8, axes_dim=(4, 14, 14),
)  # fmt: skip
INFUSENET = configs.InfuseNetConfig(
    vec_in_dim=32, context_in_dim=32, hidden_size=64, num_heads=2, depth=1, depth_single_blocks=2, axes_dim=(4, 14, 14),
)  # fmt: skip
RESAMPLER = configs.ResamplerConfig(dim=64, depth=2, heads=1, embedding_dim=128, output_dim=32)
AUTOENCODER = configs.AutoencoderConfig(channels=(16, 32, 32, 32), num_res_blocks=1, norm_groups=8)
ARCFACE = configs.ArcFaceConfig(widths=(16, 32, 48, 64), units=(1, 1, 1, 1), embedding_dim=128)


@functools.cache
def folders() -> tuple[Path, Path]:
    """FLUX.1-tiny and InfiniteYou-tiny, written once in a process."""
    folder = Path(tempfile.mkdtemp(prefix="random_stack_"))
    atexit.register(shutil.rmtree, folder)
    write(folder)
    return folder / "FLUX.1-tiny", folder / "InfiniteYou-tiny"


def write(out: Path) -> None:
    """Write FLUX.1-tiny and InfiniteYou-tiny to the folder `out`."""
    base, infu = out / "FLUX.1-tiny", out / "InfiniteYou-tiny"
    clip_vocab = write_clip_tokenizer(base / "tokenizer", CORPUS)
    t5_vocab = write_t5_tokenizer(base / "tokenizer_2", CORPUS)
    clip = configs.CLIPTextConfig(vocab_size=clip_vocab, hidden_size=32, intermediate_size=64, num_layers=2, num_heads=2, eos_token_id=clip_vocab - 1)
    t5 = configs.T5Config(vocab_size=t5_vocab, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2)
    write_folder(base / "transformer", "flux", FLUX)
    write_folder(base / "vae", "autoencoder", AUTOENCODER)
    write_folder(base / "text_encoder", "clip", clip)
    write_folder(base / "text_encoder_2", "t5", t5)
    write_folder(infu / "InfuseNetModel", "infusenet", INFUSENET)
    torch_writer.write_file(infu / "image_proj_model.bin", {"image_proj": tensors("resampler", RESAMPLER, BF16)})
    torch_writer.write_file(infu / "recognition_arcface_ir_se50.pth", tensors("arcface", ARCFACE, np.float32))
    write_index(base)


def _layout(model: str) -> Layout:
    """The layout that the release uses, the first of its table."""
    return next(layout for layout in source.LAYOUTS if layout.model == model)


def write_folder(folder: Path, model: str, cfg) -> None:
    """A model's folder in the release's layout, in bfloat16."""
    folder.mkdir(parents=True)
    stem = "model" if model in ("clip", "t5") else "diffusion_pytorch_model"
    safetensors.write_file(folder / f"{stem}.safetensors", tensors(model, cfg, BF16), metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(_layout(model).to_config(cfg), indent=2) + "\n", encoding="utf-8")


def tensors(model: str, cfg, dtype) -> dict[str, np.ndarray]:
    """Seeded random weights of a model, under the release's keys; floating-point numbers in `dtype`."""
    layout = _layout(model)
    ours = {path: _draw(path, s.shape, s.dtype) for path, s in param_shapes(abstract(model, cfg)).items()}
    plan = rules.plan(layout.rules(cfg), {path: a.shape for path, a in ours.items()})
    stored = lambda key: dtype if np.issubdtype(ours[plan.by_theirs[key][0].ours].dtype, np.floating) else np.int64  # noqa: E731
    return {key: plan.read_theirs(key, ours, stored(key)) for key in sorted(plan.their_shapes)}


def _draw(path: str, shape: tuple[int, ...], dtype) -> np.ndarray:
    """Values of a sensible size for a parameter's role, which its name tells."""
    if not np.issubdtype(dtype, np.floating):
        return np.zeros(shape, dtype)
    x = np.random.default_rng([SEED, *path.encode()]).standard_normal(shape, np.float32)
    name = path.rpartition(".")[2]
    if name in ("scale", "slope"):
        return 1 + 0.1 * x
    if name == "var":
        return 1 + 0.1 * np.abs(x)
    if name in ("bias", "mean"):
        return 0.05 * x
    stacked = "blocks." in path or "_out.kernel" in path and path.startswith(("double", "single"))
    fan_in = np.prod(shape[1 if stacked else 0 : -1]) if name == "kernel" and x.ndim > 1 else 16
    return x / np.sqrt(fan_in)
