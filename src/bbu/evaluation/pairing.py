"""Pair annotated photos with their predictions and put both in one fixed order.

Rows are read once and not kept: what is kept of an object is a row of flat arrays, a tenth of its Python objects.
Boxes are xyxy in displayed pixels.

Shapes: Gt ground-truth objects, Dt detections, Ph photos, De descriptions of a vocabulary, R rows.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import overload

import numpy as np

from bbu.errors import UserError
from bbu.geometry import MIN_BOX_THICKNESS, thicken
from bbu.records import PredictionRow, Row

INDEX = np.int32  # of photos, objects and descriptions: half the memory of NumPy's own
Size = tuple[int, int]
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
class Photos(Sequence[Photo]):
    """Ground truth and detections of all photos in flat arrays, photo by photo in order of name.

    An item is one photo, made when it is asked for.

    Attributes:
        vocabulary: every description annotated or predicted, sorted; ``*desc_*`` index it.
        truth_start_Ph, start_Ph: (photos + 1,) where each photo's objects and detections start.
    """

    names: tuple[str, ...]
    vocabulary: tuple[str, ...]
    truth_start_Ph: np.ndarray
    truth_boxes_Gt4: np.ndarray
    truth_desc_Gt: np.ndarray
    start_Ph: np.ndarray
    boxes_Dt4: np.ndarray
    desc_Dt: np.ndarray
    scores_Dt: np.ndarray
    objectness_Dt: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> Photo: ...
    @overload
    def __getitem__(self, index: slice) -> list[Photo]: ...
    def __getitem__(self, index: int | slice) -> Photo | list[Photo]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        truth, found = (slice(*start_Ph[place : place + 2]) for start_Ph in (self.truth_start_Ph, self.start_Ph))
        return Photo(
            name=self.names[place],
            truth_boxes_Gt4=self.truth_boxes_Gt4[truth],
            truth_descs=tuple(self.vocabulary[code] for code in self.truth_desc_Gt[truth]),
            boxes_Dt4=self.boxes_Dt4[found],
            descs=tuple(self.vocabulary[code] for code in self.desc_Dt[found]),
            scores_Dt=self.scores_Dt[found],
            objectness_Dt=self.objectness_Dt[found],
        )


@dataclass(frozen=True)
class Pairing:
    """All annotated photos in order of name, and how many of them have no usable prediction."""

    photos: Photos
    without_prediction: int
    failed: int


def pair(truth: Iterable[Row], predictions: Iterable[PredictionRow]) -> Pairing:
    """Pair rows by their first image path. Photos that nobody annotated are left out, and their predictions with them.

    A photo that failed or has no prediction row keeps zero detections, so all its objects count as missed. COCO breaks
    ties of score by position; photos and boxes are sorted, so the order of lines never changes a number. Both are read
    once and not kept, so large files can be streamed.

    Raises:
        UserError: a photo listed twice, a prediction for a photo without annotation, or one made at another image
            size. The message names the photo.
    """
    return pair_each(truth, (predictions,))[0]


def pair_each(truth: Iterable[Row], sets: Iterable[Iterable[PredictionRow]]) -> list[Pairing]:
    """``pair`` for several sets of predictions of the same photos."""
    annotated = _Annotated(truth)
    return [annotated.paired(predictions) for predictions in sets]


class _Annotated:
    """The annotated photos in the order of their rows."""

    def __init__(self, truth: Iterable[Row]) -> None:
        self.places: dict[str, int] = {}  # name → number of the row
        self.sizes: list[Size] = []
        self.codes: dict[str, int] = {}  # description → number, in order of appearance
        self.objects = _Column(self.codes, numbers=4)
        self.unknown: set[str] = set()  # photos that are not annotated
        sizes: dict[Size, Size] = {}  # one tuple for all photos of a size
        for row in truth:
            name, size = row.images[0], (row.width, row.height)
            if name in self.places or name in self.unknown:
                raise _twice(name, "annotated rows")
            if not row.annotated:
                self.unknown.add(name)
                continue
            self.objects.add(len(self.places), sorted((item.box, item.desc) for item in row.objects))
            self.places[name] = len(self.places)
            self.sizes.append(sizes.setdefault(size, size))

    def paired(self, predictions: Iterable[PredictionRow]) -> Pairing:
        """Everything in order of name."""
        codes = dict(self.codes)
        found, seen, failed = _Column(codes, numbers=6), bytearray(len(self.places)), 0
        for row in predictions:
            name = row.images[0]
            place = self.places.get(name)
            if name in self.unknown:
                continue
            if place is None:
                raise UserError(
                    f"prediction for {name!r}: no annotated row has this photo; "
                    "evaluate against the file it was predicted from, or remove the line"
                )
            if seen[place]:
                raise _twice(name, "predictions")
            _check_size(name, self.sizes[place], row)
            seen[place] = True
            items = sorted(row.predictions, key=_position)
            found.add(place, [((*item.box, item.score, item.objectness), item.desc) for item in items])
            failed += row.error is not None
        return Pairing(self._in_order(found, codes), without_prediction=seen.count(0), failed=failed)

    def _in_order(self, found: _Column, codes: Mapping[str, int]) -> Photos:
        names = tuple(sorted(self.places))
        order_Ph = np.array([self.places[name] for name in names], dtype=np.int64)
        vocabulary = tuple(sorted(codes))
        code_De = np.empty(len(vocabulary), dtype=INDEX)
        code_De[[codes[desc] for desc in vocabulary]] = np.arange(len(vocabulary))
        truth_start_Ph, truth_Gt = self.objects.places(order_Ph)
        start_Ph, found_Dt = found.places(order_Ph)
        return Photos(
            names=names,
            vocabulary=vocabulary,
            truth_start_Ph=truth_start_Ph,
            truth_boxes_Gt4=self._boxes(self.objects, truth_Gt, truth_start_Ph, order_Ph),
            truth_desc_Gt=code_De[self.objects.descs[truth_Gt]],
            start_Ph=start_Ph,
            boxes_Dt4=self._boxes(found, found_Dt, start_Ph, order_Ph),
            desc_Dt=code_De[found.descs[found_Dt]],
            scores_Dt=found.values[found_Dt, 4],
            objectness_Dt=found.values[found_Dt, 5],
        )

    def _boxes(self, column: _Column, place_R: np.ndarray, start_Ph: np.ndarray, order_Ph: np.ndarray) -> np.ndarray:
        """(R, 4) boxes. Flat ones have no IoU even with themselves, so truth and predictions are thickened alike.

        A predicted box with swapped corners becomes a sliver and counts as wrong; COCO would not count its negative
        area.
        """
        boxes_R4: np.ndarray = column.values[:, :4][place_R]
        for index in np.flatnonzero(((boxes_R4[:, 2:] - boxes_R4[:, :2]) < MIN_BOX_THICKNESS).any(axis=1)):
            photo = order_Ph[np.searchsorted(start_Ph, index, side="right") - 1]
            boxes_R4[index] = thicken(boxes_R4[index], *self.sizes[photo])
        return boxes_R4


class _Column:
    """Rows of numbers with a description each, added photo by photo.

    Args:
        codes: description → its number; new descriptions are added to it.
        numbers: how many a row has.
    """

    def __init__(self, codes: dict[str, int], numbers: int) -> None:
        self._codes, self._numbers = codes, numbers
        self._values, self._descs = array("d"), array("i")
        self._photos, self._counts = array("i"), array("i")

    def add(self, photo: int, items: Sequence[tuple[Sequence[float], str]]) -> None:
        """The rows of one photo, given once for a photo."""
        self._photos.append(photo)
        self._counts.append(len(items))
        for numbers, desc in items:
            self._values.extend(numbers)
            self._descs.append(self._codes.setdefault(desc, len(self._codes)))

    @property
    def values(self) -> np.ndarray:
        """(R, numbers) float64."""
        return np.frombuffer(self._values, dtype=np.float64).reshape(-1, self._numbers)

    @property
    def descs(self) -> np.ndarray:
        """(R,) numbers of the descriptions."""
        return np.frombuffer(self._descs, dtype=np.int32)

    def places(self, order_Ph: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(photos + 1,) start of each photo when they are put in this order, and the (R,) rows in this order."""
        counts = np.frombuffer(self._counts, dtype=np.int32)
        photos = np.frombuffer(self._photos, dtype=np.int32)
        count_Ph, first_Ph = np.zeros((2, len(order_Ph)), dtype=np.int64)
        count_Ph[photos], first_Ph[photos] = counts, np.cumsum(counts) - counts
        count_Ph, first_Ph = count_Ph[order_Ph], first_Ph[order_Ph]
        return np.append(0, np.cumsum(count_Ph)), joined_ranges(first_Ph, count_Ph)


def joined_ranges(first_R: np.ndarray, count_R: np.ndarray) -> np.ndarray:
    """The numbers first, first + 1, … of each range, one range after the other."""
    start_R = np.cumsum(count_R) - count_R
    return np.repeat((first_R - start_R).astype(INDEX), count_R) + np.arange(count_R.sum(), dtype=INDEX)


def _twice(name: str, what: str) -> UserError:
    return UserError(f"photo {name!r} appears twice among the {what}; keep one of the two lines")


def _check_size(name: str, size: Size, prediction: PredictionRow) -> None:
    """Boxes cannot be compared if one side ignored the EXIF orientation or resized the photo."""
    said = (prediction.width, prediction.height)
    if prediction.error is None and said not in ((0, 0), size):
        raise UserError(
            f"photo {name!r}: predicted at {said[0]}x{said[1]} pixels but annotated at {size[0]}x{size[1]}; "
            "were both made with the EXIF orientation applied and before any resize?"
        )
