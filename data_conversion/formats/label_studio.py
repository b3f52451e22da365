"""Read Label Studio's JSON export: a list of tasks in one or several ``*.json`` at the root.

Frame: the browser applies the EXIF orientation and points are percent of the displayed photo, so ``displayed`` is set
and the size is ``original_width`` x ``original_height``. Where those are missing, points are fractions of the photo.

Description: the labels of a region (several are joined by ``,``), then the choices, texts and taxonomy paths of that
region (same ``id``, or its id as ``parentID``), each as a further level, in file order. Choices and texts without a
region describe the whole photo: they become its summary. Other results (ratings, relations …) and other keys with
content (meta, data of the task) are noted, not read.

Annotations (``completions`` before version 1.0): of several the ground truth is read, otherwise the one updated last
(note ``several_annotations``); cancelled ones never are. Predictions are read only where a task has neither key, that
is in a file made for import: in an export they are a model's guesses, not labels.

Photos: as ``locating`` does, with or without the eight hexadecimal digits that Label Studio puts before the name of an
upload; ``references`` reads the addresses of local files and of cloud storage. ``data.split`` (train, val or test) is
the split, if given.

Formats: labelstud.io/guide/export (raw JSON), /guide/task_format, /guide/predictions.
"""

from __future__ import annotations

import math
import posixpath
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from bbu.errors import RecordError, shown
from bbu.images import IMAGE_SUFFIXES
from bbu.taxonomy import ATTRIBUTE_SEPARATOR, SEPARATOR
from data_conversion.base import BadSource, Dropped, RawObject, SourceImage, SourceItem, SourceOptions
from data_conversion.formats.checks import (
    as_list,
    as_mapping,
    as_points,
    as_text,
    check_number,
    check_text,
    declared_size,
)
from data_conversion.formats.files import bad_source, declared_split
from data_conversion.formats.json_stream import stream_json
from data_conversion.formats.salvage import MALFORMED_OBJECT, label_in, salvage, unread
from data_conversion.formats.source_photos import read_exports
from data_conversion.locating import Found, PhotoFinder
from data_conversion.references import spellings

SHAPES = re.compile(r"(rectangle|polygon|keypoint|brush|ellipse|bitmask|vector|cube|magicwand)(labels)?")
TEXTS = {"labels": "labels", "choices": "choices", "textarea": "text", "taxonomy": "taxonomy"}  # type → key of value
UPLOAD_PREFIX = re.compile(r"[0-9a-f]{8}-(?=.)")
SENTENCE_SEPARATOR = "; "  # between the texts about a whole photo
REPEATED_ID = "repeated_region_id"  # note
# Read, or written by rote
TASK_KEYS = ("id", "data", "annotations", "completions", "predictions", "drafts", "file_upload", "created_at",
             "updated_at", "project", "inner_id", "total_annotations", "cancelled_annotations", "total_predictions",
             "comment_count", "unresolved_comment_count", "last_comment_updated_at", "updated_by", "comment_authors",
             "annotation_id", "completed_by", "allow_skip", "overlap", "is_labeled")  # fmt: skip
REGION_KEYS = ("id", "type", "value", "from_name", "to_name", "source", "origin", "original_width", "original_height",
               "image_rotation", "parentID", "readonly", "hidden", "locked", "score")  # fmt: skip
VALUE_KEYS = ("x", "y", "width", "height", "rotation", "points", "closed")
CHOOSE_JSON = "choose the format JSON when you export from Label Studio"


@dataclass
class _Region:
    """One shape on the photo and its description, level by level."""

    item: dict[str, Any]
    place: str
    levels: list[str] = field(default_factory=list)

    @property
    def shape(self) -> str:
        return str(self.item["type"])

    @property
    def value(self) -> dict[str, Any]:
        return dict(self.item["value"])


def iter_records(root: Path, options: SourceOptions = SourceOptions()) -> Iterator[SourceItem]:  # noqa: B008 (frozen)
    """Yield one item for each task, file by file, and one for each photo that no task names.

    A file that is no JSON list of tasks is one BadSource.
    """
    return read_exports(root, options.ignore, "*.json", _read_export)


