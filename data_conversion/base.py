"""What formats hand to the pipeline and take from the exporter, and the checks that all formats share.

In: ``iter_records(root, options)`` yields one item per photo: a SourceImage, or a BadSource that says why there is
none. It reads annotations only, always in the same order, and holds one photo's at a time, so that memory does not
grow with the data set; the pipeline opens the photos.

Out: ``write_records(photos, folder)`` writes the annotation files of ExportPhoto items, one at a time, and counts what
the format cannot hold.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bbu.errors import RecordError, shown
from bbu.images import IMAGE_SUFFIXES as IMAGE_SUFFIXES  # re-exported: one list of photo suffixes for all formats

SPLITS = ("train", "val", "test")
MAX_COORDINATE = 1e6  # pixels; a larger number is no pixel coordinate and would overflow later sums
MAX_IMAGE_SIDE = 1_000_000  # pixels

MALFORMED = "malformed"  # the only reason that stops a conversion when on_error is "fail"


@dataclass(frozen=True)
class RawObject:
    """One annotated object as the source gives it.

    Args:
        desc: raw description path.
        kind: ``bbox_2d`` (points = x1, y1, x2, y2), ``poly`` or ``line`` (points = x, y, …).
        points: pixels in the frame of the SourceImage, or fractions of it (see SourceImage.relative).
        field: dotted path in the source file, for reports.
    """

    desc: str
    kind: str
    points: tuple[float, ...]
    field: str


@dataclass(frozen=True)
class Dropped:
    """An object that was read but not kept: ``reason`` is a short code, ``detail`` explains it."""

    label: str
    reason: str
    detail: str
    field: str


@dataclass(frozen=True)
class SourceImage:
    """One annotated photo.

    Args:
        image: path of the photo relative to the source root, with ``/``.
        source: path of the annotation file relative to the source root.
        objects: in file order; those that the format itself cannot use are Dropped.
        size: (width, height) that the annotation declares; None means the size of the file.
        displayed: points are pixels of the displayed photo, otherwise of the stored, un-rotated file.
        relative: points are fractions of the frame's width and height, 0 to 1, instead of pixels.
        split: the source's own split, one of SPLITS, or None.
        summary: text about the whole photo (an image caption), or None.
        group: name of the site or series that the photo belongs to, or None.
        content: bytes of the photo file where the source itself holds them (Parquet, Arrow); ``image`` is then the
            name that the file gets.
        notes: codes of harmless oddities, counted in the report.
    """

    image: str
    source: str
    objects: tuple[RawObject | Dropped, ...]
    size: tuple[int, int] | None = None
    displayed: bool = False
    relative: bool = False
    split: str | None = None
    summary: str | None = None
    group: str | None = None
    content: bytes | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class BadSource:
    """A photo or annotation file that yields no record."""

    source: str
    field: str
    detail: str
    reason: str = MALFORMED


SourceItem = SourceImage | BadSource


@dataclass(frozen=True)
class SourceOptions:
    """What a reader may need to know.

    Args:
        language: ``zh`` or ``en``: which label to read where the source has both.
        ignore: a folder inside the source that is not part of it (the output folder).
    """

    language: str = "zh"
    ignore: Path | None = None


@dataclass(frozen=True)
class ExportObject:
    """One object to be written: final description, geometry as in a record, and the score of a prediction."""

    desc: str
    kind: str  # "bbox_2d", "poly" or "line"
    points: tuple[float, ...]  # displayed pixels
    score: float | None = None


@dataclass(frozen=True)
class ExportPhoto:
    """One photo to be written.

    Args:
        image: path relative to the image root, with ``/``; unique in an export.
        width, height: displayed pixels.
        objects: in order.
        split: one of SPLITS, or None.
        summary: text about the whole photo, or None.
    """

    image: str
    width: int
    height: int
    objects: tuple[ExportObject, ...]
    split: str | None = None
    summary: str | None = None


# What a format could not hold: a short phrase, e.g. "line written as its box" → count.
ExportLosses = Counter[str]

IterRecords = Callable[[Path, SourceOptions], Iterator[SourceItem]]
WriteRecords = Callable[[Iterator[ExportPhoto], Path], ExportLosses]


@dataclass(frozen=True)
class Format:
    """One entry of the table of formats.

    Args:
        read: annotation files → items; None if the format can only be written.
        summary: one line for ``--help``.
        write: items → annotation files in a new, empty folder; None if the format can only be read.
        photo_place: (image, split) → where tools look for the photo, relative to the written folder.
    """

    read: IterRecords | None
    summary: str
    write: WriteRecords | None = None
    photo_place: Callable[[str, str | None], str] = lambda image, split: image


def read_each(root: Path, files: Iterable[Path], read: Callable[[Path, str], SourceItem]) -> Iterator[SourceItem]:
    """``read(file, relative name)`` for every file; its errors become BadSource items."""
    for file in files:
        yield from read_file(root, file, lambda path, where: iter([read(path, where)]))


def read_file(root: Path, file: Path, read: Callable[[Path, str], Iterable[SourceItem]]) -> Iterator[SourceItem]:
    """The items of ``read(file, relative name)``; an error ends them with a BadSource."""
    name = file.relative_to(root).as_posix()
    if readable(name) != name:
        yield BadSource(readable(name), "file", "has a name that is not UTF-8; rename it")
        return
    try:
        yield from read(file, name)
    except (RecordError, OSError) as error:
        yield bad_source(error, name)


def bad_source(error: RecordError | OSError, where: str = "") -> BadSource:
    """The item for an error; ``where`` is the annotation file, which an OSError does not name."""
    if isinstance(error, RecordError):
        return BadSource(error.where, error.field, error.why)
    return BadSource(where, "file", f"cannot be read ({error.strerror or error})")


def readable(text: str) -> str:
    """Text that can be written: lone surrogates (from JSON escapes, or file names not in UTF-8) are escaped."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def declared_size(width: Any, height: Any, where: str, field: str) -> tuple[int, int] | None:
    """As check_size; None where neither side is declared."""
    return None if width is None and height is None else check_size(width, height, where, field)


