"""Read Visual Genome: ``region_descriptions*.json`` and ``image_data*.json`` at the root (visualgenome.org).

    region_descriptions   [{"id": 1, "regions": [{"phrase", "x", "y", "width", "height", "image_id", …}, …]}, …]
    image_data            [{"image_id": 1, "url": ".../VG_100K/1.jpg", "width", "height", …}, …]
    VG_100K/1.jpg, VG_100K_2/2.jpg, …   as in the URL, also below images/, or the file name anywhere else

Each region is one object: its phrase is the description; x, y, width and height are its box in pixels from 0, in the
frame whose size image_data declares (see ``photos.points_to_displayed``). A phrase is one level: a slash in it
("silver/gray mouse") becomes the full-width ``／``, which looks alike but separates nothing, and is noted. Photos come
in the order of the regions; there are no splits.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from bbu.errors import RecordError
from bbu.taxonomy import SEPARATOR
from data_conversion.base import BadSource, Dropped, RawObject, SourceImage, SourceItem, SourceOptions, readable
from data_conversion.formats.checks import (
    as_list,
    as_mapping,
    as_text,
    as_whole,
    box_of_size,
    check_number,
    check_text,
    declared_size,
)
from data_conversion.formats.disk_multimap import DiskMultimap
from data_conversion.formats.files import annotation_files, bad_source, or_bad_source
from data_conversion.formats.json_stream import stream_json
from data_conversion.formats.salvage import label_in, salvage, unread, upright
from data_conversion.formats.source_photos import unnamed_photos
from data_conversion.locating import Found, PhotoFinder

FULL_WIDTH_SLASH = "／"
SLASH_IN_PHRASE = "slash_in_phrase"
# Read, or written by rote
PHOTO_KEYS = ("id", "image_id", "regions")
IMAGE_KEYS = ("image_id", "url", "width", "height", "coco_id", "flickr_id")
REGION_KEYS = ("region_id", "image_id", "phrase", "x", "y", "width", "height")

_NAMED = "named"  # map of the photos that image_data names


def iter_records(root: Path, options: SourceOptions = SourceOptions()) -> Iterator[SourceItem]:  # noqa: B008 (frozen)
    """Yield one item for each photo of the region files, then one for each photo without regions."""
    with DiskMultimap() as store:
        source = _Source(root, store, options.ignore)
        yield from source.load("image_data*.json", "image_id", source.image_files)
        yield from source.load("region_descriptions*.json", "id", source.region_files)
        source.store_places()
        for file in source.region_files:
            for image_id in store.keys(file):
                yield from source.photos(file, image_id)
        yield from source.without_regions()
        yield from unnamed_photos(root, options.ignore, store, _NAMED)


class _Source:
    """Both kinds of files, each in the map of its name: photo id (None: no id) → (field, entry)."""

    def __init__(self, root: Path, store: DiskMultimap, ignore: Path | None) -> None:
        self.root, self.store, self.ignore = root, store, ignore
        self.finder = PhotoFinder(root, ignore)
        self.image_files: list[str] = []
        self.region_files: list[str] = []

    def load(self, pattern: str, key: str, loaded: list[str]) -> Iterator[BadSource]:
        """Read the files of one kind; yields an item for each file that cannot be read."""
        for path in annotation_files(self.root, pattern, self.ignore):
            where = readable(path.relative_to(self.root).as_posix())
            try:
                self._read(path, where, key)
            except (RecordError, OSError) as error:
                yield bad_source(error, where)
            else:
                loaded.append(where)

    def _read(self, path: Path, where: str, key: str) -> None:
        for item in stream_json(path, where):
            if item.name:
                raise RecordError(where, "file", "must be a list with one entry per photo, is an object")
            if item.number is not None:
                image_id = as_whole(item.value.get(key)) if isinstance(item.value, dict) else None
                known = isinstance(image_id, int) and not isinstance(image_id, bool)
                self.store.put(where, image_id if known else None, [f"[{item.number}]", item.value])

    def store_places(self) -> None:
        """Put every photo that image_data names into the map of names."""
        for file in self.image_files:
            for image_id in self.store.keys(file):
                for _, entry in self.store.get(file, image_id):
                    self.store.put(_NAMED, self._place(entry).image)

    def photos(self, file: str, image_id: int | None) -> Iterator[SourceItem]:
        """The item of one photo id."""
        (first, entry), *more = self.store.get(file, image_id)
        if image_id is None:
            for field, value in [(first, entry), *more]:
                yield _without_id(file, field, value, "id")
        elif more:
            yield BadSource(file, f"{more[0][0]}.id", f"{image_id} is also the id of {first}; keep one")
        else:
            yield self._photo(file, first, image_id, entry)

    @or_bad_source
    def _photo(self, where: str, field: str, image_id: int, entry: dict[str, Any]) -> SourceItem:
        notes = unread("photo key", entry, PHOTO_KEYS)
        photo, size = self._image(image_id, where, field, notes)
        regions = as_list(entry.get("regions"), where, f"{field}.regions")
        objects = []
        for index, value in enumerate(regions):
            here = f"{field}.regions[{index}]"
            objects.append(
                salvage(partial(_read_region, value, image_id, where, here, notes), label_in(value, "phrase"), here)
            )
        notes += photo.notes
        return SourceImage(photo.image, where, tuple(objects), size, notes=tuple(notes), missing=photo.missing)

    def _image(self, image_id: int, where: str, field: str, notes: list[str]) -> tuple[Found, tuple[int, int] | None]:
        """Place and declared size of a photo, from image_data."""
        found = [(file, *value) for file in self.image_files for value in self.store.get(file, image_id)]
        if not found:
            raise RecordError(where, f"{field}.id", f"{image_id} is not in image_data*.json")
        (file, place_field, entry), *more = found
        if more:
            why = f"{image_id} is also that of {file}: {place_field}; keep one"
            raise RecordError(more[0][0], f"{more[0][1]}.image_id", why)
        photo = self._place(entry)
        if not photo.image:
            raise RecordError(file, f"{place_field}.url", f"must be an address, is {entry.get('url')!r}")
        notes += unread("image_data key", entry, IMAGE_KEYS)
        size = declared_size(entry.get("width"), entry.get("height"), file, place_field, notes)
        check_text(photo.image, file, f"{place_field}.url")
        return photo, size

    def _place(self, entry: Any) -> Found:
        """Where an image_data entry's photo is; a path of "" if it has no valid URL."""
        address = entry.get("url") if isinstance(entry, dict) else None
        try:
            path = unquote(urlsplit(address).path) if isinstance(address, str) else ""
        except ValueError:  # no valid URL
            path = ""
        as_addressed = "/".join(path.strip("/").split("/")[-2:])
        return self.finder.find(as_addressed, "", "images") if as_addressed else Found("")

    def without_regions(self) -> Iterator[BadSource]:
        """One item for each image_data entry that no region file has, or that has no id."""
        for file in self.image_files:
            for image_id in self.store.keys(file):
                for field, entry in self.store.get(file, image_id):
                    if image_id is None:
                        yield _without_id(file, field, entry, "image_id")
                    elif not any(self.store.has(other, image_id) for other in self.region_files):
                        yield BadSource(file, field, "no region file has it", reason="no_annotation")


