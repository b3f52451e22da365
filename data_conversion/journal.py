"""The progress of a conversion, on disk: memory does not grow with the source, and a stopped conversion can resume.

It is a SQLite file in a hidden folder beside the output, ``.<output>.partial``, which is removed at the end.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bbu.errors import UserError
from data_conversion.base import BadSource, Dropped, readable
from data_conversion.photo_task import Outcome

LAYOUT = 2  # version of the tables; a journal of another version is discarded
SECONDS_BETWEEN_COMMITS = 2.0  # the work that a kill may lose

TABLES = (
    "CREATE TABLE settings (value TEXT NOT NULL)",
    """CREATE TABLE photos (
    seq INTEGER PRIMARY KEY, fingerprint TEXT NOT NULL, source TEXT NOT NULL, image TEXT NOT NULL,
    objects_read INTEGER NOT NULL, row TEXT, metadata TEXT, name TEXT, digest TEXT, hint TEXT, split TEXT,
    rank INTEGER NOT NULL DEFAULT 0, bad TEXT, dropped TEXT NOT NULL, notes TEXT NOT NULL)""",
    "CREATE INDEX by_image ON photos (image)",
    "CREATE INDEX by_name ON photos (name)",
)


class Journal:
    """Outcomes by their position in the source.

    Args:
        folder: created if missing; a journal of the same settings in it is resumed.
        settings: everything besides the source that outcomes depend on.

    Raises:
        UserError: the folder cannot be written, or another conversion is using it.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder = folder
        wanted = json.dumps({**settings, "layout": LAYOUT}, sort_keys=True, default=str)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._database = self._open()
            if self._settings() != wanted:
                self._database.close()
                shutil.rmtree(folder)
                folder.mkdir()
                self._database = self._open()
                for table in TABLES:
                    self._database.execute(table)
                self._database.execute("INSERT INTO settings VALUES (?)", (wanted,))
                self._commit()
        except OSError as error:
            raise UserError(f"{folder}: cannot be written ({error.strerror}); choose another output folder") from None
        except sqlite3.Error as error:
            raise UserError(f"{folder}: cannot be used ({error}); is another conversion using it?") from None
        self._committed = time.monotonic()

    def _open(self) -> sqlite3.Connection:
        database = sqlite3.connect(self.folder / "journal.sqlite", timeout=0.5, isolation_level=None)
        database.execute("PRAGMA locking_mode = EXCLUSIVE")
        database.execute("PRAGMA synchronous = NORMAL")
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("BEGIN EXCLUSIVE")
        return database

    def _settings(self) -> str | None:
        try:
            found = self._database.execute("SELECT value FROM settings").fetchone()
        except sqlite3.Error:
            return None
        return str(found[0]) if found else None

    def _commit(self) -> None:
        self._database.execute("COMMIT")
        self._database.execute("BEGIN EXCLUSIVE")
        self._committed = time.monotonic()

    # ------------------------------------------------------------ filling

    def has(self, seq: int, fingerprint: str) -> bool:
        """Whether the item at this position of the source is done."""
        found = self._database.execute("SELECT fingerprint FROM photos WHERE seq = ?", (seq,)).fetchone()
        return found is not None and found[0] == fingerprint

    def source_of(self, image: str, before: int) -> str | None:
        """The annotation file of an earlier item with this photo."""
        query = "SELECT source FROM photos WHERE image = ? AND seq < ? ORDER BY seq LIMIT 1"
        found = self._database.execute(query, (image, before)).fetchone() if image else None
        return str(found[0]) if found else None

    def objects_of(self, image: str, before: int) -> list[dict[str, Any]] | None:
        """The written objects of the first item with this photo, None if it has no row."""
        query = "SELECT row FROM photos WHERE image = ? AND seq < ? ORDER BY seq LIMIT 1"
        found = self._database.execute(query, (image, before)).fetchone()
        return list(json.loads(found[0])["objects"]) if found and found[0] else None

    def add(self, seq: int, fingerprint: str, outcome: Outcome) -> None:
        """Store one outcome in place of an earlier one at this position."""
        row = outcome.row
        text = json.dumps({**row.to_json(), "metadata": None}, ensure_ascii=False) if row else None
        self._database.execute(
            "INSERT OR REPLACE INTO photos VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, NULL, 0, ?, ?, ?)",
            (
                seq, fingerprint, readable(outcome.source), readable(outcome.image), outcome.objects_read,
                text, json.dumps(dict(row.metadata), ensure_ascii=False) if row else None,
                row.images[0] if row else None, outcome.digest, outcome.hint,
                _dump(outcome.bad), _dump(list(outcome.dropped)), _dump(list(outcome.notes)),
            ),
        )  # fmt: skip
        if time.monotonic() - self._committed > SECONDS_BETWEEN_COMMITS:
            self._commit()

    def end_at(self, seq: int) -> None:
        """Delete the outcomes from this position on: the source has become shorter."""
        self._database.execute("DELETE FROM photos WHERE seq >= ?", (seq,))
        self._commit()

    # ------------------------------------------------------------ reading

    def totals(self) -> tuple[int, int]:
        """Numbers of photos and objects that were read."""
        query = "SELECT count(*), coalesce(sum(objects_read), 0) FROM photos WHERE row IS NOT NULL OR bad IS NOT NULL"
        photos, objects = self._database.execute(query).fetchone()
        return photos, objects

    def lost(self) -> Iterator[tuple[str, BadSource | None, list[Dropped]]]:
        """(annotation file, why its photo gave no row, dropped objects) in the order of the source."""
        query = "SELECT source, bad, dropped FROM photos WHERE bad IS NOT NULL OR dropped != '[]' ORDER BY seq"
        for source, bad, dropped in self._database.execute(query):
            yield source, BadSource(**json.loads(bad)) if bad else None, [Dropped(**it) for it in json.loads(dropped)]

    def notes(self) -> Iterator[str]:
        """Every note of every photo with a row, and those of the source."""
        for (notes,) in self._database.execute("SELECT notes FROM photos WHERE bad IS NULL"):
            yield from json.loads(notes)

    def candidates(self) -> Iterator[tuple[int, str, str | None, str, str | None]]:
        """(position, content hash, the source's split, photo, its group) of every row, by name of the photo."""
        yield from self._database.execute(
            "SELECT seq, digest, hint, image, json_extract(metadata, '$.group') FROM photos WHERE row IS NOT NULL "
            "ORDER BY name"
        )

    def photos_with_objects(self) -> dict[str, tuple[int, int]]:
        """Split → photos, and how many of them have objects."""
        query = (
            "SELECT split, count(*), sum(json_array_length(row, '$.objects') > 0) FROM photos "
            "WHERE row IS NOT NULL GROUP BY split"
        )
        return {split: (photos, filled) for split, photos, filled in self._database.execute(query)}

    def sources(self) -> Iterator[str]:
        """The annotation file of every item."""
        yield from (source for (source,) in self._database.execute("SELECT source FROM photos"))

    def set_splits(self, splits: Sequence[tuple[str | None, int]]) -> None:
        """Set (split, position) of every row; split None leaves it out."""
        self._database.executemany("UPDATE photos SET split = ? WHERE seq = ?", splits)

    def leave_out(self, seq: int, bad: BadSource, dropped: Sequence[Dropped]) -> None:
        """Remove a row; objects that were dropped before stay counted."""
        (old,) = self._database.execute("SELECT dropped FROM photos WHERE seq = ?", (seq,)).fetchone()
        every = [*json.loads(old), *json.loads(_dump(list(dropped)) or "[]")]
        self._database.execute(
            "UPDATE photos SET row = NULL, bad = ?, dropped = ? WHERE seq = ?", (_dump(bad), json.dumps(every), seq)
        )

    def rank(self, ranks: Sequence[tuple[int, int]]) -> None:
        """Set (rank, position) of rows that have an order of their own within their split."""
        self._database.executemany("UPDATE photos SET rank = ? WHERE seq = ?", ranks)

    def row(self, seq: int) -> tuple[str, dict[str, Any]]:
        """(annotation file, decoded row) at one position."""
        source, text = self._database.execute("SELECT source, row FROM photos WHERE seq = ?", (seq,)).fetchone()
        return source, json.loads(text)

    def size_of(self, split: str) -> int:
        """Number of rows of a split."""
        query = "SELECT count(*) FROM photos WHERE row IS NOT NULL AND split = ?"
        return int(self._database.execute(query, (split,)).fetchone()[0])

    def rows(self, split: str | None = None) -> Iterator[dict[str, Any]]:
        """Decoded rows to write, by rank and name of the photo; None means all splits, by name alone."""
        chosen = "AND split = ? ORDER BY rank, name" if split else "AND split IS NOT NULL ORDER BY name"
        query = f"SELECT row, metadata, split FROM photos WHERE row IS NOT NULL {chosen}"
        for text, metadata, own in self._database.execute(query, (split,) if split else ()):
            yield {**json.loads(text), "metadata": {**json.loads(metadata), "split": own}}

    def without_copies(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        """(position, decoded row) of photos whose bytes are unique in the split, by name of the photo."""
        query = (
            "SELECT seq, row FROM photos WHERE row IS NOT NULL AND split = ?1 AND digest IN (SELECT digest FROM photos "
            "WHERE row IS NOT NULL AND split = ?1 GROUP BY digest HAVING count(*) = 1) ORDER BY name"
        )
        for seq, text in self._database.execute(query, (split,)):
            yield seq, {**json.loads(text), "metadata": {}}

    # ------------------------------------------------------------ ending

    def pause(self) -> None:
        """Commit, and keep the journal for the next run."""
        self._database.execute("COMMIT")
        self._database.close()

    def discard(self) -> None:
        """Remove the journal and everything else in its folder."""
        self._database.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def settings_hash(value: Any) -> str:
    """SHA-256 of the repr of a value."""
    return hashlib.sha256(repr(value).encode("utf-8", "backslashreplace")).hexdigest()


def _dump(value: Any) -> str | None:
    """Bad and dropped items and notes as JSON, with text that can be written."""

    def plain(item: Any) -> Any:
        if isinstance(item, list):
            return [plain(inner) for inner in item]
        if isinstance(item, str):
            return readable(item)
        return {name: readable(text) for name, text in vars(item).items()}

    return None if value is None else json.dumps(plain(value), ensure_ascii=False)
