"""The work folder beside an output: what an interrupted command has done, with the settings that it was done with."""

import contextlib
import fcntl
import json
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from infu_jax.errors import InputError

FOLDERS = ("chunks", "shards", "dataset")
OURS = {"settings.json", *FOLDERS, "report", "ready"}


@contextlib.contextmanager
def work_folder(work: Path, stated: dict[str, Any], restart: bool, *, maker: str, lock: str = "lock", shared: bool = False) -> Iterator[None]:
    """Makes the work folder, or opens the one that is there if it was made with the same source and settings.

    Nobody else may work in it under the same lock. shared: other processes work in it at the same time, with locks of their own; without it
    nobody may, whatever the lock.
    maker: what the command is called in messages. Raises InputError when the folder is in use, holds what is not ours, or was made otherwise.
    """
    work.mkdir(parents=True, exist_ok=True)
    taken = f"another {maker} works in {work}; wait for it, or choose another output folder"
    with locked(work / "lock", taken, shared), locked(work / lock, taken) if shared else contextlib.nullcontext():
        said = work / "settings.json"
        if foreign := sorted(path.name for path in work.iterdir() if path.name not in OURS and not path.name.startswith(("lock", "settings.json."))):
            raise InputError(f"{work} holds {foreign[0]}, which no {maker} made; move it away, or choose another output folder")
        if restart or not said.exists():
            for path in () if shared and not restart else work.iterdir():
                if not path.name.startswith("lock"):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            partial = work / f"settings.json.{platform.node()}.{os.getpid()}.partial"
            partial.write_text(json.dumps(stated, indent=2) + "\n")
            partial.rename(said)
        if differences := _differences(json.loads(said.read_text()), json.loads(json.dumps(stated))):
            raise InputError(
                f"{work} holds an interrupted {maker} with other settings: {'; '.join(differences)}. Give the old ones to go on, or --restart to begin again"
            )
        for folder in (work / name for name in FOLDERS):
            folder.mkdir(exist_ok=True)
            for path in () if shared else folder.glob(".*.partial"):
                path.unlink()
        yield


@contextlib.contextmanager
def locked(path: Path, taken: str | None = None, shared: bool = False) -> Iterator[None]:
    """Holds a lock file, alone or with other sharers. It ends with this process, however it ends. Waits for others, or raises InputError
    with the message `taken`.
    """
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (fcntl.LOCK_NB if taken else 0))
        except BlockingIOError:
            raise InputError(str(taken)) from None
        yield


def _differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for name in dict.fromkeys((*old, *new)):
        a, b = old.get(name), new.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            found += _differences(a, b, f"{prefix}{name}.")
        elif a != b:
            found.append(f"{prefix}{name} was {str(a):.20}, now {str(b):.20}")
    return found
