"""Read and write LabelMe (github.com/wkentaro/labelme): one JSON beside each photo, in displayed pixels.

    root/…/name.jpg + name.json: {"shapes": [{label, points, shape_type, flags, description, …}], "imagePath", …}

LabelMe applies the EXIF orientation when it loads a photo, so its points are displayed pixels.

| shape_type                             | becomes |
|----------------------------------------|---------|
| rectangle                              | bbox_2d; poly if its four corners do not lie along the axes |
| polygon, oriented_rectangle, rotation, | poly (``rotation`` is the turned rectangle of X-AnyLabeling) |
| quadrilateral                          |         |
| line, linestrip                        | line |
| circle (centre, a point on it)         | bbox_2d, the box that touches it, noted |
| point, points, mask, cuboid, all else  | dropped as ``unsupported_shape`` |

Description: the label, then the names of flags that are set, the attributes that X-AnyLabeling writes (a ticked one
gives its name, others their value), each in file order, then the description text. ``imagePath`` is relative to the
folder of the JSON. A photo that is not there, in any spelling or under the name of the JSON, is taken from
``imageData`` or, without that, from elsewhere in the source; both are noted. A folder called train, val or test is the
split.
"""

from __future__ import annotations

import base64
import math
import posixpath
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

from bbu.errors import RecordError, shown
from bbu.geometry import enclosing_box
from bbu.images import IMAGE_SUFFIXES
from bbu.jsonl import decode_json, write_json
from bbu.taxonomy import ATTRIBUTE_SEPARATOR, join_path
from data_conversion.base import (
    Dropped,
    ExportLosses,
    ExportObject,
    ExportPhoto,
    RawObject,
    SourceImage,
    SourceItem,
    SourceOptions,
)
from data_conversion.formats.checks import as_list, as_mapping, as_points, check_text, declared_size
from data_conversion.formats.disk_multimap import DiskMultimap
from data_conversion.formats.files import new_file, read_each, read_text, split_of
from data_conversion.formats.salvage import attribute_levels, label_in, salvage, unread, upright
from data_conversion.formats.source_photos import unnamed_photos
from data_conversion.locating import BY_TAIL, Found, PhotoFinder
from data_conversion.source_folder import walk_files

Points = list[tuple[float, float]]

RINGS = ("polygon", "oriented_rectangle", "rotation", "quadrilateral")
LINES = ("line", "linestrip")
SHAPE_TYPES = ("rectangle", *RINGS, *LINES, "circle")
# Read, or written by rote; ``direction`` repeats what the corners of a ``rotation`` say
SHAPE_KEYS = ("label", "points", "shape_type", "flags", "attributes", "description", "group_id", "direction", "mask",
              "line_color", "fill_color")  # fmt: skip
FILE_KEYS = (
    "version",
    "flags",
    "shapes",
    "imagePath",
    "imageData",
    "imageHeight",
    "imageWidth",
    "lineColor",
    "fillColor",
)
AXIS_TOLERANCE = 0.5  # displayed pixels that the corners of a box may lie off its enclosing box
CIRCLE_AS_BOX = "circle_read_as_its_box"  # note
PHOTO_FROM_JSON = "photo_taken_from_image_data"  # note

VERSION = "5.4.1"  # of written files: the newest whose shapes every LabelMe 5 reads
SHAPES = {"bbox_2d": "rectangle", "poly": "polygon", "line": "linestrip"}  # geometry of a record → shape_type


def iter_records(root: Path, options: SourceOptions = SourceOptions()) -> Iterator[SourceItem]:  # noqa: B008 (frozen)
    """Yield one item for each JSON file, then one for each photo that none names, both by folder and name."""
    files = (path for path in walk_files(root, options.ignore) if path.suffix.lower() == ".json")
    with DiskMultimap() as named:
        for item in read_each(root, files, partial(_read_file, finder=PhotoFinder(root, options.ignore))):
            if isinstance(item, SourceImage):
                named.put("photos", item.image)
            else:  # the photo of a malformed JSON does have one
                stem = posixpath.splitext(item.source)[0]
                for suffix in (*IMAGE_SUFFIXES, *map(str.upper, IMAGE_SUFFIXES)):
                    named.put("photos", f"{stem}{suffix}")
            yield item
        yield from unnamed_photos(root, options.ignore, named, "photos")


