"""The photos of a source whose annotation files name them: where one lies, and which ones nobody names."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator
from pathlib import Path

from data_conversion.base import IMAGE_SUFFIXES, BadSource, readable
from data_conversion.formats.files import walk_files
from data_conversion.formats.grouping import Shelves
from data_conversion.locating import PhotoFinder


def find_photo(finder: PhotoFinder, name: str, *folders: str) -> str:
    """As PhotoFinder.find, but folders first: a bare name that lies in the folders of two splits is two photos."""
    for folder in folders:
        guess = posixpath.normpath(posixpath.join(folder, name.replace("\\", "/")))
        if not guess.startswith(("/", "../")) and os.path.isfile(finder.root / guess):
            return guess
    try:
        return finder.find(name, *folders)
    except OSError:  # longer than a file name can be; opening it gives the error
        return name


def unnamed_photos(root: Path, ignore: Path | None, shelves: Shelves, shelf: str) -> Iterator[BadSource]:
    """One item for each photo under the root that is no key of the shelf."""
    for path in walk_files(root, ignore):
        place = path.relative_to(root).as_posix()
        if place.lower().endswith(IMAGE_SUFFIXES) and not shelves.has(shelf, place):
            yield BadSource(readable(place), "file", "no annotation names it", reason="no_annotation")
