"""Read the rows of all splits leniently: a broken line becomes an example of a finding, the rest is kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bbu.doctor.findings import Example, Finding, finding
from bbu.errors import RecordError
from bbu.jsonl import decode_json
from bbu.records import BOUNDS_TOLERANCE, GEOMETRIES, FewShotSample, Row, parse_row, parse_sample

SPLITS = ("train", "teacher", "val", "test")
LEARNT = ("train", "teacher")  # splits whose photos the model learns from


@dataclass(frozen=True)
class Sample:
    """One line of a split; ``where`` is file name and line."""

    split: str
    where: str
    sample: FewShotSample

    @property
    def row(self) -> Row:
        """The student."""
        return self.sample.student

    @property
    def shown(self) -> tuple[Row, ...]:
        """Rows of all photos in it: teachers, context, student."""
        return (*self.sample.teachers, *self.sample.context, self.row)

    @property
    def name(self) -> str:
        """The student's photo."""
        return self.row.images[0]


@dataclass
class Rows:
    """Readable samples, and examples of the lines and objects that are not."""

    samples: list[Sample] = field(default_factory=list)
    bad: list[Example] = field(default_factory=list)
    outside: list[Example] = field(default_factory=list)

    def of(self, *splits: str) -> list[Sample]:
        return [sample for sample in self.samples if sample.split in splits]

    def findings(self) -> list[Finding]:
        found = [finding("bad_row", self.bad)] if self.bad else []
        return found + ([finding("box_outside_photo", self.outside)] if self.outside else [])


def read_folder(folder: Path) -> Rows:
    """All lines of train.jsonl, teacher.jsonl, val.jsonl and test.jsonl; a file that is absent has none."""
    rows = Rows()
    for split in SPLITS:
        path = folder / f"{split}.jsonl"
        for where, raw in _lines(path) if path.is_file() else ():
            _read_line(rows, split, where, raw)
    return rows


def _lines(path: Path) -> Iterator[tuple[str, bytes]]:
    with path.open("rb") as stream:
        for number, raw in enumerate(stream, start=1):
            if raw.strip():
                yield f"{path.name}:{number}", raw


def _read_line(rows: Rows, split: str, where: str, raw: bytes) -> None:
    try:
        value = decode_json(raw.decode("utf-8-sig"), where)
    except UnicodeDecodeError as error:
        rows.bad.append(Example(where, detail=f"is not UTF-8 ({error.reason})"))
        return
    except RecordError as error:
        rows.bad.append(Example(where, object=error.field, detail=error.why))
        return
    outside = [example for row in _raw_rows(value) for example in _cut_outside(row, where)]
    rows.outside += outside
    try:
        sample = parse_sample(value, where) if split == "train" else FewShotSample(parse_row(value, where))
    except RecordError as error:
        rows.bad.append(Example(where, _photo(value), error.field, error.why))
        return
    rows.samples.append(Sample(split, where, sample))


def _raw_rows(value: Any) -> list[dict[str, Any]]:
    """The mappings of student, teachers and context in a decoded line."""
    if not isinstance(value, dict):
        return []
    lists = (value.get("teachers"), value.get("context"))
    inner = [value.get("student"), *(row for rows in lists if isinstance(rows, list) for row in rows)]
    return [row for row in (value, *inner) if isinstance(row, dict) and isinstance(row.get("objects"), list)]


def _photo(value: Any) -> str:
    images = next((row.get("images") for row in _raw_rows(value)), None)
    return str(images[0]) if isinstance(images, list) and images else ""


def _cut_outside(row: dict[str, Any], where: str) -> list[Example]:
    """Remove objects with coordinates outside the photo from a decoded row, so the rest of it can be checked."""
    limits = row.get("width"), row.get("height")
    if not all(isinstance(limit, int) and limit > 0 for limit in limits):
        return []
    found, kept = [], []
    for item in row["objects"]:
        points = next((item[kind] for kind in GEOMETRIES if kind in item), None) if isinstance(item, dict) else None
        if isinstance(points, list) and _beyond(points, limits):
            found.append(Example(where, _photo(row), str(item.get("desc")), f"{points} in {limits[0]}x{limits[1]}"))
        else:
            kept.append(item)
    row["objects"] = kept
    return found


def _beyond(points: list[Any], limits: tuple[Any, Any]) -> bool:
    return all(isinstance(value, int | float) for value in points) and any(
        not -BOUNDS_TOLERANCE <= value <= limits[index % 2] + BOUNDS_TOLERANCE for index, value in enumerate(points)
    )