def _read_file(path: Path, where: str, finder: PhotoFinder) -> SourceImage:
    value = as_mapping(decode_json(read_text(path, where), where, constants=True), where, "file")
    if "shapes" not in value:
        raise RecordError(where, "shapes", "is missing; is this a LabelMe file?")
    notes = [f"photo flag not read: {name}" for name in _flags(value.get("flags"), where, "flags")]
    notes += unread("file key", value, FILE_KEYS)
    photo, content = _photo(value, where, finder, notes)
    shapes = as_list(value["shapes"], where, "shapes")
    objects = tuple(
        salvage(partial(_read_shape, item, where, place, notes), label_in(item, "label"), place)
        for place, item in ((f"shapes[{index}]", item) for index, item in enumerate(shapes))
    )
    return SourceImage(
        image=photo.image,
        source=where,
        objects=objects,
        size=declared_size(value.get("imageWidth"), value.get("imageHeight"), where, "image", notes),
        displayed=True,
        split=split_of(photo.image),
        content=content,
        notes=tuple(notes),
        missing=photo.missing,
    )


# ---------------------------------------------------------------- photo


def _photo(value: Mapping[str, Any], where: str, finder: PhotoFinder, notes: list[str]) -> tuple[Found, bytes | None]:
    """Where the photo is, and its bytes if only the JSON has them; one in another folder may be another photo."""
    name = _text(value.get("imagePath"), where, "imagePath").strip()
    if not name:
        raise RecordError(where, "imagePath", "is missing or empty; name the photo")
    folder = posixpath.dirname(where)
    stem = posixpath.splitext(posixpath.basename(where))[0]
    photo = finder.find(name, folder, others=[stem], home=folder)
    image = posixpath.normpath(posixpath.join(folder, name.replace("\\", "/")))
    as_written = photo.image == image and not photo.missing
    beside = posixpath.dirname(photo.image) == folder and not photo.missing
    data = "" if as_written or beside else _text(value.get("imageData"), where, "imageData")
    if not data:
        notes += photo.notes if as_written or photo.missing or photo.notes else (BY_TAIL,)
        return photo, None
    notes.append(PHOTO_FROM_JSON)
    if image.startswith(("/", "../")):  # outside the source: only the name is used
        image = posixpath.join(folder, posixpath.basename(image))
    return Found(image), _decode_photo(data, where)


def _decode_photo(data: str, where: str) -> bytes:
    try:
        return base64.b64decode("".join(data.split()), validate=True)
    except ValueError as error:
        raise RecordError(where, "imageData", f"is not base64 ({error}), and the photo is missing; add it") from None


# ---------------------------------------------------------------- shapes


def _read_shape(value: Any, where: str, field: str, notes: list[str]) -> RawObject | Dropped:
    shape = as_mapping(value, where, field)
    desc = _description(shape, where, field)
    name = shape.get("shape_type") or "polygon"  # the oldest files hold only polygons, without a type
    if not isinstance(name, str):
        raise RecordError(where, f"{field}.shape_type", f"must be text, is {shown(name)}")
    if name not in SHAPE_TYPES:
        return Dropped(desc or "(no label)", "unsupported_shape", f"{shown(name)} is no box, polygon or line", field)
    points = as_points(shape.get("points"), where, f"{field}.points")
    if not desc:
        return Dropped("(no label)", "no_description", "label is empty", field)
    kind, flat = _geometry(name, points, where, f"{field}.points")
    if name == "circle":
        notes.append(CIRCLE_AS_BOX)
    if shape.get("group_id") is not None:
        notes.append("group_id_not_read")
    notes += unread("shape key", shape, SHAPE_KEYS)
    return upright(RawObject(desc, kind, flat, field), shape, field)


def _description(shape: Mapping[str, Any], where: str, field: str) -> str:
    """Label / set flags / attributes / description text; "" without a label."""
    label = _text(shape.get("label"), where, f"{field}.label").strip()
    text = _text(shape.get("description"), where, f"{field}.description").strip()
    flags = _flags(shape.get("flags"), where, f"{field}.flags")
    attributes = _attributes(shape.get("attributes"), where, f"{field}.attributes")
    return join_path(part for part in (label, *flags, *attributes, text) if part) if label else ""


