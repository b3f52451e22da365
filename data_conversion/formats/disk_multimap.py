"""A multimap on disk, to bring together by photo what lies apart in large annotation files."""

from __future__ import annotations

import json
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CACHE_KIB = 64 * 1024  # SQLite's page cache: the memory that a multimap takes, whatever its size


class DiskMultimap:
    """JSON values by (name of a map, key) in a temporary SQLite file; values come back in insertion order."""

    def __enter__(self) -> DiskMultimap:
        self._folder = tempfile.TemporaryDirectory(prefix="bbu-")
        self._base = sqlite3.connect(Path(self._folder.name, "multimap.sqlite"), isolation_level=None)
        self._base.executescript(
            "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;"
            f"PRAGMA cache_size = -{CACHE_KIB};"
            "CREATE TABLE items (place INTEGER PRIMARY KEY, map TEXT, key TEXT, value TEXT);"
            "CREATE INDEX by_key ON items (map, key, place);"
            "BEGIN"  # never committed: the file is temporary
        )
        return self

    def __exit__(self, *error: object) -> None:
        self._base.close()
        self._folder.cleanup()

    def put(self, name: str, key: Any, value: Any = None) -> None:
        """Add a value under a key, which is any JSON scalar; 1 and "1" are two keys."""
        row = (name, json.dumps(key), json.dumps(value))
        self._base.execute("INSERT INTO items (map, key, value) VALUES (?, ?, ?)", row)

    def get(self, name: str, key: Any) -> list[Any]:
        """All values under a key."""
        query = "SELECT value FROM items WHERE map = ? AND key = ? ORDER BY place"
        return [json.loads(value) for (value,) in self._base.execute(query, (name, json.dumps(key)))]

    def has(self, name: str, key: Any) -> bool:
        query = "SELECT 1 FROM items WHERE map = ? AND key = ? LIMIT 1"
        return self._base.execute(query, (name, json.dumps(key))).fetchone() is not None

    def keys(self, name: str, not_in: str = "", at_least: int = 1) -> Iterator[Any]:
        """Keys by their first value: those that the map ``not_in`` lacks and that have ``at_least`` values."""
        rows = self._base.execute(
            "SELECT key FROM items WHERE map = ? AND key NOT IN (SELECT key FROM items WHERE map = ?) "
            "GROUP BY key HAVING COUNT(*) >= ? ORDER BY MIN(place)",
            (name, not_in, at_least),
        )
        return (json.loads(key) for (key,) in rows)
