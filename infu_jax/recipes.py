"""From a recipe, a Python file with get_config() -> TrainConfig, and a command line to the settings of a run."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

import tyro

from infu_jax.errors import InputError
from infu_jax.train_config import TrainConfig

CONFIGS = Path(__file__).parents[1] / "configs"


def read(argv: Sequence[str], *, doc: str, program: str, kind: type[TrainConfig] = TrainConfig) -> TrainConfig:
    """Settings of the recipe that the first argument names, with the other arguments' changes.

    kind: TrainConfig, or a subclass that adds options with defaults. `--help` as the first argument prints `doc`.
    """
    known = sorted(CONFIGS.glob("*.py"))
    names = ", ".join(str(p.relative_to(Path.cwd()) if p.is_relative_to(Path.cwd()) else p) for p in known)
    if argv and argv[0] in ("-h", "--help"):
        print(f"{doc.strip()}\n\nRecipes here: {names}. `{program} RECIPE --help` explains every setting.")
        sys.exit(0)
    if not argv or argv[0].startswith("-"):
        raise InputError(f"the first argument is the recipe: one of {names}, or a file of your own")
    path = Path(argv[0])
    if path.suffix != ".py" or not path.is_file():
        raise InputError(f"{path} is no recipe; expected a Python file with get_config(), such as {names}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config() if hasattr(module, "get_config") else None
    if not isinstance(config, TrainConfig):
        raise InputError(f"{path} has no get_config() that returns a TrainConfig; see {names}")
    default = kind(**{field.name: getattr(config, field.name) for field in dataclasses.fields(TrainConfig)})
    return tyro.cli(kind, default=default, args=argv[1:], description=module.__doc__, prog=f"{program} {path}")
