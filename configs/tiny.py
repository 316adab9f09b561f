"""A whole training run on a laptop in minutes: InfuseNet on drawn people, over the embedded tiny base.

    python -m data_pipeline.people data/people --people 40 --pictures 4 --height 144 --width 112 --look clean
    python -m data_pipeline.build --source data/people/manifest.jsonl --out data/tiny --filters.min-side 96 --filters.min-face 32 \\
        --filters.min-sharpness 0 --validation-share 0.1
    python train.py configs/tiny.py

Hardware: two CPU cores. A few minutes show that training works; examples/tiny_world, whose base this is, trains for as long as it takes.
"""

from pathlib import Path

from infu_jax.assets import TINY
from infu_jax.config import ResamplerConfig
from infu_jax.train_config import CheckpointConfig, DataConfig, ModelsConfig, OptimizerConfig, TrainConfig, ValidationConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        out=Path("runs/tiny"),
        steps=200,
        batch_size=8,
        models=ModelsConfig(
            base=TINY / "FLUX.1-tiny",
            arcface=TINY / "InfiniteYou-tiny" / "recognition_arcface_ir_se50.pth",
            infusenet_blocks=(1, 2),
            resampler=ResamplerConfig(dim=64, depth=2, heads=1),
        ),
        data=DataConfig(paths=("data/tiny",), resolution=128, bucket_step=16, t5_length=32, threads=2),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=20, ema_decay=0.99),
        checkpoint=CheckpointConfig(every_steps=50),
        validation=ValidationConfig(every_steps=100, batches=1, pictures=4, sampling_steps=8),
    )
