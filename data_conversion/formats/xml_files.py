"""XML files: read to their end and without entities, and the characters that XML cannot hold."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from bbu.errors import RecordError

CHUNK = 1 << 16  # bytes read at a time
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
    parser = ElementTree.XMLParser(target=target)
    try:
        with path.open("rb") as stream:
            while chunk := stream.read(CHUNK):
                parser.feed(chunk)
        return parser.close()
    except RecordError:
        raise
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise RecordError(target.where, "file", f"is not valid XML: {error}") from None
