"""Makes synthetic pictures of people and judges them: numbers of pictures become a chunk of candidate records, as in `data_pipeline.chunks`."""

import base64
import functools
import io
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image, PngImagePlugin

from data_pipeline import gates
from data_pipeline.chunks import kept_line, write_chunk
from data_pipeline.duplicates import perceptual_hash
from data_pipeline.filters import Rejected
from data_pipeline.gates import Gates, Shown, Verdict
from data_pipeline.hooks import Hook, Scorer
from data_pipeline.photos import Person, Photos
from data_pipeline.records import Caption, Record, encode, read_picture
from data_pipeline.report import CELL, SHOWN
from infu_jax import face
from infu_jax.pictures import XMP, thumbnail
from infu_jax.prompts import Prompt, suiting
from infu_jax.seeds import seed_of

SOURCE = "prompt"  # of the caption
Item = TypeVar("Item")


@dataclass(frozen=True, eq=False)
class Request:
    """One picture to be made."""

    photo: UInt8[np.ndarray, "h w 3"]
    embedding: Float32[np.ndarray, "d"]
    """Of the photo's face, by the recogniser that conditions."""
    prompt: str
    seed: int
    """0 to 2^32 - 1."""
    control: UInt8[np.ndarray, "H W 3"] | None = None
    """Photo whose face says where the face goes; all requests have one, or none."""


@dataclass(frozen=True, eq=False)
class Models:
    """What makes pictures and what recognises people. All three see batches of exactly `batch` items, so each is one program."""

    generate: Callable[[Sequence[Request]], UInt8[np.ndarray, "B h w 3"]]
    recognise: Callable[[UInt8[np.ndarray, "B 112 112 3"]], Float32[np.ndarray, "B d"]]
    """ArcFace's crops, BGR -> embeddings that `generate` is conditioned on."""
    judge: Callable[[UInt8[np.ndarray, "B 112 112 3"]], Float32[np.ndarray, "B e"]]
    """The same, for the gates on similarity."""
    batch: int
    stated: Mapping[str, Any] = field(default_factory=dict)
    """Which models these are; goes into the provenance of every record."""


@dataclass(frozen=True)
class Order:
    """What is to be made."""

    pictures: int
    """Of each person."""
    seed: int
    gates: Gates
    prompts: Sequence[Prompt] | None
    """None: the captions of the person's photos."""
    genders: Mapping[str, str]
    """Of people; where it says nothing, their photos' provenance is asked."""
    format: Literal["jpeg", "png"]
    quality: int
    before: tuple[Hook, ...] = ()
    after: tuple[Hook, ...] = ()
    scorers: tuple[Scorer, ...] = ()
    controls: Sequence[face.Control] = ()
    """The first belongs to the first of the prompts, and so on, from the first again where there are fewer."""
    shown: frozenset[int] = frozenset()
    """People whose rejected pictures go, small, into the chunk for the contact sheet."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Of all records."""


@dataclass(frozen=True, eq=False)
class _Photo:
    record: Record
    image: UInt8[np.ndarray, "h w 3"]
    """As the hooks before left it."""
    embedding: Float32[np.ndarray, "d"]
    shown: Shown


@dataclass(eq=False)
class _Job:
    row: int
    """From 0."""
    person: str
    number: int
    given: dict[str, Any]
    """For the report."""
    seed: int
    prompt: str = ""
    control: face.Control | None = None
    photo: Record | None = None
    data: bytes = b""
    image: UInt8[np.ndarray, "h w 3"] | None = None
    """As stored."""
    verdict: Verdict = field(default_factory=Verdict)


