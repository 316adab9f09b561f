"""Eight simulated devices for every test, and no accelerator even where there is one: numbers are compared in float32.

The package's annotations are checked on every call: shapes by jaxtyping, all else by beartype.
"""

import contextlib
import logging
import os
import re
from collections import Counter
from importlib.metadata import version
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
FLAGS = (
    "--xla_force_host_platform_device_count=8",
    # Tests compile for longer than they run: without the last stage's optimisations that takes half the time.
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_enable_concurrency_optimized_scheduler=false",  # a device's collectives one after the other
    "--xla_cpu_collective_call_terminate_timeout_seconds=300",  # a busy machine is no reason to abort (after 40 seconds, by default)
)
if version("jaxlib").startswith("0.10."):
    FLAGS += ("--xla_cpu_use_fusion_emitters=false",)  # the older way to compile a fusion takes half the time again; 0.11 has it no more
# Threads for the simulated devices: where there are no more than devices, collectives that run side by side can wait for each other for ever.
os.environ.setdefault("NPROC", "32")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"  # where a test has JAX keep programs, small ones too
os.environ["XLA_FLAGS"] = " ".join((os.environ.get("XLA_FLAGS", ""), *FLAGS))

import jax  # noqa: E402  (it reads the variables above)
import jaxtyping  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

ROOT = Path(__file__).parents[1]
UNCHECKED = {"infu_jax.tokenizers", "infu_jax.convert.torch_pickle"}  # they call small functions a million times; a check takes 20 us
FILES = [path for package in ("infu_jax", "data_pipeline") for path in ROOT.glob(f"{package}/**/*.py") if path.stem != "__init__"]
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in FILES}
jaxtyping.install_import_hook(sorted(MODULES - UNCHECKED), "beartype.beartype")


def pytest_collection_modifyitems(items):
    """Long files first: pytest-xdist hands out whole files, and one that begins last is waited for alone."""
    items.sort(key=lambda item: not item.nodeid.startswith(("tests/examples/", "tests/training/")))


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """What programs keep in the user's cache, those in processes of their own too, stays in a folder of the tests."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture
def unchecked():
    """For tests that pass what annotations forbid, to see the error that users see: they have no such checks."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def tiny():
    """Folders of random models, FLUX.1 and InfiniteYou. Their tests share programs, which are compiled once."""
    from tests import random_stack

    return random_stack.folders()


@pytest.fixture(scope="session")
def pipeline(tiny):
    """The random models on one device."""
    from infu_jax.pipeline import InfUPipeline

    return InfUPipeline.load(*tiny)


@pytest.fixture
def paint(monkeypatch):
    """Calls a pipeline for pictures of 64x80 and gives them as floats, as they are before they are rounded to bytes."""
    from infu_jax import programs
    from infu_jax.config import SamplingConfig

    decode, made = programs.decode, []

    def keep(*args, **options):
        made.append(decode(*args, **options))
        return made[-1]

    monkeypatch.setattr(programs, "decode", keep)

    def paint(pipeline, prompts=("a man in a garden", "a chef"), *, seeds=(5, 6), num_images=1, given=None, **settings):
        settings = SamplingConfig(**{"width": 64, "height": 80, "steps": 3, "t5_length": 24, **settings})
        given = {"id_embedding": unit_vector(pipeline.arcface.cfg.embedding_dim)} if given is None else given
        pictures = pipeline(list(prompts), seeds=list(seeds), num_images=num_images, settings=settings, **given)
        floats = pipeline._fetch(made.pop())
        np.testing.assert_array_equal(pictures.images, np.round(np.clip(floats * 0.5 + 0.5, 0, 1) * 255).astype(np.uint8))
        return floats

    return paint


def unit_vector(size, seed=0):
    vector = np.random.default_rng(seed).standard_normal(size, np.float32)
    return vector / np.linalg.norm(vector)


def assert_close(a, b, tolerance):
    """max |a - b| <= tolerance * max |b|."""
    error = np.abs(a - b).max() / np.abs(b).max()
    print(f"relative error {error:.1e}")  # `pytest -rP` shows them
    assert a.shape == b.shape and error <= tolerance, f"relative error {error:.2e} > {tolerance:.0e}"


@contextlib.contextmanager
def programs(caplog):
    """Counts by name what is compiled inside."""
    counts = Counter()
    caplog.clear()
    with jax.log_compiles(), caplog.at_level(logging.WARNING, "jax"):
        yield counts
    counts.update(m[1] for record in caplog.records if (m := re.match(r"Compiling jit\((\w+)\)", record.getMessage())))
