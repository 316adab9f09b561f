"""convert_weights.py as its user meets it: whole results or none, the same pictures after it, and an honest inspection."""

import dataclasses
import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections import namedtuple

import ml_dtypes
import numpy as np
import pytest
from flax import nnx

import convert_weights
import sample
from infu_jax import checkpoint, config, pictures
from infu_jax.convert import flux as flux_table
from infu_jax.convert import rules, safetensors, torch_writer
from tests import random_stack
from tests.test_sample_cli import (
    FLUX,
    INFU,
    ROOT,
    SMALL,
    assert_one_line,
    changed,
    command,
    edit_config,
    edit_keys,
    harmful,
    listing,
    one_device,  # noqa: F401  (a fixture)
    only,
    pixels,
    text,
    without_a_shard,
)

KINDS = ["transformer", "vae", "text_encoder", "text_encoder_2", "InfuseNetModel", "image_proj_model", "recognition_arcface_ir_se50"]
MODELS = dict(zip(KINDS, ["flux", "autoencoder", "clip", "t5", "infusenet", "resampler", "arcface"]))


def parameters(path, model) -> dict[str, np.ndarray]:
    module = checkpoint.load_model(path, model)
    return {".".join(map(str, k)): np.asarray(v[...]) for k, v in nnx.to_flat_state(nnx.state(module))}


def assert_same_parameters(a, b):
    assert a.keys() == b.keys()
    for k in a:
        assert a[k].dtype == b[k].dtype and a[k].shape == b[k].shape and a[k].tobytes() == b[k].tobytes(), k


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """The tiny FLUX and InfiniteYou folders, converted."""
    folder = tmp_path_factory.mktemp("converted")
    for source in (FLUX, INFU):
        ran = command(convert_weights, "to-jax", source, folder / source.name)
        assert ran.code == 0, ran.err
        assert ran.out == f"{folder / source.name}: {', '.join(MODELS[p] for p in KINDS if (folder / source.name / p).exists())}\n"
        assert [re.sub(r"\d+\.\d s", "T s", line) for line in ran.err.splitlines()] == [
            f"{source / place}{next((e for e in ('.bin', '.pth') if (source / (place + e)).exists()), '')}: {MODELS[place]} converted in T s"
            for place in KINDS
            if (folder / source.name / place).exists()
        ]
    return folder / FLUX.name, folder / INFU.name


@pytest.fixture(scope="module")
def bfl(tmp_path_factory):
    """BFL's single file of the tiny transformer, made by their rules run backwards."""
    layout = next(layout for layout in flux_table.LAYOUTS if layout.name == "bfl")
    ours = parameters(FLUX, "flux")
    plan = rules.plan(layout.rules(random_stack.FLUX), {k: v.shape for k, v in ours.items()})
    path = tmp_path_factory.mktemp("bfl") / "flux1-dev.safetensors"
    safetensors.write_file(path, {key: plan.read_theirs(key, ours, ml_dtypes.bfloat16) for key in plan.their_shapes})
    return path


# to-jax -------------------------------------------------------------------------------------------


def test_release_folders_keep_their_names(converted):
    flux, infu = converted
    assert sorted(p.name for p in flux.iterdir()) == sorted([*KINDS[:4], "tokenizer", "tokenizer_2", "scheduler", "model_index.json"])
    assert sorted(p.name for p in infu.iterdir()) == sorted(KINDS[4:])
    for copied in ("tokenizer/vocab.json", "tokenizer_2/spiece.model", "scheduler/scheduler_config.json", "model_index.json"):
        assert (flux / copied).read_bytes() == (FLUX / copied).read_bytes()
    assert not [p for p in flux.parent.rglob("*partial*")]


@pytest.mark.parametrize("model", MODELS.values())
def test_converted_parameters_are_the_same(converted, model):
    source, folder = (FLUX, converted[0]) if model in list(MODELS.values())[:4] else (INFU, converted[1])
    assert_same_parameters(parameters(source, model), parameters(folder, model))


