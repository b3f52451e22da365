"""The ``segmentation`` of a COCO annotation → a polygon or a box.

absent, null or []                  none: the annotation's ``bbox`` counts
[[x, y, …]]                         ``poly``, or ``bbox_2d`` if these are just the four corners of a box
[[x, y, …], [x, y, …], …]           an object in several pieces: its box, noted
{"size": [h, w], "counts": …}       run lengths (RLE), compressed or not: their box, noted

Pieces and masks without an area are as absent, and noted.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bbu.errors import RecordError
from bbu.geometry import enclosing_box, polygon_area
from data_conversion.formats.checks import MAX_COORDINATE, as_list, as_mapping, check_number, check_size

BOX_TOLERANCE = 0.5  # pixels that a polygon's corner may lie off the box it is read as
MAX_MASK_PIXELS = 2**31  # pycocotools counts in 32 bits

SEVERAL_POLYGONS = "several_polygons_kept_as_box"
MASK = "mask_kept_as_box"
NO_AREA = "segmentation_without_area_not_read"

Geometry = tuple[str, tuple[float, ...]]  # kind, points


def read_segmentation(
    value: Any, size: tuple[int, int] | None, where: str, field: str
) -> tuple[Geometry | None, str | None]:
    """The geometry, None without a segmentation, and a note for the report if it was simplified.

    Args:
        size: declared (width, height) of the photo; a mask must have the same.

    Raises:
        RecordError: what is no list of numbers, or run lengths that do not fill the photo.
    """
    if value is None or value == []:
        return None, None
    if isinstance(value, dict):
        box = _mask_box(value, size, where, field)
        return (("bbox_2d", box), MASK) if box[2] > box[0] and box[3] > box[1] else (None, NO_AREA)
    every = [_read_ring(ring, where, f"{field}[{i}]") for i, ring in enumerate(as_list(value, where, field))]
    rings = [ring for ring in every if len(ring) >= 6 and polygon_area(np.reshape(ring, (-1, 2))) > 0]
    if not rings:
        return None, NO_AREA
    if len(rings) > 1:
        return ("bbox_2d", enclosing_box([number for ring in rings for number in ring])), SEVERAL_POLYGONS
    box = enclosing_box(rings[0])
    return ("bbox_2d", box) if _is_box(rings[0], box) else ("poly", rings[0]), NO_AREA if every != rings else None


def _read_ring(value: Any, where: str, field: str) -> tuple[float, ...]:
    """Flat x, y of a ring, without the closing point that some tools repeat."""
    items = as_list(value, where, field)
    if len(items) % 2:
        raise RecordError(where, field, f"must be pairs x, y, has {len(items)} numbers")
    ring = _numbers(items, where, field)
    return ring[:-2] if len(ring) > 6 and ring[:2] == ring[-2:] else ring


def _numbers(items: list[Any], where: str, field: str) -> tuple[float, ...]:
    # Polygons have millions of numbers: field names are made only for a wrong one.
    if all(type(item) in (int, float) and abs(item) <= MAX_COORDINATE for item in items):
        return tuple(map(float, items))
    return tuple(check_number(item, where, f"{field}[{i}]") for i, item in enumerate(items))


def _is_box(ring: tuple[float, ...], box: tuple[float, float, float, float]) -> bool:
    """Whether four points are the corners of their enclosing box, in order around it."""
    if len(ring) != 8:
        return False
    x1, y1, x2, y2 = box
    corners = 2 * [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]
    orders = [corners[start : start + 4][::way] for start in range(4) for way in (1, -1)]
    tolerance = min(BOX_TOLERANCE, 0.05 * max(x2 - x1, y2 - y1))  # of a small box, or one in shares of the photo, less
    return any(np.abs(np.reshape(ring, (4, 2)) - order).max() <= tolerance for order in orders)


def _mask_box(
    value: dict[str, Any], size: tuple[int, int] | None, where: str, field: str
) -> tuple[float, float, float, float]:
    """The xyxy box of a run-length mask, by pycocotools, whose C code checks nothing: the checks are here."""
    from pycocotools import mask

    sides = as_list(as_mapping(value, where, field).get("size"), where, f"{field}.size")
    if len(sides) != 2:
        raise RecordError(where, f"{field}.size", f"must be [height, width], has {len(sides)} numbers")
    width, height = check_size(sides[1], sides[0], where, f"{field}.size")
    if size is not None and size != (width, height):
        raise RecordError(
            where, f"{field}.size", f"is {height}x{width}, but the photo is {size[1]} high and {size[0]} wide"
        )
    if width * height >= MAX_MASK_PIXELS:
        raise RecordError(where, f"{field}.size", f"{width}x{height} has too many pixels")
    counts = _run_lengths(value.get("counts"), where, f"{field}.counts")
    if sum(counts) != width * height:
        raise RecordError(where, f"{field}.counts", f"cover {sum(counts)} pixels of {width}x{height}")
    x, y, w, h = mask.toBbox(mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)).tolist()
    return x, y, x + w, y + h


def _run_lengths(value: Any, where: str, field: str) -> list[int]:
    """Run lengths as whole numbers of at least 0."""
    items = _decompress(value, where, field) if isinstance(value, str) else as_list(value, where, field)
    for index, item in enumerate(items):
        if isinstance(item, bool) or not isinstance(item, int) or item < 0:
            raise RecordError(where, field, f"run {index} must be a whole number of pixels, is {item!r}")
    return items


def _decompress(text: str, where: str, field: str) -> list[int]:
    """COCO's compressed run lengths: characters of 6 bits from "0" on, low bits first (cocoapi's maskApi).

    5 of the 6 bits belong to the number and 1 says that more follow. The number is signed; from the fourth on it is the
    difference from the number two places before.
    """
    counts: list[int] = []
    number, shift = 0, 0
    for index, letter in enumerate(text):
        bits = ord(letter) - 48
        if not 0 <= bits < 64 or shift > 30:
            raise RecordError(where, field, f"is no run-length text: character {index + 1} is {letter!a}")
        number |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            number -= 1 << shift
        counts.append(number + (counts[-2] if len(counts) > 2 else 0))
        number, shift = 0, 0
    if shift:
        raise RecordError(where, field, "is a run-length text that is cut off")
    return counts
