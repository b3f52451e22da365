"""Box formats, and the maps between the pixels of a file, those of the model and [0, 1]. They are known only here.

Formats: ``xyxy`` = corners, used outside the model; ``cxcywh`` = centre and size, used inside it.
Functions of boxes take a NumPy array or a torch tensor of shape (..., 4) and return the same kind.

Pixel frames, in the order in which a box passes through them:
  stored     pixels as stored in the file;
  displayed  after the EXIF transpose: the frame of records;
  augmented  after augmentation (equal to displayed without it); bbu.data.photo.Photo holds the map to it;
  model      after the family's resize, on its canvas: the image that is cut into patches;
  unit       model pixels / size of the canvas, in [0, 1].

Shapes: R rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

Grid = tuple[int, int, int]  # (frames, rows, columns) of patches of one photo
Affine = tuple[float, float, float, float, float, float]  # (a, b, c, d, e, f): x' = ax+by+c, y' = dx+ey+f
IDENTITY: Affine = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)

# An object seen edge-on, or a horizontal wire, has no height. GIoU and log-sizes need one.
MIN_BOX_THICKNESS = 2.0  # displayed pixels; for the detection head only, the record keeps the line
MAX_ASPECT_RATIO = 200  # of a photo that a model is shown: longer side over shorter


def _namespace(array: Any) -> Any:
    """The library of an array: numpy or torch."""
    if isinstance(array, np.ndarray):
        return np
    import torch

    return torch


def cxcywh_to_xyxy(boxes: Any) -> Any:
    """(..., 4) centre/size → corners."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return _namespace(boxes).concatenate((centre - half, centre + half), -1)


