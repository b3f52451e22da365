"""XML files: read to their end and without entities, and the characters that XML cannot hold."""

from __future__ import annotations

import codecs
import io
import re
import xml.etree.ElementTree as ElementTree
from contextlib import closing
from pathlib import Path
from typing import IO, Any

from bbu.errors import RecordError
from data_conversion.formats.files import unicode_encoding
from data_conversion.source_folder import check_inside

CHUNK = 1 << 16  # bytes read at a time
HEAD = 256  # bytes; a declaration is shorter
_DECLARED = re.compile(rb"""(?:\xef\xbb\xbf)?<\?xml[^>]*?\sencoding\s*=\s*["'](?P<name>[A-Za-z0-9._-]+)["']""")
_EXPAT = ("utf-8", "utf8", "us-ascii", "iso-8859-1")  # what expat reads by itself
NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # XML 1.0, production Char


class NoDoctype:
    """Parser target that refuses a DOCTYPE: only there can entities be declared, which explode in memory."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where

    def doctype(self, name: str, public_id: str | None, system_id: str | None) -> None:
        raise RecordError(self.where, "DOCTYPE", "is refused; remove the DOCTYPE and its entities")


def parse_xml(path: Path, target: NoDoctype) -> Any:
    """Feed a whole file to a parser target and return what its ``close`` returns.

    Raises:
        RecordError: the file is not XML, or the target refuses it.
    """
    check_inside(path, target.where)
    parser = ElementTree.XMLParser(target=target)
    try:
        with closing(open_xml(path)) as stream:
            while chunk := stream.read(CHUNK):
                parser.feed(chunk)
        return parser.close()
    except RecordError:
        raise
    except UnicodeDecodeError as error:
        why = f"is not in the encoding that it declares, {error.encoding}; correct the declaration, or save it as UTF-8"
        raise RecordError(target.where, "file", why) from None
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise RecordError(target.where, "file", f"is not valid XML: {error}{_hint(path)}") from None


def open_xml(path: Path) -> IO[bytes]:
    """A file as its parser takes it: expat knows UTF-8, UTF-16 and single-byte encodings; others become UTF-8.

    Raises:
        OSError: it cannot be read.
    """
    stream = path.open("rb")
    start = stream.read(HEAD)
    stream.seek(0)
    found = _DECLARED.match(start)
    if found is None:
        return stream
    name = found["name"].decode("ascii")
    try:
        single_bytes = name.lower() in _EXPAT or len(bytes(range(256)).decode(name, "replace")) == 256
    except (LookupError, UnicodeError):
        single_bytes = True  # for expat to refuse
    if single_bytes and not name.lower().startswith("utf-16"):
        return stream
    # GB 18030 holds GB 2312 and GBK, whose names tools mix up. A declaration in single bytes is not UTF-16.
    wider = {"gb2312": "gb18030", "gbk": "gb18030"}.get(codecs.lookup(name).name, name)
    encoding = "utf-8" if name.lower().startswith("utf-16") else wider
    return io.BufferedReader(_AsUtf8(stream, encoding, found.span("name")), CHUNK)


class _AsUtf8(io.RawIOBase):
    """Bytes of a file in UTF-8, with ``utf-8`` for the encoding that it declares.

    Args:
        span: where that name stands, in bytes from the start.
    """

    def __init__(self, stream: IO[bytes], encoding: str, span: tuple[int, int]) -> None:
        self.stream, self.span = stream, span
        self.decoder = codecs.getincrementaldecoder(encoding)()
        self.at_start, self.left = True, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.left:
            chunk = self.stream.read(CHUNK)
            if self.at_start:
                chunk = chunk[: self.span[0]] + b"utf-8" + chunk[self.span[1] :]
                self.at_start = False
            self.left = self.decoder.decode(chunk, final=not chunk).encode("utf-8")
            if not chunk:
                break
        size = min(len(buffer), len(self.left))
        buffer[:size], self.left = self.left[:size], self.left[size:]
        return size

    def close(self) -> None:
        self.stream.close()
        super().close()


def _hint(path: Path) -> str:
    """What helps if a file that is to be UTF-8, by its declaration or without one, is not."""
    with path.open("rb") as stream:
        start = stream.read(CHUNK)
    declared = _DECLARED.match(start)
    if (declared and declared["name"].lower() not in (b"utf-8", b"utf8")) or unicode_encoding(start[:4]) != "utf-8-sig":
        return ""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(start)
    except UnicodeDecodeError:
        return '; it is not UTF-8: begin it with its own encoding, such as <?xml version="1.0" encoding="GB18030"?>'
    return ""
