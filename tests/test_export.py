"""Out of this project again: the same bits for every layout and dtype, the released names at full size, and whole files or none."""

import dataclasses
import errno
import gzip
import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
import warnings
from unittest import mock

import ml_dtypes
import numpy as np
import pytest

import convert_weights
from infu_jax import checkpoint, export
from infu_jax.assets import TINY
from infu_jax.checkpoint import abstract, param_shapes
from infu_jax.config import FluxConfig, InfuseNetConfig
from infu_jax.convert import numbers, rules, safetensors, source, torch_pickle
from infu_jax.convert.errors import ConversionError
from infu_jax.models import MODELS
from infu_jax.storage import HostParam
from tests import random_stack
from tests.test_sample_cli import FLUX, INFU, ROOT, assert_one_line, changed, command, edit_keys, listing

BF16, FP8 = np.dtype(ml_dtypes.bfloat16), np.dtype(ml_dtypes.float8_e4m3fn)
DTYPES = {"float32": np.dtype(np.float32), "bfloat16": BF16, "float16": np.dtype(np.float16), "float8_e4m3fn": FP8}
CONFIGS = {
    "flux": FluxConfig(vec_in_dim=8, context_in_dim=12, hidden_size=32, num_heads=1, depth=2, depth_single_blocks=3, axes_dim=(4, 14, 14)),
    "infusenet": InfuseNetConfig(vec_in_dim=8, context_in_dim=12, hidden_size=32, num_heads=1, depth=2, depth_single_blocks=3, axes_dim=(4, 14, 14)),
    "resampler": random_stack.RESAMPLER,
    # 32 norm groups, which BFL's files are taken to have.
    "autoencoder": type(random_stack.AUTOENCODER)(channels=(32, 32), num_res_blocks=1),
    "t5": MODELS["t5"][0](vocab_size=40, d_model=24, d_kv=8, d_ff=32, num_layers=2, num_heads=2),
    "clip": MODELS["clip"][0](vocab_size=40, hidden_size=16, intermediate_size=32, num_layers=2, num_heads=2, eos_token_id=39),
    "arcface": random_stack.ARCFACE,
}
STYLES = [(model, "diffusers") for model in CONFIGS] + [("flux", "bfl"), ("autoencoder", "bfl"), *((model, "comfyui") for model in ("infusenet", "t5", "clip"))]
SUFFIX = {"resampler": ".bin", "arcface": ".pth"}


def made_of(layout, cfg, dtype) -> dict[str, np.ndarray]:
    """Random tensors in a layout; `dtype` is one, or a function of the key."""
    shapes = {k: v.shape for k, v in param_shapes(abstract(layout.model, cfg)).items()}
    of = dtype if isinstance(dtype, type(made_of)) else lambda key: dtype
    draw = np.random.default_rng(len(shapes)).standard_normal
    plan = rules.plan(layout.rules(cfg), shapes)
    count = {key for key in plan.their_shapes if key.endswith("num_batches_tracked")}
    return {k: np.asarray(7, np.int64) if k in count else draw(shape, np.float32).astype(of(k)) for k, shape in plan.their_shapes.items()}


def write(folder, model, style, tensors):
    """As a user has it; gives the path of the file or folder."""
    layout, single = export.layout_for(model, style), export.is_file(model, style)
    path = folder / f"theirs{SUFFIX.get(model, '.safetensors' if single else '')}"
    export.write(path, layout, CONFIGS[model], tensors, 10**5, single)
    if single and layout.from_config:  # whoever has the single file alone needs the config beside it
        (folder / "config.json").write_text(json.dumps(layout.to_config(CONFIGS[model])))
    return path


def back_again(source_path, folder, model, style, dtype=None):
    """Through our own format, to PyTorch again; gives the tensors."""
    found = checkpoint.open_model(source_path, model)
    checkpoint.save_params(folder / "ours", model, found.cfg, checkpoint.open_params(found))
    ours = checkpoint.open_model(folder / "ours")
    layout = export.layout_for(model, style)
    single = export.is_file(model, style)
    again = folder / f"again{SUFFIX.get(model, '.safetensors' if single else '')}"
    export.write(again, layout, ours.cfg, export.tensors(layout, ours.cfg, checkpoint.open_params(ours), dtype), 10**5, single)
    return source.open_tensors(again)