def test_converted_models_make_the_same_pictures(converted, tmp_path):
    flux, infu = converted
    given = (*SMALL, "--prompt", "a woman in a garden", "--seed", 3, "--out", tmp_path)
    before = only(command(sample, *given, "--base", FLUX, "--infu", INFU))
    after = only(command(sample, *given, "--base", flux, "--infu", infu))
    np.testing.assert_array_equal(pixels(before), pixels(after))
    assert pixels(before).std() > 10  # not of one colour
    assert pictures.read_recipe(after)["base"] == str(flux)


def test_single_file(bfl, tmp_path):
    """BFL's file becomes the same model as the diffusers folder; sample.py takes either in the place of --base's own."""
    assert command(convert_weights, "to-jax", bfl, tmp_path / "new" / "transformer").code == 0
    assert os.listdir(tmp_path / "new") == ["transformer"]
    assert_same_parameters(parameters(tmp_path / "new" / "transformer", "flux"), parameters(FLUX, "flux"))
    given = (*SMALL, "--prompt", "a dog", "--seed", 3, "--out", tmp_path)
    shown = [pixels(only(command(sample, *given, "--base", FLUX, "--infu", INFU, "--transformer", path))) for path in (bfl, tmp_path / "new" / "transformer")]
    np.testing.assert_array_equal(*shown)


def test_dtype(tmp_path):
    """Of all floating-point parameters but ArcFace's, whose likenesses would suffer."""
    assert command(convert_weights, "to-jax", FLUX / "vae", tmp_path / "vae", "--dtype", "float32").code == 0
    found, kept = parameters(tmp_path / "vae", "autoencoder"), parameters(FLUX, "autoencoder")
    assert {v.dtype for v in found.values()} == {np.dtype(np.float32)} and {v.dtype for v in kept.values()} == {np.dtype(ml_dtypes.bfloat16)}
    assert all((found[k] == kept[k].astype(np.float32)).all() for k in kept)
    assert command(convert_weights, "to-jax", INFU, tmp_path / "infu", "--dtype", "bfloat16").code == 0
    assert {v.dtype for v in parameters(tmp_path / "infu", "infusenet").values()} == {np.dtype(ml_dtypes.bfloat16)}
    assert_same_parameters(parameters(tmp_path / "infu", "arcface"), parameters(INFU, "arcface"))
    # A converted model can be converted again.
    assert command(convert_weights, "to-jax", tmp_path / "vae", tmp_path / "vae16", "--dtype", "bfloat16").code == 0
    assert_same_parameters(parameters(tmp_path / "vae16", "autoencoder"), kept)


def test_part_of_a_release(tmp_path):
    """It is converted, and what sampling will miss is said."""
    source = changed(tmp_path, FLUX, lambda f: [shutil.rmtree(f / name) for name in ("text_encoder_2", "tokenizer")])
    ran = command(convert_weights, "to-jax", source, tmp_path / "out")
    assert ran.code == 0 and ran.out == f"{tmp_path / 'out'}: flux, autoencoder, clip\n"
    assert ran.err.splitlines()[0] == f"warning: {source} lacks what sample.py needs: t5 (text_encoder_2), tokenizer"