def _attributes(value: Any, where: str, field: str) -> list[str]:
    """Levels of the attributes that X-AnyLabeling writes: text, a number, true, false, or a list of these, by name."""
    pairs = []
    for name, item in as_mapping(value or {}, where, field).items():
        values = item if isinstance(item, list) else [] if item is None or item != item else [item]  # NaN is nothing
        if not all(isinstance(part, str | int | float) for part in values):
            raise RecordError(where, f"{field}.{name}", f"must be text or a number, is {type(item).__name__}")
        pairs.append((name, ATTRIBUTE_SEPARATOR.join(map(str, values))))
    return [check_text(level, where, field) for level in attribute_levels(pairs)]


def _flags(value: Any, where: str, field: str) -> list[str]:
    """Names of the set flags."""
    flags = as_mapping(value or {}, where, field)
    for name, state in flags.items():
        check_text(name, where, field)
        if not isinstance(state, bool):
            raise RecordError(where, f"{field}.{name}", f"must be true or false, is {type(state).__name__}")
    return [name for name, state in flags.items() if state]


def _geometry(name: str, points: Points, where: str, field: str) -> tuple[str, tuple[float, ...]]:
    flat = tuple(chain.from_iterable(points))
    if name == "rectangle" and len(points) in (2, 4):
        box = enclosing_box(flat)
        return ("bbox_2d", box) if len(points) == 2 or _along_axes(points, box) else ("poly", flat)
    if name == "circle" and len(points) == 2:
        (cx, cy), edge = points
        radius = math.dist((cx, cy), edge)
        return "bbox_2d", (cx - radius, cy - radius, cx + radius, cy + radius)
    if name in RINGS and len(points) >= 3:
        return "poly", flat
    if name in LINES and len(points) >= 2:
        return "line", flat
    needs = {"rectangle": "2 or 4", "circle": "2"}.get(name, "at least 3" if name in RINGS else "at least 2")
    raise RecordError(where, field, f"a {name} needs {needs} points, has {len(points)}")


def _along_axes(points: Points, box: tuple[float, float, float, float]) -> bool:
    """Whether four points are the corners of their enclosing box, within AXIS_TOLERANCE."""
    corners = [(x, y) for x in box[::2] for y in box[1::2]]
    return all(
        any(abs(x - cx) <= AXIS_TOLERANCE and abs(y - cy) <= AXIS_TOLERANCE for x, y in points) for cx, cy in corners
    )


def _text(value: Any, where: str, field: str) -> str:
    if value is not None and not isinstance(value, str):
        raise RecordError(where, field, f"must be text, is {type(value).__name__}")
    return check_text(value or "", where, field)


# ---------------------------------------------------------------- writing


def write_records(photos: Iterator[ExportPhoto], folder: Path) -> ExportLosses:
    """Write ``name.json`` beside each ``name.jpg``: every geometry is kept, and the description is the label.

    Splits are kept only where the photos' own folders name them; scores and summaries are not kept.

    Raises:
        UserError: two photos that differ only in their suffix would share a JSON.
    """
    losses = ExportLosses()
    for photo in photos:
        name = str(PurePosixPath(photo.image).with_suffix(".json"))
        write_json(new_file(folder, name, photo.image), _document(photo))
        losses["split not kept"] += photo.split not in (None, split_of(photo.image))
        losses["summary not kept"] += photo.summary is not None
        losses["score not kept"] += sum(item.score is not None for item in photo.objects)
    return +losses


def _document(photo: ExportPhoto) -> dict[str, Any]:
    return {
        "version": VERSION,
        "flags": {},
        "shapes": [_shape(item) for item in photo.objects],
        "imagePath": posixpath.basename(photo.image),
        "imageData": None,
        "imageHeight": photo.height,
        "imageWidth": photo.width,
    }


def _shape(item: ExportObject) -> dict[str, Any]:
    return {
        "label": item.desc,
        "points": [list(point) for point in zip(item.points[::2], item.points[1::2], strict=True)],
        "group_id": None,
        "description": "",
        "shape_type": SHAPES[item.kind],
        "flags": {},
        "mask": None,
    }