def xyxy_to_cxcywh(boxes: Any) -> Any:
    """(..., 4) corners → centre/size."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return _namespace(boxes).concatenate(((low + high) / 2, high - low), -1)


def box_area(boxes: Any) -> Any:
    """Area of xyxy boxes (..., 4) → (...); a box with swapped corners has area 0."""
    sides = (boxes[..., 2:] - boxes[..., :2]).clip(min=0)
    return sides[..., 0] * sides[..., 1]


def _overlap(a: Any, b: Any) -> tuple[Any, Any]:
    """Intersection and union areas of broadcast xyxy boxes."""
    xp = _namespace(a)
    sides = (xp.minimum(a[..., 2:], b[..., 2:]) - xp.maximum(a[..., :2], b[..., :2])).clip(min=0)
    intersection = sides[..., 0] * sides[..., 1]
    return intersection, box_area(a) + box_area(b) - intersection


def iou(a: Any, b: Any) -> Any:
    """Intersection over union of broadcast xyxy boxes; 0 where both are empty."""
    intersection, union = _overlap(a, b)
    return intersection / union.clip(min=1e-12)


def giou(a: Any, b: Any) -> Any:
    """Generalised IoU of broadcast xyxy boxes, in (-1, 1] (Rezatofighi et al. 2019, arXiv:1902.09630)."""
    return iou_and_giou(a, b)[1]


def iou_and_giou(a: Any, b: Any) -> tuple[Any, Any]:
    """Both of broadcast xyxy boxes, from one intersection and union."""
    xp = _namespace(a)
    intersection, union = _overlap(a, b)
    share = intersection / union.clip(min=1e-12)
    hull = xp.maximum(a[..., 2:], b[..., 2:]) - xp.minimum(a[..., :2], b[..., :2])
    hull_area = (hull[..., 0] * hull[..., 1]).clip(min=1e-12)
    return share, share - (hull_area - union) / hull_area


def iou_matrix(a: Any, b: Any) -> Any:
    """(n, 4) and (m, 4) xyxy → (n, m) IoU."""
    return iou(a[:, None, :], b[None, :, :])


def enclosing_box(points: Sequence[float] | np.ndarray) -> tuple[float, float, float, float]:
    """Flat [x1, y1, x2, y2, …] of a polygon, line or ring → its xyxy box."""
    flat = points.ravel().tolist() if isinstance(points, np.ndarray) else points
    xs, ys = flat[::2], flat[1::2]  # Python's minimum: for so few numbers faster than NumPy's
    return float(min(xs)), float(min(ys)), float(max(xs)), float(max(ys))


def thicken(box: Sequence[float], width: int, height: int) -> tuple[float, float, float, float]:
    """Widen the sides of a flat box to MIN_BOX_THICKNESS displayed pixels, inside the image."""

    def widen(low: float, high: float, limit: int) -> tuple[float, float]:
        thickness = min(MIN_BOX_THICKNESS, limit)
        if high - low >= thickness:
            return low, high
        start = min(max((low + high - thickness) / 2, 0.0), limit - thickness)
        return start, start + thickness

    x1, x2 = widen(float(box[0]), float(box[2]), width)
    y1, y2 = widen(float(box[1]), float(box[3]), height)
    return x1, y1, x2, y2


def displayed_size(width: int, height: int, orientation: int) -> tuple[int, int]:
    """Stored (width, height) → displayed; EXIF orientations 5-8 swap the sides."""
    return (height, width) if orientation in (5, 6, 7, 8) else (width, height)


def exif_affine(orientation: int, width: int, height: int) -> Affine:
    """Map stored → displayed points for EXIF ``orientation`` 1-8 (CIPA DC-008); other values mean 1.

    Args:
        width, height: the stored size in pixels.
    """
    w, h = float(width), float(height)
    return {
        2: (-1.0, 0.0, w, 0.0, 1.0, 0.0),  # mirrored left to right
        3: (-1.0, 0.0, w, 0.0, -1.0, h),  # half turn
        4: (1.0, 0.0, 0.0, 0.0, -1.0, h),  # mirrored top to bottom
        5: (0.0, 1.0, 0.0, 1.0, 0.0, 0.0),  # transposed
        6: (0.0, -1.0, h, 1.0, 0.0, 0.0),  # turn by 90 degrees clockwise
        7: (0.0, -1.0, h, -1.0, 0.0, w),  # transverse
        8: (0.0, 1.0, 0.0, -1.0, 0.0, w),  # turn by 90 degrees counter-clockwise
    }.get(orientation, IDENTITY)


def transform_points(points: np.ndarray, affine: Affine) -> np.ndarray:
    """(..., 2) points through an affine map."""
    a, b, c, d, e, f = affine
    x, y = points[..., 0], points[..., 1]
    return np.stack((a * x + b * y + c, d * x + e * y + f), axis=-1)


def transform_boxes(boxes_R4: np.ndarray, affine: Affine) -> np.ndarray:
    """(R, 4) xyxy through an affine map → the enclosing xyxy boxes (exact for flips and quarter turns)."""
    corners_R42 = boxes_R4[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2)
    moved_R42 = transform_points(corners_R42, affine)
    return np.concatenate((moved_R42.min(axis=1), moved_R42.max(axis=1)), axis=-1)


def compose(first: Affine, then: Affine) -> Affine:
    """The map that does ``first`` and then ``then``."""
    a, b, c, d, e, f = first
    p, q, r, s, t, u = then
    return (p * a + q * d, p * b + q * e, p * c + q * f + r, s * a + t * d, s * b + t * e, s * c + t * f + u)


def invert(affine: Affine) -> Affine:
    """The inverse affine map.

    Raises:
        ValueError: the map flattens the plane.
    """
    a, b, c, d, e, f = affine
    determinant = a * e - b * d
    if determinant == 0:
        raise ValueError(f"affine map {affine} cannot be inverted")
    p, q, s, t = e / determinant, -b / determinant, -d / determinant, a / determinant
    return (p, q, -(p * c + q * f), s, t, -(s * c + t * f))


# ---------------------------------------------------------------- clipping to an image

_PARALLEL = 1e-9  # pixels; a segment that moves less along an axis is parallel to it: dividing would overflow


def clip_box(box: np.ndarray, width: int, height: int) -> np.ndarray:
    """(4,) xyxy clipped to the image; without area if it lies outside."""
    clipped: np.ndarray = np.clip(box, 0, [width, height, width, height])
    return clipped


def clip_polygon(points_R2: np.ndarray, width: int, height: int) -> np.ndarray:
    """Ring clipped to the image, one side after another (Sutherland and Hodgman 1974); (0, 2) if it lies outside."""
    for axis, limit, sign in ((0, 0, 1), (0, width, -1), (1, 0, 1), (1, height, -1)):
        inside = sign * (points_R2[:, axis] - limit)  # distance from the image's side in pixels, negative outside
        kept: list[np.ndarray] = []
        for index in range(len(points_R2)):
            before = index - 1
            if (inside[before] < 0) != (inside[index] < 0):
                share = inside[before] / (inside[before] - inside[index])
                kept.append(points_R2[before] + share * (points_R2[index] - points_R2[before]))
            if inside[index] >= 0:
                kept.append(points_R2[index])
        points_R2 = np.array(kept).reshape(-1, 2)
    return points_R2


def clip_line(points_R2: np.ndarray, width: int, height: int) -> list[np.ndarray]:
    """The pieces of a polyline inside the image, each (R, 2) and in the order of the line; [] if it lies outside.

    Where a line leaves the image and comes back, one piece ends and the next begins, so that no piece runs along the
    border unless the line itself does.
    """
    limit = np.array([width, height], dtype=np.float64)
    pieces: list[list[np.ndarray]] = []
    joined = False  # whether the segment before ended inside, where this one starts
    for start, end in pairwise(points_R2):
        low, high = _inside_span(start, end, limit) or (1.0, 0.0)
        if low <= high:
            if not (joined and low == 0):
                pieces.append([_between(start, end, low, limit)])
            pieces[-1].append(_between(start, end, high, limit))
        joined = low <= high == 1
    cut = [_without_repeats(np.array(piece)) for piece in pieces]
    return [piece_R2 for piece_R2 in cut if len(piece_R2) > 1]


def longest_piece(pieces: list[np.ndarray]) -> np.ndarray:
    """The longest of the pieces of a line, the first of equal ones; (0, 2) if there are none."""
    return max(pieces, key=line_length, default=np.empty((0, 2)))


def _between(start: np.ndarray, end: np.ndarray, share: float, limit: np.ndarray) -> np.ndarray:
    """The point at a share of a segment; the ends themselves are not changed, not even in their last bits."""
    point = start if share == 0 else end if share == 1 else start + share * (end - start)
    cut: np.ndarray = np.clip(point, 0, limit)  # rounding may put it outside by its last bits
    return cut


def _without_repeats(points_R2: np.ndarray) -> np.ndarray:
    kept_R2: np.ndarray = points_R2[(np.diff(points_R2, axis=0, prepend=np.nan) != 0).any(axis=1)]
    return kept_R2


def _inside_span(start: np.ndarray, end: np.ndarray, limit: np.ndarray) -> tuple[float, float] | None:
    """Part of a segment inside [0, limit], as fractions of its length (Liang and Barsky 1984)."""
    low, high = 0.0, 1.0
    for axis in (0, 1):
        step = end[axis] - start[axis]
        if abs(step) < _PARALLEL:
            if not 0 <= start[axis] <= limit[axis]:
                return None
            continue
        shares = sorted((-start[axis] / step, (limit[axis] - start[axis]) / step))
        low, high = max(low, shares[0]), min(high, shares[1])
    return (low, high) if low <= high else None


def polygon_area(points_R2: np.ndarray) -> float:
    """Area of a ring in square pixels (shoelace rule)."""
    x, y = points_R2[:, 0], points_R2[:, 1]
    return abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) / 2


def line_length(points_R2: np.ndarray) -> float:
    """Length of a polyline in pixels."""
    return float(np.linalg.norm(np.diff(points_R2, axis=0), axis=1).sum())


# ---------------------------------------------------------------- from the photo to the model and back


@dataclass(frozen=True)
class ImageGeometry:
    """Maps between the pixels of one image and those of the model.

    Args:
        width, height: size of the photo that the processor gets (after augmentation, if there is any).
        model_width, model_height: size of the resized photo.
        canvas_width, canvas_height: size of what the model sees, with the resized photo in its upper left corner; 0 =
            the resized photo is all of it.
    """

    width: int
    height: int
    model_width: int
    model_height: int
    canvas_width: int = 0
    canvas_height: int = 0

    @property
    def photo_in_unit(self) -> tuple[float, float, float, float]:
        """xyxy of the photo in the unit square: all of it, unless the canvas is larger."""
        across, down = self._canvas
        return (0.0, 0.0, self.model_width / across, self.model_height / down)

    @property
    def to_unit(self) -> Affine:
        """Pixels of the photo → unit square."""
        _, _, across, down = self.photo_in_unit
        return (across / self.width, 0.0, 0.0, 0.0, down / self.height, 0.0)

    def boxes_to_unit(self, boxes_R4: np.ndarray) -> np.ndarray:
        """(R, 4) xyxy of the photo → (R, 4) unit xyxy."""
        return transform_boxes(np.asarray(boxes_R4, dtype=np.float64).reshape(-1, 4), self.to_unit)

    def boxes_from_unit(self, boxes_R4: np.ndarray) -> np.ndarray:
        """(R, 4) unit xyxy → (R, 4) xyxy of the photo."""
        return transform_boxes(np.asarray(boxes_R4, dtype=np.float64).reshape(-1, 4), invert(self.to_unit))

    def boxes_to_model(self, boxes_R4: np.ndarray) -> np.ndarray:
        """(R, 4) xyxy of the photo → (R, 4) xyxy in pixels of what the model sees."""
        return self.boxes_to_unit(boxes_R4) * self._model_scale

    def boxes_from_model(self, boxes_R4: np.ndarray) -> np.ndarray:
        """(R, 4) xyxy in pixels of what the model sees → (R, 4) xyxy of the photo."""
        return self.boxes_from_unit(np.asarray(boxes_R4, dtype=np.float64).reshape(-1, 4) / self._model_scale)

    @property
    def _canvas(self) -> tuple[int, int]:
        return self.canvas_width or self.model_width, self.canvas_height or self.model_height

    @property
    def _model_scale(self) -> np.ndarray:
        return np.array(self._canvas * 2, dtype=np.float64)