def kinds(layout, cfg) -> dict[str, np.dtype]:
    """Every dtype in one file: tensors that one of our parameters is made of have the same."""
    shapes = {k: v.shape for k, v in param_shapes(abstract(layout.model, cfg)).items()}
    plan, group = rules.plan(layout.rules(cfg), shapes), {}
    for key, pieces in plan.by_theirs.items():
        joined = {group.get(p.ours, key) for p in pieces} | {key}
        for name in [*(k for k, g in group.items() if g in joined), *(p.ours for p in pieces), key]:
            group[name] = min(joined)
    roots = sorted(set(group.values()))
    return {key: list(DTYPES.values())[roots.index(group[key]) % len(DTYPES)] for key in plan.by_theirs}


@pytest.mark.parametrize(("model", "style"), STYLES)
def test_round_trip_to_the_bit(tmp_path, model, style):
    """Every number in its own dtype."""
    layout = export.layout_for(model, style)
    of = kinds(layout, CONFIGS[model])
    assert set(of.values()) == set(DTYPES.values())
    tensors = made_of(layout, CONFIGS[model], lambda key: of[key])
    again = back_again(write(tmp_path, model, style, tensors), tmp_path, model, style)
    assert again.keys() == tensors.keys()
    for key, x in tensors.items():
        assert again[key].dtype == x.dtype and again[key].shape == x.shape and again[key].tobytes() == x.tobytes(), key


def test_mixtures_take_the_smallest_dtype_that_holds_all(tmp_path):
    """Where one of our parameters is made of several tensors; all others keep their own dtype, and no number changes."""
    kinds = {"to_q": np.float32, "to_k": BF16, "add_q_proj": np.float16, "add_k_proj": BF16, "norm_q": FP8, "proj_out": np.float64}
    dtype = lambda key: next((d for part, d in kinds.items() if f".{part}." in key), BF16)  # noqa: E731
    tensors = made_of(export.layout_for("flux", "diffusers"), CONFIGS["flux"], dtype)
    again = back_again(write(tmp_path, "flux", "diffusers", tensors), tmp_path, "flux", "diffusers")
    for key, x in tensors.items():
        wanted = np.float32 if any(part in key for part in ("to_q", "to_k.", "to_v", "add_q", "add_k", "add_v", ".proj_out.")) else x.dtype
        assert again[key].dtype == wanted, key
        np.testing.assert_array_equal(np.float32(again[key]), np.float32(x))


@pytest.mark.parametrize("dtype", ["float16", "float8_e4m3fn"])
def test_chosen_dtype(tmp_path, dtype):
    """Rounded once. In float8, vectors are bfloat16."""
    tensors = made_of(export.layout_for("infusenet", "diffusers"), CONFIGS["infusenet"], np.float32)
    again = back_again(write(tmp_path, "infusenet", "diffusers", tensors), tmp_path, "infusenet", "diffusers", DTYPES[dtype])
    for key, x in tensors.items():
        wanted = x.astype(BF16 if x.ndim < 2 and dtype == "float8_e4m3fn" else DTYPES[dtype])
        assert again[key].dtype == wanted.dtype and again[key].tobytes() == wanted.tobytes(), key
    # And back in: a mixture of two kinds is read by the same rule.
    kept = {str(p.dtype) for p in checkpoint.open_params(checkpoint.open_model(tmp_path / "again", "infusenet")).values()}
    assert kept == ({"float8_e4m3fn", "bfloat16"} if dtype == "float8_e4m3fn" else {"float16"})


def test_what_a_narrow_dtype_cannot_hold():
    ends = ((1000.0, FP8, "448, choose bfloat16"), (1e5, np.float16, "6.55e.04, choose bfloat16"), (3.4e38, BF16, "3.39e.38, choose float32"))
    for value, dtype, end in (*ends, (1e300, np.float32, "3.403e.38, no dtype here holds them")):
        with pytest.raises(ConversionError, match=f"weight has values up to .*; {np.dtype(dtype)} ends at {end}"):
            numbers.cast(np.array([1, value], np.float64 if value > 1e39 else np.float32), np.dtype(dtype), "x.weight")
    assert np.isnan(np.float32(numbers.cast(np.array([np.nan], np.float32), FP8, "x")))[0]  # that is no fault of the dtype


