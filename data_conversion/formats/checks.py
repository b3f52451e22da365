"""Checks of the values in annotation files, which all formats share.

Each returns the value in its type; for any other value it raises a RecordError with the file ``where``, the field, and
what is wrong.
"""

from __future__ import annotations

import math
import re
from typing import Any

from bbu.errors import RecordError, shown
from data_conversion.base import Dropped, RawObject

MAX_COORDINATE = 1e6  # pixels; a larger number is no pixel coordinate and would overflow later sums
MAX_IMAGE_SIDE = 1_000_000  # pixels
SIZE_UNUSABLE = "declared_size_unusable_photo_size_taken"  # note


def declared_size(width: Any, height: Any, where: str, field: str, notes: list[str]) -> tuple[int, int] | None:
    """As check_size; None, which means the photo's own size, where a side is missing or 0 or less, which is noted."""
    if width is None and height is None:
        return None
    numbers = [side for side in (width, height) if isinstance(side, int | float) and not isinstance(side, bool)]
    if None in (width, height) or any(number <= 0 for number in numbers):
        notes.append(SIZE_UNUSABLE)
        return None
    return check_size(width, height, where, field)


def check_size(width: Any, height: Any, where: str, field: str) -> tuple[int, int]:
    """A declared (width, height): whole numbers of pixels in 1 … MAX_IMAGE_SIDE."""
    return check_side(width, where, f"{field}.width"), check_side(height, where, f"{field}.height")


def check_side(value: Any, where: str, field: str) -> int:
    """A declared width or height: a whole number of pixels in 1 … MAX_IMAGE_SIDE."""
    number = check_number(value, where, field)
    if number != int(number) or not 1 <= number <= MAX_IMAGE_SIDE:
        raise RecordError(where, field, f"must be a whole number of pixels above 0, is {value!r}")
    return int(number)


def check_number(value: Any, where: str, field: str) -> float:
    """A number of pixels, finite and at most MAX_COORDINATE in size."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RecordError(where, field, f"must be a number, is {shown(value)}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not abs(number) <= MAX_COORDINATE:
        raise RecordError(where, field, f"must be a pixel coordinate, is {shown(value)}")
    return number


def as_whole(value: Any) -> Any:
    """A whole number that a tool wrote as 1.0 or "1" as int; every other value as it is."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return int(value) if isinstance(value, str) and re.fullmatch("0|-?[1-9][0-9]{0,17}", value) else value


def parse_number(text: str | None, where: str, field: str) -> float:
    """As check_number, written as text; None is a missing text."""
    if text is None:
        raise RecordError(where, field, "is missing")
    try:
        number = float(text)
    except ValueError:
        raise RecordError(where, field, f"must be a number, is {shown(text)}") from None
    return check_number(number, where, field)


def check_text(value: str, where: str, field: str) -> str:
    """Text that can be written as UTF-8, so without half of a surrogate pair."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise RecordError(where, field, f"holds a broken character, is {shown(value)}; type it again") from None
    return value


def as_text(value: Any, where: str, field: str) -> str:
    """Text that can be written as UTF-8; blanks at its ends are removed."""
    if not isinstance(value, str):
        raise RecordError(where, field, f"must be text, is {shown(value)}")
    return check_text(value.strip(), where, field)


def as_mapping(value: Any, where: str, field: str) -> dict[str, Any]:
    """A JSON object."""
    if not isinstance(value, dict):
        raise RecordError(where, field, f"must be a JSON object, is {type(value).__name__}")
    return value


def as_list(value: Any, where: str, field: str) -> list[Any]:
    """A JSON list."""
    if not isinstance(value, list):
        raise RecordError(where, field, f"must be a list, is {type(value).__name__}")
    return value


def as_points(value: Any, where: str, field: str) -> list[tuple[float, float]]:
    """``[[x, y], …]`` in pixels; an error names the number."""
    points = []
    for index, item in enumerate(as_list(value, where, field)):
        name = f"{field}[{index}]"
        pair = as_list(item, where, name)
        if len(pair) != 2:
            raise RecordError(where, name, f"must be a point [x, y], has {len(pair)} numbers")
        points.append((check_number(pair[0], where, f"{name}[0]"), check_number(pair[1], where, f"{name}[1]")))
    return points


def as_box(value: Any, where: str, field: str) -> tuple[float, float, float, float]:
    """``[x, y, width, height]`` in pixels; an error names the number."""
    numbers = as_list(value, where, field)
    if len(numbers) != 4:
        raise RecordError(where, field, f"needs 4 numbers [x, y, width, height], has {len(numbers)}")
    x, y, width, height = (check_number(number, where, f"{field}[{i}]") for i, number in enumerate(numbers))
    return x, y, width, height


def box_of_corners(desc: str, corners: tuple[float, float, float, float], field: str) -> RawObject | Dropped:
    """A box from its corners (x1, y1, x2, y2); Dropped if they are swapped or coincide."""
    x1, y1, x2, y2 = corners
    text = f"corners ({x1:g}, {y1:g}, {x2:g}, {y2:g})"
    if x2 < x1 or y2 < y1:
        return Dropped(desc, "inverted_box", f"{text} are swapped", field)
    if x2 == x1 or y2 == y1:
        return Dropped(desc, "zero_area", f"{text} coincide", field)
    return RawObject(desc, "bbox_2d", corners, field)


def box_of_size(desc: str, box: tuple[float, float, float, float], field: str) -> RawObject | Dropped:
    """A box from its (x, y, width, height); Dropped if a side is 0 or negative."""
    x, y, width, height = box
    if min(width, height) < 0:
        return Dropped(desc, "inverted_box", f"width {width:g}, height {height:g} are below 0", field)
    if min(width, height) == 0:
        return Dropped(desc, "zero_area", f"width {width:g}, height {height:g}", field)
    return RawObject(desc, "bbox_2d", (x, y, x + width, y + height), field)
