"""One training step and some: meshes, accumulation, what is frozen, overfitting, the start from zero."""

import functools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from infu_jax import checkpoint, flow, identity_loss, initial, latents, objective, optimizer, sampler, training
from infu_jax.checkpoint import abstract, param_shapes, params_of, with_params
from infu_jax.config import ArcFaceConfig, AutoencoderConfig, FluxConfig, InfuseNetConfig, ResamplerConfig
from infu_jax.errors import InputError
from infu_jax.face import ARCFACE_POINTS
from infu_jax.models.arcface import ArcFace
from infu_jax.models.flux import rope
from infu_jax.sharding import RULES, batch_part, batch_sharding, make_mesh, param_shardings
from infu_jax.train_config import ObjectiveConfig, OptimizerConfig, TrainConfig
from tests.conftest import ROOT

SIZES = dict(vec_in_dim=16, context_in_dim=32, hidden_size=128, num_heads=4, axes_dim=(8, 12, 12))
FLUX = FluxConfig(**SIZES, depth=2, depth_single_blocks=3)
INFUSENET = InfuseNetConfig(**SIZES, depth=1, depth_single_blocks=2)
RESAMPLER = ResamplerConfig(dim=32, depth=1, dim_head=16, heads=2, num_queries=4, embedding_dim=24, output_dim=32)
AUTOENCODER = AutoencoderConfig(channels=(8, 8), num_res_blocks=1, norm_groups=4)
SCHEDULE = flow.ScheduleConfig()
CONFIGS = {"flux": FLUX, "infusenet": INFUSENET, "resampler": RESAMPLER, "autoencoder": AUTOENCODER}


def model(name, mesh, zero_outputs=False):
    """Random weights of a module, nonzero everywhere unless asked."""
    module = abstract(name, CONFIGS[name])
    shapes = {k: s.shape for k, s in param_shapes(module).items()}
    shardings = param_shardings(mesh, RULES[name], shapes)
    draw = np.random.default_rng(len(name)).standard_normal
    values = {k: draw(s, np.float32) * (0.05 if k.endswith("bias") else 0.5 / math.sqrt(max(s[-2:]))) + k.endswith("scale") for k, s in shapes.items()}
    if name == "flux":
        values["final_layer.linear.kernel"] *= 8  # its input has a fixed length: large enough to reach any velocity
    if zero_outputs:
        values |= {k: np.zeros(s, np.float32) for k, s in shapes.items() if k.startswith(("double_out", "single_out", "control_in"))}
    return with_params(module, {k: jax.device_put(v.astype(np.float32), shardings[k]) for k, v in values.items()})


def batch(mesh, size=8, tokens=8, side=8):
    draw = np.random.default_rng(1).standard_normal
    latent = lambda: draw((size, side, side, 16), np.float32)  # noqa: E731
    made = {
        "latent_mean": latent(), "latent_logvar": latent() - 4, "control_mean": latent(), "control_logvar": latent() - 4,
        "txt": draw((size, tokens, 32), np.float32), "y": draw((size, 16), np.float32), "id_embedding": draw((size, 24), np.float32),
        "id_keep": np.arange(size) % 4 != 3, "record": np.arange(size),
    }  # fmt: skip
    return {k: jax.device_put(v, batch_sharding(mesh, size)) for k, v in made.items()}


def config(**changes):
    adamw = OptimizerConfig(**{"learning_rate": 1e-3, "warmup_steps": 2, "eps": 1e-4, **changes.pop("optimizer", {})})
    return TrainConfig(out=Path("unused"), batch_size=8, steps=100, optimizer=adamw, **changes)


def arcface(mesh):
    """Of random weights, for crops of 16 pixels."""
    module = ArcFace(ArcFaceConfig(widths=(8, 8), units=(1, 1), embedding_dim=24, image_size=16, se_reduction=2), rngs=nnx.Rngs(0))
    return jax.device_put(module, NamedSharding(mesh, PartitionSpec()))


