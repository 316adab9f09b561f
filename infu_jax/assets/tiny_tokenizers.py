"""Tiny vocabularies for the embedded model stack, in the files and formats of FLUX.1's `tokenizer/` and `tokenizer_2/`.

The same corpus gives the same files. They load with `infu_jax.tokenizers` and with transformers, with the same ids.
"""

from __future__ import annotations

import collections
import io
import json
import os
import pathlib
import string
from collections.abc import Sequence

import sentencepiece
from tokenizers import pre_tokenizers

from infu_jax.tokenizers import CLIP_BEGIN, CLIP_END, clip_backend, t5_backend

PathLike = str | os.PathLike[str]


def write_clip_tokenizer(folder: PathLike, corpus: Sequence[str], vocab_size: int = 768) -> int:
    """Train a byte-level BPE on the sentences of `corpus`; write vocab.json, merges.txt, tokenizer_config.json, special_tokens_map.json.

    The vocabulary is laid out as CLIP's: 256 bytes, 256 bytes that end a word, merges, begin, end. Returns its size, which is below
    `vocab_size` where the corpus has no more pairs that occur twice. End-of-text is the last entry.
    """
    _check(corpus)
    # Sorted, the printable characters that stand for bytes are in the order of CLIP's vocab.json.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: id_ for id_, token in enumerate([*alphabet, *(f"{letter}</w>" for letter in alphabet)])}
    if vocab_size < len(vocab) + 2:
        raise ValueError(f"vocab_size {vocab_size} is too small: the bytes and the two special tokens are {len(vocab) + 2} entries")
    special = (CLIP_BEGIN, CLIP_END)
    splitter = clip_backend({**vocab, CLIP_BEGIN: len(vocab), CLIP_END: len(vocab) + 1}, [], {})
    counts = collections.Counter(
        word for sentence in corpus for word, _ in splitter.pre_tokenizer.pre_tokenize_str(splitter.normalizer.normalize_str(sentence))
    )
    words = {(*word[:-1], f"{word[-1]}</w>"): n for word, n in counts.items()}

    merges = []
    while len(vocab) + len(special) < vocab_size:
        pairs = collections.Counter()
        for word, n in words.items():
            for pair in zip(word, word[1:], strict=False):
                pairs[pair] += n
        best = min(pairs, key=lambda pair: (-pairs[pair], pair), default=None)  # ties by spelling
        if best is None or pairs[best] < 2:
            break
        merges.append(best)
        vocab.setdefault("".join(best), len(vocab))
        words = {_merge(word, best): n for word, n in words.items()}
    vocab |= {token: len(vocab) + i for i, token in enumerate(special)}

    flags = {token: _flags(token, normalized=token == CLIP_BEGIN) for token in special}  # as in FLUX.1's file
    names = {"bos_token": CLIP_BEGIN, "eos_token": CLIP_END, "pad_token": CLIP_END, "unk_token": CLIP_END}
    folder = _folder(folder)
    _write_json(folder / "vocab.json", vocab, indent=None)
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges), "utf-8")
    _write_json(folder / "special_tokens_map.json", {name: flags[token] for name, token in names.items()})
    settings = {
        "add_prefix_space": False,
        "added_tokens_decoder": {str(vocab[token]): {**flags[token], "special": True} for token in special},
        **names,
        "clean_up_tokenization_spaces": True,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": 77,
        "tokenizer_class": "CLIPTokenizer",
    }
    _write_json(folder / "tokenizer_config.json", settings)
    return len(vocab)


def write_t5_tokenizer(folder: PathLike, corpus: Sequence[str], vocab_size: int = 512) -> int:
    """Train a SentencePiece Unigram model on the sentences of `corpus`; write spiece.model, tokenizer.json, tokenizer_config.json, special_tokens_map.json.

    As in T5, <pad> is 0, </s> 1, <unk> 2, and text is normalised by NFKC; there are no sentinels. Every printable ASCII character is
    an entry. Returns the vocabulary's size, which is below `vocab_size` for a small corpus.
    """
    _check(corpus)
    # Only strings found in two different words become candidates for entries; doubled words make whole words candidates too.
    doubled = [word + word for word in sorted({word for sentence in corpus for word in sentence.split()})]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*corpus, *doubled]),
        model_writer=model,
        model_type="unigram",
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        character_coverage=1.0,
        required_chars=string.digits + string.ascii_letters + string.punctuation,
        normalization_rule_name="nmt_nfkc",
        num_threads=1,  # the sums of several threads come in any order
        minloglevel=2,
    )
    backend = t5_backend(model.getvalue(), extra_ids=0)
    tokens = ("<pad>", "</s>", "<unk>")
    names = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    folder = _folder(folder)
    (folder / "spiece.model").write_bytes(model.getvalue())
    backend.save(str(folder / "tokenizer.json"))
    _write_json(folder / "special_tokens_map.json", {name: _flags(token, normalized=False) for name, token in names.items()})
    settings = {
        "added_tokens_decoder": {str(i): {**_flags(token, normalized=False), "special": True} for i, token in enumerate(tokens)},
        **names,
        "clean_up_tokenization_spaces": True,
        "extra_ids": 0,
        "legacy": True,
        "model_max_length": 512,
        "tokenizer_class": "T5Tokenizer",
    }
    _write_json(folder / "tokenizer_config.json", settings)
    return backend.get_vocab_size()


def _merge(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    """`word` with every `pair` of neighbours joined, from the left."""
    out, at = [], 0
    while at < len(word):
        step = 2 if word[at : at + 2] == pair else 1
        out.append("".join(word[at : at + step]))
        at += step
    return tuple(out)


def _flags(token: str, *, normalized: bool) -> dict[str, str | bool]:
    return {"content": token, "lstrip": False, "normalized": normalized, "rstrip": False, "single_word": False}


def _check(corpus: Sequence[str]) -> None:
    if isinstance(corpus, str) or not any(sentence.strip() for sentence in corpus):
        raise ValueError(f"corpus must be a list of sentences, got {corpus!r:.60}")


def _folder(folder: PathLike) -> pathlib.Path:
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _write_json(path: pathlib.Path, values: dict, indent: int | None = 2) -> None:
    path.write_text(json.dumps(values, ensure_ascii=False, indent=indent) + "\n", "utf-8")
