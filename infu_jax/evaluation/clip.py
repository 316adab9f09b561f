"""CLIP on pictures and prompts: files, preparation of pictures, embeddings."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Float32, UInt8
from PIL import Image

from infu_jax import checkpoint
from infu_jax.errors import InputError
from infu_jax.evaluation.measuring import Measure, fingerprint
from infu_jax.evaluation.statistics import cosine
from infu_jax.models.clip_model import CLIPModel
from infu_jax.sharding import batch_sharding, make_mesh
from infu_jax.tokenizers import Tokenizer, load_clip_tokenizer

OPENAI_MEAN, OPENAI_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Preparation:
    """What a picture goes through before the vision tower: preprocessor_config.json of a CLIP folder.

    Bit for bit transformers' CLIPImageProcessor on Pillow (the slow one of version 4, the Pil one of 5); the one on torchvision interpolates
    otherwise. resize: pixels of the shorter side, or (height, width). crop: (height, width) of the middle. resample: Pillow's number.
    """

    resize: int | tuple[int, int] = 224
    crop: tuple[int, int] = (224, 224)
    mean: tuple[float, ...] = OPENAI_MEAN
    std: tuple[float, ...] = OPENAI_STD
    resample: int = int(Image.Resampling.BICUBIC)

    @classmethod
    def read(cls, folder: Path, image_size: int) -> Preparation:
        """As the folder says; without a file, CLIP's usual way to pictures of `image_size`."""
        path = folder / "preprocessor_config.json"
        if not path.exists():
            return cls(image_size, (image_size, image_size))
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            steps = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")
            if off := [name for name in steps if not stored.get(name, True)]:
                raise InputError(f"{path} turns {off[0]} off; only CLIP's way of preparing pictures is supported")
            if not math.isclose(factor := stored.get("rescale_factor", 1 / 255), 1 / 255, rel_tol=1e-6):
                raise InputError(f"{path} has rescale_factor {factor}; only CLIP's way of preparing pictures (1 / 255) is supported")
            size, crop = stored.get("size", 224), stored.get("crop_size", 224)
            found = cls(
                resize=size if isinstance(size, int) else size["shortest_edge"] if "shortest_edge" in size else (size["height"], size["width"]),
                crop=(crop, crop) if isinstance(crop, int) else (crop["height"], crop["width"]),
                mean=tuple(stored.get("image_mean", OPENAI_MEAN)),
                std=tuple(stored.get("image_std", OPENAI_STD)),
                resample=stored.get("resample", int(Image.Resampling.BICUBIC)),
            )
        except InputError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError) as e:
            raise InputError(f"{path} is not the configuration of a CLIPImageProcessor: {e!r}") from None
        if found.crop != (image_size, image_size):
            raise InputError(f"{path} crops to {found.crop[1]}x{found.crop[0]}; the model takes {image_size}x{image_size}")
        return found

    def __call__(self, image: UInt8[np.ndarray, "h w 3"]) -> Float32[np.ndarray, "H W 3"]:
        """A picture as the vision tower takes it."""
        height, width = image.shape[:2]
        if isinstance(self.resize, int):
            longer = int(self.resize * max(height, width) / min(height, width))
            size = (self.resize, longer) if width <= height else (longer, self.resize)
        else:
            size = self.resize[::-1]
        pixels = np.asarray(Image.fromarray(image).resize(size, Image.Resampling(self.resample)))
        top, left = (pixels.shape[0] - self.crop[0]) // 2, (pixels.shape[1] - self.crop[1]) // 2
        if top < 0 or left < 0:
            raise InputError(f"pictures are resized to {size[0]}x{size[1]} and then cropped to {self.crop[1]}x{self.crop[0]}, which is more")
        pixels = pixels[top : top + self.crop[0], left : left + self.crop[1]]
        pixels = (pixels.astype(np.float64) * (1 / 255)).astype(np.float32)
        return (pixels - np.float32(self.mean)) / np.float32(self.std)