def run(mesh, steps, *, draws=None, zero_outputs=False, data=None, dtype=jnp.float32, **changes):
    """(losses, state, frozen models) after some steps from the same start."""
    cfg = config(**changes)
    names = training.TRAINED[cfg.trainable]
    trained = {name: model(name, mesh, zero_outputs) for name in names}
    frozen = {name: model(name, mesh) for name in (("autoencoder",) if cfg.trainable == "base" else ("autoencoder", "flux"))}
    shapes = training.abstract_state(cfg, trained, mesh)
    frozen |= {"arcface": arcface(mesh)} if cfg.objective.id_weight else {}
    losses, data = [], data or batch(mesh)
    with jax.set_mesh(mesh):
        state = training.init_state(cfg, {name: params_of(module) for name, module in trained.items()}, shapes)
        step = training.make_step(cfg, {name: abstract(name, CONFIGS[name]) for name in names}, shapes, mesh, SCHEDULE, dtype)
        for _ in range(steps):
            state, metrics = step(state, frozen, data, draws)
            losses.append(float(metrics.loss))
    return np.array(losses), state, frozen


@pytest.fixture(scope="module")
def alone():
    return run(make_mesh(devices=jax.devices()[:1]), 5, optimizer={"ema_decay": 0.9})


@pytest.mark.parametrize(
    ("sizes", "accumulate", "in_backward"),
    [
        ((8, 1, 1), 1, False),
        ((1, 8, 1), 1, False),
        ((2, 2, 2), 1, False),
        ((2, 2, 2), 2, False),
        ((1, 8, 1), 1, True),
        ((2, 2, 2), 1, True),
        ((1, 2, 2, 2), 1, True),
    ],
)
def test_meshes_and_parts_agree(alone, sizes, accumulate, in_backward):
    """Five steps on eight devices are those on one: losses to 1e-5. Parameters too, where Adam's eps keeps it from dividing noise by noise."""
    losses, state, _ = run(make_mesh(*sizes), 5, accumulate=accumulate, optimizer={"ema_decay": 0.9, "in_backward": in_backward})
    np.testing.assert_allclose(losses, alone[0], rtol=1e-5)
    for found, expected in ((state.params, alone[1].params), (state.ema, alone[1].ema)):
        for name in found:
            for path, x in found[name].items():
                assert np.abs(np.asarray(x) - np.asarray(expected[name][path])).max() <= 1e-5, (name, path)
    moment = jax.tree_util.tree_leaves_with_path(state.opt_state)
    assert all(x.sharding == state.params["infusenet"]["double_blocks.img.qkv.kernel"].sharding for p, x in moment if "double_blocks.img.qkv.kernel" in str(p))


def test_the_base_alone(alone):
    one, eight = (run(mesh, 3, trainable="base") for mesh in (make_mesh(devices=jax.devices()[:1]), make_mesh(2, 2, 2)))
    np.testing.assert_allclose(one[0], eight[0], rtol=1e-5)
    assert one[0][-1] < one[0][0] and set(one[1].params) == {"flux"}


def test_frozen_weights_are_not_touched(alone):
    _, state, frozen = alone
    fresh = make_mesh(devices=jax.devices()[:1])
    for name, module in frozen.items():
        for path, x in params_of(model(name, fresh)).items():
            assert np.asarray(params_of(module)[path]).tobytes() == np.asarray(x).tobytes(), (name, path)
    moved = {name: params_of(model(name, fresh)) for name in state.params}
    same = [path for name in moved for path, x in moved[name].items() if np.array_equal(x, state.params[name][path])]
    assert not same, same


def test_everything_is_drawn_from_seed_and_step(alone):
    mesh = make_mesh(devices=jax.devices()[:1])
    np.testing.assert_array_equal(run(mesh, 2, optimizer={"ema_decay": 0.9})[0], alone[0][:2])
    assert len(set(alone[0])) == 5
    key = jax.random.fold_in(jax.random.key(0), 3)  # of seed 0 and the fourth step
    assert alone[0][3] != alone[0][4]
    draws = objective.draw(key, (8, 8, 8, 16), ObjectiveConfig(), SCHEDULE)
    assert np.array_equal(draws.t, jax.nn.sigmoid(jax.random.normal(jax.random.split(key, 4)[0], (8,))))
    np.testing.assert_allclose(
        run(mesh, 1, draws=objective.draw(jax.random.fold_in(jax.random.key(0), 0), (8, 8, 8, 16), ObjectiveConfig(), SCHEDULE))[0], alone[0][:1], rtol=1e-6
    )


