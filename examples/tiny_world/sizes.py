"""How much is drawn and trained: the full size for two CPU cores, a larger one for a GPU, and a smoke size that shows in minutes that everything
fits together."""

from __future__ import annotations

from dataclasses import dataclass, replace

from examples.tiny_world.fitting import Fit
from infu_jax.config import ArcFaceConfig


@dataclass(frozen=True)
class Folder:
    """People that `data_pipeline.people` draws. No two folders share a person."""

    people: int
    pictures: int
    look: str
    first: int  # number of the first person


@dataclass(frozen=True)
class Sizes:
    drawn: dict[str, Folder]
    recogniser: Fit
    judge: Fit
    judge_model: ArcFaceConfig  # of another shape than the recogniser that pictures are conditioned on
    autoencoder: Fit
    decoder: Fit
    classifier: Fit
    autoencoder_pictures: int  # of each folder
    base_steps: int
    stage1_steps: int
    stage2_steps: int
    stage2_id_steps: int  # after them, with an identity loss
    batch_size: int  # of the base; InfuseNet takes half
    spms_photos: int  # people whose pictures are synthesised
    spms_pictures: int  # of each, before the gates
    synthesis_prompts: int  # for each gender
    sampling_steps: int
    test_people: int
    test_prompts: int
    validation_share: float = 0.01
    encoded: int = 32  # pictures or captions that the frozen encoders take at once
    painted: int = 16  # pictures that are painted at once
    training: tuple = ()  # options of every training by train.py
    untrained: bool = False  # the models learn nothing, so what they paint cannot train others

    def count(self, name: str) -> int:
        """Pictures in a folder."""
        return self.drawn[name].people * self.drawn[name].pictures


FULL = Sizes(
    drawn={
        "web": Folder(6000, 4, "clean", 0),  # what the base model learns from
        "real": Folder(4000, 3, "snapshot", 100_000),  # people's photos: stage 1, and the identities of stage 2
        "faces": Folder(2000, 8, "mixed", 200_000),  # the recogniser's
        "judges": Folder(4000, 8, "mixed", 300_000),  # the second recogniser's; whom it does not know in drawings, it cannot judge in pictures
        "held_out": Folder(64, 4, "mixed", 900_000),
    },
    recogniser=Fit(steps=3000, batch_size=64, learning_rate=2e-3),
    judge=Fit(steps=5000, batch_size=64, learning_rate=2e-3, seed=1),
    judge_model=ArcFaceConfig(widths=(8, 20, 36, 72), units=(1, 1, 2, 3), embedding_dim=128, se_reduction=4),
    autoencoder=Fit(steps=2000, batch_size=16, learning_rate=2e-3, warmup_steps=300),
    decoder=Fit(steps=4000, batch_size=16, learning_rate=1e-3, weight_decay=0.0, seed=1),
    classifier=Fit(steps=1200, batch_size=64, learning_rate=2e-3),
    autoencoder_pictures=6000,
    base_steps=3000,
    stage1_steps=2500,
    stage2_steps=1000,
    stage2_id_steps=2000,
    batch_size=64,
    spms_photos=600,
    spms_pictures=16,
    synthesis_prompts=400,
    sampling_steps=16,
    test_people=50,
    test_prompts=8,
)

GPU = replace(
    FULL,
    drawn={
        "web": Folder(6000, 4, "clean", 0),
        "real": Folder(6000, 4, "snapshot", 100_000),
        "faces": Folder(8000, 5, "mixed", 200_000),
        "judges": Folder(8000, 5, "mixed", 300_000),
        "held_out": Folder(64, 4, "mixed", 900_000),
    },
    recogniser=Fit(steps=3000, batch_size=256, learning_rate=2e-3),
    judge=Fit(steps=3000, batch_size=256, learning_rate=2e-3, seed=1),
    judge_model=ArcFaceConfig(widths=(16, 32, 64, 128), units=(2, 2, 4, 2), embedding_dim=128, se_reduction=4),
    base_steps=8000,
    stage1_steps=8000,
    stage2_steps=2000,
    stage2_id_steps=4000,
    batch_size=256,
    spms_photos=1500,
    encoded=256,
    painted=128,
    validation_share=0.03,  # a batch, at least
    training=(
        "--accumulate", 1, "--remat", "none", "--dtype", "float32", "--data.workers", 8, "--data.threads", 1, "--data.prefetch", 16,
        "--checkpoint.every-steps", 2000, "--validation.every-steps", 2000,
    ),
)  # fmt: skip

SMOKE = Sizes(
    drawn={
        "web": Folder(40, 4, "clean", 0),
        "real": Folder(24, 4, "snapshot", 100_000),
        "faces": Folder(8, 4, "mixed", 200_000),
        "judges": Folder(8, 4, "mixed", 300_000),
        "held_out": Folder(4, 3, "mixed", 900_000),
    },
    recogniser=Fit(steps=4, batch_size=8),
    judge=Fit(steps=4, batch_size=8, seed=1),
    judge_model=FULL.judge_model,
    autoencoder=Fit(steps=4, batch_size=4),
    decoder=Fit(steps=4, batch_size=4, weight_decay=0.0),
    classifier=Fit(steps=4, batch_size=8),
    autoencoder_pictures=16,
    base_steps=4,
    stage1_steps=4,
    stage2_steps=4,
    stage2_id_steps=4,
    batch_size=16,
    spms_photos=16,
    spms_pictures=4,
    synthesis_prompts=4,
    sampling_steps=2,
    test_people=2,
    test_prompts=2,
    validation_share=0.25,
    untrained=True,
)
