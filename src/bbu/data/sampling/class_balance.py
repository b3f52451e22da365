"""How much the caption of a training target weighs, by how often its description is annotated. Needs no torch."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

from bbu.records import Row


def caption_weights(rows: Iterable[Row], beta: float) -> dict[str, float]:
    """Description → weight, class-balanced by the effective number of samples (Cui et al. 2019, arXiv:1901.05555).

    A description of n targets weighs in proportion to (1 − β) / (1 − βⁿ): the same for all at β = 0, nearly 1 / n at a
    β close to 1. The mean weight over the targets of the rows is 1, so the caption term keeps its scale.

    Args:
        rows: training photos.
        beta: β, 0 ≤ β < 1.
    """
    counts = Counter(item.desc for row in rows for item in row.objects)
    if not beta:
        return dict.fromkeys(counts, 1.0)
    raw = {desc: (1 - beta) / -math.expm1(count * math.log(beta)) for desc, count in counts.items()}
    mean = math.fsum(raw[desc] * count for desc, count in counts.items()) / max(counts.total(), 1)
    return {desc: weight / mean for desc, weight in raw.items()}