def _read_export(path: Path, where: str, finder: PhotoFinder) -> Iterator[SourceItem]:
    for item in stream_json(path, where):  # to its end, before anything is taken from a file that may be cut off
        if item.name:
            raise RecordError(where, "file", f"must be a list of tasks; {CHOOSE_JSON}")
        if item.number == 0 and isinstance(item.value, dict) and "data" not in item.value:
            raise RecordError(where, "[0].data", f"is missing: is this the JSON-MIN export? {CHOOSE_JSON}")
    for item in stream_json(path, where):
        if item.number is None:
            continue
        try:
            yield _read_task(item.value, where, item.field, finder)
        except RecordError as error:
            yield bad_source(error)
        except OSError as error:  # a photo name longer than a file name may be
            yield BadSource(where, f"{item.field}.data", f"names no photo ({error.strerror})")


def _read_task(value: Any, where: str, place: str, finder: PhotoFinder) -> SourceItem:
    task = as_mapping(value, where, place)
    data = as_mapping(task.get("data"), where, f"{place}.data")
    chosen = _choose_results(task, where, place)
    if isinstance(chosen, BadSource):
        return chosen
    results, results_place, notes = chosen
    regions, bad, summary, more = _read_results(results, where, results_place)
    size = _frame(regions, where, more)
    reference, key = _reference(data, regions, where, place)
    more += [*unread("task key", task, TASK_KEYS), *unread("data key", data, (key, "split"))]
    split, unknown = declared_split(str(data.get("split") or ""))
    photo = _find_photo(reference, finder, posixpath.dirname(where))
    return SourceImage(
        image=photo.image,
        source=where,
        objects=(
            *(
                salvage(partial(_read_region, region, size, where), SEPARATOR.join(region.levels), region.place)
                for region in regions
            ),
            *bad,
        ),
        size=size,
        displayed=True,
        relative=size is None,
        split=split,
        summary=summary,
        notes=(*notes, *more, *unknown, *photo.notes),
        missing=photo.missing,
    )


def _choose_results(task: Mapping[str, Any], where: str, place: str) -> BadSource | tuple[list[Any], str, list[str]]:
    """The results to read, their place, and notes; a BadSource if nobody has labelled the photo."""
    name = next((name for name in ("annotations", "completions") if task.get(name) is not None), "predictions")
    value = task.get(name)
    found, notes = as_list([] if value is None else value, where, f"{place}.{name}"), []
    if name == "predictions":
        found, notes = found[:1], ["predictions_read"]
    places = [f"{place}.{name}[{index}]" for index in range(len(found))]
    kept = [(as_mapping(item, where, here), here) for item, here in zip(found, places, strict=True)]
    kept = [(item, here) for item, here in kept if item.get("was_cancelled") is not True]
    if not kept:
        why = "was skipped by its annotators" if found else "has no annotation"
        return BadSource(where, place, why, reason="no_annotation")
    if len(kept) > 1:
        notes.append("several_annotations")
    # All times in an export have the same format, so they sort as text; of equal ones the last is taken.
    kept.sort(key=lambda it: (it[0].get("ground_truth") is True, str(it[0].get("updated_at") or "")))
    item, here = kept[-1]
    return as_list(item.get("result"), where, f"{here}.result"), f"{here}.result", notes


# ---------------------------------------------------------------- results → regions and texts


