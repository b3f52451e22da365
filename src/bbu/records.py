"""The JSONL contract: annotated rows, few-shot samples and predictions, read strictly.

Row        {"images": [...], "objects": [...] | null, "width": W, "height": H, "summary"?: str, "metadata"?: {}}
object     {"desc": str, and exactly one of "bbox_2d" [x1,y1,x2,y2] | "poly" [x,y,…≥3 points] | "line" [x,y,…≥2]}
few-shot   {"teachers": [Row, …], "student": Row, "context"?: [Row, …]}
prediction {"images": [...], "width": W, "height": H,
            "predictions": [{"bbox_2d", "desc", "score", "objectness", "levels"?}]}
           or {"images": [...], "error": str} for a photo that could not be read

Coordinates are pixels of the image as displayed (after the EXIF transpose, before any resize).
Image paths are relative to an image root that is given to the reader; a path that leaves it is refused.
metadata.group names the site or series of a photo; photos of one group may be shown together (context).

Shapes: R rows.
"""

from __future__ import annotations

import difflib
import json
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from bbu.errors import RecordError, UserError, shown
from bbu.geometry import box_area, enclosing_box
from bbu.jsonl import iter_json_lines
from bbu.taxonomy import split_path
from bbu.tiles import Tile

GEOMETRIES = {"bbox_2d": 4, "poly": 6, "line": 4}  # name → fewest numbers
MAX_SIDE = 2**31 - 1  # pixels; the most that any image format can say
BOUNDS_TOLERANCE = 0.5  # pixels a coordinate may lie outside the image (rounding of annotation tools)
COUNT_BINS = (3, 10)  # objects: up to 3, up to 10, more
AREA_BINS = (0.05, 0.20)  # mean box area as a fraction of the photo: under 5 %, under 20 %, more
PLACE_GRID = 3  # cells per side, for the mean centre of all boxes


@dataclass(frozen=True, slots=True)
class ObjectRow:
    """One annotated object: a description and exactly one geometry in displayed pixels."""

    desc: str
    kind: str  # "bbox_2d", "poly" or "line"
    points: tuple[float, ...]

    @property
    def box(self) -> tuple[float, float, float, float]:
        """The enclosing xyxy box; a line's may have no height."""
        return enclosing_box(self.points)

    def to_json(self) -> dict[str, Any]:
        points: list[float] = [_tidy(value) for value in self.points]
        if self.kind == "bbox_2d" and not (points[0] < points[2] and points[1] < points[3]):
            points = list(self.points)  # rounding would leave no side, and the row could not be read back
        return {"desc": self.desc, self.kind: points}


@dataclass(frozen=True, slots=True)
class Row:
    """One photo, or with ``tile`` a part of it, whose size and objects it then has; files have no tiles.

    ``annotated``: False where the file says ``"objects": null``: what is in the photo is not known. ``objects`` is
    then empty too, and the photo takes no part in detection.
    """

    images: tuple[str, ...]
    objects: tuple[ObjectRow, ...]
    width: int
    height: int
    summary: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    tile: Tile | None = None
    annotated: bool = True

    @property
    def labels(self) -> frozenset[str]:
        """The distinct descriptions in the photo."""
        return frozenset(item.desc for item in self.objects)

    @property
    def group(self) -> str | None:
        """The site or series that the photo belongs to (metadata.group), or None."""
        group = self.metadata.get("group")
        return str(group) if group not in (None, "") else None

    def to_json(self) -> dict[str, Any]:
        row: dict[str, Any] = {
            "images": list(self.images),
            "objects": [item.to_json() for item in self.objects] if self.annotated else None,
            "width": self.width,
            "height": self.height,
        }
        if self.summary is not None:
            row["summary"] = self.summary
        if self.metadata:
            row["metadata"] = dict(self.metadata)
        return row


def situations(row: Row) -> tuple[str, ...]:
    """Bins of a photo's object count, mean centre and mean size; none for a photo without objects."""
    if not row.objects:
        return ()
    boxes_R4 = np.array([item.box for item in row.objects])  # displayed pixels
    centre = ((boxes_R4[:, :2] + boxes_R4[:, 2:]) / 2).mean(axis=0) / (row.width, row.height)
    column, line = (min(PLACE_GRID - 1, int(value * PLACE_GRID)) for value in centre)
    area = float(box_area(boxes_R4).mean()) / (row.width * row.height)
    count_bin = int(np.searchsorted(COUNT_BINS, len(boxes_R4), side="left"))
    area_bin = int(np.searchsorted(AREA_BINS, area, side="right"))
    return f"count {count_bin}", f"place {column},{line}", f"size {area_bin}"


