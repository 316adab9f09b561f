"""FLUX's two tokenizers, read from the `tokenizer/` and `tokenizer_2/` folders of a FLUX.1 folder.

Both run in the Rust library `tokenizers`, as transformers' fast tokenizers do, and give the same ids.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers
from jaxtyping import Int32
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers, processors

from infu_jax.errors import InputError

PathLike = str | os.PathLike[str]


class Tokenizer:
    """Prompts -> rows of ids of one length.

    backend: a `tokenizers.Tokenizer` whose post-processor ends every sequence with the end token.
    pad_token: what fills a row up; it must be in the vocabulary.
    """

    def __init__(self, backend: tokenizers.Tokenizer, pad_token: str):
        backend.no_padding()
        backend.no_truncation()
        self.backend = backend
        self.pad_id = backend.token_to_id(pad_token)
        if self.pad_id is None:
            raise InputError(f"the padding token {pad_token!r} is not in the vocabulary of {self.vocab_size} entries")

    @property
    def vocab_size(self) -> int:
        return self.backend.get_vocab_size()

    def encode(self, prompts: Sequence[str], length: int) -> Int32[np.ndarray, "B {length}"]:
        """Ids of `prompts`, cut or padded to `length`. A cut row keeps its begin and end tokens."""
        if isinstance(prompts, str):
            raise TypeError("encode takes a list of prompts and got one string; pass [prompt]")
        shortest = self.count("")
        if length < shortest:
            raise InputError(f"length {length} leaves no room for the {shortest} token(s) that begin and end every prompt")
        out = np.full((len(prompts), length), self.pad_id, np.int32)
        for row, prompt in zip(out, prompts, strict=True):
            # One by one: the library's batches start threads, after which worker processes cannot be forked safely.
            ids = self.backend.encode(prompt).ids
            if len(ids) > length:
                ids = ids[: length - 1] + ids[-1:]
            row[: len(ids)] = ids
        return out

    def count(self, prompt: str) -> int:
        """Ids that `prompt` has in full, begin and end tokens included: above `length`, `encode` cuts it."""
        return len(self.backend.encode(prompt).ids)


def load_clip_tokenizer(folder: PathLike) -> Tokenizer:
    """CLIP's byte-level BPE from vocab.json and merges.txt, or else from tokenizer.json. FLUX pads to 77, with end-of-text.

    The ids are those of transformers' CLIPTokenizerFast and of CLIPTokenizer since version 5. The slow CLIPTokenizer of
    version 4, which diffusers' FluxPipeline used, agrees on ordinary prompts but cleans the text in Python first:
    without the package ftfy it puts spaces around every Chinese character (so each is a word of its own), and drops
    control, format, private and unassigned characters and U+FFFD, among them the joiners inside an emoji; with ftfy it
    repairs mis-decoded text, unfolds HTML entities, ligatures and full-width letters, and straightens quotes. Either
    way a final capital sigma becomes a final small one, `<|ENDOFTEXT|>` counts as end-of-text, and U+0345 is lost.
    """
    folder = pathlib.Path(folder)
    settings = _settings(folder)
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        try:
            vocab, merges = models.BPE.read_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
        except Exception as e:  # as in _backend
            raise InputError(f"{folder} holds no BPE vocabulary: {e}") from None
        backend = clip_backend(vocab, merges, settings)
    elif (folder / "tokenizer.json").is_file():
        backend = _backend(folder / "tokenizer.json")
    else:
        raise FileNotFoundError(f"{folder} has neither vocab.json and merges.txt nor tokenizer.json: expected the folder tokenizer/ of a FLUX.1 folder")
    return Tokenizer(backend, _content(settings.get("pad_token", CLIP_END)))


def load_t5_tokenizer(folder: PathLike) -> Tokenizer:
    """T5's Unigram model from tokenizer.json, or else from spiece.model. FLUX.1-dev pads to 512, schnell to 256, with id 0.

    Both files give the ids of tokenizer.json as it stands, hence of transformers 4's T5TokenizerFast, which FluxPipeline
    used. Version 5 replaces the steps before the model, which shows at the control character U+0085 only: it splits words
    there. The slow T5Tokenizer differs where a combining mark follows a character that NFKC changes, and in runs of
    equally likely pieces.
    """
    folder = pathlib.Path(folder)
    settings = _settings(folder)
    if (folder / "tokenizer.json").is_file():
        backend = _backend(folder / "tokenizer.json")
    elif (folder / "spiece.model").is_file():
        extra_ids = settings.get("extra_ids", 100)
        if type(extra_ids) is not int or not 0 <= extra_ids <= 10**6:
            raise InputError(f"{folder / 'tokenizer_config.json'} has extra_ids {extra_ids!r:.80}; a whole number from 0 is needed, such as 100")
        backend = t5_backend((folder / "spiece.model").read_bytes(), extra_ids, source=str(folder / "spiece.model"))
    else:
        raise FileNotFoundError(f"{folder} has neither tokenizer.json nor spiece.model: expected the folder tokenizer_2/ of a FLUX.1 folder")
    return Tokenizer(backend, _content(settings.get("pad_token", "<pad>")))


# CLIP ---------------------------------------------------------------------------------------------

CLIP_BEGIN, CLIP_END = "<|startoftext|>", "<|endoftext|>"
# A word of letters, one digit, a run of other signs, or an English ending after an apostrophe.
_CLIP_WORD = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def clip_backend(vocab: Mapping[str, int], merges: Sequence[tuple[str, str]], settings: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """The tokenizer of a CLIP vocabulary. settings: the contents of tokenizer_config.json; its special tokens must be in the vocabulary."""
    begin, end, unknown = (settings.get(f"{name}_token", default) for name, default in (("bos", CLIP_BEGIN), ("eos", CLIP_END), ("unk", CLIP_END)))
    bpe = models.BPE(dict(vocab), list(merges), unk_token=_content(unknown), continuing_subword_prefix="", end_of_word_suffix="</w>")
    backend = tokenizers.Tokenizer(bpe)
    backend.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(_CLIP_WORD), behavior="removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    added = settings.get("added_tokens_decoder", {})
    if not isinstance(added, Mapping) or not all(k.isdecimal() and len(k) < 10 for k in added):
        raise InputError(f"tokenizer_config.json has added_tokens_decoder {added!r:.80}; an object of ids and tokens is needed")
    for id_, token in sorted(((int(k), v) for k, v in added.items()), key=lambda item: item[0]):
        backend.add_tokens([_added_token(token)])
        if backend.token_to_id(_content(token)) != id_:
            raise InputError(f"tokenizer_config.json gives {_content(token)!r} the id {id_}, vocab.json {backend.token_to_id(_content(token))}")
    for token in (begin, end, unknown):
        if backend.token_to_id(_content(token)) is None:
            raise InputError(f"the special token {_content(token)!r} is not in vocab.json ({len(vocab)} entries)")
        if _content(token) not in {t.content for t in backend.get_added_tokens_decoder().values()}:
            backend.add_tokens([_added_token(token)])
    begin, end = _content(begin), _content(end)
    backend.post_processor = processors.TemplateProcessing(
        single=[begin, "$A", end], special_tokens=[(begin, backend.token_to_id(begin)), (end, backend.token_to_id(end))]
    )
    return backend


# T5 -----------------------------------------------------------------------------------------------


def t5_backend(model: bytes, extra_ids: int = 100, *, source: str = "the model") -> tokenizers.Tokenizer:
    """The tokenizer of a SentencePiece Unigram model (the bytes of spiece.model) and `extra_ids` sentinels after its pieces."""
    try:
        pieces, unknown_id, charsmap = _read_sentencepiece(model)
    except (AttributeError, LookupError, TypeError, UnicodeDecodeError, struct.error) as error:
        raise InputError(f"{source} is not a SentencePiece model ({error}); is it an unfetched Git LFS file?") from error
    if unknown_id is None or "</s>" not in (piece for piece, _ in pieces):
        raise InputError(f"{source} is not T5's: {len(pieces)} pieces, and an unknown piece and </s> must be among them")
    sentinels = [f"<extra_id_{i}>" for i in reversed(range(extra_ids))]
    backend = tokenizers.Tokenizer(models.Unigram([*pieces, *((s, 0.0) for s in sentinels)], unk_id=unknown_id, byte_fallback=False))
    steps = [normalizers.Strip(left=False, right=True), normalizers.Replace(Regex(" {2,}"), "▁")]
    backend.normalizer = normalizers.Sequence([normalizers.Precompiled(charsmap), *steps] if charsmap else steps)
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    special = ["<pad>", "</s>", pieces[unknown_id][0], *sentinels]
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    backend.post_processor = processors.TemplateProcessing(single=["$A", "</s>"], special_tokens=[("</s>", backend.token_to_id("</s>"))])
    return backend


def _read_sentencepiece(model: bytes) -> tuple[list[tuple[str, float]], int | None, bytes]:
    """(pieces and scores, the unknown piece's id, the compiled normalisation) of a `ModelProto` (sentencepiece_model.proto)."""
    pieces, unknown_id, charsmap = [], None, b""
    for number, value in _protobuf(model):
        if number == 1:  # a piece
            piece = dict(_protobuf(value))
            if piece.get(3) == 2:  # its type: unknown
                unknown_id = len(pieces)
            pieces.append((piece[1].decode(), struct.unpack("<f", piece[2])[0] if 2 in piece else 0.0))
        elif number == 3:  # the normalisation's settings
            charsmap = dict(_protobuf(value)).get(2, b"")
    return pieces, unknown_id, charsmap


def _protobuf(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value) of a protocol-buffer message: an int where it is a varint, else its bytes."""

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    at = 0
    while at < len(message):
        tag = varint()
        kind = tag & 7
        if kind == 0:
            yield tag >> 3, varint()
            continue
        size = {1: 8, 5: 4}[kind] if kind in (1, 5) else varint()
        if kind not in (1, 2, 5) or at + size > len(message):
            raise IndexError(f"bad field at byte {at}")
        yield tag >> 3, message[at : at + size]
        at += size


# Settings -----------------------------------------------------------------------------------------


def _settings(folder: pathlib.Path) -> dict[str, Any]:
    """tokenizer_config.json, completed by special_tokens_map.json, where they are there."""
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no tokenizer folder {folder}")
    settings = {}
    for path in (folder / "special_tokens_map.json", folder / "tokenizer_config.json"):
        if path.is_file():
            try:
                stored = json.loads(path.read_text("utf-8"))
            except (ValueError, RecursionError) as e:
                raise InputError(f"{path} is not a JSON object: {e}") from None
            if not isinstance(stored, dict):
                raise InputError(f"{path} is not a JSON object: it holds {type(stored).__name__}")
            settings |= stored
    return {k: v for k, v in settings.items() if v is not None}


def _backend(path: pathlib.Path) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as e:  # the Rust library raises this very class for whatever is wrong with the file
        raise InputError(f"{path} is not a tokenizer: {e}") from None


def _content(token: Any) -> str:
    """Settings name a special token by its text, or by an object that holds it."""
    content = token.get("content") if isinstance(token, Mapping) else token
    if not isinstance(content, str) or re.search("[\ud800-\udfff]", content):
        raise InputError(f"the tokenizer's settings name the special token {token!r:.80}; a text, or an object with its content, is needed")
    return content


def _added_token(token: Any) -> AddedToken:
    content = _content(token)
    flags = {} if isinstance(token, str) else {k: token[k] for k in ("single_word", "lstrip", "rstrip", "normalized") if k in token}
    try:
        return AddedToken(content, **{"normalized": False, "special": True, **flags})
    except TypeError as e:
        raise InputError(f"the tokenizer's settings name the special token {token!r:.80}: {e}") from None
