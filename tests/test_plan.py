"""The plan's counts against arrays and programs of the tiny stack on simulated devices. Compiling for a TPU needs libtpu, for GPUs JAX's CUDA
plugin, which are not part of the `dev` extra."""

import dataclasses
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from infu_jax import checkpoint, flops, quantize
from infu_jax.checkpoint import params_of
from infu_jax.config import FluxConfig, MeshConfig, SamplingConfig
from infu_jax.errors import InputError
from infu_jax.plan import budget, chips, gpus, report, sampling, training
from infu_jax.plan.collectives import collective_bytes
from infu_jax.plan.settings import SampleArgs, TrainArgs
from infu_jax.sharding import make_mesh
from infu_jax.train_config import DataConfig, ModelsConfig, ObjectiveConfig, OptimizerConfig
from tests import random_stack
from tests.conftest import ROOT

FLUX, INFU = random_stack.folders()
PICTURE = SamplingConfig(width=64, height=80, steps=3, t5_length=24)
FEATURES = ("latents", "control", "t5", "clip", "arcface")
ABSTRACT = {n: budget._abstract(MeshConfig(fsdp=n)) for n in (1, 4, 16)}


def sample_args(**changes):
    return SampleArgs(**{"base": FLUX, "infu": INFU, "sampling": PICTURE, "dtype": "float32", **changes})


def train_args(**changes):
    models = ModelsConfig(base=FLUX, arcface=INFU / "recognition_arcface_ir_se50.pth", infusenet_blocks=(1, 2))
    data = DataConfig(features=FEATURES, t5_length=16)
    return TrainArgs(**{"out": Path("unused"), "models": models, "data": data, "batch_size": 8, "height": 64, "width": 64, **changes})


@pytest.fixture
def four_chips(monkeypatch):
    """Simulated devices in the place of a topology, of 1 GiB and 1 TFLOP/s."""
    monkeypatch.setattr(chips, "devices", lambda topology: jax.devices()[:4])
    monkeypatch.setattr(chips, "memory_gib", lambda device: 1.0)
    monkeypatch.setattr(flops, "peak", lambda device: 1e12)


# Collectives --------------------------------------------------------------------------------------


