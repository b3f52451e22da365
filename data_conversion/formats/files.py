"""Annotation files in folders: found in a fixed order, read as UTF-8, never overwritten; and the splits they name.

The error of one file or photo becomes its item, so that the others are still read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path, PurePosixPath
from typing import IO, ParamSpec

from bbu.errors import RecordError, UserError
from data_conversion.base import BadSource, SourceItem, readable

Arguments = ParamSpec("Arguments")

# The only words that name a split. A name with any other word in it (test_bench, val_di_sole) is that of a place.
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "eval", "evaluation"), "val"),
    **dict.fromkeys(("test", "testing", "test dev"), "test"),
}
_BESIDE_SPLITS = ("instances", "captions", "annotations", "labels", "images")  # what tools put before or after them
_NO_SPLIT = ("", "default", "all")  # what tools write where there is none
NOT_A_SPLIT = "not_read_as_a_split"  # note


def walk_files(root: Path, ignore: Path | None = None) -> Iterator[Path]:
    """All files below a folder, by name, except hidden ones and those in the ``ignore`` folder."""
    for folder, subfolders, names in os.walk(root):
        here = Path(folder)
        subfolders[:] = sorted(name for name in subfolders if name[0] != "." and (here / name).resolve() != ignore)
        yield from (here / name for name in sorted(names) if name[0] != ".")


def named_split(name: str) -> str | None:
    """The split that a file or folder name means: ``instances_val2017``, ``valid``, ``test-dev``; None if not one."""
    words = re.split(r"[^\w]+|_+", re.sub(r"(?:19|20)\d\d$", "", name.strip().lower()))
    return _SPLITS.get(" ".join(word for word in words if word and word not in _BESIDE_SPLITS))


def split_of(path: str) -> str | None:
    """The split of the first folder in a path that names one: ``valid/images/a.jpg`` → ``val``."""
    return next(filter(None, map(named_split, PurePosixPath(path).parts[:-1])), None)


def declared_split(name: str) -> tuple[str | None, tuple[str, ...]]:
    """As named_split, for a field that is there to name the split; with a note if its word is none."""
    split = named_split(name)
    return split, () if split or name.strip().lower() in _NO_SPLIT else (f"{NOT_A_SPLIT}: {readable(name)}",)


@contextmanager
def open_utf8(path: Path, where: str, newline: str = "") -> Iterator[IO[str]]:
    """Open a text file in UTF-8, with or without a byte order mark.

    Raises:
        RecordError: what is read from it has another encoding.
        OSError: the file cannot be read.
    """
    with path.open(encoding="utf-8-sig", newline=newline) as stream:
        try:
            yield stream
        except UnicodeDecodeError as error:
            raise RecordError(where, "file", f"is not UTF-8 ({error.reason}); save it as UTF-8") from None


def read_text(path: Path, where: str) -> str:
    """As open_utf8, the whole text; a file that cannot be read is a RecordError too."""
    try:
        with open_utf8(path, where) as stream:
            return stream.read()
    except OSError as error:
        raise RecordError(where, "file", f"cannot be read ({error.strerror})") from None


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
        yield from read_file(root, file, lambda path, where: [read(path, where)])


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


def or_bad_source(read: Callable[Arguments, SourceItem]) -> Callable[Arguments, SourceItem]:
    """A reader of one photo that returns its RecordError as a BadSource, so that the other photos are still read."""

    @wraps(read)
    def read_or_bad_source(*args: Arguments.args, **kwargs: Arguments.kwargs) -> SourceItem:
        try:
            return read(*args, **kwargs)
        except RecordError as error:
            return bad_source(error)

    return read_or_bad_source
