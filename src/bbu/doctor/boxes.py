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

SAME_PLACE_IOU = 0.9  # two annotators' boxes of one object rarely agree better
TINY_SHARE = 0.02  # of all objects; up to this share is an info, more a warning
MAX_ADVISED_TOKENS = 16384  # of a photo; the advice never asks for more than a sample could hold


@dataclass(frozen=True)
class ObjectSizes:
    """Sizes of all objects after the resize.

    Args:
        cell: pixels of one image token's side.
        objects: number of all objects.
        histogram: objects by the square root of their area in model pixels.
        tiny_by_description: description → objects with a side shorter than one cell.
        tiny_in_area: number of these whose area is below one cell too.
        max_pixels_saving_half: the lowest data.max_pixels at which half of the tiny ones reach a cell; None: none does.
    """

    cell: int
    objects: int
    histogram: list[Bar]
    tiny_by_description: dict[str, int]
    tiny_in_area: int
    max_pixels_saving_half: int | None

    def to_json(self) -> dict[str, Any]:
        return vars(self) | {"histogram": [bar.to_json() for bar in self.histogram]}


def measure_sizes(samples: Sequence[Sample], plan: PhotoPlan) -> tuple[ObjectSizes, list[Finding]]:
    """Sizes of all objects in model pixels, at the plan's pixel budget."""
    cell = plan.token_size
    places = [(number, item) for number, sample in enumerate(samples) for item in sample.row.objects]
    sides_Gt2 = np.array([_sides(item) for _, item in places], dtype=np.float64).reshape(-1, 2)
    photos = [(sample.row.width, sample.row.height) for sample in samples]
    owner_Gt = np.array([number for number, _ in places], dtype=np.int64)
    seen_Gt2 = sides_Gt2 * _scales(photos, plan)[owner_Gt]
    small_Gt = _under_a_cell(seen_Gt2, cell)
    saving = _saving_pixels(sides_Gt2[small_Gt], [photos[n] for n in owner_Gt[small_Gt]], plan)
    tiny = Counter(places[n][1].desc for n in np.flatnonzero(small_Gt))
    edges = [0, cell / 2, *(cell * 2**step for step in range(7)), math.inf]
    bars = histogram(np.sqrt(seen_Gt2.prod(axis=1)), edges)
    in_area = int((seen_Gt2[small_Gt].prod(axis=1) < cell**2).sum())
    sizes = ObjectSizes(cell, len(places), bars, dict(tiny.most_common()), in_area, saving)
    smallest = [n for n in np.argsort(seen_Gt2.min(axis=1), kind="stable") if small_Gt[n]]
    examples = []
    for n in smallest[:MAX_EXAMPLES]:
        sample, (width, height) = samples[owner_Gt[n]], seen_Gt2[n]
        examples.append(Example(sample.where, sample.name, places[n][1].desc, f"{width:.0f}x{height:.0f} model pixels"))
    return sizes, _tiny_findings(sizes, examples, int(small_Gt.sum()), plan.max_pixels)


def _sides(item: ObjectRow) -> tuple[float, float]:
    """Width and height in displayed pixels; the longer side for both if the object is a line."""
    x1, y1, x2, y2 = item.box
    longer = max(x2 - x1, y2 - y1)
    return (longer, longer) if item.kind == "line" else (x2 - x1, y2 - y1)


def _scales(photos: Sequence[tuple[int, int]], plan: PhotoPlan) -> np.ndarray:
    """(photos, 2) model pixels per displayed pixel, across and down."""
    known = {size: plan.plan(*size) for size in set(photos)}
    return np.array([(known[w, h].model_width / w, known[w, h].model_height / h) for w, h in photos]).reshape(-1, 2)


def _under_a_cell(sides_Gt2: np.ndarray, cell: int) -> np.ndarray:
    """Whether either side is shorter than an image token."""
    return np.asarray((sides_Gt2 < cell).any(axis=1))


def _saving_pixels(sides_Gt2: np.ndarray, photos: Sequence[tuple[int, int]], plan: PhotoPlan) -> int | None:
    """The lowest max_pixels, in whole tokens, at which half of these objects reach a cell."""
    if not len(sides_Gt2):
        return None
    area = plan.token_size**2

    def saved(tokens: int) -> bool:
        scales = _scales(photos, plan.with_max_pixels(tokens * area))
        return bool(_under_a_cell(sides_Gt2 * scales, plan.token_size).mean() <= 0.5)

    low, high = math.ceil(plan.max_pixels / area), MAX_ADVISED_TOKENS
    if low >= high or not saved(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if saved(middle) else (middle, high)
    return high * area


def _tiny_findings(sizes: ObjectSizes, examples: list[Example], count: int, max_pixels: int) -> list[Finding]:
    if not count:
        return []
    if sizes.max_pixels_saving_half is None:
        advice = (
            "Most are that small in the photo itself, so a larger data.max_pixels does not help: raise "
            "data.min_pixels, which enlarges photos, or cut photos into tiles."
        )
    else:
        advice = (
            f"data.max_pixels={sizes.max_pixels_saving_half} saves half of them; "
            "each doubling doubles the image tokens."
        )
    share = count / sizes.objects
    severity = None if share > TINY_SHARE else INFO
    values = {"max_pixels": max_pixels, "cell": sizes.cell, "share": f"{share:.1%}"}
    values |= {"area": sizes.tiny_in_area, "advice": advice}
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
