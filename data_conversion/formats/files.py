"""Annotation files in folders: found in a fixed order, read as UTF-8, never overwritten; and the splits they name.

The error of one file or photo becomes its item, so that the others are still read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath

from bbu.errors import RecordError, UserError
from data_conversion.base import BadSource, SourceItem, readable

_SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def walk_files(root: Path, ignore: Path | None = None) -> Iterator[Path]:
    """All files below a folder, by name, except hidden ones and those in the ``ignore`` folder."""
    for folder, subfolders, names in os.walk(root):
        here = Path(folder)
        subfolders[:] = sorted(name for name in subfolders if name[0] != "." and (here / name).resolve() != ignore)
        yield from (here / name for name in sorted(names) if name[0] != ".")


def named_split(name: str) -> str | None:
    """The split that a file or folder name means: ``instances_val2017``, ``valid``, ``test-dev``; None if not one."""
    words = (re.sub(r"\d+$", "", word) for word in re.split(r"[^a-z0-9]+", name.lower()))
    found = {_SPLITS[word] for word in words if word in _SPLITS}
    return found.pop() if len(found) == 1 else None


def split_of(path: str) -> str | None:
    """The split of the first folder in a path that names one: ``valid/images/a.jpg`` → ``val``."""
    return next(filter(None, map(named_split, PurePosixPath(path).parts[:-1])), None)


def read_text(path: Path, where: str) -> str:
    """A text file in UTF-8, with or without a byte order mark.

    Raises:
        RecordError: the file has another encoding or cannot be read.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise RecordError(where, "file", f"cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise RecordError(where, "file", f"is not UTF-8 ({error.reason}); save it as UTF-8") from None


def new_file(folder: Path, name: str, image: str) -> Path:
    """Path of a photo's annotation file in an export.

    Raises:
        UserError: another photo has the same one, since tools find it by the photo's name without the suffix.
    """
    path = folder / name
    if path.exists():
        raise UserError(f"{image}: another photo has the annotation file {name} already; rename one of the two photos")
    return path


def read_each(root: Path, files: Iterable[Path], read: Callable[[Path, str], SourceItem]) -> Iterator[SourceItem]:
    """``read(file, relative name)`` for every file; its errors become BadSource items."""
    for file in files:
        yield from read_file(root, file, lambda path, where: iter([read(path, where)]))


def read_file(root: Path, file: Path, read: Callable[[Path, str], Iterable[SourceItem]]) -> Iterator[SourceItem]:
    """The items of ``read(file, relative name)``; an error ends them with a BadSource."""
    name = file.relative_to(root).as_posix()
    if readable(name) != name:
        yield BadSource(readable(name), "file", "has a name that is not UTF-8; rename it")
        return
    try:
        yield from read(file, name)
    except (RecordError, OSError) as error:
        yield bad_source(error, name)


def bad_source(error: RecordError | OSError, where: str = "") -> BadSource:
    """The item for an error; ``where`` is the annotation file, which an OSError does not name."""
    if isinstance(error, RecordError):
        return BadSource(error.where, error.field, error.why)
    return BadSource(where, "file", f"cannot be read ({error.strerror or error})")
