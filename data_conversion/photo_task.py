"""The work on one photo, in whichever process: open it, place its objects, make its row."""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bbu.errors import ImageError, RecordError, UserError
from bbu.geometry import compose
from bbu.records import Row, parse_row, resolve_image
from bbu.taxonomy import Taxonomy
from data_conversion.base import BadSource, Dropped, RawObject, SourceImage, SourceItem, SourceNote
from data_conversion.photo_files import KEEP, WITHOUT, store_photo
from data_conversion.photos import Photo, assumed_photo, points_to_displayed, read_photo
from data_conversion.placing import place_objects
from data_conversion.source_folder import LEADS_OUTSIDE, is_outside
from data_conversion.summaries import count_objects

SHARES = (
    "all coordinates are at most 1 pixel: are they shares of the photo? Convert csv, coco, hf_dataset and "
    "visual_genome with --units shares (data.source.units), or multiply them by the photo's width and height"
)


@dataclass(frozen=True)
class Outcome:
    """The result of one source item; with neither row nor bad it is notes alone, and no photo.

    Args:
        source: annotation file.
        image: photo as the source names it; "" if there is none.
        objects_read: number of objects in the annotation; a line in pieces counts once for each.
        row: the photo's row, or None.
        digest: content hash of the photo, for splits.
        hint: the source's own split.
        bad: why there is no row.
        dropped: objects that are in no row.
        notes: codes of harmless oddities.
    """

    source: str
    image: str = ""
    objects_read: int = 0
    row: Row | None = None
    digest: str = ""
    hint: str | None = None
    bad: BadSource | None = None
    dropped: tuple[Dropped, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class PhotoTask:
    """Turns a source item into an outcome; it can be sent to other processes.

    Args:
        root: the source folder.
        taxonomy: token map and hierarchy.
        images: how photo files are stored, one of photo_files.MODES.
        photos: folder of linked, copied and re-encoded photos.
        max_pixels: largest re-encoded photo; 0 means no limit.
        frame: "displayed" or "stored" overrides the frame of the format's coordinates; "" keeps it.
        follow_links: open photos behind links that lead outside the source folder.
        units: "shares": coordinates are shares of the frame, 0 to 1; "" keeps the format's rule.
        summaries: language of summaries for photos without one, see summaries.py; "" makes none.
        summary_levels: levels of descriptions that these count together; 0 = all.
    """

    root: Path
    taxonomy: Taxonomy = field(default_factory=Taxonomy)
    images: str = KEEP
    photos: Path = Path()
    max_pixels: int = 0
    frame: str = ""
    follow_links: bool = False
    units: str = ""
    summaries: str = ""
    summary_levels: int = 0

    def __call__(self, item: SourceItem) -> Outcome:
        """The outcome of one item; a problem with the photo is part of it, not raised."""
        if isinstance(item, BadSource):
            return Outcome(item.source, bad=item)
        if isinstance(item, SourceNote):
            return Outcome(item.source, notes=(item.code,))
        if self.frame:
            item = replace(item, displayed=self.frame == "displayed")
        if self.units:
            item = replace(item, relative=self.units == "shares")
        try:
            return self._convert(item)
        except ImageError as error:
            return _refuse(item, "image", str(error))
        except RecordError as error:
            return _refuse(item, error.field, error.why)

    def _convert(self, item: SourceImage) -> Outcome:
        photo, path = self._open(item)
        if not item.relative and _like_shares(item.objects) and min(photo.displayed) > 2:
            raise RecordError(item.source, "objects", SHARES)
        affine, notes = points_to_displayed(photo, item.size, item.displayed, item.relative)
        if photo.orientation != 1:
            notes.append(f"exif_orientation_{photo.orientation}")
        stored = store_photo(item, path, self.images, self.photos, self.max_pixels, photo.displayed)
        width, height = stored.size
        if stored.size != photo.displayed:
            affine = compose(affine, (width / photo.displayed[0], 0.0, 0.0, 0.0, height / photo.displayed[1], 0.0))
        objects, dropped, more = place_objects(item.objects, self.taxonomy, affine, stored.size)
        if item.objects and not objects:
            # As a photo without objects it would teach that there is nothing to see.
            reasons = Counter(lost.reason for lost in dropped).most_common()
            counts = ", ".join(f"{count} x {reason}" for reason, count in reasons)
            detail = f"all {len(item.objects)} objects were dropped: {counts}; {dropped[0].field}: {dropped[0].detail}"
            bad = BadSource(item.source, "objects", detail, reason="no_objects_left")
            return Outcome(item.source, item.image, len(dropped), bad=bad, dropped=tuple(dropped))
        metadata = {"source": item.source} | ({"group": item.group} if item.group else {})
        descs = [placed.desc for placed in objects]
        summary = item.summary or count_objects(descs, self.summaries, self.summary_levels) or None
        row = Row((stored.name,), tuple(objects), width, height, summary, metadata)
        row = parse_row(row.to_json(), item.source)
        return Outcome(
            item.source, item.image, len(objects) + len(dropped), row, photo.digest, item.split, None, tuple(dropped),
            (*item.notes, *notes, *stored.notes, *more),
        )  # fmt: skip

    def _open(self, item: SourceImage) -> tuple[Photo, Path | None]:
        """The facts about the photo, and its file."""
        if self.images == WITHOUT:
            return assumed_photo(item.image, item.size), None
        if item.content is not None:
            return read_photo(item.content, item.image), None
        if item.missing:
            raise ImageError(item.missing)
        path = inside(self.root, item.image, self.follow_links)
        if self.images == KEEP and is_outside(path, self.root):
            raise ImageError(f"{item.image}: lies outside {self.root}, where rows cannot name it; add --images link")
        return read_photo(path), path


def _like_shares(objects: tuple[RawObject | Dropped, ...]) -> bool:
    """Whether there are objects, and all of them lie in the photo's first pixel (VOC's corners begin at -1)."""
    numbers = [number for item in objects if isinstance(item, RawObject) for number in item.points]
    return bool(numbers) and max(numbers) > 0 and all(-1 <= number <= 1 for number in numbers)


def _refuse(item: SourceImage, field: str, why: str) -> Outcome:
    """The outcome of a photo without a row: all its objects are lost."""
    labels = ((it.label if isinstance(it, Dropped) else it.desc).strip() or "(no label)" for it in item.objects)
    lost = (Dropped(label, "photo_skipped", why, it.field) for label, it in zip(labels, item.objects, strict=True))
    bad = BadSource(item.source, field, why)
    return Outcome(item.source, item.image, len(item.objects), bad=bad, dropped=tuple(lost))


def inside(root: Path, image: str, follow_links: bool = False) -> Path:
    """The photo's file.

    Raises:
        ImageError: the path leaves the source folder, by itself or by a link that is not to be followed.
    """
    try:
        return resolve_image(root, image)
    except (UserError, ValueError, OSError):  # ValueError: a null character; OSError: a loop of links
        if os.path.islink(root / image) and not os.path.exists(root / image):
            raise ImageError(f"{image} is a link to a file that is not there; restore it, or mount its disk") from None
        lexically = posixpath.normpath(image).startswith(("/", "../"))
        if lexically or not os.path.isfile(root / image):
            raise ImageError(f"image path {image!r} leaves the source folder; move the photo inside it") from None
        if not follow_links:
            raise ImageError(f"{image} {LEADS_OUTSIDE}") from None
        return root / image


def fingerprint(item: SourceItem, root: Path) -> str:
    """A hash of the annotation, and the size and modification time of its photo file."""
    stat: Any = None
    if isinstance(item, SourceImage):
        try:
            found = (root / item.image).stat()
            stat = (found.st_size, found.st_mtime_ns)
        except (OSError, ValueError):
            stat = "unreadable"
    return hashlib.sha256(json.dumps([repr(item), stat]).encode("utf-8", "backslashreplace")).hexdigest()
