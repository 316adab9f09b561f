"""The commands and the program at the beginning of docs/data.md run as printed."""

import os
import re
import subprocess
import sys

from tests.conftest import ROOT


def test_from_pictures_to_batches(tmp_path):
    section = (ROOT / "docs" / "data.md").read_text().split("\n## ")[1]
    assert section.startswith("From pictures to batches")
    commands = re.findall(r"^    \.venv/bin/python (-m data_pipeline\.\w+ .*)$", section, re.M)
    program = re.search(r"```python\n(.*?)```", section, re.S)[1]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    told = []
    assert [command.split()[1].split(".")[1] for command in commands] == ["people", "build", "show", "precompute"]
    for arguments in [*(command.split() for command in commands), ["-c", program]]:
        done = subprocess.run([sys.executable, *arguments], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, f"{arguments}: {done.stderr}"
        told.append(done.stdout)
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["drawn", "drawn.html", "people"]
    lines = told[-1].splitlines()
    making_pairs(tmp_path, env)
    assert lines[0].startswith("('latents', 'control', 't5', 'clip', 'arcface')")
    assert [line.split()[0] for line in lines[1:]] == ["0", "1", "2"] and "'txt': (8, 64, 64)" in lines[1] and "(256, 256)" in lines[1]


def making_pairs(folder, env):
    """The section on synthesis goes on with the dataset of the first."""
    section = (ROOT / "docs" / "data.md").read_text().split("\n## Making pairs")[1].split("\n## ")[0]
    (folder / "paste.py").write_text(re.search(r"```python\n(.*?)```", section, re.S)[1])
    commands = re.findall(r"^    \.venv/bin/python (-m data_pipeline\.\w+ .*)$", section, re.M)
    told = []
    assert [command.split()[1].split(".")[1] for command in commands] == ["synthesize", "show"]
    for command in commands:
        done = subprocess.run([sys.executable, *command.split()], cwd=folder, env=env, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        told.append(done.stdout)
    kept = re.search(r"^kept +20 +(\d+)", told[0], re.M)
    assert kept and int(kept[1]) >= 4, told[0]
    assert (folder / "data" / "pairs" / "report" / "people.jpg").exists() and (folder / "data" / "pairs.html").exists()