@pytest.mark.parametrize("dtype", [*DTYPES.values(), np.dtype(np.float64), np.dtype(ml_dtypes.float8_e5m2)])
def test_finite_by_the_bits(dtype):
    x = np.linspace(-400, 400, 3 << 20, dtype=np.float32).astype(dtype)
    assert numbers.all_finite(x) and numbers.all_finite(x[:0])
    for value in [np.nan] + [np.inf, -np.inf] * (dtype != FP8):
        x[-5] = value
        assert not numbers.all_finite(x)
    assert numbers.all_finite(np.array([2**31 - 1], np.int32))


MANIFEST = json.loads(gzip.decompress((ROOT / "tests/data/full_size_keys.json.gz").read_bytes()))
FULL = {
    ("flux", "diffusers", True): "flux1_dev_transformer",
    ("flux", "diffusers", False): "flux1_schnell_transformer",
    ("flux", "bfl", True): "bfl_flux1_dev",
    ("flux", "bfl", False): "bfl_flux1_schnell",
    ("infusenet", "diffusers", True): "infusenet_guidance",
    ("infusenet", "comfyui", True): "infusenet_guidance",
    ("autoencoder", "diffusers", True): "flux_vae",
    ("autoencoder", "bfl", True): "bfl_ae",
    ("t5", "diffusers", True): "t5_xxl_encoder",
    ("clip", "diffusers", True): "clip_l_text",
    ("resampler", "diffusers", True): "resampler",
    ("arcface", "diffusers", True): "arcface_ir_se50",
}


@pytest.mark.parametrize(("model", "style", "guidance"), FULL)
def test_full_size_names_and_shapes(model, style, guidance):
    """Of everything that would be written, and read again; no array is made."""
    cfg = MODELS[model][0]() if guidance else FluxConfig(guidance_embed=False)
    fail = lambda box: pytest.fail("an array was read")  # noqa: E731
    params = {k: HostParam(v.shape, BF16 if v.dtype == np.float32 else np.dtype(np.int32), fail) for k, v in param_shapes(abstract(model, cfg)).items()}
    layout = export.layout_for(model, style)
    made = export.tensors(layout, cfg, params)
    expected = {k: s for k, s in MANIFEST[FULL[model, style, guidance]]["shapes"].items() if k != "encoder.embed_tokens.weight"}  # T5's shared.weight again
    assert {k: list(t.shape) for k, t in made.items()} == expected
    if layout.to_config:
        assert layout.from_config(json.loads(json.dumps(layout.to_config(cfg)))) == cfg


# The command --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("jax")
    for which in (FLUX, INFU):
        assert command(convert_weights, "to-jax", which, folder / which.name).code == 0
    return folder / FLUX.name, folder / INFU.name


def files(folder):
    return {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}


def test_release_folders_come_back_as_they_were(converted, tmp_path):
    """With one shard each, file by file and byte by byte, but for the order of a JSON file."""
    for original, folder in zip((FLUX, INFU), converted, strict=True):
        assert command(convert_weights, "to-torch", folder, tmp_path / original.name).code == 0
        theirs, ours = files(original), files(tmp_path / original.name)
        assert theirs.keys() == ours.keys()
        for name, path in theirs.items():
            if name.endswith("config.json"):
                assert json.loads(ours[name].read_text()) == json.loads(path.read_text()), name
            else:
                assert ours[name].read_bytes() == path.read_bytes(), name


@pytest.mark.parametrize("style", ["bfl", "comfyui"])
def test_single_files(converted, tmp_path, style):
    """Their names, and that they are read again in the place of what they came from."""
    for folder in converted:
        assert command(convert_weights, "to-torch", folder, tmp_path / folder.name, "--style", style).code == 0
    found = {name for folder in converted for name in files(tmp_path / folder.name) if "token" not in name}
    both = {"flux1-dev.safetensors", "ae.safetensors", "image_proj_model.bin", "recognition_arcface_ir_se50.pth"}
    if style == "comfyui":
        assert found == both | {"infusenet_bf16.safetensors", "clip_l_bf16.safetensors", "t5xxl_bf16.safetensors"}
    else:
        weights = {"InfuseNetModel/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors", "text_encoder_2/model.safetensors"}
        configs = {f"{name}/config.json" for name in ("InfuseNetModel", "text_encoder", "text_encoder_2")}
        assert found == both | weights | configs | {"scheduler/scheduler_config.json", "model_index.json"}
    hashes = [command(convert_weights, "inspect", "--hash", path).out for path in (tmp_path / FLUX.name / "flux1-dev.safetensors", FLUX / "transformer")]
    assert len({line for text in hashes for line in text.splitlines() if "hash:" in line}) == 1


