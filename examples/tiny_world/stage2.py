"""The tiny world's InfuseNet, stage 2: a snapshot is the identity, another, synthetic picture of the same person the target (SPMS).

    python train.py examples/tiny_world/stage2.py
    python train.py examples/tiny_world/stage2.py --data.pairing spss --out runs/tiny_world/stage2_single     # the paper's ablation

Needs what `python -m examples.tiny_world` made before it. Hardware: two CPU cores, about a quarter of an hour.
Expected result: docs/tiny_world.md.
"""

import dataclasses

from examples.tiny_world import base, stage1
from infu_jax.train_config import TrainConfig


def get_config() -> TrainConfig:
    recipe = stage1.get_config()
    return dataclasses.replace(
        recipe,
        out=base.WORLD / "stage2",
        steps=1000,
        models=dataclasses.replace(recipe.models, init=base.WORLD / "stage1"),
        data=dataclasses.replace(recipe.data, paths=(str(base.WORLD / "data/spms"),), pairing="spms"),
        # As in the paper half of stage 1's learning rate.
        optimizer=dataclasses.replace(recipe.optimizer, learning_rate=recipe.optimizer.learning_rate / 2),
    )
