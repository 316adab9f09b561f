"""How the scripts speak: bad input is one line and a non-zero exit, a warning is one line, a bug is a traceback."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from infu_jax.errors import InputError

GPU_SHARE = 0.95  # of a GPU's memory, that programs take
FLOAT32_MAX = (2 - 2**-23) * 2.0**127  # NumPy has it too, and takes a tenth of a second to load


def run(main: Callable[[], None]) -> None:
    """Run a script's `main`."""
    for name in ("absl", "asyncio"):  # Orbax tells of what it then raises, or of what does not matter here
        logging.getLogger(name).setLevel(logging.CRITICAL)
    for stream in (sys.stdout, sys.stderr):  # a file name that the terminal cannot show is no reason to stop half way
        if getattr(stream, "errors", None) == "strict" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = _unraisable
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", str(GPU_SHARE))  # by JAX's default a quarter is left to others
    warned: set[str] = set()

    def warn(message, *_, **__):
        if str(message) not in warned:  # Python itself forgets what it has shown whenever a library changes its filters
            warned.add(str(message))
            _say("warning", message)

    with warnings.catch_warnings():
        warnings.showwarning = warn
        try:
            main()
        except (InputError, OSError, MemoryError) as e:
            _say("error", e)
            sys.exit(1)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)


def user_cache() -> Path:
    """Where this user's programs keep what they can make again."""
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "infu_jax"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "infu_jax"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "infu_jax"


def keep_programs(folder: Path | None) -> None:
    """Have JAX keep compiled programs in a folder, or not at all; JAX_COMPILATION_CACHE_DIR goes before."""
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", None if folder is None else str(folder.absolute()))


def file_and_scale(text: str) -> tuple[Path, float]:
    """`FILE` or `FILE:SCALE`, as LoRAs are given."""
    name, colon, scale = text.rpartition(":")
    try:
        value = float(scale) if colon else 1.0
    except ValueError:
        return Path(text), 1.0  # a colon in a name
    if not abs(value) <= FLOAT32_MAX:
        raise InputError(f"the scale of {name} is {scale}; a finite number is needed, and float32 ends at {FLOAT32_MAX:.4g}")
    return Path(name if colon else text), value


@contextlib.contextmanager
def appearing(out: Path, replace: bool = False) -> Iterator[Path]:
    """A temporary name beside `out`, for a file or folder that takes that name when the block ends well and is removed when it does not.

    replace: a file that is there is replaced; otherwise it is an error. A run that is killed leaves `.<name>.<random>.partial`, which nothing reads.
    """
    # Not the process id: containers that share a folder are all process 1 to themselves.
    partial = out.absolute().with_name(f".{out.name}.{secrets.token_hex(4)}.partial")
    try:
        yield partial
        if out.exists() and not replace:
            raise InputError(f"{out} has appeared meanwhile; choose another name")
        partial.replace(out)
    finally:
        shutil.rmtree(partial) if partial.is_dir() else partial.unlink(missing_ok=True)


def check_writable(folder: Path, needed: int = 0) -> None:
    """Find out before the work, not after it, whether `folder` can be made and has room for `needed` bytes. Leaves nothing behind."""
    for place in (folder, *folder.absolute().parents):
        if place.exists():
            break
        if place.is_symlink():
            raise InputError(f"{place} is a link to something that is not there; make its target, or choose another output folder")
    probe = place / f".{secrets.token_hex(4)}.partial"
    try:
        probe.touch()
        probe.unlink()
    except OSError as e:
        raise InputError(f"{folder} cannot be written ({e.strerror or e}); choose another output folder") from None
    if (free := shutil.disk_usage(place).free) < needed:
        raise InputError(f"{folder} needs {needed / 2**20:,.0f} MiB and its disk has {free / 2**20:,.0f} MiB free; make room or choose another output folder")


@contextlib.contextmanager
def memory_advice(advice: str) -> Iterator[None]:
    """Turn XLA's account of an exhausted device into one line that ends in `advice`."""
    import jax

    try:
        yield
    except jax.errors.JaxRuntimeError as e:
        if "RESOURCE_EXHAUSTED" not in str(e):
            raise
        raise InputError(f"the device has too little memory ({str(e).splitlines()[0]:.200}); {advice}") from None


def _unraisable(found: sys.UnraisableHookArgs) -> None:
    """What no code can catch, without the writes that Orbax leaves alone after another has failed: it closes their event loop, and each of
    hundreds would complain of that, into the middle of the line that says what is wrong.
    """
    if not (isinstance(found.exc_value, RuntimeError) and str(found.exc_value) == "Event loop is closed"):
        sys.__unraisablehook__(found)


def _say(kind: str, what: object) -> None:
    """One line on stderr, in one piece: other threads may be writing there."""
    text = f"{what.filename}: {what.strerror}" if isinstance(what, OSError) and what.filename and what.strerror else str(what) or type(what).__name__
    sys.stderr.write(f"{kind}: {' '.join(text.splitlines())}\n")
