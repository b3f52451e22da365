"""Where the parts of a photo lie in a view of it, and which of them are still there.

The rule for parts at a border: a part that keeps less than ``min_visible`` of its area (a line: of its length) is
dropped, the others are cut to the canvas. A part is measured by its own outline: a turned ``bbox_2d`` by its four
turned corners, of which the new ``bbox_2d`` is the enclosing box. That box is larger than the part was; the more so,
the further it is turned.

Points go through bbu.geometry's affine maps, in which a photo reaches from 0 to its width. torchvision's own map of
KeyPoints takes points for middles of pixels (a flip sends x to width - 1 - x), and its map of boxes would let a part
that has left the canvas come back as a sliver at the border.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from bbu.geometry import (
    IDENTITY,
    Affine,
    clip_line,
    clip_polygon,
    enclosing_box,
    line_length,
    polygon_area,
    segments_inside,
    transform_points,
)
from bbu.records import BOUNDS_TOLERANCE, ObjectRow

Size = tuple[int, int]  # width, height in pixels
_CORNERS = [0, 1, 2, 1, 2, 3, 0, 3]  # of an xyxy box, around it


def place_parts(
    items: Iterable[ObjectRow], affine: Affine, size: Size, min_visible: float, corner: tuple[int, int] = (0, 0)
) -> tuple[ObjectRow, ...]:
    """The parts that stay, in the order given.

    Args:
        affine: pixels of the photo → pixels of the canvas.
        size: of the canvas.
        min_visible: share of a part, in [0, 1], that has to be left; one of which nothing is left is always dropped.
        corner: where the canvas lies in a larger one, whose pixels are returned.
    """
    kept = []
    for item in items:
        points, share = _cut(item.kind, _outline(item, affine), size)
        if share > 0 and share >= min_visible:
            kept.append(_with_points(item, points + corner))
    return tuple(kept)


def share_inside(item: ObjectRow, corner: tuple[int, int], size: Size) -> float:
    """Share of a part's area (length) that lies in the window of that top-left corner and size."""
    return _cut(item.kind, _outline(item, IDENTITY) - corner, size)[1]


def _outline(item: ObjectRow, affine: Affine) -> np.ndarray:
    """(n, 2) points of a part on the canvas; a box has its four corners."""
    flat = np.asarray(item.points, dtype=np.float64)
    if item.kind == "bbox_2d":
        flat = flat[_CORNERS]
    return transform_points(flat.reshape(-1, 2), affine)


def _cut(kind: str, points: np.ndarray, size: Size) -> tuple[np.ndarray, float]:
    """What is left of an outline inside the canvas, and its share of the whole in [0, 1].

    The half pixel that records may lie outside is no loss.
    """
    if (points >= -BOUNDS_TOLERANCE).all() and (points <= np.array(size) + BOUNDS_TOLERANCE).all():
        return points.clip(0, size), 1.0
    if kind == "line":
        whole = line_length(points)
        cut, ends = clip_line(points, *size), segments_inside(points, *size)
        left = float(np.linalg.norm(ends[:, 1] - ends[:, 0], axis=1).sum())
    else:
        whole, cut = polygon_area(points), clip_polygon(points, *size)
        left = polygon_area(cut) if len(cut) else 0.0
    return cut.clip(0, size), left / whole if whole > 0 else 0.0


def _with_points(item: ObjectRow, points: np.ndarray) -> ObjectRow:
    flat = enclosing_box(points) if item.kind == "bbox_2d" else tuple(float(value) for value in points.ravel())
    return ObjectRow(item.desc, item.kind, flat)