@dataclass
class CLIP:
    """CLIP with its tokenizer and preparation. `scale` is exp(logit_scale)."""

    model: CLIPModel
    tokenizer: Tokenizer
    preparation: Preparation
    mesh: Mesh
    dtype: Any

    @classmethod
    def load(cls, folder: Path, *, tokenizer: Path | None = None, mesh: Mesh | None = None, dtype: Any = jnp.float32) -> CLIP:
        """From a folder of transformers' CLIPModel, or our converted one.

        tokenizer: where the folder has none, this one, which must have the same ids.
        """
        mesh = mesh or make_mesh(devices=jax.devices()[:1])
        shapes = checkpoint.check(checkpoint.open_model(folder, "clip_model"), mesh)
        own = any((folder / name).is_file() for name in ("vocab.json", "tokenizer.json"))
        if not own and tokenizer is None:
            raise InputError(f"{folder} has no tokenizer (vocab.json and merges.txt, or tokenizer.json); name a folder that has, such as FLUX.1's tokenizer/")
        words = load_clip_tokenizer(folder if own else tokenizer)
        end = int(words.encode([""], 2)[0, 1])
        if words.vocab_size > shapes.cfg.text_vocab_size or end != shapes.cfg.text_eos_token_id:
            raise InputError(
                f"the tokenizer {folder if own else tokenizer} has {words.vocab_size} ids and ends texts with {end}; {folder} has {shapes.cfg.text_vocab_size} "
                f"and {shapes.cfg.text_eos_token_id}: they do not belong together"
            )
        preparation = Preparation.read(folder, shapes.cfg.vision_image_size)
        return cls(checkpoint.load_model(folder, "clip_model", mesh=mesh, dtype=dtype), words, preparation, mesh, dtype)

    @property
    def scale(self) -> float:
        return float(np.exp(np.float64(self.model.logit_scale[...])))

    def too_long(self, texts: Sequence[str]) -> int:
        """How many of the texts are longer than CLIP reads; the rest of them is cut off."""
        return sum(self.tokenizer.count(text) > self.model.cfg.text_max_positions for text in texts)

    def embed_texts(self, texts: Sequence[str], batch: int = 16) -> Float[np.ndarray, "n e"]:
        ids = self.tokenizer.encode(list(texts), self.model.cfg.text_max_positions)
        return self._batched(_embed_texts, ids, batch)

    def embed_images(self, images: Sequence[np.ndarray], batch: int = 16) -> Float[np.ndarray, "n e"]:
        """Of (h, w, 3) uint8 RGB pictures of any size."""
        return self._batched(_embed_images, np.stack([self.preparation(image) for image in images]), batch)

    def _batched(self, program, rows: np.ndarray, batch: int) -> np.ndarray:
        """Batches of one size, so that one program is compiled; what fills the last one up is dropped."""
        out = []
        with jax.set_mesh(self.mesh):
            for start in range(0, len(rows), batch):
                part = rows[start : start + batch]
                full = np.concatenate([part, np.repeat(part[-1:], batch - len(part), axis=0)])
                got = program(self.model, jax.device_put(full, batch_sharding(self.mesh, batch)), dtype=self.dtype)
                out.append(np.asarray(got)[: len(part)])
        return np.concatenate(out)


@partial(jax.jit, static_argnames="dtype")
def _embed_texts(model: CLIPModel, ids, *, dtype):
    return model.embed_text(ids, dtype=dtype)


@partial(jax.jit, static_argnames="dtype")
def _embed_images(model: CLIPModel, pixels, *, dtype):
    return model.embed_images(pixels, dtype=dtype)


class CosineScore:
    """Scorer of pictures and prompts: `factor` times the cosine of CLIP's embeddings of both."""

    def __init__(self, clip: CLIP, measure: Measure, factor: float = 1.0, batch: int = 16):
        self.clip, self.measure, self.factor, self.batch = clip, measure, factor, batch
        self._texts: dict[str, np.ndarray] = {}

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(self.clip.model)

    def __call__(self, images: Sequence[np.ndarray], prompts: Sequence[str]) -> Float[np.ndarray, " n"]:
        if new := [text for text in dict.fromkeys(prompts) if text not in self._texts]:
            self._texts.update(zip(new, self.clip.embed_texts(new, self.batch).astype(np.float64)))
        seen = self.clip.embed_images(images, self.batch).astype(np.float64)
        return self.factor * cosine(seen, np.stack([self._texts[text] for text in prompts]))


def clip_score(clip: CLIP, batch: int = 16) -> CosineScore:
    """CLIPScore, as the paper gives it."""
    about = "cosine of CLIP's embeddings of prompt and picture, as in the paper (torchmetrics gives 100 times it)"
    return CosineScore(clip, Measure("clip_score", "CLIPScore", "up", about), batch=batch)


def pick_score(clip: CLIP, batch: int = 16) -> CosineScore:
    """PickScore (Kirstain et al. 2023); `clip`: its CLIP-H."""
    about = "exp(logit_scale) times the cosine of PickScore's CLIP (the paper's numbers are a hundredth of it)"
    return CosineScore(clip, Measure("pick_score", "PickScore", "up", about), clip.scale, batch)
