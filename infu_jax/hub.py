"""Hugging Face ids in the place of paths: `org/name`, `org/name/folder`, `org/name/file.safetensors`, each with `@revision` after the name.

What is needed is downloaded into Hugging Face's cache once and found there afterwards; HF_HOME, HF_TOKEN, HF_HUB_OFFLINE and HF_ENDPOINT
mean what they mean everywhere. A path that exists is never taken for an id.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from infu_jax.errors import InputError

# What each part of a release needs, relative to its folder. The same weights in other formats stay where they are.
_WEIGHTS = ("config.json", "*.safetensors", "*.safetensors.index.json")
FILES = {
    "flux": tuple(f"transformer/{name}" for name in _WEIGHTS),
    "autoencoder": tuple(f"vae/{name}" for name in _WEIGHTS),
    "clip": tuple(f"text_encoder/{name}" for name in _WEIGHTS),
    "t5": tuple(f"text_encoder_2/{name}" for name in _WEIGHTS),
    "companions": ("model_index.json", "scheduler/*.json", "tokenizer/*", "tokenizer_2/*"),
    "infusenet": tuple(f"InfuseNetModel/{name}" for name in _WEIGHTS),
    "resampler": ("image_proj_model.bin",),
    "arcface": ("recognition_arcface_ir_se50.pth",),
    "lora": ("pytorch_lora_weights.safetensors", "lora.safetensors", "adapter_model.safetensors", "adapter_config.json"),
    "model": ("config.json", "diffusion_pytorch_model*.safetensors*", "model*.safetensors*"),
    "detector": ("models/antelopev2/*.onnx",),
}
# A release holds no model under these names that is not elsewhere in it; a file that is asked for by name is not ignored.
_IGNORED = ("*.fp16.*", "*.fp16-*", "*.bf16.*", "*.bf16-*")
_ID = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[\w.-]+))?(?:/(?P<inside>.+))?")
_FILE = re.compile(r".+\.(safetensors|bin|pth|pt|ckpt|onnx)")


def local(path: str | Path, parts: Sequence[str]) -> Path:
    """`path` itself, unless it is the id of something that is not here: then where its files are in the cache, after fetching them.

    parts: names of FILES that are wanted, where the id is a whole repository or a release folder inside it.
    Raises:
        InputError: it is neither here nor there, or may not be read; the message says what to do.
    """
    path = Path(path)
    match = _ID.fullmatch(path.as_posix())
    if path.exists() or match is None or ".." in path.parts:
        return path
    repo, revision, inside = match["repo"], match["revision"], match["inside"]
    ignored: tuple[str, ...] = ()
    if inside and _FILE.fullmatch(inside):
        patterns = [inside, (Path(inside).parent / "config.json").as_posix()]
    else:
        names = [name for part in parts for name in FILES[part]] + (list(_WEIGHTS) if inside else [])
        patterns, ignored = [f"{inside}/{name}" if inside else name for name in names], _IGNORED
    found = _fetch(path, repo, revision, patterns, ignored) / (inside or "")
    if not found.exists() or (found.is_dir() and not any(found.iterdir())):
        raise InputError(f"{path}: the repository {repo} on Hugging Face has no {inside or 'files of the kind that are needed here'}")
    return found


def _fetch(path: Path, repo: str, revision: str | None, patterns: Sequence[str], ignored: Sequence[str]) -> Path:
    from huggingface_hub import constants, errors, snapshot_download

    page = f"{constants.ENDPOINT}/{repo}"
    log_in = "log in with `hf auth login` or set HF_TOKEN"
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=list(patterns), ignore_patterns=list(ignored)))
    except errors.GatedRepoError:
        raise InputError(f"{path}: {repo} is gated: accept its licence at {page}, then {log_in}") from None
    except errors.RepositoryNotFoundError:
        raise InputError(f"{path} does not exist here, and {page} does not either (if it is private, {log_in})") from None
    except errors.RevisionNotFoundError:
        raise InputError(f"{path}: {repo} has no revision {revision}; see {page}/tree/main") from None
    except errors.LocalEntryNotFoundError as e:  # of which an incomplete copy is one kind
        why = "HF_HUB_OFFLINE forbids to fetch it" if constants.HF_HUB_OFFLINE else f"{constants.ENDPOINT} cannot be reached ({_line(e)})"
        raise InputError(f"{path} does not exist here nor, whole, in Hugging Face's cache {constants.HF_HUB_CACHE}, and {why}") from None
    except (errors.HfHubHTTPError, errors.OfflineModeIsEnabled, errors.HFValidationError) as e:
        raise InputError(f"{path}: Hugging Face answers: {_line(e)}") from None


def _line(error: BaseException) -> str:
    cause = error.__cause__ or error
    return " ".join(str(cause).split())[:160] or type(cause).__name__
