"""The JSONL contract: annotated rows, few-shot samples and predictions, strictly read, atomically written.

Row        {"images": [...], "objects": [...], "width": W, "height": H, "summary"?: str, "metadata"?: {}}
object     {"desc": str, and exactly one of "bbox_2d" [x1,y1,x2,y2] | "poly" [x,y,…≥3 points] | "line" [x,y,…≥2]}
few-shot   {"teachers": [Row, …], "student": Row}
prediction {"images": [...], "width": W, "height": H, "predictions": [{"bbox_2d", "desc", "score", "objectness"}]}
           or {"images": [...], "error": str} for a photo that could not be read

Coordinates are pixels of the image as displayed (after the EXIF transpose, before any resize).
Image paths are relative to an image root that the reader is told; a path that leaves it is refused.
"""

from __future__ import annotations

import difflib
import json
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from bbu.errors import RecordError, UserError
from bbu.geometry import enclosing_box

GEOMETRIES = {"bbox_2d": 4, "poly": 6, "line": 4}  # name → fewest numbers
BOUNDS_TOLERANCE = 0.5  # pixels a coordinate may lie outside the image (rounding of annotation tools)


@dataclass(frozen=True)
class ObjectRow:
    """One annotated part: a description and exactly one geometry in displayed pixels."""

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
            points = list(self.points)  # thinner than the rounding, which would make it unreadable
        return {"desc": self.desc, self.kind: points}


@dataclass(frozen=True)
class Row:
    """One annotated photo."""

    images: tuple[str, ...]
    objects: tuple[ObjectRow, ...]
    width: int
    height: int
    summary: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        row: dict[str, Any] = {
            "images": list(self.images),
            "objects": [item.to_json() for item in self.objects],
            "width": self.width,
            "height": self.height,
        }
        if self.summary is not None:
            row["summary"] = self.summary
        if self.metadata:
            row["metadata"] = dict(self.metadata)
        return row


