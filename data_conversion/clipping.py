"""Cut boxes, polygons and lines to the image. Points are (n, 2) displayed pixels."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

PARALLEL = 1e-9  # pixels a segment moves along an axis; less is none, and dividing by it would overflow


def clip_box(box: np.ndarray, width: int, height: int) -> np.ndarray:
    """(4,) xyxy cut to the image; no area is left when it lay outside."""
    clipped: np.ndarray = np.clip(box, 0, [width, height, width, height])
    return clipped


def clip_polygon(points: np.ndarray, width: int, height: int) -> np.ndarray:
    """(n, 2) ring cut to the image, side by side (Sutherland and Hodgman 1974); (0, 2) when outside."""
    for axis, limit, sign in ((0, 0, 1), (0, width, -1), (1, 0, 1), (1, height, -1)):
        inside = sign * (points[:, axis] - limit)  # distance from the image's side, pixels, negative outside
        kept: list[np.ndarray] = []
        for index in range(len(points)):
            before = index - 1
            if (inside[before] < 0) != (inside[index] < 0):
                share = inside[before] / (inside[before] - inside[index])
                kept.append(points[before] + share * (points[index] - points[before]))
            if inside[index] >= 0:
                kept.append(points[index])
        points = np.array(kept).reshape(-1, 2)
    return points


def clip_line(points: np.ndarray, width: int, height: int) -> np.ndarray:
    """(n, 2) polyline cut to the image, segment by segment; (0, 2) when outside.

    A line that leaves the image and comes back is joined straight between the two places.
    """
    kept: list[np.ndarray] = []
    for start, end in pairwise(points):
        span = _inside_span(start, end, np.array([width, height], dtype=np.float64))
        if span is not None:
            for point in (start + share * (end - start) for share in span):
                if not kept or not np.array_equal(kept[-1], point):
                    kept.append(point)
    return np.array(kept).reshape(-1, 2)


def _inside_span(start: np.ndarray, end: np.ndarray, limit: np.ndarray) -> tuple[float, float] | None:
    """Part of a segment inside [0, limit], as shares of its length (Liang and Barsky 1984)."""
    low, high = 0.0, 1.0
    for axis in (0, 1):
        step = end[axis] - start[axis]
        if abs(step) < PARALLEL:
            if not 0 <= start[axis] <= limit[axis]:
                return None
            continue
        shares = sorted((-start[axis] / step, (limit[axis] - start[axis]) / step))
        low, high = max(low, shares[0]), min(high, shares[1])
    return (low, high) if low <= high else None


def polygon_area(points: np.ndarray) -> float:
    """Area of an (n, 2) ring in square pixels (shoelace rule)."""
    x, y = points[:, 0], points[:, 1]
    return abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) / 2


def line_length(points: np.ndarray) -> float:
    """Length of an (n, 2) polyline in pixels."""
    return float(np.linalg.norm(np.diff(points, axis=0), axis=1).sum())
