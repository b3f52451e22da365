"""What a format hands to the pipeline and takes from the exporter, and the checks that every format shares.

In: ``iter_records(root, options)`` yields one item a photo: a SourceImage, or a BadSource that says why there is
none. It reads annotations only, one photo's at a time (memory must not grow with the data set), always in the
same order; the pipeline opens the photos.

Out: ``write_records(photos, folder)`` writes annotation files for ExportPhoto items, one at a time, and reports
what the format cannot hold.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bbu.errors import RecordError, shown
from bbu.images import IMAGE_SUFFIXES as IMAGE_SUFFIXES  # for the formats: what counts as a photo is one truth

SPLITS = ("train", "val", "test")
MAX_COORDINATE = 1e6  # pixels; more is no pixel coordinate, and would overflow later sums
MAX_IMAGE_SIDE = 1_000_000  # pixels

MALFORMED = "malformed"  # the one reason that stops a conversion when on_error is "fail"


@dataclass(frozen=True)
class RawObject:
    """One annotated object as the source gives it.

    Args:
        desc: raw description path.
        kind: ``bbox_2d`` (points = x1, y1, x2, y2), ``poly`` or ``line`` (points = x, y, …).
        points: pixels in the frame of the SourceImage, or shares of it (see SourceImage.relative).
        field: dotted path in the source file, for reports.
    """

    desc: str
    kind: str
    points: tuple[float, ...]
    field: str


@dataclass(frozen=True)
class Dropped:
    """One object that was read and not kept: ``reason`` is a short code, ``detail`` says it in words."""

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
        size: (width, height) that the annotation declares, or None: then the file's own.
        displayed: points are pixels of the displayed photo; otherwise of the stored, un-rotated file.
        relative: points are shares of the frame's width and height, 0 to 1, instead of pixels.
        split: the source's own split, one of SPLITS, or None.
        summary: words about the whole photo (an image caption), or None.
        group: name of the site or series that the photo belongs to, or None.
        content: the photo file's bytes where the source holds them itself (Parquet, Arrow); ``image`` is then
            the name it gets.
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
    """A photo or annotation file that gives no record."""

    source: str
    field: str
    detail: str
    reason: str = MALFORMED


SourceItem = SourceImage | BadSource


@dataclass(frozen=True)
class SourceOptions:
    """What a format may need to know.

    Args:
        language: ``zh`` or ``en``: the label to read where the source has both.
        ignore: a folder inside the source that is not part of it (the output folder).
    """

    language: str = "zh"
    ignore: Path | None = None


@dataclass(frozen=True)
class ExportObject:
    """One part to be written: final description, geometry as in a record, and a score if it is a prediction."""

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
        summary: words about the whole photo, or None.
    """

    image: str
    width: int
    height: int
    objects: tuple[ExportObject, ...]
    split: str | None = None
    summary: str | None = None


# What a format could not hold: short words, e.g. "line written as its box" → count.
Losses = Counter[str]

IterRecords = Callable[[Path, SourceOptions], Iterator[SourceItem]]
WriteRecords = Callable[[Iterator[ExportPhoto], Path], Losses]


@dataclass(frozen=True)
class Format:
    """One line of the table of formats.

    Args:
        read: annotation files → items; None: written only.
        write: items → annotation files in a new, empty folder, with the photos expected where ``photo_place``
            says; None: read only.
        photo_place: (image, split) → where a tool that opens the written folder looks for the photo, relative
            to that folder.
        summary: what it is, in a line, for ``--help``.
    """

    read: IterRecords | None
    summary: str
    write: WriteRecords | None = None
    photo_place: Callable[[str, str | None], str] = lambda image, split: image


def read_each(root: Path, files: Iterable[Path], read: Callable[[Path, str], SourceItem]) -> Iterator[SourceItem]:
    """``read(file, relative name)`` for every file; its errors become BadSource items."""
    for file in files:
        name = file.relative_to(root).as_posix()
        if readable(name) != name:
            yield BadSource(readable(name), "file", "has a name that is not UTF-8; rename it")
            continue
        try:
            yield read(file, name)
        except RecordError as error:
            yield BadSource(error.where, error.field, error.why)
        except OSError as error:
            yield BadSource(name, "file", f"cannot be read ({error.strerror or error})")


def readable(text: str) -> str:
    """Text that can be written: halves of surrogate pairs (JSON escapes, file names not in UTF-8) are spelt out."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def check_size(width: Any, height: Any, where: str, field: str) -> tuple[int, int]:
    """A declared image size in pixels.

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
