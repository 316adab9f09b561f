"""What the scripts share: results that appear whole, and errors that stand out."""

import os
import subprocess
import sys

import pytest

from infu_jax.cli import appearing, run
from infu_jax.errors import InputError


@pytest.mark.parametrize("there", [False, True])
def test_a_result_appears_whole(tmp_path, there):
    out = tmp_path / "out.txt"
    if there:
        out.write_text("old")
    before = [path.name for path in tmp_path.iterdir()]
    with pytest.raises(KeyboardInterrupt), appearing(out, replace=True) as partial:
        partial.write_text("ha")
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == before and (not there or out.read_text() == "old")
    with appearing(out, replace=there) as partial:
        partial.write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["out.txt"] and out.read_text() == "new"


def test_a_name_that_is_taken_meanwhile(tmp_path):
    with pytest.raises(InputError, match="out has appeared meanwhile"), appearing(tmp_path / "out") as partial:
        partial.mkdir()
        (tmp_path / "out").mkdir()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_runs_with_the_same_process_id(tmp_path, monkeypatch):
    """As in two containers that share a folder."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    with appearing(tmp_path / "out", replace=True) as ours, appearing(tmp_path / "out", replace=True) as others:
        ours.write_text("ours")
        others.write_text("others")
        assert ours.read_text() == "ours"


@pytest.mark.parametrize("asked", [None, "0.5"])
def test_programs_have_the_gpu_to_themselves(monkeypatch, asked):
    """But for what the user says of it."""
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", asked or "")
    if asked is None:
        monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION")
    seen = []
    run(lambda: seen.append(os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"]))
    assert seen == [asked or "0.95"]


def test_names_that_the_terminal_cannot_show():
    code = "import sys; from infu_jax.cli import run; run(lambda: (print('q\\udcff'), print('q\\udcff', file=sys.stderr)))"
    for encoding in ("utf-8:strict", "ascii:strict"):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, env={**os.environ, "PYTHONIOENCODING": encoding})
        assert (done.returncode, done.stdout, done.stderr) == (0, b"q\\udcff\n", b"q\\udcff\n"), done


ABANDONED = """
import asyncio, tensorstore
from infu_jax.cli import run
from infu_jax.errors import InputError

class Bad:
    def __del__(self):
        raise RuntimeError("a bug")

def main():
    promise, future = tensorstore.Promise.new()
    loop = asyncio.new_event_loop()
    async def wait():
        await future
    task = loop.create_task(wait())
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    promise.set_result(1)  # as a write that ends after another has failed: nobody waits for it any more
    Bad()
    raise InputError("two\\nlines")

run(main)
"""


def test_what_a_failed_checkpoint_leaves_says_nothing():
    """A bug in the same place is still shown."""
    done = subprocess.run([sys.executable, "-c", ABANDONED], capture_output=True, text=True)
    assert done.returncode == 1 and "Event loop is closed" not in done.stderr, done.stderr
    assert "RuntimeError: a bug" in done.stderr and done.stderr.splitlines()[-1] == "error: two lines", done.stderr
