"""Histograms, for the page and the JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Bar:
    """Number of values in [low, high); ``high`` is None if open."""

    low: float
    high: float | None
    count: int

    def to_json(self) -> dict[str, Any]:
        return {"from": self.low, "to": self.high, "count": self.count}


def histogram(values: Sequence[float] | np.ndarray, edges: Sequence[float]) -> list[Bar]:
    """Counts between ascending edges; the last may be infinite."""
    counts, _ = np.histogram(np.asarray(values, dtype=np.float64), bins=[*edges[:-1], min(edges[-1], 1e300)])
    tops = [None if math.isinf(edge) else float(edge) for edge in edges[1:]]
    return [Bar(float(low), top, int(n)) for low, top, n in zip(edges[:-1], tops, counts, strict=True)]


def round_edges(highest: float, bars: int = 16) -> list[float]:
    """Edges from 0 to at least ``highest`` in steps of 1, 2 or 5 times a power of ten, about ``bars`` of them."""
    rough = max(highest, 1) / bars
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * times for times in (1, 2, 5, 10) if power * times >= rough)
    return [step * number for number in range(math.ceil((highest + 1) / step) + 1)]
