"""Hugging Face ids in the place of paths: from a cache made here, and from a server that stands in for Hugging Face."""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest

from infu_jax import hub
from tests.conftest import ROOT
from tests.test_sample_cli import FLUX, INFU

SHA = "0123456789abcdef0123456789abcdef01234567"


def cached(cache: Path, repo: str, files: dict[str, Path], revision="main"):
    """Hugging Face's cache as huggingface_hub lays it out: blobs, and snapshots made of links to them."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    for name, source in files.items():
        data = source.read_bytes()
        blob = folder / "blobs" / hashlib.sha256(data).hexdigest()
        link = folder / "snapshots" / SHA / name
        blob.parent.mkdir(parents=True, exist_ok=True)
        link.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(data)
        link.symlink_to(os.path.relpath(blob, link.parent))
    (folder / "refs").mkdir()
    (folder / "refs" / revision).write_text(SHA)


def release(folder: Path, inside: str = "") -> dict[str, Path]:
    return {f"{inside}{path.relative_to(folder).as_posix()}": path for path in folder.rglob("*") if path.is_file()}


def script(*argv, home: Path, **env):
    """convert_weights.py or sample.py in a process of its own: Hugging Face's settings are read when it starts."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and k != "XLA_FLAGS"} | {
        "HF_HOME": str(home),
        "HF_TOKEN": "",
        "NO_PROXY": "*",
        "no_proxy": "*",
    }
    ran = subprocess.run([sys.executable, *map(str, argv)], cwd=ROOT, env=clean | env, capture_output=True, text=True, timeout=300)
    return ran.returncode, ran.stdout, ran.stderr


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    cached(home / "hub", "lab/FLUX.1-tiny", release(FLUX))
    cached(home / "hub", "lab/InfiniteYou", release(INFU, "infu_flux_v1.0/aes_stage2/"))
    cached(home / "hub", "lab/old", {"text_encoder/config.json": FLUX / "text_encoder/config.json"}, revision="v1")
    return home


def test_from_the_cache_offline(home, tmp_path):
    """sample.py and convert_weights.py, with a repository, a folder in one, and a model in one."""
    said = script(
        "sample.py", "--base", "lab/FLUX.1-tiny", "--infu", "lab/InfiniteYou/infu_flux_v1.0/aes_stage2", "--prompt", "a chef", "--width", 64, "--height", 64,
        "--steps", 1, "--t5-length", 16, "--out", tmp_path / "out", home=home, HF_HUB_OFFLINE="1",
    )  # fmt: skip
    assert said[0] == 0 and "no face found" in said[1], said
    code, out, errors = script(
        "convert_weights.py", "inspect", "lab/FLUX.1-tiny/vae", "lab/FLUX.1-tiny/text_encoder/model.safetensors", home=home, HF_HUB_OFFLINE="1"
    )
    assert code == 0 and out.count("complete:") == 2 and not errors, (out, errors)
    code, out, errors = script("convert_weights.py", "to-jax", "lab/FLUX.1-tiny", tmp_path / "jax", home=home, HF_HUB_OFFLINE="1")
    assert code == 0 and (tmp_path / "jax" / "tokenizer" / "vocab.json").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("lab/other", r"lab/other does not exist here nor, whole, in Hugging Face's cache .*hub, and HF_HUB_OFFLINE forbids to fetch it"),
        ("lab/old/vae", "lab/old/vae does not exist here nor, whole, in"),
        ("lab/FLUX.1-tiny/transformer2", "the repository lab/FLUX.1-tiny on Hugging Face has no transformer2"),
        ("lab/../other", "other does not exist\n"),
        ("/lab/other", "/lab/other does not exist\n"),
        ("other", "other does not exist\n"),
    ],
)
def test_not_in_the_cache(home, given, message):
    code, out, errors = script("convert_weights.py", "inspect", given, home=home, HF_HUB_OFFLINE="1")
    assert code == 1 and out == "" and errors.count("\n") == 1 and re.search(message, errors), errors


def test_revision(home):
    code, out, errors = script("-c", "from infu_jax import hub; print(hub.local('lab/old@v1/text_encoder', []))", home=home, HF_HUB_OFFLINE="1")
    assert code == 0 and out.strip().endswith(f"models--lab--old/snapshots/{SHA}/text_encoder"), errors


def test_what_is_here_is_never_an_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lab" / "model").mkdir(parents=True)
    monkeypatch.setattr(hub, "_fetch", lambda *args: pytest.fail("asked Hugging Face"))
    for path in ("lab/model", "nothing", "../a/b", "/a/b", "a\\b", "", "-a/b", "a/b c@d e"):
        assert hub.local(path, ["flux"]) == Path(path)


# A stand-in for Hugging Face ----------------------------------------------------------------------


