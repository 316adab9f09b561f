"""The tiny world's InfuseNet, stage 1: snapshots, each of them identity and target (SPSS).

    python train.py examples/tiny_world/stage1.py

Needs what `python -m examples.tiny_world` made before it. Hardware: two CPU cores, about half an hour.
Expected result: docs/tiny_world.md.
"""

import dataclasses

from examples.tiny_world import base
from infu_jax.config import ResamplerConfig
from infu_jax.train_config import OptimizerConfig, TrainConfig


def get_config() -> TrainConfig:
    recipe = base.get_config()
    models = dataclasses.replace(
        recipe.models,
        transformer=base.WORLD / "base",
        arcface=base.WORLD / "stack/InfiniteYou-tiny/recognition_arcface_ir_se50.pth",
        base_from_scratch=False,
        infusenet_blocks=(1, 2),
        resampler=ResamplerConfig(dim=96, depth=2, heads=2, ff_mult=2),
    )
    return dataclasses.replace(
        recipe,
        out=base.WORLD / "stage1",
        trainable="infusenet",
        steps=2500,
        batch_size=32,
        models=models,
        data=dataclasses.replace(recipe.data, paths=(str(base.WORLD / "data/real"),)),
        # The paper has AdamW. Muon took the base about half the steps; for InfuseNet the two were not compared.
        optimizer=OptimizerConfig(kind="muon", learning_rate=1e-3, warmup_steps=50, decay="linear", ema_decay=0.995),
        checkpoint=dataclasses.replace(recipe.checkpoint, every_steps=250),
    )
