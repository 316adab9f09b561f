"""Poses of the average head exactly, those of drawn people nearly."""

import numpy as np
import pytest

from data_pipeline import people
from infu_jax.face import ARCFACE_POINTS
from infu_jax.pose import MODEL, head_pose, mouth_width


def turned(yaw, pitch, roll, points=MODEL):
    """(5, 2): a head seen from afar."""
    y, p, r = np.radians([yaw, pitch, roll])
    about_y = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    about_x = np.array([[1, 0, 0], [0, np.cos(p), np.sin(p)], [0, -np.sin(p), np.cos(p)]])
    about_z = np.array([[np.cos(r), -np.sin(r), 0], [np.sin(r), np.cos(r), 0], [0, 0, 1]])
    return (points @ (about_z @ about_x @ about_y).T)[:, :2]


@pytest.mark.parametrize("angles", [(0, 0, 0), (25, 0, 0), (0, 15, 0), (0, 0, -30), (-40, 10, 20), (60, -20, 5)])
def test_the_average_head(angles):
    points = turned(*angles)
    np.testing.assert_allclose(head_pose((3.7 * points + [50, 90])[None]), [angles], atol=1e-9)  # of any size, anywhere
    assert mouth_width(points[None])[0] == pytest.approx(mouth_width(MODEL[None, :, :2])[0])


def test_signs_are_those_of_the_picture():
    nose = turned(20, 0, 0)[2] - turned(20, 0, 0)[:2].mean(0)
    assert nose[0] > 0  # yaw: to the viewer's right
    assert (turned(0, 15, 0)[2] - turned(0, 15, 0).mean(0))[1] > (MODEL[2] - MODEL.mean(0))[1]  # pitch: down
    left, right = turned(0, 0, 10)[:2]
    assert right[1] > left[1]  # roll: clockwise


def test_the_face_that_arcface_wants_looks_at_the_viewer():
    assert np.abs(head_pose(ARCFACE_POINTS[None])).max() < 1


def test_no_face_and_no_size():
    points = np.stack([np.full((5, 2), np.nan), np.full((5, 2), 7.0), turned(5, 6, 7)])
    pose = head_pose(points)
    assert np.isnan(pose[:2]).all() and np.isfinite(pose[2]).all()
    np.testing.assert_array_equal(np.isfinite(mouth_width(points)), [False, False, True])


def test_a_wider_mouth():
    smile = MODEL.copy()
    smile[3:, 0] *= 1.2
    for angles in ((0, 0, 0), (30, -10, 15)):
        assert mouth_width(turned(*angles, smile)[None])[0] / mouth_width(turned(*angles)[None])[0] == pytest.approx(1.2)


def test_drawn_people():
    """Heads of every shape: yaw and roll are read well, pitch less so, as documented; a smile is wider than a straight face."""
    shown = [(people.person(n), people.picture(n, k)) for n in range(40) for k in range(4)]
    points = np.stack([people.keypoints(*each) for each in shown])
    true = np.array([(picture.yaw, picture.pitch, picture.roll) for _, picture in shown])
    found = head_pose(points)
    yaw, pitch, roll = (np.corrcoef(true[:, n], found[:, n])[0, 1] for n in range(3))
    assert yaw > 0.98 and pitch > 0.8 and roll > 0.98
    assert (np.abs(found - true).mean(axis=0) < (2, 6, 1)).all()
    mirrored = (-1, 1) * points[:, [1, 0, 2, 4, 3]]
    np.testing.assert_allclose(head_pose(mirrored.astype(np.float32)), found * (-1, 1, -1), atol=1e-3)
    width = mouth_width(points)
    happy = np.array([picture.expression in ("smiling", "laughing") for _, picture in shown])
    assert width[happy].mean() > 1.1 * width[~happy].mean()
