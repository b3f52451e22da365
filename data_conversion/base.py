"""What formats hand to the pipeline and take from the exporter.

In: ``iter_records(root, options)`` yields one item per photo: a SourceImage, or a BadSource that says why there is
none; and a SourceNote for an oddity of no single photo. It reads annotations only, always in the same order, and holds
one photo's at a time, so that memory does not grow with the data set; the pipeline opens the photos.

Out: ``write_records(photos, folder)`` writes the annotation files of ExportPhoto items, one at a time, and counts what
the format cannot hold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bbu.geometry import enclosing_box, thicken

SPLITS = ("train", "val", "test")

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
        missing: why the photo was not found; "" if it was. It matters only where photos are opened.
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
    missing: str = ""


@dataclass(frozen=True)
class BadSource:
    """A photo or annotation file that yields no record."""

    source: str
    field: str
    detail: str
    reason: str = MALFORMED


@dataclass(frozen=True)
class SourceNote:
    """A harmless oddity of a whole source or file: ``code`` is counted in the report, as those of photos."""

    source: str
    code: str


SourceItem = SourceImage | BadSource | SourceNote


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

    def box(self, item: ExportObject) -> tuple[float, float, float, float]:
        """xyxy around an object; that of a line is at least MIN_BOX_THICKNESS thick, since tools drop flat boxes."""
        box = enclosing_box(item.points)
        return thicken(box, self.width, self.height) if item.kind == "line" else box


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
        shares: whether its coordinates are pixels by habit alone, so that a source may hold shares of the photo.
    """

    read: IterRecords | None
    summary: str
    write: WriteRecords | None = None
    photo_place: Callable[[str, str | None], str] = lambda image, split: image
    shares: bool = False


def readable(text: str) -> str:
    """Text that can be written: lone surrogates (from JSON escapes, or file names not in UTF-8) are escaped."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
