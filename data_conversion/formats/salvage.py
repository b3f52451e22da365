"""What every reader does alike with an object: drop it alone, name what is not read, read attributes, turn its box."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any
from xml.etree.ElementTree import Element

from bbu.errors import RecordError, shortened, shown
from data_conversion.base import Dropped, RawObject
from data_conversion.formats.checks import box_of_corners

MALFORMED_OBJECT = "malformed_object"
ROTATED_BOX = "rotated_box"
TURNS = ("rotation", "rotate", "angle", "theta")  # keys that turn a box, in formats that do not say about which point

# What tools write where nothing was set.
UNSET = ("", "false", "none", "null", "nan", "n/a", "unspecified", "__undefined__")
UNDEFINED = "__undefined__"  # CVAT's word for an attribute that is not set


def salvage(read: Callable[[], RawObject | Dropped], label: str, field: str) -> RawObject | Dropped:
    """The object that ``read`` returns; one that it cannot read is Dropped, so that its photo and the others stay.

    Args:
        label: the object's label as far as it is known, for the report.
        field: the object's place in the file, where the error names none.
    """
    try:
        return read()
    except RecordError as error:
        return Dropped(label.strip() or "(no label)", MALFORMED_OBJECT, error.why, error.field or field)


def label_in(value: Any, *keys: str) -> str:
    """The text under the first of the keys that has one, "" if none has; for reports of what cannot be read."""
    found = (value.get(key) for key in keys) if isinstance(value, Mapping) else ()
    return next((text for text in found if isinstance(text, str) and text.strip()), "")


# ---------------------------------------------------------------- what is not read


def has_content(value: Any) -> bool:
    """Whether a value says more than a tool's default: not empty, 0, false or unset, and not a list of such."""
    if isinstance(value, Mapping):
        return any(map(has_content, value.values()))
    if isinstance(value, list | tuple):
        return any(map(has_content, value))
    if not isinstance(value, str):
        return bool(value) and value == value  # NaN is what pandas writes for nothing
    text = value.strip().lower()
    return text not in UNSET and not re.fullmatch(r"[+-]?0*\.?0*", text)


def unread(kind: str, value: Any, read: Collection[str]) -> list[str]:
    """A note for each key of a mapping that has content and that no reader takes: ``region key not read: meta.text``.

    Args:
        kind: what the keys belong to.
        read: keys that are read, or that tools write by rote.
    """
    items = value.items() if isinstance(value, Mapping) else ()
    return [
        f"{kind} not read: {shortened(name)}"
        for key, inner in items
        if key not in read and has_content(inner)
        for name in ([f"{key}.{part}" for part, deep in inner.items() if has_content(deep)]
                     if isinstance(inner, Mapping) else [str(key)])
    ]  # fmt: skip


def unread_elements(kind: str, element: Element, read: Collection[str]) -> list[str]:
    """As unread, for the children of an XML element."""
    children = (child for child in element if child.tag not in read)
    return [f"{kind} not read: {shortened(child.tag)}" for child in children if len(child) or has_content(child.text)]


# ---------------------------------------------------------------- attributes


def attribute_levels(attributes: Iterable[tuple[str, str]]) -> list[str]:
    """Attributes, (name, value) each, as levels of a description, in their order.

    A ticked box (``true``) gives its name; an unticked one (``false``), an empty value and CVAT's ``__undefined__``
    give nothing.
    """
    levels = []
    for name, value in attributes:
        text = value.strip()
        levels.append({"true": name.strip(), "false": "", UNDEFINED: ""}.get(text.lower(), text))
    return [level for level in levels if level]


# ---------------------------------------------------------------- turned boxes


def turned_box(
    desc: str, corners: tuple[float, float, float, float], radians: float, field: str
) -> RawObject | Dropped:
    """A box (x1, y1, x2, y2) turned clockwise about its centre: the polygon of its corners, a box if it is not turned.

    Dropped if the corners are swapped or coincide.
    """
    box = box_of_corners(desc, corners, field)
    if isinstance(box, Dropped) or not radians % math.tau:
        return box
    x1, y1, x2, y2 = corners
    cos, sin = math.cos(radians), math.sin(radians)
    (cx, cy), (dx, dy) = ((x1 + x2) / 2, (y1 + y2) / 2), ((x2 - x1) / 2, (y2 - y1) / 2)
    around = ((-dx, -dy), (dx, -dy), (dx, dy), (-dx, dy))
    # y points down, so this is clockwise on the screen.
    points = tuple(n for x, y in around for n in (cx + x * cos - y * sin, cy + x * sin + y * cos))
    return RawObject(desc, "poly", points, field)


def upright(found: RawObject | Dropped, value: Mapping[str, Any], field: str) -> RawObject | Dropped:
    """The box itself; Dropped if a key beside it turns it, since its upright box would be another geometry."""
    key = next((key for key in TURNS if has_content(value.get(key))), None)
    if key is None or isinstance(found, Dropped) or found.kind != "bbox_2d":
        return found
    detail = (
        f"{key} {shown(value[key])} turns the box by a rule this format does not have; write its corners as a polygon"
    )
    return Dropped(found.desc, ROTATED_BOX, detail, f"{field}.{key}")
