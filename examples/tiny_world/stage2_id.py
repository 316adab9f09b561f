"""The tiny world's InfuseNet, after stage 2: the same pairs, and a loss that compares faces too. Not in the paper.

    python train.py examples/tiny_world/stage2_id.py

Needs what `python -m examples.tiny_world` made before it. Hardware: two CPU cores, about half an hour.
Expected result: docs/tiny_world.md.
"""

import dataclasses

from examples.tiny_world import base, stage2
from infu_jax.train_config import TrainConfig


def get_config() -> TrainConfig:
    recipe = stage2.get_config()
    return dataclasses.replace(
        recipe,
        out=base.WORLD / "stage2_id",
        steps=2000,
        models=dataclasses.replace(recipe.models, init=base.WORLD / "stage2"),
        accumulate=1,  # convolutions in a loop, here the decoder's, take a CPU ten times as long
        objective=dataclasses.replace(recipe.objective, id_weight=1.0, id_every=4),
        # Averaged over longer: the mean of two checkpoints had more of the prompt than the later one, and as many known people (docs/tiny_world.md).
        optimizer=dataclasses.replace(recipe.optimizer, ema_decay=0.998),
    )
