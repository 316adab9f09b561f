"""The tiny world's base model, text to picture, from random weights.

    python train.py examples/tiny_world/base.py

Needs what `python -m examples.tiny_world` made before it. Hardware: two CPU cores, about two hours if two devices are simulated, as that command does.
Expected result: docs/tiny_world.md.
"""

from pathlib import Path

from infu_jax.config import MeshConfig
from infu_jax.train_config import CheckpointConfig, DataConfig, ModelsConfig, ObjectiveConfig, OptimizerConfig, TrainConfig, ValidationConfig

WORLD = Path("runs/tiny_world")


def get_config() -> TrainConfig:
    return TrainConfig(
        out=WORLD / "base",
        trainable="base",
        steps=6000,
        batch_size=64,
        accumulate=4,  # small parts stay in a CPU's caches
        mesh=MeshConfig(data=-1),
        models=ModelsConfig(base=WORLD / "stack/FLUX.1-tiny", arcface=None, base_from_scratch=True),
        data=DataConfig(paths=(str(WORLD / "data/web"),), resolution=128, bucket_step=16, max_aspect=1.0, t5_length=56, threads=2),
        # The guidance that sampling asks for by default; nothing is distilled here, so any one number would do. The paper's loss has no weights:
        # with these, faces are clearer and more like the person (docs/tiny_world.md).
        objective=ObjectiveConfig(guidance=3.5, face_weight=6.0),
        optimizer=OptimizerConfig(kind="muon", learning_rate=2e-3, warmup_steps=50, decay="linear", ema_decay=0.995),
        checkpoint=CheckpointConfig(every_steps=250, keep=2),
        validation=ValidationConfig(every_steps=500, batches=1, pictures=8, sampling_steps=20),
        log_every_steps=25,
    )