def test_overfit_eight_pictures():
    """With one noise and time a picture, which can be learnt by heart: the loss falls by more than ten times."""
    mesh = make_mesh(devices=jax.devices()[:1])
    draws = objective.draw(jax.random.key(5), (8, 8, 8, 16), ObjectiveConfig(), SCHEDULE)
    losses, _, _ = run(mesh, 200, draws=draws, optimizer={"learning_rate": 3e-3, "weight_decay": 0.0})
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.4f}")
    assert losses[-1] < losses[0] / 10


def test_the_face_weighs_more(alone):
    """Weights of tokens by hand; with one for all boxes are without effect; and the loss is that of the tokens, weighted."""
    box = jnp.array([[16.0, 0.0, 40.0, 32.0], [0.0, 0.0, 64.0, 64.0]])
    weights = np.asarray(objective.token_weights(box, 4, 4, 16, 5.0)).reshape(2, 4, 4)
    expected = np.ones((4, 4))
    expected[:2, 1], expected[:2, 2] = 5, 3  # the box ends in the middle of the third column
    np.testing.assert_allclose(weights[0], expected / expected.mean(), rtol=1e-6)
    np.testing.assert_allclose(weights[1], 1, rtol=1e-6)
    mesh = make_mesh(2, 2, 2)
    boxes = jax.device_put(np.tile(np.float32([0, 0, 4, 4]), (8, 1)), batch_sharding(mesh, 8))  # the first of 4 x 4 tokens of 4 x 4 pixels
    faces = {**batch(mesh), "face_box": boxes}
    same, _, _ = run(mesh, 1, data=faces)
    np.testing.assert_allclose(same, alone[0][:1], rtol=1e-5)
    only = [run(mesh, 1, data=faces, objective=ObjectiveConfig(face_weight=w))[0][0] for w in (1e6, 1e-6)]
    share = (only[0] + 15 * only[1]) / 16  # one token of 16 has the face, the other 15 the rest
    np.testing.assert_allclose(share, same[0], rtol=1e-4)
    assert abs(only[0] - only[1]) > 0.01 * same[0]
    with pytest.raises(InputError, match="face_weight is 0"):
        ObjectiveConfig(face_weight=0.0)


def faces(mesh):
    """The batch, with identities of length 1 and faces that fill its pictures of 16 pixels, each a little elsewhere."""
    data = batch(mesh)
    points = ARCFACE_POINTS / 7 + np.random.default_rng(2).standard_normal((8, 5, 2)) * [0.3, 0.3]
    who = data["id_embedding"] / jnp.linalg.norm(data["id_embedding"], axis=1, keepdims=True)
    return {**data, "id_embedding": who, "face_points": jax.device_put(points.astype(np.float32), batch_sharding(mesh, 8))}


@pytest.fixture(scope="module")
def with_faces():
    mesh = make_mesh(devices=jax.devices()[:1])
    return run(mesh, 3, data=faces(mesh), objective=ObjectiveConfig(id_weight=0.5))[0]


@pytest.mark.parametrize(("sizes", "accumulate", "in_backward"), [((2, 2, 2), 1, False), ((1, 8, 1), 1, False), ((2, 2, 1), 2, False), ((2, 2, 2), 1, True)])
def test_meshes_agree_with_an_identity_loss(with_faces, sizes, accumulate, in_backward):
    mesh = make_mesh(*sizes, devices=jax.devices()[: math.prod(sizes)])
    more = dict(accumulate=accumulate, optimizer={"in_backward": in_backward}, objective=ObjectiveConfig(id_weight=0.5))
    np.testing.assert_allclose(run(mesh, 3, data=faces(mesh), **more)[0], with_faces, rtol=1e-5)


