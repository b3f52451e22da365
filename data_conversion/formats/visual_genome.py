"""Visual Genome: ``region_descriptions*.json`` and ``image_data*.json`` at the root (visualgenome.org).

    region_descriptions   [{"id": 1, "regions": [{"phrase", "x", "y", "width", "height", "image_id", …}, …]}, …]
    image_data            [{"image_id": 1, "url": ".../VG_100K/1.jpg", "width", "height", …}, …]
    VG_100K/1.jpg, VG_100K_2/2.jpg, …   as in the URL, also below images/, or the file name anywhere else

One object a region: its phrase is the description, x, y, width and height its box in pixels from 0 of the frame whose
size image_data declares (see ``photos.points_to_displayed``). A phrase is one level: a slash in it ("silver/gray
mouse") is a word and becomes the full-width ``／``, which reads the same and separates nothing; it is noted. Photos
come in the order of the regions; there are no splits.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from bbu.errors import RecordError
from bbu.taxonomy import SEPARATOR
from data_conversion.base import (
    BadSource,
    Dropped,
    RawObject,
    SourceImage,
    SourceItem,
    SourceOptions,
    check_number,
    check_size,
    check_text,
    readable,
)
from data_conversion.formats.grouping import Shelves
from data_conversion.formats.json_stream import as_list, as_mapping, stream_json
from data_conversion.formats.source_photos import find_photo, unnamed_photos
from data_conversion.locating import PhotoFinder

FULL_WIDTH_SLASH = "／"
SLASH_IN_PHRASE = "slash_in_phrase"

_NAMED = "named"  # shelf of all photos that image_data names


def iter_records(root: Path, options: SourceOptions = SourceOptions()) -> Iterator[SourceItem]:  # noqa: B008 (frozen)
    """Yield one item for each photo of the region files, then one for each photo that has no regions."""
    with Shelves() as shelves:
        source = _Source(root, shelves)
        yield from source.load("image_data*.json", "image_id", source.image_files)
        yield from source.load("region_descriptions*.json", "id", source.region_files)
        source.shelve_places()
        for file in source.region_files:
            for image_id in shelves.keys(file):
                yield from source.photos(file, image_id)
        yield from source.without_regions()
        yield from unnamed_photos(root, options.ignore, shelves, _NAMED)


class _Source:
    """Both kinds of files, each on a shelf of its name: photo id (None: it has none) → (field, entry)."""

    def __init__(self, root: Path, shelves: Shelves) -> None:
        self.root, self.shelves = root, shelves
        self.finder = PhotoFinder(root)
        self.image_files: list[str] = []
        self.region_files: list[str] = []

    def load(self, pattern: str, key: str, loaded: list[str]) -> Iterator[BadSource]:
        """Read the files of a kind; an item for each that cannot be read as a whole."""
        for path in sorted(self.root.glob(pattern)):
            where = readable(path.relative_to(self.root).as_posix())
            try:
                self._read(path, where, key)
            except RecordError as error:
                yield BadSource(error.where, error.field, error.why)
            except OSError as error:
                yield BadSource(where, "file", f"cannot be read ({error.strerror or error})")
            else:
                loaded.append(where)

    def _read(self, path: Path, where: str, key: str) -> None:
        for item in stream_json(path, where):
            if item.name:
                raise RecordError(where, "file", "must be a list with one entry a photo, is an object")
            if item.number is not None:
                image_id = item.value.get(key) if isinstance(item.value, dict) else None
                known = isinstance(image_id, int) and not isinstance(image_id, bool)
                self.shelves.put(where, image_id if known else None, [f"[{item.number}]", item.value])

    def shelve_places(self) -> None:
        """Put every photo that image_data names on a shelf."""
        for file in self.image_files:
            for image_id in self.shelves.keys(file):
                for _, entry in self.shelves.get(file, image_id):
                    place = self._place(entry)
                    if place is not None:
                        self.shelves.put(_NAMED, place)

    def photos(self, file: str, image_id: int | None) -> Iterator[SourceItem]:
        """The photo of one id, or what is wrong with it."""
        (first, entry), *more = self.shelves.get(file, image_id)
        if image_id is None:
            for field, value in [(first, entry), *more]:
                yield _without_id(file, field, value, "id")
        elif more:
            yield BadSource(file, f"{more[0][0]}.id", f"{image_id} is also the id of {first}; keep one")
        else:
            try:
                yield self._photo(file, first, image_id, entry)
            except RecordError as error:
                yield BadSource(error.where, error.field, error.why)

    def _photo(self, where: str, field: str, image_id: int, entry: dict[str, Any]) -> SourceImage:
        place, size = self._image(image_id, where, field)
        regions = as_list(entry.get("regions"), where, f"{field}.regions")
        notes: list[str] = []
        objects = [
            _read_region(value, image_id, where, f"{field}.regions[{index}]", notes)
            for index, value in enumerate(regions)
        ]
        return SourceImage(place, where, tuple(objects), size, notes=tuple(notes))

    def _image(self, image_id: int, where: str, field: str) -> tuple[str, tuple[int, int]]:
        """Place and declared size of a photo, from image_data."""
        found = [(file, *value) for file in self.image_files for value in self.shelves.get(file, image_id)]
        if not found:
            raise RecordError(where, f"{field}.id", f"{image_id} is not in image_data*.json")
        (file, place_field, entry), *more = found
        if more:
            why = f"{image_id} is also that of {file}: {place_field}; keep one"
            raise RecordError(more[0][0], f"{more[0][1]}.image_id", why)
        place = self._place(entry)
        if place is None:
            raise RecordError(file, f"{place_field}.url", f"must be an address, is {entry.get('url')!r}")
        size = check_size(entry.get("width"), entry.get("height"), file, place_field)
        return check_text(place, file, f"{place_field}.url"), size

    def _place(self, entry: Any) -> str | None:
        """Where the photo of an image_data entry lies, relative to the root; None if it has no address."""
        address = entry.get("url") if isinstance(entry, dict) else None
        if not isinstance(address, str) or not address.strip("/"):
            return None
        try:
            path = unquote(urlsplit(address).path)
        except ValueError:  # an address that is none
            return None
        as_addressed = "/".join(path.strip("/").split("/")[-2:])
        for name in (as_addressed, posixpath.basename(as_addressed)):
            place = find_photo(self.finder, name, "images")
            if os.path.isfile(self.root / place):
                return place
        return as_addressed or None

    def without_regions(self) -> Iterator[BadSource]:
        """An item for each image_data entry that no region file has, and for each that has no id."""
        for file in self.image_files:
            for image_id in self.shelves.keys(file):
                for field, entry in self.shelves.get(file, image_id):
                    if image_id is None:
                        yield _without_id(file, field, entry, "image_id")
                    elif not any(self.shelves.has(other, image_id) for other in self.region_files):
                        yield BadSource(file, field, "no region file has it", reason="no_annotation")


def _without_id(where: str, field: str, value: Any, key: str) -> BadSource:
    if not isinstance(value, dict):
        return BadSource(where, field, f"must be a JSON object, is {type(value).__name__}")
    return BadSource(where, f"{field}.{key}", f"must be the number of a photo, is {value.get(key)!r}")


def _read_region(value: Any, image_id: int, where: str, field: str, notes: list[str]) -> RawObject | Dropped:
    region = as_mapping(value, where, field)
    if region.get("image_id", image_id) != image_id:
        raise RecordError(where, f"{field}.image_id", f"is {region['image_id']!r} in the entry of photo {image_id}")
    phrase = region.get("phrase")
    if not isinstance(phrase, str):
        raise RecordError(where, f"{field}.phrase", f"must be text, is {phrase!r}")
    desc = check_text(phrase.strip(), where, f"{field}.phrase").replace(SEPARATOR, FULL_WIDTH_SLASH)
    x, y, width, height = (
        check_number(region.get(key), where, f"{field}.{key}") for key in ("x", "y", "width", "height")
    )
    if not desc:
        return Dropped("(no label)", "no_description", "the phrase is empty", f"{field}.phrase")
    if min(width, height) < 0:
        return Dropped(desc, "inverted_box", f"width {width:g}, height {height:g} are below 0", field)
    if min(width, height) == 0:
        return Dropped(desc, "zero_area", f"width {width:g}, height {height:g}", field)
    notes += [SLASH_IN_PHRASE] if SEPARATOR in phrase else []
    return RawObject(desc, "bbox_2d", (x, y, x + width, y + height), field)
