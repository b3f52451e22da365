"""Where the objects of a photo lie in a view of it, and which of them remain.

Rule for objects at a border: an object that keeps less than ``min_visible`` of its area (a line: of its length) is
dropped; the others are clipped to the canvas. Visibility is measured on the object's own outline, for a rotated
``bbox_2d`` on its four rotated corners. Its new ``bbox_2d`` encloses these corners, so it grows with the angle. A line
that leaves the canvas and comes back keeps its longest piece: the number of objects may not grow, since packs are
planned with it.

Points go through bbu.geometry's affine maps, in which a photo spans 0 to its width. torchvision's KeyPoints are pixel
centres (a flip sends x to width - 1 - x), and its transform of boxes would let an object that has left the canvas come
back as a sliver at the border.
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
    longest_piece,
    polygon_area,
    transform_points,
)
from bbu.records import BOUNDS_TOLERANCE, ObjectRow

Size = tuple[int, int]  # width, height in pixels
_CORNERS = [0, 1, 2, 1, 2, 3, 0, 3]  # of an xyxy box, around it


def place_objects(
    items: Iterable[ObjectRow], affine: Affine, size: Size, min_visible: float, corner: tuple[int, int] = (0, 0)
) -> tuple[ObjectRow, ...]:
    """The objects that remain in a view, in the given order.

    Args:
        affine: pixels of the photo → pixels of the canvas.
        size: of the canvas, in pixels.
        min_visible: least fraction of an object, in [0, 1], that must remain; one with nothing left is always dropped.
        corner: offset of the canvas in a larger one; results are in pixels of the larger one.
    """
    kept = []
    for item in items:
        points, visible = _clip(item.kind, _outline(item, affine), size)
        if visible > 0 and visible >= min_visible:
            kept.append(_with_points(item, points + corner))
    return tuple(kept)


def share_inside(item: ObjectRow, corner: tuple[int, int], size: Size) -> float:
    """Fraction of an object's area (a line: length) inside the window with this top-left corner and size."""
    return _clip(item.kind, _outline(item, IDENTITY) - corner, size)[1]


def _outline(item: ObjectRow, affine: Affine) -> np.ndarray:
    """(n, 2) outline of an object on the canvas; a box gives its four corners."""
    flat = np.asarray(item.points, dtype=np.float64)
    if item.kind == "bbox_2d":
        flat = flat[_CORNERS]
    return transform_points(flat.reshape(-1, 2), affine)


def _clip(kind: str, points: np.ndarray, size: Size) -> tuple[np.ndarray, float]:
    """An outline clipped to the canvas, and the fraction that remains, in [0, 1].

    The half pixel by which records may lie outside does not count as a loss.
    """
    if (points >= -BOUNDS_TOLERANCE).all() and (points <= np.array(size) + BOUNDS_TOLERANCE).all():
        return points.clip(0, size), 1.0
    if kind == "line":
        pieces = clip_line(points, *size)
        whole, cut, left = line_length(points), longest_piece(pieces), sum(map(line_length, pieces))
    else:
        whole, cut = polygon_area(points), clip_polygon(points, *size)
        left = polygon_area(cut) if len(cut) else 0.0
    return cut.clip(0, size), left / whole if whole > 0 else 0.0


def _with_points(item: ObjectRow, points: np.ndarray) -> ObjectRow:
    flat = enclosing_box(points) if item.kind == "bbox_2d" else tuple(float(value) for value in points.ravel())
    return ObjectRow(item.desc, item.kind, flat)
