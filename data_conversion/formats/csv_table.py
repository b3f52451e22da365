"""Read CSV tables, one row per object: ``image,x1,y1,x2,y2,desc`` in any order, with a header.

    image,x1,y1,x2,y2,desc,split,group,width,height
    photos/a.jpg,10,20,110,80,screw/loose,train,site 4,1440,1920
    photos/b.jpg,,,,,,val,,,                                          nothing to see in b.jpg

Tables lie at the root or, if there are none, one folder down. UTF-8 or UTF-16 with a mark (Excel's "Unicode text"),
separated by ``,`` ``;`` or tab (found from the header), quotes doubled. Columns may have the names of ALIASES, such as
TensorFlow's ``filename,width,height,class,xmin,ymin,xmax,ymax``. Corners are edges in pixels from 0 of the displayed
photo. Optional columns: split (or the file name gives it: ``train.csv``), group, and the width and height of the frame
that the corners are measured in. Other columns, such as score, are not read, and noted. A photo's rows may be anywhere
in one file. A photo is looked for in ``images/`` and beside the table, then as ``locating`` does.
"""

from __future__ import annotations

import csv
import difflib
import posixpath
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from bbu.errors import RecordError, shown
from data_conversion.base import BadSource, Dropped, RawObject, SourceImage, SourceItem, SourceOptions, readable
from data_conversion.formats.checks import box_of_corners, declared_size, parse_number
from data_conversion.formats.disk_multimap import DiskMultimap
from data_conversion.formats.files import (
    annotation_files,
    bad_source,
    named_split,
    open_text,
    or_bad_source,
    split_of_file,
)
from data_conversion.formats.salvage import salvage, upright
from data_conversion.formats.source_photos import unnamed_photos
from data_conversion.locating import Found, PhotoFinder

CORNERS = ("x1", "y1", "x2", "y2")
REQUIRED = ("image", *CORNERS, "desc")
OF_PHOTO = ("split", "group", "width", "height")  # optional; rows of one photo must agree
DELIMITERS = ",;\t"
# What other tools call a column, in lower case; of several the first that is there
ALIASES = {
    "image": ("filename", "file_name", "image_name", "image_path", "img", "file", "image_id", "imageid", "path"),
    "x1": ("xmin", "x_min", "left", "xtl"),
    "y1": ("ymin", "y_min", "top", "ytl"),
    "x2": ("xmax", "x_max", "right", "xbr"),
    "y2": ("ymax", "y_max", "bottom", "ybr"),
    "desc": ("class", "label", "category", "class_name", "label_name", "labelname", "category_name", "description"),
    "split": ("subset",),
    "width": ("image_width", "img_width"),
    "height": ("image_height", "img_height"),
}

_NAMED = "named"  # map of the photos that tables name

Row = tuple[str, dict[str, str], str | None]  # file:line, column → text, what is wrong with the row


def iter_records(root: Path, options: SourceOptions = SourceOptions()) -> Iterator[SourceItem]:  # noqa: B008 (frozen)
    """Yield one item for each photo of each table, by its first row, then one for each photo in no table."""
    finder = PhotoFinder(root, options.ignore)
    with DiskMultimap() as store:
        for path in annotation_files(root, "*.csv", options.ignore):
            where = readable(path.relative_to(root).as_posix())
            try:
                columns = _store_rows(path, where, store)
            except (RecordError, OSError) as error:
                yield bad_source(error, where)
                continue
            notes = tuple(f"column not read: {name}" for name in columns if name not in REQUIRED + OF_PHOTO)
            for image in store.keys(where):
                yield from _read_photo(where, image, store, finder, notes)
        yield from unnamed_photos(root, options.ignore, store, _NAMED)


def _store_rows(path: Path, where: str, store: DiskMultimap) -> list[str]:
    """Put the rows of a table into the map of its name, by photo; returns the columns.

    Raises:
        RecordError: the file is no such table; none of its rows count then.
    """
    with open_text(path, where) as stream:
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
                    store.put(where, row.get("image", ""), [f"{where}:{start}", row, wrong])
        except csv.Error as error:
            raise RecordError(f"{where}:{line + 1}", "row", f"is not valid CSV: {error}") from None
    return columns