def check_size(width: Any, height: Any, where: str, field: str) -> tuple[int, int]:
    """A declared (width, height) in pixels.

    Raises:
        RecordError: not whole numbers in 1 … MAX_IMAGE_SIDE.
    """
    return _side(width, where, f"{field}.width"), _side(height, where, f"{field}.height")


def _side(value: Any, where: str, field: str) -> int:
    number = check_number(value, where, field)
    if number != int(number) or not 1 <= number <= MAX_IMAGE_SIDE:
        raise RecordError(where, field, f"must be a whole number of pixels above 0, is {value!r}")
    return int(number)


def check_number(value: Any, where: str, field: str) -> float:
    """A finite number of pixels.

    Raises:
        RecordError: anything else.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RecordError(where, field, f"must be a number, is {shown(value)}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not abs(number) <= MAX_COORDINATE:
        raise RecordError(where, field, f"must be a pixel coordinate, is {shown(value)}")
    return number


def parse_number(text: str, where: str, field: str) -> float:
    """A finite number of pixels, written as text.

    Raises:
        RecordError: anything else.
    """
    try:
        number = float(text)
    except ValueError:
        raise RecordError(where, field, f"must be a number, is {shown(text)}") from None
    return check_number(number, where, field)


def check_text(value: str, where: str, field: str) -> str:
    """Text that can be written as UTF-8.

    Raises:
        RecordError: half of a surrogate pair.
    """
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise RecordError(where, field, f"holds a broken character, is {shown(value)}; type it again") from None
    return value


def as_text(value: Any, where: str, field: str) -> str:
    """Text without blanks at its ends.

    Raises:
        RecordError: anything else, or half of a surrogate pair.
    """
    if not isinstance(value, str):
        raise RecordError(where, field, f"must be text, is {shown(value)}")
    return check_text(value.strip(), where, field)


def as_mapping(value: Any, where: str, field: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        RecordError: anything else.
    """
    if not isinstance(value, dict):
        raise RecordError(where, field, f"must be a JSON object, is {type(value).__name__}")
    return value


def as_list(value: Any, where: str, field: str) -> list[Any]:
    """A JSON list.

    Raises:
        RecordError: anything else.
    """
    if not isinstance(value, list):
        raise RecordError(where, field, f"must be a list, is {type(value).__name__}")
    return value


def as_points(value: Any, where: str, field: str) -> list[tuple[float, float]]:
    """``[[x, y], …]`` in pixels.

    Raises:
        RecordError: anything else, naming the number.
    """
    points = []
    for index, item in enumerate(as_list(value, where, field)):
        name = f"{field}[{index}]"
        pair = as_list(item, where, name)
        if len(pair) != 2:
            raise RecordError(where, name, f"must be a point [x, y], has {len(pair)} numbers")
        points.append((check_number(pair[0], where, f"{name}[0]"), check_number(pair[1], where, f"{name}[1]")))
    return points


def as_box(value: Any, where: str, field: str) -> tuple[float, float, float, float]:
    """``[x, y, width, height]`` in pixels.

    Raises:
        RecordError: anything else, naming the number.
    """
    numbers = as_list(value, where, field)
    if len(numbers) != 4:
        raise RecordError(where, field, f"needs 4 numbers [x, y, width, height], has {len(numbers)}")
    x, y, width, height = (check_number(number, where, f"{field}[{i}]") for i, number in enumerate(numbers))
    return x, y, width, height


def box_of_corners(desc: str, corners: tuple[float, float, float, float], field: str) -> RawObject | Dropped:
    """A box from its corners (x1, y1, x2, y2); Dropped if they are swapped or coincide."""
    x1, y1, x2, y2 = corners
    text = f"corners ({x1:g}, {y1:g}, {x2:g}, {y2:g})"
    if x2 < x1 or y2 < y1:
        return Dropped(desc, "inverted_box", f"{text} are swapped", field)
    if x2 == x1 or y2 == y1:
        return Dropped(desc, "zero_area", f"{text} coincide", field)
    return RawObject(desc, "bbox_2d", corners, field)


def box_of_size(desc: str, box: tuple[float, float, float, float], field: str) -> RawObject | Dropped:
    """A box from its (x, y, width, height); Dropped if a side is 0 or negative."""
    x, y, width, height = box
    if min(width, height) < 0:
        return Dropped(desc, "inverted_box", f"width {width:g}, height {height:g} are below 0", field)
    if min(width, height) == 0:
        return Dropped(desc, "zero_area", f"width {width:g}, height {height:g}", field)
    return RawObject(desc, "bbox_2d", (x, y, x + width, y + height), field)
