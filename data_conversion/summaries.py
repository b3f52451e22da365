"""Summaries of photos that have none: how many objects of each description there are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from bbu.taxonomy import prefix

LANGUAGES = ("", "zh", "en")


def count_objects(descriptions: Iterable[str], language: str, levels: int = 0) -> str:
    """One sentence that counts the descriptions of a photo, by name, and then all of them.

    A model that writes it from left to right finds the order in the names, and the total in what it has counted.

    Args:
        language: ``zh`` or ``en``; "" makes none. The descriptions stay as they are.
        levels: first levels of the descriptions that are counted together; 0 = all.
    """
    counts = Counter(prefix(desc, levels) if levels else desc for desc in descriptions)
    ordered = sorted(counts.items())
    if language == "zh":
        listed = "，".join(f"{desc}×{count}" for desc, count in ordered)
        return (f"{listed}；" if ordered else "") + f"共{counts.total()}个目标"
    if language == "en":
        listed = ", ".join(f"{count} × {desc}" for desc, count in ordered)
        return (f"{listed}; " if ordered else "") + f"{counts.total()} object{'s' * (counts.total() != 1)}"
    return ""
