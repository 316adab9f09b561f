"""How a head is turned, from the five points of its face alone."""

import numpy as np
from jaxtyping import Float32

# An average face, in distances between its eyes. Heights are those of ArcFace's template.
MOUTH = 1.15  # the line of the mouth below that of the eyes
NOSE = 0.495  # the tip of the nose below the eyes, as a share of MOUTH
DEPTH = 0.6  # the tip before the plane through eyes and corners of the mouth: some 38 mm where eyes are 63 mm apart


def pose(keypoints: Float32[np.ndarray, "5 2"]) -> tuple[float, float, float]:
    """(yaw, pitch, roll) in degrees of a face with these points (x, y), in ArcFace's order, seen from afar.

    yaw: to the viewer's right; pitch: downwards; roll: clockwise; all about 0 for a face that looks at the viewer. Roll is the direction of
    eyes and mouth. Yaw and pitch are how far the tip of the nose has moved before the plane of the others; noses differ, so that both are
    uncertain by some 5 degrees. On drawn people, whose turn is known, they are off by 2 (yaw), 6 (pitch) and 2 (roll) degrees on average.
    """
    points = keypoints.astype(np.float64)
    across = points[1] - points[0] + points[4] - points[3]
    roll = np.arctan2(across[1], across[0])
    upright = np.array([[np.cos(roll), np.sin(roll)], [-np.sin(roll), np.cos(roll)]])
    left, right, nose, *corners = points @ upright.T
    eyes, mouth = (left + right) / 2, np.mean(corners, axis=0)
    height, width = max(mouth[1] - eyes[1], 1e-6), max(right[0] - left[0], 1e-6)
    down = (nose[1] - eyes[1]) / height
    aside = nose[0] - (eyes[0] + (mouth[0] - eyes[0]) * down)
    yaw, pitch = np.arctan(aside / width / DEPTH), np.arctan((down - NOSE) * MOUTH / DEPTH)
    return float(np.degrees(yaw)), float(np.degrees(pitch)), float(np.degrees(roll))