def _without_id(where: str, field: str, value: Any, key: str) -> BadSource:
    if not isinstance(value, dict):
        return BadSource(where, field, f"must be a JSON object, is {type(value).__name__}")
    return BadSource(where, f"{field}.{key}", f"must be the number of a photo, is {value.get(key)!r}")


def _read_region(value: Any, image_id: int, where: str, field: str, notes: list[str]) -> RawObject | Dropped:
    region = as_mapping(value, where, field)
    if as_whole(region.get("image_id", image_id)) != image_id:
        raise RecordError(where, f"{field}.image_id", f"is {region['image_id']!r} in the entry of photo {image_id}")
    phrase = as_text(region.get("phrase"), where, f"{field}.phrase")
    x, y, width, height = (
        check_number(region.get(key), where, f"{field}.{key}") for key in ("x", "y", "width", "height")
    )
    if not phrase:
        return Dropped("(no label)", "no_description", "the phrase is empty", f"{field}.phrase")
    found = box_of_size(phrase.replace(SEPARATOR, FULL_WIDTH_SLASH), (x, y, width, height), field)
    if isinstance(found, RawObject):
        notes += [SLASH_IN_PHRASE] * (SEPARATOR in phrase) + unread("region key", region, REGION_KEYS)
    return upright(found, region, field)
