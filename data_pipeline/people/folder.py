"""The files of one drawn person, as worker processes write them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

LICENCE = "Apache-2.0, drawn by infu_jax"


@dataclass(frozen=True)
class Job:
    folder: Path
    person: int
    first_picture: int
    pictures: int
    height: int
    width: int
    look: str
    shots: tuple[str, ...]
    captions: int
    synthetic: bool
    format: str


def draw_person(job: Job) -> list[dict[str, Any]]:
    """Draws all pictures of one person into a folder of their own; gives the rows of the manifest."""
    import cv2
    from PIL import Image

    from data_pipeline import people

    cv2.setNumThreads(1)  # the processes share the cores already
    who = people.person(job.person)
    name = f"{job.person:06d}"
    (job.folder / name).mkdir()
    rows = []
    for k in range(job.first_picture, job.first_picture + job.pictures):
        picture = people.picture(job.person, k, job.look, job.shots)
        shown = people.render(who, picture, job.height, job.width)
        path = f"{name}/{k:04d}.{job.format}"
        Image.fromarray(shown.image).save(job.folder / path, **({"quality": 95, "subsampling": 0} if job.format == "jpg" else {}))
        sentences = [{"text": text, "source": "grammar"} for text in people.captions(who, picture, job.captions)]
        row = {
            "image": path,
            "person": name,
            "captions": sentences,
            "synthetic": job.synthetic,
            "keypoints": shown.keypoints.round(3).tolist(),
            "licence": LICENCE,
        }
        rows.append(row | {"attributes": shown.attributes})
    return rows
