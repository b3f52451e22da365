"""Exports of a source, and the photos of a source that none of its annotation files names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from bbu.images import IMAGE_SUFFIXES
from data_conversion.base import BadSource, SourceImage, SourceItem
from data_conversion.formats.disk_multimap import DiskMultimap
from data_conversion.formats.files import annotation_files, read_file
from data_conversion.locating import OTHER_SUFFIXES, PhotoFinder, cannot_be_read
from data_conversion.source_folder import walk_files


def read_exports(
    root: Path, ignore: Path | None, pattern: str, read: Callable[[Path, str, PhotoFinder], Iterable[SourceItem]]
) -> Iterator[SourceItem]:
    """The items of ``read(file, relative name, finder)`` for each export, then the photos that none names."""
    finder = PhotoFinder(root, ignore)
    with DiskMultimap() as store:
        for file in (path for path in annotation_files(root, pattern, ignore) if not path.is_dir()):
            for item in read_file(root, file, lambda path, where: read(path, where, finder)):
                if isinstance(item, SourceImage):
                    store.put("photos", item.image)
                yield item
        yield from unnamed_photos(root, ignore, store, "photos")


def unnamed_photos(root: Path, ignore: Path | None, store: DiskMultimap, name: str) -> Iterator[BadSource]:
    """One item for each photo under the root that is no key of the map ``name``."""
    for path in walk_files(root, ignore):
        place = path.relative_to(root).as_posix()
        if place.lower().endswith((*IMAGE_SUFFIXES, *OTHER_SUFFIXES)) and not store.has(name, place):
            heic = f"; {cannot_be_read(place)}" if place.lower().endswith(OTHER_SUFFIXES) else ""
            yield BadSource(place, "file", f"no annotation names it{heic}", reason="no_annotation")
