"""A stand-in for the pipeline: it knows the people in the photos, and paints what the prompt says, good pictures and bad ones.

Each of the test's people has a colour of their own, by which the stand-in recogniser tells them apart. Run as a program it is
`python -m data_pipeline.synthesize` with these models; KILL=n kills it within batch n.
"""

import functools
import os
import signal
import sys
from dataclasses import replace

import cv2
import numpy as np

from data_pipeline import people
from data_pipeline.duplicates import perceptual_hash
from data_pipeline.studio import Models
from infu_jax.face import Face, YuNetDetector

SIDE = 256
TINTS = np.array([[1.3, 0.75, 0.75], [0.75, 1.25, 0.75], [0.75, 0.85, 1.4]])
PEOPLE = {0: "ros\u00e9", 1: "green", 11: "blue"}
PHOTOS = 2
FATES = {
    "a portrait": None,
    "a picture in the park": None,
    "nobody": "no_face",
    "a couple": "several_faces",
    "in thick fog": "face_unsure",
    "at the edge": "face_cut",
    "far away": "face_too_small",
    "in fog": "blurred",
    "turned away": "turned",
    "the photo": "copy",
    "the photo's face": "copy",
    "a stranger": "unlike",
    "in the mirror": "too_like",
    "an ugly one": "scored_low",
    "again": None,
    "again and again": "duplicate",
}
"""Of each prompt."""


@functools.cache
def draw(person: int, number: int, **given) -> np.ndarray:
    """A person's picture, easy to look at unless `given` says otherwise. Not to be written to."""
    picture = people.picture(person, number)
    easy = dict(yaw=picture.yaw / 4, pitch=picture.pitch / 4, roll=picture.roll / 3, headwear="none", glasses="none", light="soft", shot="portrait")
    image = people.render(people.person(person), replace(picture, **{**easy, **given}), SIDE, SIDE).image
    grey = image.astype(np.float32).mean(axis=2, keepdims=True)
    image = np.clip((0.4 * image + 0.6 * grey) * TINTS[person % 3], 0, 255).astype(np.uint8)
    image.flags.writeable = False
    return image


def photo(person: int, number: int) -> np.ndarray:
    return draw(person, number, yaw=0.0, roll=0.0, light="from the left")


def recognise(crops: np.ndarray) -> np.ndarray:
    """Mostly colour, a little of the face's shape, the same for a mirrored face."""
    rows = []
    for crop in crops:
        both = crop.astype(np.float32) + crop[:, ::-1]
        colour = both[30:90, 20:92].mean(axis=(0, 1))
        shape = cv2.resize(both.mean(axis=2), (8, 8), interpolation=cv2.INTER_AREA).ravel()
        colour, shape = colour - colour.mean(), shape - shape.mean()
        rows.append(np.concatenate([colour / np.linalg.norm(colour), 0.6 * shape / np.linalg.norm(shape)]))
    return np.stack(rows).astype(np.float32)


def middle(image: np.ndarray, width: int, height: int, scale: float, seed: int) -> np.ndarray:
    """A picture, scaled, on a wall of another size."""
    wall = np.random.default_rng(seed).uniform(40, 220, (3, 3, 3)).astype(np.float32)
    wall = cv2.resize(wall, (width, height), interpolation=cv2.INTER_CUBIC).clip(0, 255).astype(np.uint8)
    small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    h, w = small.shape[:2]
    wall[height - h :, (width - w) // 2 : (width - w) // 2 + w] = small
    return wall


def paint(prompt: str, person: int, seed: int, original: np.ndarray) -> np.ndarray:
    number = 10 + seed % 500
    match prompt:
        case "nobody":
            return cv2.resize(np.random.default_rng(seed).integers(0, 255, (8, 8, 3), np.uint8), (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
        case "a couple":
            return np.concatenate([draw(person, number), draw(person + 3, number)], axis=1)
        case "in thick fog":
            image = draw(person, number)
            for sigma in np.arange(3, 15, 0.1):  # until the face is hardly found
                fogged = cv2.GaussianBlur(image, (0, 0), sigma)
                if look(fogged).score < 0.775:
                    return fogged
            raise AssertionError("no fog is thick enough")
        case "at the edge":
            image = cv2.resize(draw(person, number, shot="close-up"), None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)
            eye = round(float(look(image).keypoints[0, 0]))
            for cut in range(eye - 10, eye + 60, 2):
                found = look(np.ascontiguousarray(image[:, cut:]))
                if found.keypoints[0, 0] < 0 and found.score > 0.81:
                    break
            return np.ascontiguousarray(image[:, cut:])
        case "far away":
            return middle(draw(person, number), 2 * SIDE, 2 * SIDE, 0.42, seed)
        case "in fog":
            return cv2.GaussianBlur(draw(person, number), (0, 0), 3)
        case "turned away":
            return draw(person, number, yaw=44.0, shot="close-up")
        case "the photo":
            return np.clip(original * 0.9 + 8, 0, 255).astype(np.uint8)
        case "the photo's face":
            return middle(original, 2 * SIDE, 2 * SIDE, 0.95, seed)
        case "a stranger":
            return draw(person + 1, number)
        case "in the mirror":
            return np.ascontiguousarray(original[:, ::-1])
        case "an ugly one":
            return draw(person, 9)
        case "again" | "again and again":
            return draw(person, 8)
    return draw(person, number)


def look(image: np.ndarray):
    """The largest face; a sure one at the origin where there is none."""
    found = YuNetDetector().detect(image)
    return found[0] if found else Face(np.zeros(4, np.float32), np.zeros((5, 2), np.float32), 1.0)


def beauty(picture: np.ndarray, prompt: str) -> float:
    """A scorer."""
    assert picture.dtype == np.uint8 and picture.ndim == 3
    return 1.0 if prompt == "an ugly one" else 6.0


def open_models(args) -> Models:
    who = {perceptual_hash(photo(person, k)): person for person in PEOPLE for k in range(PHOTOS)}
    batches, kill = 0, int(os.environ.get("KILL", 0))

    def generate(requests):
        nonlocal batches
        batches += 1
        if batches == kill:
            os.kill(os.getpid(), signal.SIGKILL)
        assert len(requests) == 4
        painted = {}
        for n, request in enumerate(requests):
            assert request.embedding.dtype == np.float32 and request.photo.dtype == np.uint8
            nearest = min(who, key=lambda known: (known ^ perceptual_hash(request.photo)).bit_count())
            key = request.prompt, who[nearest], request.seed
            painted[n] = painted[next(k for k in painted if keys[k] == key)] if n and key in keys else paint(*key, request.photo)
            keys[n:] = [key]
        keys.clear()
        return [painted[n] for n in range(len(requests))]

    keys: list = []
    return Models(generate, recognise, recognise, 4, {"infu": "drawn", "weights": {}})


if __name__ == "__main__":
    import tyro

    from data_pipeline import synthesize
    from infu_jax.cli import run

    sys.argv[0] = "synthesize"
    run(lambda: synthesize.synthesize(tyro.cli(synthesize.Args), open_models))