@dataclass(frozen=True)
class FewShotSample:
    """Worked examples (teachers) and the photo to be learned or predicted (student)."""

    student: Row
    teachers: tuple[Row, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {"teachers": [row.to_json() for row in self.teachers], "student": self.student.to_json()}


@dataclass(frozen=True)
class PredictedObject:
    """One predicted part: xyxy box in displayed pixels, words, and two confidences in [0, 1].

    ``score`` ranks by description (objectness × probability of the words), ``objectness`` class-agnostically.
    """

    box: tuple[float, float, float, float]
    desc: str
    score: float
    objectness: float

    def to_json(self) -> dict[str, Any]:
        return {
            "bbox_2d": [round(value, 2) for value in self.box],
            "desc": self.desc,
            "score": round(self.score, 6),
            "objectness": round(self.objectness, 6),
        }


@dataclass(frozen=True)
class PredictionRow:
    """All predictions for one photo, or the reason why there are none."""

    images: tuple[str, ...]
    width: int = 0
    height: int = 0
    predictions: tuple[PredictedObject, ...] = ()
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        if self.error is not None:
            return {"images": list(self.images), "error": self.error}
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
        prefix: dotted path in front of the field names.

    Raises:
        RecordError: names ``where``, the field, the value and the fix.
    """
    check = _Checker(where, prefix)
    check.keys(value, required=("images", "objects", "width", "height"), optional=("summary", "metadata"))
    width = check.size(value["width"], "width")
    height = check.size(value["height"], "height")
    objects = check.list(value["objects"], "objects")
    summary = value.get("summary")
    if summary is not None and not isinstance(summary, str):
        check.fail("summary", f"must be text, is {_show(summary)}")
    metadata = value.get("metadata", {})
    if not isinstance(metadata, dict):
        check.fail("metadata", f"must be an object, is {_show(metadata)}")
    return Row(
        images=check.images(value["images"]),
        objects=tuple(
            _parse_object(item, _Checker(where, f"{prefix}objects[{index}]."), width, height)
            for index, item in enumerate(objects)
        ),
        width=width,
        height=height,
        summary=summary,
        metadata=metadata,
    )


def parse_sample(value: Any, where: str) -> FewShotSample:
    """A few-shot sample, or a plain row, which is a student without teachers."""
    if isinstance(value, dict) and ("student" in value or "teachers" in value):
        check = _Checker(where, "")
        check.keys(value, required=("student",), optional=("teachers",))
        teachers = check.list(value.get("teachers", []), "teachers")
        return FewShotSample(
            student=parse_row(value["student"], where, "student."),
            teachers=tuple(parse_row(row, where, f"teachers[{i}].") for i, row in enumerate(teachers)),
        )
    return FewShotSample(student=parse_row(value, where))


def parse_prediction_row(value: Any, where: str) -> PredictionRow:
    """Check one decoded prediction row.

    Raises:
        RecordError: as parse_row.
    """
    check = _Checker(where, "")
    if isinstance(value, dict) and "error" in value:
        check.keys(value, required=("images", "error"))
        return PredictionRow(images=check.images(value["images"]), error=check.text(value["error"], "error"))
    check.keys(value, required=("images", "width", "height", "predictions"))
    width, height = check.size(value["width"], "width"), check.size(value["height"], "height")
    predictions = []
    for index, item in enumerate(check.list(value["predictions"], "predictions")):
        inner = _Checker(where, f"predictions[{index}].")
        inner.keys(item, required=("bbox_2d", "desc", "score"), optional=("objectness",))
        box = inner.numbers(item["bbox_2d"], "bbox_2d", fewest=4)
        if len(box) != 4:
            inner.fail("bbox_2d", f"needs 4 numbers, has {len(box)}")
        if not isinstance(item["desc"], str):
            inner.fail("desc", f"must be text, is {_show(item['desc'])}")
        score = inner.unit(item["score"], "score")
        objectness = inner.unit(item.get("objectness", item["score"]), "objectness")
        predictions.append(PredictedObject((box[0], box[1], box[2], box[3]), item["desc"], score, objectness))
    return PredictionRow(check.images(value["images"]), width, height, tuple(predictions))


def _parse_object(value: Any, check: _Checker, width: int, height: int) -> ObjectRow:
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
    return ObjectRow(desc=check.text(value["desc"], "desc"), kind=kind, points=points)


class _Checker:
    """Typed look-ups that fail with file, line and field."""

    def __init__(self, where: str, prefix: str) -> None:
        self.where, self.prefix = where, prefix

    def fail(self, name: str, why: str) -> None:
        raise RecordError(self.where, f"{self.prefix}{name}", why)

    def keys(self, value: Any, required: tuple[str, ...], optional: tuple[str, ...] = ()) -> None:
        if not isinstance(value, dict):
            raise RecordError(self.where, self.prefix.rstrip(".") or "row", f"must be a JSON object, is {_show(value)}")
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
            self.fail(name, f"must be a list, is {_show(value)}")
        return value  # type: ignore[no-any-return]

    def text(self, value: Any, name: str) -> str:
        if not isinstance(value, str) or not value.strip():
            self.fail(name, f"must be non-empty text, is {_show(value)}")
        if any("\ud800" <= letter <= "\udfff" for letter in value):
            self.fail(name, f"holds half a character (a lone surrogate), is {_show(value)}")
        return value  # type: ignore[no-any-return]

    def size(self, value: Any, name: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            self.fail(name, f"must be a whole number of pixels above 0, is {_show(value)}")
        return value  # type: ignore[no-any-return]

    def unit(self, value: Any, name: str) -> float:
        number = self.number(value, name)
        if not 0 <= number <= 1:
            self.fail(name, f"must lie in [0, 1], is {number:g}")
        return number

    def number(self, value: Any, name: str) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.fail(name, f"must be a number, is {_show(value)}")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            self.fail(name, f"must be a finite number, is {_show(value)}")
        return number

    def numbers(self, value: Any, name: str, fewest: int) -> tuple[float, ...]:
        items = self.list(value, name)
        if len(items) < fewest:
            self.fail(name, f"needs at least {fewest} numbers, has {len(items)}")
        return tuple(self.number(item, f"{name}[{index}]") for index, item in enumerate(items))

    def images(self, value: Any) -> tuple[str, ...]:
        items = self.list(value, "images")
        if not items:
            self.fail("images", "needs at least one path")
        return tuple(self.text(item, f"images[{index}]") for index, item in enumerate(items))


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _tidy(value: float) -> float | int:
    """Two decimals of a pixel, and whole numbers without a point, keep files small and diffs readable."""
    rounded = round(value, 2)
    return int(rounded) if rounded == int(rounded) else rounded


# ---------------------------------------------------------------- files


def decode_json(text: str, where: str) -> Any:
    """JSON without its traps: NaN, Infinity and duplicate keys are errors.

    Raises:
        RecordError: with ``where`` and the reason.
    """

    def refuse(constant: str) -> Any:
        raise RecordError(where, "row", f"{constant} is not valid JSON; write a finite number")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise RecordError(where, twice, "appears twice in one object; remove one of the two")
        return result

    try:
        return json.loads(text, parse_constant=refuse, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        place = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno}, column {error.colno}"
        raise RecordError(where, "row", f"is not valid JSON: {error.msg} at {place}") from None
    except ValueError as error:  # an integer of thousands of digits
        if isinstance(error, RecordError):
            raise
        raise RecordError(where, "row", f"is not valid JSON: {error}") from None
    except RecursionError:
        raise RecordError(where, "row", "is nested too deeply to be a record") from None


def iter_json_lines(path: str | Path) -> Iterator[tuple[str, Any]]:
    """Yield (``file:line``, decoded value) for every non-blank line.

    Raises:
        RecordError: a missing file, bytes that are not UTF-8, or a line that is not JSON.
    """
    path = Path(path)
    if not path.is_file():
        raise RecordError(str(path), "file", "does not exist or is not a file")
    with path.open("rb") as stream:
        for number, raw in enumerate(stream, start=1):
            where = f"{path}:{number}"
            try:
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise RecordError(where, "row", f"is not UTF-8 ({error.reason}); save the file as UTF-8") from None
            if text.strip():
                yield where, decode_json(text, where)


def read_rows(path: str | Path) -> list[Row]:
    """All annotated rows of a JSONL file.

    Raises:
        RecordError: the first row that breaks the contract.
    """
    return [parse_row(value, where) for where, value in iter_json_lines(path)]


def read_samples(path: str | Path) -> list[FewShotSample]:
    """All samples of a JSONL file; a plain row is a student without teachers."""
    return [parse_sample(value, where) for where, value in iter_json_lines(path)]


def read_predictions(path: str | Path) -> list[PredictionRow]:
    """All rows of a predictions file."""
    return [parse_prediction_row(value, where) for where, value in iter_json_lines(path)]


def resolve_image(root: str | Path, name: str) -> Path:
    """The file an image path means, kept inside ``root``.

    Raises:
        UserError: the path leaves the root (``..``, an absolute path elsewhere, or a link out of it), or is none.
    """
    root = Path(root).resolve()
    try:
        path = (root / name).resolve()
    except (ValueError, OSError, RuntimeError) as error:  # a null character, or links in a circle
        raise UserError(f"image path {name!r} under {root} cannot be followed: {error}") from None
    if not path.is_relative_to(root):
        raise UserError(f"image path {name!r} leaves its folder {root}; move the file inside or change the image root")
    return path


@contextmanager
def atomic_writer(path: str | Path) -> Iterator[IO[str]]:
    """A UTF-8 text file that appears whole or not at all.

    Raises:
        UserError: nothing can be written there; known before the first line is asked for.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise UserError(f"{path}: is a folder; name a file in it")
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as stream:
            yield stream
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_jsonl(path: str | Path, rows: Iterable[Any]) -> int:
    """Write rows (anything with ``to_json``, or plain JSON values); returns how many."""
    count = 0
    with atomic_writer(path) as stream:
        for row in rows:
            value = row.to_json() if hasattr(row, "to_json") else row
            stream.write(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n")
            count += 1
    return count


def write_json(path: str | Path, value: Any) -> None:
    """Write one JSON document, indented, atomically."""
    with atomic_writer(path) as stream:
        json.dump(value, stream, ensure_ascii=False, indent=2, allow_nan=False)
        stream.write("\n")
