"""Prompts and genders from files, and one line for every mistake in them."""

import pytest

from infu_jax.errors import InputError
from infu_jax.evaluation.pairs import OWN
from infu_jax.prompts import MAX_CHARACTERS, Prompt, gender_of, read_genders, read_prompts, suiting
from infu_jax.seeds import seed_of


def test_our_own_prompts():
    prompts = read_prompts(OWN)
    assert len(prompts) == len({p.text for p in prompts}) == 200
    assert [sum(p.gender == gender for p in prompts) for gender in ("woman", "man")] == [100, 100]
    assert [p.number for p in prompts] == list(range(1, 201))
    for prompt in prompts:
        words = prompt.text.split()
        assert 10 <= len(words) <= 32, prompt  # CLIP reads 77 tokens
        assert prompt.text == " ".join(words) and not prompt.text.endswith(".") and prompt.text[0].isupper(), prompt
        other = {"woman": ("man", "male", "his", "boy"), "man": ("woman", "female", "her", "girl")}[prompt.gender]
        assert not set(other) & {word.strip(",").lower() for word in words}, prompt


def test_a_text_file(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeff# a comment\nwoman\ta  queen\n\n  # another\nany\ta wall\nM\ta king\r\na wall\n".encode())
    found = read_prompts(path)
    assert found == [Prompt(1, "a queen", "woman"), Prompt(2, "a wall"), Prompt(3, "a king", "man")]
    assert [p.text for p in suiting(found, "woman")] == ["a queen", "a wall"] and [p.text for p in suiting(found, "any")] == ["a wall"]


@pytest.mark.parametrize("odd", ["\u2028", "\x0b", "\x0c", "\x85"])
def test_only_line_breaks_end_a_line(tmp_path, odd):
    """Prompts that were copied from elsewhere hold other separators."""
    text, table = tmp_path / "prompts.txt", tmp_path / "prompts.csv"
    text.write_text(f"woman\ta queen{odd}reading\nx\n", encoding="utf-8")
    table.write_text(f"gender,prompt\nwoman,a queen{odd}reading\n,x\n", encoding="utf-8")
    assert read_prompts(text) == read_prompts(table) == [Prompt(1, "a queen reading", "woman"), Prompt(2, "x")]


def test_a_table(tmp_path):
    path = tmp_path / "prompts.csv"
    path.write_text('gender,prompt,more\nfemale,"a queen, smiling",1\n,a wall,2\n,,3\n')
    assert read_prompts(path) == [Prompt(1, "a queen, smiling", "woman"), Prompt(2, "a wall")]
    path.write_text("prompt\na wall\n")
    assert read_prompts(path) == [Prompt(1, "a wall")]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "a wall\nqueen\ta portrait\n", "a.txt, line 2: gender 'queen'; expected woman, man or any"),
        ("a.tsv", "woman\t \n", "a.tsv, line 1: there is no prompt behind 'woman'"),
        ("a.txt", "# nothing\n\n", "has no prompts"),
        ("a.txt", "x" * (MAX_CHARACTERS + 1), "line 1: a prompt of 20001 characters; at most 20000"),
        ("a.csv", "text,gender\na,b\n", "no column prompt; its first line reads 'text,gender'"),
        ("a.csv", "prompt,gender\na,b\n", "line 2: gender 'b'"),
        ("a.csv", "prompt,gender\n,man\n", "line 2: there is no prompt behind 'man'"),
        ("a.txt", b"woman\t\xff", "is not UTF-8 text"),
    ],
)
def test_prompts_that_are_refused(tmp_path, name, text, message):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=message):
        read_prompts(tmp_path / name)


def test_genders(tmp_path):
    assert [gender_of(word) for word in ("Women", " M ", "male", "any", "x", "")] == ["woman", "man", "man", "any", None, None]
    path = tmp_path / "genders.csv"
    path.write_text("person,gender\nana,Woman\nbo , m\ncy,\ndi,any\n", encoding="utf-8-sig")
    assert read_genders(path, "person") == {"ana": "woman", "bo": "man", "di": "any"}
    with pytest.raises(InputError, match="its first line reads 'person,gender'; expected the columns name and gender"):
        read_genders(path, "name")
    path.write_text("person,gender\nana,robot\n")
    with pytest.raises(InputError, match="line 2: gender 'robot'"):
        read_genders(path, "person")


def test_seeds():
    assert seed_of(0, "ada", "a chef") == 1669745873  # today as ever, on every machine
    assert len({seed_of(seed, who, n) for seed in (0, 1) for who in ("a", "b") for n in range(20)}) == 80
    assert seed_of("\ud800") != seed_of("\ud801")  # names of files may be no text
