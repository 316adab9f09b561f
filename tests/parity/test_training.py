"""The training step against PyTorch autograd and torch.optim.AdamW on diffusers' models, from the same weights, batches and draws."""

import copy
import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from diffusers import AutoencoderKL, FluxControlNetModel, FluxTransformer2DModel
from diffusers.models.embeddings import IPAdapterPlusImageProjection

from infu_jax import face, objective, training
from infu_jax.checkpoint import abstract, params_of
from infu_jax.convert import autoencoder, flux, infusenet, resampler, rules
from infu_jax.flow import ScheduleConfig
from infu_jax.models import MODELS
from infu_jax.sharding import make_mesh, place_batch
from infu_jax.train_config import ObjectiveConfig, OptimizerConfig, TrainConfig
from tests.parity import tools
from tests.parity.test_resampler import released_names

FLUX = dict(in_channels=64, num_attention_heads=2, attention_head_dim=32, joint_attention_dim=24, pooled_projection_dim=12, axes_dims_rope=(4, 14, 14))
LAYOUTS = {"flux": flux.LAYOUTS[0], "infusenet": infusenet.LAYOUTS[0], "resampler": resampler.LAYOUTS[0], "autoencoder": autoencoder.LAYOUTS[0]}
B, HEIGHT, WIDTH, T, QUERIES, EMBEDDING = 4, 48, 80, 11, 5, 20  # 15 image tokens, 11 text tokens, 5 ID tokens
KEYPOINTS = np.array([[26.0, 14.0], [50.0, 12.0], [39.0, 26.0], [30.0, 38.0], [48.0, 37.0]])
OBJECTIVE = ObjectiveConfig(guidance=3.5, infusenet_guidance=1.0)
EXACT = OptimizerConfig(b1=0.0, clip_norm=None, warmup_steps=0)  # with b1 = 0 and no clipping Adam's first moment is the gradient
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def theirs():
    """5 + 7 base blocks under 2 + 3 InfuseNet blocks: no interval divides. Random everywhere, where training starts from zeros too."""
    return {
        "flux": tools.randomize(FluxTransformer2DModel(**FLUX, num_layers=5, num_single_layers=7, guidance_embeds=True, patch_size=1), seed=1),
        "infusenet": tools.randomize(FluxControlNetModel(**FLUX, num_layers=2, num_single_layers=3, guidance_embeds=True, patch_size=1), seed=2),
        "resampler": tools.randomize(
            IPAdapterPlusImageProjection(embed_dims=EMBEDDING, output_dims=24, hidden_dims=48, depth=2, dim_head=64, heads=1, num_queries=QUERIES), seed=3
        ),
        "autoencoder": tools.randomize(
            AutoencoderKL(
                block_out_channels=(8, 16, 16, 16), norm_num_groups=4, layers_per_block=1, latent_channels=16, scaling_factor=0.3611, shift_factor=0.1159,
                down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, use_quant_conv=False, use_post_quant_conv=False,
            ),
            seed=4,
        ),
    }  # fmt: skip


def tensors(model: str, module: torch.nn.Module, of=lambda p: p) -> dict[str, torch.Tensor]:
    """`of` every parameter under the names of the model's files: the parameter itself, or its gradient."""
    named = {name: of(p).detach().clone() for name, p in module.named_parameters()}
    return released_names(named) if model == "resampler" else named


class Ours:
    """Our models with the weights of theirs, by the production conversion rules, which carry gradients in both directions too."""

    def __init__(self, theirs):
        self.modules, self.plans = {}, {}
        for model, module in theirs.items():
            layout, files = LAYOUTS[model], tensors(model, module)
            cfg = layout.from_shapes({k: v.shape for k, v in files.items()}) if model == "resampler" else layout.from_config(module.config)
            self.modules[model] = tools.port(MODELS[model][1], cfg, layout, files)
            self.plans[model] = rules.plan(layout.rules(cfg), {name: x.shape for name, x in params_of(self.modules[model]).items()})


@pytest.fixture(scope="module")
def ours(theirs):
    return Ours(theirs)


