"""Prompts, people and pairs: what is read, and one line for every mistake."""

import shutil

import pytest

from infu_jax.assets import ASSETS
from infu_jax.errors import InputError
from infu_jax.evaluation.identities import read_identities
from infu_jax.evaluation.pairs import chosen, find, plan
from infu_jax.prompts import Prompt

PHOTO = ASSETS / "faces" / "ada.png"


def folder(tmp_path, *names):
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PHOTO, tmp_path / name)
    return tmp_path


# Prompts ------------------------------------------------------------------------------------------


def test_chosen():
    prompts = [Prompt(n, f"{n}", gender) for n, gender in enumerate(["woman", "man", "any", "woman", "man", "woman"], 1)]
    assert [p.number for p in chosen(prompts, "woman")] == [1, 3, 4, 6]
    assert [p.number for p in chosen(prompts, "man", 2)] == [2, 3]
    assert [p.number for p in chosen(prompts, "woman", 2)] == [1, 4]
    assert chosen(prompts, "woman", 9) == chosen(prompts, "woman")


# People -------------------------------------------------------------------------------------------


def test_identities(tmp_path):
    place = folder(tmp_path, "ada/2.png", "ada/1.png", "ada/3.png", "bo.png", "dan_man.png", "eva-female.png", ".hidden.png")
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "genders.csv").write_text("name,gender\nada,woman\nbo,female\n")
    people = read_identities(place, given={"bo": "male"})
    assert [(who.name, who.gender) for who in people] == [("ada", "woman"), ("bo", "man"), ("dan_man", "man"), ("eva-female", "woman")]
    assert people[0].photo == place / "ada" / "1.png" and [p.name for p in people[0].others] == ["2.png", "3.png"] and not people[1].others


def test_embedded_faces():
    assert [(who.name, who.gender) for who in read_identities(ASSETS / "faces")] == [("ada", "woman"), ("bo", "man"), ("cy", "woman")]


def test_identities_that_are_refused(tmp_path):
    with pytest.raises(InputError, match="is no folder"):
        read_identities(tmp_path / "none")
    with pytest.raises(InputError, match="has no photos"):
        read_identities(tmp_path)
    place = folder(tmp_path, "ada.png")
    with pytest.raises(InputError, match="the gender of ada is not known.*--gender ada=woman"):
        read_identities(place)
    with pytest.raises(InputError, match="ada has gender 'robot'"):
        read_identities(place, given={"ada": "robot"})
    with pytest.raises(InputError, match="names bob, who is not in"):
        read_identities(place, given={"ada": "woman", "bob": "man"})
    (tmp_path / "table.csv").write_text("who,sex\nada,woman\n")
    with pytest.raises(InputError, match="expected the columns name and gender"):
        read_identities(place, table=tmp_path / "table.csv")
    folder(tmp_path, "ada.jpg")
    with pytest.raises(InputError, match="two entries for 'ada'"):
        read_identities(place, given={"ada": "woman"})


# Pairs --------------------------------------------------------------------------------------------


def test_pairs(tmp_path):
    people = read_identities(folder(tmp_path, "ada_woman.png", "bo_man.png", "cy_woman.png"))
    prompts = [Prompt(n, f"prompt {n}", gender) for n, gender in enumerate(["woman", "man", "woman", "man", "woman"], 1)]
    pairs = plan(people, prompts, most=2, seed=3)
    assert [pair.stem for pair in pairs] == ["ada_woman/0001", "ada_woman/0003", "bo_man/0002", "bo_man/0004", "cy_woman/0001", "cy_woman/0003"]
    assert len({pair.seed for pair in pairs}) == 6 and all(0 <= pair.seed < 2**32 for pair in pairs)
    # A picture's seed is its own: neither other people nor other prompts move it. Another seed of the run moves all.
    assert {p.stem: p.seed for p in plan(people[1:], prompts, seed=3)}.items() >= {p.stem: p.seed for p in pairs[2:]}.items()
    assert not {p.seed for p in plan(people, prompts, seed=4)} & {p.seed for p in pairs}
    with pytest.raises(InputError, match="no prompt for bo_man; the prompts are for woman"):
        plan(people, [prompts[0]])


def test_find(tmp_path):
    [pair] = plan(read_identities(folder(tmp_path, "ada_woman.png")), [Prompt(7, "a", "any")])
    assert find(tmp_path, pair) is None
    folder(tmp_path, "ada_woman/0007.jpg")
    assert find(tmp_path, pair) == tmp_path / "ada_woman" / "0007.jpg"
    folder(tmp_path, "ada_woman/0007.png")
    with pytest.raises(InputError, match="both pictures of ada_woman with prompt 7"):
        find(tmp_path, pair)
