"""Rows of an unfinished prediction: a file beside the output, from which a rerun resumes.

``.<output>.partial``: a first line with the settings, then a line ``{"index", "row"}`` for each row, in any order.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Generic, Protocol, TypeVar

from bbu.errors import UserError
from bbu.jsonl import atomic_writer, check_target, decode_json
from bbu.records import BOUNDS_TOLERANCE, PredictionRow, parse_prediction_row

try:
    import fcntl
except ImportError:  # Windows has no such lock; two runs must not share an output there
    fcntl = None  # type: ignore[assignment]

FORMAT = 1


class PartialRow(Protocol):
    """A row of one photo or group, or the error that prevented it."""

    @property
    def images(self) -> tuple[str, ...]: ...
    @property
    def error(self) -> str | None: ...
    def to_json(self) -> dict[str, Any]: ...


R = TypeVar("R", bound=PartialRow)
Gather = Callable[[Iterator[dict[str, Any]]], Iterable[dict[str, Any]]]


def parse_boxes(value: Any, where: str) -> PredictionRow:
    """A prediction row whose boxes lie in its photo.

    Raises:
        ValueError: it is none.
    """
    row = parse_prediction_row(value, where)
    for x1, y1, x2, y2 in (item.box for item in row.predictions):
        for low, high, limit in ((x1, x2, row.width), (y1, y2, row.height)):
            if not -BOUNDS_TOLERANCE <= low <= high <= limit + BOUNDS_TOLERANCE:
                raise ValueError("a box outside the photo")
    return row


class PartialRows(Generic[R]):
    """Rows by their index in the input.

    Args:
        output: the final file.
        settings: everything that rows depend on; a partial file with other settings is replaced.
        count: number of rows in the final file.
        names: the photos of each row, as rows name them; without them, rows of any photos are believed.
        parse: a decoded row and its place → the row, which has ``images`` and ``error``.

    Attributes:
        begun: what became of an earlier partial file: "" (there was none), "resumed" or "replaced".
        senseless: lines of it that no prediction of these photos has written; their photos are predicted again.
        failed: indices whose row is an error; they are tried again.

    Raises:
        UserError: the output cannot be written, or another prediction is writing it.
    """

    def __init__(
        self,
        output: str | Path,
        settings: Mapping[str, Any],
        count: int,
        names: Sequence[tuple[str, ...]] | None = None,
        parse: Callable[[Any, str], R] = parse_boxes,  # type: ignore[assignment]
    ) -> None:
        self.output, self.count, self.names, self.begun, self.senseless = Path(output), count, names, "", 0
        self.parse = parse
        self.path = self.output.with_name(f".{self.output.name}.partial")
        self.failed: set[int] = set()
        self._offsets: dict[int, int] = {}  # index in the input → byte offset in the file
        header = json.dumps({"format": FORMAT, "count": count, **settings}, sort_keys=True, ensure_ascii=True) + "\n"
        try:
            check_target(self.output)
            self.output.parent.mkdir(parents=True, exist_ok=True)
            self._file: IO[bytes] = self.path.open("a+b")
            try:
                self._lock()
                self._resume_or_begin(header.encode())
            except BaseException:
                self.close()
                raise
        except OSError as error:
            raise UserError(f"{self.output}: cannot be written: {error.strerror}") from None

    def _lock(self) -> None:
        if fcntl is not None:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"{self.path}: another prediction is writing {self.output}; wait for it") from None

    def _resume_or_begin(self, header: bytes) -> None:
        """Resume with the rows of a file with this header, or begin a new file."""
        self._file.seek(0)
        first = self._file.readline()
        if first != header:
            self.begun = "replaced" if first else ""
            self._file.truncate(0)
            self._file.write(header)
            self._file.flush()
            return
        end = self._file.tell()
        for line in self._file:
            if not line.endswith(b"\n"):  # the next row would be glued to it
                break
            try:
                index, row = self._parsed(line)
                self._note(index, end, row.error is not None)
            except ValueError:
                self.senseless += 1
            end += len(line)
        self.begun = "resumed" if self._offsets else ""
        self._file.truncate(end)

    def _parsed(self, line: bytes) -> tuple[int, R]:
        """Index and row of a line.

        Raises:
            ValueError: it is no row of these photos.
        """
        value = decode_json(line.decode(), str(self.path))
        if not isinstance(value, dict) or set(value) != {"index", "row"}:
            raise ValueError("no row")
        index, row = value["index"], self.parse(value["row"], str(self.path))
        if type(index) is not int or not 0 <= index < self.count:
            raise ValueError("no such photo")
        if self.names is not None and row.images != self.names[index]:
            raise ValueError("another photo")
        return index, row

    def _note(self, index: int, offset: int, failed: bool) -> None:
        self._offsets[index] = offset
        (self.failed.add if failed else self.failed.discard)(index)

    def is_done(self, index: int) -> bool:
        """Whether the row is there and is not an error."""
        return index in self._offsets and index not in self.failed

    def done(self) -> int:
        """Number of rows that are there and are not errors."""
        return len(self._offsets) - len(self.failed)

    def add(self, index: int, row: R) -> None:
        """Append one row; it is flushed to the file before this returns."""
        line = json.dumps({"index": index, "row": row.to_json()}, ensure_ascii=False, allow_nan=False) + "\n"
        try:
            offset = self._file.seek(0, 2)
            self._file.write(line.encode())
            self._file.flush()
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written: {error.strerror}; rerun to resume") from None
        self._note(index, offset, row.error is not None)

    def finish(self, then: Callable[[], object] = lambda: None, *, gather: Gather = iter) -> None:
        """Write the output in input order and remove the partial file.

        Args:
            then: called in between; if it fails, a rerun has the rows.
            gather: decoded rows in input order → those of the output.

        Raises:
            UserError: the output cannot be written; the partial file stays.
        """
        with atomic_writer(self.output) as stream:
            for row in gather(map(self._read, range(self.count))):
                stream.write(json.dumps(row, ensure_ascii=False) + "\n")
        then()
        self.path.unlink(missing_ok=True)

    def _read(self, index: int) -> dict[str, Any]:
        self._file.seek(self._offsets[index])
        return json.loads(self._file.readline())["row"]  # type: ignore[no-any-return]

    def close(self) -> None:
        """Close the partial file; without ``finish`` it stays on disk."""
        with contextlib.suppress(OSError):  # the rest of a row that the disk had no room for
            self._file.close()
