"""A release folder of random torch models, saved by torch, diffusers and transformers themselves, and its reference sampler."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxControlNetModel, FluxTransformer2DModel
from diffusers.models.embeddings import IPAdapterPlusImageProjection
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5TokenizerFast

from infu_jax.assets.tiny_tokenizers import write_clip_tokenizer, write_t5_tokenizer
from tests import random_stack
from tests.parity.test_resampler import released_names
from tests.parity.tools import randomize

FLUX = dict(in_channels=64, num_attention_heads=2, attention_head_dim=32, joint_attention_dim=24, pooled_projection_dim=16, axes_dims_rope=(4, 14, 14))
EMBEDDING = random_stack.ARCFACE.embedding_dim


@dataclass
class Release:
    """Folders as a user has them, and the torch models that were saved into them."""

    base: Path
    infu: Path
    flux: FluxTransformer2DModel
    infusenet: FluxControlNetModel
    vae: AutoencoderKL
    t5: T5EncoderModel
    clip: CLIPTextModel
    resampler: IPAdapterPlusImageProjection


def make_release(folder: Path, *, guidance: bool = True) -> Release:
    """5 + 7 base blocks under 2 + 3 InfuseNet blocks: no interval divides. With `guidance` False the base is a schnell."""
    base, infu = folder / "FLUX.1", folder / "InfiniteYou"
    clip_vocab = write_clip_tokenizer(base / "tokenizer", random_stack.CORPUS)
    t5_vocab = write_t5_tokenizer(base / "tokenizer_2", random_stack.CORPUS)
    flux = randomize(FluxTransformer2DModel(**FLUX, num_layers=5, num_single_layers=7, guidance_embeds=guidance, patch_size=1), seed=1)
    infusenet = randomize(FluxControlNetModel(**FLUX, num_layers=2, num_single_layers=3, guidance_embeds=True, patch_size=1), seed=2)
    vae = randomize(
        AutoencoderKL(
            block_out_channels=(8, 16, 16, 16), norm_num_groups=4, layers_per_block=1, latent_channels=16, scaling_factor=0.3611, shift_factor=0.1159,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, use_quant_conv=False, use_post_quant_conv=False,
        ),
        seed=3,
    )  # fmt: skip
    t5 = randomize(
        T5EncoderModel(T5Config(vocab_size=t5_vocab, d_model=24, d_kv=8, num_heads=2, d_ff=32, num_layers=2, feed_forward_proj="gated-gelu")), seed=4
    )
    clip = randomize(
        CLIPTextModel(
            CLIPTextConfig(
                vocab_size=clip_vocab, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=77,
                eos_token_id=clip_vocab - 1, bos_token_id=clip_vocab - 2, pad_token_id=clip_vocab - 1,
            )
        ),
        seed=5,
    )  # fmt: skip
    resampler = randomize(
        IPAdapterPlusImageProjection(embed_dims=EMBEDDING, output_dims=24, hidden_dims=32, depth=2, dim_head=64, heads=1, num_queries=8), seed=6
    )
    flux.save_pretrained(base / "transformer", max_shard_size="300KB")  # several shards, as the real one
    vae.save_pretrained(base / "vae")
    t5.save_pretrained(base / "text_encoder_2", max_shard_size="20KB")
    clip.save_pretrained(base / "text_encoder")
    infusenet.save_pretrained(infu / "InfuseNetModel", max_shard_size="400KB")
    torch.save({"image_proj": released_names(resampler.state_dict())}, infu / "image_proj_model.bin")
    arcface = random_stack.tensors("arcface", random_stack.ARCFACE, np.float32)
    torch.save({k: torch.from_numpy(v) for k, v in arcface.items()}, infu / "recognition_arcface_ir_se50.pth")
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0 if guidance else 1.0, use_dynamic_shifting=guidance)
    scheduler.save_pretrained(base / "scheduler")
    (base / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    return Release(base, infu, flux, infusenet, vae, t5, clip, resampler)


@torch.no_grad()
def reference(
    release: Release, prompts, *, id_embedding, control_image, noise, control_noise, width, height, steps, guidance=3.5, scale=1.0, start=0.0, end=1.0,
    negative=None, true_cfg=1.0, t5_length=512,
) -> dict:  # fmt: skip
    """The release's sampling loop on diffusers' models, float32: the trace that ours must equal. NumPy in and out, pictures NHWC."""
    batch, h, w = len(prompts), height // 8, width // 8

    def text(prompts):
        clip_ids = CLIPTokenizer.from_pretrained(release.base / "tokenizer")(
            prompts, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
        ).input_ids
        t5_ids = T5TokenizerFast.from_pretrained(release.base / "tokenizer_2")(
            prompts, padding="max_length", max_length=t5_length, truncation=True, return_tensors="pt"
        ).input_ids
        return release.t5(t5_ids)[0], release.clip(clip_ids).pooler_output

    def pack(x):  # (B, C, h, w) -> (B, L, 4 C)
        return x.view(batch, 16, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(batch, (h // 2) * (w // 2), 64)

    def nchw(x):
        return torch.tensor(np.ascontiguousarray(np.moveaxis(x, -1, 1)), dtype=torch.float32)

    txt, y = text(prompts)
    id_tokens = release.resampler(torch.tensor(id_embedding)[:, None])
    pixels = nchw(np.broadcast_to(control_image[None], (batch, *control_image.shape))) / 127.5 - 1
    posterior = release.vae.encode(pixels).latent_dist
    control = pack((posterior.mean + posterior.std * nchw(control_noise) - release.vae.config.shift_factor) * release.vae.config.scaling_factor)

    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(release.base / "scheduler")
    length = (h // 2) * (w // 2)
    mu = 0.5 + (length - 256) * (1.15 - 0.5) / (4096 - 256)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu if scheduler.config.use_dynamic_shifting else None)
    rows, cols = torch.meshgrid(torch.arange(h // 2), torch.arange(w // 2), indexing="ij")
    img_ids = torch.stack([torch.zeros_like(rows), rows, cols], -1).reshape(-1, 3).float()
    embeds = release.flux.config.guidance_embeds

    def base(z, t, txt, y, double=None, single=None):
        return release.flux(
            hidden_states=z, timestep=t, guidance=torch.full((batch,), guidance) if embeds else None, pooled_projections=y, encoder_hidden_states=txt,
            txt_ids=torch.zeros(txt.shape[1], 3), img_ids=img_ids, controlnet_block_samples=double, controlnet_single_block_samples=single, return_dict=False,
        )[0]  # fmt: skip

    z = pack(nchw(noise))
    trace = dict(txt=txt, y=y, id_tokens=id_tokens, control_latents=control, velocity=[], latents=[], double_residuals=[])
    for k, t in enumerate(scheduler.timesteps):
        t_batch = (t / 1000).expand(batch)
        # As the release does it, InfuseNet always runs, and outside its window its scale is 0.
        keep = 1.0 - float(k / steps < start or (k + 1) / steps > end)
        double, single = release.infusenet(
            hidden_states=z, controlnet_cond=control, conditioning_scale=scale * keep, timestep=t_batch, guidance=torch.ones(batch), pooled_projections=y,
            encoder_hidden_states=id_tokens, txt_ids=torch.zeros(id_tokens.shape[1], 3), img_ids=img_ids, return_dict=False,
        )  # fmt: skip
        v = base(z, t_batch, txt, y, double, single)
        if true_cfg > 1:
            away = base(z, t_batch, *text([negative] * batch))
            v = away + true_cfg * (v - away)
        z = scheduler.step(v, t, z, return_dict=False)[0]
        trace["velocity"].append(v)
        trace["latents"].append(z)
        trace["double_residuals"].append(torch.stack(double))
    x = z.view(batch, h // 2, w // 2, 16, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(batch, 16, h, w)
    image = release.vae.decode(x / release.vae.config.scaling_factor + release.vae.config.shift_factor).sample
    trace["image"] = image.permute(0, 2, 3, 1)
    return {k: [x.numpy() for x in v] if isinstance(v, list) else v.numpy() for k, v in trace.items()}