class Maker:
    """Makes chunks of rows. A row is a picture to be made: `order.pictures` of the first person, then of the next.

    All is a function of order, photos, models and row, and of the chunk, whose rows share batches.
    """

    def __init__(self, photos: Photos, order: Order, models: Models, load_detector: Callable[[], face.Detector], threads: int):
        self.photos, self.order, self.models = photos, order, models
        self._load_detector, self._local = load_detector, threading.local()
        self._pool = ThreadPoolExecutor(threads)
        self._person = functools.lru_cache(2)(photos.__getitem__)

    def __enter__(self) -> "Maker":
        return self

    def __exit__(self, *_) -> None:
        self._pool.shutdown(cancel_futures=True)

    def make_chunk(self, path: Path, rows: range, progress: Callable[[int], Any] = lambda made: None) -> int:
        """Writes the chunk `path` of some rows and returns how many of its pictures passed. progress: told of pictures as they are done."""
        jobs = [self._job(row) for row in rows]
        photos = self._prepare(jobs)
        wanted = [job for job in jobs if job.verdict.rejected is None]
        progress(len(jobs) - len(wanted))
        looking: list[Future[None]] = []
        for batch in _cut(wanted, self.models.batch):  # threads look at one batch while the devices make the next
            of = [photos[job.person, _key(job)] for job in batch]
            requests = [Request(photo.image, photo.embedding, job.prompt, job.seed, job.control and job.control.image) for job, photo in zip(batch, of)]
            made = self.models.generate(_filled(requests, self.models.batch))
            for job, photo, image in zip(batch, of, made):
                for hook in self.order.after:
                    image = hook.picture(image, photo.image)
                looking.append(self._pool.submit(self._look, job, image, photo.shown))
            progress(len(batch))
        for future in looking:
            future.result()
        self._judge([job for job in wanted if job.verdict.rejected is None], photos)
        lines: list[dict[str, Any]] = []
        write_chunk(path, self._examples(jobs, photos, lines), lines)
        return sum("reason" not in line for line in lines)

    # Before -----------------------------------------------------------------------------------------

    def _job(self, row: int) -> _Job:
        at, number = divmod(row, self.order.pictures)
        person: Person = self._person(at)
        name = person.name
        job = _Job(row, name, number, {"person": name, "number": number, "at": at}, seed_of(self.order.seed, "noise", name, number))
        if not person.photos:
            job.verdict.rejected = Rejected("no_photo", person.problem)
            return job
        job.photo = person.photos[number % len(person.photos)]
        gender = self.order.genders.get(name) or person.gender or "any"
        pool = _captions(person) if self.order.prompts is None else suiting(self.order.prompts, gender)
        if not pool:
            whose = "people whose gender is known" if gender == "any" else "another gender"
            without = "the photos have no captions" if self.order.prompts is None else f"all prompts are for {whose}"
            job.verdict.rejected = Rejected("no_prompt", without)
            return job
        prompt = deal(pool, self.order.seed, name, number)
        job.prompt = prompt.text
        job.given |= {"photo": job.photo.key, "prompt": job.prompt, "seed": job.seed}
        if controls := self.order.controls:
            job.control = controls[(prompt.number - 1) % len(controls)]
            job.given["control"] = job.control.name
        return job

    def _prepare(self, jobs: Sequence[_Job]) -> dict[tuple[str, str], _Photo]:
        """The photos of all jobs, with their embeddings. Jobs whose photo cannot be used are rejected."""
        images: dict[tuple[str, str], tuple[Record, np.ndarray]] = {}
        crops: dict[tuple[str, str], tuple[np.ndarray, np.ndarray]] = {}  # for the recognisers that condition and that judge
        looks: dict[tuple[str, str], int] = {}
        bad: dict[tuple[str, str], str] = {}
        for job in jobs:
            if job.photo is None or job.verdict.rejected is not None or (name := (job.person, job.photo.key)) in images:
                continue
            record = job.photo
            image = read_picture(record.target, record.key)
            looks[name], crop = perceptual_hash(image), face.align(image, record.target_keypoints)
            changed = crop
            for hook in self.order.before:
                image = hook.picture(image)
            if self.order.before:
                try:
                    changed = face.align(image, face.largest_face(self._detector, image).keypoints)
                except face.NoFaceError as error:
                    bad[name] = f"after {' '.join(hook.name for hook in self.order.before)}: {error}"
            images[name], crops[name] = (record, image), (changed, crop)
        for job in jobs:
            if job.verdict.rejected is None and (problem := bad.get((job.person, _key(job)))):
                job.verdict.rejected = Rejected("no_photo", problem)
        given = self._embed(self.models.recognise, [changed for changed, _ in crops.values()])
        judged = self._embed(self.models.judge, [crop for _, crop in crops.values()])
        return {
            name: _Photo(record, image, embedding, Shown(looks[name], crops[name][1], other))
            for (name, (record, image)), embedding, other in zip(images.items(), given, judged, strict=True)
        }

    def _embed(self, recognise: Callable[[np.ndarray], np.ndarray], crops: Sequence[np.ndarray]) -> list[np.ndarray]:
        batch = self.models.batch
        return [row for part in _cut(crops, batch) for row in np.asarray(recognise(np.stack(_filled(part, batch))), np.float32)[: len(part)]]

    # After ------------------------------------------------------------------------------------------

    @property
    def _detector(self) -> face.Detector:
        if not hasattr(self._local, "detector"):
            self._local.detector = self._load_detector()  # one for each thread
        return self._local.detector

    def _look(self, job: _Job, image: UInt8[np.ndarray, "h w 3"], photo: Shown) -> None:
        job.data = encode_picture(image, self.order.format, self.order.quality)
        job.image = read_picture(job.data, job.person)  # what is stored is what is looked at
        job.verdict = gates.examine(job.image, photo, self._detector, self.order.gates)

    def _judge(self, jobs: Sequence[_Job], photos: Mapping[tuple[str, str], _Photo]) -> None:
        for job, embedding in zip(jobs, self._embed(self.models.judge, [_there(job.verdict.crop) for job in jobs]), strict=True):
            gates.check_similarity(job.verdict, embedding, photos[job.person, _key(job)].shown, self.order.gates)
            for scorer in self.order.scorers:
                if job.verdict.rejected is None:
                    score = job.verdict.scores[scorer.name] = scorer.score(_there(job.image), job.prompt)
                    if score < scorer.least:
                        job.verdict.rejected = Rejected("scored_low", f"{scorer.name} gives {score:g}, less than {scorer.least:g}")

    def _examples(self, jobs: Sequence[_Job], photos: Mapping[tuple[str, str], _Photo], lines: list[dict[str, Any]]) -> Iterator[bytes]:
        """Yields the records that passed, and adds a line for each job."""
        seen: Counter[str] = Counter()
        for job in jobs:
            if (error := job.verdict.rejected) is None:
                record = self._record(job, photos[job.person, _key(job)].record)
                example = encode(record)
                lines.append(kept_line(job.row + 1, record, job.verdict.hash, example, job.given) | {"scores": job.verdict.scores})
                yield example
                continue
            line = {"row": job.row + 1, "reason": error.reason, "detail": str(error), "given": job.given, "scores": job.verdict.scores}
            seen[error.reason] += 1
            if job.image is not None and (job.given["at"] in self.order.shown or seen[error.reason] <= SHOWN):
                line["thumbnail"] = base64.b64encode(encode_picture(thumbnail(job.image, CELL), "jpeg", 85)).decode()
            lines.append(line)

    def _record(self, job: _Job, photo: Record) -> Record:
        found = _there(job.verdict.found)
        return Record(
            key=f"{seed_of(self.order.seed, 'key', job.person, job.number):08x}{seed_of(job.person, job.number, self.order.seed):08x}",
            person=job.person,
            target=job.data,
            target_size=_there(job.image).shape[:2],
            target_keypoints=found.keypoints,
            target_face=found.box,
            identity=photo.target,
            identity_size=photo.target_size,
            identity_keypoints=photo.target_keypoints,
            identity_face=photo.target_face,
            captions=(Caption(job.prompt, SOURCE),),
            synthetic=True,
            scores=job.verdict.scores | {f"identity_{name}": value for name, value in photo.scores.items()},
            provenance={
                **self.order.provenance, "model": self.models.stated, "seed": job.seed, "number": job.number, "identity_key": photo.key,
                **{f"identity_{name}": value for name, value in photo.provenance.items()},
            },
        )  # fmt: skip


