"""What each stage does. Most are the project's own commands, as a user would give them; each is quick where its result is there already."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.tiny_world.sizes import Sizes
from infu_jax import runs
from infu_jax.assets import TINY_TRUE_CFG

ROOT = Path(__file__).parents[2]
RECIPES = Path(__file__).parent
SMALL = ("--filters.min-side", 96, "--filters.min-face", 16, "--filters.min-sharpness", 0, "--filters.duplicate-distance", "None")
FIRST_PROMPT, FIRST_STRANGER = 0, 960_000
SHOTS = ("close-up", "portrait")  # at 128 pixels the faces of others are too small to know anybody
BUCKET = ("--resolution", 128, "--bucket-step", 16, "--max-aspect", "1.0", "--t5-length", 56)
REST = 0.6
"""Part of the steps of synthesis after which InfuseNet rests: it has learned the dull colours of snapshots, and the base paints clean pictures."""
SCORER = "examples.tiny_world.scoring:prompt_kept"
GATES = (
    "--scorers", f"{SCORER}=0.85",  # nine of ten attributes
    "--gates.min-face", 24, "--gates.min-sharpness", 0, "--gates.min-score", 0.7, "--gates.min-similarity", 0.3, "--gates.copy-distance", 4,
    "--gates.duplicate-distance", "None", *(word.replace("--filters", "--photo-filters") if isinstance(word, str) else word for word in SMALL),
)  # fmt: skip
STAND_IN = (
    "--scorers", f"{SCORER}=-1",
    "--after", "examples.tiny_world.smoke:photo_instead", "--gates.copy-distance", "None", "--gates.max-face-correlation", 1, "--gates.min-similarity", -1,
    "--gates.max-similarity", 1, "--gates.max-yaw", 90, "--gates.max-pitch", 90, "--gates.max-roll", 90,
)  # fmt: skip
SIZE = ("--width", 128, "--height", 128, "--t5-length", 56)
INFUSENET = ("stage1", "stage2_single", "stage2", "stage2_id")
TRAINED = ("autoencoder", "decoder", "recogniser", "base", *INFUSENET)


@dataclass(frozen=True)
class World:
    """Where a tiny world lies, and how large it is."""

    out: Path
    sizes: Sizes
    given: Path | None = None  # a finished stack, whose recogniser, autoencoder and base model are taken, or trained further

    def drawn(self, name: str) -> Path:
        return self.out / "drawn" / name

    def data(self, name: str) -> Path:
        return self.out / "data" / name

    @property
    def stack(self) -> Path:
        return self.given or self.out / "stack"

    @property
    def base(self) -> Path:
        return self.stack / "FLUX.1-tiny"

    @property
    def transformer(self) -> Path:
        return self.own("base") or self.base / "transformer"

    @property
    def arcface(self) -> Path:
        given = self.stack / "InfiniteYou-tiny" / "recognition_arcface_ir_se50.pth"
        return given if self.given is None else self.own("recogniser") or given

    @property
    def autoencoder(self) -> Path:
        vae = self.base / "vae"
        return vae if self.given is None else self.own("decoder") or vae

    @property
    def painters(self) -> tuple:
        """Options that name the models around InfuseNet."""
        return ("--base", self.base, "--transformer", self.transformer, "--autoencoder", self.autoencoder, "--arcface", self.arcface)

    def own(self, name: str) -> Path | None:
        """The run of this name, where there is one."""
        return self.out / name if runs.is_run(self.out / name) else None

    @property
    def infusenets(self) -> dict[str, Path]:
        """The InfuseNets that are there, the furthest trained last: that of the given stack, `given`, and the runs."""
        given = {} if self.given is None else {"given": self.given / "InfiniteYou-tiny"}
        return given | {name: run for name in INFUSENET if (run := self.own(name))}

    @property
    def told(self) -> dict[str, Any]:
        """What the given stack says of itself."""
        return {} if self.given is None else json.loads((self.given / "provenance.json").read_text(encoding="utf-8"))

    def steps(self) -> dict[str, int]:
        """How far each model has been trained, those of a given stack included."""
        before, here = self.told.get("steps", {}), {name: int(runs.newest(run).name) for name in TRAINED if (run := self.own(name))}
        if here.keys() & set(INFUSENET):
            before = {name: count for name, count in before.items() if name not in INFUSENET}
        return before | here | {name: before.get(name, 0) + here[name] for name in ("decoder", "base") if name in here}


def draw(world: World) -> None:
    """Pictures of people; a folder for each use, and nobody in two of them."""
    for name, folder in world.sizes.drawn.items():
        if not world.drawn(name).exists():
            command = ("--people", folder.people, "--pictures", folder.pictures, "--look", folder.look, "--first-person", folder.first)
            python("-m", "data_pipeline.people", world.drawn(name), *command, "--size", 128, "--shots", *SHOTS)


def recogniser(world: World) -> None:
    """The face encoder that pictures are conditioned on."""
    from examples.tiny_world import recogniser, stack

    recogniser.train(world.out / "recogniser", stack.ARCFACE, world.drawn("faces"), world.drawn("held_out"), world.sizes.recogniser, world.sizes.count("faces"))


def judge(world: World) -> None:
    """A second one, of another shape, trained on other people, which only measures."""
    from examples.tiny_world import recogniser

    sizes = world.sizes
    recogniser.train(world.out / "judge", sizes.judge_model, world.drawn("judges"), world.drawn("held_out"), sizes.judge, sizes.count("judges"))


def autoencoder(world: World) -> None:
    from examples.tiny_world import autoencoder, stack

    shown = ([world.drawn("web"), world.drawn("real")], world.drawn("held_out"))
    autoencoder.train(world.out / "autoencoder", stack.AUTOENCODER, *shown, world.sizes.autoencoder, world.sizes.autoencoder_pictures)


def decoder(world: World) -> None:
    """The autoencoder's decoder, further: latents and what is trained on them stay valid."""
    from examples.tiny_world import autoencoder

    begun = world.out / "autoencoder" if world.given is None else world.base / "vae"
    shown = ([world.drawn("web"), world.drawn("real")], world.drawn("held_out"))
    eyes = world.out / "recogniser" if world.given is None else world.arcface
    autoencoder.train_decoder(world.out / "decoder", begun, eyes, *shown, world.sizes.decoder, world.sizes.autoencoder_pictures)


