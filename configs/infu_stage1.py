"""Stage 1 of InfiniteYou, pretraining on real single-person-single-sample data (paper section 4.1).

    python train.py configs/infu_stage1.py --data.paths /data/spss

on every host of a TPU pod or GPU cluster (docs/training.md has the launch command for each kind). Needs FLUX.1-dev/ and
recognition_arcface_ir_se50.pth in the working folder, or `--models.base` and `--models.arcface`.

Hardware: the paper used 128 H100 80 GB for 300,000 steps of 512 pictures. Fewer devices need `--accumulate`, or a smaller `--batch-size`.
Expected result: the paper's "without stage 2" row, ID loss 0.172, CLIPScore 0.292, PickScore 0.212 on its 200 prompts and 15 identities.
It has not been reproduced with this code: that takes the paper's data and hardware.

Paper: AdamW (0.9, 0.999), weight decay 0.01, learning rate 2e-5, batch 512, 300,000 steps, times rf/lognorm(0, 1), aspect-ratio buckets.
Everything else is an assumption of ours, marked so in `infu_jax/train_config.py`: warm-up, no decay, clipping at 1, no average, dropouts
of 10 %, keypoints for half of the samples, guidance 1, InfuseNet from the base's first blocks, the 1024 class of buckets.
"""

from pathlib import Path

from infu_jax.train_config import CheckpointConfig, DataConfig, OptimizerConfig, TrainConfig, ValidationConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        out=Path("runs/infu_stage1"),
        steps=300_000,
        batch_size=512,
        data=DataConfig(paths=("data/spss",), pairing="spss"),
        optimizer=OptimizerConfig(learning_rate=2e-5),
        checkpoint=CheckpointConfig(every_steps=1000, keep=3, keep_every_steps=50_000),
        validation=ValidationConfig(every_steps=5000),
    )
