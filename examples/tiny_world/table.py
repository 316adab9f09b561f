"""The paper's tables in miniature: every model on people and prompts never seen, judged by a recogniser that no model has met."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from tqdm import tqdm

from data_pipeline import people
from examples.tiny_world import classifier, prompts, strangers, strength
from examples.tiny_world.colourfulness import Colourfulness
from examples.tiny_world.stages import SHOTS, SIZE, World, evaluate
from infu_jax import checkpoint, face
from infu_jax.assets import TINY_TRUE_CFG
from infu_jax.errors import InputError
from infu_jax.evaluation import comparing, identities, judging, pairs
from infu_jax.evaluation.measuring import Recogniser
from infu_jax.prompts import read_prompts

FIRST_PERSON, FIRST_PROMPT, FIRST_STRANGER = 910_000, 50_000, 950_000
LAST = 0.95  # of 16 steps all but one
PHOTOS = 9  # the first is what a model is shown; by the others a person is known


class Row(NamedTuple):
    """A model of the table, and how it paints."""

    run: str  # or `given`: the InfuseNet of a given stack
    scale: float = 1.0  # of InfuseNet; 0 gives exactly the base's picture
    keypoints: bool = False  # the five points of a stranger, who is drawn as the prompt asks, are given
    end: float = 1.0  # part of the steps after which InfuseNet rests


MODELS = {
    "base alone": Row("any", scale=0.0),
    "given": Row("given"),
    "given with keypoints": Row("given", keypoints=True),
    "given with keypoints, last step the base's": Row("given", keypoints=True, end=LAST),
    "stage 1": Row("stage1"),
    "stage 1 with keypoints": Row("stage1", keypoints=True),
    "stage 2 on single samples": Row("stage2_single"),
    "stage 2 on single samples with keypoints": Row("stage2_single", keypoints=True),
    "full (SPMS)": Row("stage2"),
    "full (SPMS) with keypoints": Row("stage2", keypoints=True),
    "full and identity loss": Row("stage2_id"),
    "full and identity loss with keypoints": Row("stage2_id", keypoints=True),
    "full and identity loss with keypoints, last step the base's": Row("stage2_id", keypoints=True, end=LAST),
}


def make(world: World) -> None:
    """Write OUT/evaluation: pictures and a report for each model, and table.md with all of them."""
    out, runs = world.out / "evaluation", world.infusenets
    if not runs:
        raise InputError(f"{world.out} has no InfuseNet to look at; train one (--only stage1) or name a stack (--given infu_jax/assets/tiny)")
    *_, newest = runs.values()
    models = {name: row for name, row in MODELS.items() if row.run in runs or row.run == "any"}
    photos = draw(out / "people", world.sizes.test_people)
    asked = prompts.made(world.sizes.test_prompts, FIRST_PROMPT)
    file = out / "prompts.tsv"
    file.write_text(prompts.lines(asked), encoding="utf-8")
    controls = strangers.draw(out / "controls", asked, FIRST_STRANGER)
    for name, row in models.items():
        folder = out / name.replace(" ", "_")
        if (folder / "table.md").exists():
            continue
        painted_by = ("--infu", runs.get(row.run, newest), *world.painters, "--recogniser", f"judge={(world.out / 'judge').absolute()}")
        options = ("--conditioning-scale", row.scale, "--guidance-end", row.end, *(("--controls", controls) if row.keypoints else ()))
        how = ("--batch", world.sizes.painted, "--steps", world.sizes.sampling_steps, "--resamples", 200, "--true-cfg", TINY_TRUE_CFG, *SIZE, *options)
        evaluate("--identities", photos, "--prompts", file, "--name", name, "--out", folder, *painted_by, *how)
    (out / "table.md").write_text(judged(world, list(models), photos, file, asked), encoding="utf-8")
    (out / "strength.md").write_text(strength.table(world, newest, identities.read_identities(photos), asked), encoding="utf-8")
    print((out / "table.md").read_text(encoding="utf-8"))


def draw(folder: Path, count: int) -> Path:
    """Photos of people that no stage has seen: snapshots, a folder for each person."""
    if folder.exists():
        return folder
    partial = folder.with_name(f".{folder.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    genders = ["name,gender"]
    for number in tqdm(range(FIRST_PERSON, FIRST_PERSON + count), desc="drawing test people", disable=None):
        who = people.person(number)
        genders.append(f"{number},{who.gender}")
        (partial / str(number)).mkdir(exist_ok=True)
        for k in range(PHOTOS):
            shown = people.render(who, people.picture(number, k, "snapshot", SHOTS), 128, 128)
            Image.fromarray(shown.image).save(partial / str(number) / f"{k}.png")
    (partial / "genders.csv").write_text("\n".join(genders) + "\n", encoding="utf-8")
    partial.rename(folder)
    return folder


def judged(world: World, models: Sequence[str], photos: Path, file: Path, asked: Sequence[prompts.Asked]) -> str:
    """The table, in markdown."""
    who = identities.read_identities(photos)
    wanted = pairs.plan(who, read_prompts(file))
    run = world.out / "classifier"
    modules = classifier.load(run)
    scorers = [classifier.Attributes(modules, {each.text: each.attributes for each in asked}), Colourfulness()]
    arcface, judge = (checkpoint.load_model(path, "arcface") for path in (world.arcface, world.out / "judge"))
    recognisers = [Recogniser("arcface", arcface, True), Recogniser("judge", judge, False)]
    rows, reference, known = [], None, []
    for name in models:
        scores, reference = judging.judge(
            wanted, who, world.out / "evaluation" / name.replace(" ", "_") / "pictures",
            detector=face.load_detector("yunet"), recognisers=recognisers, scorers=scorers, name=name,
        )  # fmt: skip
        rows.append(comparing.summary(scores, comparing.Bootstrap()))
        known.append(scores)
    rows.append(comparing.summary(reference, comparing.Bootstrap()))
    accuracy = json.loads((run / "log.jsonl").read_text(encoding="utf-8").splitlines()[-1])["accuracy"]
    note = f"\nThe classifier itself is right for {accuracy:.1%} of the attributes of drawn pictures that it has not seen.\n"
    steps = ", ".join(f"{name} {count} steps" for name, count in world.steps().items())
    return comparing.markdown(rows, comparing.known([*known, reference])) + note + f"\nTrained: {steps}.\n"