def stack(world: World) -> None:
    """The release's folders, all but transformer and InfuseNet filled."""
    from examples.tiny_world import stack
    from infu_jax.cli import appearing

    if not (world.out / "stack").exists():
        with appearing(world.out / "stack") as partial:
            stack.begin(partial, world.out / "decoder", world.out / "recogniser", world.drawn("web"))


def data(world: World) -> None:
    """Datasets as for photographs, with what the frozen encoders say of them."""
    for name, features in (("web", ("latents", "t5", "clip")), ("real", ("latents", "control", "t5", "clip", "arcface"))):
        if not world.data(name).exists():
            python("-m", "data_pipeline.build", "--source", world.drawn(name) / "manifest.jsonl", "--out", world.data(name), *SMALL, *_split(world))
        _features(world, world.data(name), features)


def base(world: World) -> None:
    begun = () if world.given is None else ("--models.transformer", world.base / "transformer", "--models.no-base-from-scratch")
    _train(world, "base", world.sizes.base_steps, world.sizes.batch_size, "--data.paths", world.data("web"), *begun)


def stage1(world: World) -> None:
    steps = world.sizes.stage1_steps
    _train(world, "stage1", steps, world.sizes.batch_size // 2, "--data.paths", world.data("real"), *_frozen(world))


def classifier(world: World) -> None:
    """Reads off pictures what their prompts asked for; measures only."""
    from examples.tiny_world import classifier

    classifier.train(world.out / "classifier", [world.drawn("web"), world.drawn("judges")], world.drawn("held_out"), world.sizes.classifier)


def scorer(world: World) -> None:
    """Another classifier, trained on other pictures: synthesis keeps what it finds to be as the prompt asks, and the first one stays a judge."""
    from examples.tiny_world import classifier

    how = dataclasses.replace(world.sizes.classifier, seed=1)
    classifier.train(world.out / "scorer", [world.drawn("faces"), world.drawn("real")], world.drawn("held_out"), how)


def synthesis(world: World) -> None:
    """Pictures of the people of the snapshots, by the model of stage 1, in other scenes."""
    from examples.tiny_world import prompts, scoring, strangers

    file, made = world.out / "synthesis_prompts.txt", prompts.made(world.sizes.synthesis_prompts, FIRST_PROMPT)
    if not file.exists():
        file.write_text(prompts.lines(made), encoding="utf-8")
    controls = strangers.draw(world.out / "synthesis_controls", made, FIRST_STRANGER)
    manifest, out = world.drawn("real") / "manifest.jsonl", world.data("spms")
    photos = manifest.with_name("synthesis.jsonl")
    if not photos.exists():
        count = world.sizes.spms_photos * world.sizes.drawn["real"].pictures
        photos.write_text("".join(manifest.read_text(encoding="utf-8").splitlines(keepends=True)[:count]), encoding="utf-8")
    if not out.exists():
        models = ("--infu", world.out / "stage1", *world.painters)
        gates = (*GATES, *STAND_IN) if world.sizes.untrained else GATES
        asked = ("--prompts-file", file, "--controls", controls, "--true-cfg", TINY_TRUE_CFG, "--negative-prompt", "", "--guidance-end", REST)
        how = ("--pictures", world.sizes.spms_pictures, "--batch", world.sizes.painted, "--steps", world.sizes.sampling_steps, *asked)
        os.environ[scoring.WORLD] = str(world.out.absolute())
        python("-m", "data_pipeline.synthesize", photos, "--out", out, *models, *how, *SIZE, *gates, *_split(world))
    _features(world, out, ("latents", "control", "t5", "clip", "arcface"))


def stage2(world: World) -> None:
    """The paper's stage 2; its ablation, the same synthetic pictures, each its own identity; and stage 2 further with an identity loss."""
    steps = world.sizes.stage2_steps
    for name, pairing, recipe, begun, count in (
        ("stage2", "spms", "stage2", "stage1", steps),
        ("stage2_single", "spss", "stage2", "stage1", steps),
        ("stage2_id", "spms", "stage2_id", "stage2", world.sizes.stage2_id_steps),
    ):
        options = ("--data.paths", world.data("spms"), "--data.pairing", pairing, "--models.init", world.out / begun, *_frozen(world))
        _train(world, recipe, count, world.sizes.batch_size // 2, *options, out=world.out / name)


def evaluation(world: World) -> None:
    """All models that are there, on people and prompts never seen."""
    from examples.tiny_world import table

    table.make(world)


def release(world: World) -> None:
    """The trained stack in the release's layout, as it is embedded in the package: copy its contents over infu_jax/assets/tiny.

    InfuseNet is the newest there is: that of stage 2 with an identity loss, that of stage 2, of stage 1, or none.
    """
    from examples.tiny_world import stack
    from infu_jax.cli import appearing

    out = world.out / "release"
    if out.exists():
        return
    times = [json.loads(line) for line in (world.out / "times.jsonl").read_text(encoding="utf-8").splitlines()]
    told = {
        **world.told,  # with "parts", if it was trained otherwise than the command says
        "command": "python -m examples.tiny_world",
        "data": "drawn by data_pipeline.people, Apache-2.0; no photograph, no downloaded weights",
        "steps": world.steps(),
        "hours": round(world.told.get("hours", 0) + sum(row["seconds"] for row in times) / 3600, 2),
        "cores": times[-1]["cores"],
    }
    with appearing(out) as partial:
        stack.finish(partial, world.stack, {name: run for name in TRAINED if (run := world.own(name))}, told)


def _split(world: World) -> tuple:
    return ("--validation-share", world.sizes.validation_share)


def _features(world: World, dataset: Path, names: tuple[str, ...]) -> None:
    models = ("--base", world.base, "--arcface", world.arcface)
    python("-m", "data_pipeline.precompute", dataset, "--features", *names, *models, "--batch", world.sizes.encoded, *BUCKET)


def _train(world: World, recipe: str, steps: int, batch_size: int, *options, out: Path | None = None) -> None:
    common = ("--out", out or world.out / recipe, "--steps", steps, "--batch-size", batch_size, "--models.base", world.base)
    python("train.py", RECIPES / f"{recipe}.py", *common, *world.sizes.training, *options)


def _frozen(world: World) -> tuple:
    return ("--models.transformer", world.transformer, "--models.arcface", world.arcface)


def python(*arguments) -> None:
    """Run a command of the project. What it says is seen as it says it; its failure is ours."""
    words = _said(arguments)
    if code := subprocess.run([sys.executable, *words], cwd=ROOT).returncode:
        sys.exit(code)


def evaluate(*arguments) -> None:
    """`python -m infu_jax.evaluation` in this process, which keeps what it has compiled for the next model."""
    from infu_jax.evaluation.__main__ import main

    main(_said(("-m", "infu_jax.evaluation", *arguments))[2:])


def _said(arguments) -> list[str]:
    words = [str(a.absolute() if isinstance(a, Path) else a) for a in arguments]
    print("python " + shlex.join(words), flush=True)
    return words
