"""Pictures of people who do not exist, and small datasets of them."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from infu_jax.assets import ASSETS

FACES = ASSETS / "faces"
SIZES = ((512, 512), (640, 448), (448, 640), (720, 480), (432, 768), (600, 520))  # width, height


def portrait(person: int, picture: int, size: tuple[int, int] | None = None) -> np.ndarray:
    """A picture of one of six people: size, place, light and background change with its number, the face does not. RGB uint8.

    Person 3 to 5 are mirrored and tinted copies of the committed faces, person 0 to 2.
    """
    rng = np.random.default_rng([person, picture])
    name = ("ada", "bo", "cy")[person % 3]
    face = np.asarray(Image.open(FACES / f"{name}.png").convert("RGB")).astype(np.float32)
    if person >= 3:
        face = face[:, ::-1] * (0.8, 0.95, 1.1)
    width, height = size or SIZES[(person + picture) % len(SIZES)]
    side = round(min(width, height) * rng.uniform(0.75, 1.0))
    face = cv2.resize(face, (side, side), interpolation=cv2.INTER_AREA)
    canvas = cv2.resize(rng.uniform(40, 220, (3, 3, 3)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    left, top = round(rng.uniform(0, width - side)), round(rng.uniform(0, height - side))
    # The face's picture fades into the background at its sides.
    ramp = np.clip(np.minimum(np.arange(side), np.arange(side)[::-1]) / (0.08 * side), 0, 1)
    mask = (ramp[None] * ramp[:, None])[..., None]
    canvas[top : top + side, left : left + side] += mask * (face - canvas[top : top + side, left : left + side])
    return np.clip(canvas * rng.uniform(0.85, 1.15), 0, 255).astype(np.uint8)


def draw_folder(folder: Path, people: int = 6, first: int = 0) -> Path:
    """A folder of a folder for each person, 2 to 4 pictures in each: JPEG, PNG and WebP, most with a caption beside them."""
    for person in range(people):
        (folder / f"person{person}").mkdir(parents=True)
        for picture in range(first, first + 2 + person % 3):
            path = folder / f"person{person}" / f"{picture}{('.jpg', '.png', '.webp')[picture % 3]}"
            Image.fromarray(portrait(person, picture)).save(path, quality=92)
            if picture != 1:
                path.with_suffix(".txt").write_text(f"portrait {picture} of person {person}\n")
    return folder


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """Six people, 18 pictures."""
    return draw_folder(tmp_path_factory.mktemp("source") / "people")


@pytest.fixture(scope="session")
def dataset(pictures, tmp_path_factory) -> Path:
    """A dataset of `pictures`: five people in train, one in validation."""
    from data_pipeline import spms
    from data_pipeline.records import Caption, Record, encode
    from infu_jax.face import YuNetDetector, largest_face, read_image

    work, detector, splits = tmp_path_factory.mktemp("dataset"), YuNetDetector(), {}
    for split, people in (("train", range(5)), ("validation", range(5, 6))):
        made = []
        for person in people:
            for path in sorted(p for p in (pictures / f"person{person}").iterdir() if p.suffix != ".txt"):
                image = read_image(path)
                face, text = largest_face(detector, image), path.with_suffix(".txt")
                captions = (Caption(text.read_text().strip(), "text"),) if text.exists() else ()
                target = path.read_bytes()
                made.append(
                    Record(f"person{person}-{path.stem}", f"person{person}", target, image.shape[:2], face.keypoints, face.box, captions=captions)
                )  # fmt: skip
        numbers = np.unique([record.person for record in made], return_inverse=True)[1]
        shard = spms.write_shard(work / split, map(encode, made))
        splits[split] = spms.Split(
            [shard], numbers, np.array([r.target_size for r in made]), np.zeros(len(made), int), np.array([len(r.captions) for r in made])
        )
    return spms.assemble(work / "assembled", splits).rename(work / "people")


@pytest.fixture(scope="session")
def pairs_dataset(tmp_path_factory) -> Path:
    """A dataset with all that records may have: no caption to three, two sources, synthetic pictures, inline identities, scores.

    Three people with 5, 4 and 3 pictures in train, one with 2 in validation, sides of 96 to 240. Captions look like markup.
    """
    from data_pipeline import spms
    from data_pipeline.records import Caption, Record, encode
    from infu_jax.face import YuNetDetector, largest_face

    def photo(person: int, number: int, size: tuple[int, int]):
        data = cv2.imencode(".png", portrait(person, number, size)[..., ::-1])[1].tobytes()
        found = largest_face(detector, portrait(person, number, size))
        return data, size[::-1], found.keypoints, found.box

    work, detector, splits = tmp_path_factory.mktemp("pairs"), YuNetDetector(), {}
    for split, people in (("train", {0: 5, 1: 4, 2: 3}), ("validation", {3: 2})):
        made = []
        for person, pictures in people.items():
            for number in range(pictures):
                captions = tuple(Caption(f'<script>alert({person})</script> & "{number}" {n}', ("user", "model")[n % 2]) for n in range((person + number) % 4))
                inline = photo(person, 50 + number, (128, 128)) if number == 1 else ()
                target = photo(person, number, ((160, 160), (144, 216), (240, 152))[number % 3])
                scores = {"detector": 0.9, "sharpness": 10.0 * number}
                made.append(Record(f"{person}-{number}", f"person{person}", *target, *inline, captions=captions, synthetic=number == 2, scores=scores))
        shards = [spms.write_shard(work / f"{split}{n}", map(encode, part)) for n, part in enumerate((made[: len(made) // 2], made[len(made) // 2 :]))]
        splits[split] = spms.Split(
            shards,
            np.unique([record.person for record in made], return_inverse=True)[1],
            np.array([record.target_size for record in made]),
            np.array([record.synthetic + 2 * bool(record.identity) for record in made]),
            np.array([len(record.captions) for record in made]),
        )
    return spms.assemble(work / "assembled", splits).rename(work / "people")
