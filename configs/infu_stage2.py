"""Stage 2 of InfiniteYou, supervised fine-tuning on synthetic single-person-multiple-sample data (paper section 4.1).

    python train.py configs/infu_stage2.py --data.paths /data/spms --models.init runs/infu_stage1

A real photo is the identity, a generated picture of the same person the target. Starts from stage 1's weights: a run, one of its
checkpoints, or the release's `sim_stage1` folder.

Hardware: the paper used 64 H100 80 GB, batches of 256.
Expected result: the paper's InfU row, ID loss 0.209, CLIPScore 0.318, PickScore 0.221. Not reproduced with this code, see infu_stage1.py.

Paper: as stage 1, but learning rate 1e-5 and batch 256; it does not state the number of steps, 20,000 (2.5 times its 2 million pictures)
is our assumption.
"""

from pathlib import Path

from infu_jax.train_config import CheckpointConfig, DataConfig, ModelsConfig, OptimizerConfig, TrainConfig, ValidationConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        out=Path("runs/infu_stage2"),
        steps=20_000,
        batch_size=256,
        models=ModelsConfig(init=Path("runs/infu_stage1")),
        data=DataConfig(paths=("data/spms",), pairing="spms"),
        optimizer=OptimizerConfig(learning_rate=1e-5),
        checkpoint=CheckpointConfig(every_steps=500, keep=3, keep_every_steps=5000),
        validation=ValidationConfig(every_steps=1000),
    )
