"""The embedded models: whole, small, and trained, on people that they have not seen."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipeline import people
from data_pipeline.people.attributes import rgb
from infu_jax import checkpoint, demo, face
from infu_jax.assets import ASSETS, TINY, TINY_SAMPLING
from infu_jax.convert import source
from infu_jax.inspection import describe
from infu_jax.pipeline import InfUPipeline

STRANGERS = range(930_000, 930_012)  # in no folder of examples/tiny_world/sizes.py
PHOTOS = {name: face.read_image(ASSETS / "faces" / f"{name}.png") for name in demo.people()}


@pytest.fixture(scope="module")
def trained():
    return InfUPipeline.load(TINY / "FLUX.1-tiny", TINY / "InfiniteYou-tiny")


@pytest.fixture(scope="module")
def arcface():
    return checkpoint.load_model(TINY / "InfiniteYou-tiny", "arcface", dtype=jnp.float32)


@functools.cache
def shown(person: int, number: int) -> people.Rendered:
    return people.render(people.person(person), people.picture(person, number, "clean", ("close-up", "portrait")), 128, 128)


def test_size():
    assert 1e6 < sum(path.stat().st_size for path in ASSETS.rglob("*") if path.is_file()) < 20e6


def test_it_says_where_it_comes_from():
    told = json.loads((TINY / "provenance.json").read_text("utf-8"))
    assert told["command"] == "python -m examples.tiny_world" and "no photograph" in told["data"]
    assert min(told["steps"][name] for name in ("autoencoder", "recogniser", "base", "stage1")) > 500


def test_every_model_is_whole():
    """As the command line says it, and with numbers that can hide nothing: no matrix is near zero or constant.

    Nor is a vector of a trained model. (Those of the text encoders are as they were drawn: biases 0, scales 1. Softmax hardly moves biases of keys.)
    """
    found = [place for model in source.PLACES for folder in TINY.iterdir() for name in source.PLACES[model] if (place := folder / name).exists()]
    assert len(found) == len(source.PLACES)
    for place in found:
        assert describe(place)[1], describe(place)
        opened = source.open_source(place)
        for key, x in opened.tensors.items():
            if not np.issubdtype(x.dtype, np.integer) and x.size > 1 and (x.ndim > 1 or "text_encoder" not in place.name):
                assert np.float32(x).std() > (1e-3 if x.ndim > 1 else 1e-5), (place, key)


def embeddings(arcface, images, drawn) -> np.ndarray:
    """Of faces where they were drawn, at length 1."""
    crops = np.stack([face.align(image, each.keypoints) for image, each in zip(images, drawn)])
    return np.asarray(jax.jit(lambda m, x: m(x))(arcface, face.arcface_input(crops)))


def test_the_autoencoder_gives_pictures_back(arcface):
    """Sharp, and with the same faces."""
    vae = checkpoint.load_model(TINY / "FLUX.1-tiny", "autoencoder", dtype=jnp.float32)
    drawn = [shown(person, 0) for person in STRANGERS[:6]]
    images = np.stack([each.image for each in drawn])
    made = np.asarray(jax.jit(lambda vae, x: vae.decoder(vae.moments(x)[0]))(vae, jnp.asarray(images) / 127.5 - 1))
    again = ((made.clip(-1, 1) + 1) * 127.5).round().astype(np.uint8)
    psnr = 10 * np.log10(255**2 / ((again.astype(float) - images) ** 2).mean((1, 2, 3)))
    assert psnr.mean() > 27  # 27.7
    alike = (embeddings(arcface, again, drawn) * embeddings(arcface, images, drawn)).sum(1)
    assert alike.mean() > 0.85  # 0.89; blurred with a sigma of 2 pixels, which has the same PSNR, they have 0.80
    edges = lambda x: np.abs(np.diff(x.astype(float), axis=2)).mean()  # noqa: E731
    assert 0.85 < edges(again) / edges(images) < 1.25  # 1.08; blurred with 0.58


def test_the_recogniser_tells_strangers_apart(arcface):
    drawn = [shown(person, k) for k in (0, 1) for person in STRANGERS]
    first, second = np.split(embeddings(arcface, [each.image for each in drawn], drawn), 2)
    alike = first @ second.T
    same, other = np.diag(alike), alike[~np.eye(len(alike), dtype=bool)]
    assert same.mean() > other.mean() + 0.3
    assert (alike.argmax(1) == np.arange(len(alike))).mean() >= 0.5  # chance 1 in 12


def test_clothes_have_the_colour_that_the_prompt_names(trained):
    colours = ("red", "green", "blue", "yellow")
    prompts = [f"A woman wearing a {colour} sweater, in a park in autumn, portrait." for colour in colours]
    made = trained(prompts, id_embedding=trained.embed_face(PHOTOS["ada"]), num_images=2, seeds=3, settings=TINY_SAMPLING)
    direction = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
    painted = made.images[:, 112:, 44:84].mean((1, 2))  # below the face
    named = np.stack([rgb(colour) for colour in colours])
    assert list((direction(painted) @ direction(named).T).argmax(1)) == [0, 0, 1, 1, 2, 2, 3, 3], painted.round()


def test_it_paints_the_person_of_the_photo(trained):
    """Three strangers in the demo's scenes: most pictures have a face, which is more like the stranger's own photo than like the others'."""
    photos = {name: trained.embed_face(photo) for name, photo in PHOTOS.items()}
    own, others, nearest = [], [], []
    for n, (name, gender) in enumerate(demo.people().items()):
        for image in demo.paint(trained, photos[name], gender, seed=n + 1).images:
            alike = {other: trained.similarity(image, embedding) for other, embedding in photos.items()}
            if None not in alike.values():
                nearest.append(max(alike, key=alike.get) == name)
                own.append(alike.pop(name))
                others.extend(alike.values())
    assert len(own) >= 10, "a face is found in most of 12 pictures"
    assert np.mean(own) > np.mean(others) + 0.2  # 0.63 and -0.01; two drawings of one person have 0.61
    assert sum(nearest) >= 10, "most pictures are nearest to their own photo"  # 11 of 12