@pytest.mark.parametrize(("sizes", "accumulate"), [((1, 1, 1), 4), ((1, 2, 1), 2), ((2, 2, 2), 2)])
def test_parts_decode_the_same_pictures(with_every_second_face, sizes, accumulate):
    """Loss, gradients and order of the pictures do not depend on how many parts a batch has, also where a device has one picture of each (the last)."""
    found = with_every_second_face(make_mesh(*sizes, devices=jax.devices()[: math.prod(sizes)]), accumulate)
    expected = with_every_second_face(make_mesh(devices=jax.devices()[:1]), 1)
    for name in ("loss", "id_loss", "grad_norm", "each", "bin_loss"):
        np.testing.assert_allclose(getattr(found[0], name), getattr(expected[0], name), rtol=2e-5, err_msg=name)
    for name, moments in expected[1].items():  # after one step they are the gradients, but for a factor
        largest = max(np.abs(x).max() for x in moments.values())
        for path, x in moments.items():
            np.testing.assert_allclose(found[1][name][path], x, atol=1e-5 * largest, err_msg=f"{name} {path}")


@pytest.fixture(scope="module")
def with_every_second_face():
    """(mesh, accumulate) -> the metrics and first moments of one step whose identity loss decodes every second picture."""

    @functools.cache
    def made(mesh, accumulate):
        cfg = config(accumulate=accumulate, objective=ObjectiveConfig(id_weight=2.0, id_every=2))
        modules = {name: model(name, mesh) for name in CONFIGS}
        trained = {name: modules[name] for name in training.TRAINED["infusenet"]}
        frozen = {"flux": modules["flux"], "autoencoder": modules["autoencoder"], "arcface": arcface(mesh)}
        shapes = training.abstract_state(cfg, trained, mesh)
        with jax.set_mesh(mesh):
            state = training.init_state(cfg, {name: params_of(module) for name, module in trained.items()}, shapes)
            state, metrics = training.make_step(cfg, {name: abstract(name, CONFIGS[name]) for name in trained}, shapes, mesh, SCHEDULE, jnp.float32)(
                state, frozen, faces(mesh), None
            )
        return jax.device_get((metrics, optax.tree.get(state.opt_state, "mu")))

    return made


def test_the_identity_counts(with_faces):
    """The loss is the velocity's plus the weighted mean of 1 - cosine, where the identity was not dropped; every second picture stands for two."""
    mesh = make_mesh(devices=jax.devices()[:1])
    data, cfg = faces(mesh), config(objective=ObjectiveConfig(id_weight=0.5))
    models = {name: model(name, mesh) for name in CONFIGS} | {"arcface": arcface(mesh)}
    draws = objective.draw(jax.random.fold_in(jax.random.key(0), 0), (8, 8, 8, 16), cfg.objective, SCHEDULE)
    given = objective.encode(models, data, draws, jnp.float32)
    found = objective.losses(models, given, draws, cfg, jnp.float32)
    np.testing.assert_allclose(found.total.mean(), with_faces[0], rtol=1e-5)

    z, _ = objective.interpolated(given, draws)
    told = objective.conditions(models, given, 8, 8, cfg, cfg.objective.guidance, jnp.float32)
    velocity, _ = sampler.velocity(models["flux"], models["infusenet"], z, draws.t, told, jnp.float32)
    painted = models["autoencoder"].decode(latents.unpack(z - draws.t[:, None, None] * velocity, 8, 8)).clip(-1, 1)
    seen = models["arcface"](identity_loss.align(painted, data["face_points"], 16))
    expected = (1 - draws.t) * jnp.where(data["id_keep"], 1 - (seen * data["id_embedding"]).sum(1), 0)
    np.testing.assert_allclose(found.identity, expected, atol=2e-6)
    assert 0.1 < float(expected.max()) and not np.asarray(found.identity)[~np.asarray(data["id_keep"])].any()
    plain = objective.losses(models, given._replace(face_points=None), draws, cfg, jnp.float32)
    assert plain.identity is None
    np.testing.assert_allclose(found.total, plain.total + 0.5 * expected, rtol=1e-5)

    half = objective.losses(models, given, draws, config(objective=ObjectiveConfig(id_weight=0.5, id_every=2)), jnp.float32)
    np.testing.assert_allclose(half.identity, np.where(np.arange(8) % 2, 0, 2 * expected), atol=4e-6)
    np.testing.assert_allclose(half.total, plain.total + 0.5 * half.identity, rtol=1e-5)