def make_batch(seed: int) -> tuple[dict[str, np.ndarray], objective.Draws]:
    """Latents and text as features; control images as pictures, black ones and keypoints; one identity is dropped."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.standard_normal(shape, np.float32)  # noqa: E731
    cells = (B, HEIGHT // 8, WIDTH // 8, 16)
    black, keypoints = np.zeros((HEIGHT, WIDTH, 3), np.uint8), face.control_image_from_keypoints(KEYPOINTS, HEIGHT, WIDTH)
    assert keypoints.any()
    embedding = draw(B, EMBEDDING)
    batch = dict(
        latent_mean=draw(*cells), latent_logvar=draw(*cells) - 1, control=np.stack([keypoints, black, black, keypoints]), txt=draw(B, T, 24), y=draw(B, 12),
        id_embedding=embedding / np.linalg.norm(embedding, axis=-1, keepdims=True), id_keep=np.array([True, True, False, True]),
    )  # fmt: skip
    return batch, objective.Draws(np.float32(rng.uniform(0.05, 0.95, B)), draw(*cells), draw(*cells), draw(*cells))


def torch_losses(theirs, batch, draws, trainable) -> torch.Tensor:
    """The loss of each picture, written anew in PyTorch."""
    x = {name: torch.tensor(value) for name, value in batch.items()}
    t, noise, latent_noise, control_noise = (torch.tensor(value) for value in draws)
    config = theirs["autoencoder"].config

    def pack(z):  # (B, h, w, C) -> (B, L, 4 C)
        b, h, w, c = z.shape
        return z.view(b, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 5, 2, 4).reshape(b, h * w // 4, 4 * c)

    def scaled(mean, std, noise):
        return pack((mean + std * noise - config.shift_factor) * config.scaling_factor)

    x0, eps, ids = scaled(x["latent_mean"], torch.exp(0.5 * x["latent_logvar"]), latent_noise), pack(noise), torch.zeros(HEIGHT // 16, WIDTH // 16, 3)
    ids[..., 1] += torch.arange(HEIGHT // 16)[:, None]
    ids[..., 2] += torch.arange(WIDTH // 16)[None]
    z = (1 - t)[:, None, None] * x0 + t[:, None, None] * eps
    common = dict(hidden_states=z, timestep=t, pooled_projections=x["y"], img_ids=ids.reshape(-1, 3), return_dict=False)
    residuals = {}
    if trainable == "infusenet":
        with torch.no_grad():
            posterior = theirs["autoencoder"].encode(x["control"].permute(0, 3, 1, 2).float() / 127.5 - 1).latent_dist
        control = scaled(posterior.mean.permute(0, 2, 3, 1), posterior.std.permute(0, 2, 3, 1), control_noise)
        id_tokens = theirs["resampler"](torch.where(x["id_keep"][:, None], x["id_embedding"], 0)[:, None])
        double, single = theirs["infusenet"](
            controlnet_cond=control, guidance=torch.full((B,), OBJECTIVE.infusenet_guidance), encoder_hidden_states=id_tokens,
            txt_ids=torch.zeros(QUERIES, 3), **common,
        )  # fmt: skip
        residuals = dict(controlnet_block_samples=double, controlnet_single_block_samples=single)
    (v,) = theirs["flux"](guidance=torch.full((B,), OBJECTIVE.guidance), encoder_hidden_states=x["txt"], txt_ids=torch.zeros(T, 3), **residuals, **common)
    return torch.square(v - (eps - x0)).mean((1, 2))


class Run:
    """Our training of one kind, step by step, through the functions that train.py calls."""

    def __init__(self, ours: Ours, **settings):
        self.ours, cfg = ours, TrainConfig(out=pathlib.Path("nowhere"), batch_size=B, objective=OBJECTIVE, dtype="float32", **settings)
        names = training.TRAINED[cfg.trainable]
        trained = {name: abstract(name, ours.modules[name].cfg) for name in names}
        self.mesh = make_mesh(devices=jax.devices()[:1])
        shapes = training.abstract_state(cfg, trained, self.mesh)
        self.frozen = {name: ours.modules[name] for name in {"flux", "autoencoder"} - set(names)}
        params = {name: jax.tree.map(jnp.copy, params_of(ours.modules[name])) for name in names}  # each step consumes its state
        self.state = training.init_state(cfg, params, shapes)
        self.program = training.make_step(cfg, trained, shapes, self.mesh, ScheduleConfig(), jnp.float32)

    def step(self, batch, draws) -> training.Metrics:
        with jax.set_mesh(self.mesh):
            draws = objective.Draws(**place_batch(self.mesh, draws._asdict(), B))
            self.state, metrics = self.program(self.state, self.frozen, place_batch(self.mesh, batch, B), draws)
        return jax.device_get(metrics)


def errors(ours: Ours, arrays, theirs: dict[str, dict[str, torch.Tensor]]) -> dict[str, float]:
    """Of each of their parameters: max |difference| / max |theirs|. Every one must be there and differ from zero."""
    found = {}
    for model, tensors in theirs.items():
        plan, flat = ours.plans[model], {name: np.asarray(x) for name, x in arrays[model].items()}
        assert set(plan.their_shapes) == set(tensors)
        for key, tensor in tensors.items():
            tensor = tensor.numpy()
            assert np.abs(tensor).max() > 0, f"{model} {key} is zero: it shows nothing"
            found[f"{model} {key}"] = float(np.abs(plan.read_theirs(key, flat, np.float32) - tensor).max() / np.abs(tensor).max())
    worst = max(found, key=found.get)
    print(f"relative error {found[worst]:.1e}: the largest of {len(found)} parameters, {worst}")
    return found


@pytest.fixture(scope="module")
def autograd(theirs):
    """Their losses and gradients of one batch, for each kind of training; computed once."""

    def make(trainable):
        if trainable not in made:
            names = training.TRAINED[trainable]
            for module in theirs.values():
                module.zero_grad()
            each = torch_losses(theirs, *make_batch(0), trainable)
            each.mean().backward()
            made[trainable] = each.detach(), {name: tensors(name, theirs[name], lambda p: p.grad) for name in names}
        return made[trainable]

    made = {}
    return make


@pytest.mark.parametrize(
    "settings",
    [
        dict(),
        dict(in_backward=True),
        dict(remat="offload"),
        dict(remat="attention", accumulate=2),
        dict(remat="dots"),
        dict(remat="none"),
        dict(trainable="base"),
    ],
    ids=lambda settings: "-".join(map(str, settings.values())) or "block",
)
def test_gradients(ours, autograd, settings):
    each, gradients = autograd(settings.get("trainable", "infusenet"))
    settings = dict(settings)
    run = Run(ours, optimizer=dataclasses.replace(EXACT, in_backward=settings.pop("in_backward", False)), **settings)
    metrics = run.step(*make_batch(0))
    tools.assert_close(metrics.each, each)
    tools.assert_close(metrics.loss, each.mean())
    found = errors(ours, optax.tree.get(run.state.opt_state, "mu"), gradients)
    assert max(found.values()) <= TOLERANCE


@pytest.mark.parametrize("in_backward", [False, True])
def test_steps_of_adamw(theirs, ours, in_backward):
    """Four steps on four batches: clipping, rising and falling rate, weight decay.

    Adam divides by the root of the second moment: where a gradient is nothing but cancellation, the sign of a rounding error decides about a
    whole learning rate. So eps is about as large as that root is in the middle (1e-4), and amplifies nothing; then every number must agree,
    to 5e-4 of how far its parameter has moved at most.
    """
    settings = OptimizerConfig(
        learning_rate=1e-2, warmup_steps=2, decay="linear", final_rate=0.2, clip_norm=0.3, weight_decay=0.5, eps=1e-4, in_backward=in_backward
    )
    rates = [0.5e-2, 1e-2, 1e-2, 0.6e-2]
    models = {name: copy.deepcopy(module) for name, module in theirs.items()}
    before = {name: tensors(name, models[name]) for name in training.TRAINED["infusenet"]}
    parameters = [p for name in before for p in models[name].parameters()]
    adamw = torch.optim.AdamW(parameters, betas=(settings.b1, settings.b2), eps=settings.eps, weight_decay=settings.weight_decay)
    run = Run(ours, optimizer=settings, steps=len(rates))
    for step, rate in enumerate(rates):
        batch, draws = make_batch(step)
        each = torch_losses(models, batch, draws, "infusenet")
        adamw.zero_grad()
        each.mean().backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, settings.clip_norm)
        assert norm > 1.5 * settings.clip_norm
        adamw.param_groups[0]["lr"] = rate
        adamw.step()
        metrics = run.step(batch, draws)
        tools.assert_close(metrics.each, each, TOLERANCE)
        tools.assert_close(metrics.grad_norm, norm, TOLERANCE)
        np.testing.assert_allclose(metrics.learning_rate, rate, rtol=1e-6)
    moves = {name: {key: tensor - before[name][key] for key, tensor in tensors(name, models[name]).items()} for name in before}
    # As moves too, in our layout; the rules carry differences as they carry weights.
    ours_moved = {name: {key: x - params_of(ours.modules[name])[key] for key, x in run.state.params[name].items()} for name in before}
    assert max(errors(ours, ours_moved, moves).values()) <= 5e-4
