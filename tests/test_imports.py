"""Imports point down, and importing does nothing."""

import ast
import json
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

# From the top down: a module may import from lower lines, and from its own package.
LAYERS = (
    ("sample", "convert_weights", "train", "configs", "benchmarks"),
    ("infu_jax.evaluation", "infu_jax.demo"),
    ("infu_jax.stack_options",),
    ("infu_jax.assets",),
    ("infu_jax.validation", "infu_jax.plan"),
    ("infu_jax.pipeline",),
    ("infu_jax.checks", "infu_jax.programs", "infu_jax.parking", "infu_jax.inspection", "infu_jax.export", "infu_jax.training", "infu_jax.initial"),
    ("infu_jax.in_backward",),
    ("infu_jax.lora", "infu_jax.quantize", "infu_jax.objective"),
    ("infu_jax.sampler", "infu_jax.checkpoint", "infu_jax.identity_loss"),
    ("infu_jax.storage",),
    ("infu_jax.convert", "infu_jax.models"),
    ("infu_jax.attention", "infu_jax.pose"),
    ("infu_jax.sharding", "infu_jax.flow", "infu_jax.latents", "infu_jax.face", "infu_jax.tokenizers", "infu_jax.metrics", "infu_jax.cli"),
    ("infu_jax.run_state", "infu_jax.recipes", "infu_jax.optimizer", "infu_jax.flops", "infu_jax.distributed", "infu_jax.pictures", "infu_jax.hub"),
    ("infu_jax.train_config", "infu_jax.prompts", "infu_jax.recent"),
    ("infu_jax.config", "infu_jax.runs"),
    ("infu_jax.errors", "infu_jax.seeds"),
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
FORBIDDEN = {"torch", "tensorflow", "transformers", "diffusers", "safetensors", "data_pipeline", "examples", "tests"}
FILES = [p for p in ROOT.rglob("*.py") if not {".venv", "tests", "build", "dist", "data_pipeline", "examples"} & {*p.relative_to(ROOT).parts}]
MODULES = {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in FILES}


def place(module):
    """The line of LAYERS that a module or a name in it belongs to, None for what is not ours."""
    parts = module.split(".")
    return next((name for n in range(len(parts), 0, -1) if (name := ".".join(parts[:n])) in RANK), None)


def imported(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("module", [name for name in MODULES if name != "infu_jax"])
def test_imports_point_down(module):
    here = place(module)
    assert here is not None, f"{module} has no place in LAYERS"
    for name in imported(MODULES[module]):
        there = place(name)
        assert there in (None, here) or RANK[there] > RANK[here], f"{module} imports {name}, which is not below it"
        assert there or not name.startswith("infu_jax.") or name.removeprefix("infu_jax.") == "__version__", f"{name} has no place in LAYERS"
        if here.startswith("infu_jax"):
            assert name.split(".")[0] not in FORBIDDEN, f"{module} imports {name}"


IMPORT_ALL = """
import importlib, json, os, sys
opened = []
def watch(event, args):
    if event == "open" and isinstance(args[0], (str, bytes)) and (set("wax+") & set(args[1] or "") or (args[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
        opened.append(str(args[0]))
    elif event in ("os.mkdir", "os.rename", "os.symlink", "os.link", "socket.connect"):
        opened.append(f"{event} {args}")
sys.addaudithook(watch)
before = dict(os.environ)
for name in sys.argv[1:]:
    importlib.import_module(name)
from jax._src import xla_bridge
print(json.dumps(dict(
    opened=[name for name in opened if name != os.devnull],
    environ={k: v for k, v in {**before, **os.environ}.items() if before.get(k) != os.environ.get(k)},
    backends=list(xla_bridge._backends),
    heavy=sorted({"torch", "tensorflow", "transformers", "diffusers", "safetensors"} & set(sys.modules)),
)))
"""


def test_importing_does_nothing(tmp_path):
    """No device is touched (there is none of this platform), no file written, no connection made, no variable set, no framework loaded."""
    names = [name for name in MODULES if name.startswith("infu_jax")]
    assert len(names) > 30
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {"JAX_PLATFORMS": "no_such_platform", "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-B", "-c", IMPORT_ALL, *names], env=env | {"TMPDIR": str(tmp_path)}, cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {"opened": [], "environ": {}, "backends": [], "heavy": []}
    assert not list(tmp_path.iterdir())


PIPELINE = {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in ROOT.glob("data_pipeline/**/*.py") if p.stem != "__init__"}


@pytest.mark.parametrize("module", sorted(PIPELINE))
def test_data_pipeline_imports_no_other_framework(module):
    """It may use all of infu_jax, which uses none of it (above)."""
    assert not {name.split(".")[0] for name in imported(PIPELINE[module])} & FORBIDDEN - {"data_pipeline"}


def test_importing_data_pipeline_does_nothing(tmp_path):
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {"JAX_PLATFORMS": "no_such_platform", "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    env.pop("LD_LIBRARY_PATH", None)
    command = [sys.executable, "-B", "-c", IMPORT_ALL, *sorted(PIPELINE)]
    done = subprocess.run(command, env=env | {"TMPDIR": str(tmp_path)}, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    found["environ"].pop("LD_LIBRARY_PATH", None)  # set by OpenCV, which TFDS imports
    assert found == {"opened": [], "environ": {}, "backends": [], "heavy": []}
    assert not list(tmp_path.iterdir())
