"""Exports at the root of a source, and the photos of a source that none of its annotation files names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from bbu.images import IMAGE_SUFFIXES
from data_conversion.base import BadSource, SourceImage, SourceItem
from data_conversion.formats.disk_multimap import DiskMultimap
from data_conversion.formats.files import read_file, walk_files
from data_conversion.locating import PhotoFinder


def read_exports(
    root: Path, ignore: Path | None, pattern: str, read: Callable[[Path, str, PhotoFinder], Iterable[SourceItem]]
) -> Iterator[SourceItem]:
    """The items of ``read(file, relative name, finder)`` for the files at the root, then the photos that none names."""
    finder = PhotoFinder(root)
    with DiskMultimap() as store:
        for file in sorted(path for path in root.glob(pattern) if path.name[0] != "." and not path.is_dir()):
            for item in read_file(root, file, lambda path, where: read(path, where, finder)):
                if isinstance(item, SourceImage):
                    store.put("photos", item.image)
                yield item
        yield from unnamed_photos(root, ignore, store, "photos")


def unnamed_photos(root: Path, ignore: Path | None, store: DiskMultimap, name: str) -> Iterator[BadSource]:
    """One item for each photo under the root that is no key of the map ``name``."""
    for path in walk_files(root, ignore):
        place = path.relative_to(root).as_posix()
        if place.lower().endswith(IMAGE_SUFFIXES) and not store.has(name, place):
            yield BadSource(place, "file", "no annotation names it", reason="no_annotation")
