"""The tables of a Hugging Face data set: Arrow, Parquet, JSON lines and CSV, a few rows at a time.

``datasets`` and ``pyarrow`` take a second to import and only this format needs them, so they are imported on use.
"""

from __future__ import annotations

import csv
import json
import posixpath
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from bbu.errors import RecordError
from bbu.jsonl import decode_json
from data_conversion.base import BadSource, readable
from data_conversion.formats.checks import as_list, as_mapping
from data_conversion.formats.files import bad_source, named_split, open_text, read_text
from data_conversion.source_folder import check_inside

ROWS = 16  # of a table in memory at a time, with their photos
SHARD = re.compile(r"(?P<split>.+?)-\d{5}-of-\d{5}")

Rows = Iterator[tuple[str, dict[str, Any] | RecordError]]  # (prefix of field names, column → value or an error)
ClassNames = dict[str, list[str]]  # key of an object → names of its ClassLabel


class Table:
    """The rows of one file or folder; every method raises RecordError if that is damaged.

    Args:
        path: the file or folder.
        where: its path in the source, for messages.
        split: the data set's name for the split; "" if none.
    """

    def __init__(self, path: Path, where: str, split: str = "") -> None:
        self.path, self.where, self.split = path, where, split

    def rows(self) -> Rows:
        raise NotImplementedError

    def paths(self) -> Iterator[str | None]:
        """File names of the photos inside the rows; none if the rows hold no photos."""
        return iter(())

    def class_names(self) -> ClassNames:
        return {}


def saved_tables(root: Path, folder: Path) -> list[Table | BadSource]:
    """What ``save_to_disk`` wrote into a folder of the source: one table, or one for each split.

    A val or test split whose folder is not there is listed, and stops nothing.
    """
    at = folder.relative_to(root)
    where = (at / "dataset_dict.json").as_posix()
    try:
        if not (root / where).is_file():
            where = (at / "state.json").as_posix()
            return [SavedTable(folder, where, _split_of_state(root / where, where))]
        value = as_mapping(decode_json(read_text(root / where, where), where), where, "file")
        splits = as_list(value.get("splits"), where, "splits")
        for index, name in enumerate(splits):
            if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]*", name):
                raise RecordError(where, f"splits[{index}]", f"must be the name of a folder, is {name!r}")
    except (RecordError, OSError) as error:
        return [bad_source(error, where)]
    return [_saved_split(folder / name, where, (at / name / "state.json").as_posix()) for name in splits]


def _saved_split(folder: Path, named_in: str, where: str) -> Table | BadSource:
    if named_split(folder.name) in ("val", "test") and not folder.exists():
        return BadSource(named_in, "splits", f"there is no folder {folder.name}", reason="missing_split")
    return SavedTable(folder, where, folder.name)


def _split_of_state(path: Path, where: str) -> str:
    value = as_mapping(decode_json(read_text(path, where), where), where, "file")
    split = value.get("_split")
    return split if isinstance(split, str) and re.fullmatch(r"\w[\w.-]*", split) else ""


def parquet_tables(root: Path, files: Iterable[Path]) -> list[Table | BadSource]:
    """``<split>-00000-of-00004.parquet``, ``<split>.parquet`` or ``<split>/….parquet``, by name."""
    tables: list[Table | BadSource] = []
    for path in files:
        if path.suffix.lower() == ".parquet":
            place = path.relative_to(root)
            shard = SHARD.match(place.stem)
            names = [shard["split"]] if shard else filter(named_split, (place.stem, place.parent.name))
            tables.append(ParquetTable(path, readable(place.as_posix()), next(iter(names), "")))
    return tables


class JsonLines(Table):
    def rows(self) -> Rows:
        with open_text(self.path, self.where, newline="\n") as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield f"line {number}.", self._row(line, number)

    def _row(self, line: str, number: int) -> dict[str, Any] | RecordError:
        try:
            return as_mapping(decode_json(line, self.where, constants=True), self.where, f"line {number}")
        except RecordError as error:
            field = error.field if error.field.startswith("line ") else f"line {number}.{error.field}"
            return RecordError(self.where, field, error.why)


