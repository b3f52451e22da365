"""One row of a Hugging Face data set → objects and summary, whether from JSON, CSV, Parquet or Arrow.

    objects   {"bbox": [[x, y, width, height], …], "category": […]} or [{"bbox": […], "category": …}, …]
    text or caption   text, or a list of texts

The label is in ``categories``, ``category``, ``label`` or ``desc``: text, or the number of a ClassLabel, or of a line
in ``classes.txt`` beside the table. Objects with ``iscrowd`` are dropped; other keys of an object with content are not
read, and noted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from bbu.errors import RecordError
from bbu.jsonl import decode_json
from data_conversion.base import Dropped, RawObject
from data_conversion.formats.checks import (
    as_box,
    as_list,
    as_mapping,
    as_text,
    as_whole,
    box_of_size,
    check_text,
    declared_size,
)
from data_conversion.formats.salvage import label_in, salvage, unread, upright

LABEL_KEYS = ("categories", "category", "label", "desc")
CROWD_KEYS = ("iscrowd", "is_crowd")
OTHER_KEYS = ("bbox", "id", "area")  # the last two are not read, and hold nothing of use
SUMMARY_COLUMNS = ("text", "caption")

CLASS_FILE = "classes.txt"  # names of numbered classes, one a line from 0 on, where the table does not hold them
NO_LABEL = -1  # what datasets writes for a missing ClassLabel


def read_objects(
    value: Any, names: Mapping[str, Sequence[str]], where: str, field: str
) -> tuple[tuple[RawObject | Dropped, ...], list[str]]:
    """Objects of one photo, and notes.

    Args:
        names: label key → names of its ClassLabel, if labels are numbers.

    Raises:
        RecordError: no objects, or malformed ones.
    """
    if value is None:
        raise RecordError(where, field, "is missing; a photo with nothing to see has empty lists")
    if isinstance(value, str):
        try:
            value = decode_json(value, where, constants=True)
        except RecordError as error:
            raise RecordError(where, field, error.why) from None
    objects: list[RawObject | Dropped] = []
    notes: list[str] = []
    for name, item in _one_by_one(value, where, field):
        place = name.format("bbox")
        objects.append(
            salvage(partial(_read_object, item, names, where, name, notes), label_in(item, *LABEL_KEYS), place)
        )
    return tuple(objects), notes


def _one_by_one(value: Any, where: str, field: str) -> list[tuple[str, Any]]:
    """A list of objects, or a mapping of lists, as one mapping per object.

    Before each stands how its fields are called, with ``{}`` for the key: ``objects[3].{}``, or ``objects.{}[3]``.
    """
    if isinstance(value, list):
        return [(f"{field}[{number}].{{}}", item) for number, item in enumerate(value)]
    columns = {key: as_list(cells, where, f"{field}.{key}") for key, cells in as_mapping(value, where, field).items()}
    if "bbox" not in columns:
        raise RecordError(where, f"{field}.bbox", f"is missing; keys are {', '.join(columns) or 'none'}")
    count = len(columns["bbox"])
    for key, cells in columns.items():
        if len(cells) != count:
            raise RecordError(where, f"{field}.{key}", f"has {len(cells)} entries, bbox {count}")
    rows = (dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True))
    return [(f"{field}.{{}}[{number}]", row) for number, row in enumerate(rows)]


def _label_key(item: Mapping[str, Any], where: str, field: str) -> str:
    found = [key for key in LABEL_KEYS if key in item]
    if len(found) != 1:
        why = f"an object has one of {', '.join(LABEL_KEYS)}; found {' and '.join(found) or 'none'}"
        raise RecordError(where, field, why)
    return found[0]


def _label(value: Any, names: Sequence[str] | None, where: str, field: str) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return check_text(value.strip(), where, field)
    value = as_whole(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise RecordError(where, field, f"must be text or the number of a class, is {value!r}")
    if names is None:
        way_out = (
            f"write the names in {CLASS_FILE} beside the table, one a line from class 0 on, or in place of numbers"
        )
        raise RecordError(where, field, f"is {value}, a class without a name; {way_out}")
    if value == NO_LABEL:
        return ""
    if not 0 <= value < len(names):
        raise RecordError(where, field, f"is class {value} of {len(names)}")
    return check_text(names[value].strip(), where, field)


def _read_object(
    value: Any, names: Mapping[str, Sequence[str]], where: str, name: str, notes: list[str]
) -> RawObject | Dropped:
    here, place = name.replace(".{}", ""), name.format("bbox")
    item = as_mapping(value, where, here)
    label_key = _label_key(item, where, here)
    label = _label(item[label_key], names.get(label_key), where, name.format(label_key))
    box = as_box(item.get("bbox"), where, place)
    if not label:
        return Dropped("(no label)", "no_description", "the label is empty", place)
    if any(item.get(key) for key in CROWD_KEYS):
        return Dropped(label, "crowd", "iscrowd: a region of many objects has no single description", place)
    notes += unread("object key", item, (label_key, *CROWD_KEYS, *OTHER_KEYS))
    return upright(box_of_size(label, box, place), item, place)


def read_summary(row: Mapping[str, Any], where: str, prefix: str) -> str | None:
    """Text about the whole photo, several texts on a line each; None if there is none."""
    lines = []
    for column in SUMMARY_COLUMNS:
        value = row.get(column)
        texts = value if isinstance(value, list) else [] if value is None else [value]
        lines += [as_text(text, where, f"{prefix}{column}") for text in texts]
    return "\n".join(filter(None, lines)) or None


def read_size(row: Mapping[str, Any], where: str, prefix: str, notes: list[str]) -> tuple[int, int] | None:
    """The size that the row declares, or None; in CSV it is text. Adds to ``notes``."""
    width, height = (as_whole(row.get(name)) for name in ("width", "height"))
    return declared_size(width, height, where, prefix.rstrip(".") or "row", notes)
