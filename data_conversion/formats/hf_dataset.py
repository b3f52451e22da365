"""Read Hugging Face data sets on disk, in the three forms in which they are kept.

``Dataset.save_to_disk`` or ``DatasetDict.save_to_disk``: Arrow files, opened by ``datasets.load_from_disk``.
Parquet shards, ``data/<split>-00000-of-00004.parquet``, as the hub stores them, read batch by batch.
Image folder: photos, and ``metadata.jsonl``, ``.csv`` or ``.parquet`` beside or above them with ``file_name``; a folder
name gives the split.

Columns: image or file_name, objects, and optionally text, caption, width, height (see ``hf_objects``); others are not
read, and noted. Boxes are [x, y, width, height] in pixels from 0: of the frame that width and height declare, if given
(see ``photos.points_to_displayed``), otherwise of the displayed photo, which is what datasets decodes.

A photo inside a table is called ``<split>/<file name>`` if file names are unique, otherwise ``<split>/<row number>``.
Nothing is decoded, downloaded or written.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from bbu.errors import RecordError
from data_conversion.base import BadSource, SourceImage, SourceItem, SourceOptions, readable
from data_conversion.formats.checks import check_text
from data_conversion.formats.disk_multimap import DiskMultimap
from data_conversion.formats.files import (
    annotation_files,
    bad_source,
    declared_split,
    or_bad_source,
    read_text,
    split_of,
)
from data_conversion.formats.hf_objects import (
    CLASS_FILE,
    LABEL_KEYS,
    SUMMARY_COLUMNS,
    read_objects,
    read_size,
    read_summary,
)
from data_conversion.formats.hf_tables import CsvFile, JsonLines, ParquetTable, Table, parquet_tables, saved_tables
from data_conversion.formats.source_photos import unnamed_photos
from data_conversion.locating import Found, PhotoFinder
from data_conversion.source_folder import walk_files

COLUMNS = ("image", "file_name", "objects", "width", "height", *SUMMARY_COLUMNS)
# Metadata files of an image folder, in which the photos' folders give the split
METADATA: dict[str, type[Table]] = {
    "metadata.jsonl": JsonLines,
    "metadata.csv": CsvFile,
    "metadata.parquet": ParquetTable,
}

# First bytes of a photo file → its suffix
KINDS = {
    rb"\xff\xd8\xff": ".jpg",
    rb"\x89PNG\r\n\x1a\n": ".png",
    rb"BM": ".bmp",
    rb"II\*\0|MM\0\*": ".tif",
    rb"(?s)RIFF.{4}WEBP": ".webp",
}
PLAIN_NAME = re.compile(r"[^\x00-\x1f./\\][^\x00-\x1f/\\]{0,60}")  # a file name of at most 244 bytes without suffix

_NAMED = "named"  # map of the photos that have files of their own


def iter_records(root: Path, options: SourceOptions = SourceOptions()) -> Iterator[SourceItem]:  # noqa: B008 (frozen)
    """Yield one item per row, table by table; for an image folder also one for each photo in no row."""
    with DiskMultimap() as store:
        source = _Source(root, store, options.ignore)
        saved = _saved_folder(root, options.ignore)
        if saved is not None:
            yield from source.items(saved_tables(root, saved))
            return
        metadata = [path for path in walk_files(root, options.ignore) if path.name in METADATA]
        if not metadata:
            yield from source.items(parquet_tables(root, walk_files(root, options.ignore)))
            return
        yield from source.items([METADATA[at.name](at, readable(at.relative_to(root).as_posix())) for at in metadata])
        yield from unnamed_photos(root, options.ignore, store, _NAMED)


def _saved_folder(root: Path, ignore: Path | None) -> Path | None:
    """The folder that ``save_to_disk`` wrote: the root, or one in it."""
    for name in ("dataset_dict.json", "state.json"):
        files = annotation_files(root, name, ignore)
        if files:
            return files[0].parent
    return None


class _Source:
    """The rows of all tables, as photos."""

    def __init__(self, root: Path, store: DiskMultimap, ignore: Path | None) -> None:
        self.root, self.store = root, store
        self.finder = PhotoFinder(root, ignore)
        self.rows_of_split: Counter[str] = Counter()

    def items(self, tables: Sequence[Table | BadSource]) -> Iterator[SourceItem]:
        for table in tables:
            if isinstance(table, Table):
                self._store_stems(table)
        for table in tables:
            yield from [table] if isinstance(table, BadSource) else self._rows(table)

    def _store_stems(self, table: Table) -> None:
        """Put the photos' file names into the map of their split, to see whether they are unique."""
        with suppress(RecordError, OSError):  # reported when the rows are read
            for path in table.paths():
                self.store.put(f"stems {table.split}", (_stem(path) or "").casefold())

    def _has_own_names(self, split: str) -> bool:
        stems = f"stems {split}"
        return not self.store.has(stems, "") and next(self.store.keys(stems, at_least=2), None) is None

    def _rows(self, table: Table) -> Iterator[SourceItem]:
        own_names = self._has_own_names(table.split)
        try:
            names = {**self._listed_names(table), **table.class_names()}
            for prefix, row in table.rows():
                number = self.rows_of_split[table.split]
                self.rows_of_split[table.split] += 1
                if isinstance(row, RecordError):
                    yield bad_source(row)
                else:
                    yield self._photo(table, prefix, row, names, None if own_names else number)
        except (RecordError, OSError) as error:
            yield bad_source(error, table.where)

    def _listed_names(self, table: Table) -> Mapping[str, Sequence[str]]:
        """The class names in CLASS_FILE beside a table or at the root, for every label key; none without it."""
        for folder in (posixpath.dirname(table.where), ""):
            where = posixpath.join(folder, CLASS_FILE)
            if (self.root / where).is_file():
                lines = read_text(self.root / where, where).rstrip().splitlines()
                return {key: [line.strip() for line in lines] for key in LABEL_KEYS}
        return {}

    @or_bad_source
    def _photo(
        self, table: Table, prefix: str, row: Mapping[str, Any], names: Mapping[str, Sequence[str]], number: int | None
    ) -> SourceItem:
        photo, content = self._image(table, prefix, row, number)
        image = photo.image
        if content is None:
            self.store.put(_NAMED, image)
        objects, notes = read_objects(row.get("objects"), names, table.where, f"{prefix}objects")
        size = read_size(row, table.where, prefix, notes)
        split, unknown = declared_split(table.split)
        return SourceImage(
            image=image,
            source=table.where,
            objects=objects,
            size=size,
            displayed=size is None,
            split=split or (split_of(image) if content is None else None),
            summary=read_summary(row, table.where, prefix),
            content=content,
            notes=(
                *notes,
                *unknown,
                *(f"column not read: {name}" for name in row if name not in COLUMNS),
                *photo.notes,
            ),
            missing=photo.missing,
        )

    def _image(
        self, table: Table, prefix: str, row: Mapping[str, Any], number: int | None
    ) -> tuple[Found, bytes | None]:
        """The photo's name and bytes, or where it is and None.

        Args:
            number: its name; None names it after its file.
        """
        column = "file_name" if "file_name" in row else "image"
        field = f"{prefix}{column}"
        value = row.get(column)
        if isinstance(value, dict):
            path, content = value.get("path"), value.get("bytes")
        else:
            path, content = (None, value) if isinstance(value, bytes) else (value, None)
        if content is not None:
            if not isinstance(content, bytes):
                raise RecordError(table.where, field, f"must be the bytes of a photo, is {type(content).__name__}")
            stem = f"{number:08d}" if number is not None else _stem(path)
            return Found(posixpath.join(table.split, f"{stem}{_suffix(content, table.where, field)}")), content
        if not isinstance(path, str) or not path.strip():
            raise RecordError(table.where, field, f"must name a photo or hold one, is {path!r}")
        folder = posixpath.dirname(table.where) if column == "file_name" else ""
        return self.finder.find(check_text(path, table.where, field), folder), None


def _suffix(content: bytes, where: str, field: str) -> str:
    for start, suffix in KINDS.items():
        if re.match(start, content):
            return suffix
    raise RecordError(where, field, f"holds {len(content)} bytes that are no photo of a known kind")


def _stem(path: Any) -> str | None:
    """File name without suffix, if it can be the name of a file anywhere."""
    name = path.replace("\\", "/").rpartition("/")[2] if isinstance(path, str) else ""
    stem = os.path.splitext(name)[0]
    return stem if PLAIN_NAME.fullmatch(stem) else None
