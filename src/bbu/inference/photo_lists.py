"""Lists photos from a folder, a glob pattern, a file, a list of paths, or records."""

from __future__ import annotations

import glob
from collections.abc import Iterable
from pathlib import Path

from bbu.errors import UserError
from bbu.images import IMAGE_SUFFIXES
from bbu.jsonl import iter_json_lines
from bbu.records import parse_sample

WILDCARDS = "*?["


def list_photos(source: str | Path) -> tuple[list[str], str]:
    """Names of photos, in order, and the image root they are relative to.

    Args:
        source: a folder (searched recursively, sorted by name), a glob pattern (``**`` matches any depth; sorted), a
            ``.jsonl`` of records, a ``.txt`` with one path on each line (order and repetitions are kept; relative to
            the list's folder), or one photo.

    Raises:
        UserError: the source does not exist or has no photo.
    """
    path = Path(source)
    if path.is_dir():
        return _photos_among(path.rglob("*"), path), str(path)
    if path.suffix == ".jsonl":
        rows = [parse_sample(value, where).student for where, value in iter_json_lines(path)]
        if not rows:
            raise UserError(f"{path}: has no row")
        return [row.images[0] for row in rows], str(path.parent)
    if path.suffix == ".txt" and path.is_file():
        return _listed(path), str(path.parent)
    if path.is_file():
        return [path.name], str(path.parent)
    if any(sign in str(source) for sign in WILDCARDS):
        root = _before_wildcards(path)
        return _photos_among(map(Path, glob.iglob(str(source), recursive=True)), root, str(source)), str(root)
    raise UserError(f"{path}: does not exist")


def _photos_among(paths: Iterable[Path], root: Path, source: str = "") -> list[str]:
    names = sorted(
        str(path.relative_to(root)) for path in paths if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
    )
    if not names:
        raise UserError(f"{source or root}: has no photo ({', '.join(IMAGE_SUFFIXES)})")
    return names


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
