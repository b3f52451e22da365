"""Annotation files in folders: found in a fixed order, read as Unicode, never overwritten; and the splits they name.

The error of one file or photo becomes its item, so that the others are still read.
"""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path, PurePosixPath
from typing import IO, ParamSpec

from bbu.errors import RecordError, UserError
from data_conversion.base import BadSource, SourceItem, readable
from data_conversion.source_folder import check_inside

Arguments = ParamSpec("Arguments")

# Byte order mark → encoding that reads it; UTF-32 first, since its mark begins with that of UTF-16.
_MARKS = {codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32", codecs.BOM_UTF16_LE: "utf-16",
          codecs.BOM_UTF16_BE: "utf-16"}  # fmt: skip
# Which of the first 4 bytes are zero, where two Latin characters or more begin a file without a mark
_WITHOUT_MARK = {(False, True, False, True): "utf-16-le", (True, False, True, False): "utf-16-be"}

# The only words that name a split. A name with any other word in it (test_bench, val_di_sole) is that of a place.
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "eval", "evaluation"), "val"),
    **dict.fromkeys(("test", "testing", "test dev"), "test"),
}
_BESIDE_SPLITS = ("instances", "captions", "annotations", "labels", "images")  # what tools put before or after them
_NO_SPLIT = ("", "default", "all")  # what tools write where there is none
NOT_A_SPLIT = "not_read_as_a_split"  # note


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
def open_text(path: Path, where: str, newline: str = "") -> Iterator[IO[str]]:
    """Open a text file in UTF-8, UTF-16 or UTF-32; only the last two need a byte order mark or plain Latin text.

    Args:
        where: its path below the source folder.

    Raises:
        RecordError: it lies outside the source folder, or what is read from it has another encoding.
        OSError: the file cannot be read.
    """
    check_inside(path, where)
    with path.open("rb") as raw:
        encoding = unicode_encoding(raw.peek(4)[:4])
        stream = io.TextIOWrapper(raw, encoding=encoding, newline=newline)
        try:
            yield stream
        except UnicodeDecodeError as error:
            name = encoding.upper().removesuffix("-SIG")
            way_out = f"save it as UTF-8, for example: iconv -f GB18030 -t UTF-8 {path.name} (with its own encoding)"
            raise RecordError(where, "file", f"is not {name} ({error.reason}); {way_out}") from None


def unicode_encoding(start: bytes) -> str:
    """The encoding of a text that begins with these 4 bytes: UTF-8 unless they say otherwise."""
    for mark, name in _MARKS.items():
        if start.startswith(mark):
            return name
    zeros = tuple(byte == 0 for byte in start)
    return next((name for pattern, name in _WITHOUT_MARK.items() if pattern == zeros), "utf-8-sig")


def read_text(path: Path, where: str) -> str:
    """As open_text, the whole text; a file that cannot be read is a RecordError too."""
    try:
        with open_text(path, where) as stream:
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


def annotation_files(root: Path, pattern: str, ignore: Path | None = None) -> list[Path]:
    """The files at the root that a pattern names, by name; if there are none, those one folder down."""
    for place in (pattern, f"*/{pattern}"):
        found = (path for path in root.glob(place) if not is_hidden(path, root))
        files = sorted(path for path in found if path.parent.resolve() != ignore)
        if files:
            return files
    return []


def is_hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


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
        check_inside(file, name)
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
