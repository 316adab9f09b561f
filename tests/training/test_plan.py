"""The plan plans what training does: its batches are the loader's. The rest of it: `tests/test_plan.py`."""

from pathlib import Path

import pytest

from data_pipeline.loader import open_loader
from infu_jax.config import FluxConfig, InfuseNetConfig, ResamplerConfig
from infu_jax.plan import training as plan
from infu_jax.plan.settings import TrainArgs
from infu_jax.tokenizers import load_clip_tokenizer, load_t5_tokenizer
from infu_jax.train_config import DataConfig, ModelsConfig, ObjectiveConfig
from tests import random_stack

FLUX, INFU = random_stack.folders()


def args(**changes):
    models = ModelsConfig(base=FLUX, arcface=INFU / "recognition_arcface_ir_se50.pth", infusenet_blocks=(1, 2))
    return TrainArgs(**{"out": Path("unused"), "models": models, "batch_size": 8, **changes})


@pytest.mark.parametrize(
    ("features", "objective"),
    [
        ((), {}),
        (("latents", "control", "t5", "clip", "arcface"), {"id_weight": 0.5}),
        (("control", "clip"), {}),
        (("latents", "clip"), {"face_weight": 4.0, "id_weight": 1.0}),
    ],
)
def test_batches_are_the_loaders(featured, features, objective):
    objective = ObjectiveConfig(**objective)
    data = DataConfig(paths=(str(featured),), resolution=64, bucket_step=16, t5_length=16, max_aspect=1.0, features=features)
    tokenizers = dict(t5_tokenizer=load_t5_tokenizer(FLUX / "tokenizer_2"), clip_tokenizer=load_clip_tokenizer(FLUX / "tokenizer"))
    with open_loader(data, batch_size=4, seed=0, faces=objective.faces, **tokenizers) as loader:
        [(height, width)] = loader.buckets
        found = {k: (x.shape[1:], str(x.dtype)) for k, x in loader.example((height, width)).items() if k not in ("record", "epoch")}
    asked = args(data=data, height=height, width=width, objective=objective)
    assert plan.batch_shapes(asked, plan.model_sizes(asked), set(features)) == found


def test_sizes():
    """Those of the files that are there, or the release's."""
    there, absent = plan.model_sizes(args()), plan.model_sizes(args(models=ModelsConfig()))
    assert there["flux"].hidden_size == 64 and (there["infusenet"].depth, there["infusenet"].depth_single_blocks, there["infusenet"].hidden_size) == (1, 2, 64)
    assert (there["resampler"].embedding_dim, there["resampler"].output_dim) == (128, 32)
    assert absent["flux"] == FluxConfig() and absent["infusenet"] == InfuseNetConfig() and absent["resampler"] == ResamplerConfig()