def encode_picture(image: UInt8[np.ndarray, "h w 3"], format: str, quality: int) -> bytes:
    """A picture file that says in its metadata that it was made by a model."""
    file = io.BytesIO()
    if format == "png":
        info = PngImagePlugin.PngInfo()
        info.add_itxt("XML:com.adobe.xmp", XMP)
        Image.fromarray(image).save(file, "PNG", pnginfo=info)
    else:
        Image.fromarray(image).save(file, "JPEG", quality=quality, subsampling=0, xmp=XMP.encode())
    return file.getvalue()


def deal(pool: Sequence[Item], seed: int, person: str, number: int) -> Item:
    """The prompt of a person's picture: all of the pool in an order of the person's own, then again."""
    order = np.random.default_rng(seed_of(seed, "prompts", person)).permutation(len(pool))
    return pool[int(order[number % len(pool)])]


def _captions(person: Person) -> list[Prompt]:
    texts = dict.fromkeys(caption.text for photo in person.photos for caption in photo.captions)
    return [Prompt(number, text, "any") for number, text in enumerate(texts, 1)]


def _key(job: _Job) -> str:
    return "" if job.photo is None else job.photo.key


def _there(value: Item | None) -> Item:
    assert value is not None  # of a job that has passed what makes it
    return value


def _cut(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    return (items[at : at + size] for at in range(0, len(items), size))


def _filled(items: Sequence[Item], size: int) -> list[Item]:
    """A last batch that is not full: what is dropped costs less than compiling for another size."""
    return [*items, *[items[-1]] * (size - len(items))]
