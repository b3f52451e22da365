"""What large annotation files leave to their readers: putting together by photo what lies apart, on disk.

Also which split the name of a file or folder means.
"""

from __future__ import annotations

import json
import re
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

CACHE_KIB = 64 * 1024  # SQLite's page cache: the memory a regrouping takes, whatever the size of the data set

_SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


class Shelves:
    """JSON values by (shelf, key) in a temporary file, given back in the order in which they were put there."""

    def __enter__(self) -> Shelves:
        self._folder = tempfile.TemporaryDirectory(prefix="bbu-")
        self._base = sqlite3.connect(Path(self._folder.name, "shelves.sqlite"), isolation_level=None)
        self._base.executescript(
            "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;"
            f"PRAGMA cache_size = -{CACHE_KIB};"
            "CREATE TABLE items (place INTEGER PRIMARY KEY, shelf TEXT, key TEXT, value TEXT);"
            "CREATE INDEX by_key ON items (shelf, key, place);"
            "BEGIN"  # never committed: the file is thrown away
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._base.close()
        self._folder.cleanup()

    def put(self, shelf: str, key: Any, value: Any = None) -> None:
        """Add a value; ``key`` is any JSON scalar, and 1 and "1" are two keys."""
        row = (shelf, json.dumps(key), json.dumps(value))
        self._base.execute("INSERT INTO items (shelf, key, value) VALUES (?, ?, ?)", row)

    def get(self, shelf: str, key: Any) -> list[Any]:
        """All values under a key."""
        rows = self._base.execute(
            "SELECT value FROM items WHERE shelf = ? AND key = ? ORDER BY place", (shelf, json.dumps(key))
        )
        return [json.loads(value) for (value,) in rows]

    def has(self, shelf: str, key: Any) -> bool:
        query = "SELECT 1 FROM items WHERE shelf = ? AND key = ? LIMIT 1"
        return self._base.execute(query, (shelf, json.dumps(key))).fetchone() is not None

    def keys(self, shelf: str, not_in: str = "", at_least: int = 1) -> Iterator[Any]:
        """Keys in order of their first value: those that ``not_in`` lacks and that have ``at_least`` values."""
        rows = self._base.execute(
            "SELECT key FROM items WHERE shelf = ? AND key NOT IN (SELECT key FROM items WHERE shelf = ?) "
            "GROUP BY key HAVING COUNT(*) >= ? ORDER BY MIN(place)",
            (shelf, not_in, at_least),
        )
        return (json.loads(key) for (key,) in rows)


def named_split(name: str) -> str | None:
    """The split that a file or folder name tells: ``instances_val2017``, ``valid``, ``test-dev``; None if not one."""
    words = (re.sub(r"\d+$", "", word) for word in re.split(r"[^a-z0-9]+", name.lower()))
    found = {_SPLITS[word] for word in words if word in _SPLITS}
    return found.pop() if len(found) == 1 else None
