"""Findings about boxes: too small for the model, too many for its queries, contradictory.

Shapes: Gt ground-truth objects.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bbu.doctor.charts import Bar, histogram
from bbu.doctor.findings import INFO, MAX_EXAMPLES, Example, Finding, finding
from bbu.doctor.reading import Rows, Sample
from bbu.families.photo_plan import PhotoPlan
from bbu.geometry import iou_matrix
from bbu.records import ObjectRow
from bbu.tiles import Size, Tile, Tiles

SAME_PLACE_IOU = 0.9  # two annotators' boxes of one object rarely agree better
TINY_SHARE = 0.02  # of all objects; up to this share is an info, more a warning
MOST = 0.5  # of all objects; from here on tiles are advised first
MAX_ADVISED_TOKENS = 16384  # of a photo; the advice never asks for more than a sample could hold


@dataclass(frozen=True)
class ObjectSizes:
    """Sizes of all objects after the resize; with tiles, each in the view that shows it largest.

    Args:
        cell: pixels of one image token's side.
        objects: number of all objects.
        histogram: objects by the square root of their area in model pixels.
        tiny_by_description: description → objects with a side shorter than one cell.
        tiny_in_area: number of these whose area is below one cell too.
        max_pixels_saving_half: the lowest data.max_pixels at which half of the tiny ones reach a cell; None: none does.
        tokens: image tokens of a photo with its tiles, on average.
        tiny_in_auto_tiles, tokens_in_auto_tiles: number of the tiny ones and tokens with data.tiles=auto.
    """

    cell: int
    objects: int
    histogram: list[Bar]
    tiny_by_description: dict[str, int]
    tiny_in_area: int
    max_pixels_saving_half: int | None
    tokens: float
    tiny_in_auto_tiles: int
    tokens_in_auto_tiles: float

    def to_json(self) -> dict[str, Any]:
        return vars(self) | {"histogram": [bar.to_json() for bar in self.histogram]}


def measure_sizes(
    samples: Sequence[Sample], plan: PhotoPlan, tiles: Tiles | None = None
) -> tuple[ObjectSizes, list[Finding]]:
    """Sizes of all objects in model pixels, at the plan's pixel budget.

    Args:
        tiles: that are shown beside the photos; None = none.
    """
    cell = plan.token_size
    places = [(number, item) for number, sample in enumerate(samples) for item in sample.row.objects]
    sides_Gt2 = np.array([_sides(item) for _, item in places], dtype=np.float64).reshape(-1, 2)
    photos = [(sample.row.width, sample.row.height) for sample in samples]
    owner_Gt = np.array([number for number, _ in places], dtype=np.int64)
    seen_Gt2 = sides_Gt2 * _scales(photos, plan, tiles)[owner_Gt]
    small_Gt = _under_a_cell(seen_Gt2, cell)
    saving = _saving_pixels(sides_Gt2[small_Gt], [photos[n] for n in owner_Gt[small_Gt]], plan, tiles)
    in_tiles_Gt = _under_a_cell(sides_Gt2 * _scales(photos, plan, Tiles())[owner_Gt], cell)
    tiny = Counter(places[n][1].desc for n in np.flatnonzero(small_Gt))
    edges = [0, cell / 2, *(cell * 2**step for step in range(7)), math.inf]
    bars = histogram(np.sqrt(seen_Gt2.prod(axis=1)), edges)
    in_area = int((seen_Gt2[small_Gt].prod(axis=1) < cell**2).sum())
    tokens, tokens_in_tiles = (_tokens(photos, plan, layout) for layout in (tiles, Tiles()))
    sizes = ObjectSizes(
        cell,
        len(places),
        bars,
        dict(tiny.most_common()),
        in_area,
        saving,
        tokens,
        int(in_tiles_Gt.sum()),
        tokens_in_tiles,
    )
    smallest = [n for n in np.argsort(seen_Gt2.min(axis=1), kind="stable") if small_Gt[n]]
    examples = []
    for n in smallest[:MAX_EXAMPLES]:
        sample, (width, height) = samples[owner_Gt[n]], seen_Gt2[n]
        examples.append(Example(sample.where, sample.name, places[n][1].desc, f"{width:.0f}x{height:.0f} model pixels"))
    return sizes, _tiny_findings(sizes, examples, int(small_Gt.sum()), plan.max_pixels, tiles)


def _sides(item: ObjectRow) -> tuple[float, float]:
    """Width and height in displayed pixels; the longer side for both if the object is a line."""
    x1, y1, x2, y2 = item.box
    longer = max(x2 - x1, y2 - y1)
    return (longer, longer) if item.kind == "line" else (x2 - x1, y2 - y1)


def _views(photo: Size, plan: PhotoPlan, tiles: Tiles | None) -> list[Size]:
    """Sizes of a photo and of its tiles."""
    windows = tiles.windows(photo, plan.max_pixels) if tiles else []
    return [photo, *(Tile(window, photo).size for window in windows)]


def _scales(photos: Sequence[Size], plan: PhotoPlan, tiles: Tiles | None) -> np.ndarray:
    """(photos, 2) model pixels per displayed pixel, across and down, of the view that shows most of them."""

    def scale(view: Size) -> tuple[float, float]:
        planned = plan.plan(*view)
        return planned.model_width / view[0], planned.model_height / view[1]

    known = {photo: max(map(scale, set(_views(photo, plan, tiles))), key=math.prod) for photo in set(photos)}
    return np.array([known[photo] for photo in photos]).reshape(-1, 2)


def _tokens(photos: Sequence[Size], plan: PhotoPlan, tiles: Tiles | None) -> float:
    """Image tokens of all views of a photo, on average."""
    known = {
        photo: sum(plan.text_tokens(math.prod(plan.grid(plan.plan(*view)))) for view in _views(photo, plan, tiles))
        for photo in set(photos)
    }
    return sum(known[photo] for photo in photos) / max(len(photos), 1)


def _under_a_cell(sides_Gt2: np.ndarray, cell: int) -> np.ndarray:
    """Whether either side is shorter than an image token."""
    return np.asarray((sides_Gt2 < cell).any(axis=1))


def _saving_pixels(sides_Gt2: np.ndarray, photos: Sequence[Size], plan: PhotoPlan, tiles: Tiles | None) -> int | None:
    """The lowest max_pixels, in whole tokens, at which half of these objects reach a cell."""
    if not len(sides_Gt2):
        return None
    area = plan.token_size**2

    def saved(tokens: int) -> bool:
        scales = _scales(photos, plan.with_max_pixels(tokens * area), tiles)
        return bool(_under_a_cell(sides_Gt2 * scales, plan.token_size).mean() <= 0.5)

    low, high = math.ceil(plan.max_pixels / area), MAX_ADVISED_TOKENS
    if low >= high or not saved(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if saved(middle) else (middle, high)
    return high * area


def _tiny_findings(
    sizes: ObjectSizes, examples: list[Example], count: int, max_pixels: int, tiles: Tiles | None
) -> list[Finding]:
    if not count:
        return []
    share = count / sizes.objects
    if sizes.max_pixels_saving_half is None:
        advice = (
            "Most are that small in the photo itself, so a larger data.max_pixels does not help: raise "
            "data.min_pixels, which enlarges photos and tiles."
        )
    else:
        advice = (
            f"data.max_pixels={sizes.max_pixels_saving_half} saves half of them; "
            "each doubling doubles the image tokens."
        )
    if tiles is None and sizes.tiny_in_auto_tiles <= count / 2:
        on_tiles = (
            "data.tiles=auto trains and predicts on tiles at full resolution beside each photo: "
            f"{sizes.tiny_in_auto_tiles / sizes.objects:.1%} of all objects are then under one token instead of "
            f"{share:.1%}, at {sizes.tokens_in_auto_tiles:.0f} image tokens a photo instead of {sizes.tokens:.0f}."
        )
        advice = f"{on_tiles} Or: {advice}" if share > MOST else f"{advice} Or: {on_tiles}"
    severity = None if share > TINY_SHARE else INFO
    values = {"max_pixels": max_pixels, "cell": sizes.cell, "share": f"{share:.1%}"}
    values |= {"area": sizes.tiny_in_area, "advice": advice, "tiles": ", in tiles too," if tiles else ""}
    return [finding("tiny_objects", examples, count, severity, labels=counted(sizes.tiny_by_description), **values)]


def counted(counts: dict[str, int], most: int = 5) -> str:
    """``a 12, b 3, … (4 more)``: the most frequent ones."""
    ranked = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    more = f", … ({len(ranked) - most} more)" if len(ranked) > most else ""
    return ", ".join(f"{label} {count}" for label, count in ranked[:most]) + more


def query_findings(samples: Sequence[Sample], queries: int) -> list[Finding]:
    """Photos with more objects than queries."""
    crowded = sorted((s for s in samples if len(s.row.objects) > queries), key=lambda s: -len(s.row.objects))
    if not crowded:
        return []
    examples = [Example(s.where, s.name, detail=f"{len(s.row.objects)} objects") for s in crowded]
    return [finding("more_objects_than_queries", examples, queries=queries, needed=len(crowded[0].row.objects))]


def contradiction_findings(rows: Rows, copies: Iterable[tuple[Sample, Sample]]) -> list[Finding]:
    """Boxes in the same place with different descriptions, in one photo and between copies of a photo.

    Args:
        copies: pairs of samples with equal or nearly equal photos.
    """
    inside = [
        Example(sample.where, sample.name, f"{a.desc} | {b.desc}", f"IoU {overlap:.2f}")
        for sample in rows.samples
        for a, b, overlap in contradictions(sample, sample)
    ]
    between = [
        Example(one.where, one.name, f"{a.desc} | {b.desc}", f"IoU {overlap:.2f} with {other.name} ({other.where})")
        for one, other in copies
        for a, b, overlap in contradictions(one, other)
    ]
    found = [finding("contradictory_labels", inside, iou=SAME_PLACE_IOU)] if inside else []
    return found + ([finding("contradictory_copies", between, iou=SAME_PLACE_IOU)] if between else [])


def contradictions(one: Sample, other: Sample) -> list[tuple[ObjectRow, ObjectRow, float]]:
    """Pairs of objects in one place with different descriptions; without lines, since two cables may share a box."""
    mine, theirs = ([item for item in s.row.objects if item.kind != "line"] for s in (one, other))
    if not mine or not theirs:
        return []
    overlap = iou_matrix(*(_unit_boxes(sample, items) for sample, items in ((one, mine), (other, theirs))))
    close = np.argwhere(overlap >= SAME_PLACE_IOU)
    found = [(int(i), int(j)) for i, j in close if mine[i].desc != theirs[j].desc and (one is not other or i < j)]
    if one is not other:  # a description that the other photo has too, as a second label there, does not contradict
        agreed = {int(i) for i, j in close if mine[i].desc == theirs[j].desc}
        found = [(i, j) for i, j in found if i not in agreed]
    return [(mine[i], theirs[j], float(overlap[i, j])) for i, j in found]


def _unit_boxes(sample: Sample, items: Sequence[ObjectRow]) -> np.ndarray:
    size = np.array([sample.row.width, sample.row.height] * 2, dtype=np.float64)
    return np.array([item.box for item in items], dtype=np.float64) / size