def test_what_a_file_cannot_say(converted, tmp_path):
    """BFL's VAE has 32 norm groups wherever it is read."""
    ran = command(convert_weights, "to-torch", converted[0] / "vae", tmp_path / "ae.safetensors", "--style", "bfl")
    assert ran.code == 0 and "warning: autoencoder in bfl layout: such files have no config.json, and readers will take it for another model (" in ran.err
    cfg = CONFIGS["autoencoder"]
    for change, said in (({}, ""), ({"scale_factor": 0.5}, "scale_factor to be 0.3611, not 0.5")):
        layout, other = export.layout_for("autoencoder", "bfl"), dataclasses.replace(cfg, **change)
        assert export._lost(layout, other, {k: x.shape for k, x in made_of(layout, other, BF16).items()}) == said


def test_printed_commands(tmp_path):
    """Those of docs/converting.md, on the stack that is part of the package, whose head size 7/16 does not divide."""
    flux, file = TINY / "FLUX.1-tiny" / "transformer", tmp_path / "flux1-dev.safetensors"
    assert command(convert_weights, "to-torch", flux, file, "--style", "bfl") == (0, f"{file}: flux\n", mock.ANY)
    assert command(convert_weights, "inspect", "--diff", flux, file) == (0, "flux: the same numbers\n", "")
    ran = command(convert_weights, "to-torch", TINY / "InfiniteYou-tiny" / "InfuseNetModel", tmp_path / "i.safetensors", "--style", "comfyui", "--dtype", FP8)
    assert ran.code == 0 and str(FP8) in command(convert_weights, "inspect", file.parent / "i.safetensors").out


def test_rope_split_of_bfl():
    """FLUX.1's own, and the nearest even numbers for any other head size."""
    layout = export.layout_for("flux", "bfl")
    for size, split in ((128, (16, 56, 56)), (32, (4, 14, 14)), (40, (8, 16, 16)), (48, (8, 20, 20))):
        cfg = dataclasses.replace(CONFIGS["flux"], hidden_size=size, axes_dim=split)
        assert layout.from_shapes({k: x.shape for k, x in made_of(layout, cfg, BF16).items()}) == cfg
    other = dataclasses.replace(CONFIGS["flux"], axes_dim=(8, 12, 12))
    shapes = {k: x.shape for k, x in made_of(layout, other, BF16).items()}
    assert export._lost(layout, other, shapes) == "axes_dim to be (4, 14, 14), not (8, 12, 12)"
    refused = dataclasses.replace(layout, from_shapes=lambda shapes: dataclasses.replace(other, axes_dim=(8, 12)))
    assert export._lost(refused, other, shapes) == "it for another model (axes_dim (8, 12) adds up to 20, the head size is 32)"


def test_shards(converted, tmp_path):
    assert command(convert_weights, "to-torch", converted[0] / "transformer", tmp_path / "t", "--shard-size", "0.7MB").code == 0
    shards = sorted(p.stat().st_size for p in (tmp_path / "t").glob("*-of-*.safetensors"))
    index = json.loads((tmp_path / "t" / "diffusion_pytorch_model.safetensors.index.json").read_text())
    assert len(shards) == 4 and shards[-1] < 800_000 and index["metadata"]["total_size"] == 2 * 1_161_920
    for wrong in ("0", "5 parsecs", "-1GB", "1e9", "9" * 400, "9" * 305 + "GB", "9999999999GB"):
        assert_one_line(
            command(convert_weights, "to-torch", converted[0], tmp_path / "no", f"--shard-size={wrong}"), f"--shard-size is '{wrong[:40]}'; something like"
        )