def test_faces_become_like_their_identities():
    """The same steps with the identity loss end nearer to the identities than without."""
    mesh = make_mesh(devices=jax.devices()[:1])
    ends = []
    for weight in (1e-9, 3.0):
        cfg = ObjectiveConfig(id_weight=weight)
        _, state, frozen = run(mesh, 40, data=faces(mesh), objective=cfg, optimizer={"learning_rate": 3e-3})
        models = {**frozen, **{name: with_params(abstract(name, CONFIGS[name]), state.params[name]) for name in state.params}}
        draws = objective.draw(jax.random.key(9), (8, 8, 8, 16), cfg, SCHEDULE)
        given = objective.encode(models, faces(mesh), draws, jnp.float32)
        ends.append(float(objective.losses(models, given, draws, config(objective=cfg), jnp.float32).identity.mean()))
    print("identity loss without and with", ends)
    assert ends[1] < 0.8 * ends[0]


def test_bad_settings_of_the_identity_loss():
    for made, message in (
        (lambda: ObjectiveConfig(id_weight=-1.0), "id_weight is -1.0"),
        (lambda: ObjectiveConfig(id_every=0), "id_every is 0"),
        (lambda: config(objective=ObjectiveConfig(id_every=3)), "id_every 3 does not divide"),
        (lambda: config(trainable="base", objective=ObjectiveConfig(id_weight=1.0)), "needs trainable infusenet"),
    ):
        with pytest.raises(InputError, match=message):
            made()


def test_a_new_infusenet_changes_nothing():
    """Started from the base's first blocks with zero outputs, the picture is the base's own, bit for bit; and it can learn."""
    mesh = make_mesh(devices=jax.devices()[:1])
    flux, resampler = model("flux", mesh), model("resampler", mesh)
    made = initial._from_base(abstract("infusenet", INFUSENET), params_of(flux), mesh, 0)
    infusenet = with_params(abstract("infusenet", INFUSENET), made)
    base = params_of(flux)
    for path, x in made.items():
        if path.startswith(("double_out", "single_out", "control_in")):
            assert not np.asarray(x).any(), path
        else:
            np.testing.assert_array_equal(x, base[path][: len(x)] if "_blocks." in path else base[path])
    data = batch(mesh)
    text = sampler.Text(data["txt"], data["y"])
    who = sampler.identity(INFUSENET, resampler(data["id_embedding"][:, None]), latents.pack(data["control_mean"]), 8, 8, guidance=1.0, scale=1.0)
    z = latents.pack(data["latent_mean"])
    alone, _ = sampler.velocity(flux, None, z, jnp.float32(0.3), sampler.conditions(FLUX, text, 8, 8, guidance=3.5), jnp.float32)
    guided, _ = sampler.velocity(flux, infusenet, z, jnp.float32(0.3), sampler.conditions(FLUX, text, 8, 8, guidance=3.5, identity=who), jnp.float32)
    np.testing.assert_array_equal(alone, guided)
    losses, _, _ = run(mesh, 30, zero_outputs=True, draws=objective.draw(jax.random.key(5), (8, 8, 8, 16), ObjectiveConfig(), SCHEDULE))
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("in_backward", [False, True])
def test_moments_in_bfloat16(alone, in_backward):
    """Half the memory, nearly the same course; and the rounding is unbiased, where rounding to nearest would keep moments where they are."""
    losses, state, _ = run(make_mesh(devices=jax.devices()[:1]), 5, optimizer={"moment_dtype": "bfloat16", "in_backward": in_backward})
    kinds = {str(x.dtype) for x in jax.tree.leaves(state.opt_state) if x.ndim}
    assert kinds == {"bfloat16"}
    np.testing.assert_allclose(losses, alone[0], rtol=2e-3)
    from infu_jax.optimizer import round_stochastically

    x = jnp.full(100_000, 1.001, jnp.float32)  # between the bfloat16 numbers 1 and 1.0078125
    rounded = np.asarray(round_stochastically(x, jax.random.key(0)), np.float32)
    assert set(rounded.tolist()) == {1.0, 1.0078125} and abs(rounded.mean() - 1.001) < 1e-4
    np.testing.assert_array_equal(round_stochastically(-x.astype(jnp.bfloat16).astype(jnp.float32), jax.random.key(1)), -x.astype(jnp.bfloat16))


