"""Measure how well a model keeps people and follows prompts, as the InfiniteYou paper does.

    python -m infu_jax.evaluation --base FLUX.1-dev --infu InfiniteYou/infu_flux_v1.0/aes_stage2 --arcface recognition_arcface_ir_se50.pth \\
        --identities people --clip clip-vit-large-patch14 --pickscore PickScore_v1 --out evaluation/aes_stage2

paints every person with every prompt for their gender (pictures that are there are kept, so it goes on after an interruption), looks at the
pictures, and writes table.md, scores.json and report.html beside them. With --pictures it scores pictures of any other model instead:
FOLDER/<person>/<number of the prompt, four digits>.png. --compare puts earlier runs into the same table, with differences.
Without models, the embedded tiny stack is used, which knows drawn people only. Sizes are those of the release, of the tiny stack or of the training
run, as models are given; --help shows them. Pictures of people and their scores are personal data.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tqdm import tqdm

from infu_jax.assets import ASSETS, TINY
from infu_jax.cli import appearing, check_writable, run
from infu_jax.config import SamplingConfig
from infu_jax.errors import InputError
from infu_jax.stack_options import with_defaults

if TYPE_CHECKING:
    from infu_jax import face
    from infu_jax.evaluation.identities import Identity
    from infu_jax.evaluation.pairs import Pair
    from infu_jax.evaluation.scores import Scores

OptionalPath = Annotated[Path | None, tyro.conf.arg(metavar="PATH")]
RESULTS = ("scores.json", "table.md", "report.html")
_EMBEDDED = "embedded:"  # instead of where this machine has the package


@dataclass(frozen=True)
class Args:
    identities: Path = ASSETS / "faces"
    """Folder of photos: one file a person (ada.png), or one folder a person (ada/*.png), of which the first is the photo that the model is
    shown and the others are more photos of the same person to compare with."""
    gender: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=GENDER ...")] = ()
    """Who is a woman or a man, as in ada=woman bo=man. Otherwise genders.csv in the folder says it (name,gender), or the name (ada_woman.png)."""
    genders: OptionalPath = None
    """Another genders.csv."""
    prompts: OptionalPath = None
    """Prompts of your own: one a line, `woman<TAB>prompt` or `man<TAB>prompt` for one gender only; or a .csv file with the columns prompt and
    gender. By default 200 that come with the package."""
    prompts_per_person: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Only so many prompts for each person, evenly spaced over those for their gender."""
    controls: OptionalPath = None
    """Folder of photos of anybody, whose faces say where the face goes (sample.py's --control-image): by name the first for the first prompt and so
    on, from the first again where there are fewer. Without it the model is left to choose."""
    pictures: OptionalPath = None
    """Score the pictures of this folder instead of making any. Those that are missing are left out, and their number is told."""
    out: Path = Path("outputs/evaluation")
    """Folder for pictures/ and results. Pictures in it are kept and not made again."""
    overwrite: bool = False
    """Replace the results (not the pictures) of an earlier run in --out."""
    name: str = "this run"
    """What the model is called in tables."""
    compare: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="SCORES.JSON ...")] = ()
    """Earlier results to put into the same tables."""

    recogniser: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=PATH ...")] = ()
    """More recognisers of ArcFace's layout to measure likeness with: files, or folders that convert_weights.py to-jax made of them. The one
    that conditioned the pictures flatters them; what says whether people are recognised is another."""
    clip: OptionalPath = None
    """Folder of CLIP (transformers' CLIPModel, e.g. openai/clip-vit-large-patch14) for CLIPScore; without it there is none."""
    pickscore: OptionalPath = None
    """Folder of PickScore (yuvalkirstain/PickScore_v1); without it there is none."""
    clip_tokenizer: OptionalPath = None
    """CLIP's tokenizer, where --clip or --pickscore has none. By default that of --base, which is the same."""
    resamples: int = 2000
    """Bootstrap resamples."""
    confidence: float = 0.95
    """Of the intervals."""
    score_batch: int = 16
    """Pictures scored at once."""
    report_prompts: int = 8
    """Prompts of each gender in the grids of report.html."""

    base: Path = TINY / "FLUX.1-tiny"
    """As in sample.py: FLUX.1 folder, in diffusers layout or converted."""
    infu: Path = TINY / "InfiniteYou-tiny"
    """InfiniteYou folder, a converted one, or a training run (its newest checkpoint) or one of its checkpoints; --base, --transformer,
    --autoencoder and --arcface are then the run's own by default."""
    arcface: OptionalPath = None
    """recognition_arcface_ir_se50.pth or its converted folder, which conditions the pictures; by default looked for inside --infu."""
    transformer: OptionalPath = None
    """Another transformer than --base has."""
    autoencoder: OptionalPath = None
    """Another VAE than --base has."""
    ema: bool = True
    """Of a training run, take the average of the weights where it keeps one."""
    detector: Literal["yunet", "antelopev2"] = "yunet"
    """Face detector, for photos and pictures."""
    detector_root: OptionalPath = None
    """Folder with models/antelopev2/*.onnx."""
    seed: int = 0
    """Every picture has a seed of its own, made of this, the person's name and the prompt. The bootstrap uses it too."""
    batch: int = 1
    """Pictures made at once."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Of the pictures' models. auto: bfloat16 on TPU and GPU, float32 on CPU. Scores are always float32."""
    offload: bool = False
    """Keep text encoders, VAE and ArcFace in host memory while the transformer runs."""
    sampling: Annotated[SamplingConfig, tyro.conf.arg(name="")] = field(default_factory=SamplingConfig)

    @property
    def embedded(self) -> bool:
        """Whether the recogniser that conditions the pictures is the one that comes with the package."""
        return self.infu == Args.infu and self.arcface is None


def main(argv: Sequence[str] | None = None) -> None:
    default = with_defaults(Args(), sys.argv[1:] if argv is None else argv)
    args = tyro.cli(Args, args=argv, prog="python -m infu_jax.evaluation", description=__doc__, default=default)
    from infu_jax import face
    from infu_jax.evaluation import comparing, identities, pairs, scores
    from infu_jax.evaluation.comparing import Bootstrap
    from infu_jax.prompts import read_prompts

    # Everything that can be wrong is looked at before the models are loaded, the quickest first.
    _check_options(args)
    bootstrap = Bootstrap(args.resamples, args.confidence, args.seed)
    people = identities.read_identities(args.identities, given=_named(args.gender, "--gender", "ada=woman"), table=args.genders)
    detector = face.load_detector(args.detector, args.detector_root)
    controls = face.read_controls(args.controls, args.sampling.height, args.sampling.width, detector) if args.controls else []
    wanted = pairs.plan(people, read_prompts(args.prompts or pairs.OWN), most=args.prompts_per_person, seed=args.seed, controls=controls)
    recognisers = _recogniser_paths(args)
    earlier = [scores.read(path) for path in args.compare]
    _check_out(args)
    folder = args.pictures or args.out / "pictures"
    notes = [f"Where faces go was said by {len(controls)} photos (--controls)."] if controls else []
    if args.pictures is not None:
        if not folder.is_dir():
            raise InputError(f"{folder} is no folder; --pictures takes a folder with a folder of pictures for each person")
        there = [pair for pair in wanted if pairs.find(folder, pair)]
        if not there:
            raise InputError(f"{folder} has no picture of any of {len(wanted)} pairs; expected names such as {wanted[0].stem}.png")
        if len(there) < len(wanted):
            notes.append(f"{len(wanted) - len(there)} of {len(wanted)} pictures are not there and were left out.")
        wanted = there  # of people nobody is left out: they stay in the gallery of rank-1
    for other in earlier:
        comparing.check_shared(
            args.name, [(pair.identity.name, pair.prompt.number) for pair in wanted], {p.prompt.number: p.prompt.text for p in wanted}, other
        )

    # Heavy imports come after the checks above, so that --help and mistakes answer at once.
    from infu_jax import checkpoint
    from infu_jax.evaluation import judging
    from infu_jax.evaluation.clip import CLIP, clip_score, pick_score
    from infu_jax.evaluation.measuring import fingerprint

    models = {name: checkpoint.load_model(path, "arcface", dtype="float32") for name, path in recognisers.items()}
    tokenizer = args.clip_tokenizer or (args.base / "tokenizer" if (args.base / "tokenizer").is_dir() else None)
    given = {"clip": (args.clip, clip_score), "pickscore": (args.pickscore, pick_score)}
    clips = {name: (CLIP.load(path, tokenizer=tokenizer), make) for name, (path, make) in given.items() if path is not None}
    _check_photos(people, detector)
    if args.pictures is None:
        _paint(args, wanted, folder, detector, fingerprint(models["arcface"]))
    with tqdm(total=len(wanted), desc="scores", disable=None) as bar:
        mine, reference = judging.judge(
            wanted, people, folder, detector=detector, recognisers=judging.recognisers_of(models, pairs.find(folder, wanted[0])),
            scorers=[make(clip, args.score_batch) for clip, make in clips.values()], name=args.name, settings=_settings(args, controls),
            batch=args.score_batch, done=bar.update,
        )  # fmt: skip
    painted = [who for who in people if who.name in mine.who]
    notes += _notes(args, mine, painted, {name: clip.too_long(list(mine.texts.values())) for name, (clip, _) in clips.items()})
    notes += [note for other in earlier for note in comparing.incomparable(mine, other)]

    table = [mine, *earlier, *([reference] if reference else [])]
    rows = [comparing.summary(each, bootstrap) for each in table]
    differences = [comparing.difference(mine, other, bootstrap) for other in earlier]
    _write(args, mine, painted, wanted, folder, comparing.known(table), rows, differences, notes)


# Options ------------------------------------------------------------------------------------------


def _check_options(args: Args) -> None:
    for name in ("batch", "score_batch", "report_prompts"):
        if getattr(args, name) < 1:
            raise InputError(f"{name} is {getattr(args, name)}; at least 1 is needed")
    if args.prompts_per_person is not None and args.prompts_per_person < 1:
        raise InputError(f"prompts_per_person is {args.prompts_per_person}; at least 1 is needed (leave it out for all)")
    if args.controls is not None and args.pictures is not None:
        raise InputError("--controls is for pictures that are made here; with --pictures leave it out")
    if not 0 <= args.seed < 2**32:
        raise InputError(f"seed is {args.seed}; 0 <= seed < {2**32} is needed")


def _check_out(args: Args) -> None:
    taken = [name for name in RESULTS if (args.out / name).exists()]
    if taken and not args.overwrite:
        raise InputError(f"{args.out / taken[0]} exists; give --overwrite to replace the results (pictures are kept in any case), or another --out")
    check_writable(args.out)


def _named(given: Sequence[str], option: str, example: str) -> dict[str, str]:
    out: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name or not value:
            raise InputError(f"{option} takes NAME=..., as in {example}; found {text!r}")
        if name in out:
            raise InputError(f"{option} names {name!r} twice")
        out[name] = value
    return out


def _recogniser_paths(args: Args) -> dict[str, Path]:
    """All recognisers by name; `arcface` is the one that conditions pictures."""
    more = _named(args.recogniser, "--recogniser", "second=glint_ir_se50.pth")
    if "arcface" in more:
        raise InputError("--recogniser arcface=... takes the name of the one that conditions the pictures, which --arcface or --infu gives; choose another")
    # Pictures of another model need not be compared by the embedded random recogniser, if a real one is given.
    own = {} if args.pictures is not None and args.embedded and more else {"arcface": args.arcface or args.infu}
    return {**own, **{name: Path(path) for name, path in more.items()}}


# Making -------------------------------------------------------------------------------------------


def _check_photos(people: Sequence[Identity], detector: face.Detector) -> None:
    """Say which photo has no face, before anything slow."""
    from infu_jax import face

    for who in people:
        try:
            face.largest_face(detector, face.read_image(who.photo))
        except face.NoFaceError as e:
            raise InputError(f"{who.photo}: {e}") from None


def _paint(args: Args, wanted: Sequence[Pair], folder: Path, detector: face.Detector, fingerprint: str) -> None:
    """Make what is missing."""
    import jax
    import jax.numpy as jnp

    from infu_jax import runs
    from infu_jax.evaluation import judging, making
    from infu_jax.pipeline import InfUPipeline

    # A run's newest checkpoint in the place of the run, so that pictures of two checkpoints are not mixed.
    places = {name: runs.pinned(getattr(args, name)) for name in ("base", "infu", "transformer", "autoencoder")}
    dtype = {"auto": jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16, "bfloat16": jnp.bfloat16, "float32": jnp.float32}[args.dtype]
    recipe = {
        **{name: _path_text(path) for name, path in places.items()},
        judging.FINGERPRINT: fingerprint,
        "ema": args.ema,
        "detector": args.detector,
        "dtype": str(jnp.dtype(dtype)),
        "sampling": dataclasses.asdict(args.sampling),
    }
    absent = making.missing(folder, wanted, recipe)
    print(f"{len(wanted) - len(absent)} of {len(wanted)} pictures are there, {len(absent)} are to be made", file=sys.stderr)
    if not absent:
        return
    with tqdm(total=7, desc="loading", leave=False, disable=None) as bar:
        pipeline = InfUPipeline.load(
            places["base"], places["infu"], arcface=args.arcface, transformer=places["transformer"], autoencoder=places["autoencoder"],
            detector=detector, dtype=dtype, ema=args.ema, offload=args.offload, progress=lambda name: (bar.set_postfix_str(name), bar.update()),
        )  # fmt: skip
    with tqdm(total=len(wanted), initial=len(wanted) - len(absent), desc="pictures", disable=None) as bar:
        making.make(pipeline, absent, folder, settings=args.sampling, recipe=recipe, batch=args.batch, done=bar.update)


def _path_text(path: Path | None) -> str | None:
    if path is None:
        return None
    return _EMBEDDED + path.relative_to(ASSETS).as_posix() if path.is_relative_to(ASSETS) else str(path.absolute())


# Telling ------------------------------------------------------------------------------------------


def _settings(args: Args, controls: Sequence[face.Control]) -> dict[str, Any]:
    """What the scores were made with, as far as a reader of them must know."""
    return {
        "seed": args.seed, "resamples": args.resamples, "confidence": args.confidence, "detector": args.detector,
        "clip": None if args.clip is None else args.clip.name, "pickscore": None if args.pickscore is None else args.pickscore.name,
        "controls": [control.digest for control in controls],
        "made_here": args.pictures is None, "sampling": dataclasses.asdict(args.sampling) if args.pictures is None else None,
    }  # fmt: skip


def _notes(args: Args, mine: Scores, people: Sequence[Identity], too_long: dict[str, int]) -> list[str]:
    """What a reader of the numbers must know. people: who have pictures. too_long: by each CLIP that was used, how many prompts it reads only in part."""
    notes = [f"Recognisers: {'; '.join(r.text for r in mine.recognisers)}."]
    if all(r.conditioned is not False for r in mine.recognisers):
        notes.append("No recogniser is known to be independent of the pictures; a second one (--recogniser) judges more fairly.")
    if args.embedded and any(r.name == "arcface" for r in mine.recognisers):
        notes.append("The recogniser arcface is the embedded one, which was trained on drawn people: of photographs its similarities mean nothing.")
    if "clip" not in too_long:
        notes.append("There is no CLIPScore: no --clip was given.")
    if "pickscore" not in too_long:
        notes.append("There is no PickScore: no --pickscore was given.")
    notes += [f"{count} prompts are longer than {name} reads; the rest of them does not count." for name, count in too_long.items() if count]
    if without := len(mine.people) - len(people):
        notes.append(f"{without} of {len(mine.people)} people have no pictures; rank-1 is searched among them too.")
    if len(people) < 2:
        rank = "rank-1 is always right, " if len(mine.people) < 2 else ""
        notes.append(f"The pictures are of one person: {rank}nothing can be said of copying, and intervals are over prompts only.")
    elif not any(who.others for who in people):
        notes.append("No person has other photos: there is no copy gap, and no yardstick for what faces themselves share (--identities, folders).")
    return notes


def _write(args: Args, mine: Scores, people: Sequence[Identity], wanted: Sequence[Pair], folder: Path, known, rows, differences, notes: list[str]) -> None:
    from infu_jax import face
    from infu_jax.evaluation import comparing, pairs, report, scores

    table = comparing.markdown(rows, known)
    if differences:
        table += "\nDifferences on shared people and prompts:\n\n" + comparing.markdown(differences, known)
    table += "\n" + "".join(f"- {note}\n" for note in notes)
    table += "".join(f"- {m.label}: {m.about}\n" for m in comparing.shown(rows, known))
    values = lambda row: {"name": row.name, "pictures": row.pictures, "measures": {k: _plain(v) for k, v in row.values.items()}}  # noqa: E731
    stored = {**scores.to_json(mine), "notes": notes, "rows": [values(row) for row in rows], "differences": [values(row) for row in differences]}
    photos = {who.name: who.photo for who in people}
    page = report.html_page(
        report.Page(rows, differences, known, mine, {who.name: who.gender for who in people}, notes, args.confidence),
        lambda name: face.read_image(photos[name]),
        lambda n: face.read_image(pairs.find(folder, wanted[n])),
        columns=args.report_prompts,
    )
    args.out.mkdir(parents=True, exist_ok=True)
    for name, text in zip(RESULTS, (json.dumps(stored, indent=1, ensure_ascii=False) + "\n", table, page), strict=True):
        with appearing(args.out / name, replace=True) as partial:
            partial.write_text(text, encoding="utf-8")
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    print(comparing.markdown(rows + differences, known), end="")
    print(f"{args.out / 'report.html'}  {len(wanted)} pictures of {len(people)} people")


def _plain(value) -> dict[str, Any]:
    return {k: None if v != v else round(v, 6) for k, v in dataclasses.asdict(value).items()}


if __name__ == "__main__":
    run(main)