BAD = {
    "a file for a folder": (lambda f, t: [f[1] / "InfuseNetModel", t / "x.safetensors"], "infusenet is written as a folder here"),
    "a folder for a file": (
        lambda f, t: [f[1] / "InfuseNetModel", t / "x", "--style", "comfyui"],
        "infusenet is written as one file here.*ends in .safetensors",
    ),
    "another file": (lambda f, t: [f[1] / "image_proj_model", t / "x.safetensors"], "resampler is written as one file here.*ends in .bin"),
    "output exists": (lambda f, t: [f[0], f[0]], "exists already"),
    "no source": (lambda f, t: [t / "no", t / "x"], "no does not exist"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments(converted, tmp_path, case):
    make, message = BAD[case]
    assert_one_line(command(convert_weights, "to-torch", *make(converted, tmp_path)), message)
    assert listing(tmp_path) == {}


def test_memory_is_that_of_a_tensor(tmp_path):
    """Both ways, for 36 million parameters whose largest stack takes 34 MB: one layer of it at a time."""
    cfg = InfuseNetConfig(vec_in_dim=32, context_in_dim=64, hidden_size=256, num_heads=4, depth=2, depth_single_blocks=32, axes_dim=(16, 24, 24))
    layout = export.layout_for("infusenet", "diffusers")
    shapes = {k: v.shape for k, v in param_shapes(abstract("infusenet", cfg)).items()}
    read = lambda box: np.zeros([b - a for a, b in box], BF16)  # noqa: E731
    made = export.tensors(layout, cfg, {k: HostParam(shape, BF16, read) for k, shape in shapes.items()})
    peaks = []

    def watch(work):
        tracemalloc.start()
        work()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()

    export.write(tmp_path / "theirs", layout, cfg, made, 10**8, False)
    found = checkpoint.open_model(tmp_path / "theirs", "infusenet")
    watch(lambda: checkpoint.save_params(tmp_path / "ours", "infusenet", cfg, checkpoint.open_params(found)))
    ours = checkpoint.open_model(tmp_path / "ours")
    again = export.tensors(layout, cfg, checkpoint.open_params(ours))
    watch(lambda: export.write(tmp_path / "again", layout, cfg, again, 10**8, False))
    print(f"peaks {peaks[0] / 1e6:.1f} and {peaks[1] / 1e6:.1f} MB, model {export.total_bytes(again) / 1e6:.0f} MB")
    assert export.total_bytes(again) > 60e6 and max(peaks) < 12e6


# Faults -------------------------------------------------------------------------------------------


def test_numbers_that_are_not_finite_are_named(tmp_path):
    """Read, converted, and said."""
    name, ours = "transformer_blocks.1.attn.add_k_proj.weight", "double_blocks.txt.qkv.kernel"

    def spoil(x):
        x[name][3, 4], x["proj_out.bias"][2] = np.nan, np.inf

    where = changed(tmp_path, FLUX, edit_keys("transformer/diffusion_pytorch_model.safetensors", spoil)) / "transformer"
    ran = command(convert_weights, "to-jax", where, tmp_path / "out")
    assert ran.code == 0 and [line.split(": not all")[0] for line in ran.err.splitlines() if line.startswith("warning")] == [
        f"warning: {where}: {name}",
        f"warning: {where}: proj_out.bias",
    ]
    ran = command(convert_weights, "to-torch", tmp_path / "out", tmp_path / "again")
    assert ran.code == 0 and f"warning: {tmp_path / 'out' / 'weights'}: {ours}: not all numbers are finite" in ran.err
    assert np.isnan(np.float32(source.open_tensors(tmp_path / "again")[name])[3, 4])


@pytest.mark.parametrize("which", ["to-jax", "to-torch"])
def test_numbers_beyond_float32_are_an_error(tmp_path, which):
    """Where they stand beside what is not finite, too."""

    def widen(x):
        wide = {name: x[name].astype(np.float64) for name in (f"transformer_blocks.1.attn.to_{part}.weight" for part in "qkv")}
        wide["transformer_blocks.1.attn.to_q.weight"][0, 0], wide["transformer_blocks.1.attn.to_k.weight"][3, 4] = np.nan, -1e300
        x.update(wide)

    where = changed(tmp_path, FLUX, edit_keys("transformer/diffusion_pytorch_model.safetensors", widen)) / "transformer"
    message = r"transformer: transformer_blocks.1.attn.to_k.weight has values up to 1e\+300; float32 ends at 3.403e\+38, no dtype here holds them"
    assert_one_line(command(convert_weights, which, where, tmp_path / "out"), message)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device", "weights"), KeyboardInterrupt()])
def test_failure_in_the_middle_leaves_nothing(converted, tmp_path, monkeypatch, error):
    pieces, wrote = safetensors.write_pieces, []

    def fail(write, data):
        wrote.append(data.size)
        if len(wrote) == 300:  # in the second model
            raise error
        pieces(write, data)

    monkeypatch.setattr(safetensors, "write_pieces", fail)
    ran = command(convert_weights, "to-torch", converted[0], tmp_path / "out")
    assert (ran.code, ran.err.splitlines()[-1]) in [(1, "error: weights: No space left on device"), (130, "interrupted")]
    assert ran.out == "" and listing(tmp_path) == {}


def script(*argv, blocks=None):
    """The real program, in a process that may not write files of more than `blocks` of 512 bytes: what a full disk is like."""
    limit = f"ulimit -f {blocks}; " if blocks else ""
    ran = subprocess.run(
        ["sh", "-c", f'{limit}exec "$@"', "sh", sys.executable, "convert_weights.py", *map(str, argv)], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    return ran.returncode, ran.stdout, ran.stderr


@pytest.mark.parametrize("which", ["to-torch", "to-jax"])
def test_full_disk(tmp_path, which):
    code, said, errors = script(which, FLUX / "transformer", tmp_path / "out", blocks=16)
    assert code == 1 and said == "" and errors.startswith("error: ") and errors.count("\n") == 1, errors
    assert "File too large" in errors
    assert listing(tmp_path) == {}


@pytest.mark.slow
@pytest.mark.parametrize("which", ["to-torch", "to-jax"])
def test_killed_in_the_middle(tmp_path, which):
    """kill -9 at many moments: OUT is whole or not there, and a second run is not disturbed by what the first left."""
    out = tmp_path / "out"
    began = time.monotonic()
    assert script(which, FLUX, out)[0] == 0
    names = lambda folder: {name for name in files(folder) if "/d/" not in name}  # Orbax's data files have random names  # noqa: E731
    whole, took = names(out), time.monotonic() - began
    killed = 0
    for n in range(3):
        target = tmp_path / f"out{n}"
        process = subprocess.Popen([sys.executable, "convert_weights.py", which, FLUX, target], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(took * (0.5 + 0.15 * n))
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        if target.exists():
            assert names(target) == whole
    assert killed
    left = tmp_path / f".again.{os.getpid()}.partial"
    left.mkdir()
    assert script(which, FLUX, tmp_path / "again")[0] == 0
    assert names(tmp_path / "again") == whole


def test_read_only_target(tmp_path):
    target = tmp_path / "locked"
    target.mkdir(mode=0o555)
    place = target / "out" if os.geteuid() else "/sys/kernel/out"  # the superuser is refused by few places
    code, said, errors = script("to-torch", FLUX / "vae", place)
    assert code == 1 and said == "" and errors.count("\n") == 1 and "cannot be written" in errors and "choose another output folder" in errors


def test_damaged_orbax_data(converted, tmp_path):
    folder = changed(tmp_path, converted[0], lambda f: None) / "transformer"
    largest = max((p for p in (folder / "weights").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    assert_one_line(command(convert_weights, "to-torch", folder, tmp_path / "out"), "weights cannot be read .*; if it is damaged, convert the model again")
    assert not (tmp_path / "out").exists()


def test_pickled_files_are_read_without_torch(converted, tmp_path):
    assert command(convert_weights, "to-torch", converted[1] / "image_proj_model", tmp_path / "p.bin").code == 0
    tree = torch_pickle.open_file(tmp_path / "p.bin")
    assert list(tree) == ["image_proj"] and len(tree["image_proj"]) == 29
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert checkpoint.open_model(tmp_path / "p.bin", "resampler").cfg == random_stack.RESAMPLER