def test_collectives_in_loops():
    mesh = make_mesh(2, 4, 1)

    def program(w, x):
        def layer(x, w):
            return jnp.tanh(x @ jax.lax.with_sharding_constraint(w, P())), None

        x, _ = jax.lax.scan(layer, x, w)
        return x, x.sum()

    w = jax.ShapeDtypeStruct((5, 64, 64), jnp.float32, sharding=NamedSharding(mesh, P(None, "fsdp")))
    x = jax.ShapeDtypeStruct((16, 64), jnp.float32, sharding=NamedSharding(mesh, P(("data", "fsdp"))))
    with jax.set_mesh(mesh):
        text = jax.jit(program).lower(w, x).compile().as_text()
    # Five layers of which each device lacks three quarters; one number that eight devices add up.
    assert collective_bytes(text) == {"all-gather": 5 * 64 * 64 * 4 * 3 // 4, "all-reduce": 2 * 4 * 7 // 8}


HLO = """
%body.1 (p: (s32[], bf16[8,128])) -> (s32[], bf16[8,128]) {
  %start = (bf16[2,128]{1,0}, bf16[8,128]{1,0}) all-gather-start(%x), channel_id=1, replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}
  %done = bf16[8,128]{1,0} all-gather-done(%start)
  %scattered = f32[4,128]{1,0} reduce-scatter(%y), replica_groups=[4,2]<=[8], dimensions={0}, to_apply=%add
  %inner = (s32[]) while(%t), condition=%cond.2, body=%body.2
}

%body.2 (p: (s32[])) -> (s32[]) {
  %moved = bf16[16,128]{1,0} collective-permute(%z), source_target_pairs={{0,1},{1,0}}
}

%cond.2 (p: (s32[])) -> pred[] {
  %limit = s32[]{:T(128)} constant(7)
}

ENTRY %main (a: f32[2]) -> f32[2] {
  %loop = (s32[], bf16[8,128]) while(%t), condition=%cond.1, body=%body.1, backend_config={"known_trip_count":{"n":"3"}}
}
"""


GPU_HLO = """
ENTRY %main (a: f32[2]) -> f32[2] {
  %g = ((bf16[6,384]{0,1}, bf16[24,384]{1,0}), (bf16[6,3072]{0,1}, bf16[24,3072]{1,0})) all-gather-start(%a, %b), replica_groups={{0,1,2,3,4,5,6,7}}
  %gd = (bf16[6,3072]{0,1}, bf16[24,3072]{1,0}) all-gather-done(%g)
  %s = ((f32[6,3072]{0,1}), f32[6,384]{0,1}) reduce-scatter-start(%c), replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
  %t = ((bf16[8,1,160]{2,1,0}), bf16[8,1,160]{2,1,0}) all-to-all-start(%d), replica_groups={{0,1,2,3,4,5,6,7}}
  %r = f32[8,8]{1,0} all-reduce-start(%e), replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
}
"""


def test_collectives_as_a_gpu_writes_them():
    """Each begins with operands and results in one shape, several of them where XLA has combined some."""
    gathered, scattered, all_to_all, reduced = 30 * 3072 * 2, 6 * 3072 * 4, 8 * 160 * 2, 64 * 4
    expected = {"all-gather": gathered, "reduce-scatter": scattered, "all-to-all": all_to_all, "all-reduce": 2 * reduced}
    assert collective_bytes(GPU_HLO) == {kind: size * 7 // 8 for kind, size in expected.items()}


def test_collectives_as_a_tpu_writes_them():
    found = collective_bytes(HLO)
    assert found == {"all-gather": 3 * 8 * 128 * 2 * 3 // 4, "reduce-scatter": 3 * 4 * 128 * 4, "collective-permute": 3 * 7 * 16 * 128 * 2}
    assert collective_bytes("") == {}
    # A loop of which the compiler does not know how often it runs, but we do.
    told = HLO.replace("constant(7)", "parameter(0)").replace("body=%body.2", 'body=%body.2, metadata={op_name="jit(steps)/while/body/some_blocks/while"}')
    assert collective_bytes(told)["collective-permute"] == 3 * 16 * 128 * 2
    assert collective_bytes(told, {"other_blocks": 2, "some_blocks": 3.5})["collective-permute"] == 3 * 3.5 * 16 * 128 * 2


# Compiled -----------------------------------------------------------------------------------------


def test_sampling(four_chips, pipeline, monkeypatch):
    """The loop's own program with the weights that it takes, on the mesh that splits least; and with all programs around it."""
    found = sampling.plan(sample_args())
    gib, size = {name: x * 2**30 for name, x in found["gib"].items()}, found["mesh"]
    assert size == {"data": 2, "fsdp": 1, "tensor": 1, "sequence": 2} and found["choice"]["mesh"] == size  # the tiny stack has two heads
    expected = budget.sampling(sample_args(), sampling.model_sizes(sample_args()), budget._abstract(MeshConfig(**size)), 1)
    assert gib["transformers"] == expected["transformers"]
    assert gib["modulation tables and other inputs"] > expected["modulation tables"] > 100_000
    assert gib["activations (temporary)"] > 0 and found["fits"] and found["peak_gib"] < 0.1
    assert found["peak_gib"] * 2**30 - gib["peak of the loop"] == pytest.approx(expected["what waits beside the loop"], rel=1e-3)
    assert found["recomputed"] == 0
    cfg, infusenet = pipeline.flux.cfg, pipeline.infusenet.cfg
    # Queries, keys, values and what the attention gives, of all tokens of all blocks: a device has half of them and sends half of those.
    tokens = (cfg.depth + cfg.depth_single_blocks) * (20 + 24) + (infusenet.depth + infusenet.depth_single_blocks) * (20 + 8)
    assert found["collective_bytes"]["all-to-all"] == 4 * tokens * cfg.hidden_size * 4 / 2 / 2
    least = flops.flux_flops(cfg, 20, 24) + flops.infusenet_flops(infusenet, 20, 8)
    assert found["flops"]["least"] * 2 == pytest.approx(least) and found["estimated_seconds"] == pytest.approx(least / 2 / 0.5e12)
    assert "data 2, fsdp 1, tensor 1, sequence 2: 1 pictures at once (0.25 a chip)" in report.text(found)
    json.dumps(found)
    monkeypatch.setattr(chips, "compiled", lambda lowered, effort: chips.Compiled(0, 0, 0, 0.0, ""))
    assert sampling.plan(sample_args(mesh=MeshConfig(fsdp=-1)))["mesh"] == {"data": 1, "fsdp": 4, "tensor": 1, "sequence": 1}


def test_parked_weights_are_not_counted(four_chips):
    parked, alone = sampling.plan(sample_args(offload=True, everything=True)), sampling.plan(sample_args(tables=False))
    at = {name.rpartition(", ")[2]: x for name, x in parked["gib"].items() if ", " in name}
    assert at.keys() == {"loop", "text", "control image", "modulations", "decoding"}
    assert parked["peak_gib"] == max(at.values())
    assert alone["gib"]["transformers"] > 1.2 * parked["gib"]["transformers"]
    assert at["loop"] * 2**30 == pytest.approx(parked["gib"]["peak of the loop"] * 2**30, rel=0.2)


def test_eight_bits():
    """The release's transformers take half of what they do in bfloat16, by the arrays that are compiled and by the arithmetic."""
    args = SampleArgs(weights="int8", offload=True)
    sizes, mesh = sampling.model_sizes(args), make_mesh(devices=jax.devices()[:1])
    made = {weights: sampling.models(dataclasses.replace(args, weights=weights), sizes, mesh) for weights in ("auto", "int8")}
    loop = {weights: chips.held(list(models.in_loop.values())) for weights, models in made.items()}
    assert loop["int8"] == pytest.approx(loop["auto"] * quantize.BYTES / 2, rel=0.03)
    assert budget.sampling(args, sizes, ABSTRACT[1], 1)["transformers"] == pytest.approx(loop["int8"], rel=0.03)
    kinds = {path: (x.dtype, x.sharding.memory_kind) for path, x in params_of(made["int8"].all["flux"]).items()}
    assert kinds["single_blocks.mod.kernel"] == (jnp.int8, "pinned_host") and kinds["single_blocks.qkv.kernel"] == (jnp.int8, "device")
    assert kinds["img_in.kernel"] == (jnp.bfloat16, "device")


def test_training(four_chips, monkeypatch):
    """Each part of a step is what the arithmetic says, and a choice can be planned in the place of the settings."""
    monkeypatch.setattr(chips, "compiled", lambda lowered, effort: chips.Compiled(0, 2**30, 2**31, 1.5, HLO))  # compiling takes half a minute
    args = train_args(mesh=MeshConfig(data=2, fsdp=1, tensor=2))
    found = training.plan(args)
    expected = budget.training(args, training.model_sizes(args), budget._abstract(args.mesh), args.batch_size)
    for name in ("frozen weights", "trained weights", "moments", "gradients"):
        assert found["gib"][name] * 2**30 == pytest.approx(expected[name], rel=1e-3), name
    assert found["gib"]["gradients"] + found["gib"]["activations and all else that is temporary"] == 1
    assert found["peak_gib"] == 2 and not found["fits"] and found["room_gib"] == 1 and not found["estimate"]
    assert found["collective_bytes"] == collective_bytes(HLO) and 0 < found["recomputed"] < 0.4
    assert "It does not fit." in report.text(found)
    chosen = training.plan(dataclasses.replace(args, choose=True))
    assert chosen["mesh"] == chosen["choice"]["mesh"] == found["choice"]["mesh"] and chosen["batch"] == found["choice"]["batch"]


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 33.50G of 31.25G hbm.", "33.50 GiB of 31.25;"),
        ("RESOURCE_EXHAUSTED: the total memory required for HLO temporaries (39.96G) exceeds available HBM (31.25G).", "39.96 GiB of 31.25;"),
    ],
)
def test_a_program_that_does_not_fit(said, message):
    class Lowered:
        def compile(self, options):
            raise jax.errors.JaxRuntimeError(said)

    with pytest.raises(InputError, match=f"does not fit into a chip: it takes {message}"):
        chips.compiled(Lowered(), "quick")
    said = "INTERNAL: something else"
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        chips.compiled(Lowered(), "quick")


# Arithmetic ---------------------------------------------------------------------------------------


def test_flops():
    """A forward pass of FLUX.1 at 1024 x 1024, and what a step of training computes again."""
    args = SampleArgs(sampling=SamplingConfig(width=1024, height=1024))
    sizes = sampling.model_sizes(args)
    base = flops.flux_flops(FluxConfig(), 4096, 512)
    assert base == pytest.approx(7.44e13, rel=0.01)
    whole = budget.sampling_flops(args, sizes, 2)
    assert whole["least"] == whole["executed"] == 2 * (base + flops.infusenet_flops(sizes["infusenet"], 4096, 8))
    guided = dataclasses.replace(args, sampling=dataclasses.replace(args.sampling, true_cfg=2.0))
    assert budget.sampling_flops(guided, sizes, 1)["least"] == whole["least"] / 2 + base
    share = {}
    for remat in ("offload", "block", "attention", "dots", "none"):
        counted = budget.training_flops(TrainArgs(out=Path("unused"), remat=remat), sizes, 1)
        share[remat] = counted["executed"] / counted["least"]
    assert share["offload"] == share["block"] > share["attention"] > share["dots"] == share["none"] > 1
    for remat, clip_norm in (("block", None), ("block", 1.0), ("dots", None)):
        args = TrainArgs(out=Path("unused"), remat=remat, optimizer=OptimizerConfig(in_backward=True, clip_norm=clip_norm))
        counted = budget.training_flops(args, sizes, 1)
        share[remat, clip_norm] = counted["executed"] / counted["least"]
    # InfuseNet's own blocks are always computed again, and its whole backward pass where the norm is wanted first.
    assert share["block", None] == share["block"] and share["dots"] < share["dots", None] < share["block", None] < share["block", 1.0] < 2


def test_an_identity_loss_decodes():
    """Of one picture a chip 4 GiB more, ArcFace among them, as the compiler has it (docs/training.md); of several more for each; of a part of them less."""

    def peak(batch, **objective):
        args = TrainArgs(out=Path("unused"), batch_size=batch, objective=ObjectiveConfig(**objective), data=DataConfig(features=FEATURES))
        return sum(budget.training(args, training.model_sizes(args), budget._abstract(MeshConfig(fsdp=4)), batch).values()) / 2**30

    assert 3.5 < peak(4, id_weight=1.0) - peak(4) < 5.5
    assert 25 < peak(8, id_weight=1.0) - peak(8) < 30
    assert peak(8, id_weight=1.0, id_every=2) - peak(8) == pytest.approx(peak(4, id_weight=1.0) - peak(4), abs=3)


def test_gradients_of_one_block():
    """With `in_backward` there are those of one block at once and of what is in no block: a quarter of them on one chip."""
    args = TrainArgs(out=Path("unused"), optimizer=OptimizerConfig(in_backward=True))
    sizes = training.model_sizes(args)
    infusenet, resampler = (checkpoint.param_shapes(checkpoint.abstract(name, sizes[name])) for name in ("infusenet", "resampler"))
    one = {name: s.shape[1:] if name.startswith("double_") else s.shape for name, s in infusenet.items() if not name.startswith("single_")}
    count = sum(map(math.prod, one.values())) + sum(math.prod(s.shape) for s in resampler.values())
    assert budget.gradients(args, sizes, budget._abstract(MeshConfig())) == 4 * count
    other = lambda **changes: budget.gradients(dataclasses.replace(args, optimizer=OptimizerConfig(), **changes), sizes, budget._abstract(MeshConfig()))  # noqa: E731
    everything = other(remat="dots")
    assert 0.15 < 4 * count / everything < 0.3
    assert 0.5 < other() / everything < 0.53 and other(accumulate=2) == everything  # see `training.rounded`


def test_choices():
    """Full-size models: what fits is taken, and what does not is said."""
    args = SampleArgs(offload=True)
    sizes = sampling.model_sizes(args)
    choose = lambda gib, chips=1, **changes: budget.choose_sampling(dataclasses.replace(args, **changes), sizes, chips, gib * 2.0**30)  # noqa: E731
    assert choose(80, offload=False).fits and choose(31.25).fits and not choose(16).fits
    assert choose(31.25, 4).mesh == MeshConfig(sequence=4)  # one picture: all chips paint it, with all weights each, if these fit
    assert choose(15.75, 4).mesh == MeshConfig(tensor=2, sequence=2) and choose(10, 4).mesh == MeshConfig(tensor=4)
    assert choose(31.25, 4, sampling=SamplingConfig(t5_length=511)).mesh == MeshConfig(tensor=4)  # which do not divide
    assert choose(31.25, 4, batch=4).mesh == MeshConfig(data=4)  # four: each paints one, if the weights fit
    assert choose(15.75, 4, batch=4).mesh == MeshConfig(tensor=4) and choose(15.5, 4, batch=4).mesh.fsdp > 1
    train = TrainArgs(out=Path("unused"), data=DataConfig(features=FEATURES))
    sizes = training.model_sizes(train)
    one, many = (budget.choose_training(train, sizes, n, gib * 2.0**30) for n, gib in ((1, 48), (16, 31.25)))
    assert not one.fits and many.fits and many.mesh == MeshConfig(fsdp=16) and many.batch % 16 == 0 and many.batch >= 16 * 4
    small = dict(models=ModelsConfig(base_weights="int8"), optimizer=OptimizerConfig(moment_dtype="bfloat16", in_backward=True))
    assert budget.choose_training(dataclasses.replace(train, **small), sizes, 1, 48 * 2.0**30).fits  # one GPU of 48 GiB
    with pytest.raises(InputError, match="no mesh of so many chips divides"):
        budget._best([(MeshConfig(fsdp=7), 7)], lambda mesh, batch: budget.training(train, sizes, mesh, batch), lambda *_: (0,), 2.0**40)
    assert {(m.data, m.fsdp, m.tensor) for m in budget.meshes(FluxConfig(), 4)} == {(4, 1, 1), (2, 2, 1), (1, 4, 1), (2, 1, 2), (1, 2, 2), (1, 1, 4)}
    split = {(m.fsdp, m.tensor, m.sequence) for m in budget.meshes(FluxConfig(), 8, (4096, 512, 4)) if m.data == 1 and m.sequence > 1}
    assert split == {(4, 1, 2), (2, 2, 2), (2, 1, 4), (1, 4, 2), (1, 2, 4)}  # eight do not divide four ID tokens
    assert math.prod(dataclasses.astuple(next(budget.meshes(FluxConfig(), 12)))) == 12


def test_a_gpu_is_asked_for_the_settings_own_batch():
    """What is reported is the batch that was asked for, and with `choose` the one that the arithmetic would take, which is said in any case."""

    def found(batch, **changes):
        return training.plan(TrainArgs(out=Path("unused"), gpu_gib=80.0, batch_size=batch, data=DataConfig(features=FEATURES), **changes))

    one, many, chosen = found(1), found(64), found(64, choose=True)
    assert (one["batch"], one["fits"], many["batch"], many["fits"]) == (1, True, 64, False)
    assert one["peak_gib"] < 80 < many["peak_gib"] and many["flops"]["least"] == pytest.approx(64 * one["flops"]["least"])
    assert one["choice"] == many["choice"] == chosen["choice"] and 1 < chosen["batch"] == chosen["choice"]["batch"] < 64 and chosen["fits"]
    assert ": 64 pictures at once (64 a chip)" in report.text(many) and "\nIt does not fit.\n" in report.text(many)
    assert f"The arithmetic would take: data 1, fsdp 1, tensor 1, sequence 1, {chosen['batch']} pictures at once, " in report.text(many)
    parts = found(4, accumulate=4)
    assert parts["gib"]["activations"] == one["gib"]["activations"] and ": 4 pictures, 1 at once (1 a chip)" in report.text(parts)
    assert f"{parts['choice']['batch']} pictures, {parts['choice']['batch'] // 4} at once, " in report.text(parts)
    with pytest.raises(InputError, match="does not fit 1 devices"):
        found(8, mesh=MeshConfig(fsdp=8))
    with pytest.raises(InputError, match="does not fit 1 devices"):
        sampling.plan(sample_args(gpu_gib=80.0, mesh=MeshConfig(tensor=2)))


# GPUs ---------------------------------------------------------------------------------------------


def test_gpus_are_described():
    """What the compiler is told of each; cuDNN's attention needs compute capability 8 (`attention._cudnn_has`)."""
    for kind, gpu in gpus.GPUS.items():
        text = gpus.target_config(gpu)
        assert gpus.named(f"{kind}:8") and text.count("{") == text.count("}") and float(gpu.capability) >= 8
        assert f"core_count: {gpu.multiprocessors}\n" in text and f"major: {gpu.capability.partition('.')[0]} " in text
        assert flops.peak(gpu.name) > 1e14 and gpus.memory_gib(gpu.name) == 0.95 * gpu.memory_gib
    assert not gpus.named("v5p:2x2x1")


def test_attention_on_gpus_is_computed_again_once():
    """In the backward pass; TPUs do three of the four products' halves again."""
    sizes = training.model_sizes(train_args())
    more = []
    for changes in (dict(topology="h100:8"), dict(gpu_gib=48.0), dict(topology="v5p:2x2x1")):
        counted = budget.training_flops(train_args(remat="none", **changes), sizes, 8)
        more.append(counted["executed"] - counted["least"])
    assert more[0] == more[1] == pytest.approx(more[2] / 3)


def test_host_memory_of_absent_gpus(monkeypatch):
    monkeypatch.setattr(chips, "devices", lambda topology: [SimpleNamespace(platform="gpu")])
    with pytest.raises(InputError, match="JAX does not compile what uses host memory; choose another --remat"):
        training.plan(train_args(remat="offload"))


def test_compiled_for_gpus():
    """The real step and loop with cuDNN's attention, on two GPUs."""
    pytest.importorskip("jax_plugins.xla_cuda13", reason="JAX's CUDA plugin is not installed")
    tiny = ("--base", str(FLUX), "--infu", str(INFU), "--width", "64", "--height", "80", "--t5-length", "24")
    found = json.loads(plan("sample", "--topology", "l40s:2", "--mesh.tensor", "2", "--offload", "--everything", "--json", "-", *tiny).stdout)
    assert {name for name in found["gib"] if "stays" in name} == {f"with all that stays, {name}" for name in ("loop", "control image", "decoding")}
    assert found["notes"][0].startswith("Not compiled: modulations and text. For GPUs that are not here")
    assert not found["estimate"] and found["fits"] and found["room_gib"] == pytest.approx(0.95 * 44.4) and found["collective_bytes"]["all-reduce"] > 0
    models = ("--models.base", str(FLUX), "--models.arcface", str(INFU / "recognition_arcface_ir_se50.pth"), "--models.infusenet-blocks", "1", "2")
    step = ("configs/infu_stage1.py", "--topology", "h100:1x2", "--batch-size", "2", "--height", "64", "--width", "64", "--data.features", *FEATURES)
    found = json.loads(plan(*step, "--json", "-", *models).stdout)
    assert found["mesh"]["fsdp"] == 2 and found["collective_bytes"]["reduce-scatter"] > 0 and 0 < found["peak_gib"] < 1


# The command --------------------------------------------------------------------------------------


def plan(*argv):
    return subprocess.run([sys.executable, "-m", "infu_jax.plan", *argv], cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_command(tmp_path):
    file = tmp_path / "plan.json"
    tiny = ("--base", str(FLUX), "--infu", str(INFU))
    done = plan("sample", "--gpu-gib", "48", "--batch", "2", "--json", str(file), *tiny)
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())
    assert found["estimate"] and found["fits"] and found["batch"] == 2 and found["room_gib"] == 48
    assert "one GPU of 48 GiB" in done.stdout and "estimated, nothing was compiled" in done.stdout and "It fits." in done.stdout
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["sample", "--topology", "v0:1x1"],
            "topology v0:1x1: .*expected such as v5p:2x2x1 or v6e:4x4, and libtpu installed, or such as h100:8, of a100-40gb, ",
        ),
        (["sample", "--topology", "h100:0"], "topology h100:0: expected how many GPUs after h100:, such as h100:8, or h100:2x8"),
        (["sample", "--width", "100"], "size is 100x1152"),
        (["sample", "--json", "no/such/folder/plan.json"], "no/such/folder"),
        ([], "the first argument is the recipe"),
    ],
)
def test_mistakes(argv, message):
    done = plan(*argv)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
    assert re.search(message, done.stderr)
