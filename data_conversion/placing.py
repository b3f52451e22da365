"""One raw object → one record object in displayed pixels, or the reason why it is dropped.

Order: token map → hierarchy → EXIF and scale → clip to the image → size. REASONS lists the codes.

Shapes: R rows.
"""

from __future__ import annotations

import numpy as np

from bbu.errors import shortened
from bbu.geometry import (
    Affine,
    clip_box,
    clip_line,
    clip_polygon,
    line_length,
    longest_piece,
    polygon_area,
    transform_boxes,
    transform_points,
)
from bbu.records import BOUNDS_TOLERANCE, ObjectRow
from bbu.taxonomy import Taxonomy
from data_conversion.base import Dropped, RawObject

MIN_SIDE = 1.0  # displayed pixels: least side of a box, length of a line, square root of a polygon's area
DECIMALS = 2  # of a pixel, as in written records
CLIPPED = "clipped_object"  # note: an object was clipped by more than rounding
LINE_IN_PIECES = "further_piece_of_a_line"  # note: a line that leaves the photo and comes back is one object per piece

# Why an object is not in the output: code → meaning.
REASONS = {
    "malformed_object": "its geometry or label cannot be read; the detail says why",
    "rotated_box": "a turned box in a format that has none: its upright box would be another geometry",
    "no_description": "the source gives no label",
    "unsupported_shape": "a shape other than a box, polygon or line: a point, an ellipse, a mask …",
    "crowd": "a region of many objects, which has no single description",
    "unknown_question": "an answered question is not in the table of questions",
    "outside_hierarchy": "the path is not in the taxonomy",
    "inverted_box": "the corners are swapped",
    "zero_area": "the annotation itself has no area or length",
    "outside_image": "nothing of it lies inside the photo",
    "too_small": "less than one displayed pixel wide, high or long",
    "duplicate": "the same description and geometry twice in one photo",
    "photo_skipped": "its photo is in invalid_samples.jsonl",
    "split_left_out": "its photo is in a split that --splits leaves out",
}


def place_objects(
    objects: tuple[RawObject | Dropped, ...], taxonomy: Taxonomy, affine: Affine, size: tuple[int, int]
) -> tuple[list[ObjectRow], list[Dropped], list[str]]:
    """Kept objects in (y1, x1) order, dropped ones in file order, and notes for the report.

    A line whose inside is several pieces gives one object for each.

    Args:
        affine: annotation pixels → displayed pixels.
        size: displayed (width, height).
    """
    kept: list[ObjectRow] = []
    dropped: list[Dropped] = []
    notes: list[str] = []
    seen: set[ObjectRow] = set()
    for item in objects:
        if isinstance(item, Dropped):
            dropped.append(item)
            continue
        for placed in _place(item, taxonomy, affine, size, notes):
            if isinstance(placed, Dropped):
                dropped.append(placed)
            elif placed in seen:
                dropped.append(_drop(item, "duplicate", "is in this photo already, with the same geometry"))
            else:
                seen.add(placed)
                kept.append(placed)
    return sorted(kept, key=_reading_order), dropped, notes


def _reading_order(item: ObjectRow) -> tuple[object, ...]:
    x1, y1, x2, y2 = item.box
    return (y1, x1, y2, x2, item.desc, item.kind, item.points)


def _drop(item: RawObject, reason: str, detail: str) -> Dropped:
    return Dropped(item.desc.strip() or "(no label)", reason, detail, item.field)


def _place(
    item: RawObject, taxonomy: Taxonomy, affine: Affine, size: tuple[int, int], notes: list[str]
) -> list[ObjectRow] | list[Dropped]:
    """The object, several for a line in pieces, or why it is dropped."""
    desc = taxonomy.normalise(item.desc)
    if not desc:
        return [_drop(item, "no_description", "the token map leaves nothing of the label")]
    problem = taxonomy.problem(item.desc)
    if problem:
        return [_drop(item, "outside_hierarchy", problem)]
    # The last bits of a fraction or percentage must not put a corner outside the image, where it would be clipped.
    points_R2 = np.round(_to_displayed(item, affine), 6)
    if not _extent(item.kind, points_R2) > 0:
        return [_drop(item, "zero_area", f"{item.kind} {_listed(points_R2)} has no extent")]
    pieces = _clip(item.kind, points_R2, size)
    if not pieces:
        return [_drop(item, "outside_image", f"{item.kind} {_listed(points_R2)} lies outside {size[0]}x{size[1]}")]
    # + 0.0 turns -0.0 into 0.0; rounding before sorting gives the order of the written numbers.
    cut = [_without_repeats(item.kind, np.round(piece_R2, DECIMALS) + 0.0) for piece_R2 in pieces]
    large = [piece_R2 for piece_R2 in cut if _extent(item.kind, piece_R2) >= MIN_SIDE]
    if not large:
        return [_drop(item, "too_small", f"{item.kind} {_listed(longest_piece(cut))} is under {MIN_SIDE:g} pixel")]
    beyond = np.maximum(-points_R2, points_R2 - size).max()
    if beyond > BOUNDS_TOLERANCE:
        notes.append(CLIPPED)
    notes += [LINE_IN_PIECES] * (len(large) - 1)
    return [ObjectRow(desc, item.kind, tuple(float(value) for value in piece_R2.ravel())) for piece_R2 in large]


def _to_displayed(item: RawObject, affine: Affine) -> np.ndarray:
    """(R, 2) displayed points; a box has two, its low and its high corner."""
    points = np.asarray(item.points, dtype=np.float64)
    if item.kind == "bbox_2d":
        return transform_boxes(points.reshape(1, 4), affine).reshape(2, 2)
    return transform_points(points.reshape(-1, 2), affine)


def _extent(kind: str, points_R2: np.ndarray) -> float:
    """Shorter side of a box, square root of a polygon's area, length of a line; pixels."""
    if kind == "bbox_2d":
        return float((points_R2[1] - points_R2[0]).min())
    if kind == "poly":
        return polygon_area(points_R2) ** 0.5 if len(points_R2) > 2 else 0.0
    return line_length(points_R2) if len(points_R2) > 1 else 0.0


def _clip(kind: str, points_R2: np.ndarray, size: tuple[int, int]) -> list[np.ndarray]:
    """What lies inside the image, (R, 2) points: one piece, several of a line, none if it lies outside."""
    if kind == "bbox_2d":
        box = clip_box(points_R2.ravel(), *size).reshape(2, 2)
        return [box] if (box[1] > box[0]).all() else []
    pieces = [clip_polygon(points_R2, *size)] if kind == "poly" else clip_line(points_R2, *size)
    # A ring flattened against the border is outside.
    return [piece_R2 for piece_R2 in pieces if len(piece_R2) and _extent(kind, piece_R2) > 0]


def _without_repeats(kind: str, points_R2: np.ndarray) -> np.ndarray:
    """Drop points equal to the one before, which rounding or clipping can cause."""
    if kind == "bbox_2d" or len(points_R2) < 2:
        return points_R2
    keep = [index for index in range(len(points_R2)) if index == 0 or (points_R2[index] != points_R2[index - 1]).any()]
    if kind == "poly" and len(keep) > 3 and (points_R2[keep[0]] == points_R2[keep[-1]]).all():
        keep.pop()
    return points_R2[keep]


def _listed(points_R2: np.ndarray) -> str:
    return f"[{shortened(', '.join(f'{value:g}' for value in points_R2.ravel()))}]"
