"""Find the photo that an annotation file names: one finder for all formats.

Tools write bare names, folders of another machine, addresses, the name before a conversion to JPEG, or the name as
another file system spells it. A name is looked for in this order, and each step only where the one before finds none:

    as written      in the folders that the tool uses, then from the source folder
    same folders    in another case or Unicode form, then by the stem, with another suffix
    anywhere        by the longest tail of its path, then by the longest tail whose stem agrees

One photo is found, or an error lists the candidates: a wrong photo would teach wrong labels in silence.
"""

from __future__ import annotations

import os
import posixpath
import sqlite3
import unicodedata
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from bbu.errors import shown
from bbu.images import IMAGE_SUFFIXES
from data_conversion.base import readable
from data_conversion.references import spellings
from data_conversion.source_folder import LEADS_OUTSIDE, walk_files

# Photos of phones and cameras that Pillow cannot read; those that it can are in IMAGE_SUFFIXES.
OTHER_SUFFIXES = tuple(
    suffix
    for suffix in (".heic", ".heif", ".hif", ".jxl", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf")
    if suffix not in IMAGE_SUFFIXES
)
LISTED = 5  # candidates in a message
MAX_PATH = 500  # characters of a path in a message
NAME, STEM = "name", "stem"  # columns of the index
_NO_NAMES = ("", ".", "..")  # parts of a path that name no file
CACHE_KIB = 8 * 1024  # of the index in memory; the rest of it is a temporary file

# Notes: how a photo was found that is not where the annotation says
BY_SPELLING = "photo_found_in_another_case_or_unicode_form"
BY_STEM = "photo_found_by_its_stem"
BY_TAIL = "photo_found_in_another_folder"


class Found(NamedTuple):
    """Where a photo is.

    Args:
        image: its path relative to the source, with ``/``; if there is none, where it should be.
        missing: why there is none, with candidates or the way out; "" if there is one.
        notes: code of the way in which it was found, if not as written.
    """

    image: str
    missing: str = ""
    notes: tuple[str, ...] = ()


class PhotoFinder:
    """Photo names of annotation files → paths inside the source.

    Args:
        root: the source folder.
        ignore: a folder inside that is not part of it.
    """

    def __init__(self, root: Path, ignore: Path | None = None) -> None:
        self.root, self.ignore = root, ignore

    def find(self, name: str, *folders: str, others: Iterable[str] = (), home: str = "") -> Found:
        """Look for a photo.

        Args:
            name: as the annotation file has it.
            folders: where the tool keeps photos, relative to the root, likeliest first: the same bare name in the
                folders of two splits is two photos.
            others: further names of the photo, such as the stem of its annotation file, if ``name`` leads nowhere.
            home: where the photo should be if it is nowhere.
        """
        forms = [self._below_root(form) for form in spellings(name)] or [""]
        wanted = _join(home, forms[-1])
        for names in (forms, list(others)):
            for image in _joined(folders, names):
                if self.has(image) and not image.lower().endswith(OTHER_SUFFIXES):
                    return Found(image)
            found = self._nearby(folders, names) or self._anywhere(folders, names)
            if found is not None and found.missing:
                return Found(wanted, f"{shown(name)} {found.missing}")
            if found is not None:
                return found
        return Found(wanted, self._missing(name, wanted, folders, [*forms, *others]))

    def has(self, image: str) -> bool:
        """Whether a path, relative to the root and normalised, is a file below it."""
        return not image.startswith(("/", "../")) and os.path.isfile(self.root / image)

    def _below_root(self, form: str) -> str:
        """An absolute path relative to the root, if it leads there."""
        if form.startswith("/"):
            for top in (os.path.abspath(self.root), os.path.realpath(self.root)):
                if posixpath.normpath(form).startswith(f"{top}/"):
                    return posixpath.normpath(form)[len(top) + 1 :]
        return form

    # ------------------------------------------------------------ the steps

    def _nearby(self, folders: Iterable[str], forms: Iterable[str], usable: bool = True) -> Found | None:
        """In the folders themselves: by case and Unicode form, then by stem."""
        if not self._index.size:
            return None
        places = [_key(place) for place in _joined(folders, forms)]
        for column, note, of in ((NAME, BY_SPELLING, str), (STEM, BY_STEM, _without_suffix)):
            for key in dict.fromkeys(map(of, places)):
                found = self._index.equal(column, key, usable)
                if found:
                    return _one_of(found, note)
        return None

    def _anywhere(self, folders: Iterable[str], forms: Iterable[str], usable: bool = True) -> Found | None:
        """By the longest tail of the path; of several such photos the one in the tool's folders or of the same case."""
        if not self._index.size:
            return None
        for column, notes, of in ((NAME, (BY_TAIL,), str), (STEM, (BY_TAIL, BY_STEM), _without_suffix)):
            for form in (form for form in forms if "/" not in form.partition("?")[2]):  # not the tail of a query
                parts = [part for part in form.split("/") if part not in _NO_NAMES]
                for start in range(len(parts)):
                    tail = "/".join(parts[start:])
                    key = of(_key(tail))
                    found = self._index.beginning(column, key, usable)
                    if len(found) > 1:
                        near = (self._index.equal(column, key + _key(at).lstrip("/"), usable) for at in folders)
                        same = [path for path in found if f"/{path}".endswith(f"/{tail}")]
                        found = next((paths for paths in (*near, same) if len(paths) == 1), found)
                    if found:
                        return _one_of(found, *notes)
        return None

    def _missing(self, name: str, wanted: str, folders: Iterable[str], forms: list[str]) -> str:
        """Why there is no photo, and the way out."""
        for step in (self._nearby, self._anywhere):
            photo = step(folders, forms, usable=False)
            if photo is not None and not photo.missing:
                return cannot_be_read(photo.image)
        if wanted.startswith(("/", "../")):
            why = f"{shown(name)} leaves the source folder, and no photo in it has that name or stem; move it inside"
        else:
            place = readable(repr(str(self.root / wanted))[1:-1])
            place = place if len(place) <= MAX_PATH else f"{place[:MAX_PATH]}..."
            why = (
                f"no photo at {place}, and none in {readable(str(self.root))} has that name (in any case or Unicode "
                "form), stem or tail of the path; add it or correct the name"
            )
        links = ", ".join(self._index.links[:LISTED])
        return f"{why}; or it {LEADS_OUTSIDE}: {links}" if links else why

    @cached_property
    def _index(self) -> _Index:
        """All photos of the source; built only if one is not as written."""
        return _Index(self.root, self.ignore)


class _Index:
    """Photos of a source by their paths read from the end, in a temporary SQLite file: memory stays bounded.

    ``Train/A.JPG`` has the name ``a.jpg/train/`` and the stem ``a/train/``, so that a tail of the path is the start of
    a key. ``links`` are the folders that lead outside and were not followed.
    """

    def __init__(self, root: Path, ignore: Path | None) -> None:
        self.links: list[str] = []
        self._base = sqlite3.connect("", isolation_level=None)  # a private file, deleted when the connection goes
        self._base.executescript(
            f"PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -{CACHE_KIB};"
            "CREATE TABLE photos (place INTEGER PRIMARY KEY, path TEXT, name TEXT, stem TEXT, usable INTEGER);"
        )
        self._base.execute("BEGIN")
        self._base.executemany(
            "INSERT INTO photos (path, name, stem, usable) VALUES (?, ?, ?, ?)", self._rows(root, ignore)
        )
        for column in (NAME, STEM):
            self._base.execute(f"CREATE INDEX by_{column} ON photos (usable, {column})")
        (self.size,) = self._base.execute("SELECT COUNT(*) FROM photos").fetchone()

    def _rows(self, root: Path, ignore: Path | None) -> Iterator[tuple[str, str, str, bool]]:
        for path in walk_files(root, ignore, outside=self.links):
            if path.name.lower().endswith((*IMAGE_SUFFIXES, *OTHER_SUFFIXES)):
                place = path.relative_to(root).as_posix()
                if readable(place) == place:
                    key = _key(place)
                    yield place, key, _without_suffix(key), not place.lower().endswith(OTHER_SUFFIXES)

    def equal(self, column: str, key: str, usable: bool) -> list[str]:
        """The first paths with this name or stem."""
        return self._paths(f"{column} = ?", usable, key)

    def beginning(self, column: str, key: str, usable: bool) -> list[str]:
        """The first paths whose name or stem begins with a key, which ends in ``/``."""
        return self._paths(f"{column} >= ? AND {column} < ?", usable, key, f"{key[:-1]}0")  # "0" follows "/"

    def _paths(self, condition: str, usable: bool, *keys: str) -> list[str]:
        if any(readable(key) != key for key in keys):
            return []  # half a surrogate pair, which no name in the index has
        query = f"SELECT path FROM photos WHERE usable = ? AND {condition} ORDER BY path LIMIT {LISTED + 1}"
        return [path for (path,) in self._base.execute(query, (usable, *keys))]


def folded(path: str) -> str:
    """A path in one case and Unicode form: macOS writes ``é`` as two characters."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())


def cannot_be_read(image: str) -> str:
    """What to do about a photo in one of OTHER_SUFFIXES."""
    stem, suffix = posixpath.splitext(posixpath.basename(image))
    return (
        f"{image} is a {suffix[1:].upper()} photo, which cannot be read; convert it to JPEG beside it, for example: "
        f"magick {stem}{suffix} {stem}.jpg (annotation files may keep the old name)"
    )


def _one_of(found: list[str], *notes: str) -> Found:
    if len(found) == 1:
        return Found(found[0], notes=notes)
    names = ", ".join(found[:LISTED]) + (", …" if len(found) > LISTED else "")
    return Found("", f"may be any of {names}; write the path from the source folder, or keep one")


def _joined(folders: Iterable[str], forms: Iterable[str]) -> Iterator[str]:
    """Every form of a name in every folder, then from the root."""
    places = (*folders, "")
    return (_join(folder, form) for form in forms for folder in places)


def _join(folder: str, form: str) -> str:
    return posixpath.normpath(posixpath.join(folder, form))


def _key(path: str) -> str:
    """A path from its end, in one case and Unicode form: ``Train/A.JPG`` → ``a.jpg/train/``."""
    parts = [part for part in folded(path).split("/") if part not in _NO_NAMES]
    return "/".join(reversed(parts)) + "/"


def _without_suffix(key: str) -> str:
    """``a.jpg/train/`` → ``a/train/``; what is no suffix of a photo stays, as in ``a.rf.0a1b``."""
    name, _, rest = key.partition("/")
    stem, suffix = posixpath.splitext(name)
    return f"{stem if suffix in (*IMAGE_SUFFIXES, *OTHER_SUFFIXES) else name}/{rest}"
