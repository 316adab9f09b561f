"""What must hold before a pipeline paints: its models fit together, and a call says one thing."""

from __future__ import annotations

import numpy as np

from infu_jax import latents
from infu_jax.config import SamplingConfig
from infu_jax.errors import InputError
from infu_jax.tokenizers import Tokenizer


def check_models(flux, infusenet, resampler, t5, clip, autoencoder, arcface, t5_tokenizer: Tokenizer, clip_tokenizer: Tokenizer) -> None:
    """Parts of different models must agree where they meet."""
    pairs = [
        ("the transformer's and InfuseNet's hidden size", flux.cfg.hidden_size, infusenet.cfg.hidden_size),
        ("the transformer's text width and T5's width", flux.cfg.context_in_dim, t5.cfg.d_model),
        ("the transformer's pooled width and CLIP's width", flux.cfg.vec_in_dim, clip.cfg.hidden_size),
        ("InfuseNet's text width and the ID tokens' width", infusenet.cfg.context_in_dim, resampler.cfg.output_dim),
        ("InfuseNet's pooled width and CLIP's width", infusenet.cfg.vec_in_dim, clip.cfg.hidden_size),
        ("the resampler's input width and ArcFace's", resampler.cfg.embedding_dim, arcface.cfg.embedding_dim),
        ("the transformer's channels and four times the VAE's", flux.cfg.in_channels, autoencoder.cfg.z_channels * latents.PATCH**2),
        ("the transformer's and InfuseNet's channels", flux.cfg.in_channels, infusenet.cfg.in_channels),
        ("CLIP's end-of-text id and its tokenizer's", clip.cfg.eos_token_id, int(clip_tokenizer.encode([""], 2)[0, 1])),
    ]
    for what, a, b in pairs:
        if a != b:
            raise InputError(f"{what} differ: {a} and {b}; these checkpoints do not belong together")
    for what, ids, entries in (("T5", t5_tokenizer.vocab_size, t5.cfg.vocab_size), ("CLIP", clip_tokenizer.vocab_size, clip.cfg.vocab_size)):
        if ids > entries:
            raise InputError(f"{what}'s tokenizer has {ids} ids, its model {entries}; these files do not belong together")


def as_seeds(given, count: int) -> list[int]:
    """A seed for each picture; a single number counts up."""
    seeds = [given] if np.ndim(given) == 0 else list(given)
    if bad := [s for s in seeds if not isinstance(s, (int, np.integer))]:
        raise InputError(f"seeds {bad} are no whole numbers; give ints")
    return [int(s) for s in seeds] if np.ndim(given) else [int(given) + n for n in range(count)]


def as_embeddings(given, count: int, length: int) -> np.ndarray:
    """(count, length) float32 of one identity, or of one for each picture."""
    try:
        embedding = np.asarray(given, np.float32)
    except (TypeError, ValueError) as e:
        raise InputError(f"id_embedding is no array of numbers ({e}); ({length},) or ({count}, {length}) of them are needed here") from None
    if embedding.shape not in ((length,), (count, length)):
        raise InputError(f"id_embedding is {embedding.shape}; ({length},) or ({count}, {length}) is needed here")
    if not np.isfinite(embedding).all():
        raise InputError("id_embedding has numbers that are NaN or infinite; finite ones are needed")
    return np.broadcast_to(embedding, (count, length))


def check_call(prompts, seeds, num_images: int, settings: SamplingConfig, id_image, id_embedding, control_image, keypoints, negative_prompt) -> None:
    """The arguments of `InfUPipeline.__call__`, with prompts and seeds of each picture."""
    if num_images < 1:
        raise InputError(f"num_images is {num_images}; at least 1 is needed")
    if not prompts:
        raise InputError("no prompt was given; at least one is needed")
    if len(seeds) != len(prompts):
        raise InputError(f"{len(seeds)} seeds for {len(prompts)} pictures; give one seed a picture, or a single number")
    if bad := [s for s in seeds if not 0 <= s < 2**32]:
        raise InputError(f"seeds {bad} are out of range; 0 <= seed < {2**32} is needed")
    if (id_image is None) == (id_embedding is None):
        raise InputError("give either id_image or id_embedding, one of the two")
    if control_image is not None and keypoints is not None:
        raise InputError("give control_image or keypoints, not both")
    if settings.true_cfg > 1 and negative_prompt is None:
        raise InputError(f"true_cfg is {settings.true_cfg} but there is no negative_prompt; give one (it may be empty) or set true_cfg to 1")
