"""Read one big JSON file item by item: memory holds one item of a top-level list, never the whole file.

The standard library's scanner finds the items and ``bbu.jsonl.decode_json`` decodes them, so that a repeated key
and deep nesting are the same errors as in a small file. (The yajl backend of ijson reads half a surrogate pair as "?"
and keeps the last of two equal keys, and the memory for its prefixes grows with the square of the nesting depth.)
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from bbu.errors import RecordError
from bbu.jsonl import decode_json
from data_conversion.formats.files import open_text

CHUNK = 1 << 20  # characters read at a time
MAX_ITEM = 1 << 25  # characters; no photo or object is that long
CUT_OFF = 16  # characters; an error or a number this close to the end of the window may only be cut off there

_BLANK = re.compile(r"[ \t\n\r]*")
_SCANNER = json.JSONDecoder()


class JsonItem(NamedTuple):
    """One piece of a document: ``name`` is the top-level key, or "" where the document is a list.

    A top-level list comes first as an empty list (number None, value []), then item by item.
    """

    name: str
    number: int | None
    value: Any

    @property
    def field(self) -> str:
        return self.name if self.number is None else f"{self.name}[{self.number}]"


def stream_json(path: Path, where: str) -> Iterator[JsonItem]:
    """Yield the pieces of a JSON object or list in file order.

    Raises:
        RecordError: names ``where``, the item and the reason; raised as soon as the reader gets there.
        OSError: the file cannot be read.
    """
    with open_text(path, where) as stream:
        yield from _Document(stream, where).pieces()


class _Document:
    """A window of text that moves through the file; ``at`` is the next character to read."""

    def __init__(self, stream: IO[str], where: str) -> None:
        self.stream, self.where = stream, where
        self.text, self.at = "", 0
        self.ended = False  # whether the window reaches the end of the file
        self.before = 0  # characters of the file before the window

    def pieces(self) -> Iterator[JsonItem]:
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
            assert blank is not None  # the pattern also matches an empty string
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
            # A number near the end of the window may continue beyond it.
            if length is not None and (self.ended or self.at + length + CUT_OFF <= len(self.text)):
                break
            if length is None and len(self.text) - self.at > MAX_ITEM:
                raise RecordError(self.where, field, f"is longer than {MAX_ITEM:,} characters, or not valid JSON")
            self._read_on()
        text = self.text[self.at : self.at + length]
        self.at += length
        try:
            return decode_json(text, self.where, constants=True)
        except RecordError as error:
            inner = "" if error.field == "row" else f".{error.field}"
            raise RecordError(self.where, f"{field}{inner}", error.why) from None

    def _length_of_value(self, field: str) -> int | None:
        """Length of the value at hand in characters; None if it seems to continue beyond the window."""
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
        """Drop what was used and read as much as is left, so that a long item takes linear time."""
        left = self.text[self.at :]
        more = self.stream.read(max(CHUNK, len(left)))
        self.before += self.at
        self.text, self.at, self.ended = left + more, 0, not more
        return bool(more)

    def _broken(self, field: str, why: str, at: int) -> RecordError:
        return RecordError(self.where, field, f"is not valid JSON: {why} at character {self.before + at + 1}")