@dataclass(frozen=True, slots=True)
class FewShotSample:
    """One photo to learn or predict (student), worked examples (teachers), and photos without answers that are shown
    before it in its own turn (context).

    ``answer``: what is asked of the student, a key of bbu.families.prompts.ANSWERS. A sample that answers for a whole
    group has the group's other photos as its context. ``text``: the answer, where it does not follow from the rows (a
    verdict). Files do not say either: each training sample draws its answer anew.
    """

    student: Row
    teachers: tuple[Row, ...] = ()
    context: tuple[Row, ...] = ()
    answer: str = "boxes"
    text: str = ""

    def to_json(self) -> dict[str, Any]:
        sample: dict[str, Any] = {
            "teachers": [row.to_json() for row in self.teachers],
            "student": self.student.to_json(),
        }
        if self.context:
            sample["context"] = [row.to_json() for row in self.context]
        return sample


@dataclass(frozen=True, slots=True)
class PredictedObject:
    """One predicted object: xyxy box in displayed pixels, description, and two confidences in [0, 1].

    ``score`` ranks predictions of one description (objectness × probability of the description), ``objectness`` ranks
    class-agnostically. ``levels``: probability of the first level of ``desc``, of the first two, …; None if unknown.
    """

    box: tuple[float, float, float, float]
    desc: str
    score: float
    objectness: float
    levels: tuple[float, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        row = {
            "bbox_2d": [round(value, 2) for value in self.box],
            "desc": self.desc,
            "score": round(self.score, 6),
            "objectness": round(self.objectness, 6),
        }
        if self.levels is not None:
            row["levels"] = [round(value, 6) for value in self.levels]
        return row


@dataclass(frozen=True, slots=True)
class PredictionRow:
    """All predictions for one photo, or the error that prevented them."""

    images: tuple[str, ...]
    width: int = 0
    height: int = 0
    predictions: tuple[PredictedObject, ...] = ()
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        if self.error is not None:
            # A path in the message may hold bytes that are no text.
            return {"images": list(self.images), "error": self.error.encode("utf-8", "backslashreplace").decode()}
        return {
            "images": list(self.images),
            "width": self.width,
            "height": self.height,
            "predictions": [item.to_json() for item in self.predictions],
        }


# ---------------------------------------------------------------- parsing


def parse_row(value: Any, where: str, prefix: str = "") -> Row:
    """Check one decoded JSON value against the contract.

    Args:
        where: file and line for the error message.
        prefix: dotted path before the field names.

    Raises:
        RecordError: names ``where``, the field, the value and the fix.
    """
    check = FieldChecker(where, prefix)
    check.keys(value, required=("images", "objects", "width", "height"), optional=("summary", "metadata"))
    width = check.size(value["width"], "width")
    height = check.size(value["height"], "height")
    annotated = value["objects"] is not None
    objects = check.list(value["objects"], "objects") if annotated else []
    summary = value.get("summary")
    if summary is not None:
        check.string(summary, "summary")
    metadata = value.get("metadata", {})
    if not isinstance(metadata, dict):
        check.fail("metadata", f"must be an object, is {shown(metadata)}")
    check.writable(metadata, "metadata")
    return Row(
        images=check.images(value["images"]),
        objects=tuple(
            _parse_object(item, FieldChecker(where, f"{prefix}objects[{index}]."), width, height)
            for index, item in enumerate(objects)
        ),
        width=width,
        height=height,
        summary=summary,
        metadata=metadata,
        annotated=annotated,
    )


def parse_sample(value: Any, where: str) -> FewShotSample:
    """A few-shot sample, or a plain row, which is a student without teachers."""
    if isinstance(value, dict) and not {"student", "teachers", "context"}.isdisjoint(value):
        check = FieldChecker(where, "")
        check.keys(value, required=("student",), optional=("teachers", "context"))

        def rows(name: str) -> tuple[Row, ...]:
            items = check.list(value.get(name, []), name)
            return tuple(parse_row(row, where, f"{name}[{i}].") for i, row in enumerate(items))

        return FewShotSample(parse_row(value["student"], where, "student."), rows("teachers"), rows("context"))
    return FewShotSample(student=parse_row(value, where))


def parse_prediction_row(value: Any, where: str) -> PredictionRow:
    """Check one decoded prediction row.

    Raises:
        RecordError: as parse_row.
    """
    check = FieldChecker(where, "")
    if isinstance(value, dict) and "error" in value:
        check.keys(value, required=("images", "error"))
        return PredictionRow(images=check.images(value["images"]), error=check.text(value["error"], "error"))
    check.keys(value, required=("images", "width", "height", "predictions"))
    width, height = check.size(value["width"], "width"), check.size(value["height"], "height")
    predictions = []
    for index, item in enumerate(check.list(value["predictions"], "predictions")):
        inner = FieldChecker(where, f"predictions[{index}].")
        inner.keys(item, required=("bbox_2d", "desc", "score"), optional=("objectness", "levels"))
        box = inner.numbers(item["bbox_2d"], "bbox_2d", fewest=4)
        if len(box) != 4:
            inner.fail("bbox_2d", f"needs 4 numbers, has {len(box)}")
        inner.string(item["desc"], "desc")
        score = inner.unit(item["score"], "score")
        objectness = inner.unit(item.get("objectness", item["score"]), "objectness")
        levels = inner.levels(item["levels"], item["desc"]) if "levels" in item else None
        desc = sys.intern(item["desc"])  # a million objects share few descriptions
        predictions.append(PredictedObject((box[0], box[1], box[2], box[3]), desc, score, objectness, levels))
    return PredictionRow(check.images(value["images"]), width, height, tuple(predictions))


def _parse_object(value: Any, check: FieldChecker, width: int, height: int) -> ObjectRow:
    check.keys(value, required=("desc",), optional=tuple(GEOMETRIES))
    kinds = [kind for kind in GEOMETRIES if kind in value]
    if len(kinds) != 1:
        found = " and ".join(kinds) or "none"
        check.fail("bbox_2d", f"an object has exactly one of {', '.join(GEOMETRIES)}; found {found}")
    kind = kinds[0]
    points = check.numbers(value[kind], kind, fewest=GEOMETRIES[kind])
    if kind == "bbox_2d":
        if len(points) != 4:
            check.fail(kind, f"needs 4 numbers [x1, y1, x2, y2], has {len(points)}")
        if points[2] <= points[0] or points[3] <= points[1]:
            check.fail(kind, f"needs x1 < x2 and y1 < y2, is {list(points)}; swap the corners or drop the object")
    elif len(points) % 2:
        check.fail(kind, f"needs pairs x, y; has {len(points)} numbers")
    for index, number in enumerate(points):
        limit = height if index % 2 else width
        if not -BOUNDS_TOLERANCE <= number <= limit + BOUNDS_TOLERANCE:
            axis = "xy"[index % 2]
            check.fail(kind, f"{axis} = {number:g} is outside the image (0 to {limit}); clip it or drop the object")
    return ObjectRow(desc=sys.intern(check.text(value["desc"], "desc")), kind=kind, points=points)


class FieldChecker:
    """Typed look-ups whose errors name file, line and field."""

    def __init__(self, where: str, prefix: str) -> None:
        self.where, self.prefix = where, prefix

    def fail(self, name: str, why: str) -> NoReturn:
        raise RecordError(self.where, f"{self.prefix}{name}", why)

    def keys(self, value: Any, required: tuple[str, ...], optional: tuple[str, ...] = ()) -> None:
        if not isinstance(value, dict):
            raise RecordError(self.where, self.prefix.rstrip(".") or "row", f"must be a JSON object, is {shown(value)}")
        for name in required:
            if name not in value:
                self.fail(name, "is missing")
        known = required + optional
        for name in value:
            if name not in known:
                near = difflib.get_close_matches(str(name), known, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else f"; known fields are {', '.join(known)}"
                self.fail(str(name), f"is not a field of the contract{hint}")

    def list(self, value: Any, name: str) -> list[Any]:
        if not isinstance(value, list):
            self.fail(name, f"must be a list, is {shown(value)}")
        return value  # type: ignore[no-any-return]

    def text(self, value: Any, name: str) -> str:
        if not isinstance(value, str) or not value.strip():
            self.fail(name, f"must be non-empty text, is {shown(value)}")
        return self.string(value, name)

    def string(self, value: Any, name: str) -> str:
        if not isinstance(value, str):
            self.fail(name, f"must be text, is {shown(value)}")
        if any("\ud800" <= letter <= "\udfff" for letter in value):
            self.fail(name, f"holds half a character (a lone surrogate), is {shown(value)}")
        return value  # type: ignore[no-any-return]

    def writable(self, value: Any, name: str) -> None:
        """Fails for what decodes from JSON and cannot be written back: numbers beyond floats, half characters."""
        try:
            json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
        except ValueError as error:
            self.fail(name, f"cannot be written back ({error})")

    def size(self, value: Any, name: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            self.fail(name, f"must be a whole number of pixels above 0, is {shown(value)}")
        if value > MAX_SIDE:
            self.fail(name, f"must be a whole number of pixels up to {MAX_SIDE}, is {shown(value)}")
        return value  # type: ignore[no-any-return]

    def unit(self, value: Any, name: str) -> float:
        number = self.number(value, name)
        if not 0 <= number <= 1:
            self.fail(name, f"must lie in [0, 1], is {number:g}")
        return number

    def number(self, value: Any, name: str) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.fail(name, f"must be a number, is {shown(value)}")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            self.fail(name, f"must be a finite number, is {shown(value)}")
        return number

    def numbers(self, value: Any, name: str, fewest: int) -> tuple[float, ...]:
        items = self.list(value, name)
        if len(items) < fewest:
            self.fail(name, f"needs at least {fewest} numbers, has {len(items)}")
        return tuple(self.coordinate(item, f"{name}[{index}]") for index, item in enumerate(items))

    def coordinate(self, value: Any, name: str) -> float:
        number = self.number(value, name)
        if abs(number) > MAX_SIDE:  # areas would overflow, and overlaps be no numbers
            self.fail(name, f"must lie within {MAX_SIDE} pixels, is {number:g}")
        return number

    def levels(self, value: Any, desc: str) -> tuple[float, ...]:
        items, path = self.list(value, "levels"), split_path(desc)
        if len(items) != len(path):
            self.fail("levels", f"needs a number for each of the {len(path)} levels of {desc!r}, has {len(items)}")
        return tuple(self.unit(item, f"levels[{index}]") for index, item in enumerate(items))

    def images(self, value: Any) -> tuple[str, ...]:
        items = self.list(value, "images")
        if not items:
            self.fail("images", "needs at least one path")
        return tuple(self.text(item, f"images[{index}]") for index, item in enumerate(items))


def _tidy(value: float) -> float | int:
    """Two decimals of a pixel, and whole numbers without a point: small files and readable diffs."""
    rounded = round(value, 2)
    return int(rounded) if rounded == int(rounded) else rounded


# ---------------------------------------------------------------- files


def iter_rows(path: str | Path) -> Iterator[Row]:
    """The annotated rows of a JSONL file, one at a time.

    Raises:
        RecordError: the first row that breaks the contract.
    """
    return (parse_row(value, where) for where, value in iter_json_lines(path))


def read_rows(path: str | Path) -> list[Row]:
    """``iter_rows`` as a list."""
    return list(iter_rows(path))


def read_samples(path: str | Path) -> list[FewShotSample]:
    """All samples of a JSONL file; a plain row is a student without teachers."""
    return [parse_sample(value, where) for where, value in iter_json_lines(path)]


def iter_predictions(path: str | Path) -> Iterator[PredictionRow]:
    """The rows of a predictions file, one at a time."""
    return (parse_prediction_row(value, where) for where, value in iter_json_lines(path))


def read_predictions(path: str | Path) -> list[PredictionRow]:
    """``iter_predictions`` as a list."""
    return list(iter_predictions(path))


def resolve_image(root: str | Path, name: str) -> Path:
    """The file of an image path, which must lie inside ``root``.

    Raises:
        UserError: the path leaves the root (``..``, an absolute path elsewhere, or a link out of it), or is invalid.
    """
    root = Path(root).resolve()
    try:
        path = (root / name).resolve()
    except (ValueError, OSError, RuntimeError) as error:  # a null character, or a loop of links
        raise UserError(f"image path {name!r} under {root} cannot be followed: {error}") from None
    if not path.is_relative_to(root):
        raise UserError(f"image path {name!r} leaves its folder {root}; move the file inside or change the image root")
    return path