def test_kernels_are_rounded_once(monkeypatch):
    """In bfloat16 the same numbers as where every block rounds its own kernels; other parameters stay as they are."""
    mesh, seen = make_mesh(devices=jax.devices()[:1]), []
    rounded = training.rounded
    monkeypatch.setattr(training, "rounded", lambda params, dtype: seen.append(rounded(params, dtype)) or seen[-1])
    losses, state, _ = run(mesh, 3, dtype=jnp.bfloat16)
    bf16 = {name for params in seen for name, x in params.items() if x.dtype == jnp.bfloat16}
    stacked = {name for name in state.params["infusenet"] if name.startswith(("double_", "single_")) and name.endswith("kernel")}
    assert bf16 == stacked and len(stacked) > 10
    monkeypatch.setattr(training, "rounded", lambda params, dtype: params)
    expected, other, _ = run(mesh, 3, dtype=jnp.bfloat16)
    np.testing.assert_array_equal(losses, expected)
    jax.tree.map(np.testing.assert_array_equal, state.params, other.params)
    assert training.rounds_ahead(config()) and not training.rounds_ahead(config(remat="dots"))
    assert not training.rounds_ahead(config(optimizer={"in_backward": True}))


def test_inputs_of_blocks_wait_in_host_memory(alone):
    """With remat=offload nothing else is computed, and of the blocks nothing is left on the device for the backward pass but residuals."""
    losses, _, _ = run(make_mesh(2, 2, 2), 3, remat="offload", optimizer={"ema_decay": 0.9})
    np.testing.assert_allclose(losses, alone[0][:3], rtol=1e-5)
    flux, x, pe = model("flux", make_mesh(devices=jax.devices()[:1])), jnp.zeros((2, 16, 64)), rope(latents.position_ids(6, 8, 8), FLUX)
    other = jnp.ones((2, 6, 32)), pe, jnp.ones(2), jnp.ones((2, 16)), jnp.ones(2)

    def kept(remat):
        _, back = jax.vjp(lambda x: flux(x, *other, remat=remat), x)
        found = [r for r in jax.tree.leaves(back) if r.ndim == 4 and r.shape[1::2] == (2, 128)]  # (layers, pictures, tokens, size)
        return sorted((r.shape, r.sharding.memory_kind) for r in found)

    names = lambda kind: sorted([((2, 2, 6, 128), kind), ((2, 2, 16, 128), kind), ((3, 2, 22, 128), kind)])  # noqa: E731
    assert kept("block") == names("device") and kept("offload") == names("pinned_host")


def test_the_learning_rate_over_a_run():
    """The first step has its share of the warm-up, a decay begins after it and ends one step after the last, as PyTorch's and transformers' do."""
    for decay, last in (("constant", 1.0), ("linear", 1 - 0.8 * 5 / 6), ("cosine", 0.6 + 0.4 * math.cos(math.pi * 5 / 6))):
        rate = optimizer.learning_rate(OptimizerConfig(learning_rate=1.0, warmup_steps=4, decay=decay, final_rate=0.2), 10)
        np.testing.assert_allclose([rate(n) for n in (0, 2, 3, 4, 9)], [0.25, 0.75, 1, 1, last], rtol=1e-6)
        np.testing.assert_allclose(rate(10), 1 if decay == "constant" else 0.2, rtol=1e-6)
    rate = optimizer.learning_rate(OptimizerConfig(learning_rate=1.0, warmup_steps=0, decay="linear"), 4)
    np.testing.assert_allclose([rate(n) for n in range(5)], [1, 0.75, 0.5, 0.25, 0], atol=1e-7)


