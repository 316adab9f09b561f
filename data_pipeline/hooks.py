"""Functions of the user's own that change and judge pictures, named on the command line. They are run as they are."""

import hashlib
import importlib
import inspect
import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infu_jax.errors import InputError


@dataclass(frozen=True)
class Hook:
    """A function of the user's own, under the name that it was given by."""

    name: str
    call: Callable[..., Any]

    def stated(self) -> str:
        """Its name and a digest of the file that it lies in, so that an interrupted run does not go on with another one."""
        try:
            file = inspect.getsourcefile(inspect.unwrap(self.call))
        except TypeError:
            file = None
        return f"{self.name} " + ("of no file" if file is None else f"sha256 {hashlib.sha256(Path(file).read_bytes()).hexdigest()}")

    def picture(self, *pictures: np.ndarray) -> np.ndarray:
        """The picture that it returns. Raises InputError when that is no (h, w, 3) uint8 array."""
        made = self.call(*pictures)
        if not isinstance(made, np.ndarray) or made.dtype != np.uint8 or made.ndim != 3 or made.shape[2] != 3 or 0 in made.shape:
            found = f"{made.dtype} {made.shape}" if isinstance(made, np.ndarray) else type(made).__name__
            raise InputError(f"{self.name} returned {found}; a picture is an RGB uint8 array (height, width, 3)")
        return np.ascontiguousarray(made)


@dataclass(frozen=True)
class Scorer(Hook):
    """Called with picture and prompt; pictures that it gives less than `least` are rejected."""

    least: float = 0.0

    def score(self, picture: np.ndarray, prompt: str) -> float:
        value = float(self.call(picture, prompt))
        if not math.isfinite(value):
            raise InputError(f"{self.name} gave {value}; a finite number is needed")
        return value


def load_hook(name: str) -> Hook:
    """The function `module:function`. Raises InputError when there is none."""
    return Hook(name, _function(name))


def load_scorer(given: str) -> Scorer:
    """The function and threshold `module:function=least`."""
    name, sign, least = given.rpartition("=")
    try:
        value = float(least) if sign else math.nan
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"scorer {given!r}: expected module:function=least, e.g. scores:aesthetic=5.5")
    return Scorer(name, _function(name), value)


def _function(name: str) -> Callable[..., Any]:
    module, colon, function = name.partition(":")
    if not (module and colon and function):
        raise InputError(f"hook {name!r}: expected module:function, e.g. restore:gfpgan for the function gfpgan of restore.py")
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found = getattr(importlib.import_module(module), function)
    except ModuleNotFoundError as error:
        raise InputError(f"hook {name}: there is no module {error.name}; start in its folder, or set PYTHONPATH to it") from error
    except AttributeError as error:
        raise InputError(f"hook {name}: {error}") from error
    if not callable(found):
        raise InputError(f"hook {name} is {type(found).__name__}; expected a function")
    return found