def _read_results(
    results: list[Any], where: str, place: str
) -> tuple[list[_Region], list[Dropped], str | None, list[str]]:
    """Regions in file order with their descriptions, those that cannot be read, the text about the photo, and notes."""
    regions: dict[str, _Region] = {}
    bad: list[Dropped] = []
    others: list[tuple[dict[str, Any], str]] = []
    notes: list[str] = []
    repeated: set[str] = set()
    for index, value in enumerate(results):
        here = f"{place}[{index}]"
        found = _read_result(value, where, here)
        if isinstance(found, Dropped):
            bad.append(found)
        elif isinstance(found, _Region):
            notes += _unread(found)
            first = regions.setdefault(_identity(found.item, here), found)
            if first is not found and _outline(first) == _outline(found):
                first.levels += found.levels  # one shape, labelled by two controls
            elif first is not found:
                repeated.add(_identity(found.item, here))
                regions[f"at {here}"] = found
        else:
            others.append((found, here))
    notes += [REPEATED_ID] * len(repeated)
    about_photo: list[str] = []
    for item, here in others:
        identity = next((it for it in (_identity(item, here), str(item.get("parentID"))) if it in regions), None)
        if item["type"] not in TEXTS or identity in repeated:
            notes.append(f"result_not_read: {item['type']}" + " of a repeated id" * (identity in repeated))
            continue
        levels = about_photo if identity is None else regions[identity].levels
        try:
            levels += _texts(item, TEXTS[item["type"]], where, here)
        except RecordError as error:
            if identity is None:
                raise
            owner = regions.pop(identity)
            label = SEPARATOR.join(owner.levels) or "(no label)"
            bad.append(Dropped(label, MALFORMED_OBJECT, error.why, error.field))
    return list(regions.values()), bad, SENTENCE_SEPARATOR.join(about_photo) or None, notes


def _read_result(value: Any, where: str, here: str) -> _Region | dict[str, Any] | Dropped:
    """A region with its own labels, any other result as it is; Dropped for a region that cannot be read."""
    label = label_in(value, "type")
    try:
        item = as_mapping(value, where, here)
        if not isinstance(item.get("type"), str):
            raise RecordError(where, f"{here}.type", f"must be text, is {shown(item.get('type'))}")
        return _Region(item, here, _texts(item, label, where, here)) if SHAPES.fullmatch(label) else item
    except RecordError as error:
        return Dropped(label or "(no label)", MALFORMED_OBJECT, error.why, error.field)


def _unread(region: _Region) -> list[str]:
    """A note for each key of a region and of its value that has content and is not read."""
    value_keys = (*VALUE_KEYS, region.shape)
    return unread("region key", region.item, REGION_KEYS) + unread("region value", region.value, value_keys)


def _identity(item: Mapping[str, Any], here: str) -> str:
    return str(item["id"]) if isinstance(item.get("id"), str | int) else f"at {here}"


def _outline(region: _Region) -> dict[str, Any]:
    """A region's value without its labels."""
    return {key: value for key, value in region.value.items() if key != region.shape}


def _texts(item: Mapping[str, Any], key: str, where: str, here: str) -> list[str]:
    """The text of one result as one level, [] if it is empty; a taxonomy path gives its levels."""
    found = as_mapping(item.get("value"), where, f"{here}.value").get(key)
    name = f"{here}.value.{key}"
    if found is None:
        return []
    texts = [found] if isinstance(found, str) else as_list(found, where, name)
    if key == "taxonomy":
        if len(texts) > 1:
            raise RecordError(where, name, f"has {len(texts)} paths; an object has one description")
        texts = [as_text(word, where, name) for path in texts for word in as_list(path, where, name)]
        return [text for text in texts if text]
    joined = ATTRIBUTE_SEPARATOR.join(filter(None, (as_text(text, where, name) for text in texts)))
    return [joined] if joined else []


# ---------------------------------------------------------------- geometry


def _frame(regions: list[_Region], where: str, notes: list[str]) -> tuple[int, int] | None:
    """The displayed size that the regions declare; None if they declare none."""
    size = None
    for region in regions:
        turned = check_number(region.item.get("image_rotation") or 0, where, f"{region.place}.image_rotation")
        if turned % 360:
            why = f"is {turned:g}: the photo was rotated by hand during labelling; rotate the file and label it again"
            raise RecordError(where, f"{region.place}.image_rotation", why)
        width, height = region.item.get("original_width"), region.item.get("original_height")
        found = declared_size(width, height, where, f"{region.place}.original", notes)
        if size and found and size != found:
            raise RecordError(where, f"{region.place}.original_width", "differs from that of another region; keep one")
        size = found or size
    return size


