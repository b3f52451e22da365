"""Rows of a prediction that is under way: a file beside the output, from which a stopped one goes on.

``.<output>.partial``: a first line with the settings, then one ``{"index", "row"}`` a line in the order of work.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from bbu.errors import UserError
from bbu.jsonl import atomic_writer
from bbu.records import PredictionRow

try:
    import fcntl
except ImportError:  # Windows has no such lock; two runs must not share an output there
    fcntl = None  # type: ignore[assignment]

FORMAT = 1


class PartialRows:
    """Rows by their place in the input.

    Args:
        output: where the whole is to appear.
        settings: all that rows depend on; a partial file of other settings is not used.
        count: rows of the whole.

    Attributes:
        begun: whether a partial file was there, and whether it could be used: "", "resumed" or "replaced".
        failed: places whose row is an error; they are tried again.

    Raises:
        UserError: nothing can be written there, or another prediction is writing it.
    """

    def __init__(self, output: str | Path, settings: Mapping[str, Any], count: int) -> None:
        self.output, self.count, self.begun = Path(output), count, ""
        self.path = self.output.with_name(f".{self.output.name}.partial")
        self.failed: set[int] = set()
        self._places: dict[int, int] = {}  # place in the input → byte in the file
        header = json.dumps({"format": FORMAT, "count": count, **settings}, sort_keys=True, ensure_ascii=True) + "\n"
        try:
            if self.output.is_dir():
                raise UserError(f"{self.output}: is a folder; name a file in it")
            self.output.parent.mkdir(parents=True, exist_ok=True)
            self._file: IO[bytes] = self.path.open("a+b")
            self._lock()
            self._take_up(header.encode())
        except OSError as error:
            raise UserError(f"{self.output}: cannot be written: {error.strerror}") from None

    def _lock(self) -> None:
        if fcntl is not None:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"{self.path}: another prediction is writing {self.output}; wait for it") from None

    def _take_up(self, header: bytes) -> None:
        """Go on behind the last whole line of a file with this header, or begin one."""
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
            try:
                value = json.loads(line)
                index, failed = int(value["index"]), "error" in value["row"]
            except (ValueError, KeyError, TypeError):
                break
            if not line.endswith(b"\n") or not 0 <= index < self.count:
                break
            self._note(index, end, failed)
            end += len(line)
        self.begun = "resumed" if self._places else ""
        self._file.truncate(end)

    def _note(self, index: int, place: int, failed: bool) -> None:
        self._places[index] = place
        (self.failed.add if failed else self.failed.discard)(index)

    def is_done(self, index: int) -> bool:
        """Whether the row is there and no error."""
        return index in self._places and index not in self.failed

    def done(self) -> int:
        """Rows that are there and no errors."""
        return len(self._places) - len(self.failed)

    def add(self, index: int, row: PredictionRow) -> None:
        """Keep one row, on disk before this returns."""
        line = json.dumps({"index": index, "row": row.to_json()}, ensure_ascii=False, allow_nan=False) + "\n"
        try:
            place = self._file.seek(0, 2)
            self._file.write(line.encode())
            self._file.flush()
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written: {error.strerror}; run again to go on") from None
        self._note(index, place, row.error is not None)

    def finish(self) -> None:
        """Write the output in the order of the input, and remove the partial file."""
        with atomic_writer(self.output) as stream:
            for index in range(self.count):
                self._file.seek(self._places[index])
                row = json.loads(self._file.readline())["row"]
                stream.write(json.dumps(row, ensure_ascii=False) + "\n")
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of the file; without ``finish`` it stays."""
        self._file.close()
