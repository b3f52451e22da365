"""Tell YOLO's polygons from boxes with key points: a row of numbers can be both, and only data.yaml says which."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

import numpy as np

NEAR = 0.02  # of the photo, by which a key point may lie outside its box, or a corner off a turned box
MOST_ROWS = 2000  # that are looked at


def pose_rows(rows: Iterable[tuple[str, list[float]]]) -> str | None:
    """Why rows may be poses, and the way out; None if there are none, or one of them is no pose.

    Poses all have equally many numbers: a box inside the photo, and key points (x, y, or x, y, visibility) in it or at
    (0, 0). Rows of eight numbers that are the corners of a turned box are no poses.

    Args:
        rows: (place, numbers after the class) of every row.
    """
    first, count = "", 0
    for place, numbers in islice(rows, MOST_ROWS):
        first, count = first or place, count or len(numbers)
        if len(numbers) != count or not any(_is_pose(numbers, size) for size in (2, 3)):
            return None
    if not count:
        return None
    return (
        f"is missing: all rows, the first in {first}, read as boxes with key points (pose) and as polygons; write "
        f"kpt_shape: [points, 2 or 3] into data.yaml to take the boxes, or task: segment to take the polygons"
    )


def _is_pose(numbers: list[float], size: int) -> bool:
    """Whether numbers read as a box and key points of ``size`` numbers each."""
    if len(numbers) < 6 or len(numbers) % 2 or (len(numbers) - 4) % size:
        return False
    if len(numbers) == 8 and _is_turned_box(np.reshape(numbers, (4, 2))):
        return False
    centre, half = np.array(numbers[:2]), np.array(numbers[2:4]) / 2
    points = np.reshape(numbers[4:], (-1, size))
    if size == 3 and not np.isin(points[:, 2], (0, 1, 2)).all():
        return False
    inside = (np.abs(points[:, :2] - centre) <= half + NEAR).all(axis=1) | (points[:, :2] == 0).all(axis=1)
    box_in_photo = (half > 0).all() and (centre - half >= -NEAR).all() and (centre + half <= 1 + NEAR).all()
    return bool(inside.all() and box_in_photo)


def _is_turned_box(corners: np.ndarray) -> bool:
    """Whether four corners form a parallelogram, as those of a box do also in shares of a photo that is not square."""
    return bool(np.abs(corners[0] + corners[2] - corners[1] - corners[3]).max() <= NEAR)
