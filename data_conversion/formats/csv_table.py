"""CSV tables at the root, one row a part: ``image,x1,y1,x2,y2,desc`` in any order, with a header.

    image,x1,y1,x2,y2,desc,split,group,width,height
    photos/a.jpg,10,20,110,80,screw/loose,train,site 4,1440,1920
    photos/b.jpg,,,,,,val,,,                                          nothing to see in b.jpg

Separated by ``,`` ``;`` or tab (told by the header), UTF-8, quotes doubled. Corners are edges in pixels from 0 of the
photo as displayed. Optional: split (else the file name may say it: ``train.csv``), group, and the width and height of
the frame that the corners are measured in. Other columns, such as score, are left out and noted. A photo's rows may
lie anywhere in one file. A photo is looked for in ``images/``, at the root, and anywhere if its name is unique.
"""

from __future__ import annotations

import csv
import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path

from bbu.errors import RecordError
from data_conversion.base import (
    BadSource,
    Dropped,
    RawObject,
    SourceImage,
    SourceItem,
    SourceOptions,
    check_number,
    check_size,
    readable,
)
from data_conversion.formats.grouping import Shelves, named_split
from data_conversion.formats.source_photos import find_photo, unnamed_photos
from data_conversion.locating import PhotoFinder

CORNERS = ("x1", "y1", "x2", "y2")
REQUIRED = ("image", *CORNERS, "desc")
OF_PHOTO = ("split", "group", "width", "height")  # optional; the same in all rows of a photo that fill them
DELIMITERS = ",;\t"

_NAMED = "named"  # shelf of photos

Row = tuple[str, dict[str, str], str | None]  # file:line, column → text, what is wrong with the row


def iter_records(root: Path, options: SourceOptions = SourceOptions()) -> Iterator[SourceItem]:  # noqa: B008 (frozen)
    """Yield one item for each photo of each table, in order of first rows, then one for each photo in none."""
    finder = PhotoFinder(root)
    with Shelves() as shelves:
        for path in sorted(path for path in root.glob("*.csv") if path.name[0] != "."):
            where = readable(path.name)
            try:
                columns = _shelve_rows(path, where, shelves)
            except RecordError as error:
                yield BadSource(error.where, error.field, error.why)
                continue
            except OSError as error:
                yield BadSource(where, "file", f"cannot be read ({error.strerror or error})")
                continue
            notes = tuple(f"column not read: {name}" for name in columns if name not in REQUIRED + OF_PHOTO)
            for image in shelves.keys(where):
                yield from _read_photo(where, image, shelves, finder, notes)
        yield from unnamed_photos(root, options.ignore, shelves, _NAMED)


def _shelve_rows(path: Path, where: str, shelves: Shelves) -> list[str]:
    """Put the rows of a table on the shelf of its name, by photo; returns the columns.

    Raises:
        RecordError: the file is no such table; nothing of it counts then.
    """
    with path.open(encoding="utf-8-sig", newline="") as stream:
        line = 0
        try:
            header = stream.readline()
            columns = _read_header(header, where)
            rows = csv.reader(stream, delimiter=_delimiter(header), strict=True)
            line = 1
            for cells in rows:
                start, line = line + 1, 1 + rows.line_num
                if any(cell.strip() for cell in cells):
                    row = dict(zip(columns, (cell.strip() for cell in cells), strict=False))
                    wrong = f"has {len(cells)} cells, the header {len(columns)}" if len(cells) != len(columns) else None
                    shelves.put(where, row.get("image", ""), [f"{where}:{start}", row, wrong])
        except UnicodeDecodeError as error:
            raise RecordError(where, "file", f"is not UTF-8 ({error.reason}); save it as UTF-8") from None
        except csv.Error as error:
            raise RecordError(f"{where}:{line + 1}", "row", f"is not valid CSV: {error}") from None
    return columns


def _delimiter(header: str) -> str:
    """The separator that finds most of the required columns."""
    return max(DELIMITERS, key=lambda mark: len(set(REQUIRED) & set(_names(header, mark))))


def _names(header: str, delimiter: str) -> list[str]:
    return [name.strip() for name in next(csv.reader([header], delimiter=delimiter), [])]


