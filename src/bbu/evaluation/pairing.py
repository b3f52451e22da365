"""Pair annotated photos with their predictions and put both in one fixed order.

Boxes are xyxy in displayed pixels.

Shapes: Gt ground-truth objects, Dt detections.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter

import numpy as np

from bbu.errors import UserError
from bbu.geometry import MIN_BOX_THICKNESS, thicken
from bbu.records import PredictionRow, Row

Box = tuple[float, float, float, float]
_position = attrgetter("box", "desc", "score", "objectness")  # ties of the score keep this order


@dataclass(frozen=True)
class Photo:
    """Ground truth and detections of one photo.

    Attributes:
        truth_boxes_Gt4, boxes_Dt4: xyxy float64; every side is at least MIN_BOX_THICKNESS pixels.
        scores_Dt: confidence in box and description; objectness_Dt: confidence in the box alone.
    """

    name: str
    truth_boxes_Gt4: np.ndarray
    truth_descs: tuple[str, ...]
    boxes_Dt4: np.ndarray
    descs: tuple[str, ...]
    scores_Dt: np.ndarray
    objectness_Dt: np.ndarray


@dataclass(frozen=True)
class Pairing:
    """All annotated photos in order of name, and how many of them have no usable prediction."""

    photos: tuple[Photo, ...]
    without_prediction: int
    failed: int


def pair(truth: Iterable[Row], predictions: Iterable[PredictionRow]) -> Pairing:
    """Pair rows by their first image path.

    A photo that failed or has no prediction row keeps zero detections, so all its objects count as missed. COCO breaks
    ties of score by position; photos and boxes are sorted, so the order of lines never changes a number. Predictions
    are read once and not kept, so a large file can be streamed.

    Raises:
        UserError: a photo listed twice, a prediction for a photo without annotation, or one made at another image
            size. The message names the photo.
    """
    rows: dict[str, Row] = {}
    for row in truth:
        _check_new(row, rows, "annotated rows")
        rows[row.images[0]] = row
    photos: dict[str, Photo] = {}
    failed = 0
    for found in predictions:
        name = found.images[0]
        if name not in rows:
            raise UserError(
                f"prediction for {name!r}: no annotated row has this photo; "
                "evaluate against the file it was predicted from, or remove the line"
            )
        _check_new(found, photos, "predictions")
        photos[name] = _photo(name, rows[name], found)
        failed += found.error is not None
    without = sorted(rows.keys() - photos.keys())
    photos |= {name: _photo(name, rows[name], None) for name in without}
    return Pairing(tuple(photos[name] for name in sorted(photos)), without_prediction=len(without), failed=failed)


def _check_new(row: Row | PredictionRow, known: Collection[str], what: str) -> None:
    if row.images[0] in known:
        raise UserError(f"photo {row.images[0]!r} appears twice among the {what}; keep one of the two lines")


def _photo(name: str, row: Row, prediction: PredictionRow | None) -> Photo:
    if prediction is not None:
        _check_size(name, row, prediction)
    truth = sorted((item.box, item.desc) for item in row.objects)
    found = sorted(prediction.predictions if prediction else (), key=_position)
    return Photo(
        name=name,
        truth_boxes_Gt4=_boxes([box for box, _ in truth], row),
        truth_descs=tuple(sys.intern(desc) for _, desc in truth),
        boxes_Dt4=_boxes([item.box for item in found], row),
        descs=tuple(sys.intern(item.desc) for item in found),  # a million detections share few descriptions
        scores_Dt=np.array([item.score for item in found], dtype=np.float64),
        objectness_Dt=np.array([item.objectness for item in found], dtype=np.float64),
    )


def _check_size(name: str, row: Row, prediction: PredictionRow) -> None:
    """Boxes cannot be compared if one side ignored the EXIF orientation or resized the photo."""
    size = (prediction.width, prediction.height)
    if prediction.error is None and size not in ((0, 0), (row.width, row.height)):
        raise UserError(
            f"photo {name!r}: predicted at {size[0]}x{size[1]} pixels but annotated at {row.width}x{row.height}; "
            "were both made with the EXIF orientation applied and before any resize?"
        )


def _boxes(boxes: Sequence[Box], row: Row) -> np.ndarray:
    """(n, 4) boxes. Flat boxes have no IoU even with themselves, so truth and predictions are thickened alike.

    A predicted box with swapped corners becomes a sliver and counts as wrong; COCO would not count its negative area.
    """
    result = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    flat = ((result[:, 2:] - result[:, :2]) < MIN_BOX_THICKNESS).any(axis=1)
    for index in np.flatnonzero(flat):
        result[index] = thicken(result[index], row.width, row.height)
    return result