def test_muon():
    """Blocks' kernels move by matrices of even singular values, as much as AdamW would move them; the same on a mesh; one moment for them, not two."""
    changes = dict(optimizer={"kind": "muon", "learning_rate": 1e-3, "weight_decay": 0.0, "warmup_steps": 0})
    mesh, eight = make_mesh(devices=jax.devices()[:1]), make_mesh(2, 2, 2)
    _, state, _ = run(mesh, 1, **changes)
    kernels = {(name, path) for name in state.params for path in state.params[name] if "blocks." in path and path.endswith("kernel")}
    named = optimizer.matrices(state.params)
    assert {(name, path) for name in named for path, axes in named[name].items() if axes is not None} == kernels and len(kernels) == 20
    for name, path in kernels:
        inputs, outputs = named[name][path]
        moved = np.asarray(state.params[name][path]) - np.asarray(params_of(model(name, mesh))[path])
        batch_axes = [n for n in range(moved.ndim) if n not in (*inputs, *outputs)]
        size = math.prod(moved.shape[n] for n in inputs)
        matrices = moved.transpose(*batch_axes, *inputs, *outputs).reshape(-1, size, math.prod(moved.shape[n] for n in outputs))
        even = np.linalg.svd(matrices, compute_uv=False) / (1e-3 * 0.2 * math.sqrt(max(matrices.shape[1:])))
        # Of gradients of eight pictures not every direction is there.
        assert even.max() < 1.3 and (even.max(1) > 0.6).all(), (name, path)
    count = lambda state: sum(x.size for x in jax.tree.leaves(state.opt_state))  # noqa: E731
    assert count(state) < 1.3 * sum(x.size for x in jax.tree.leaves(state.params))
    losses = [run(m, 4, **changes)[0] for m in (mesh, eight)]
    np.testing.assert_allclose(*losses, rtol=1e-4)
    assert losses[0][-1] < losses[0][0]
    round_trip = training.from_items(training.to_items(state), state)
    assert jax.tree.structure(round_trip) == jax.tree.structure(state)
    with pytest.raises(InputError, match="muon keeps its moments in float32"):
        OptimizerConfig(kind="muon", moment_dtype="bfloat16")


def test_a_step_that_is_no_number_names_its_records():
    mesh = make_mesh(2, 2, 2)
    data = batch(mesh)
    data["latent_mean"] = data["latent_mean"].at[jnp.array([2, 5])].set(jnp.inf)
    cfg = config()
    trained = {name: model(name, mesh) for name in training.TRAINED["infusenet"]}
    shapes = training.abstract_state(cfg, trained, mesh)
    with jax.set_mesh(mesh):
        state = training.init_state(cfg, {name: params_of(m) for name, m in trained.items()}, shapes)
        step = training.make_step(cfg, {name: abstract(name, CONFIGS[name]) for name in trained}, shapes, mesh, SCHEDULE, jnp.float32)
        _, metrics = step(state, {name: model(name, mesh) for name in ("flux", "autoencoder")}, data, None)
    with pytest.raises(training.NotFiniteError, match=r"step 7: loss (nan|inf), gradient norm nan: the loss of records \[102, 105\] is not finite. Do this"):
        training.check_finite(7, metrics, np.arange(100, 108), "Do this")


def test_the_optimizer_gets_no_frozen_weight():
    mesh = make_mesh(devices=jax.devices()[:1])
    cfg = config()
    trained = {name: abstract(name, CONFIGS[name]) for name in training.TRAINED["infusenet"]}
    state = training.abstract_state(cfg, trained, mesh)
    count = sum(math.prod(s.shape) for name in trained for s in param_shapes(trained[name]).values())
    assert sum(math.prod(x.shape) for x in jax.tree.leaves(state.opt_state) if x.ndim) == 2 * count
    round_trip = training.from_items(training.to_items(state), state)
    assert jax.tree.structure(round_trip) == jax.tree.structure(state)


def test_batch_parts():
    """Here one process has every device: one part, all rows."""
    assert batch_part(make_mesh(2, 2, 2), 8) == (0, 1)


def test_recipes_are_the_papers():
    """Facts of the paper's section 4.1, of both stages."""
    import importlib.util

    def recipe(name):
        spec = importlib.util.spec_from_file_location(name, ROOT / "configs" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.get_config()

    one, two = recipe("infu_stage1"), recipe("infu_stage2")
    assert (one.batch_size, one.steps, one.optimizer.learning_rate, one.data.pairing) == (512, 300_000, 2e-5, "spss")
    assert (two.batch_size, two.optimizer.learning_rate, two.data.pairing) == (256, 1e-5, "spms") and two.models.init is not None
    for cfg in (one, two):
        assert (cfg.optimizer.b1, cfg.optimizer.b2, cfg.optimizer.weight_decay) == (0.9, 0.999, 0.01)
        assert (cfg.objective.time_mean, cfg.objective.time_std, cfg.trainable) == (0.0, 1.0, "infusenet")
    assert checkpoint.abstract("infusenet", InfuseNetConfig()).cfg.depth == one.models.infusenet_blocks[0]
