"""Lists photos from a folder, a glob pattern, a file, a list of paths, or records."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bbu.errors import UserError
from bbu.images import HEIC_SUFFIXES, IMAGE_SUFFIXES
from bbu.jsonl import iter_json_lines
from bbu.records import parse_sample

WILDCARDS = "*?["
NAMED = 5  # names in a summary


@dataclass
class LeftOut:
    """What lies in a folder of photos and is not listed.

    Attributes:
        closed: folders that cannot be read, and why; their photos are missing.
        linked: links to folders, which are not followed.
        others: files that are not called like photos, by suffix.
    """

    closed: list[str] = field(default_factory=list)
    linked: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)

    def notes(self) -> list[str]:
        """One line a kind, with the count and names."""
        lines = []
        if self.closed:
            folders = _count(len(self.closed), "folder")
            lines.append(f"{folders} cannot be read, their photos are missing: {_some(sorted(self.closed))}")
        if self.linked:
            links = _count(len(self.linked), "link")
            lines.append(
                f"{links} to folders not followed: {_some(sorted(self.linked))}; predict them by their own path"
            )
        if self.others:
            kinds = [f"{count} {suffix or 'without suffix'}" for suffix, count in self.others.most_common()]
            lines.append(f"{_count(self.others.total(), 'file')} not called like photos: {_some(kinds)}")
        return lines


def list_photos(source: str | Path, left_out: LeftOut | None = None) -> tuple[list[str], str]:
    """Names of photos, in order, and the image root they are relative to.

    In a folder or pattern, whatever is called like a photo is listed, also what cannot be read (a HEIC photo, a broken
    link, a pipe): reading it says why.

    Args:
        source: a folder (searched recursively, sorted by name), a glob pattern (``**`` matches any depth; sorted), a
            ``.jsonl`` of records, a ``.txt`` with one path on each line (order and repetitions are kept; relative to
            the list's folder), or one photo.
        left_out: receives what is not listed.

    Raises:
        UserError: the source does not exist, cannot be read or has no photo.
    """
    try:
        return _list(Path(source), str(source), left_out if left_out is not None else LeftOut())
    except OSError as error:
        raise UserError(f"{source}: cannot be read: {error.strerror}") from None


def _list(path: Path, source: str, left_out: LeftOut) -> tuple[list[str], str]:
    if path.is_dir():
        return _photos_among(_walk(path, left_out), path, left_out), str(path)
    if path.suffix == ".jsonl":
        rows = [parse_sample(value, where).student for where, value in iter_json_lines(path)]
        if not rows:
            raise UserError(f"{path}: has no row")
        return [row.images[0] for row in rows], str(path.parent)
    if path.suffix == ".txt" and path.is_file():
        return _listed(path), str(path.parent)
    if os.path.lexists(path):
        return [path.name], str(path.parent)
    if any(sign in source for sign in WILDCARDS):
        root = _before_wildcards(path)
        return _photos_among(map(Path, glob.iglob(source, recursive=True)), root, left_out, source), str(root)
    raise UserError(f"{path}: does not exist")


def _walk(folder: Path, left_out: LeftOut) -> Iterator[Path]:
    """Everything below a folder except folders."""

    def closed(error: OSError) -> None:
        left_out.closed.append(f"{os.path.relpath(error.filename, folder)} ({error.strerror})")

    for place, folders, files in os.walk(folder, onerror=closed):
        left_out.linked += [
            os.path.relpath(os.path.join(place, name), folder)
            for name in folders
            if os.path.islink(os.path.join(place, name))
        ]
        yield from (Path(place, name) for name in files)


def _photos_among(paths: Iterable[Path], root: Path, left_out: LeftOut, source: str = "") -> list[str]:
    names = []
    for path in paths:
        if os.path.isdir(path):
            continue
        suffix = path.suffix.lower()
        if suffix in IMAGE_SUFFIXES or suffix in HEIC_SUFFIXES:
            names.append(str(path.relative_to(root)))
        else:
            left_out.others[suffix] += 1
    if not names:
        notes = "".join(f"; {note}" for note in left_out.notes())
        raise UserError(f"{source or root}: has no photo ({', '.join(IMAGE_SUFFIXES)}){notes}")
    return sorted(names)


def _listed(path: Path) -> list[str]:
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 ({error.reason}); save the list as UTF-8") from None
    names = [name for name in names if name]
    if not names:
        raise UserError(f"{path}: lists no photo; write one path a line, relative to the list's folder")
    return names


def _before_wildcards(pattern: Path) -> Path:
    """The folder above the first path component with a wildcard."""
    parts = pattern.parts
    first = next(number for number, part in enumerate(parts) if any(sign in part for sign in WILDCARDS))
    return Path(*parts[:first])


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'s' * (number != 1)}"


def _some(names: list[str]) -> str:
    rest = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + rest
