"""Read COCO: instances and captions JSON; ``coco_writer`` writes them.

Files: all of ``annotations/*.json``, ``*.json`` at the root, and ``_annotations.coco.json`` in the root or a folder of
photos (Roboflow); if there are none, those one folder down. The name of the file or folder gives the split
(``instances_val2017.json``, ``valid/``). Beside ``instances*.json`` only ``captions*.json`` are read, since COCO's
other files repeat the boxes. The captions of a photo become its summary, one per line; a photo that has only captions
is not annotated, and is counted.

``bbox`` is [x, y, width, height] in pixels from 0, in the frame whose size the image entry declares: the pixels as
stored, unless the declared size has the shape of the photo after its EXIF turn (``photos.points_to_displayed``). The
category name is the description; ``attributes`` and other keys are not read, and noted. ``coco_segmentation`` reads
polygons and masks; the box stands in for one that cannot be used. CVAT's attribute ``rotation`` (degrees, clockwise)
turns a box about its centre: a ``poly``. ``iscrowd`` marks a region of many objects, which has no single description:
dropped as ``crowd``. Ids are numbers or texts; those of photos and categories are unique in their file.
"""

from __future__ import annotations

import math
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from bbu.errors import RecordError, shown
from data_conversion.base import BadSource, Dropped, RawObject, SourceImage, SourceItem, SourceNote, SourceOptions
from data_conversion.formats.checks import (
    as_box,
    as_list,
    as_mapping,
    as_text,
    as_whole,
    box_of_size,
    check_number,
    check_text,
    declared_size,
)
from data_conversion.formats.coco_segmentation import read_segmentation
from data_conversion.formats.disk_multimap import DiskMultimap
from data_conversion.formats.files import is_hidden, or_bad_source, read_file, split_of_file
from data_conversion.formats.json_stream import JsonItem, stream_json
from data_conversion.formats.salvage import salvage, turned_box, unread, upright
from data_conversion.formats.source_photos import unnamed_photos
from data_conversion.locating import Found, PhotoFinder

ROBOFLOW = "_annotations.coco.json"
# Read, or written by rote
READ_KEYS = ("id", "image_id", "category_id", "bbox", "segmentation", "iscrowd", "area")
IMAGE_KEYS = ("id", "file_name", "width", "height", "license", "flickr_url", "coco_url", "date_captured")
CATEGORY_KEYS = ("id", "name", "supercategory", "color")

REPEATED_ID = "repeated_annotation_id"  # note
SEGMENTATION_UNUSABLE = "segmentation_unusable_box_taken"  # note

NO_ID = None  # key of entries without a valid id


@dataclass
class _File:
    """One JSON file whose lists are in the maps ``<where>: images`` (by id) and ``<where>: annotations`` (by photo).

    Args:
        categories: category id → name.
        captions: whether it has captions.
        boxes: whether it annotates objects, even if there are none.
        notes: what of it is not read.
    """

    where: str
    categories: dict[Any, str] = field(default_factory=dict)
    captions: bool = False
    boxes: bool = False
    notes: list[str] = field(default_factory=list)

    def map(self, name: str) -> str:
        return f"{self.where}: {name}"

    @property
    def subset(self) -> str:
        """The file name after ``instances_``, which is also what tools call the folder of photos."""
        return Path(self.where).stem.rpartition("_")[2]

    @property
    def split(self) -> str | None:
        return split_of_file(self.where)

    @property
    def folders(self) -> list[str]:
        """Where its photos may lie, likeliest first."""
        folder = posixpath.dirname(self.where)
        base = posixpath.dirname(folder) if posixpath.basename(folder) == "annotations" else folder
        places = [f"images/{self.subset}", self.subset, "images"]
        return [folder, *places, *(posixpath.join(base, place) for place in places if base)]


