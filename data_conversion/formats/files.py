"""Annotation files in folders: found in a fixed order, read as UTF-8, never written over another's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from bbu.errors import RecordError, UserError
from data_conversion.formats.grouping import named_split


def walk_files(root: Path, ignore: Path | None = None) -> Iterator[Path]:
    """All files below a folder, by name; hidden ones and those of the ``ignore`` folder are left out."""
    for folder, subfolders, names in os.walk(root):
        here = Path(folder)
        subfolders[:] = sorted(name for name in subfolders if name[0] != "." and (here / name).resolve() != ignore)
        yield from (here / name for name in sorted(names) if name[0] != ".")


def split_of(path: str) -> str | None:
    """The split that the first telling folder of a path names: ``valid/images/a.jpg`` → ``val``."""
    return next(filter(None, map(named_split, PurePosixPath(path).parts[:-1])), None)


def read_text(path: Path, where: str) -> str:
    """A text file in UTF-8, with or without a byte order mark.

    Raises:
        RecordError: another encoding, or it cannot be read.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise RecordError(where, "file", f"cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise RecordError(where, "file", f"is not UTF-8 ({error.reason}); save it as UTF-8") from None


def new_file(folder: Path, name: str, image: str) -> Path:
    """Where the annotation file of a photo goes in an export.

    Raises:
        UserError: another photo has it, because tools find it by the photo's name without the suffix.
    """
    path = folder / name
    if path.exists():
        raise UserError(f"{image}: another photo has the annotation file {name} already; rename one of the two photos")
    return path