class Hub(BaseHTTPRequestHandler):
    """Enough of its API for a snapshot: what a repository holds, and its files."""

    repos: dict[str, dict[str, Path]] = {}
    fetched: list[str] = []

    def do_GET(self):
        path = unquote(urlparse(self.path).path)
        if "gated" in path:
            return self.answer(403, b'{"error": "restricted"}', {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to model is restricted"})
        for repo, files in self.repos.items():
            if path.startswith(f"/api/models/{repo}/tree/"):
                entries = [{"type": "file", "path": n, "size": f.stat().st_size, "oid": hashlib.sha1(n.encode()).hexdigest()} for n, f in files.items()]
                return self.answer(200, json.dumps(entries).encode())
            if path.startswith(f"/api/models/{repo}"):
                if "revision/nope" in path:
                    return self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
                about = {"_id": "1", "id": repo, "modelId": repo, "sha": SHA, "siblings": [{"rfilename": n} for n in files], "tags": [], "private": False}
                return self.answer(200, json.dumps(about).encode())
            if path.startswith(f"/{repo}/resolve/"):
                name = path.split("/resolve/")[1].split("/", 1)[1]
                data = files[name].read_bytes()
                if self.command == "GET":
                    self.fetched.append(name)
                return self.answer(200, data, {"ETag": f'"{hashlib.sha1(name.encode()).hexdigest()}"', "X-Repo-Commit": SHA})
        self.answer(401, b'{"error": "no such repository"}', {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def answer(self, code, data, headers=()):
        self.send_response(code)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **dict(headers)}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    more = tmp_path_factory.mktemp("more") / "x"
    more.write_bytes(b"x" * 100)
    unwanted = ("flux1-dev.safetensors", "ae.safetensors", "README.md", "transformer/model.fp16.safetensors", "text_encoder/pytorch_model.bin", "photo.jpg")
    Hub.repos = {"lab/FLUX.1-tiny": release(FLUX) | dict.fromkeys(unwanted, more), "lab/lora": {"lora.safetensors": more, "big.bin": more}}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_only_what_is_needed_is_fetched_and_once(server, tmp_path):
    Hub.fetched.clear()
    code, out, errors = script("convert_weights.py", "inspect", "lab/FLUX.1-tiny", home=tmp_path, HF_ENDPOINT=server)
    assert code == 0 and out.count("complete:") == 4, (out, errors)
    assert sorted(Hub.fetched) == sorted(release(FLUX))
    Hub.fetched.clear()
    again = script("convert_weights.py", "inspect", "lab/FLUX.1-tiny", home=tmp_path, HF_ENDPOINT=server)
    assert again[:2] == (code, out) and not Hub.fetched
    offline = script("convert_weights.py", "inspect", "lab/FLUX.1-tiny/vae", home=tmp_path, HF_ENDPOINT=server, HF_HUB_OFFLINE="1")
    assert offline[0] == 0 and not Hub.fetched


def test_a_file_that_is_named_is_fetched(server, tmp_path):
    """Though the same name is left alone where a folder is asked for."""
    Hub.fetched.clear()
    asked = "from infu_jax import hub; print(hub.local('lab/FLUX.1-tiny/transformer/model.fp16.safetensors', ['model']).stat().st_size)"
    code, out, errors = script("-c", asked, home=tmp_path, HF_ENDPOINT=server)
    assert code == 0 and out == "100\n" and sorted(Hub.fetched) == ["transformer/config.json", "transformer/model.fp16.safetensors"], errors


def test_one_model_of_a_repository(server, tmp_path):
    Hub.fetched.clear()
    code, _, errors = script("convert_weights.py", "inspect", "lab/FLUX.1-tiny/text_encoder", home=tmp_path, HF_ENDPOINT=server)
    assert code == 0, errors
    assert sorted(Hub.fetched) == ["text_encoder/config.json", "text_encoder/model.safetensors"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("lab/gated", "lab/gated: lab/gated is gated: accept its licence at {server}/lab/gated, then log in with `hf auth login` or set HF_TOKEN"),
        ("lab/nothing", "lab/nothing does not exist here, and {server}/lab/nothing does not either (if it is private, log in with"),
        ("lab/FLUX.1-tiny@nope", "lab/FLUX.1-tiny@nope: lab/FLUX.1-tiny has no revision nope"),
        ("lab/FLUX.1-tiny/unet", "lab/FLUX.1-tiny/unet: the repository lab/FLUX.1-tiny on Hugging Face has no unet"),
    ],
)
def test_refused(server, tmp_path, given, message):
    code, out, errors = script("convert_weights.py", "inspect", given, home=tmp_path, HF_ENDPOINT=server)
    assert code == 1 and out == "" and "Traceback" not in errors
    assert errors.splitlines()[-1].startswith(f"error: {message.format(server=server)}"), errors  # after huggingface_hub's own lines


def test_no_connection(tmp_path):
    code, _, errors = script("convert_weights.py", "inspect", "lab/FLUX.1-tiny", home=tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert code == 1 and errors.count("\n") == 1 and "http://127.0.0.1:9 cannot be reached" in errors, errors
