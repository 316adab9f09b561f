"""sample.py as its user meets it: one line for every mistake, before any model is loaded, and pictures that say how they were made."""

import contextlib
import dataclasses
import errno
import io
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from PIL import Image

import sample
from infu_jax import checkpoint, face, pictures, sharding
from infu_jax.assets import ASSETS, TINY_SAMPLING
from infu_jax.cli import run, user_cache
from infu_jax.config import MeshConfig, SamplingConfig
from infu_jax.convert import safetensors
from infu_jax.errors import InputError
from infu_jax.pipeline import InfUPipeline
from tests import random_stack

ROOT = Path(__file__).parents[1]
FLUX, INFU = random_stack.folders()
ADA, BO = ASSETS / "faces" / "ada.png", ASSETS / "faces" / "bo.png"
SMALL = ("--width", 64, "--height", 64, "--steps", 1, "--t5-length", 16)
MAKE_MESH = sharding.make_mesh
KEYPOINTS = (20, 30.5, 44, 28, 33, 42, 24, 55, 42, 54)


class Ran(NamedTuple):
    """What a command did, as its shell sees it."""

    code: int
    out: str
    err: str


def command(script, *argv) -> Ran:
    """A script with these arguments, in this process."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with mock.patch.object(sys, "argv", [script.__file__, *map(str, argv)]), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            run(script.main)
        except SystemExit as e:
            code = e.code
    return Ran(code, out.getvalue(), err.getvalue())


def assert_one_line(ran: Ran, message: str):
    assert ran.code == 1 and ran.out == "", ran
    assert ran.err.startswith("error: ") and ran.err.endswith("\n") and ran.err.count("\n") == 1, ran.err
    assert re.search(message, ran.err), ran.err


def listing(folder: Path) -> dict[str, int]:
    return {str(path): path.lstat().st_mtime_ns for path in folder.rglob("*")}


@pytest.fixture(scope="module", autouse=True)
def one_device():
    """The simulated devices would each compute the same picture."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "make_mesh", lambda **sizes: MAKE_MESH(devices=jax.devices()[:1]))
        yield


# Bad input ----------------------------------------------------------------------------------------


def grey(folder):
    Image.new("RGB", (96, 96), (128, 128, 128)).save(folder / "grey.png")
    return folder / "grey.png"


def text(folder, content="x\n", name="file.txt"):
    (folder / name).write_text(content)
    return folder / name


def changed(folder, original, change):
    """A copy of a release folder after `change(copy)`."""
    shutil.copytree(original, folder / original.name)
    change(folder / original.name)
    return folder / original.name


def edit_config(model, **values):
    def change(folder):
        path = folder / model / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


def edit_keys(file, change_keys):
    def change(folder):
        tensors = {k: np.array(v) for k, v in safetensors.open_file(folder / file).items()}
        change_keys(tensors)
        safetensors.write_file(folder / file, tensors, metadata={"format": "pt"})

    return change


def without_a_shard(folder):
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = {k: np.array(v) for k, v in safetensors.open_file(file).items()}
    file.unlink()
    safetensors.write_sharded(file.parent, "diffusion_pytorch_model", tensors, 700_000)
    assert len(list(file.parent.glob("*-of-00004.safetensors"))) == 4
    (file.parent / "diffusion_pytorch_model-00003-of-00004.safetensors").unlink()