def iter_records(root: Path, options: SourceOptions = SourceOptions()) -> Iterator[SourceItem]:  # noqa: B008 (frozen)
    """Yield the photos file by file, then those without boxes: with captions only, and with nothing."""
    with DiskMultimap() as store:
        source = _Source(root, store, options.ignore)
        paths, others = _annotation_files(root, options.ignore)
        for path in paths:
            yield from read_file(root, path, source.load)
        for name in others:
            detail = "is not read: beside instances*.json only captions*.json are"
            yield BadSource(name, "file", detail, reason="not_read")
        for file in source.files:
            if file.captions:
                source.store_captions(file)
        for file in sorted(source.files, key=lambda file: not file.boxes):
            yield from source.photos(file)
        yield from unnamed_photos(root, options.ignore, store, "photos")


def _annotation_files(root: Path, ignore: Path | None) -> tuple[list[Path], list[str]]:
    """JSON files to read, and names of those that repeat the instances."""
    found = [*root.glob("*.json"), *root.glob("annotations/*.json"), *root.glob(f"*/{ROBOFLOW}")]
    found = found or [*root.glob("*/*.json"), *root.glob("*/annotations/*.json"), *root.glob(f"*/*/{ROBOFLOW}")]
    files = sorted({path for path in found if not is_hidden(path, root) and path.parent.resolve() != ignore})
    with_instances = {path.parent for path in files if path.name.startswith("instances")}
    others = [
        path for path in files if path.parent in with_instances and not path.name.startswith(("instances", "captions"))
    ]
    return [path for path in files if path not in others], [path.relative_to(root).as_posix() for path in others]