def _read_header(header: str, where: str) -> list[str]:
    if not header.strip():
        raise RecordError(f"{where}:1", "header", f"is empty; the first line names the columns {','.join(REQUIRED)}")
    columns = _names(header, _delimiter(header))
    for name in REQUIRED:
        if name not in columns:
            near = difflib.get_close_matches(name, columns, n=1)
            found = f"did you mean {near[0]!r}?" if near else f"found are {', '.join(columns)}"
            raise RecordError(f"{where}:1", name, f"is not a column; {readable(found)}")
    twice = next((name for name in columns if columns.count(name) > 1), None)
    if twice is not None:
        raise RecordError(f"{where}:1", twice, "is a column twice; rename or remove one")
    return columns


def _read_photo(
    table: str, image: str, shelves: Shelves, finder: PhotoFinder, notes: tuple[str, ...]
) -> Iterator[SourceItem]:
    rows: list[Row] = shelves.get(table, image)
    if not image:
        for where, _, _ in rows:
            yield BadSource(where, "image", "is empty; name the photo")
        return
    place = find_photo(finder, image, "images")
    shelves.put(_NAMED, place)
    try:
        yield _photo(table, place, rows, notes)
    except RecordError as error:
        yield BadSource(error.where, error.field, error.why)


def _photo(table: str, place: str, rows: list[Row], notes: tuple[str, ...]) -> SourceImage:
    for where, _, wrong in rows:
        if wrong is not None:
            raise RecordError(where, "row", f"{wrong}; put text with separators in it in quotes")
    parts = [row for row in rows if any(row[1][name] for name in (*CORNERS, "desc"))]
    if parts and len(parts) < len(rows):
        where = next(where for where, cells, _ in rows if not any(cells[name] for name in (*CORNERS, "desc")))
        raise RecordError(where, "desc", f"is empty: nothing to see, and {parts[0][0]} has a part of the same photo")
    of_photo = {name: _of_photo(rows, name) for name in OF_PHOTO}
    return SourceImage(
        image=place,
        source=table,
        objects=tuple(_read_part(cells, where) for where, cells, _ in parts),
        size=_size(of_photo, rows[0][0]),
        displayed=True,
        split=_split(of_photo["split"], rows[0][0]) or named_split(Path(table).stem),
        group=of_photo["group"] or None,
        notes=notes,
    )


def _of_photo(rows: list[Row], name: str) -> str:
    """What the rows of a photo agree on in a column; "" where none fills it."""
    filled = [(where, cells[name]) for where, cells, _ in rows if cells.get(name)]
    for where, value in filled:
        if value != filled[0][1]:
            raise RecordError(where, name, f"is {value!r}, and {filled[0][0]} says {filled[0][1]!r} of the same photo")
    return filled[0][1] if filled else ""


def _split(value: str, where: str) -> str | None:
    split = named_split(value)
    if value and split is None:
        raise RecordError(where, "split", f"must be train, val or test, is {value!r}")
    return split


def _size(of_photo: Mapping[str, str], where: str) -> tuple[int, int] | None:
    if not of_photo["width"] and not of_photo["height"]:
        return None
    width, height = (_number(of_photo[name], where, name) for name in ("width", "height"))
    try:
        return check_size(width, height, where, "size")
    except RecordError as error:
        raise RecordError(where, error.field.removeprefix("size."), error.why) from None


def _read_part(cells: Mapping[str, str], where: str) -> RawObject | Dropped:
    x1, y1, x2, y2 = (_number(cells[name], where, name) for name in CORNERS)
    corners = f"({x1:g}, {y1:g}, {x2:g}, {y2:g})"
    line = where.rpartition(":")[2]
    if not cells["desc"]:
        return Dropped("(no label)", "no_description", "desc is empty", f"line {line}.desc")
    if x2 < x1 or y2 < y1:
        return Dropped(cells["desc"], "inverted_box", f"corners {corners} are swapped", f"line {line}")
    if x2 == x1 or y2 == y1:
        return Dropped(cells["desc"], "zero_area", f"corners {corners} coincide", f"line {line}")
    return RawObject(cells["desc"], "bbox_2d", (x1, y1, x2, y2), f"line {line}")


def _number(text: str, where: str, field: str) -> float:
    if not text:
        raise RecordError(where, field, "is empty, and the row is not")
    try:
        number = float(text)
        if "_" in text:  # 1_000 is Python's way of writing, nobody else's
            raise ValueError
    except ValueError:
        raise RecordError(where, field, f"must be a number, is {text!r}") from None
    return check_number(number, where, field)
