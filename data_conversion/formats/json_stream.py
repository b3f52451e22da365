"""One big JSON file item by item: memory holds one item of a top-level list, never the file.

Items are found by the standard library's scanner and decoded by ``bbu.jsonl.decode_json``, so that NaN, a key written
twice and deep nesting are the same errors as in a small file. (ijson's yajl reads half a surrogate pair as "?", keeps
the last of two equal keys, and its prefixes take memory in the square of the nesting depth.)
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from bbu.errors import RecordError
from bbu.jsonl import decode_json
from data_conversion.base import check_number

CHUNK = 1 << 20  # characters read at a time
MAX_ITEM = 1 << 25  # characters; one photo or object is never that long
CUT_OFF = 16  # characters; an error or a number that close to the end of the window may be only cut off there

_BLANK = re.compile(r"[ \t\n\r]*")
_SCANNER = json.JSONDecoder()


class JsonItem(NamedTuple):
    """One part of a document: ``name`` is the top-level key, "" where the document is a list.

    A top-level list comes first as itself emptied (number None, value []), then item by item.
    """

    name: str
    number: int | None
    value: Any

    @property
    def field(self) -> str:
        return self.name if self.number is None else f"{self.name}[{self.number}]"


def stream_json(path: Path, where: str) -> Iterator[JsonItem]:
    """Yield the parts of a JSON object or list in file order.

    Raises:
        RecordError: ``where``, the item and the reason, as soon as it is met.
        OSError: the file cannot be read.
    """
    with path.open(encoding="utf-8-sig", newline="") as stream:
        try:
            yield from _Document(stream, where).parts()
        except UnicodeDecodeError as error:
            raise RecordError(where, "file", f"is not UTF-8 ({error.reason}); save it as UTF-8") from None


class _Document:
    """A window of text that moves through the file; ``at`` is the next character to look at."""

    def __init__(self, stream: IO[str], where: str) -> None:
        self.stream, self.where = stream, where
        self.text, self.at = "", 0
        self.ended = False  # whether the window reaches the end of the file
        self.before = 0  # characters of the file in front of the window

    def parts(self) -> Iterator[JsonItem]:
        first = self._peek()
        if first == "[":
            yield from self._items("")
        elif first == "{":
            yield from self._members()
        elif not first:
            raise RecordError(self.where, "file", "is empty")
        else:
            raise RecordError(self.where, "file", "is not valid JSON: it must begin with { or [")
        if self._peek():
            raise self._broken("file", "more follows after the end", self.at)

    def _members(self) -> Iterator[JsonItem]:
        self.at += 1
        seen: set[str] = set()
        more = self._peek() != "}" or self._separated("}", "file")
        while more:
            if self._peek() != '"':
                raise self._broken("file", "Expecting a name in double quotes", self.at)
            name = self._value("file")
            if name in seen:
                raise RecordError(self.where, name, "appears twice in one object; remove one of the two")
            seen.add(name)
            if self._peek() != ":":
                raise self._broken(name or "file", "Expecting ':' after a name", self.at)
            self.at += 1
            if self._peek() == "[":
                yield from self._items(name)
            else:
                yield JsonItem(name, None, self._value(name))
            more = self._separated("}", name or "file")

    def _items(self, name: str) -> Iterator[JsonItem]:
        self.at += 1
        yield JsonItem(name, None, [])
        index = 0
        more = self._peek() != "]" or self._separated("]", name)
        while more:
            yield JsonItem(name, index, self._value(f"{name}[{index}]"))
            more = self._separated("]", f"{name}[{index}]")
            index += 1

    def _separated(self, closing: str, field: str) -> bool:
        """Step over a comma (True: another item follows) or over the closing bracket (False)."""
        found = self._peek()
        if not found or found not in f",{closing}":
            raise self._broken(field, f"Expecting ',' or '{closing}'", self.at)
        self.at += 1
        return found == ","

    def _peek(self) -> str:
        """The next character that is not blank, left in place; "" at the end of the file."""
        while True:
            blank = _BLANK.match(self.text, self.at)
            assert blank is not None  # it matches nothing, too
            self.at = blank.end()
            if self.at < len(self.text):
                return self.text[self.at]
            if not self._read_on():
                return ""

    def _value(self, field: str) -> Any:
        """Decode the value at the next character that is not blank."""
        self._peek()
        while True:
            length = self._length_of_value(field)
            # A number near the end of the window may go on behind it.
            if length is not None and (self.ended or self.at + length + CUT_OFF <= len(self.text)):
                break
            if length is None and len(self.text) - self.at > MAX_ITEM:
                raise RecordError(self.where, field, f"is longer than {MAX_ITEM:,} characters, or not valid JSON")
            self._read_on()
        text = self.text[self.at : self.at + length]
        self.at += length
        try:
            return decode_json(text, self.where)
        except RecordError as error:
            inner = "" if error.field == "row" else f".{error.field}"
            raise RecordError(self.where, f"{field}{inner}", error.why) from None

    def _length_of_value(self, field: str) -> int | None:
        """How many characters the value at hand has; None if it seems to go on behind the window."""
        try:
            return _SCANNER.raw_decode(self.text, self.at)[1] - self.at
        except json.JSONDecodeError as error:
            open_text = error.msg.startswith("Unterminated")
            if not self.ended and (open_text or error.pos >= len(self.text) - CUT_OFF):
                return None
            cut_off = open_text or error.pos >= len(self.text.rstrip())
            raise self._broken(field, "the file is cut off" if cut_off else error.msg, error.pos) from None
        except ValueError as error:  # an integer of thousands of digits
            raise RecordError(self.where, field, f"is not valid JSON: {error}") from None
        except RecursionError:
            raise RecordError(self.where, field, "is nested too deeply to be a record") from None

    def _read_on(self) -> bool:
        """Drop what was used and read as much again as is left, so that a long item costs linear time."""
        left = self.text[self.at :]
        more = self.stream.read(max(CHUNK, len(left)))
        self.before += self.at
        self.text, self.at, self.ended = left + more, 0, not more
        return bool(more)

    def _broken(self, field: str, why: str, at: int) -> RecordError:
        return RecordError(self.where, field, f"is not valid JSON: {why} at character {self.before + at + 1}")


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