class _Source:
    """The files of one source, by photo."""

    def __init__(self, root: Path, store: DiskMultimap, ignore: Path | None) -> None:
        self.root, self.store = root, store
        self.finder = PhotoFinder(root, ignore)
        self.files: list[_File] = []

    def load(self, path: Path, where: str) -> Iterator[BadSource | SourceNote]:
        """Read a file into the store; yields one item for each photo that annotations name and ``images`` lacks.

        Ids of annotations are not needed, so repeated ones are noted.
        """
        file = self._read(path, where)
        self.files.append(file)
        yield from (SourceNote(where, REPEATED_ID) for _ in self.store.keys(file.map("ids"), at_least=2))
        yield from (SourceNote(where, note) for note in file.notes)
        for image_id in self.store.keys(file.map("annotations"), not_in=file.map("images")):
            (index, value), *more = self.store.get(file.map("annotations"), image_id)
            yield _lost(where, f"annotations[{index}]", value, image_id, len(more))

    def _read(self, path: Path, where: str) -> _File:
        file = _File(where)
        names = set()
        for item in stream_json(path, where):
            names.add(item.name)
            if item.name == "":
                why = "must be a JSON object with images and annotations, is a list (of detections?)"
                raise RecordError(where, "file", why)
            if item.name in ("images", "annotations", "categories"):
                self._store(file, item)
        for name in ("images", "annotations"):
            if name not in names:
                raise RecordError(where, name, "is missing; is this a COCO file with annotations?")
        file.boxes = file.boxes or not file.captions
        return file

    def _store(self, file: _File, item: JsonItem) -> None:
        if item.number is None:
            as_list(item.value, file.where, item.name)
        elif item.name == "categories":
            _add_category(file, item)
        elif item.name == "images":
            self.store.put(file.map("images"), _id(item.value, "id"), [item.number, item.value])
        else:
            caption = _is_caption(item.value)
            file.captions, file.boxes = file.captions or caption, file.boxes or not caption
            image_id = _id(item.value, "image_id")
            self.store.put(file.map("annotations"), image_id, [item.number, item.value])
            if _id(item.value, "id") is not NO_ID:
                self.store.put(file.map("ids"), _id(item.value, "id"))

    def store_captions(self, file: _File) -> None:
        """Captions by photo: (where, field, value), checked where they are used."""
        for found in self._images(file):
            if isinstance(found, BadSource):
                continue
            place = self._place(file, found[1]).image
            for index, value in self.store.get(file.map("annotations"), _id(found[1], "id")):
                if _is_caption(value):
                    self.store.put("captions", place, [file.where, f"annotations[{index}].caption", value["caption"]])

    def _images(self, file: _File) -> Iterator[tuple[int, dict[str, Any]] | BadSource]:
        """(index, entry) of each image of a file, or a BadSource for a bad id."""
        for image_id in self.store.keys(file.map("images")):
            (first, entry), *more = self.store.get(file.map("images"), image_id)
            if image_id is NO_ID:
                for index, value in [(first, entry), *more]:
                    wrong = _not_a_mapping(f"images[{index}]", value)
                    yield BadSource(file.where, *wrong or (f"images[{index}].id", "must be a whole number or text"))
            elif more:
                why = f"{image_id!r} is also the id of images[{first}]; it is unclear whose the annotations are"
                yield BadSource(file.where, f"images[{more[0][0]}].id", why)
            else:
                yield first, entry

    def photos(self, file: _File) -> Iterator[SourceItem]:
        """One item for each image of a file, in its order; of captions alone for those that no other file describes."""
        for found in self._images(file):
            if isinstance(found, BadSource):
                yield found
                continue
            index, entry = found
            field, photo = f"images[{index}]", self._place(file, entry)
            known = photo.image != "" and self.store.has("photos", photo.image)
            self.store.put("photos", photo.image)
            if file.boxes:
                yield self._photo(file, field, entry, photo)
            elif not known:
                yield BadSource(file.where, field, "has captions but no boxes", reason="no_annotation")

    @or_bad_source
    def _photo(self, file: _File, field: str, entry: dict[str, Any], photo: Found) -> SourceItem:
        if not photo.image:
            raise RecordError(file.where, f"{field}.file_name", f"must be a path, is {entry.get('file_name')!r}")
        check_text(photo.image, file.where, f"{field}.file_name")
        notes = unread("image key", entry, IMAGE_KEYS)
        size = declared_size(entry.get("width"), entry.get("height"), file.where, field, notes)
        objects = []
        for index, value in self.store.get(file.map("annotations"), _id(entry, "id")):
            if not _is_caption(value):
                here = f"annotations[{index}]"
                label = file.categories.get(_id(value, "category_id"), "")
                objects.append(salvage(partial(_read_object, value, file, here, size, notes), label, here))
        return SourceImage(
            image=photo.image,
            source=file.where,
            objects=tuple(objects),
            size=size,
            split=file.split,
            summary=self._summary(photo.image),
            notes=(*notes, *photo.notes),
            missing=photo.missing,
        )

    def _summary(self, place: str) -> str | None:
        lines = [as_text(value, where, name) for where, name, value in self.store.get("captions", place)]
        return "\n".join(filter(None, lines)) or None

    def _place(self, file: _File, entry: Any) -> Found:
        """Where an image entry's photo is; a path of "" if the entry names none."""
        name = entry.get("file_name") if isinstance(entry, dict) else None
        if not isinstance(name, str) or not name.strip():
            return Found("")
        return self.finder.find(name.strip(), *file.folders)


def _id(entry: Any, name: str) -> int | str | None:
    """The id that an entry has under ``name``, or NO_ID."""
    value = as_whole(entry.get(name)) if isinstance(entry, dict) else NO_ID
    return value if isinstance(value, int | str) and not isinstance(value, bool) else NO_ID


def _is_caption(value: Any) -> bool:
    """Whether an annotation is a caption, that is text about the whole photo."""
    return isinstance(value, dict) and "caption" in value and "bbox" not in value


def _not_a_mapping(field: str, value: Any) -> tuple[str, str] | None:
    return None if isinstance(value, dict) else (field, f"must be a JSON object, is {type(value).__name__}")


def _lost(where: str, field: str, value: Any, image_id: Any, more: int) -> BadSource:
    """The item for the annotations of an image id that no image has."""
    wrong = _not_a_mapping(field, value)
    if wrong is not None:
        return BadSource(where, *wrong)
    if image_id is NO_ID:
        return BadSource(where, f"{field}.image_id", f"must be the id of a photo, is {value.get('image_id')!r}")
    others = f", as of {more} more annotations" if more else ""
    return BadSource(where, f"{field}.image_id", f"{image_id!r} is the id of no photo in images{others}")


