"""How strongly InfuseNet speaks: likeness and obedience at several scales and windows of the furthest trained model."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from tqdm import tqdm

from examples.tiny_world import classifier, prompts
from examples.tiny_world.stages import World
from infu_jax import checkpoint, face
from infu_jax.assets import TINY_SAMPLING, TINY_TRUE_CFG
from infu_jax.evaluation.identities import Identity
from infu_jax.pipeline import InfUPipeline

SETTINGS = {
    "scale 0": {"conditioning_scale": 0.0},
    "scale 0.25": {"conditioning_scale": 0.25},
    "scale 0.5": {"conditioning_scale": 0.5},
    "scale 0.75": {"conditioning_scale": 0.75},
    "scale 1": {},
    "scale 1.25": {"conditioning_scale": 1.25},
    "from 0.1": {"guidance_start": 0.1},
    "from 0.3": {"guidance_start": 0.3},
    "until 0.5": {"guidance_end": 0.5},
}
BATCH = 16


def table(world: World, run: Path, who: list[Identity], asked: list[prompts.Asked]) -> str:
    """A markdown table of settings; every person with two prompts, the same noise for all settings."""
    pipeline = InfUPipeline.load(world.base, run, transformer=world.transformer, autoencoder=world.autoencoder, arcface=world.arcface)
    judge = checkpoint.load_model(world.out / "judge", "arcface")
    modules = classifier.load(world.out / "classifier")
    jobs = [(person, prompt) for person in who for prompt in [p for p in asked if p.gender == person.gender][:2]]
    photos = {person.name: face.read_image(person.photo) for person in who}
    seen = {name: _embedding(judge, pipeline.detector, photo) for name, photo in photos.items()}
    rows = ["| | identity similarity (judge) | attribute accuracy | faces found |", "|---|---|---|---|"]
    for name, changed in tqdm(SETTINGS.items(), desc="strengths", disable=None):
        settings = dataclasses.replace(TINY_SAMPLING, steps=world.sizes.sampling_steps, true_cfg=TINY_TRUE_CFG, **changed)
        images = []
        for start in range(0, len(jobs), BATCH):
            part = jobs[start : start + BATCH]
            filled = part + part[-1:] * (min(BATCH, len(jobs)) - len(part))
            made = pipeline(
                [prompt.text for _, prompt in filled], id_embedding=np.stack([pipeline.embed_face(photos[person.name]) for person, _ in filled]),
                negative_prompt="", seeds=[start + n for n in range(len(filled))], settings=settings,
            )  # fmt: skip
            images += list(made.images[: len(part)])
        found = [_embedding(judge, pipeline.detector, image) for image in images]
        likeness = [float(seen[person.name] @ e) for (person, _), e in zip(jobs, found, strict=True) if e is not None]
        scorer = classifier.Attributes(modules, {prompt.text: prompt.attributes for _, prompt in jobs})
        accuracy = scorer(images, [prompt.text for _, prompt in jobs]).mean()
        rows.append(f"| {name} | {np.mean(likeness) if likeness else float('nan'):.3f} | {accuracy:.3f} | {len(likeness) / len(jobs):.2f} |")
    return "\n".join(rows) + "\n"


def _embedding(judge, detector, image: np.ndarray) -> np.ndarray | None:
    try:
        crop = face.align(image, face.largest_face(detector, image).keypoints)
    except face.NoFaceError:
        return None
    return np.asarray(judge(face.arcface_input(crop)[None]))[0]
