"""Choose the few-shot examples: rows that show every label first, then many situations.

1. Greedy cover: the row with the most labels not yet shown, until all are shown.
2. Variety: the row with the most situations not yet shown: object count, place, size.
3. The rest by seed. Ties are broken by seed too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence

import numpy as np

from bbu.geometry import box_area
from bbu.records import Row

COUNT_BINS = (3, 10)  # objects: up to 3, up to 10, more
AREA_BINS = (0.05, 0.20)  # mean box area as a share of the photo: under 5 %, under 20 %, more
GRID = 3  # cells a side, for the mean centre of all boxes


def choose_teachers(rows: Sequence[Row], count: int, seed: int) -> list[int]:
    """Indices of at most ``count`` rows, in the order of choice; rows without objects are passed over.

    O(count × rows) steps: meant for tens of teachers out of thousands of rows.
    """
    if count < 1:
        return []
    order = [index for index, row in enumerate(rows) if row.objects]
    order.sort(key=lambda index: hashlib.sha256(f"{seed}:{rows[index].images[0]}".encode()).digest())
    labels = {index: {item.desc for item in rows[index].objects} for index in order}
    situations = {index: _situations(rows[index]) for index in order}
    chosen: list[int] = []
    for traits in (labels, situations):
        _cover(order, traits.__getitem__, chosen, count)
    chosen += [index for index in order if index not in chosen][: max(0, count - len(chosen))]
    return chosen


def _cover(order: Sequence[int], traits: Callable[[int], Collection[str]], chosen: list[int], count: int) -> None:
    """Append to ``chosen`` whichever row adds most new traits, until none adds any or ``count`` is reached."""
    shown = {trait for index in chosen for trait in traits(index)}
    while len(chosen) < count:
        best = max(order, key=lambda index: len(set(traits(index)) - shown), default=None)
        if best is None or not set(traits(best)) - shown:
            return
        chosen.append(best)
        shown.update(traits(best))


def _situations(row: Row) -> tuple[str, str, str]:
    """Bins of object count, mean centre and mean size."""
    boxes = np.array([item.box for item in row.objects])  # (n, 4) displayed pixels
    centre = ((boxes[:, :2] + boxes[:, 2:]) / 2).mean(axis=0) / (row.width, row.height)
    column, line = (min(GRID - 1, int(value * GRID)) for value in centre)
    area = float(box_area(boxes).mean()) / (row.width * row.height)
    count_bin = int(np.searchsorted(COUNT_BINS, len(boxes), side="left"))
    area_bin = int(np.searchsorted(AREA_BINS, area, side="right"))
    return f"count {count_bin}", f"place {column},{line}", f"size {area_bin}"