def _add_category(file: _File, item: JsonItem) -> None:
    value = as_mapping(item.value, file.where, item.field)
    number = _id(value, "id")
    if number is NO_ID:
        raise RecordError(file.where, f"{item.field}.id", f"must be a whole number or text, is {value.get('id')!r}")
    name = as_text(value.get("name"), file.where, f"{item.field}.name")
    file.notes += unread("category key", value, CATEGORY_KEYS)
    if file.categories.get(number, name) != name:
        raise RecordError(file.where, f"{item.field}.id", f"{number!r} is also that of {file.categories[number]!r}")
    file.categories[number] = name


# ---------------------------------------------------------------- objects


def _read_object(
    value: dict[str, Any], file: _File, field: str, size: tuple[int, int] | None, notes: list[str]
) -> RawObject | Dropped:
    number = _id(value, "category_id")
    if number not in file.categories:
        why = f"must be the id of a category, is {shown(value.get('category_id'))}"
        raise RecordError(file.where, f"{field}.category_id", why)
    label = file.categories[number]
    if _is_crowd(value, file.where, field):
        detail = "iscrowd: a region of many objects has no single description"
        return Dropped(label or "(no label)", "crowd", detail, f"{field}.iscrowd")
    found, more = _read_geometry(value, label, file.where, field, size)
    if not label:
        return Dropped("(no label)", "no_description", "its category has an empty name", f"{field}.category_id")
    notes += more
    return replace(found, field=field) if isinstance(found, RawObject) else found


def _read_geometry(
    value: dict[str, Any], label: str, where: str, field: str, size: tuple[int, int] | None
) -> tuple[RawObject | Dropped, list[str]]:
    """The segmentation; the box where there is none, or none that can be used. And notes."""
    geometry, note = None, None
    has_box = value.get("bbox") not in (None, [])
    try:
        geometry, note = read_segmentation(value.get("segmentation"), size, where, f"{field}.segmentation")
    except RecordError:
        if not has_box:
            raise
        note = SEGMENTATION_UNUSABLE
    found: RawObject | Dropped
    if geometry is not None:
        found = RawObject(label, *geometry, field)
    elif has_box:
        found = box_of_size(label, as_box(value["bbox"], where, f"{field}.bbox"), f"{field}.bbox")
    else:
        raise RecordError(where, f"{field}.bbox", "is missing, and so is a segmentation with an area")
    upright_box = isinstance(found, RawObject) and found.kind == "bbox_2d" and not (geometry and note)
    degrees = _rotation(value) if upright_box else None
    if degrees and isinstance(found, RawObject):
        angle = math.radians(check_number(degrees, where, f"{field}.attributes.rotation"))
        x1, y1, x2, y2 = found.points
        found = turned_box(label, (x1, y1, x2, y2), angle, field)
    elif upright_box:
        found = upright(found, value, field)
    return found, [*([note] if note else []), *_left_out(value, turned=bool(degrees))]


def _rotation(value: dict[str, Any]) -> Any:
    """CVAT's turn of the box about its centre, in degrees clockwise; it is an attribute, since COCO has none."""
    attributes = value.get("attributes")
    return attributes.get("rotation") if isinstance(attributes, dict) else None


def _is_crowd(value: dict[str, Any], where: str, field: str) -> bool:
    crowd = as_whole(value.get("iscrowd") or 0)
    if crowd not in (0, 1):
        raise RecordError(where, f"{field}.iscrowd", f"must be 0 or 1, is {shown(crowd)}")
    return bool(crowd)


def _left_out(value: dict[str, Any], turned: bool) -> list[str]:
    """A note for each key and attribute with content that is not read; the rotation of a turned box is."""
    attributes, rotation = value.get("attributes"), ("rotation",) if turned else ()
    keys = (*READ_KEYS, *rotation, *(("attributes",) if isinstance(attributes, dict) else ()))
    return unread("annotation key", value, keys) + unread("attribute", attributes, rotation)
