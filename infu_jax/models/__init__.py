"""The models, by the names that checkpoints, sharding rules and the command line use."""

from infu_jax import config
from infu_jax.models.arcface import ArcFace
from infu_jax.models.autoencoder import Autoencoder
from infu_jax.models.clip import CLIPTextEncoder
from infu_jax.models.clip_model import CLIPModel
from infu_jax.models.flux import Flux
from infu_jax.models.infusenet import InfuseNet
from infu_jax.models.resampler import Resampler
from infu_jax.models.t5 import T5Encoder

MODELS = {
    "flux": (config.FluxConfig, Flux),
    "infusenet": (config.InfuseNetConfig, InfuseNet),
    "resampler": (config.ResamplerConfig, Resampler),
    "autoencoder": (config.AutoencoderConfig, Autoencoder),
    "t5": (config.T5Config, T5Encoder),
    "clip": (config.CLIPTextConfig, CLIPTextEncoder),
    "clip_model": (config.CLIPModelConfig, CLIPModel),
    "arcface": (config.ArcFaceConfig, ArcFace),
}