BAD = {
    "no source": (lambda t: [t / "no", t / "out"], "no does not exist"),
    "output exists": (lambda t: [FLUX, text(t)], "file.txt exists already; choose another name"),
    "onto itself": (lambda t: [FLUX, FLUX], "FLUX.1-tiny exists already"),
    "below a file": (lambda t: [FLUX, text(t) / "out"], r"out cannot be written \(Not a directory\)"),
    "no checkpoint": (lambda t: [text(t), t / "out"], "file.txt is no checkpoint by its name"),
    "folder of something": (lambda t: [FLUX / "tokenizer", t / "out"], "tokenizer is not a checkpoint folder: expected .*; found merges.txt"),
    "harmful": (lambda t: [changed(t, INFU, lambda f: harmful(f, zipped=True)), t / "out"], "image_proj_model.bin: "),
    # The last of the four models is the bad one: the others must not have been converted for nothing.
    "truncated": (lambda t: [changed(t, FLUX, lambda f: os.truncate(f / "text_encoder_2" / "model.safetensors", 999)), t / "out"], "truncated"),
    "unexpected key": (
        lambda t: [changed(t, FLUX, edit_keys("text_encoder_2/model.safetensors", lambda x: x.update(more=np.zeros(1)))), t / "out"],
        "1 unexpected: more",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_nothing_is_written(tmp_path, monkeypatch, case):
    monkeypatch.setattr(checkpoint, "save_params", lambda *_: pytest.fail("something was converted before the mistake was found"))
    make, message = BAD[case]
    argv = make(tmp_path)
    before = listing(tmp_path)
    assert_one_line(command(convert_weights, "to-jax", *argv), message)
    assert listing(tmp_path) == before


def test_disk_without_enough_room(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: namedtuple("usage", "free")(3 * 2**20))
    assert_one_line(command(convert_weights, "to-jax", INFU, tmp_path / "out", "--dtype", "float32"), "out needs 4 MiB and its disk has 3 MiB free")
    assert listing(tmp_path) == {}
    assert command(convert_weights, "to-jax", INFU, tmp_path / "out").code == 0  # as stored it fits


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device", "weights"), KeyboardInterrupt()])
def test_failure_in_the_middle_leaves_nothing(tmp_path, monkeypatch, error):
    save, saved = checkpoint.save_params, []

    def fail(folder, model, cfg, params):
        if len(saved) == 2:
            raise error
        save(folder, model, cfg, params)
        saved.append(model)

    monkeypatch.setattr(checkpoint, "save_params", fail)
    ran = command(convert_weights, "to-jax", INFU, tmp_path / "out")
    assert (ran.code, ran.err.splitlines()[-1]) in [(1, "error: weights: No space left on device"), (130, "interrupted")]
    assert len(saved) == 2 and ran.out == "" and listing(tmp_path) == {}


# inspect ------------------------------------------------------------------------------------------


def inspected(*argv) -> tuple[int, list[dict[str, str]]]:
    """Exit code, and what is said of each model: {"path": ..., "model": ..., "problem" or "complete": ...}."""
    ran = command(convert_weights, "inspect", *argv)
    assert not ran.err
    blocks: list[dict[str, str]] = []
    for line in ran.out.splitlines():
        if line.startswith("  "):
            name, _, value = line.strip().partition(":")
            blocks[-1][name] = value.strip()
        else:
            blocks.append({"path": line})
    return ran.code, blocks


COUNTS = {"flux": 1_161_920, "autoencoder": 326_995, "clip": 40_608, "t5": 26_656, "infusenet": 344_320, "resampler": 109_984, "arcface": 528_238}


def test_inspect_release_folders():
    code, blocks = inspected(FLUX)
    assert code == 0 and [b["path"] for b in blocks] == [str(FLUX / name) for name in KINDS[:4]]
    code, more = inspected(INFU)
    assert code == 0
    for model, block in zip(MODELS.values(), [*blocks, *more], strict=True):
        assert block["model"] == model and block["parameters"].startswith(f"{COUNTS[model]:,} (")
        assert block["complete"].startswith("every key is there") and "problem" not in block
    assert [b["layout"] for b in [*blocks, *more]] == ["diffusers", "diffusers", "transformers", "transformers", "diffusers", "infiniteyou", "facexlib"]
    assert blocks[0]["tensors"] == "260 (260 bfloat16)" and more[2]["tensors"] == "97 (83 float32, 14 int64)"
    assert [b.get("blocks") for b in [*blocks, *more]] == ["4 double, 8 single", None, None, None, "1 double, 2 single", None, None]
    assert blocks[0]["guidance"] == more[0]["guidance"] == "embedded" and "guidance" not in blocks[1]
    assert blocks[0]["full size"].startswith("no, released is another: vec_in_dim 32 (768), context_in_dim 32 (4096), hidden_size 64 (3072)")
    assert "hidden_size=64" in blocks[0]["sizes"] and "depth=4" in blocks[0]["sizes"] and "axes_dim=[4, 14, 14]" in blocks[0]["sizes"]


def test_inspect_converted_folders(converted):
    results = [inspected(folder) for folder in converted]
    assert [code for code, _ in results] == [0, 0]
    for model, block in zip(MODELS.values(), results[0][1] + results[1][1], strict=True):
        assert block["model"] == model and block["layout"] == "infu_jax (Orbax)" and "complete" in block
        assert block["parameters"].startswith(f"{COUNTS[model]:,} (")
    assert results[0][1][0]["tensors"] == "55 (55 bfloat16)"


def test_inspect_single_files_and_shards(bfl, tmp_path):
    code, [block] = inspected(bfl)
    assert code == 0 and (block["model"], block["layout"]) == ("flux", "bfl") and block["parameters"].startswith(f"{COUNTS['flux']:,}")
    tensors = safetensors.open_file(FLUX / "transformer" / "diffusion_pytorch_model.safetensors")
    index = safetensors.write_sharded(tmp_path, "diffusion_pytorch_model", tensors, 700_000)
    shutil.copy(FLUX / "transformer" / "config.json", tmp_path)
    for path in (tmp_path, index):
        code, [block] = inspected(path)
        assert code == 0 and block["model"] == "flux" and block["tensors"] == "260 (260 bfloat16)" and "complete" in block


@pytest.mark.parametrize(("guidance", "name", "count"), [(True, "FLUX.1-dev", 11_901_408_320), (False, "FLUX.1-schnell", 11_891_178_560)])
def test_inspect_full_size(tmp_path, guidance, name, count):
    """From the header alone: of a file of 24 GB that has no data on the disk."""
    cfg = config.FluxConfig(guidance_embed=guidance)
    layout = next(layout for layout in flux_table.LAYOUTS if layout.name == "bfl")
    plan = rules.plan(layout.rules(cfg), {k: v.shape for k, v in checkpoint.param_shapes(checkpoint.abstract("flux", cfg)).items()})
    header, at = {}, 0
    for key, shape in plan.their_shapes.items():
        size = 2 * int(np.prod(shape, dtype=np.int64))
        header[key], at = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}, at + size
    text = json.dumps(header).encode()
    path = tmp_path / "flux1-dev.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(path, 8 + len(text) + at)
    code, [block] = inspected(path)
    assert code == 0 and block["full size"] == f"yes, as the released {name}" and block["parameters"].startswith(f"{count:,} (")
    assert block["guidance"] == ("embedded" if guidance else "none") and block["blocks"] == "19 double, 38 single"


def test_inspect_diff(bfl, converted, tmp_path):
    """Across layouts and dtypes; what differs most comes first."""
    same = command(convert_weights, "inspect", "--diff", FLUX, converted[0])
    assert (same.code, same.err) == (0, "") and same.out == "".join(f"{model}: the same numbers\n" for model in list(MODELS.values())[:4])

    def change(x):
        x["single_transformer_blocks.3.proj_mlp.weight"][5, 6] += 10
        x["transformer_blocks.1.norm1.linear.bias"] *= 1.5

    other = changed(tmp_path, FLUX, edit_keys("transformer/diffusion_pytorch_model.safetensors", change)) / "transformer"
    ran = command(convert_weights, "inspect", "--diff", bfl, other)
    lines = ran.out.splitlines()
    assert ran.code == 1 and re.fullmatch(r"flux: 2 of \d+ parameters \(of stacks: layers\) differ", lines[0])
    assert [line.split()[-1] for line in lines[2:]] == ["single_blocks.mlp_in.kernel[3]", "double_blocks.img.mod.bias[1]"]
    assert 9 < float(lines[2].split()[0]) < 11 and 0.45 < float(lines[3].split()[1]) < 0.55
    assert len(command(convert_weights, "inspect", "--diff", bfl, other, "--top", 1).out.splitlines()) == 4
    assert command(convert_weights, "to-jax", other, tmp_path / "wide", "--dtype", "float32").code == 0
    assert "; stored as bfloat16, and as float32" in command(convert_weights, "inspect", "--diff", other, tmp_path / "wide").out
    assert_one_line(command(convert_weights, "inspect", "--diff", other), "--diff compares two checkpoints; 1 are given")
    shutil.rmtree(tmp_path / FLUX.name / "vae")
    ran = command(convert_weights, "inspect", "--diff", tmp_path / FLUX.name, FLUX)
    assert ran.code == 1 and f"autoencoder: only in {FLUX}" in ran.out


def test_inspect_diff_of_different_sizes(tmp_path):
    cfg = dataclasses.replace(random_stack.RESAMPLER, depth=1)
    torch_writer.write_file(tmp_path / "p.bin", {"image_proj": random_stack.tensors("resampler", cfg, np.float32)})
    ran = command(convert_weights, "inspect", "--diff", tmp_path / "p.bin", INFU / "image_proj_model.bin")
    assert_one_line(ran, "p.bin and .*image_proj_model.bin are of different sizes: depth 1 and 2")


def test_inspect_hash(bfl, converted):
    """The same in every layout; another for other numbers."""
    hashes = [[b["hash"] for b in inspected("--hash", path)[1]] for path in (FLUX / "transformer", bfl, converted[0] / "transformer", INFU / "InfuseNetModel")]
    assert hashes[0] == hashes[1] == hashes[2] != hashes[3] and re.fullmatch(r"[0-9a-f]{64}", hashes[0][0])


NORM = "single_transformer_blocks.3.attn.norm_q.weight"
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
PROBLEMS = {
    "removed": (edit_keys(WEIGHTS, lambda x: x.pop(NORM)), f"transformer does not fit its configuration: 1 missing: {NORM}"),
    "added": (edit_keys(WEIGHTS, lambda x: x.update({"lora.up": np.zeros(3)})), "transformer does not fit its configuration: 1 unexpected: lora.up"),
    "reshaped": (edit_keys(WEIGHTS, lambda x: x.update({NORM: np.zeros(31)})), rf"1 of another shape: {NORM} is \[31\], expected \[32\]"),
    "integers": (
        edit_keys(WEIGHTS, lambda x: x.update({NORM: np.zeros(32, np.int8), "x_embedder.weight": np.zeros((64, 64), np.int32)})),
        f"transformer: 2 weights are not floating-point numbers: {NORM} is int8, x_embedder.weight is int32; quantized files are not read",
    ),
    "config": (edit_config("transformer", num_layers=3), "32 unexpected: transformer_blocks.3."),
    "layers": (edit_config("transformer", num_layers=10**9), "transformer does not fit its configuration: depth is 1000000000, .* enough for 260 at most"),
    "field": (edit_config("transformer", num_attention_heads="two"), "configuration makes no sense"),
    "deep config": (lambda f: (f / "transformer" / "config.json").write_text("[" * 200_000), "config.json is not JSON: maximum recursion depth"),
    "long number": (lambda f: (f / "transformer" / "config.json").write_text("9" * 5000), "config.json is not JSON: Exceeds the limit"),
    "no text": (
        edit_keys(WEIGHTS, lambda x: x.update({"a\x1b[31m\nb": np.zeros(3)})),
        r"transformer does not fit its configuration: 1 unexpected: 'a\\x1b\[31m\\nb'",
    ),
    "no config": (lambda f: (f / "transformer" / "config.json").unlink(), "has no config.json; found diffusion_pytorch_model.safetensors"),
    "truncated": (lambda f: os.truncate(f / WEIGHTS, 5000), "safetensors: .*truncated"),
    "shard": (without_a_shard, "1 of 4 shards are missing"),
    "unknown": (edit_keys(WEIGHTS, lambda x: [x.pop(k) for k in list(x) if k != NORM]), "is none of the known models: its 1 keys begin"),
}


@pytest.mark.parametrize("case", PROBLEMS)
@pytest.mark.usefixtures("unchecked")
def test_inspect_says_what_is_wrong(tmp_path, case):
    """Of one model in the folder; the others are still described."""
    change, message = PROBLEMS[case]
    code, blocks = inspected(changed(tmp_path, FLUX, change))
    assert code == 1 and len(blocks) == 4
    assert re.search(message, blocks[0]["problem"]) and "complete" not in blocks[0]
    assert all("complete" in b and "problem" not in b for b in blocks[1:])
    if case in ("removed", "added", "reshaped", "config"):
        assert blocks[0]["model"] == "flux" and "parameters" in blocks[0]


def edit_json(**values):
    def change(folder):
        path = folder / "text_encoder" / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: shutil.rmtree(f / "text_encoder" / "weights"), "weights is missing or damaged; convert the original files again"),
        (edit_json(model="gpt"), "says model 'gpt'; expected one of flux, "),
        (edit_json(config={"vocab_size": 5}), r"CLIPTextConfig: unknown fields \[\], missing fields \['eos_token_id'"),
        (edit_json(config={**dataclasses.asdict(dataclasses.replace(config.CLIPTextConfig(), num_layers=-1))}), "num_layers is -1"),
        (edit_json(config=dataclasses.asdict(dataclasses.replace(config.CLIPTextConfig(), num_layers=10**9))), "num_layers is 1000000000, .* enough for"),
        (edit_json(config=dataclasses.asdict(config.CLIPTextConfig())), "text_encoder does not fit its configuration: .* of another shape"),
    ],
)
def test_inspect_damaged_conversion(converted, tmp_path, change, message):
    folder = changed(tmp_path, converted[0], change)
    code, blocks = inspected(folder)
    assert code == 1 and re.search(message, blocks[2]["problem"]) and sum("complete" in b for b in blocks) == 3
    assert_one_line(command(sample, "--prompt", "a", "--base", folder, "--out", tmp_path / "out"), message)