def _read_region(region: _Region, size: tuple[int, int] | None, where: str) -> RawObject | Dropped:
    desc, place = SEPARATOR.join(region.levels), f"{region.place}.value"
    if region.shape.startswith("rectangle"):
        shape = _rectangle(region.value, size, where, place)
    elif region.shape.startswith("polygon"):
        shape = _polygon(region.value, size, where, place)
    else:
        shape = ("unsupported_shape", f"{region.shape} is neither a rectangle nor a polygon")
    if not desc:
        return Dropped("(no label)", "no_description", "the region has no label, choice or text", region.place)
    kind, points = shape
    return Dropped(desc, kind, points, place) if isinstance(points, str) else RawObject(desc, kind, points, place)


Shape = tuple[str, tuple[float, ...] | str]  # (kind, points), or (reason, detail) of a shape that cannot be used


def _rectangle(value: Mapping[str, Any], size: tuple[int, int] | None, where: str, place: str) -> Shape:
    x, y, width, height = (
        check_number(value.get(key), where, f"{place}.{key}") * scale
        for key, scale in zip(("x", "y", "width", "height"), _scale(size) * 2, strict=True)
    )
    angle = check_number(value.get("rotation") or 0, where, f"{place}.rotation") % 360
    if width < 0 or height < 0:
        return "inverted_box", f"width {width:g} or height {height:g} is negative"
    if not width or not height:
        return "zero_area", f"width {width:g} or height {height:g} is 0"
    if not angle:
        return "bbox_2d", (x, y, x + width, y + height)
    if size is None:
        raise RecordError(where, f"{place}.rotation", "needs original_width and original_height beside it")
    # Clockwise on the screen (y points down) around the top left corner.
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    right, down = (width * cos, width * sin), (-height * sin, height * cos)
    return "poly", (
        *(x, y, x + right[0], y + right[1]),
        *(x + right[0] + down[0], y + right[1] + down[1], x + down[0], y + down[1]),
    )


def _polygon(value: Mapping[str, Any], size: tuple[int, int] | None, where: str, place: str) -> Shape:
    points = as_points(value.get("points"), where, f"{place}.points")
    if value.get("closed") is False:
        return "unsupported_shape", "the polygon was not closed; finish it in Label Studio"
    if len(points) < 3:
        return "zero_area", f"a polygon of {len(points)} points has no area"
    across, down = _scale(size)
    return "poly", tuple(number for x, y in points for number in (x * across, y * down))


def _scale(size: tuple[int, int] | None) -> tuple[float, float]:
    """Percent → pixels of the declared size, or fractions of an unknown one."""
    width, height = size or (1, 1)
    return width / 100, height / 100


# ---------------------------------------------------------------- the photo


def _reference(data: Mapping[str, Any], regions: list[_Region], where: str, place: str) -> tuple[str, str]:
    """The reference to the task's photo, and its key: that which regions name, ``image``, or any that names a photo."""
    named = {str(region.item["to_name"]) for region in regions if region.item.get("to_name") is not None}
    if len(named) > 1:
        raise RecordError(
            where, place, f"has regions on several images ({', '.join(sorted(named))}); one task, one photo"
        )
    sources = {str(region.item["source"]).removeprefix("$") for region in regions if region.item.get("source")}
    for key in (*sorted(sources), *named, "image"):
        if isinstance(data.get(key), str) and data[key].strip():
            return check_text(data[key].strip(), where, f"{place}.data.{key}"), key
    for key, text in data.items():
        if isinstance(text, str) and any(form.lower().endswith(IMAGE_SUFFIXES) for form in spellings(text)):
            return check_text(text.strip(), where, f"{place}.data.{key}"), key
    raise RecordError(where, f"{place}.data", "names no photo; keys: " + (", ".join(data) or "none"))


def _find_photo(reference: str, finder: PhotoFinder, folder: str) -> Found:
    """The photo of a task; ``folder`` is that of the export."""
    reference = reference.lstrip("/") if reference.startswith("/data/upload/") else reference
    names = [posixpath.basename(form) for form in spellings(reference)]
    uploads = dict.fromkeys(UPLOAD_PREFIX.sub("", name, count=1) for name in names if UPLOAD_PREFIX.match(name))
    return finder.find(reference, folder, others=uploads)
