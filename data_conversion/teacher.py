"""Choose the few-shot examples: rows that cover every label first, then many situations.

1. Greedy cover: the row with the most labels not yet covered, until all are.
2. Variety: the row with the most situations not yet covered (object count, place, size).
3. The rest by seed, which also breaks ties.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Sequence

from bbu.records import Row, situations


def choose_teachers(rows: Iterable[Row], count: int, seed: int) -> list[int]:
    """Indices of at most ``count`` rows with objects, in the order of choice.

    Rows are read once, and only their traits are kept. The time is O(count × rows): meant for tens of teachers out of
    thousands of rows.
    """
    if count < 1:
        return []
    names: dict[str, str] = {}
    kept = {
        index: (_key(seed, row), _labels(row, names), situations(row)) for index, row in enumerate(rows) if row.objects
    }
    order = sorted(kept, key=lambda index: kept[index][0])
    chosen: list[int] = []
    _cover(order, lambda index: kept[index][1], chosen, count)
    _cover(order, lambda index: kept[index][2], chosen, count)
    taken = set(chosen)
    chosen += [index for index in order if index not in taken][: max(0, count - len(chosen))]
    return chosen


def _key(seed: int, row: Row) -> bytes:
    """Sort key: an order of rows that depends on the seed."""
    return hashlib.sha256(f"{seed}:{row.images[0]}".encode()).digest()


def _labels(row: Row, names: dict[str, str]) -> tuple[str, ...]:
    """The distinct descriptions of a row, one object per text for all rows."""
    return tuple(sorted({names.setdefault(item.desc, item.desc) for item in row.objects}))


def _cover(order: Sequence[int], traits: Callable[[int], Collection[str]], chosen: list[int], count: int) -> None:
    """Append the row that adds most new traits to ``chosen``, until none adds any or there are ``count``."""
    shown = {trait for index in chosen for trait in traits(index)}
    while len(chosen) < count:
        best = max(order, key=lambda index: len(set(traits(index)) - shown), default=None)
        if best is None or not set(traits(best)) - shown:
            return
        chosen.append(best)
        shown.update(traits(best))
