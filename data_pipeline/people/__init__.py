"""Drawn people: endless identities and pictures of them, with exact labels and no photograph.

    from data_pipeline import people
    ada = people.person(7)
    shown = people.render(ada, people.picture(7, 0), height=512, width=512)   # .image .keypoints .caption .attributes

Everything is a function of the numbers of person and picture. `python -m data_pipeline.people --help` writes folders of pictures.
"""

from data_pipeline.people.attributes import Picture, picture
from data_pipeline.people.grammar import captions
from data_pipeline.people.identity import Person, person
from data_pipeline.people.render import Rendered, keypoints, render

__all__ = ["Person", "Picture", "Rendered", "captions", "keypoints", "person", "picture", "render"]