def _delimiter(header: str) -> str:
    """The separator that yields most of the required columns."""
    return max(DELIMITERS, key=lambda mark: len(set(REQUIRED) & set(_names(header, mark))))


def _names(header: str, delimiter: str) -> list[str]:
    """The columns, by the names that this reader has for them."""
    names = [name.strip() for name in next(csv.reader([header], delimiter=delimiter), [])]
    for ours, theirs in ALIASES.items():
        known = [name for alias in (ours, *theirs) for name in names if name.lower() == alias]
        if known and ours not in names:
            names[names.index(known[0])] = ours
    return names


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
    table: str, image: str, store: DiskMultimap, finder: PhotoFinder, notes: tuple[str, ...]
) -> Iterator[SourceItem]:
    rows: list[Row] = store.get(table, image)
    if not image:
        for where, _, _ in rows:
            yield BadSource(where, "image", "is empty; name the photo")
        return
    folder = posixpath.dirname(table)
    found = finder.find(image, posixpath.join(folder, "images"), folder, "images")
    store.put(_NAMED, found.image)
    yield _photo(table, found, rows, notes)


@or_bad_source
def _photo(table: str, found: Found, rows: list[Row], notes: tuple[str, ...]) -> SourceImage:
    objects = [row for row in rows if row[2] or any(row[1][name] for name in (*CORNERS, "desc"))]
    if objects:  # then a row without an object is a mistake of its own
        objects = rows
    whole = [row for row in rows if not row[2]]
    if not whole:  # what stands in the column of photos may not be one
        raise RecordError(rows[0][0], "row", f"{rows[0][2]}; put text that holds separators in quotes")
    of_photo = {name: _of_photo(whole, name) for name in OF_PHOTO}
    more = list(notes)
    return SourceImage(
        image=found.image,
        source=table,
        objects=tuple(
            salvage(partial(_read_object, row), row[1].get("desc", ""), f"line {row[0].rpartition(':')[2]}")
            for row in objects
        ),
        size=_size(of_photo, rows[0][0], more),
        displayed=True,
        split=_split(of_photo["split"], rows[0][0]) or split_of_file(table),
        group=of_photo["group"] or None,
        notes=(*more, *found.notes),
        missing=found.missing,
    )


def _of_photo(rows: list[Row], name: str) -> str:
    """The value that the rows of a photo agree on in a column; "" if none fills it."""
    filled = [(where, cells[name]) for where, cells, _ in rows if cells.get(name)]
    for where, value in filled:
        if value != filled[0][1]:
            raise RecordError(where, name, f"is {value!r}, but {filled[0][0]} says {filled[0][1]!r} for the same photo")
    return filled[0][1] if filled else ""


def _split(value: str, where: str) -> str | None:
    split = named_split(value)
    if value and split is None:
        raise RecordError(where, "split", f"must be train, val or test, is {value!r}")
    return split


def _size(of_photo: Mapping[str, str], where: str, notes: list[str]) -> tuple[int, int] | None:
    width, height = (_number(of_photo[name], where, name) if of_photo[name] else None for name in ("width", "height"))
    return declared_size(width, height, where, "row", notes)


def _read_object(row: Row) -> RawObject | Dropped:
    where, cells, wrong = row
    line = where.rpartition(":")[2]
    if wrong is not None:
        raise RecordError(where, f"line {line}", f"{wrong}; put text that holds separators in quotes")
    if not any(cells[name] for name in (*CORNERS, "desc")):
        raise RecordError(where, f"line {line}", "says that there is nothing to see, but the photo has objects")
    x1, y1, x2, y2 = (_number(cells[name], where, f"line {line}.{name}") for name in CORNERS)
    if not cells["desc"]:
        return Dropped("(no label)", "no_description", "desc is empty", f"line {line}.desc")
    return upright(box_of_corners(cells["desc"], (x1, y1, x2, y2), f"line {line}"), cells, f"line {line}")


def _number(text: str, where: str, field: str) -> float:
    if not text:
        raise RecordError(where, field, "is empty, but the row is not")
    if "_" in text:  # only Python reads 1_000 as a number
        raise RecordError(where, field, f"must be a number, is {shown(text)}")
    return parse_number(text, where, field)