class Harm:
    """Unpickling this makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def harmful(folder, zipped):
    data = pickle.dumps({"image_proj": Harm(folder.parent / "harm was done")}, protocol=2)
    if zipped:
        with zipfile.ZipFile(folder / "image_proj_model.bin", "w") as file:
            file.writestr("archive/data.pkl", data)
            file.writestr("archive/version", "3\n")
    else:
        (folder / "image_proj_model.bin").write_bytes(data)


BAD_OPTIONS = {
    "no prompt": (lambda t: ["--prompts-file", text(t, "")], "file.txt has no prompts"),
    "only comments": (lambda t: ["--prompts-file", text(t, "# one\n\n   \n  # two\n")], "has no prompts; write one a line"),
    "prompts not text": (lambda t: ["--prompts-file", ADA], "ada.png is not UTF-8 text"),
    "prompts missing": (lambda t: ["--prompts-file", t / "no.txt"], "no.txt: No such file"),
    "prompt not text": (lambda t: ["--prompt", os.fsdecode(b"caf\xe9")], "is not UTF-8 text"),
    "prompt twice": (lambda t: ["--prompt", "a", "--prompt", "b"], "--prompt is given 2 times"),
    "width": (lambda t: ["--width", 65], "65x64; sides must be multiples of 16 .*64x64"),
    "window": (lambda t: ["--guidance-start", 0.6, "--guidance-end", 0.5], "guidance_start is 0.6 and guidance_end is 0.5"),
    "num_images": (lambda t: ["--num-images", 0], "num_images is 0; from 1 to 100000 "),
    "too many images": (lambda t: ["--num-images", 3_000_000_000], "num_images is 3000000000; from 1 to 100000 "),
    "too many steps": (lambda t: ["--steps", 10**9], "steps is 1000000000; at most 10000 "),
    "batch": (lambda t: ["--batch", 0], "batch is 0; at least 1"),
    "seed below": (lambda t: ["--seed", -1], "seed -1 .* out of range"),
    "seed above": (lambda t: ["--seed", 5, 2**32], "seed 4294967296 .* out of range"),
    "last seed above": (lambda t: ["--seed", 2**32 - 2, "--num-images", 3], "seed 4294967294 with num_images 3 is out of range"),
    "no seed": (lambda t: ["--seed"], "no seed was given"),
    "keypoints": (lambda t: ["--keypoints", 1, 2, 3], "keypoints has 3 numbers; 10 are needed"),
    "keypoints outside": (lambda t: ["--keypoints", *range(100, 110)], "none of the five keypoints lies inside the 64x64 picture"),
    "two controls": (lambda t: ["--keypoints", *KEYPOINTS, "--control-image", BO], "--control-image or --keypoints, not both"),
    "true_cfg alone": (lambda t: ["--true-cfg", 2], "true_cfg is 2.0 but there is no negative prompt"),
    "negative prompt alone": (lambda t: ["--negative-prompt", "blurry"], "no effect while true_cfg is 1"),
    "negative prompt not text": (lambda t: ["--negative-prompt", os.fsdecode(b"caf\xe9"), "--true-cfg", 2], "the negative prompt .* is not UTF-8 text"),
    "no face": (lambda t: ["--id-image", grey(t)], "grey.png: no face found in a 96x96 picture"),
    "no picture": (lambda t: ["--id-image", text(t)], "file.txt: not a picture"),
    "photo missing": (lambda t: ["--id-image", t / "no.jpg"], "no.jpg: no such picture file"),
    "no face to follow": (lambda t: ["--control-image", grey(t)], "grey.png: no face found"),
    "detector root missing": (lambda t: ["--detector", "antelopev2", "--detector-root", t / "no"], "scrfd_10g_bnkps.onnx is missing; copy"),
    "detector root not given": (lambda t: ["--detector", "antelopev2"], "needs root"),
    "detector root of no use": (lambda t: ["--detector-root", t], "yunet needs none; give --detector antelopev2, or leave --detector-root out"),
    "like nothing": (lambda t: ["--like", t / "no.png"], "no.png: No such file"),
    "like a photo": (lambda t: ["--like", grey(t)], "grey.png carries no infu_jax settings"),
}
BAD_WEIGHTS = {
    "no folder": (lambda t: ["--base", t / "no"], "no does not exist; give the path"),
    "other folder": (lambda t: ["--base", ASSETS], "holds no flux: expected config.json, or one of transformer, .*found"),
    "file": (lambda t: ["--base", text(t)], "file.txt is no checkpoint by its name"),
    "swapped": (lambda t: ["--base", INFU, "--infu", FLUX], "InfiniteYou-tiny holds no flux"),
    "one model": (lambda t: ["--base", FLUX / "transformer"], "is a checkpoint of flux .*; autoencoder is needed"),
    "other model": (lambda t: ["--transformer", INFU / "InfuseNetModel"], "is a checkpoint of infusenet .*; flux is needed"),
    "truncated": (
        lambda t: ["--base", changed(t, FLUX, lambda f: os.truncate(f / "vae" / "diffusion_pytorch_model.safetensors", 100_000))],
        "vae/diffusion_pytorch_model.safetensors: truncated: 100000 of 672670 bytes",
    ),
    "missing shard": (lambda t: ["--base", changed(t, FLUX, without_a_shard)], "1 of 4 shards are missing: diffusion_pytorch_model-00003-of-00004"),
    "missing key": (
        lambda t: ["--base", changed(t, FLUX, edit_keys("text_encoder/model.safetensors", lambda x: x.pop("text_model.final_layer_norm.bias")))],
        "text_encoder .*1 missing: text_model.final_layer_norm.bias",
    ),
    "unexpected key": (
        lambda t: ["--infu", changed(t, INFU, edit_keys("InfuseNetModel/diffusion_pytorch_model.safetensors", lambda x: x.update(lora=np.zeros(2))))],
        "InfuseNetModel .*1 unexpected: lora",
    ),
    "more blocks than weights": (
        lambda t: ["--base", changed(t, FLUX, edit_config("transformer", num_layers=5))],
        r"transformer does not fit its configuration: 32 missing: transformer_blocks\.4\.",
    ),
    "other width than weights": (
        lambda t: ["--base", changed(t, FLUX, edit_config("text_encoder_2", d_ff=65))],
        r"text_encoder_2 .*of another shape: .*wi_0\.weight is \[64, 32\], expected \[65, 32\]",
    ),
    "senseless config": (lambda t: ["--base", changed(t, FLUX, edit_config("vae", latent_channels=-1))], "vae: its configuration makes no sense: .*-1"),
    "config not JSON": (lambda t: ["--base", changed(t, FLUX, lambda f: text(f / "vae", "{,", "config.json"))], "vae/config.json is not JSON"),
    "harmful pickle": (lambda t: ["--infu", changed(t, INFU, lambda f: harmful(f, zipped=False))], "image_proj_model.bin: "),
    "harmful archive": (lambda t: ["--infu", changed(t, INFU, lambda f: harmful(f, zipped=True))], "image_proj_model.bin: "),
    "no projection": (
        lambda t: ["--infu", changed(t, INFU, lambda f: (f / "image_proj_model.bin").unlink())],
        "holds no resampler: expected .*image_proj_model.bin",
    ),
    "no ArcFace": (lambda t: ["--arcface", FLUX], "holds no arcface: expected .*recognition_arcface_ir_se50.pth"),
}


@pytest.mark.parametrize("case", [*BAD_OPTIONS, *BAD_WEIGHTS])
def test_bad_input_is_one_line_and_nothing_is_loaded_or_written(tmp_path, monkeypatch, case):
    monkeypatch.setattr(checkpoint, "load_model", lambda *_, **__: pytest.fail("models were loaded before the mistake was found"))
    make, message = {**BAD_OPTIONS, **BAD_WEIGHTS}[case]
    argv = make(tmp_path)
    others = [("--out", tmp_path / "out"), ("--prompt", "a"), ("--width", 64), ("--height", 64)]
    before = listing(tmp_path)
    assert_one_line(command(sample, *argv, *(x for option in others if option[0] not in argv for x in option)), message)
    assert listing(tmp_path) == before


def test_no_prompt(tmp_path):
    assert_one_line(command(sample, "--out", tmp_path / "out"), "no prompt was given; use --prompt")


def test_parts_of_different_models(tmp_path, monkeypatch):
    """Each is whole; they just do not belong together."""
    cfg = dataclasses.replace(random_stack.INFUSENET, hidden_size=32, num_heads=1)
    infu = changed(tmp_path, INFU, lambda f: shutil.rmtree(f / "InfuseNetModel"))
    random_stack.write_folder(infu / "InfuseNetModel", "infusenet", cfg)
    monkeypatch.setattr(checkpoint, "load_model", lambda *_, **__: pytest.fail("models were loaded before the mistake was found"))
    assert_one_line(
        command(sample, "--prompt", "a", "--base", FLUX, "--infu", infu, "--out", tmp_path / "out"), "hidden size differ: 64 and 32; .* do not belong together"
    )


@pytest.mark.parametrize("place", ["file.txt", "file.txt/below", "new/folder"])
def test_folder_that_cannot_be_written(tmp_path, monkeypatch, place):
    text(tmp_path)
    if place == "new/folder":  # as on a disk that is mounted read-only, where even root may not write
        monkeypatch.setattr(Path, "touch", mock.Mock(side_effect=OSError(errno.EROFS, "Read-only file system")))
    before = listing(tmp_path)
    assert_one_line(command(sample, "--prompt", "a", "--out", tmp_path / place), rf"{place} cannot be written \((Not a directory|Read-only file system)\)")
    assert listing(tmp_path) == before


@pytest.mark.parametrize("place", ["dangling", "dangling/below"])
def test_folder_that_is_a_link_to_nothing(tmp_path, place):
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    before = listing(tmp_path)
    assert_one_line(command(sample, "--prompt", "a", "--out", tmp_path / place), "dangling is a link to something that is not there")
    assert listing(tmp_path) == before


def test_options_that_do_not_exist_are_usage_errors(tmp_path):
    for argv in (["--sampler", "x"], ["--width", "wide"], ["--detector", "other"], ["--dtype", "int8"]):
        ran = command(sample, "--prompt", "a", "--out", tmp_path / "out", *argv)
        assert ran.code == 2 and argv[0] in ran.err and not ran.out
    assert listing(tmp_path) == {}


def test_mesh_that_does_not_fit(tmp_path, monkeypatch):
    monkeypatch.setattr(sharding, "make_mesh", MAKE_MESH)  # on eight devices
    given = ("--prompt", "a", "--out", tmp_path / "out")
    assert_one_line(command(sample, *given, "--mesh.data", 3), r"\(3, 1, 1, 1\) does not fit 8 devices")
    # Of the embedded stack's four heads no eighth can be had. Asked for, it is an error; by default every device gets a copy.
    assert_one_line(command(sample, *given, "--mesh.tensor", 8), "size 4 is not a multiple of mesh axis 'tensor' = 8; choose another mesh")
    assert_one_line(command(sample, *given, "--mesh.sequence", 8), "4 heads are not a multiple of mesh axes tensor x sequence = 8; choose another mesh")
    split = ("--mesh.sequence", 4, "--mesh.data", 2, "--batch", 2, "--t5-length", 42)
    assert_one_line(command(sample, *given, *split), "42 tokens are not a multiple of mesh axis 'sequence' = 4; choose another mesh")


def test_the_mesh_that_is_chosen():
    """Tokens are split where a device has room for all weights, heads where it has not, and the pictures of a batch before either."""
    real = sample.Args(base=Path("FLUX.1-dev"))

    def chosen(devices, gib=None, **changes):
        return sample._mesh(dataclasses.replace(real, **changes), devices, gib and int(gib * 2**30), "bfloat16")

    assert sample._mesh(sample.Args(), 8, 80 * 2**30, "bfloat16") == MeshConfig(data=-1)
    assert chosen(1, 80) == MeshConfig(data=-1)
    assert chosen(4, 80) == chosen(4, 30, offload=True) == chosen(4, 15.7, offload=True, weights="int8") == MeshConfig(data=1, sequence=4)
    assert chosen(4, 30) == MeshConfig(data=1, tensor=2, sequence=2) and chosen(4, 15.7) == MeshConfig(data=1, tensor=4)
    assert chosen(4, 80, batch=4) == MeshConfig(data=4) and chosen(4, 80, batch=2) == MeshConfig(data=2, sequence=2)
    # Devices that do not say how much they have, or have too little.
    assert [chosen(n) for n in (4, 6, 16)] == [MeshConfig(1, -1, n) for n in (4, 2, 8)] and chosen(4, 4) == MeshConfig(1, -1, 4)
    assert chosen(8, 80, mesh=MeshConfig(data=2, tensor=4)) == MeshConfig(data=2, tensor=4)


def test_device_without_enough_memory(tmp_path, monkeypatch):
    said = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 18874368000 bytes.\nBufferAssignment OOM Debugging.\n..."
    monkeypatch.setattr(InfUPipeline, "load", mock.Mock(side_effect=jax.errors.JaxRuntimeError(said)))
    ran = command(sample, "--prompt", "a", "--out", tmp_path / "out")
    assert ran.code == 1 and re.search(r"^error: the device has too little memory \(RESOURCE.*bytes\.\); try --offload", ran.err, re.M)
    assert "BufferAssignment" not in ran.err and listing(tmp_path) == {}


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (InputError("found this,\nexpected that"), "error: found this, expected that\n"),
        (OSError(errno.ENOSPC, "No space left on device", "a.png"), "error: a.png: No space left on device\n"),
        (FileNotFoundError("the detector's file is missing; copy it"), "error: the detector's file is missing; copy it\n"),
        (MemoryError(), "error: MemoryError\n"),
    ],
)
def test_every_kind_of_error_is_one_line(monkeypatch, error, line):
    monkeypatch.setattr(sample, "main", mock.Mock(side_effect=error))
    assert command(sample) == (1, "", line)


def test_a_bug_is_a_traceback(tmp_path, monkeypatch):
    monkeypatch.setattr(InfUPipeline, "load", mock.Mock(side_effect=IndexError("a bug")))
    with pytest.raises(IndexError, match="a bug"):
        command(sample, "--prompt", "a", "--out", tmp_path / "out")


def test_exit_codes_of_the_real_program(tmp_path):
    """And that --help and mistakes answer at once: JAX is not imported for them."""
    code = "import sys, atexit; atexit.register(lambda: print('jax' in sys.modules)); import sample; sample.run(sample.main)"
    env = {**os.environ, "COLUMNS": "100"}
    shown = subprocess.run([sys.executable, "-c", code, "--help"], cwd=ROOT, capture_output=True, text=True, env=env)
    assert shown.returncode == 0 and shown.stdout.endswith("False\n") and not shown.stderr
    for option in (
        "--id-image",
        "--prompt",
        "--seed",
        "--base",
        "--infu",
        "--width",
        "--steps",
        "--like",
        "--out",
        "--mesh.data",
        "sample.py --base FLUX.1-dev",
    ):
        assert option in shown.stdout, option
    failed = subprocess.run([sys.executable, "sample.py", "--prompt", "a", "--id-image", tmp_path / "no.png"], cwd=ROOT, capture_output=True, text=True)
    assert (failed.returncode, failed.stdout, failed.stderr) == (1, "", f"error: {tmp_path}/no.png: no such picture file\n")


# Pictures -----------------------------------------------------------------------------------------

LINE = re.compile(r"(?P<path>\S+\.png)  seed (?P<seed>\d+)  (?P<seconds>\d+\.\d) s  (no face found|identity similarity (?P<likeness>-?\d\.\d{3}))")


def made(ran: Ran) -> list[tuple[Path, int]]:
    """Paths and seeds of the pictures that a command says it made."""
    assert ran.code == 0, ran.err
    return [(Path(m["path"]), int(m["seed"])) for line in ran.out.splitlines() if (m := LINE.fullmatch(line))]


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def only(ran: Ran) -> Path:
    [(path, _)] = made(ran)
    return path


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """Two prompts on the command line, two in a file, two seeds of which one is random, two pictures each."""
    folder = tmp_path_factory.mktemp("several")
    prompts = text(folder, "\ufeff# a comment\n\n  портрет в саду ☂  \n# another\na woman in the rain\r\na dog\n", "prompts.txt")
    long = "a woman in a garden " * 5
    return command(sample, *SMALL, "--prompt", long, "a dog", "--prompts-file", prompts, "--seed", 7, 0, "--num-images", 2, "--out", folder / "out" / "new")


def test_every_combination_is_made(several):
    found = [pictures.read_recipe(path) for path, _ in made(several)]
    prompts = ["a woman in a garden " * 5, "a dog", "портрет в саду ☂", "a woman in the rain"]
    assert [r["prompt"] for r in found] == [p for p in prompts for _ in range(4)]
    seeds = [r["seed"] for r in found]
    assert [seeds[n : n + 2] for n in range(0, 16, 4)] == [[7, 8]] * 4
    random = [s for n in range(0, 16, 4) for s in seeds[n + 2 : n + 4]]
    assert len(set(random)) == 8 and all(0 < s < 2**31 for s in random) and max(random) > 2**16
    assert len({pixels(path).tobytes() for path, _ in made(several)}) == 16


def test_lines_name_path_seed_time_and_likeness(several):
    lines = several.out.splitlines()
    assert [seed for _, seed in made(several)] == [pictures.read_recipe(path)["seed"] for path, _ in made(several)]
    assert len(made(several)) == 16 and len(lines) == 17
    folder = made(several)[0][0].parent
    assert [path.name for path, seed in made(several)] == [f"{n + 1:04d}_seed{seed}.png" for n, (_, seed) in enumerate(made(several))]
    assert lines[-1] == f"{folder / '0017_sheet.png'}  contact sheet of 16 pictures"
    assert sorted(p.name for p in folder.iterdir()) == sorted([*(path.name for path, _ in made(several)), "0017_sheet.png"])
    # What is not the result goes to stderr, a line each, and there are no progress bars in a file.
    told = several.err.splitlines()
    assert told[0].startswith("using the embedded tiny stack") and re.fullmatch(r"models loaded in \d+\.\d s", told[1])
    assert told[2].startswith("warning: the prompt has ") and len(told) == 3


def test_contact_sheet(several):
    sheet = made(several)[0][0].with_name("0017_sheet.png")
    height, width, _ = pixels(sheet).shape
    assert width == 12 + 5 * 268 and height > 4 * 256  # the photo and four pictures abreast, four prompts below each other
    recipe = pictures.read_recipe(sheet)
    assert recipe["synthetic"] and recipe["contact_sheet_of"] == [[r["prompt"], r["seed"]] for r in (pictures.read_recipe(p) for p, _ in made(several))]
    assert_one_line(command(sample, "--like", sheet, "--out", sheet.parent), "0017_sheet.png is a contact sheet; give one of its pictures")


def test_metadata_say_everything(several):
    path, seed = made(several)[2]
    recipe = pictures.read_recipe(path)
    sizes = dict(width=64, height=64, steps=1, guidance=3.5, conditioning_scale=1.0, guidance_start=0.0, guidance_end=1.0)
    assert recipe == {
        "synthetic": True, "software": recipe["software"], "id_image": "embedded:faces/ada.png", "control_image": None,
        "base": "embedded:tiny/FLUX.1-tiny", "infu": "embedded:tiny/InfiniteYou-tiny", "arcface": None, "transformer": None, "autoencoder": None,
        "detector_root": None, "lora": [], "lora_sha256": [], "ema": True,
        "id_image_sha256": recipe["id_image_sha256"], "control_image_sha256": None, "negative_prompt": None, "keypoints": [],
        "sampling": {**sizes, "infusenet_guidance": 1.0, "true_cfg": 1.0, "t5_length": 16}, "detector": "yunet", "dtype": "float32", "batch": 1,
        "weights": "auto",
        "mesh": {"data": -1, "fsdp": 1, "tensor": 1, "sequence": 1}, "prompt": "a woman in a garden " * 5, "seed": seed, "identity_similarity": None,
    }  # fmt: skip
    assert re.fullmatch(r"infu_jax \S+, jax \S+, cpu", recipe["software"]) and re.fullmatch("[0-9a-f]{64}", recipe["id_image_sha256"])
    data = path.read_bytes()
    assert str(ROOT).encode() not in data
    assert b"trainedAlgorithmicMedia" in data


def test_likeness_is_measured_where_there_is_a_face(tmp_path, monkeypatch):
    """Noise has no face, so here every picture has one, in its middle."""
    detect = lambda self, image: [face.Face(np.array([0, 0, *image.shape[1::-1]], np.float32), face.ARCFACE_POINTS * image.shape[0] / 112, 1.0)]  # noqa: E731
    monkeypatch.setattr(face.YuNetDetector, "detect", detect)
    ran = command(sample, *SMALL, "--prompt", "a", "--seed", 1, "--out", tmp_path)
    likeness = pictures.read_recipe(only(ran))["identity_similarity"]
    assert -1 <= likeness <= 1 and ran.out.endswith(f"  identity similarity {likeness:.3f}\n")


def test_nothing_is_overwritten(tmp_path):
    given = (*SMALL, "--prompt", "a dog", "--seed", 3, "--out", tmp_path)
    first = only(command(sample, *given))
    before = first.read_bytes()
    second = only(command(sample, *given))
    assert [first.name, second.name] == ["0001_seed3.png", "0002_seed3.png"]
    assert first.read_bytes() == before
    np.testing.assert_array_equal(pixels(first), pixels(second))


def test_an_interrupted_run_keeps_what_is_whole(tmp_path, monkeypatch):
    save, saved = Image.Image.save, []

    def interrupted(self, path, **options):
        saved.append(path)
        if len(saved) == 2:
            Path(path).write_bytes(b"\x89PNG half")
            raise KeyboardInterrupt
        save(self, path, **options)

    monkeypatch.setattr(Image.Image, "save", interrupted)
    ran = command(sample, *SMALL, "--prompt", "a dog", "--seed", 1, "--num-images", 3, "--out", tmp_path)
    assert ran.code == 130 and ran.err.endswith("interrupted\n")
    assert os.listdir(tmp_path) == ["0001_seed1.png"]


@pytest.mark.parametrize(
    "options", [("--keypoints", *KEYPOINTS), ("--control-image", BO, "--id-image", ADA, "--true-cfg", 2, "--negative-prompt", "blurry, ünscharf")]
)
def test_like_makes_the_same_picture(tmp_path, options):
    small = ("--width", 64, "--height", 64, "--steps", 2, "--t5-length", 16, "--guidance", 2.5, "--conditioning-scale", 0.9)
    path = only(command(sample, *small, "--prompt", "a woman in the rain", "--seed", 0, "--out", tmp_path, *options))
    again = only(command(sample, "--like", path, "--out", tmp_path / "again"))
    np.testing.assert_array_equal(pixels(path), pixels(again))
    assert pictures.read_recipe(path) == pictures.read_recipe(again)
    assert again.name == path.name


def test_batches_make_the_same_pictures(tmp_path, several, monkeypatch):
    """The last batch, too, has two pictures, one of which is dropped, so that nothing is compiled for one."""
    call, sizes = InfUPipeline.__call__, []
    monkeypatch.setattr(InfUPipeline, "__call__", lambda self, prompts, **options: [sizes.append(len(prompts)), call(self, prompts, **options)][1])
    ran = command(sample, *SMALL, "--prompt", "a dog", "--seed", 7, "--num-images", 3, "--batch", 2, "--out", tmp_path)
    assert [seed for _, seed in made(ran)] == [7, 8, 9] and sizes == [2, 2]
    alone = {seed: path for path, seed in made(several)[4:6]}
    for path, seed in made(ran)[:2]:
        assert pictures.read_recipe(alone[seed])["prompt"] == "a dog" and pictures.read_recipe(path)["batch"] == 2
        # Sums of another order: at most the last bit of a level.
        assert np.abs(pixels(path).astype(int) - pixels(alone[seed])).max() <= 1


def test_no_picture_is_made_twice():
    """Where seeds that are given overlap with those that are counted up, or a prompt is repeated."""
    jobs = sample._jobs(options_of("--prompt", "a", "b", "a", "--seed", 7, 8, "--num-images", 2))
    assert jobs == [(prompt, seed) for prompt in "ab" for seed in (7, 8, 9)]


def test_only_line_breaks_end_a_prompt(tmp_path):
    file = text(tmp_path, "\ufeffa\u2028dog\r\n# a comment\n a\x0ccat\x85 \n\n")
    assert [prompt for prompt, _ in sample._jobs(options_of("--prompts-file", file))] == ["a\u2028dog", "a\x0ccat"]


# Settings from a picture --------------------------------------------------------------------------


def stored(folder, **options):
    """A picture whose metadata have these options, without the work of making one."""
    args = sample.Args(**{"prompt": ("a dog",), "seed": (5,), **options})
    recipe = {**sample._recipe(args, "float32"), "prompt": args.prompt[0], "seed": args.seed[0]}
    pictures.save_png(folder / "stored.png", np.zeros((4, 4, 3), np.uint8), recipe)
    return folder / "stored.png"


def options_of(*argv) -> sample.Args:
    """What the command line makes of its arguments."""
    argv = [str(x) for x in argv]
    return sample.tyro.cli(sample.Args, args=argv, default=sample._defaults(argv))


def test_sizes_and_steps_are_those_that_the_base_was_trained_for():
    assert options_of("--prompt", "a").sampling == TINY_SAMPLING
    assert options_of("--prompt", "a", "--steps", 3).sampling == dataclasses.replace(TINY_SAMPLING, steps=3)
    assert options_of("--prompt", "a", "--base", "FLUX.1-dev").sampling == SamplingConfig()


def test_options_override_a_picture(tmp_path):
    path = stored(tmp_path, keypoints=KEYPOINTS)
    found = options_of("--like", path, "--seed", 6, 7, "--steps", 3, f"--out={tmp_path}")
    assert (found.prompt, found.seed, found.keypoints, found.sampling.steps, found.out) == (("a dog",), (6, 7), KEYPOINTS, 3, tmp_path)
    assert options_of(f"--like={path}", "--control_image", BO).keypoints == ()
    file = text(tmp_path, "a cat\n")
    assert sample._jobs(options_of("--like", path, "--prompts-file", file)) == [("a cat", 5)]
    path.unlink()
    path = stored(tmp_path, control_image=BO, detector="antelopev2", detector_root=tmp_path)
    assert options_of("--like", path, "--keypoints", *KEYPOINTS).control_image is None
    assert options_of("--like", path).detector_root == tmp_path and options_of("--like", path, "--detector", "yunet").detector_root is None


def test_a_photo_that_has_changed(tmp_path):
    photo = shutil.copy(ADA, tmp_path / "me.png")
    path = stored(tmp_path, id_image=Path(photo))
    shutil.copy(BO, photo)
    assert_one_line(command(sample, "--like", path), f"me.png is not the file that {path} was made from; give the right one with --id-image")
    assert options_of("--like", path, "--id-image", photo).id_image == Path(photo)


def test_settings_of_another_version(tmp_path):
    recipe = pictures.read_recipe(stored(tmp_path))
    for name, change in {"a": {"sampling": {**recipe["sampling"], "sharpness": 2}}, "b": {"sampling": None}}.items():
        pictures.save_png(tmp_path / f"{name}.png", np.zeros((4, 4, 3), np.uint8), {**recipe, **change})
        assert_one_line(command(sample, "--like", tmp_path / f"{name}.png"), "unknown fields .*sharpness|not those of this version")
    del recipe["detector"]
    pictures.save_png(tmp_path / "c.png", np.zeros((4, 4, 3), np.uint8), recipe)
    assert_one_line(command(sample, "--like", tmp_path / "c.png"), "c.png: its settings are not those of this version .*'detector'")


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": 5},
        {"prompt": None},
        {"seed": "x"},
        {"seed": 1.5},
        {"seed": True},
        {"lora": [5]},
        {"lora": "abc"},
        {"lora_sha256": 5},
        {"lora_sha256": [5]},
        {"id_image": 5},
        {"base": None},
        {"arcface": ["a"]},
        {"negative_prompt": 5},
        {"keypoints": ["x"] * 10},
        {"keypoints": None},
        {"detector": "other"},
        {"dtype": "int4"},
        {"weights": "zz"},
        {"weights": ["int8"]},
        {"ema": "x"},
        {"sampling": {"steps": 2.5}},
        {"sampling": {"width": 128.0}},
        {"sampling": {"guidance": "3"}},
        {"sampling": {"guidance": 10**400}},
        {"sampling": {"conditioning_scale": True}},
    ],
    ids=str,
)
def test_stored_settings_of_wrong_types(tmp_path, change):
    recipe = pictures.read_recipe(stored(tmp_path))
    if "sampling" in change:
        change = {"sampling": {**recipe["sampling"], **change["sampling"]}}
    pictures.save_png(tmp_path / "a.png", np.zeros((4, 4, 3), np.uint8), {**recipe, **change})
    said = "a.png: its settings are not those of this version .*; give the options themselves instead of --like"
    assert_one_line(command(sample, "--like", tmp_path / "a.png"), said)


# Programs that are kept ---------------------------------------------------------------------------


def test_programs_are_kept(own_cache, tmp_path):
    """In the user's cache, unless another folder or none is asked for."""
    options = (*SMALL, "--prompt", "a chef", "--seed", 1, "--out", tmp_path / "out")
    before = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    try:
        compilation_cache.reset_cache()  # JAX opens one folder a process
        jax.clear_caches()
        for folder, given in ((tmp_path / "mine", ("--compilation-cache", tmp_path / "mine")), (own_cache / "infu_jax" / "programs", ())):
            ran = command(sample, *options, *given)
            assert ran.code == 0, ran
            assert any(path.name.startswith("jit_steps") for path in folder.iterdir()), sorted(folder.iterdir())
            compilation_cache.reset_cache()
            jax.clear_caches()
    finally:
        compilation_cache.reset_cache()
        jax.config.update("jax_persistent_cache_min_compile_time_secs", before)
    assert command(sample, *options, "--compilation-cache", "None").code == 0
    assert jax.config.jax_compilation_cache_dir is None


@pytest.mark.parametrize(("platform", "folder"), [("linux", ".cache/infu_jax"), ("darwin", "Library/Caches/infu_jax"), ("win32", "AppData/Local/infu_jax")])
def test_users_cache(monkeypatch, platform, folder):
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", platform)
    assert user_cache() == Path.home() / folder
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert (user_cache() == Path("/elsewhere/infu_jax")) is (platform == "linux")