def test_inspect_part_of_a_release(tmp_path):
    code, blocks = inspected(changed(tmp_path, FLUX, lambda f: [shutil.rmtree(f / name) for name in ("vae", "tokenizer_2")]))
    assert code == 1 and len(blocks) == 4 and all("complete" in b for b in blocks[:3])
    assert blocks[3]["problem"] == "sample.py also needs autoencoder (vae or ae.safetensors), tokenizer_2"
    code, _ = inspected(changed(tmp_path, INFU, lambda f: (f / "recognition_arcface_ir_se50.pth").unlink()))
    assert code == 0  # the release itself has no ArcFace; --arcface names it


def test_names_that_a_terminal_cannot_show(tmp_path):
    header = json.dumps({"a\ud800\x1b[31m\nb": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}).encode()
    (tmp_path / "l.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    code, [block] = inspected(tmp_path / "l.safetensors")
    assert code == 1 and r"its 1 keys begin 'a\ud800\x1b[31m\nb'; known are" in block["problem"]
    ran = command(convert_weights, "merge-lora", FLUX / "transformer", tmp_path / "out", "--lora", tmp_path / "l.safetensors")
    assert_one_line(ran, r"1 of 1 keys match no layer: 'a\\ud800\\x1b\[31m\\nb'")


def test_inspect_nothing(tmp_path):
    assert_one_line(command(convert_weights, "inspect", tmp_path / "no"), "no does not exist")
    code, [block] = inspected(tmp_path)
    assert code == 1 and block["problem"].endswith("found nothing")
    code, [block] = inspected(text(tmp_path))
    assert code == 1 and "is no checkpoint by its name" in block["problem"]


# The real program ---------------------------------------------------------------------------------


def test_help_and_exit_codes(tmp_path):
    code = "import sys, atexit; atexit.register(lambda: print('jax' in sys.modules)); import convert_weights as c; c.run(c.main)"
    env = {**os.environ, "COLUMNS": "100"}
    expected = {
        "": ["to-jax", "to-torch", "merge-lora", "extract-lora", "inspect"],
        "to-jax": ["SRC", "OUT", "--dtype", "bfloat16"],
        "to-torch": ["SRC", "OUT", "--style", "comfyui", "--dtype", "float8_e4m3fn", "--shard-size"],
        "merge-lora": ["SRC", "OUT", "--lora", "FILE[:SCALE]"],
        "extract-lora": ["BASE", "TUNED", "OUT.safetensors", "--rank"],
        "inspect": ["PATH", "--hash", "--diff", "--top"],
    }
    for which, words in expected.items():
        ran = subprocess.run([sys.executable, "-c", code, *which.split(), "--help"], cwd=ROOT, capture_output=True, text=True, env=env)
        assert ran.returncode == 0 and ran.stdout.endswith("False\n") and not ran.stderr
        assert all(word in ran.stdout for word in words)
    ran = subprocess.run([sys.executable, "convert_weights.py", "to-jax", tmp_path / "no", tmp_path / "out"], cwd=ROOT, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout, ran.stderr) == (1, "", f"error: {tmp_path}/no does not exist\n")
    assert command(convert_weights, "export").code == 2 and command(convert_weights).code == 2