class CsvFile(Table):
    """Cells are text; an empty one is none."""

    def rows(self) -> Rows:
        with open_text(self.path, self.where) as stream:
            reader = csv.reader(stream, strict=True)
            try:
                columns = next(reader, [])
                if "file_name" not in columns:
                    raise RecordError(self.where, "file_name", f"is not a column; found are {', '.join(columns)}")
                for cells in reader:
                    if cells:
                        yield f"line {reader.line_num}.", self._row(columns, cells, reader.line_num)
            except csv.Error as error:
                raise RecordError(self.where, f"line {reader.line_num}", f"is not valid CSV: {error}") from None

    def _row(self, columns: list[str], cells: list[str], line: int) -> dict[str, Any] | RecordError:
        if len(cells) != len(columns):
            return RecordError(self.where, f"line {line}", f"has {len(cells)} cells, the header {len(columns)}")
        return {column: cell or None for column, cell in zip(columns, cells, strict=True)}


class _ArrowTable(Table):
    """Record batches, and the features that datasets stores with them."""

    def batches(self, columns: list[str] | None) -> Iterator[Any]:
        raise NotImplementedError

    def features(self) -> Any:
        raise NotImplementedError

    def rows(self) -> Rows:
        with self._damage():
            number = 0
            for batch in self.batches(None):
                for row in batch.to_pylist():
                    yield f"rows[{number}].", row
                    number += 1

    def paths(self) -> Iterator[str | None]:
        with self._damage():
            for batch in self.batches(["image.path"]):
                field = batch.schema.field("image").type.get_field_index("path") if _is_struct(batch) else -1
                column = batch.column("image").field(field).to_pylist() if field >= 0 else [None] * batch.num_rows
                yield from column

    def class_names(self) -> ClassNames:
        with self._damage():
            features = self.features()
            return dict(_class_labels(features.get("objects"))) if isinstance(features, dict) else {}

    @contextmanager
    def _damage(self) -> Iterator[None]:
        try:
            yield
        except (RecordError, GeneratorExit):
            raise
        except Exception as error:  # pyarrow and datasets raise many kinds of error for damaged files
            why = " ".join(str(error).split())[:200]
            raise RecordError(self.where, "file", f"is damaged or incomplete: {why or type(error).__name__}") from None


class SavedTable(_ArrowTable):
    """A folder that ``Dataset.save_to_disk`` wrote: memory-mapped Arrow files."""

    @cached_property
    def _dataset(self) -> Any:
        import datasets

        for file in sorted(self.path.iterdir()):
            check_inside(file, posixpath.join(posixpath.dirname(self.where), file.name))
        dataset = datasets.load_from_disk(str(self.path.resolve()))
        dataset.data.validate(full=True)  # Arrow trusts the offsets in a file, so check them
        return dataset

    def batches(self, columns: list[str] | None) -> Iterator[Any]:
        table = self._dataset.data.table
        return iter((table if columns is None else table.select(["image"])).to_batches(max_chunksize=ROWS))

    def features(self) -> Any:
        return self._dataset.features.to_dict()


class ParquetTable(_ArrowTable):
    """One Parquet file, read row group by row group."""

    def batches(self, columns: list[str] | None) -> Iterator[Any]:
        from pyarrow import parquet

        check_inside(self.path, self.where)
        with parquet.ParquetFile(self.path) as file:
            yield from file.iter_batches(batch_size=ROWS, columns=columns)

    def features(self) -> Any:
        from pyarrow import parquet

        check_inside(self.path, self.where)
        with parquet.ParquetFile(self.path) as file:
            stored = (file.schema_arrow.metadata or {}).get(b"huggingface", b"{}")
        return json.loads(stored).get("info", {}).get("features", {})


def _is_struct(batch: Any) -> bool:
    import pyarrow

    return "image" in batch.schema.names and pyarrow.types.is_struct(batch.schema.field("image").type)


def _class_labels(features: Any) -> Iterator[tuple[str, list[str]]]:
    """Key → names for every ClassLabel, however deep in lists and mappings."""
    for key, value in features.items() if isinstance(features, dict) else ():
        inner = value
        while isinstance(inner, dict) and isinstance(inner.get("feature"), dict):
            inner = inner["feature"]
        if isinstance(inner, dict) and inner.get("_type") == "ClassLabel":
            yield key, list(inner["names"])
        elif key == "feature":
            yield from _class_labels(value)
    for item in features if isinstance(features, list) else ():
        yield from _class_labels(item)
