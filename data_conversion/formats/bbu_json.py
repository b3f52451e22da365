"""Read BBU annotation files: one GeoJSON-like JSON beside each photo, in pixels of the un-rotated file.

    root/[train|val|test/]…/name.jpg + name.json      a folder called train, val or test, at any depth, is the split

The top level has ``markResult.features[]`` or ``dataList[]``; ``info`` gives the size. Others are noted.
A ring of four corners along the axes becomes ``bbox_2d``, any other ring ``poly``, a LineString ``line``.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from bbu.errors import RecordError
from bbu.geometry import enclosing_box
from bbu.images import IMAGE_SUFFIXES
from bbu.jsonl import decode_json
from bbu.taxonomy import SEPARATOR
from data_conversion.base import BadSource, Dropped, RawObject, SourceImage, SourceItem, SourceOptions
from data_conversion.formats.checks import as_list, as_mapping, as_points, check_text, declared_size
from data_conversion.formats.files import read_each, read_text, split_of
from data_conversion.formats.questions import QUESTIONS, answers_to_path, unknown_questions
from data_conversion.formats.salvage import label_in, salvage, unread
from data_conversion.locating import Found, PhotoFinder
from data_conversion.source_folder import walk_files

RINGS = {"ExtentPolygon": 4, "Square": 4, "Quad": 4, "Polygon": None}  # type → number of corners, None = any
AXIS_TOLERANCE = 0.5  # stored pixels that the sides of a box may lie off the axes
# Read, or written by rote
FILE_KEYS = ("info", "markResult", "dataList", "tagInfo", "version", "qualityResult", "workload", "statistcs",
             "statistics", "submitWorkflow")  # fmt: skip
INFO_KEYS = ("width", "height", "depth")
FEATURE_KEYS = ("type", "id", "geometry", "coordinates", "properties")
GEOMETRY_KEYS = ("type", "coordinates")
PROPERTIES = ("content", "contentZh", "objectId", "layerId", "generateMode")


def iter_records(root: Path, options: SourceOptions = SourceOptions()) -> Iterator[SourceItem]:  # noqa: B008 (frozen)
    """Yield one item for each annotation file, and one for each photo without one, by path."""
    annotations, photos = _find_files(root, options.ignore)
    finder = PhotoFinder(root, options.ignore)
    annotated = {path.with_suffix("") for path in annotations}
    for item in read_each(root, annotations, partial(_read_file, photos=photos, finder=finder, options=options)):
        if isinstance(item, SourceImage) and item.notes:  # perhaps found under another spelling
            annotated.add((root / item.image).with_suffix(""))
        yield item
    for stem in sorted(photos.keys() - annotated):
        for photo in photos[stem]:
            name = photo.relative_to(root).as_posix()
            yield BadSource(name, "file", "has no JSON beside it", reason="no_annotation")


def _find_files(root: Path, ignore: Path | None) -> tuple[list[Path], dict[Path, list[Path]]]:
    """All JSON files, and the photos by path without suffix."""
    annotations: list[Path] = []
    photos: dict[Path, list[Path]] = {}
    for path in walk_files(root, ignore):
        if path.suffix.lower() == ".json":
            annotations.append(path)
        elif path.suffix.lower() in IMAGE_SUFFIXES:
            photos.setdefault(path.with_suffix(""), []).append(path)
    return sorted(annotations), photos


def _read_file(
    path: Path, where: str, photos: Mapping[Path, list[Path]], finder: PhotoFinder, options: SourceOptions
) -> SourceImage:
    photo = _photo_beside(path, where, photos, finder)
    image = Path(photo.image)
    value = as_mapping(decode_json(read_text(path, where), where, constants=True), where, "file")
    if "markResult" in value:
        read, field = _read_feature, "markResult.features"
        features = as_list(as_mapping(value["markResult"], where, "markResult").get("features"), where, field)
    elif "dataList" in value:
        read, field = _read_corners, "dataList"
        features = as_list(value["dataList"], where, field)
    else:
        raise RecordError(where, "markResult", "is missing, and so is dataList; is this an annotation file?")
    objects = [
        salvage(partial(read, item, where, place, options), _any_label(item), place)
        for place, item in ((f"{field}[{index}]", item) for index, item in enumerate(features))
    ]
    notes = [*photo.notes, *_notes(features), *unread("file key", value, FILE_KEYS)]
    if "markResult" in value and value.get("dataList"):
        notes.append("data_list_beside_features")
    info = as_mapping({} if value.get("info") is None else value["info"], where, "info")
    notes += unread("info key", info, INFO_KEYS)
    return SourceImage(
        image=image.as_posix(),
        source=where,
        objects=tuple(objects),
        size=declared_size(info.get("width"), info.get("height"), where, "info", notes),
        split=split_of(image.as_posix()),
        notes=tuple(notes),
    )


def _photo_beside(path: Path, where: str, photos: Mapping[Path, list[Path]], finder: PhotoFinder) -> Found:
    beside = photos.get(path.with_suffix(""), [])
    if len(beside) > 1:
        names = ", ".join(item.name for item in beside)
        raise RecordError(where, "file", f"has several photos beside it ({names}); keep one")
    if beside:
        return Found(Path(where).with_name(beside[0].name).as_posix())
    found = finder.find(path.stem, posixpath.dirname(where))
    if found.missing:
        raise RecordError(where, "file", f"has no photo beside it ({path.stem}.jpg): {found.missing}")
    return found


def _notes(features: list[Any]) -> list[str]:
    """One for each objectId of an earlier feature (the objects are kept), and each key with content not read."""
    every = [found for item in features if isinstance(found := _part(item, "properties"), dict)]
    ids = [str(item["objectId"]) for item in every if item.get("objectId")]
    contents = [item["content"] for item in every if isinstance(item.get("content"), dict)]
    unasked = [f"content key not read: {key}" for content in contents for key in unknown_questions(content)]
    others = [note for item in every for note in unread("property", item, PROPERTIES)]
    others += [note for item in features for note in unread("feature key", item, FEATURE_KEYS)]
    others += [note for item in features for note in unread("geometry key", _part(item, "geometry"), GEOMETRY_KEYS)]
    return [*["repeated_object_id"] * (len(ids) - len(set(ids))), *unasked, *others]


def _part(value: Any, key: str) -> Any:
    return value.get(key) if isinstance(value, dict) else None


def _any_label(feature: Any) -> str:
    """The label of a feature in either language, for reports."""
    properties = _part(feature, "properties")
    return label_in(_part(properties, "contentZh"), "标签") or label_in(_part(properties, "content"), "label")


# ---------------------------------------------------------------- geometry


def _read_feature(value: Any, where: str, field: str, options: SourceOptions) -> RawObject | Dropped:
    feature = as_mapping(value, where, field)
    geometry = as_mapping(feature.get("geometry"), where, f"{field}.geometry")
    return _describe(feature, _read_geometry(geometry, where, f"{field}.geometry"), where, field, options)


def _read_corners(value: Any, where: str, field: str, options: SourceOptions) -> RawObject | Dropped:
    """``coordinates: [[x1, y1], [x2, y2]]``: two opposite corners in any order."""
    item = as_mapping(value, where, field)
    points = as_points(item.get("coordinates"), where, f"{field}.coordinates")
    if len(points) != 2:
        raise RecordError(where, f"{field}.coordinates", f"needs two corners [[x1, y1], [x2, y2]], has {len(points)}")
    return _describe(item, ("bbox_2d", enclosing_box(_flat(points))), where, field, options)


def _read_geometry(geometry: Mapping[str, Any], where: str, field: str) -> tuple[str, tuple[float, ...]]:
    name = geometry.get("type")
    if not isinstance(name, str) or (name not in RINGS and name != "LineString"):
        raise RecordError(where, f"{field}.type", f"must be one of {', '.join(RINGS)}, LineString, is {name!r}")
    coordinates = geometry.get("coordinates")
    if name == "LineString":
        points = as_points(coordinates, where, f"{field}.coordinates")
        if len(points) < 2:
            raise RecordError(where, f"{field}.coordinates", f"a line needs at least 2 points, has {len(points)}")
        return "line", _flat(points)
    corners = RINGS[name]
    ring = _ring(coordinates, corners, where, f"{field}.coordinates")
    if len(ring) < 3 or (corners is not None and len(ring) != corners):
        needs = f"{corners} corners" if corners else "at least 3 corners"
        raise RecordError(where, f"{field}.coordinates", f"{name} needs {needs}, has {len(ring)}")
    box = _as_box(ring)
    return ("bbox_2d", box) if box else ("poly", _flat(ring))


def _ring(value: Any, corners: int | None, where: str, field: str) -> list[tuple[float, float]]:
    """Corners of ``[[x, y], …]`` or, as in GeoJSON, ``[[[x, y], …]]``, without the closing point."""
    items = as_list(value, where, field)
    if items and isinstance(items[0], list) and items[0] and isinstance(items[0][0], list):
        if len(items) > 1:
            raise RecordError(where, field, f"has {len(items)} rings; an object is one ring without holes")
        items, field = items[0], f"{field}[0]"
    points = as_points(items, where, field)
    may_be_closed = len(points) == corners + 1 if corners else len(points) > 3
    return points[:-1] if may_be_closed and points[0] == points[-1] else points


def _as_box(ring: list[tuple[float, float]]) -> tuple[float, float, float, float] | None:
    """The xyxy box of a four-corner ring whose sides lie along the axes, or None."""
    if len(ring) != 4:
        return None
    for (ax, ay), (bx, by), (cx, cy) in zip(ring, ring[1:] + ring[:1], ring[2:] + ring[:2], strict=True):
        across_then_down = abs(ay - by) <= AXIS_TOLERANCE and abs(bx - cx) <= AXIS_TOLERANCE
        down_then_across = abs(ax - bx) <= AXIS_TOLERANCE and abs(by - cy) <= AXIS_TOLERANCE
        if not (across_then_down or down_then_across):
            return None
    return enclosing_box(_flat(ring))


def _flat(points: list[tuple[float, float]]) -> tuple[float, ...]:
    return tuple(chain.from_iterable(points))


# ---------------------------------------------------------------- description


def _describe(
    feature: Mapping[str, Any], geometry: tuple[str, tuple[float, ...]], where: str, field: str, options: SourceOptions
) -> RawObject | Dropped:
    """The object with its description by either label scheme; Dropped without a usable one."""
    name = f"{field}.properties"
    properties = as_mapping(feature.get("properties"), where, name)
    content = _optional_mapping(properties.get("content"), where, f"{name}.content")
    content_zh = _optional_mapping(properties.get("contentZh"), where, f"{name}.contentZh")
    chinese = _label(content_zh.get("标签"), where, f"{name}.contentZh.标签")
    english = _label(content.get("label"), where, f"{name}.content.label")
    label = (chinese or english) if options.language == "zh" else (english or chinese)
    answers = content_zh if options.language == "zh" and not QUESTIONS.keys().isdisjoint(content_zh) else content
    # A label of several levels is complete (older scheme); one of a single level is the object type (newer scheme).
    desc = label if SEPARATOR in label else answers_to_path(answers, label, where, f"{name}.content")
    unknown = unknown_questions(answers)
    if unknown and not label:
        detail = f"{', '.join(unknown)}: not in the table of questions; add it in formats/questions.py"
        return Dropped(desc or "(no label)", "unknown_question", detail, f"{name}.content")
    if not desc:
        keys = ", ".join([*content, *content_zh]) or "none"
        return Dropped("(no label)", "no_description", f"no label and no answered question; keys: {keys}", name)
    return RawObject(check_text(desc, where, name), *geometry, field)


def _label(value: Any, where: str, field: str) -> str:
    if value is not None and not isinstance(value, str):
        raise RecordError(where, field, f"must be text, is {value!r}")
    return (value or "").strip()


def _optional_mapping(value: Any, where: str, field: str) -> dict[str, Any]:
    return {} if value in (None, "") else as_mapping(value, where, field)
